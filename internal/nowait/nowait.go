// Package nowait writes to a connection as much as goes at once.
package nowait

import (
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Writer is for one goroutine at a time, as the connection's own Write is for the rest that Write has
// left over. Deadlines of the connection count.
type Writer struct {
	raw syscall.RawConn
	try func(fd uintptr) bool

	iov []unix.Iovec
	n   int
	err syscall.Errno
}

// maxPieces is IOV_MAX of Linux.
const maxPieces = 1024

// New gives a writer for c, or nil if c is not a socket of the operating system.
func New(c net.Conn) *Writer {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	w := &Writer{raw: raw}
	w.try = func(fd uintptr) bool { // made once: a closure for each write would be an allocation for each
		for {
			n, _, errno := syscall.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(w.iov))), uintptr(len(w.iov)))
			if errno != syscall.EINTR {
				w.n, w.err = int(n), errno
				return true
			}
		}
	}
	return w
}

// Write writes as much of the pieces as the socket takes without waiting, which may be nothing, and
// gives the number of bytes.
func (w *Writer) Write(pieces ...[]byte) (int, error) {
	w.iov = w.iov[:0]
	for _, p := range pieces[:min(len(pieces), maxPieces)] {
		if len(p) == 0 {
			continue
		}
		v := unix.Iovec{Base: unsafe.SliceData(p)}
		v.SetLen(len(p))
		w.iov = append(w.iov, v)
	}
	if len(w.iov) == 0 {
		return 0, nil
	}
	err := w.raw.Write(w.try)
	clear(w.iov)
	switch {
	case err != nil:
		return 0, err
	case w.err == syscall.EAGAIN:
		return 0, nil
	case w.err != 0:
		return 0, w.err
	}
	return w.n, nil
}
