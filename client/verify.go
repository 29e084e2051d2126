package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Proof says when both sides of a group were last found equal.
type Proof struct {
	VerificationID string            `json:"verification_id"`
	StartedAt      time.Time         `json:"started_at"`
	VerifiedAt     time.Time         `json:"verified_at"`
	Epoch          uint64            `json:"epoch"`
	WriteNumbers   map[string]string `json:"write_numbers"` // by "primary node>secondary node"
	Bytes          int64             `json:"bytes"`
	DurationMs     int64             `json:"duration_ms"`
	Differences    int               `json:"differences"` // found and repaired on the way
}

// Verification is a comparison of both sides of a group.
type Verification struct {
	ID               string       `json:"id"`
	State            string       `json:"state"` // running, equal, not-completed, cancelled
	Reason           *string      `json:"reason"`
	RateMiB          *int64       `json:"rate_mib"` // of each primary node; nil: its own
	Epoch            uint64       `json:"epoch"`
	By               string       `json:"by"`
	StartedAt        time.Time    `json:"started_at"`
	EndedAt          *time.Time   `json:"ended_at"`
	Bytes            int64        `json:"bytes"`
	TotalBytes       int64        `json:"total_bytes"`
	Waits            []string     `json:"waits"`
	Differences      int          `json:"differences"`
	DifferentBytes   int64        `json:"different_bytes"`
	FirstDifferences []Difference `json:"first_differences"`
}

// Difference is a range in which the sides were not equal.
type Difference struct {
	VolumeID string    `json:"volume_id"`
	Node     string    `json:"node"` // of the primary
	Offset   int64     `json:"offset"`
	Length   int64     `json:"length"`
	Repaired bool      `json:"repaired"`
	Kept     *string   `json:"kept"` // in the pool of Node, with .primary and .secondary
	FoundAt  time.Time `json:"found_at"`
}

// States of a verification.
const (
	VerifyRunning = "running"
	VerifyEqual   = "equal"
)

// Verify compares both sides of a group that is active, at rateMiB for each primary node (0: its own
// rate), and gives the verification that runs then: an earlier one if there is one.
func (c *Client) Verify(ctx context.Context, group string, rateMiB int64) (Verification, error) {
	args := map[string]any{}
	if rateMiB != 0 {
		args["rate_mib"] = rateMiB
	}
	var out struct {
		Verification Verification `json:"verification"`
	}
	body := map[string]any{"lockstep-verify": args}
	err := c.call(ctx, http.MethodPost, groupsPath+"/"+url.PathEscape(group)+"/action", http.StatusOK, body, &out)
	return out.Verification, err
}

// CancelVerify ends a group's verification; it does nothing if none runs.
func (c *Client) CancelVerify(ctx context.Context, group string) error {
	return c.act(ctx, group, map[string]any{"lockstep-verify-cancel": nil})
}
