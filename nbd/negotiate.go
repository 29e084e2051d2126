package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	// maxOptionBytes bounds the data of an option that is taken into memory.
	maxOptionBytes = 64 << 10
	// maxOptionSkip bounds the data of a larger option that is read and thrown away to answer
	// ERR_TOO_BIG; beyond it the connection is closed.
	maxOptionSkip = 1 << 20
	// allocationContextID is what BLOCK_STATUS replies carry for base:allocation.
	allocationContextID = 1
)

// selection is the result of a negotiation.
type selection struct {
	name       string
	export     Export
	share      *share
	structured bool
	allocation bool // base:allocation was selected for this very export
}

// leave gives the export back.
func (c *conn) leave(s *selection) {
	if s == nil {
		return
	}
	c.srv.leave(s.name)
	if s.export.Release != nil {
		s.export.Release()
	}
}

// negotiation is the state of option haggling.
type negotiation struct {
	*conn
	ctx context.Context // bounded by the handshake timeout
	w   *bufio.Writer

	noZeroes   bool
	structured bool

	// The last export opened, kept because clients ask several times about one export.
	opened *selection

	metaFor string // export name of the last successful SET_META_CONTEXT
	metaSet bool   // that one selected base:allocation
}

func newNegotiation(ctx context.Context, c *conn) *negotiation {
	return &negotiation{conn: c, ctx: ctx, w: bufio.NewWriter(c.nc)}
}

// run negotiates until an export is chosen or the client leaves.
func (n *negotiation) run() (sel *selection, err error) {
	defer func() {
		if n.opened != nil && n.opened != sel {
			n.leave(n.opened)
		}
	}()
	if err := n.greet(); err != nil {
		return nil, err
	}
	for range n.limits.Options {
		sel, done, err := n.option()
		if err == nil {
			err = n.w.Flush()
		}
		if err != nil {
			return nil, err
		}
		if done {
			return sel, nil
		}
	}
	return nil, fmt.Errorf("client sent %d options without choosing an export", n.limits.Options)
}

// greet exchanges magic numbers and handshake flags.
func (n *negotiation) greet() error {
	var b [GreetingBytes]byte
	binary.BigEndian.PutUint64(b[0:], MagicInit)
	binary.BigEndian.PutUint64(b[8:], MagicOption)
	binary.BigEndian.PutUint16(b[16:], FlagFixedNewstyle|FlagNoZeroes)
	if _, err := n.nc.Write(b[:]); err != nil {
		return fmt.Errorf("send greeting: %w", err)
	}
	if _, err := io.ReadFull(n.r, b[:4]); err != nil {
		return fmt.Errorf("read client flags: %w", err)
	}
	flags := binary.BigEndian.Uint32(b[:4])
	if unknown := flags &^ (ClientFlagFixedNewstyle | ClientFlagNoZeroes); unknown != 0 {
		return fmt.Errorf("unknown client flags %#x", unknown)
	}
	n.noZeroes = flags&ClientFlagNoZeroes != 0
	return nil
}

