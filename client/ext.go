package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
)

// Calls that are Lockstep's own, beside the documented ones.

// ReleaseVolume serves a former DR volume again, as a plain disk.
func (c *Client) ReleaseVolume(ctx context.Context, id string) error {
	return c.volumeAction(ctx, id, http.StatusAccepted, map[string]any{"lockstep-release": nil}, nil)
}

// ConnectionURI tells where a volume can be opened, as an NBD URI.
func (c *Client) ConnectionURI(ctx context.Context, id string) (string, error) {
	var out struct {
		Info struct {
			Type string `json:"driver_volume_type"`
			Data struct {
				URI string `json:"uri"`
			} `json:"data"`
		} `json:"connection_info"`
	}
	body := map[string]any{"os-initialize_connection": map[string]any{"connector": map[string]any{}}}
	if err := c.volumeAction(ctx, id, http.StatusOK, body, &out); err != nil {
		return "", err
	}
	if out.Info.Data.URI == "" {
		return "", errors.New("the server gave no URI for the volume; its driver is " + out.Info.Type)
	}
	return out.Info.Data.URI, nil
}

// SetOneSided chooses how a primary serves without its secondary: "available" or "strict".
func (c *Client) SetOneSided(ctx context.Context, group, policy string) error {
	return c.act(ctx, group, map[string]any{"lockstep-one-sided": map[string]any{"policy": policy}})
}

// LimitResync bounds what synchronizations of a group read and send at each of its primary nodes, MiB/s; 0: no limit.
// It holds at once, for one that runs, too.
func (c *Client) LimitResync(ctx context.Context, group string, mib int64) error {
	return c.act(ctx, group, map[string]any{"lockstep-resync-limit": map[string]any{"mib": numberOrNull(mib)}})
}

// LimitNodeResync bounds all synchronizations together of which a node is the primary, MiB/s; 0: what the node's
// configuration says. For operators.
func (c *Client) LimitNodeResync(ctx context.Context, node string, mib int64) error {
	body := map[string]any{"node": map[string]any{"resync_limit_mib": numberOrNull(mib)}}
	return c.call(ctx, http.MethodPut, "os-lockstep-nodes/"+url.PathEscape(node), http.StatusOK, body, nil)
}

func numberOrNull(n int64) any {
	if n == 0 {
		return nil
	}
	return n
}

// Continue states that a trip may end although a primary node does not confirm; for operators.
func (c *Client) Continue(ctx context.Context, group, reason string) error {
	return c.act(ctx, group, map[string]any{"lockstep-continue": map[string]any{"reason": reason}})
}

// ConfirmNodeOff states that a primary node is powered off, for a stop or a failover that waits for
// it; for operators.
func (c *Client) ConfirmNodeOff(ctx context.Context, group, node, reason string) error {
	return c.act(ctx, group, map[string]any{"lockstep-confirm-node-off": map[string]any{"node": node, "reason": reason}})
}

// AcceptDirectory states that the present directory of a primary node counts as the group's image;
// for operators.
func (c *Client) AcceptDirectory(ctx context.Context, group, node, reason string) error {
	return c.act(ctx, group, map[string]any{"lockstep-accept-directory": map[string]any{"node": node, "reason": reason}})
}

// BackOut takes a failover back that does not end; for operators.
func (c *Client) BackOut(ctx context.Context, group, reason string) error {
	return c.act(ctx, group, map[string]any{"lockstep-back-out": map[string]any{"reason": reason}})
}

// AcceptLostSecondary states that a secondary node is gone for good; for operators.
func (c *Client) AcceptLostSecondary(ctx context.Context, group, node, reason string) error {
	return c.act(ctx, group, map[string]any{"lockstep-accept-lost-secondary": map[string]any{"node": node, "reason": reason}})
}

