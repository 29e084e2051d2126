// Package lockstep is the vocabulary of the project: the identifiers, numbers and sentinel errors
// that every other package uses with one meaning. It imports nothing of the project.
package lockstep

import "fmt"

// Identifiers. All are opaque strings chosen when the thing is created and never reused.
type (
	// VolumeID names one virtual disk in one AZ; it is also its NBD export name.
	VolumeID string
	// PairID names a replication pair: a production volume and its DR volume.
	PairID string
	// GroupID names a consistency group.
	GroupID string
	// NodeID names a storage daemon; it is unique within a cluster.
	NodeID string
	// ProjectID names the tenant that owns volumes, pairs and groups.
	ProjectID string
	// AZ names an availability zone; a free string such as "az1" or "eu-west-0a".
	AZ string
	// BootID identifies the kernel boot of a host together with the mount of its pool. It is the
	// same after a process restart and new after whatever may have lost page cache.
	BootID string
)

// Epoch numbers a group's configurations. It only grows; zero means "none yet".
type Epoch uint64

// Session identifies one connection life between two nodes for one group. Later sessions of the
// same node compare greater: the start counter is persisted and grows at each process start.
type Session struct {
	Start uint64 `json:"start"` // start counter of the dialing node's directory
	Conn  uint64 `json:"conn"`  // connection number within that start
}

// Less reports whether s is older than t.
func (s Session) Less(t Session) bool {
	return s.Start < t.Start || s.Start == t.Start && s.Conn < t.Conn
}

func (s Session) String() string { return fmt.Sprintf("%d.%d", s.Start, s.Conn) }

// Extent is the half-open byte range [Off, Off+Len) of a volume.
type Extent struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// End is the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Overlaps reports whether the two ranges share a byte.
func (e Extent) Overlaps(f Extent) bool { return e.Off < f.End() && f.Off < e.End() }

const (
	// GiB is the unit of sizes at the API.
	GiB = int64(1) << 30
	// SectorBytes is the smallest unit of an NBD request.
	SectorBytes = 512
	// ChunkBytes is the granularity of the dirty map, of resync and of undo.
	ChunkBytes = int64(64) << 10
	// RegionBytes is the granularity of the write-intent log.
	RegionBytes = int64(4) << 20
	// MaxRequestBytes bounds one NBD request and one replication frame's data.
	MaxRequestBytes = 32 << 20
)
