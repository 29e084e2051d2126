//go:build !linux

package nbd

import "net"

// hungUp cannot be known here: a client that leaves while the reader waits for room is noticed when
// the device answers.
func hungUp(net.Conn) bool { return false }

func isTransientErrno(error) bool { return false }
