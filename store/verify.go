package store

import (
	"time"

	"github.com/lockstep-dr/lockstep"
)

// VerifyState is where a verification of a group stands.
type VerifyState string

// States of a verification. Only VerifyEqual is a proof.
const (
	VerifyRunning      VerifyState = "running"
	VerifyEqual        VerifyState = "equal"         // every byte was compared, and is equal by now
	VerifyNotCompleted VerifyState = "not-completed" // Reason says why; it says nothing about what was not compared
	VerifyCancelled    VerifyState = "cancelled"     // by a user
)

// Verification is one comparison of both sides of a group: asked for, under way or over. There is one
// for each group, the last one; primary nodes carry it out while it is running.
type Verification struct {
	ID        string           `json:"id"`
	Group     lockstep.GroupID `json:"group"`
	State     VerifyState      `json:"state"`
	RateMiB   int64            `json:"rate_mib,omitempty"` // of each primary node, MiB/s; 0: its own default
	Epoch     lockstep.Epoch   `json:"epoch"`              // of the record when it was asked for
	By        string           `json:"by"`
	RequestID string           `json:"request_id,omitempty"`
	StartedAt time.Time        `json:"started_at"`

	// What follows is set at its end.
	EndedAt     *time.Time        `json:"ended_at,omitempty"`
	Reason      string            `json:"reason,omitempty"` // of VerifyNotCompleted, VerifyCancelled
	Bytes       int64             `json:"bytes"`            // compared, holes included
	Differences VerifyDifferences `json:"differences"`

	// Noted is how many differences of each node are in the group's history.
	Noted map[lockstep.NodeID]int `json:"noted,omitempty"`
	// Suspicion is what an earlier verification found, until one completes that finds nothing.
	Suspicion string `json:"suspicion,omitempty"`
	// Proof is the last verification that ended equal, this one or an earlier one; nil: none.
	Proof *Proof `json:"proof,omitempty"`
}

// Proof says when both sides of a group were last known, by comparison, to be equal.
type Proof struct {
	ID        string         `json:"id"` // of the verification
	StartedAt time.Time      `json:"started_at"`
	At        time.Time      `json:"at"`
	Epoch     lockstep.Epoch `json:"epoch"`
	// Writes is, for each link "primary node>secondary node", the number of the last frame sent when
	// the comparison ended: start counter of the primary's directory, connection, sequence. It grows
	// while these nodes keep their roles, and both sides know it.
	Writes map[string]string `json:"writes"`
	Bytes  int64             `json:"bytes"`
	// Differences were found, and repaired, on the way.
	Differences int `json:"differences"`
}

// VerifyDifferences are ranges that were not equal.
type VerifyDifferences struct {
	Count int   `json:"count"` // ranges, in units of 512 bytes, adjacent ones of a chunk taken together
	Bytes int64 `json:"bytes"`
	// First lists the first MaxDifferences of them.
	First []Difference `json:"first,omitempty"`
}

// MaxVerifyRateMiB is the highest rate of a verification that may be asked for, MiB/s.
const MaxVerifyRateMiB = 100_000

// MaxDifferences bounds the differences that a node lists; it counts all.
const MaxDifferences = 64

// Difference is one range that was not equal.
type Difference struct {
	Volume   lockstep.VolumeID `json:"volume"` // of the primary
	Node     lockstep.NodeID   `json:"node"`   // that has it
	Off      int64             `json:"off"`
	Len      int64             `json:"len"`
	Repaired bool              `json:"repaired"`       // the secondary has the primary's bytes now, by a further comparison
	Kept     string            `json:"kept,omitempty"` // file in the primary's pool with what both sides had, without .primary and .secondary
	At       time.Time         `json:"at"`
}

// VerifyProgress is how far a verification is in one volume.
type VerifyProgress struct {
	Position int64 `json:"position"` // everything before it was compared
	Size     int64 `json:"size"`
}

// VerifyObserved is a primary node's part of a verification: its progress, from which it goes on after
// a restart of its process, and its result.
type VerifyObserved struct {
	ID       string          `json:"id"` // of the verification
	Node     lockstep.NodeID `json:"node"`
	BootID   lockstep.BootID `json:"boot_id"`
	Instance string          `json:"instance"` // of the pool directory
	// InSyncEpoch is the record's insync_epoch that the node has seen last: what was compared counts in
	// this time in sync only.
	InSyncEpoch lockstep.Epoch                       `json:"insync_epoch"`
	State       VerifyState                          `json:"state"`         // running, equal, not-completed
	Why         string                               `json:"why,omitempty"` // it is not completed, or waits
	Bytes       int64                                `json:"bytes"`         // compared, holes included
	Volumes     map[lockstep.VolumeID]VerifyProgress `json:"volumes"`
	Differences VerifyDifferences                    `json:"differences"`
	Writes      map[string]string                    `json:"writes,omitempty"` // as in Proof, when it ended
	At          time.Time                            `json:"at"`
}

// KeyVerify and KeyObservedVerify: see the table of keys.
func KeyVerify(g lockstep.GroupID) string { return PrefixVerify + string(g) }

// KeyObservedVerify is a primary node's part of a group's verification.
func KeyObservedVerify(g lockstep.GroupID, n lockstep.NodeID) string {
	return PrefixObservedVerify + string(g) + "/" + string(n)
}
