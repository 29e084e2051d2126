package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/block"
)

func newVolume() block.Device { return block.NewMemory(1 << 20) }

func negotiationServer(t *testing.T) *testServer {
	return newTestServer(t, &Server{Exports: testExports{
		"v":  {Device: newVolume(), Description: "the volume v"},
		"w":  {Device: newVolume()},
		"ro": {Device: newVolume(), ReadOnly: true},
	}}, "unix")
}

func TestList(t *testing.T) {
	c := negotiationServer(t).connect(t)
	list := c.option(OptList, nil)
	var names []string
	for _, r := range list[:len(list)-1] {
		if r.typ != RepServer || int(binary.BigEndian.Uint32(r.data)) != len(r.data)-4 {
			t.Fatalf("reply %v", r)
		}
		names = append(names, string(r.data[4:]))
	}
	if got := strings.Join(names, " "); got != "ro v w" || list[len(list)-1].typ != RepAck {
		t.Fatalf("names %q, replies %v", got, list)
	}
	c.expectFinal(OptList, []byte{0}, RepErrInvalid)
}

func TestExportName(t *testing.T) {
	s := negotiationServer(t)
	const flags = TransHasFlags | TransSendFlush | TransSendFUA | TransSendTrim | TransSendWriteZeroes | TransCanMultiConn | TransSendCache
	for _, c := range []struct {
		clientFlags uint32
		length      int
	}{
		{ClientFlagFixedNewstyle | ClientFlagNoZeroes, 10},
		{ClientFlagFixedNewstyle, 134},
		{0, 134},
	} {
		k := s.dial(t)
		k.greet(c.clientFlags)
		k.write(u64(MagicOption), u32(OptExportName), u32(1), []byte("v"))
		b := k.read(c.length)
		if binary.BigEndian.Uint64(b) != 1<<20 || binary.BigEndian.Uint16(b[8:]) != flags || !bytes.Equal(b[10:], make([]byte, c.length-10)) {
			t.Fatalf("export %x", b)
		}
		k.expect(0, CmdWrite, 0, 0, 3, []byte("abc"))
		k.expectData(0, []byte("abc"))
	}
	for _, name := range []string{"nobody", "", "dr", "\xff\xfe", "a\x00b", strings.Repeat("x", 5000)} {
		k := s.connect(t)
		k.write(u64(MagicOption), u32(OptExportName), u32(uint32(len(name))), []byte(name))
		k.expectClosed()
	}
}

func TestInfoAndGo(t *testing.T) {
	s := negotiationServer(t)
	for _, opt := range []uint32{OptInfo, OptGo} {
		c := s.connect(t)
		c.optStructured()
		list := c.option(opt, goData("v", InfoName, InfoDescription, InfoBlockSize, 77))
		got := map[uint16][]byte{}
		for _, r := range list[:len(list)-1] {
			if r.typ != RepInfo {
				t.Fatalf("reply %v", r)
			}
			got[binary.BigEndian.Uint16(r.data)] = r.data[2:]
		}
		if len(got) != 4 || len(list) != 5 || list[4].typ != RepAck {
			t.Fatalf("replies %v", list)
		}
		if string(got[InfoName]) != "v" || string(got[InfoDescription]) != "the volume v" {
			t.Errorf("name %q, description %q", got[InfoName], got[InfoDescription])
		}
		if want := append(append(u32(1), u32(4096)...), u32(32<<20)...); !bytes.Equal(got[InfoBlockSize], want) {
			t.Errorf("block size %x", got[InfoBlockSize])
		}
		if f := binary.BigEndian.Uint16(got[InfoExport][8:]); f&TransSendDF == 0 || f&TransSendFastZero != 0 || f&TransReadOnly != 0 {
			t.Errorf("transmission flags %#x", f)
		}
		if opt == OptInfo {
			c.optGo("v") // an INFO leaves the negotiation going
		}
		c.expect(0, CmdFlush, 0, 0, 0, nil)
	}
	// Without asking, only the export information comes; a read-only export offers no writes.
	c := s.connect(t)
	c.optGo("ro")
	if c.flags&TransReadOnly == 0 || c.flags&(TransSendTrim|TransSendWriteZeroes|TransSendDF) != 0 {
		t.Errorf("flags %#x of a read-only export without structured replies", c.flags)
	}
}

