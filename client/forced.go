package client

import (
	"context"
	"net/http"
	"net/url"
)

// ForcedLoss is what one pair would miss, or missed, after a forced failover.
type ForcedLoss struct {
	PairID       string  `json:"replication_id"`
	VolumeID     string  `json:"volume_id"`
	LostVolumeID string  `json:"lost_volume_id"`
	Image        string  `json:"image"` // recovery-point, current, none
	PointEpoch   *uint64 `json:"point_epoch"`
	BytesMissing *int64  `json:"bytes_missing"` // nil: not known
	AsOf         Time    `json:"as_of"`
	Estimate     bool    `json:"estimate"` // the old primary may have written since
}

// ForcedReceipt is what a forced failover loses.
type ForcedReceipt struct {
	RecoveryPointAt Time         `json:"recovery_point_at"` // zero: not known
	BytesMissing    *int64       `json:"bytes_missing"`     // nil: that of one volume is not known
	FlushOnly       []string     `json:"flush_consistent_only"`
	Final           bool         `json:"final"`
	Volumes         []ForcedLoss `json:"volumes"`
}

// FailoverPreview is what a failover would do now, and lose.
type FailoverPreview struct {
	GroupID  string   `json:"replication_consistency_group_id"`
	Epoch    uint64   `json:"epoch"`
	Allowed  bool     `json:"allowed"`
	Forced   bool     `json:"forced"` // false: an ordinary failover loses nothing
	Reasons  []string `json:"reasons"`
	From     string   `json:"from"`
	To       string   `json:"to"`
	Warnings []string `json:"warnings"`
	WaitsFor []struct {
		Node  string `json:"node"`
		Alive bool   `json:"alive"`
	} `json:"waits_for"`
	ForcedReceipt
	Token   *string `json:"token"` // nil: not allowed, or not needed
	Expires Time    `json:"token_expires_at"`
}

// FailoverPreview tells what a failover of the group would do now; it changes nothing.
func (c *Client) FailoverPreview(ctx context.Context, group string) (FailoverPreview, error) {
	var out struct {
		Preview FailoverPreview `json:"failover_preview"`
	}
	err := c.call(ctx, http.MethodGet, groupsPath+"/"+url.PathEscape(group)+"/failover-preview", http.StatusOK, nil, &out)
	return out.Preview, err
}

// ForceFailover fails over although writes are lost; token is that of a preview, of which everything
// must still be as it said.
func (c *Client) ForceFailover(ctx context.Context, group, token string) error {
	return c.act(ctx, group, map[string]any{string(ActionFailover): map[string]any{"force": true, "token": token}})
}

// DivergenceImage is what a side had when it lost a forced failover, read-only.
type DivergenceImage struct {
	ID           string           `json:"id"`
	FailedOverAt Time             `json:"failed_over_at"`
	Volumes      []DivergedVolume `json:"volumes"`
}

// DivergedVolume is one volume of it.
type DivergedVolume struct {
	PairID   string  `json:"replication_id"`
	VolumeID string  `json:"volume_id"`
	Node     string  `json:"node"`
	Export   string  `json:"export"` // name at the node's NBD server
	URI      *string `json:"uri"`
}

// DivergenceImages lists a group's divergence images, the oldest first.
func (c *Client) DivergenceImages(ctx context.Context, group string) ([]DivergenceImage, error) {
	var out struct {
		Images []DivergenceImage `json:"divergence_images"`
	}
	err := c.call(ctx, http.MethodGet, groupsPath+"/"+url.PathEscape(group)+"/divergence-images", http.StatusOK, nil, &out)
	return out.Images, err
}

// DeleteDivergenceImage removes a divergence image, for good.
func (c *Client) DeleteDivergenceImage(ctx context.Context, group, image string) error {
	return c.call(ctx, http.MethodDelete, groupsPath+"/"+url.PathEscape(group)+"/divergence-images/"+url.PathEscape(image), http.StatusAccepted, nil, nil)
}
