package nbdclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/nbd"
)

// maxOptionReply and maxChunk bound what a server may make the client allocate.
const (
	maxOptionReply = 64 << 10
	maxStatusChunk = 4 + 8<<20
)

// negotiate does the handshake up to a successful NBD_OPT_GO.
func (c *Client) negotiate(export string) error {
	var greeting [nbd.GreetingBytes]byte
	if _, err := io.ReadFull(c.r, greeting[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	if binary.BigEndian.Uint64(greeting[0:]) != nbd.MagicInit || binary.BigEndian.Uint64(greeting[8:]) != nbd.MagicOption {
		return errors.New("not an NBD server of the newstyle protocol")
	}
	flags := binary.BigEndian.Uint16(greeting[16:])
	if flags&nbd.FlagFixedNewstyle == 0 {
		return errors.New("server does not speak fixed newstyle")
	}
	if _, err := c.nc.Write(binary.BigEndian.AppendUint32(nil, uint32(flags)&(nbd.ClientFlagFixedNewstyle|nbd.ClientFlagNoZeroes))); err != nil {
		return fmt.Errorf("send flags: %w", err)
	}

	var refused *OptionError
	err := c.option(nbd.OptStructuredReply, nil, nil)
	if err != nil && !errors.As(err, &refused) {
		return err
	}
	c.structured = err == nil
	name := append(binary.BigEndian.AppendUint32(nil, uint32(len(export))), export...)
	if c.structured {
		query := binary.BigEndian.AppendUint32(append([]byte{}, name...), 1)
		query = binary.BigEndian.AppendUint32(query, uint32(len(nbd.ContextBaseAllocation)))
		query = append(query, nbd.ContextBaseAllocation...)
		err := c.option(nbd.OptSetMetaContext, query, func(typ uint32, data []byte) error {
			if typ == nbd.RepMetaContext && len(data) > 4 && string(data[4:]) == nbd.ContextBaseAllocation {
				c.contextID = binary.BigEndian.Uint32(data)
			}
			return nil
		})
		if err != nil && !errors.As(err, &refused) { // a refusal of the export itself is repeated by GO
			return err
		}
	}
	request := binary.BigEndian.AppendUint16(append([]byte{}, name...), 1)
	request = binary.BigEndian.AppendUint16(request, nbd.InfoBlockSize)
	return c.option(nbd.OptGo, request, c.exportInfo)
}

// exportInfo takes in one NBD_REP_INFO.
func (c *Client) exportInfo(typ uint32, data []byte) error {
	if typ != nbd.RepInfo || len(data) < 2 {
		return nil
	}
	switch info := binary.BigEndian.Uint16(data); {
	case info == nbd.InfoExport && len(data) == 12:
		size := binary.BigEndian.Uint64(data[2:])
		if int64(size) < 0 {
			return fmt.Errorf("export of %d bytes", size)
		}
		c.size, c.flags = int64(size), binary.BigEndian.Uint16(data[10:])
	case info == nbd.InfoBlockSize && len(data) == 14:
		if most := binary.BigEndian.Uint32(data[10:]); most > 0 && int64(most) < int64(c.maxPayload) {
			c.maxPayload = int(most)
		}
	}
	return nil
}

// option sends an option and reads its replies up to the final one; each gets those before it.
func (c *Client) option(opt uint32, data []byte, each func(typ uint32, data []byte) error) error {
	b := binary.BigEndian.AppendUint64(nil, nbd.MagicOption)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	if _, err := c.nc.Write(append(b, data...)); err != nil {
		return fmt.Errorf("send option %d: %w", opt, err)
	}
	for {
		var h [nbd.OptionReplyBytes]byte
		if _, err := io.ReadFull(c.r, h[:]); err != nil {
			return fmt.Errorf("read reply to option %d: %w", opt, err)
		}
		typ, length := binary.BigEndian.Uint32(h[12:]), binary.BigEndian.Uint32(h[16:])
		if binary.BigEndian.Uint64(h[0:]) != nbd.MagicOptionReply || binary.BigEndian.Uint32(h[8:]) != opt || length > maxOptionReply {
			return fmt.Errorf("malformed reply to option %d", opt)
		}
		data := make([]byte, length)
		if _, err := io.ReadFull(c.r, data); err != nil {
			return fmt.Errorf("read reply to option %d: %w", opt, err)
		}
		switch {
		case typ == nbd.RepAck:
			return nil
		case typ&nbd.RepErrFlag != 0:
			return &OptionError{Option: opt, Reply: typ, Text: string(data)}
		case each != nil:
			if err := each(typ, data); err != nil {
				return err
			}
		}
	}
}

// replies reads replies until an error ends it; there is always one.
func (c *Client) replies() error {
	var h [nbd.StructuredReplyBytes]byte
	for {
		if _, err := io.ReadFull(c.r, h[:nbd.SimpleReplyBytes]); err != nil {
			return err
		}
		cookie := binary.BigEndian.Uint64(h[8:])
		switch binary.BigEndian.Uint32(h[0:]) {
		case nbd.MagicSimpleReply:
			errno := nbd.Errno(binary.BigEndian.Uint32(h[4:]))
			k, err := c.find(cookie)
			if err != nil {
				return err
			}
			if errno != 0 {
				k.fault = &Error{Op: k.op, Errno: errno}
			} else if err := c.fill(k, k.off, k.length); err != nil {
				return err
			}
			c.finish(cookie, k)
		case nbd.MagicStructuredReply:
			if _, err := io.ReadFull(c.r, h[nbd.SimpleReplyBytes:]); err != nil {
				return err
			}
			k, err := c.find(cookie)
			if err != nil {
				return err
			}
			if err := c.chunk(k, binary.BigEndian.Uint16(h[6:]), int64(binary.BigEndian.Uint32(h[16:]))); err != nil {
				return err
			}
			if binary.BigEndian.Uint16(h[4:])&nbd.ReplyFlagDone != 0 {
				c.finish(cookie, k)
			}
		default:
			return fmt.Errorf("reply magic %x", h[:4])
		}
	}
}

func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.calls[cookie]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("reply to an unknown request %d", cookie)
}

// finish takes an answered call out and wakes its caller.
func (c *Client) finish(cookie uint64, k *call) {
	c.mu.Lock()
	delete(c.calls, cookie)
	c.mu.Unlock()
	<-c.slots
	if k.fault == nil && k.filled != k.length {
		k.fault = fmt.Errorf("nbd %s: reply holds %d of %d bytes", k.op, k.filled, k.length)
	}
	close(k.done)
}

// chunk reads the payload of one structured reply chunk.
func (c *Client) chunk(k *call, typ uint16, length int64) error {
	var h [8]byte
	fixed := map[uint16]int64{nbd.ReplyTypeOffsetData: 8, nbd.ReplyTypeOffsetHole: 8, nbd.ReplyTypeBlockStatus: 4}[typ]
	if typ&nbd.ReplyTypeErrorFlag != 0 {
		fixed = 6
	}
	if length < fixed {
		return fmt.Errorf("chunk of type %d with %d bytes", typ, length)
	}
	if _, err := io.ReadFull(c.r, h[:fixed]); err != nil {
		return err
	}
	length -= fixed
	switch {
	case typ == nbd.ReplyTypeNone && length == 0:
		return nil
	case typ == nbd.ReplyTypeOffsetData:
		return c.fill(k, int64(binary.BigEndian.Uint64(h[:])), length)
	case typ == nbd.ReplyTypeOffsetHole && length == 4:
		var n [4]byte
		if _, err := io.ReadFull(c.r, n[:]); err != nil {
			return err
		}
		return c.fillFrom(zeroes{}, k, int64(binary.BigEndian.Uint64(h[:])), int64(binary.BigEndian.Uint32(n[:])))
	case typ == nbd.ReplyTypeBlockStatus && length%8 == 0 && length <= maxStatusChunk:
		data := make([]byte, length)
		if _, err := io.ReadFull(c.r, data); err != nil {
			return err
		}
		if binary.BigEndian.Uint32(h[:]) != c.contextID {
			return nil
		}
		for ; len(data) > 0; data = data[8:] {
			state := binary.BigEndian.Uint32(data[4:])
			k.extents = append(k.extents, block.ExtentState{
				Len: int64(binary.BigEndian.Uint32(data)), Hole: state&nbd.StateHole != 0, Zero: state&nbd.StateZero != 0,
			})
		}
		return nil
	case typ&nbd.ReplyTypeErrorFlag != 0 && length <= maxOptionReply:
		text := make([]byte, length)
		if _, err := io.ReadFull(c.r, text); err != nil {
			return err
		}
		text = text[:min(len(text), int(binary.BigEndian.Uint16(h[4:])))]
		k.fault = &Error{Op: k.op, Errno: nbd.Errno(binary.BigEndian.Uint32(h[:])), Text: string(text)}
		return nil
	default:
		return fmt.Errorf("chunk of type %d with %d bytes", typ, length)
	}
}

// fill reads n bytes for position off of the export into the caller's buffer.
func (c *Client) fill(k *call, off, n int64) error { return c.fillFrom(c.r, k, off, n) }

func (c *Client) fillFrom(r io.Reader, k *call, off, n int64) error {
	at := off - k.off
	if at < 0 || n < 0 || at > k.length || n > k.length-at {
		return fmt.Errorf("data for [%d,+%d) in reply to a request for [%d,+%d)", off, n, k.off, k.length)
	}
	c.mu.Lock()
	p := k.p
	k.taken = p != nil
	c.mu.Unlock()
	k.filled += n
	if p == nil {
		_, err := io.CopyN(io.Discard, r, n)
		return err
	}
	_, err := io.ReadFull(r, p[at:at+n])
	if err == nil { // else the buffer stays taken until the call has failed
		c.mu.Lock()
		k.taken = false
		c.mu.Unlock()
	}
	return err
}

// zeroes reads as zeroes without end.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
