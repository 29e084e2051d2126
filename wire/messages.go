package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/lockstep-dr/lockstep"
)

// Purpose says what a connection is for.
type Purpose string

// Purposes. Bulk data and heartbeats use separate connections, so that a full pipe is not silence.
const (
	PurposeGroup     Purpose = "group"
	PurposeHeartbeat Purpose = "heartbeat"
)

// Features this build speaks; a connection uses those both sides name.
var Features = []string{"crc32c", "compare-sha256", "preserve"}

// Hello opens a connection. The dialing node is always the primary of the group.
type Hello struct {
	Cluster  string           `json:"cluster"`
	From     lockstep.NodeID  `json:"from"`
	To       lockstep.NodeID  `json:"to"`
	Purpose  Purpose          `json:"purpose"`
	Group    lockstep.GroupID `json:"group,omitempty"`
	Session  lockstep.Session `json:"session"`
	Epoch    lockstep.Epoch   `json:"epoch"`
	BootID   lockstep.BootID  `json:"boot_id"`
	Instance string           `json:"instance"`
	Features []string         `json:"features"`
	Software string           `json:"software"`
}

// HelloReply answers it. A refusal has Error set and closes the connection.
type HelloReply struct {
	Error    string           `json:"error,omitempty"`
	Node     lockstep.NodeID  `json:"node"`
	BootID   lockstep.BootID  `json:"boot_id"`
	Instance string           `json:"instance"`
	Epoch    lockstep.Epoch   `json:"epoch"`            // the highest epoch persisted for the group
	Record   json.RawMessage  `json:"record,omitempty"` // of that epoch, if newer than the hello's
	Features []string         `json:"features"`
	Session  lockstep.Session `json:"session"`
}

// Announce tells a secondary an epoch with its record.
type Announce struct {
	Record json.RawMessage `json:"record"`
	// DirtyBytes is, at a copying epoch, what the primary knows to differ at that secondary node: the
	// room that a recovery point may need.
	DirtyBytes int64 `json:"dirty_bytes,omitempty"`
}

// AnnounceReply answers when the epoch is persisted for the whole group on that node.
type AnnounceReply struct {
	OK     bool            `json:"ok"`
	Error  string          `json:"error,omitempty"`
	BootID lockstep.BootID `json:"boot_id"`
	// Record: the newer record that the secondary knows, if that is why it refused.
	Record json.RawMessage `json:"record,omitempty"`
	// Differs lists, at a copying epoch, what the secondary knows to differ: its own marks.
	Differs map[lockstep.PairID][]lockstep.Extent `json:"differs,omitempty"`
	// Empty names pairs whose volume here is without one allocated byte: nothing to compare with.
	Empty []lockstep.PairID `json:"empty,omitempty"`
}

// GroupEpoch is one line of a heartbeat.
type GroupEpoch struct {
	Group lockstep.GroupID `json:"g"`
	Epoch lockstep.Epoch   `json:"e"`
}

// Heartbeat asks for the lease of the groups of which the sender is primary. Digest names the
// list; the list itself is sent when the secondary does not have it.
type Heartbeat struct {
	Digest uint64       `json:"d"`
	Groups []GroupEpoch `json:"g,omitempty"`
	Full   bool         `json:"f,omitempty"` // Groups is the list
}

// HeartbeatReply grants the lease for every group of the list but those in Uncovered.
type HeartbeatReply struct {
	NeedList  bool               `json:"n,omitempty"`
	TTLMs     int64              `json:"t,omitempty"` // how long the secondary will respect the leases, from when it granted them
	Uncovered []lockstep.GroupID `json:"u,omitempty"`
	// Newer holds the persisted record of groups that are uncovered because of a newer epoch; at most
	// MaxNewer of them in one answer.
	Newer []json.RawMessage `json:"r,omitempty"`
}

// MaxNewer keeps a heartbeat's answer far below what a frame may carry.
const MaxNewer = 16

// WriteJSON sends a control frame: h with v as its body, in one write.
func WriteJSON(w io.Writer, h Header, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame body: %w", err)
	}
	return WriteFrame(w, h, body)
}

// WriteFrame sends one frame in one write.
func WriteFrame(w io.Writer, h Header, body []byte) error {
	h.BodyLen, h.BodyCRC = uint32(len(body)), Checksum(body)
	buf := make([]byte, HeaderSize, HeaderSize+len(body))
	h.Put(buf)
	_, err := w.Write(append(buf, body...))
	return err
}

// ReadJSON reads the frame that must come next and is of the kind, and decodes its body into v.
func ReadJSON(r io.Reader, kind Kind, v any) (Header, error) {
	var scratch [HeaderSize]byte
	h, err := ReadHeader(r, &scratch)
	if err != nil {
		return h, err
	}
	if h.Kind != kind {
		return h, fmt.Errorf("%w: kind %d where %d was expected", ErrFrame, h.Kind, kind)
	}
	body, err := ReadSmallBody(r, &h)
	if err != nil {
		return h, err
	}
	return h, DecodeJSON(body, v)
}

// ReadSmallBody reads a control body, growing with what really arrives.
func ReadSmallBody(r io.Reader, h *Header) ([]byte, error) {
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(h.BodyLen)); err != nil {
		return nil, fmt.Errorf("%w: cut off in a body: %w", ErrFrame, err)
	}
	if Checksum(b.Bytes()) != h.BodyCRC {
		return nil, fmt.Errorf("%w: body checksum", ErrFrame)
	}
	return b.Bytes(), nil
}

// DecodeJSON decodes a control body.
func DecodeJSON(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}

// PutExtents encodes extents for KindPreserve: pairs of u64, big endian.
func PutExtents(exts []lockstep.Extent) []byte {
	p := make([]byte, 0, 16*len(exts))
	for _, e := range exts {
		p = binary.BigEndian.AppendUint64(p, uint64(e.Off))
		p = binary.BigEndian.AppendUint64(p, uint64(e.Len))
	}
	return p
}

// ParseExtents decodes them; ranges are checked by the caller against the volume.
func ParseExtents(p []byte) ([]lockstep.Extent, error) {
	if len(p)%16 != 0 {
		return nil, fmt.Errorf("%w: extents of %d bytes", ErrFrame, len(p))
	}
	exts := make([]lockstep.Extent, 0, len(p)/16)
	for ; len(p) > 0; p = p[16:] {
		e := lockstep.Extent{Off: int64(binary.BigEndian.Uint64(p)), Len: int64(binary.BigEndian.Uint64(p[8:]))}
		if e.Off < 0 || e.Len <= 0 || e.Off > 1<<60 || e.Len > 1<<60 {
			return nil, fmt.Errorf("%w: extent [%d,+%d)", ErrFrame, e.Off, e.Len)
		}
		exts = append(exts, e)
	}
	return exts, nil
}
