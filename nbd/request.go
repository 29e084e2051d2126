package nbd

import (
	"encoding/binary"
	"sync"
	"time"
)

// replyHeadBytes holds the longest fixed part of a reply: a structured header and an offset.
const replyHeadBytes = StructuredReplyBytes + 8

// request is one request from its header to the moment its reply is written. Requests are pooled.
type request struct {
	cmd    uint16
	flags  uint16
	cookie uint64
	off    uint64
	length uint32

	// Set while the request is read: an error found there, which keeps it from the device.
	errno Errno
	text  string

	buf   *buffer // pooled memory behind data and body, or nil
	data  []byte  // payload of a WRITE
	cost  int64   // bytes it occupies of Limits.Bytes
	taken int64   // those of them that are of the server's budget: cost or nothing
	began time.Time
	t     *transmission // of a request in a batch

	// The reply: head[:headLen], then body.
	head    [replyHeadBytes]byte
	headLen int
	body    []byte
}

var requestPool = sync.Pool{New: func() any { return new(request) }}

// free gives the request and its memory back.
func (q *request) free() {
	if q.buf != nil {
		putBuffer(q.buf)
	}
	*q = request{}
	requestPool.Put(q)
}

// parse fills the request from a header whose magic was checked.
func (q *request) parse(h []byte) {
	q.flags = binary.BigEndian.Uint16(h[4:])
	q.cmd = binary.BigEndian.Uint16(h[6:])
	q.cookie = binary.BigEndian.Uint64(h[8:])
	q.off = binary.BigEndian.Uint64(h[16:])
	q.length = binary.BigEndian.Uint32(h[24:])
}

// metricCmd is the command as Metrics knows it.
func (q *request) metricCmd() uint16 { return min(q.cmd, CmdUnknown) }

// simple makes the reply a simple one without data.
func (q *request) simple(errno Errno) {
	binary.BigEndian.PutUint32(q.head[0:], MagicSimpleReply)
	binary.BigEndian.PutUint32(q.head[4:], uint32(errno))
	binary.BigEndian.PutUint64(q.head[8:], q.cookie)
	q.headLen = SimpleReplyBytes
	q.body = nil
}

// chunk makes the reply one final structured chunk: the header, extra bytes that the caller puts
// into head after it, and body.
func (q *request) chunk(typ uint16, extra int, body []byte) {
	binary.BigEndian.PutUint32(q.head[0:], MagicStructuredReply)
	binary.BigEndian.PutUint16(q.head[4:], ReplyFlagDone)
	binary.BigEndian.PutUint16(q.head[6:], typ)
	binary.BigEndian.PutUint64(q.head[8:], q.cookie)
	binary.BigEndian.PutUint32(q.head[16:], uint32(extra+len(body)))
	q.headLen = StructuredReplyBytes + extra
	q.body = body
}

// failed makes the reply an error, with a text for the user where the protocol has room for one.
func (q *request) failed(structured bool, errno Errno, text string) {
	if !structured {
		q.simple(errno)
		return
	}
	text = clip(text)
	q.chunk(ReplyTypeError, 6, []byte(text))
	binary.BigEndian.PutUint32(q.head[StructuredReplyBytes:], uint32(errno))
	binary.BigEndian.PutUint16(q.head[StructuredReplyBytes+4:], uint16(len(text)))
}