// option reads and answers one option. done ends the negotiation.
func (n *negotiation) option() (sel *selection, done bool, err error) {
	var h [OptionHeaderBytes]byte
	if _, err := io.ReadFull(n.r, h[:]); err != nil {
		return nil, true, fmt.Errorf("read option: %w", err)
	}
	if magic := binary.BigEndian.Uint64(h[0:]); magic != MagicOption {
		return nil, true, fmt.Errorf("option magic %#x", magic)
	}
	opt, length := binary.BigEndian.Uint32(h[8:]), binary.BigEndian.Uint32(h[12:])
	if opt == OptExportName && length > MaxStringBytes || length > maxOptionSkip {
		return nil, true, fmt.Errorf("option %d with %d bytes of data", opt, length)
	}
	if length > maxOptionBytes {
		if _, err := n.r.Discard(int(length)); err != nil {
			return nil, true, fmt.Errorf("skip option data: %w", err)
		}
		return nil, false, n.refuse(opt, RepErrTooBig, "option data too large")
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(n.r, data); err != nil {
		return nil, true, fmt.Errorf("read option data: %w", err)
	}

	switch opt {
	case OptExportName:
		sel, err = n.exportName(string(data))
		return sel, true, err
	case OptAbort:
		// The client may be gone already; that is no error of its.
		_ = n.reply(opt, RepAck)
		_ = n.w.Flush()
		return nil, true, nil
	case OptList:
		return nil, false, n.list(data)
	case OptStartTLS:
		return nil, false, n.startTLS(data)
	case OptInfo, OptGo:
		sel, err = n.info(opt, data)
		return sel, sel != nil, err
	case OptStructuredReply:
		if len(data) != 0 {
			return nil, false, n.refuse(opt, RepErrInvalid, "this option takes no data")
		}
		n.structured = true
		return nil, false, n.reply(opt, RepAck)
	case OptListMetaContext, OptSetMetaContext:
		return nil, false, n.metaContext(opt, data)
	default:
		return nil, false, n.refuse(opt, RepErrUnsup, "option not supported")
	}
}

// startTLS is where an upgrade would happen: replace nc, r and w by those over TLS, forget what was
// negotiated so far, and refuse if r still holds bytes that came before the upgrade.
func (n *negotiation) startTLS([]byte) error {
	return n.refuse(OptStartTLS, RepErrUnsup, "TLS is not configured")
}

// reply sends one reply packet; parts are concatenated.
func (n *negotiation) reply(opt, typ uint32, parts ...[]byte) error {
	length := 0
	for _, p := range parts {
		length += len(p)
	}
	b := make([]byte, 0, OptionReplyBytes)
	b = binary.BigEndian.AppendUint64(b, MagicOptionReply)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	if _, err := n.w.Write(b); err != nil {
		return fmt.Errorf("send option reply: %w", err)
	}
	for _, p := range parts {
		if _, err := n.w.Write(p); err != nil {
			return fmt.Errorf("send option reply: %w", err)
		}
	}
	return nil
}

// refuse sends an error reply with a text for the user.
func (n *negotiation) refuse(opt, typ uint32, text string) error {
	n.log.Debug("option refused", "option", opt, "reply", fmt.Sprintf("%#x", typ), "reason", text)
	return n.reply(opt, typ, []byte(clip(text)))
}

// clip makes text a string that the protocol allows.
func clip(text string) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) > MaxStringBytes {
		text = strings.ToValidUTF8(text[:MaxStringBytes], "")
	}
	return text
}

// validName reports whether a name keeps the rules for strings. NBD spec, "Conventions".
func validName(name string) bool {
	return len(name) <= MaxStringBytes && utf8.ValidString(name) && !strings.ContainsRune(name, 0)
}

// open opens the export, or returns the one already open under that name.
func (n *negotiation) open(name string) (*selection, error) {
	if n.opened != nil && n.opened.name == name {
		return n.opened, nil
	}
	select {
	case <-n.stopping:
		return nil, errServerClosed
	default:
	}
	export, err := n.srv.Exports.Open(n.ctx, name)
	if err != nil {
		return nil, err
	}
	n.leave(n.opened) // first, so that a client that changes its mind needs no second place
	n.opened = nil
	// After Open: that an export is not served here says more than that there is no place for it.
	share, err := n.srv.enter(name, n.limits)
	if err != nil {
		if export.Release != nil {
			export.Release()
		}
		n.log.Warn("connection refused", "volume", name, "reason", err)
		return nil, err
	}
	n.opened = &selection{name: name, export: export, share: share}
	return n.opened, nil
}

// choose fixes what was negotiated in the selection that transmission starts with.
func (n *negotiation) choose(sel *selection) *selection {
	sel.structured = n.structured
	sel.allocation = n.structured && n.metaSet && n.metaFor == sel.name
	return sel
}

// transmissionFlags are those announced for an export.
func (n *negotiation) transmissionFlags(e *Export) uint16 {
	flags := uint16(TransHasFlags | TransSendFlush | TransSendFUA | TransCanMultiConn | TransSendCache)
	if e.ReadOnly {
		flags |= TransReadOnly
	} else {
		flags |= TransSendTrim | TransSendWriteZeroes
	}
	if n.structured {
		flags |= TransSendDF
	}
	return flags
}

// exportName answers NBD_OPT_EXPORT_NAME, which has no error reply: the connection is closed.
func (n *negotiation) exportName(name string) (*selection, error) {
	if !validName(name) {
		return nil, errors.New("export name is not valid UTF-8")
	}
	sel, err := n.open(name)
	if err != nil {
		return nil, fmt.Errorf("open export %q: %w", name, err)
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(sel.export.Device.Size()))
	b = binary.BigEndian.AppendUint16(b, n.transmissionFlags(&sel.export))
	if !n.noZeroes {
		b = append(b, make([]byte, ExportNamePadBytes)...)
	}
	if _, err := n.w.Write(b); err != nil {
		return nil, fmt.Errorf("send export: %w", err)
	}
	return n.choose(sel), nil
}

// list answers NBD_OPT_LIST.
func (n *negotiation) list(data []byte) error {
	if len(data) != 0 {
		return n.refuse(OptList, RepErrInvalid, "this option takes no data")
	}
	for _, name := range n.srv.Exports.List(n.ctx) {
		if !validName(name) {
			continue // no client could open it
		}
		if err := n.reply(OptList, RepServer, binary.BigEndian.AppendUint32(nil, uint32(len(name))), []byte(name)); err != nil {
			return err
		}
	}
	return n.reply(OptList, RepAck)
}

