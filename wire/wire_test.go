package wire

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"testing"

	"github.com/lockstep-dr/lockstep"
)

func sample() Header {
	return Header{
		Kind: KindWrite, Flags: FlagFUA | FlagResync, Group: 1, Epoch: 2, Session: lockstep.Session{Start: 3, Conn: 4},
		Volume: 5, Seq: 6, Offset: 7, Length: 8, Status: StatusNoSpace, BodyLen: 9, BodyCRC: 10,
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	var p [HeaderSize]byte
	want := sample()
	want.Put(p[:])
	var got Header
	if err := got.Parse(p[:]); err != nil || got != want {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
}

// Every single-bit error in a header must be refused: a frame is never applied with a wrong field.
func TestHeaderBitFlips(t *testing.T) {
	var p [HeaderSize]byte
	h := sample()
	h.Put(p[:])
	for bit := range HeaderSize * 8 {
		q := p
		q[bit/8] ^= 1 << (bit % 8)
		var got Header
		if err := got.Parse(q[:]); !errors.Is(err, lockstep.ErrCorrupt) {
			t.Fatalf("bit %d flipped: %v", bit, err)
		}
	}
}

func TestBodyLimits(t *testing.T) {
	for kind, limit := range map[Kind]uint32{KindWrite: MaxBody, KindReadReply: MaxBody, KindAck: 4 << 10, KindHello: MaxControlBody} {
		var p [HeaderSize]byte
		h := Header{Kind: kind, BodyLen: limit}
		h.Put(p[:])
		if err := new(Header).Parse(p[:]); err != nil {
			t.Errorf("kind %d with %d bytes: %v", kind, limit, err)
		}
		h.BodyLen++
		h.Put(p[:])
		if err := new(Header).Parse(p[:]); !errors.Is(err, ErrFrame) {
			t.Errorf("kind %d with %d bytes: %v, want a refusal", kind, h.BodyLen, err)
		}
	}
}

func TestBodyChecksum(t *testing.T) {
	var b bytes.Buffer
	if err := WriteFrame(&b, Header{Kind: KindWrite}, []byte("data")); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()
	raw[len(raw)-1] ^= 1
	var scratch [HeaderSize]byte
	h, err := ReadHeader(&b, &scratch)
	if err != nil {
		t.Fatal(err)
	}
	if err := ReadBody(&b, &h, make([]byte, h.BodyLen)); !errors.Is(err, lockstep.ErrCorrupt) {
		t.Fatalf("a body with a wrong byte gave %v", err)
	}
}

func TestStatusRoundTrip(t *testing.T) {
	for _, s := range statuses {
		if got := StatusOf(fmt.Errorf("wrapped: %w", s.err)); got != s.status {
			t.Errorf("%v gives status %d, want %d", s.err, got, s.status)
		}
		if want := cmp.Or(s.peer, s.err); !errors.Is(s.status.Err(), want) {
			t.Errorf("status %d gives %v", s.status, s.status.Err())
		}
	}
	if StatusOf(errors.New("anything")) != StatusIO {
		t.Error("an unknown error must be StatusIO")
	}
	if !errors.Is(Status(99).Err(), ErrPeerIO) {
		t.Error("an unknown status must be a failure")
	}
	for s := range Status(100) {
		if err := s.Err(); errors.Is(err, lockstep.ErrVolumeFailed) || errors.Is(err, lockstep.ErrNoSpace) {
			t.Errorf("status %d of the other node passes for an error of the local disk: %v", s, err)
		}
	}
}

func TestExtents(t *testing.T) {
	want := []lockstep.Extent{{Off: 0, Len: 1}, {Off: 65536, Len: 131072}}
	got, err := ParseExtents(PutExtents(want))
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Fatalf("got %v, %v", got, err)
	}
	for _, bad := range [][]byte{make([]byte, 15), PutExtents([]lockstep.Extent{{Off: -1, Len: 5}}), PutExtents([]lockstep.Extent{{Off: 1, Len: 0}})} {
		if _, err := ParseExtents(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("%v accepted", bad)
		}
	}
}

func FuzzFrame(f *testing.F) {
	var b bytes.Buffer
	_ = WriteJSON(&b, Header{Kind: KindHello}, Hello{Cluster: "c"})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		r := bytes.NewReader(p)
		var scratch [HeaderSize]byte
		for {
			h, err := ReadHeader(r, &scratch)
			if err != nil {
				return
			}
			body, err := ReadSmallBody(r, &h)
			if err != nil {
				return
			}
			switch h.Kind {
			case KindHello:
				_ = DecodeJSON(body, new(Hello))
			case KindAnnounceReply:
				_ = DecodeJSON(body, new(AnnounceReply))
			case KindPreserve:
				_, _ = ParseExtents(body)
			default:
			}
		}
	})
}
