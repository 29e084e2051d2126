package node

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// TestPlainLinksStayOnTheLoopback: without TLS a node neither listens nor connects beyond it, whatever the
// configuration calls the address; with insecure_replication, or TLS, it does.
func TestPlainLinksStayOnTheLoopback(t *testing.T) {
	for _, row := range []struct {
		name string
		c    Config
		addr string
		want bool
	}{
		{"loopback", Config{}, "127.0.0.1:0", true},
		{"another loopback", Config{}, "127.7.7.7:0", true},
		{"its name", Config{}, "localhost:0", true},
		{"any address", Config{}, "0.0.0.0:0", false},
		{"any address, not said", Config{}, ":0", false},
		{"any address, insecure", Config{InsecureLinks: true}, "0.0.0.0:0", true},
		{"any address, TLS", Config{TLSCA: "a", TLSCert: "b", TLSKey: "c"}, "0.0.0.0:0", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			ln, err := row.c.listenLinks(row.addr)
			if err == nil {
				_ = ln.Close()
			}
			if (err == nil) != row.want || err != nil && !errors.Is(err, errPlain) {
				t.Errorf("listen: %v", err)
			}
			row.c.Replicate, row.c.Advertise = row.addr, "127.0.0.1:1"
			if err := row.c.checkLinks(); (err == nil) != row.want || err != nil && !strings.HasPrefix(err.Error(), "replicate: ") {
				t.Errorf("configuration: %v", err)
			}
		})
	}
	// 192.0.2.1 is for documentation, and nobody's: what matters is which error comes, and that it comes at once.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := (Config{}).dialLink(ctx, "192.0.2.1:7440"); !errors.Is(err, errPlain) {
		t.Errorf("dial: %v", err)
	}
	if _, err := (Config{InsecureLinks: true}).dialLink(ctx, "192.0.2.1:7440"); err == nil || errors.Is(err, errPlain) {
		t.Errorf("dial, insecure: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := (Config{}).dialLink(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