// HistoryEntry is one thing that happened to a group.
type HistoryEntry struct {
	At        Time   `json:"at"`
	Epoch     uint64 `json:"epoch"`
	What      string `json:"what"`
	By        string `json:"by"`
	RequestID string `json:"request_id,omitempty"`
	// Receipt is what a forced failover was told to lose, or lost.
	Receipt *ForcedReceipt `json:"receipt,omitempty"`
}

// History lists what happened to a group, the oldest first.
func (c *Client) History(ctx context.Context, group string) ([]HistoryEntry, error) {
	var out struct {
		History []HistoryEntry `json:"history"`
	}
	err := c.call(ctx, http.MethodGet, groupsPath+"/"+url.PathEscape(group)+"/history", http.StatusOK, nil, &out)
	return out.History, err
}

// Explanation says what a group does, since when and why, and what every action would do now.
type Explanation struct {
	ID                string   `json:"id"`
	Name              *string  `json:"name"`
	Status            string   `json:"status"`
	ReplicationStatus string   `json:"replication_status"`
	FaultLevel        string   `json:"fault_level"`
	PriorityStation   string   `json:"priority_station"`
	Secondary         string   `json:"secondary"`
	Epoch             uint64   `json:"epoch"`
	Condition         string   `json:"condition"`
	Since             Time     `json:"since"`
	Reason            *string  `json:"reason"`
	BehindBytes       int64    `json:"behind_bytes"`
	Held              []string `json:"held"`
	Waiting           []string `json:"waiting_for"`
	Warnings          []string `json:"warnings"`
	Actions           []Option `json:"actions"`
}

// Option is an action or an operator's statement, and what it would do now.
type Option struct {
	Action  string  `json:"action"`
	Node    string  `json:"node,omitempty"`
	Allowed bool    `json:"allowed"`
	Effect  *string `json:"effect"`
	Refusal *string `json:"refusal"`
}

// Explain answers for one group; operators' statements are among the actions for the role admin.
func (c *Client) Explain(ctx context.Context, group string) (Explanation, error) {
	var out struct {
		Explanation Explanation `json:"explanation"`
	}
	err := c.call(ctx, http.MethodGet, groupsPath+"/"+url.PathEscape(group)+"/explain", http.StatusOK, nil, &out)
	return out.Explanation, err
}

// Node is a storage daemon.
type Node struct {
	ID         string `json:"id"`
	AZ         string `json:"availability_zone"`
	Alive      bool   `json:"alive"`
	Since      Time   `json:"since"`
	TotalBytes int64  `json:"total_bytes"`
	FreeBytes  int64  `json:"free_bytes"`
	Version    string `json:"version"`
	// ResyncLimitMiB is what its synchronizations may read and send in a second; nil: as its configuration says.
	ResyncLimitMiB *int64 `json:"resync_limit_mib"`
}

// Recovered is what a recovery of the store made of one group.
type Recovered struct {
	ID              string   `json:"id"`
	EpochBefore     uint64   `json:"epoch_before"`
	Epoch           uint64   `json:"epoch"`
	PriorityStation string   `json:"priority_station"`
	InSync          bool     `json:"in_sync"`
	Unconfirmed     []string `json:"unconfirmed"`
}

// RecoverStore lifts every group above what its nodes report, after the store was restored from an
// older copy. Zones in off are stated to be powered off. unknown are groups that only nodes know.
func (c *Client) RecoverStore(ctx context.Context, off []string, reason string) (groups []Recovered, unknown []string, err error) {
	var out struct {
		Groups  []Recovered `json:"groups"`
		Unknown []string    `json:"unknown_groups"`
	}
	body := map[string]any{"recovery": map[string]any{"reason": reason, "off": append([]string{}, off...)}}
	err = c.call(ctx, http.MethodPost, "os-lockstep-store-recovery", http.StatusOK, body, &out)
	return out.Groups, out.Unknown, err
}

// Nodes lists the storage daemons.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var out struct {
		Nodes []Node `json:"nodes"`
	}
	err := c.call(ctx, http.MethodGet, "os-lockstep-nodes", http.StatusOK, nil, &out)
	return out.Nodes, err
}