func TestRefusedExports(t *testing.T) {
	c := negotiationServer(t).connect(t)
	for _, opt := range []uint32{OptInfo, OptGo} {
		if r := c.expectFinal(opt, goData("nobody"), RepErrUnknown); !strings.Contains(string(r.data), `"nobody"`) {
			t.Errorf("text %q", r.data)
		}
		if r := c.expectFinal(opt, goData("dr"), RepErrPolicy); !strings.Contains(string(r.data), "its primary is in az1; it opens after a failover") {
			t.Errorf("text %q", r.data)
		}
		c.expectFinal(opt, goData("demoted"), RepErrShutdown)
		c.expectFinal(opt, goData(""), RepErrUnknown)
		for name, data := range map[string][]byte{
			"empty":             nil,
			"short":             {0, 0, 0},
			"name too long":     append(u32(100), 'v', 0, 0),
			"name 4 GiB":        append(u32(0xffffffff), 'v', 0, 0),
			"no count":          str32("v"),
			"count too large":   append(str32("v"), u16(3)...),
			"trailing bytes":    append(goData("v"), 1),
			"invalid UTF-8":     goData("\xff"),
			"NUL in name":       goData("a\x00"),
			"name of 5000":      goData(strings.Repeat("x", 5000)),
			"name of 60000":     goData(strings.Repeat("x", 60000)),
			"count without end": append(str32("v"), u16(0xffff)...),
		} {
			if list := c.option(opt, data); len(list) != 1 || list[0].typ != RepErrInvalid {
				t.Errorf("%s: %v", name, list)
			}
		}
	}
	c.optGo("v") // after all that
	c.expect(0, CmdFlush, 0, 0, 0, nil)
}

func TestOtherOptions(t *testing.T) {
	c := negotiationServer(t).connect(t)
	c.expectFinal(OptStartTLS, nil, RepErrUnsup)
	c.expectFinal(OptStructuredReply, []byte{1}, RepErrInvalid)
	for _, opt := range []uint32{0, 4, 11, 999, 0xffffffff} {
		c.expectFinal(opt, []byte("some data"), RepErrUnsup)
	}
	// Too much data is skipped up to a point, and the next option is understood.
	c.expectFinal(OptInfo, make([]byte, maxOptionBytes+1), RepErrTooBig)
	c.expectFinal(999, make([]byte, maxOptionSkip), RepErrTooBig)
	if list := c.option(OptAbort, []byte("bye")); list[0].typ != RepAck {
		t.Fatalf("abort: %v", list)
	}
	c.expectClosed()
}

func TestMetaContext(t *testing.T) {
	s := negotiationServer(t)
	c := s.connect(t)
	c.expectFinal(OptListMetaContext, metaData("v"), RepErrInvalid) // before structured replies
	c.expectFinal(OptSetMetaContext, metaData("v", ContextBaseAllocation), RepErrInvalid)
	c.optStructured()
	for _, q := range []struct {
		opt     uint32
		queries []string
		match   bool
	}{
		{OptListMetaContext, nil, true},
		{OptListMetaContext, []string{"base:"}, true},
		{OptListMetaContext, []string{"base:allocation"}, true},
		{OptListMetaContext, []string{"base:other", "qemu:dirty-bitmap:x"}, false},
		{OptSetMetaContext, nil, false},
		{OptSetMetaContext, []string{"base:"}, false},
		{OptSetMetaContext, []string{"qemu:allocation-depth"}, false},
		{OptSetMetaContext, []string{"", "nocolon"}, false},
		{OptSetMetaContext, []string{"x:y", "base:allocation", "base:allocation"}, true},
	} {
		list := c.option(q.opt, metaData("v", q.queries...))
		if last := list[len(list)-1]; last.typ != RepAck || (len(list) == 2) != q.match || len(list) > 2 {
			t.Fatalf("option %d %q: %v", q.opt, q.queries, list)
		}
		if q.match && string(list[0].data[4:]) != ContextBaseAllocation {
			t.Fatalf("context %q", list[0].data)
		}
	}
	for name, data := range map[string][]byte{
		"empty":          nil,
		"no count":       str32("v"),
		"query missing":  append(str32("v"), u32(1)...),
		"many missing":   append(str32("v"), u32(0xffffffff)...),
		"query too long": append(append(str32("v"), u32(1)...), u32(500)...),
		"trailing":       append(metaData("v", "base:allocation"), 0),
		"bad name":       metaData("\xff", "base:allocation"),
	} {
		if list := c.option(OptSetMetaContext, data); len(list) != 1 || list[0].typ != RepErrInvalid {
			t.Errorf("%s: %v", name, list)
		}
	}
	c.expectFinal(OptSetMetaContext, metaData("nobody", "base:allocation"), RepErrUnknown)
	// The failed one replaced the selection: block status must not work.
	c.optGo("v")
	c.expect(EINVAL, CmdBlockStatus, 0, 0, 4096, nil)

	// Nor does a selection for another export count.
	c = s.connect(t)
	c.optStructured()
	c.setMeta("w", ContextBaseAllocation)
	c.optGo("v")
	c.expect(EINVAL, CmdBlockStatus, 0, 0, 4096, nil)
}

