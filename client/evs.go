package client

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
)

// Paths under the endpoint.
const (
	pairsPath  = "os-vendor-replications"
	groupsPath = "os-vendor-replication-consistency-groups"
)

// call sends body (nil: none) and reads the answer into out (nil: ignored); any status but want
// is an error.
func (c *Client) call(ctx context.Context, method, path string, want int, body, out any) error {
	opts := &gophercloud.RequestOpts{OkCodes: []int{want}}
	if body != nil {
		opts.JSONBody = body
	}
	if out != nil {
		opts.JSONResponse = out
	}
	resp, err := c.sc.Request(ctx, method, c.sc.ServiceURL(path), opts)
	if err != nil {
		return translate(err)
	}
	if out == nil {
		return resp.Body.Close()
	}
	return nil
}

// Filter selects from a list; empty fields select everything.
type Filter struct {
	Name            string
	Status          string
	PriorityStation string
	VolumeID        string
	GroupID         string // pairs only
}

func (f Filter) query() string {
	q := url.Values{}
	for key, value := range map[string]string{
		"name": f.Name, "status": f.Status, "priority_station": f.PriorityStation,
		"volume_id": f.VolumeID, "replication_consistency_group_id": f.GroupID,
	} {
		if value != "" {
			q.Set(key, value)
		}
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// pageLimit is the largest page the API gives; lists longer than it are read page by page.
const pageLimit = 1000

// list reads all pages: each begins after the last id of the one before.
func list[T any](ctx context.Context, c *Client, path, key, query string, id func(T) string) ([]T, error) {
	var all []T
	marker := ""
	for {
		q, err := url.ParseQuery(strings.TrimPrefix(query, "?"))
		if err != nil {
			return nil, err
		}
		if marker != "" {
			q.Set("marker", marker)
		}
		suffix := ""
		if len(q) > 0 {
			suffix = "?" + q.Encode()
		}
		var page map[string][]T
		if err := c.call(ctx, http.MethodGet, path+suffix, http.StatusOK, nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page[key]...)
		if len(page[key]) < pageLimit {
			return all, nil
		}
		marker = id(page[key][len(page[key])-1])
	}
}

// CreatePair asks for a pair; it comes back in status creating.
func (c *Client) CreatePair(ctx context.Context, p PairCreate) (Pair, error) {
	if p.Model == "" {
		p.Model = Model
	}
	var out struct {
		Pair Pair `json:"replication"`
	}
	err := c.call(ctx, http.MethodPost, pairsPath, http.StatusAccepted, map[string]any{"replication": p}, &out)
	return out.Pair, err
}

// Pair shows one pair.
func (c *Client) Pair(ctx context.Context, id string) (Pair, error) {
	var out struct {
		Pair Pair `json:"replication"`
	}
	err := c.call(ctx, http.MethodGet, pairsPath+"/"+url.PathEscape(id), http.StatusOK, nil, &out)
	return out.Pair, err
}

// Pairs lists pairs, newest first.
func (c *Client) Pairs(ctx context.Context, f Filter) ([]Pair, error) {
	return list(ctx, c, pairsPath, "replications", f.query(), func(p Pair) string { return p.ID })
}

// DeletePair asks for the end of a pair; poll Pair until IsNotFound.
func (c *Client) DeletePair(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, pairsPath+"/"+url.PathEscape(id), http.StatusAccepted, nil, nil)
}

// CreateGroup asks for a group; it comes back in status creating.
func (c *Client) CreateGroup(ctx context.Context, g GroupCreate) (Group, error) {
	if g.Model == "" {
		g.Model = Model
	}
	return c.groupCall(ctx, http.MethodPost, groupsPath, http.StatusAccepted, map[string]any{groupKey: g})
}

// Group shows one group.
func (c *Client) Group(ctx context.Context, id string) (Group, error) {
	return c.groupCall(ctx, http.MethodGet, groupsPath+"/"+url.PathEscape(id), http.StatusOK, nil)
}

// Groups lists groups, newest first.
func (c *Client) Groups(ctx context.Context, f Filter) ([]Group, error) {
	return list(ctx, c, groupsPath, "replication_consistency_groups", f.query(), func(g Group) string { return g.ID })
}

// UpdateGroup changes texts or members; the group is updating until it settles.
func (c *Client) UpdateGroup(ctx context.Context, id string, u GroupUpdate) (Group, error) {
	return c.groupCall(ctx, http.MethodPut, groupsPath+"/"+url.PathEscape(id), http.StatusAccepted, map[string]any{groupKey: u})
}

// DeleteGroup asks for the end of a group without pairs; poll Group until IsNotFound.
func (c *Client) DeleteGroup(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, groupsPath+"/"+url.PathEscape(id), http.StatusAccepted, nil, nil)
}

const groupKey = "replication_consistency_group"

func (c *Client) groupCall(ctx context.Context, method, path string, want int, body any) (Group, error) {
	var out struct {
		Group Group `json:"replication_consistency_group"`
	}
	err := c.call(ctx, method, path, want, body, &out)
	return out.Group, err
}

// Action is a key of the group action call.
type Action string

// Group actions; each answers when the transition is recorded, not when it is done.
const (
	// ActionFailover makes the secondary AZ the primary because the primary AZ is lost.
	ActionFailover Action = "os-failover-replication-consistency-group"
	// ActionSync makes both sides identical and keeps them so.
	ActionSync Action = "os-sync-replication-consistency-group"
	// ActionReverse swaps the roles of a group that is active.
	ActionReverse Action = "os-reverse-replication-consistency-group"
	// ActionStop pauses replication; it is effective when the call returns.
	ActionStop Action = "os-stop-replication-consistency-group"
	// ActionReprotect replicates back to the AZ that was lost.
	ActionReprotect Action = "os-reprotect-replication-consistency-group"
	// ActionExtend grows both volumes of pairs; see ExtendPairs.
	ActionExtend Action = "os-extend-replication-volumes"
)

// Act runs an action that takes no argument.
func (c *Client) Act(ctx context.Context, group string, a Action) error {
	return c.act(ctx, group, map[string]any{string(a): nil})
}

// Growth names a pair and its new size.
type Growth struct {
	PairID     string `json:"id"`
	NewSizeGiB int64  `json:"new_size"`
}

// ExtendPairs grows both volumes of each named pair, all or none, and returns when done.
func (c *Client) ExtendPairs(ctx context.Context, group string, growths []Growth) error {
	return c.act(ctx, group, map[string]any{string(ActionExtend): map[string]any{"replications": growths}})
}

func (c *Client) act(ctx context.Context, group string, body map[string]any) error {
	return c.call(ctx, http.MethodPost, groupsPath+"/"+url.PathEscape(group)+"/action", http.StatusOK, body, nil)
}
