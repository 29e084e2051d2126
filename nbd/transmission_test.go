package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
)

const testSize = 64 << 20

// inBothModes runs a test with simple and with structured replies.
func inBothModes(t *testing.T, test func(t *testing.T, c *client, dev *block.Fault)) {
	for _, name := range []string{"simple", "structured", "simple batched", "structured batched"} {
		t.Run(name, func(t *testing.T) {
			dev := block.NewFault(block.NewMemory(testSize))
			export := Export{Device: dev}
			if strings.HasSuffix(name, "batched") {
				export.Device = batched{dev}
			}
			s := newTestServer(t, &Server{Exports: testExports{"v": export}}, "unix")
			c := s.connect(t)
			if strings.HasPrefix(name, "structured") {
				c.optStructured()
				c.setMeta("v", ContextBaseAllocation)
			}
			c.optGo("v")
			test(t, c, dev)
		})
	}
}

func TestCommands(t *testing.T) {
	inBothModes(t, func(_ *testing.T, c *client, dev *block.Fault) {
		data := bytes.Repeat([]byte("0123456789abcde"), 1000)
		c.expect(0, CmdWrite, 0, 4095, uint32(len(data)), data)
		c.expectData(4095, data)
		c.expectData(4094, append([]byte{0}, data[:1]...))
		c.expect(0, CmdWrite, CmdFlagFUA, 0, 1, []byte{9})
		c.expectData(0, []byte{9})
		c.expect(0, CmdRead, CmdFlagFUA, 0, 1, nil) // allowed on every command
		c.expect(0, CmdFlush, 0, 0, 0, nil)
		c.expect(0, CmdTrim, CmdFlagFUA, 5000, 100, nil)
		clear(data[5000-4095 : 5100-4095])
		c.expectData(4095, data)
		c.expect(0, CmdWriteZeroes, CmdFlagNoHole|CmdFlagFUA, 6000, 7, nil)
		clear(data[6000-4095 : 6007-4095])
		c.expectData(4095, data)
		c.expect(0, CmdWriteZeroes, 0, 0, testSize, nil)
		c.expectData(4095, make([]byte, len(data)))
		reads := dev.Calls(block.OpRead)
		c.expect(0, CmdCache, 0, 10, 1<<20, nil)
		if n := dev.Calls(block.OpRead) - reads; n != 0 {
			c.Fatalf("caching a hole took %d reads", n)
		}
		// The largest request, and one that touches the last byte.
		big := bytes.Repeat([]byte{0xAB}, lockstep.MaxRequestBytes)
		c.expect(0, CmdWrite, 0, testSize-uint64(len(big)), uint32(len(big)), big)
		c.expectData(testSize-uint64(len(big)), big)
		c.expectData(testSize-1, []byte{0xAB})
	})
}

func TestZeroLength(t *testing.T) {
	inBothModes(t, func(_ *testing.T, c *client, _ *block.Fault) {
		for _, off := range []uint64{0, 77, testSize} {
			r := c.expect(0, CmdRead, 0, off, 0, nil)
			if c.structured && (r.typ != ReplyTypeNone || len(r.data) != 0) {
				c.Fatalf("empty read answered by a chunk of type %d", r.typ)
			}
			c.expect(0, CmdWrite, 0, off, 0, nil)
			c.expect(0, CmdTrim, 0, off, 0, nil)
			c.expect(0, CmdWriteZeroes, CmdFlagFUA, off, 0, nil)
			c.expect(0, CmdCache, 0, off, 0, nil)
			c.expect(EINVAL, CmdBlockStatus, 0, off, 0, nil)
		}
	})
}