// What breaks the framing closes the connection, and that one alone.
func TestHostileHandshake(t *testing.T) {
	s := negotiationServer(t)
	good := s.connect(t)
	good.optGo("v")
	for name, bytes := range map[string][]byte{
		"unknown client flags":      u32(0x80000001),
		"option magic":              append(u32(1), make([]byte, 16)...),
		"HTTP":                      []byte("GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: x\r\n\r\n"),
		"4 GiB of option data":      append(append(append(u32(1), u64(MagicOption)...), u32(OptGo)...), u32(0xffffffff)...),
		"4 GiB of unknown option":   append(append(append(u32(1), u64(MagicOption)...), u32(12345)...), u32(0xffffffff)...),
		"EXPORT_NAME of 4097 bytes": append(append(append(u32(1), u64(MagicOption)...), u32(OptExportName)...), u32(4097)...),
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t)
			c.read(GreetingBytes)
			c.write(bytes)
			c.expectClosed()
		})
	}
	for cut := range OptionHeaderBytes + 4 { // the client goes away in the middle
		c := s.dial(t)
		c.write(append(u32(3), append(append(u64(MagicOption), u32(OptGo)...), u32(50)...)...)[:cut])
		_ = c.nc.Close()
	}
	good.expect(0, CmdWrite, 0, 0, 1, []byte{1})
	eventually(t, "only the good connection is left", func() bool { return s.Connections() == 1 })
}

func TestTooManyOptions(t *testing.T) {
	s := newTestServer(t, &Server{Exports: testExports{}, Limits: Limits{Options: 100}}, "unix")
	c := s.connect(t)
	for range 100 {
		c.expectFinal(12345, nil, RepErrUnsup)
	}
	c.expectClosed()

	// 10,000 options sent without reading a reply.
	c = s.connect(t)
	go func() {
		for range 10000 {
			if _, err := c.nc.Write(append(append(u64(MagicOption), u32(12345)...), u32(0)...)); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1<<20)
	for {
		if _, err := c.nc.Read(buf); err != nil {
			break
		}
	}
	eventually(t, "the connection is gone", func() bool { return s.Connections() == 0 })
}

func TestHandshakeTimeout(t *testing.T) {
	s := newTestServer(t, &Server{Exports: testExports{}, Limits: Limits{HandshakeTimeout: 100 * time.Millisecond}}, "unix")
	silent := s.dial(t)
	silent.read(GreetingBytes)
	silent.expectClosed()
	// A client that keeps talking is not spared.
	c := s.connect(t)
	begin := time.Now()
	for {
		if _, err := c.nc.Write(append(append(u64(MagicOption), u32(12345)...), u32(0)...)); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Fatalf("handshake lasted %v", d)
	}
}

func TestTooManyConnections(t *testing.T) {
	s := newTestServer(t, &Server{Exports: testExports{"v": {Device: newVolume()}}, Limits: Limits{Connections: 3}}, "tcp")
	var all []*client
	for range 3 {
		c := s.connect(t)
		c.optGo("v")
		all = append(all, c)
	}
	late := s.connect(t)
	if r := late.expectFinal(OptGo, goData("v"), RepErrPolicy); !strings.Contains(string(r.data), "3 connections") {
		t.Fatalf("refused by %q", r.data)
	}
	late.write(u64(MagicOption), u32(OptExportName), u32(1), []byte("v")) // has no error reply
	late.expectClosed()
	for _, c := range all {
		c.expect(0, CmdFlush, 0, 0, 0, nil)
	}
	_ = all[0].nc.Close()
	eventually(t, "one has left", func() bool { return s.Connections() == 2 })
	c := s.connect(t)
	c.optGo("v")
	c.expect(0, CmdFlush, 0, 0, 0, nil)
}

// One export cannot take all connections; those in negotiation count as well, and once only.
func TestTooManyConnectionsOfAnExport(t *testing.T) {
	opened, released := make(chan string, 100), make(chan string, 100)
	s := newTestServer(t, &Server{Exports: &countingExports{opened: opened, released: released}, Limits: Limits{Connections: 4, PerExport: 2}}, "unix")
	asking, using := s.connect(t), s.connect(t)
	for range 3 {
		asking.option(OptInfo, goData("v"))
	}
	using.optGo("v")
	late := s.connect(t)
	if r := late.expectFinal(OptGo, goData("v"), RepErrPolicy); !strings.Contains(string(r.data), "2 connections") {
		t.Fatalf("refused by %q", r.data)
	}
	if n := len(opened) - len(released); n != 2 {
		t.Fatalf("%d are open", n)
	}
	late.optGo("w")
	other := s.connect(t)
	other.optGo("w")
	// All four places are taken. One that has a place may change to another export with it.
	asking.expectFinal(OptGo, goData("w"), RepErrPolicy)
	asking.optGo("x")
	s.connect(t).expectFinal(OptInfo, goData("y"), RepErrPolicy)
	for _, c := range []*client{asking, using, late, other} {
		c.expect(0, CmdFlush, 0, 0, 0, nil)
		_ = c.nc.Close()
	}
	eventually(t, "all places are free", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.opened == 0 && len(s.exports) == 0
	})
}

