package client

import (
	"context"
	"net/http"
	"net/url"
)

const volumesPath = "volumes"

func (c *Client) volumeCall(ctx context.Context, method, path string, want int, body any) (Volume, error) {
	var out struct {
		Volume Volume `json:"volume"`
	}
	err := c.call(ctx, method, path, want, body, &out)
	return out.Volume, err
}

// CreateVolume asks for a disk; it comes back in status creating.
func (c *Client) CreateVolume(ctx context.Context, v VolumeCreate) (Volume, error) {
	return c.volumeCall(ctx, http.MethodPost, volumesPath, http.StatusAccepted, map[string]any{"volume": v})
}

// Volume shows one disk.
func (c *Client) Volume(ctx context.Context, id string) (Volume, error) {
	return c.volumeCall(ctx, http.MethodGet, volumesPath+"/"+url.PathEscape(id), http.StatusOK, nil)
}

// Volumes lists disks, newest first.
func (c *Client) Volumes(ctx context.Context, f Filter) ([]Volume, error) {
	f.PriorityStation, f.VolumeID, f.GroupID = "", "", ""
	return list(ctx, c, volumesPath+"/detail", "volumes", f.query(), func(v Volume) string { return v.ID })
}

// UpdateVolume changes texts.
func (c *Client) UpdateVolume(ctx context.Context, id string, u VolumeUpdate) (Volume, error) {
	return c.volumeCall(ctx, http.MethodPut, volumesPath+"/"+url.PathEscape(id), http.StatusOK, map[string]any{"volume": u})
}

// ExtendVolume grows a disk that is in no pair.
func (c *Client) ExtendVolume(ctx context.Context, id string, sizeGiB int64) error {
	body := map[string]any{"os-extend": map[string]any{"new_size": sizeGiB}}
	return c.volumeAction(ctx, id, http.StatusAccepted, body, nil)
}

// DeleteVolume asks for the end of a disk; poll Volume until IsNotFound.
func (c *Client) DeleteVolume(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, volumesPath+"/"+url.PathEscape(id), http.StatusAccepted, nil, nil)
}

func (c *Client) volumeAction(ctx context.Context, id string, want int, body, out any) error {
	return c.call(ctx, http.MethodPost, volumesPath+"/"+url.PathEscape(id)+"/action", want, body, out)
}
