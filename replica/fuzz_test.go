package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/disk/vfs"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// fuzzOp is one frame of a fuzzed stream, 12 bytes of input: what a mutator changes are kinds,
// lengths and places, while the checksums are right, so that the frame reaches what it is meant for.
type fuzzOp struct {
	kind, flags, epoch, place uint8
	offset, length            uint32
}

// opBytes is the input that makes one frame.
func opBytes(kind wire.Kind, epoch, place uint8, offset, length uint32, body []byte) []byte {
	b := []byte{byte(kind), 0, epoch, place}
	b = binary.BigEndian.AppendUint32(b, offset)
	return append(binary.BigEndian.AppendUint32(b, length), body...)
}

// frames makes a stream of frames out of input: an op, then its body, which is cut from the input.
func frames(input []byte, s lockstep.Session, at lockstep.Epoch) []byte {
	var out bytes.Buffer
	for seq := uint64(1); len(input) >= 12; seq++ {
		in := fuzzOp{input[0], input[1], input[2], input[3], binary.BigEndian.Uint32(input[4:]), binary.BigEndian.Uint32(input[8:])}
		input = input[12:]
		h := wire.Header{
			Kind: wire.Kind(in.kind % 18), Flags: uint16(in.flags), Group: wire.Key("g"), Session: s, Volume: wire.Key("pair"), Seq: seq,
			Epoch: at + lockstep.Epoch(in.epoch%4) - 1, Offset: uint64(in.offset) << (in.place & 31), Length: uint64(in.length),
		}
		if in.place&32 != 0 {
			h.Volume++
		}
		n := min(len(input), int(in.length%(1<<17)))
		body := input[:n]
		input = input[n:]
		switch {
		case in.place&64 != 0: // a body as long as the header says, for writes
			h.Length = uint64(n)
		case in.place&128 != 0: // a header that promises more than comes
			h.BodyLen, h.BodyCRC = in.length, wire.Checksum(body)
			raw := make([]byte, wire.HeaderSize)
			h.Put(raw)
			out.Write(raw)
			out.Write(body)
			return out.Bytes()
		}
		_ = wire.WriteFrame(&out, h, body)
	}
	return out.Bytes()
}

// FuzzInbox plays a primary that says anything: the secondary neither panics nor waits for ever, what
// it allocates has a bound, and nothing is applied on a connection on which no epoch was announced.
func FuzzInbox(f *testing.F) {
	p, session, r := alone(f)
	raw, err := json.Marshal(r)
	if err != nil {
		f.Fatal(err)
	}
	announce, err := json.Marshal(wire.Announce{Record: raw})
	if err != nil {
		f.Fatal(err)
	}
	for _, announced := range []byte{0, 1} {
		for _, ops := range [][][]byte{
			{opBytes(wire.KindWrite, 1, 64, 0, 512, make([]byte, 512)), opBytes(wire.KindFlush, 1, 0, 0, 0, nil)},
			{opBytes(wire.KindZero, 1, 0, 4096, 1<<20, nil), opBytes(wire.KindZero, 1, 31, 1<<31, 1<<31, nil)},
			{opBytes(wire.KindCompare, 1, 0, 0, 65536, make([]byte, 32)), opBytes(wire.KindCompare, 1, 0, 0, 1<<16+64, make([]byte, 64))},
			{opBytes(wire.KindRead, 1, 0, 0, 4096, nil), opBytes(wire.KindRead, 1, 12, 1<<20, 0xffffffff, nil)},
			{opBytes(wire.KindPreserve, 1, 0, 0, 16, wire.PutExtents([]lockstep.Extent{{Off: 0, Len: 65536}})), opBytes(wire.KindPreserve, 1, 0, 0, 16, bytes.Repeat([]byte{0x0f}, 16))},
			{opBytes(wire.KindAnnounce, 2, 0, 0, uint32(len(announce)), announce), opBytes(wire.KindAnnounce, 1, 0, 0, 2, []byte("{}"))},
			{opBytes(wire.KindWrite, 0, 64, 0, 8, []byte("12345678")), opBytes(wire.KindWrite, 2, 96, 0, 8, []byte("12345678"))},
			{opBytes(wire.KindWrite, 1, 128, 0, 0xfffffff0, []byte("cut off"))},
			{opBytes(wire.KindAnnounce, 1, 128, 0, 8<<20, []byte("cut off"))},
		} {
			f.Add(append([]byte{announced}, bytes.Join(ops, nil)...))
		}
	}
	var applied atomic.Int64
	p.fs[1].OnOp(func(op vfs.Op) error {
		if op == "raw:write" || op == "raw:punch" || op == "raw:truncate" {
			applied.Add(1)
		}
		return nil
	})
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) == 0 {
			return
		}
		session.Conn++
		applied.Store(0)
		var mem, after runtime.MemStats
		runtime.ReadMemStats(&mem)
		answered := talk(t, p.b, r, session, input[0]&1 != 0, announce, frames(input[1:], session, r.Epoch))
		runtime.ReadMemStats(&after)
		if limit := uint64(4*wire.MaxBody + 64*len(input) + 8*answered); after.TotalAlloc-mem.TotalAlloc > limit {
			t.Errorf("%d bytes of input made the node allocate %d bytes", len(input), after.TotalAlloc-mem.TotalAlloc)
		}
		if n := applied.Load(); n > 0 && input[0]&1 == 0 && !bytes.Contains(input, []byte(`"record"`)) {
			t.Errorf("%d times something was applied, and no epoch was announced", n)
		}
		if got := p.st.get(); got.Epoch != r.Epoch {
			t.Errorf("the record is at epoch %d, and was at %d", got.Epoch, r.Epoch)
		}
	})
}