// info answers NBD_OPT_INFO and NBD_OPT_GO; a selection is returned for a successful GO only.
func (n *negotiation) info(opt uint32, data []byte) (*selection, error) {
	d := decoder{data}
	name, ok := d.string32()
	count, ok2 := d.uint16()
	if !ok || !ok2 || len(d.rest) != 2*int(count) {
		return nil, n.refuse(opt, RepErrInvalid, "malformed option data")
	}
	if !validName(name) {
		return nil, n.refuse(opt, RepErrInvalid, "export name is too long or not valid UTF-8")
	}
	wanted := make(map[uint16]bool, 4)
	for {
		typ, ok := d.uint16()
		if !ok {
			break
		}
		if typ <= InfoBlockSize {
			wanted[typ] = true
		}
	}
	sel, err := n.open(name)
	if err != nil {
		return nil, n.refuse(opt, optionErrorOf(err), err.Error())
	}

	b := binary.BigEndian.AppendUint16(nil, InfoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(sel.export.Device.Size()))
	b = binary.BigEndian.AppendUint16(b, n.transmissionFlags(&sel.export))
	replies := [][]byte{b}
	if wanted[InfoName] {
		replies = append(replies, append(binary.BigEndian.AppendUint16(nil, InfoName), name...))
	}
	if wanted[InfoDescription] && sel.export.Description != "" {
		replies = append(replies, append(binary.BigEndian.AppendUint16(nil, InfoDescription), clip(sel.export.Description)...))
	}
	if wanted[InfoBlockSize] {
		b := binary.BigEndian.AppendUint16(nil, InfoBlockSize)
		b = binary.BigEndian.AppendUint32(b, MinBlockBytes)
		b = binary.BigEndian.AppendUint32(b, PreferredBlockBytes)
		b = binary.BigEndian.AppendUint32(b, uint32(n.limits.RequestBytes))
		replies = append(replies, b)
	}
	for _, r := range replies {
		if err := n.reply(opt, RepInfo, r); err != nil {
			return nil, err
		}
	}
	if err := n.reply(opt, RepAck); err != nil || opt == OptInfo {
		return nil, err
	}
	return n.choose(sel), nil
}

// metaContext answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
func (n *negotiation) metaContext(opt uint32, data []byte) error {
	if opt == OptSetMetaContext {
		n.metaSet = false // replaced even when this one fails
	}
	if !n.structured {
		return n.refuse(opt, RepErrInvalid, "structured replies must be negotiated first")
	}
	d := decoder{data}
	name, ok := d.string32()
	count, ok2 := d.uint32()
	if !ok || !ok2 {
		return n.refuse(opt, RepErrInvalid, "malformed option data")
	}
	match := count == 0 && opt == OptListMetaContext
	for range count {
		query, ok := d.string32()
		if !ok {
			return n.refuse(opt, RepErrInvalid, "malformed query")
		}
		match = match || query == ContextBaseAllocation || query == ContextBase && opt == OptListMetaContext
	}
	if len(d.rest) != 0 || !validName(name) {
		return n.refuse(opt, RepErrInvalid, "malformed option data")
	}
	if _, err := n.open(name); err != nil {
		return n.refuse(opt, optionErrorOf(err), err.Error())
	}
	if match {
		id := uint32(0) // reserved in a list
		if opt == OptSetMetaContext {
			id = allocationContextID
			n.metaSet, n.metaFor = true, name
		}
		if err := n.reply(opt, RepMetaContext, binary.BigEndian.AppendUint32(nil, id), []byte(ContextBaseAllocation)); err != nil {
			return err
		}
	}
	return n.reply(opt, RepAck)
}

// decoder takes fields off the front of option data; every method reports whether they were there.
type decoder struct{ rest []byte }

func (d *decoder) uint16() (uint16, bool) {
	if len(d.rest) < 2 {
		return 0, false
	}
	v := binary.BigEndian.Uint16(d.rest)
	d.rest = d.rest[2:]
	return v, true
}

func (d *decoder) uint32() (uint32, bool) {
	if len(d.rest) < 4 {
		return 0, false
	}
	v := binary.BigEndian.Uint32(d.rest)
	d.rest = d.rest[4:]
	return v, true
}

// string32 is a string preceded by its length in 32 bits.
func (d *decoder) string32() (string, bool) {
	n, ok := d.uint32()
	if !ok || uint64(n) > uint64(len(d.rest)) {
		return "", false
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s, true
}