// Connections that only connect take no place of those that use an export, and the oldest of them
// makes room for a new one.
func TestTooManyHandshakes(t *testing.T) {
	s := newTestServer(t, &Server{
		Exports: testExports{"v": {Device: newVolume()}},
		Limits:  Limits{Connections: 2, Handshakes: 2, HandshakeTimeout: 5 * time.Second},
	}, "unix")
	var idle []*client
	for range 2 {
		idle = append(idle, s.connect(t))
	}
	s.dial(t).expectClosed() // a rush
	time.Sleep(600 * time.Millisecond)
	for i := range 2 {
		c := s.connect(t)
		c.optGo("v")
		defer c.expect(0, CmdFlush, 0, 0, 0, nil)
		// Its place is free a moment after its answer; before that, the next one would need another's.
		eventually(t, "one negotiates", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.handshakes == 1 && s.opened == i+1
		})
	}
	idle[0].expectClosed()
	idle[1].expectFinal(OptGo, goData("v"), RepErrPolicy)
	idle[1].option(OptAbort, nil)
	eventually(t, "none negotiates", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.handshakes == 0
	})
}

// Every export that is opened is released exactly once, however the connection ends.
func TestRelease(t *testing.T) {
	opened, released := make(chan string, 100), make(chan string, 100)
	e := &countingExports{opened: opened, released: released}
	s := newTestServer(t, &Server{Exports: e}, "unix")
	for name, do := range map[string]func(c *client){
		"info only":      func(c *client) { c.option(OptInfo, goData("v")) },
		"info of two":    func(c *client) { c.option(OptInfo, goData("v")); c.option(OptInfo, goData("w")) },
		"abort":          func(c *client) { c.option(OptInfo, goData("v")); c.option(OptAbort, nil) },
		"go":             func(c *client) { c.optGo("v") },
		"info then go":   func(c *client) { c.option(OptInfo, goData("w")); c.optGo("v") },
		"go and disc":    func(c *client) { c.optGo("v"); c.send(CmdDisc, 0, 0, 0, nil) },
		"go and garbage": func(c *client) { c.optGo("v"); c.write(make([]byte, 28)) },
		"go unread": func(c *client) {
			c.write(u64(MagicOption), u32(OptGo), u32(uint32(len(goData("v")))), goData("v"))
		},
	} {
		c := s.connect(t)
		do(c)
		_ = c.nc.Close()
		eventually(t, name+": the connection is gone", func() bool { return s.Connections() == 0 })
		if len(opened) != len(released) {
			t.Fatalf("%s: %d opened, %d released", name, len(opened), len(released))
		}
	}
	if len(opened) < 8 {
		t.Fatalf("only %d opened", len(opened))
	}
}

func TestClip(t *testing.T) {
	if got := clip(strings.Repeat("é", 4000)); len(got) != MaxStringBytes || !validName(got) {
		t.Errorf("%d bytes", len(got))
	}
	if got := clip("a" + strings.Repeat("é", 4000)); len(got) != MaxStringBytes-1 || !validName(got) {
		t.Errorf("%d bytes after cutting a letter", len(got))
	}
	if got := clip("a\xffb"); got != "a?b" {
		t.Errorf("%q", got)
	}
}

func TestOptionErrorOf(t *testing.T) {
	for err, want := range map[error]uint32{
		lockstep.ErrNotFound: RepErrUnknown, lockstep.ErrDemoted: RepErrShutdown, errServerClosed: RepErrShutdown,
		lockstep.ErrNotPrimary: RepErrPolicy, lockstep.ErrVolumeFailed: RepErrPolicy,
	} {
		if got := optionErrorOf(fmt.Errorf("volume v: %w", err)); got != want {
			t.Errorf("%v becomes %#x, want %#x", err, got, want)
		}
	}
}