func TestRefusedRequests(t *testing.T) {
	inBothModes(t, func(t *testing.T, c *client, dev *block.Fault) {
		data := []byte{1, 2, 3, 4}
		for _, r := range []struct {
			what        string
			want        Errno
			cmd, flags  uint16
			off, length uint64
		}{
			{"read at the end", EINVAL, CmdRead, 0, testSize, 1},
			{"read over the end", EINVAL, CmdRead, 0, testSize - 1, 2},
			{"read that overflows", EINVAL, CmdRead, 0, math.MaxUint64, 4},
			{"read at 2^63", EINVAL, CmdRead, 0, 1 << 63, 4},
			{"read below 2^63", EINVAL, CmdRead, 0, 1<<63 - 1, 4},
			{"read too large", EINVAL, CmdRead, 0, 0, lockstep.MaxRequestBytes + 1},
			{"read of 4 GiB", EINVAL, CmdRead, 0, 0, math.MaxUint32},
			{"write over the end", ENOSPC, CmdWrite, 0, testSize - 3, 4},
			{"write that overflows", ENOSPC, CmdWrite, 0, math.MaxUint64 - 3, 4},
			{"zero over the end", ENOSPC, CmdWriteZeroes, 0, 1, testSize},
			{"zero of 4 GiB", ENOSPC, CmdWriteZeroes, 0, 0, math.MaxUint32},
			{"trim over the end", EINVAL, CmdTrim, 0, testSize - 3, 4},
			{"cache over the end", EINVAL, CmdCache, 0, testSize - 3, 4},
			{"flush with a range", EINVAL, CmdFlush, 0, 0, 4},
			{"flush with an offset", EINVAL, CmdFlush, 0, 4, 0},
			{"write with an unknown flag", EINVAL, CmdWrite, 1 << 9, 0, 4},
			{"write with DF", EINVAL, CmdWrite, CmdFlagDF, 0, 4},
			{"write with PAYLOAD_LEN", EINVAL, CmdWrite, 1 << 5, 0, 4},
			{"read with NO_HOLE", EINVAL, CmdRead, CmdFlagNoHole, 0, 4},
			{"zero with FAST_ZERO", EINVAL, CmdWriteZeroes, CmdFlagFastZero, 0, 4},
			{"trim with REQ_ONE", EINVAL, CmdTrim, CmdFlagReqOne, 0, 4},
			{"command 8", EINVAL, 8, 0, 0, 4},
			{"command 65535", EINVAL, math.MaxUint16, math.MaxUint16, math.MaxUint64, math.MaxUint32},
		} {
			var payload []byte
			if r.cmd == CmdWrite {
				payload = data
			}
			if got := c.do(r.cmd, r.flags, r.off, uint32(r.length), payload); got.errno != r.want {
				t.Errorf("%s: %v, want %v", r.what, got.errno, r.want)
			}
		}
		if n := dev.Calls(block.OpAll); n != 0 {
			t.Fatalf("%d refused requests reached the device", n)
		}
		// A write that is too large is skipped as long as that is bearable.
		c.expect(EINVAL, CmdWrite, 0, 0, lockstep.MaxRequestBytes+4096, make([]byte, lockstep.MaxRequestBytes+4096))
		c.expect(0, CmdWrite, 0, 0, 4, data)
		c.expectData(0, data)
	})
}

func TestReadOnlyExport(t *testing.T) {
	dev := block.NewFault(newVolume())
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: dev, ReadOnly: true}}}, "unix")
	c := s.connect(t)
	c.optGo("v")
	c.expect(EPERM, CmdWrite, 0, 0, 3, []byte("abc"))
	c.expect(EPERM, CmdTrim, 0, 0, 3, nil)
	c.expect(EPERM, CmdWriteZeroes, 0, 0, 3, nil)
	if n := dev.Calls(block.OpAll); n != 0 {
		t.Fatalf("%d requests reached the device", n)
	}
	c.expectData(0, []byte{0, 0, 0})
	c.expect(0, CmdFlush, 0, 0, 0, nil)
}

func TestDeviceErrors(t *testing.T) {
	inBothModes(t, func(t *testing.T, c *client, dev *block.Fault) {
		for err, want := range map[error]Errno{
			lockstep.ErrDemoted: ESHUTDOWN, lockstep.ErrNoSpace: ENOSPC, errors.New("bad sector"): EIO, lockstep.ErrReadOnly: EPERM,
		} {
			remove := dev.Inject(block.FaultRule{Err: fmt.Errorf("volume v: %w", err)})
			for cmd := range uint16(CmdUnknown) {
				if cmd == CmdDisc || cmd == CmdBlockStatus && !c.structured {
					continue
				}
				var payload []byte
				length := uint32(4096)
				switch cmd {
				case CmdWrite:
					payload = make([]byte, length)
				case CmdFlush:
					length = 0
				}
				r := c.expect(want, cmd, 0, 0, length, payload)
				if c.structured && string(r.data) != "volume v: "+err.Error() {
					t.Errorf("text %q for %v", r.data, err)
				}
			}
			remove()
			c.expect(0, CmdFlush, 0, 0, 0, nil)
		}
	})
}

func TestBlockStatus(t *testing.T) {
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: block.NewMemory(8 << 30)}}}, "unix")
	c := s.connect(t)
	c.optStructured()
	if list := c.setMeta("v", ContextBaseAllocation); binary.BigEndian.Uint32(list[0].data) != allocationContextID {
		t.Fatalf("context %v", list)
	}
	c.optGo("v")
	const k = 64 << 10
	c.expect(0, CmdWrite, 0, k+1, 1, []byte{1})
	status := func(flags uint16, off uint64, length uint32, want ...uint32) {
		t.Helper()
		r := c.expect(0, CmdBlockStatus, flags, off, length, nil)
		if r.typ != ReplyTypeBlockStatus || binary.BigEndian.Uint32(r.data) != allocationContextID {
			t.Fatalf("chunk type %d, context %x", r.typ, r.data[:4])
		}
		var got []uint32
		for d := r.data[4:]; len(d) > 0; d = d[4:] {
			got = append(got, binary.BigEndian.Uint32(d))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("status of [%d,+%d): %v, want %v", off, length, got, want)
		}
	}
	const hole = StateHole | StateZero
	status(0, 0, 4*k, k, hole, k, 0, 2*k, hole)
	status(0, 1, 2*k, k-1, hole, k, 0, 1, hole)
	status(CmdFlagReqOne, 0, 4*k, k, hole)
	status(CmdFlagReqOne, 0, 100, 100, hole)
	status(0, 4<<30, math.MaxUint32, statusRangeBytes, hole) // less than asked for, never more
	status(0, 8<<30-1, 1, 1, hole)
	c.expect(EINVAL, CmdBlockStatus, 0, 8<<30-1, 2, nil)
	// A range in more pieces than one reply may have.
	for i := range statusMaxExtents {
		c.send(CmdWrite, 0, uint64(2*i)*k, 1, []byte{1})
		c.recv(0)
	}
	r := c.expect(0, CmdBlockStatus, 0, 0, 2*statusMaxExtents*k, nil)
	if n := (len(r.data) - 4) / 8; n != statusMaxExtents {
		t.Fatalf("%d extents", n)
	}
}

