package client

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// timeLayout is how the API writes times: UTC, no zone.
const timeLayout = "2006-01-02T15:04:05.999999"

// Time is an API time; it reads the zone-less form and, from other servers, RFC 3339.
type Time struct{ time.Time }

// UnmarshalJSON takes null as the zero time.
func (t *Time) UnmarshalJSON(b []byte) error {
	var s *string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("read a time: %w", err)
	}
	if s == nil || *s == "" {
		t.Time = time.Time{}
		return nil
	}
	layout := timeLayout
	if strings.HasSuffix(*s, "Z") || strings.Contains(*s, "+") {
		layout = time.RFC3339Nano
	}
	parsed, err := time.Parse(layout, *s)
	if err != nil {
		return fmt.Errorf("read a time: %w", err)
	}
	t.Time = parsed
	return nil
}

// MarshalJSON writes the API's form, or null for the zero time.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return json.Marshal(t.UTC().Format(timeLayout))
}

// IDList is the comma-joined string that the API calls volume_ids. A real list is read, too.
type IDList []string

// UnmarshalJSON takes both forms.
func (l *IDList) UnmarshalJSON(b []byte) error {
	var list []string
	if json.Unmarshal(b, &list) == nil {
		*l = list
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("read volume_ids: %w", err)
	}
	*l = nil
	for id := range strings.SplitSeq(s, ",") {
		if id = strings.TrimSpace(id); id != "" {
			*l = append(*l, id)
		}
	}
	return nil
}

// Pair is a replication pair as shown.
type Pair struct {
	ID                string  `json:"id"`
	Name              *string `json:"name"`
	Description       *string `json:"description"`
	Status            string  `json:"status"`
	ReplicationStatus string  `json:"replication_status"`
	Progress          *string `json:"progress"`
	VolumeIDs         IDList  `json:"volume_ids"` // in creation order, for ever
	PriorityStation   string  `json:"priority_station"`
	Model             string  `json:"replication_model"`
	GroupID           *string `json:"replication_consistency_group_id"`
	FailureDetail     *string `json:"failure_detail"`
	FaultLevel        *string `json:"fault_level"` // "0", "2" or "5"
	RecordMetadata    string  `json:"record_metadata"`
	CreatedAt         Time    `json:"created_at"`
	UpdatedAt         Time    `json:"updated_at"`
}

// Group is a consistency group as shown.
type Group struct {
	ID                string   `json:"id"`
	Name              *string  `json:"name"`
	Description       *string  `json:"description"`
	Status            string   `json:"status"`
	ReplicationStatus string   `json:"replication_status"`
	PriorityStation   string   `json:"priority_station"`
	Model             string   `json:"replication_model"`
	PairIDs           []string `json:"replication_ids"`
	FailureDetail     *string  `json:"failure_detail"`
	FaultLevel        *string  `json:"fault_level"`
	OneSided          string   `json:"lockstep_one_sided"` // available or strict
	Reason            *string  `json:"lockstep_reason"`    // why the group is as it is, for people
	Warnings          []string `json:"lockstep_warnings"`  // what threatens it
	// Resync is the synchronization that runs, nil if none does; ResyncLimitMiB what it may read and send in a second
	// at each primary node, nil if the group has no limit.
	Resync         *Resync `json:"lockstep_resync"`
	ResyncLimitMiB *int64  `json:"lockstep_resync_limit_mib"`
	// Verified is the last proof that both sides are equal, Verification the one that runs, or ran last.
	Verified     *Proof        `json:"lockstep_verified"`
	Verification *Verification `json:"lockstep_verification"`
	CreatedAt    Time          `json:"created_at"`
	UpdatedAt    Time          `json:"updated_at"`
}

// Resync is how a synchronization gets on.
type Resync struct {
	ToSendBytes    int64  `json:"to_send_bytes"`
	TotalBytes     int64  `json:"total_bytes"`      // that there were to send at its beginning
	BytesPerSecond int64  `json:"bytes_per_second"` // of the last ten seconds; 0: not known yet
	SecondsLeft    *int64 `json:"seconds_left"`     // at this rate; nil: not known
}

// Volume is a disk as shown.
type Volume struct {
	ID                string            `json:"id"`
	Name              *string           `json:"name"`
	Description       *string           `json:"description"`
	Status            string            `json:"status"`
	SizeGiB           int64             `json:"size"`
	Type              string            `json:"volume_type"`
	AvailabilityZone  string            `json:"availability_zone"`
	ReplicationStatus string            `json:"replication_status"`
	Multiattach       bool              `json:"multiattach"`
	Metadata          map[string]string `json:"metadata"`
	CreatedAt         Time              `json:"created_at"`
	UpdatedAt         Time              `json:"updated_at"`
}

// PairCreate asks for a pair.
type PairCreate struct {
	Name            *string  `json:"name,omitempty"`
	Description     *string  `json:"description,omitempty"`
	VolumeIDs       []string `json:"volume_ids"`
	PriorityStation string   `json:"priority_station"`
	Model           string   `json:"replication_model"`
}

// GroupCreate asks for a group.
type GroupCreate struct {
	Name            *string  `json:"name,omitempty"`
	Description     *string  `json:"description,omitempty"`
	PairIDs         []string `json:"replication_ids"`
	PriorityStation string   `json:"priority_station"`
	Model           string   `json:"replication_model"`
}

// GroupUpdate changes a group; nil fields stay as they are.
type GroupUpdate struct {
	Name        *string  `json:"name,omitempty"`
	Description *string  `json:"description,omitempty"`
	Add         []string `json:"add_replication_ids,omitempty"`
	Remove      []string `json:"remove_replication_ids,omitempty"`
}

// VolumeCreate asks for a disk.
type VolumeCreate struct {
	Name             *string           `json:"name,omitempty"`
	Description      *string           `json:"description,omitempty"`
	SizeGiB          int64             `json:"size"`
	Type             string            `json:"volume_type,omitempty"`
	AvailabilityZone string            `json:"availability_zone,omitempty"`
	Metadata         map[string]string `json:"metadata,omitempty"`
	Multiattach      bool              `json:"multiattach,omitempty"`
}

// VolumeUpdate changes a disk's texts; nil fields stay as they are.
type VolumeUpdate struct {
	Name        *string           `json:"name,omitempty"`
	Description *string           `json:"description,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// Model is the only replication model there is: synchronous.
const Model = "hypermetro"