// talk serves one connection of the primary, which says stream and leaves; it gives how many bytes
// were answered.
func talk(t *testing.T, h *Host, r protocol.Record, s lockstep.Session, announced bool, announce, stream []byte) int {
	mine, its := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = h.serveConn(context.Background(), its)
		_ = its.Close()
	}()
	hello := wire.Hello{Cluster: "c", From: "a", To: "b", Purpose: wire.PurposeGroup, Group: "g", Session: s, Epoch: r.Epoch, BootID: "boot-a", Features: wire.Features}
	if err := wire.WriteJSON(mine, wire.Header{Kind: wire.KindHello}, hello); err != nil {
		t.Fatal(err)
	}
	var answer wire.HelloReply
	if _, err := wire.ReadJSON(mine, wire.KindHelloReply, &answer); err != nil || answer.Error != "" {
		t.Fatal(err, answer.Error)
	}
	answered := make(chan int, 1)
	go func() {
		n, _ := io.Copy(io.Discard, mine)
		answered <- int(n)
	}()
	if announced {
		if err := wire.WriteFrame(mine, wire.Header{Kind: wire.KindAnnounce, Group: wire.Key("g"), Session: s, Seq: 1 << 40, Epoch: r.Epoch}, announce); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = mine.Write(stream) // it may be closed in the middle
	_ = mine.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the connection did not end")
	}
	return <-answered
}

// FuzzAnswers plays a secondary that answers anything: the primary neither panics nor acknowledges a
// write of which the stream holds no answer of that session, epoch, volume and sequence.
func FuzzAnswers(f *testing.F) {
	s := lockstep.Session{Start: 1, Conn: 1}
	f.Add(opBytes(wire.KindAck, 1, 0, 0, 0, nil))
	f.Add(opBytes(wire.KindAck, 0, 0, 0, 0, nil))
	f.Add(opBytes(wire.KindAck, 1, 32, 0, 0, nil))
	f.Add(opBytes(wire.KindWrite, 1, 64, 0, 5, []byte("12345")))
	f.Add(bytes.Join([][]byte{opBytes(wire.KindReadReply, 1, 0, 0, 5, []byte("12345")), opBytes(wire.KindAck, 2, 0, 0, 0, nil)}, nil))
	f.Add(opBytes(wire.KindAck, 1, 128, 0, 0xfffffff0, []byte("cut off")))
	f.Fuzz(func(t *testing.T, input []byte) {
		b := newBed(t)
		far := b.link(s.Conn)
		b.g.key, b.g.log = wire.Key("g"), discard()
		b.v.key = wire.Key("pair")
		b.g.vols = map[uint64]*Volume{b.v.key: b.v}
		b.twoSided(far, 1)
		done := b.write(0, 1)
		sent := far.next()
		stream := frames(input, s, 1)
		acked, r := false, bytes.NewReader(stream)
		var scratch [wire.HeaderSize]byte
		for { // what an honest reader would take for the answer
			h, err := wire.ReadHeader(r, &scratch)
			if err != nil {
				break
			}
			if _, err := wire.ReadSmallBody(r, &h); err != nil {
				break
			}
			acked = acked || h.Kind == wire.KindAck && h.Seq == sent.Seq && h.Epoch == sent.Epoch && h.Volume == sent.Volume && h.Session == s && h.Status == wire.StatusOK
		}
		mine, its := net.Pipe()
		far.l.conn = its
		go func() {
			_, _ = mine.Write(stream)
			_ = mine.Close()
		}()
		_ = far.l.read()
		b.v.mu.Lock()
		o := b.v.bySeq[sent.Seq]
		got := o == nil || o.acked
		b.v.mu.Unlock()
		if got && !acked {
			t.Error("the write counts as acknowledged, and no answer said so")
		}
		b.v.release()
		<-done
	})
}