func TestDF(t *testing.T) {
	inBothModes(t, func(t *testing.T, c *client, _ *block.Fault) {
		if !c.structured {
			c.expect(EINVAL, CmdRead, CmdFlagDF, 0, 4096, nil)
			return
		}
		if r := c.expect(0, CmdRead, CmdFlagDF, 100, 4<<20, nil); len(r.data) != 8+4<<20 {
			t.Fatalf("chunk of %d bytes", len(r.data))
		}
	})
}

// Hundreds of overlapping requests in flight: each is answered once, and the data is whole.
func TestPipelining(t *testing.T) {
	inBothModes(t, func(t *testing.T, c *client, _ *block.Fault) {
		const count, size = 1000, 8192
		go func() {
			for i := range count {
				fill := bytes.Repeat([]byte{byte(1 + i%250)}, size)
				off, cmd := uint64(i%4)*4096, uint16(CmdWrite)
				if i%3 == 0 {
					fill, cmd = nil, CmdRead
				}
				frame := binary.BigEndian.AppendUint32(nil, MagicRequest)
				frame = binary.BigEndian.AppendUint16(frame, 0)
				frame = binary.BigEndian.AppendUint16(frame, cmd)
				frame = binary.BigEndian.AppendUint64(frame, uint64(i))
				frame = binary.BigEndian.AppendUint64(frame, off)
				frame = binary.BigEndian.AppendUint32(frame, size)
				if _, err := c.nc.Write(append(frame, fill...)); err != nil {
					t.Errorf("write: %v", err)
					return
				}
			}
		}()
		seen := make([]bool, count)
		for range count {
			// The length of a simple reply follows from the request.
			h := c.read(SimpleReplyBytes)
			cookie := binary.BigEndian.Uint64(h[8:])
			if cookie >= count || seen[cookie] {
				t.Fatalf("reply to %d", cookie)
			}
			seen[cookie] = true
			if binary.BigEndian.Uint32(h) == MagicStructuredReply {
				c.read(int(binary.BigEndian.Uint32(c.read(4))))
			} else if errno := binary.BigEndian.Uint32(h[4:]); errno != 0 {
				t.Fatalf("errno %d", errno)
			} else if cookie%3 == 0 {
				c.read(size)
			}
		}
		for page := range uint64(5) {
			r := c.expect(0, CmdRead, 0, page*4096, 4096, nil)
			d := r.data[len(r.data)-4096:]
			if !bytes.Equal(d, bytes.Repeat(d[:1], 4096)) {
				t.Fatalf("page %d is torn", page)
			}
		}
	})
}

// Broken framing closes that connection and no other.
func TestHostileTransmission(t *testing.T) {
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: newVolume()}}}, "tcp")
	good := s.connect(t)
	good.optGo("v")
	header := func(magic uint32, cmd uint16, length uint32) []byte {
		return bytes.Join([][]byte{u32(magic), u16(0), u16(cmd), u64(7), u64(0), u32(length)}, nil)
	}
	for name, b := range map[string][]byte{
		"wrong magic":       header(0x25609514, CmdRead, 4096),
		"reply magic":       header(MagicSimpleReply, CmdRead, 4096),
		"zeroes":            make([]byte, 1000),
		"write of 4 GiB":    header(MagicRequest, CmdWrite, math.MaxUint32),
		"write of 65 MiB":   header(MagicRequest, CmdWrite, 65<<20),
		"option once again": append(u64(MagicOption), make([]byte, 100)...),
	} {
		t.Run(name, func(t *testing.T) {
			c := s.connect(t)
			c.optGo("v")
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c.write(b)
			// Unread data may turn the close into a reset, which is as good.
			buf := make([]byte, 1)
			if n, err := c.nc.Read(buf); n != 0 || err == nil {
				t.Fatalf("server sent %x", buf)
			}
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
				t.Errorf("%d bytes allocated", grown)
			}
			good.expect(0, CmdWrite, 0, 0, 3, []byte("abc"))
		})
	}
	t.Run("cut short", func(t *testing.T) {
		frame := append(header(MagicRequest, CmdWrite, 4096), make([]byte, 100)...)
		for cut := range len(frame) {
			c := s.connect(t)
			c.optGo("v")
			c.write(frame[:cut])
			_ = c.nc.Close()
		}
		eventually(t, "the broken connections are gone", func() bool { return s.Connections() == 1 })
		good.expectData(0, []byte("abc\x00"))
	})
}
