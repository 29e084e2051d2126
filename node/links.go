package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-dr/lockstep/internal/peertls"
)

// errPlain refuses links that anybody could read, and in which anybody could pose as a node.
var errPlain = errors.New("a link beyond the loopback needs TLS: set tls_ca, tls_cert and tls_key (lockstep ca makes them), or insecure_replication to do without")

// secured reports whether links have TLS.
func (c Config) secured() bool { return c.TLSCA != "" || c.TLSCert != "" || c.TLSKey != "" }

// checkLinks names the setting of links that is wrong.
func (c Config) checkLinks() error {
	switch {
	case c.secured() && (c.TLSCA == "" || c.TLSCert == "" || c.TLSKey == ""):
		return errors.New("tls_ca, tls_cert, tls_key: all three or none must be set")
	case c.secured() && c.InsecureLinks:
		return errors.New("insecure_replication: tls_ca, tls_cert and tls_key are set, so links are not plain; leave it out")
	case c.secured(), c.InsecureLinks:
		return nil
	}
	for key, addr := range map[string]string{"replicate": c.Replicate, "advertise": c.Advertise} {
		if host, _, err := net.SplitHostPort(addr); err == nil && !isLoopback(host) {
			return fmt.Errorf("%s: %s: %w", key, addr, errPlain)
		}
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// openTLS gives what links are secured with; nil: nothing.
func (c Config) openTLS(log *slog.Logger) (*peertls.Keeper, error) {
	if !c.secured() {
		if c.InsecureLinks {
			log.Warn("links to other nodes are plain (insecure_replication): who reaches the port, or the network between, can read and write every volume")
		}
		return nil, nil
	}
	return peertls.Open(peertls.Files{CA: c.TLSCA, Cert: c.TLSCert, Key: c.TLSKey}, c.ID, log)
}

// listenLinks and dialLink keep plain links on the loopback, whatever names resolve to.
func (c Config) listenLinks(addr string) (net.Listener, error) {
	return (&net.ListenConfig{Control: c.control}).Listen(context.Background(), "tcp", addr)
}

func (c Config) dialLink(ctx context.Context, addr string) (net.Conn, error) {
	return (&net.Dialer{KeepAlive: 5 * time.Second, Control: c.control}).DialContext(ctx, "tcp", addr)
}

// control sees the address itself, before the socket is bound or connected.
func (c Config) control(_, address string, _ syscall.RawConn) error {
	if c.secured() || c.InsecureLinks {
		return nil
	}
	if host, _, err := net.SplitHostPort(address); err != nil || !isLoopback(host) {
		return errPlain
	}
	return nil
}

var (
	descRefused = prometheus.NewDesc("lockstep_link_refused_total", "Links that were refused since the start because it was not certain who the other side is.", []string{"reason"}, nil)
	descTLSEnd  = prometheus.NewDesc("lockstep_tls_certificate_end_timestamp_seconds", "When the certificate of links ends, Unix time.", nil, nil)
	descTLSFail = prometheus.NewDesc("lockstep_tls_reload_failures_total", "Looks at changed certificate files that could not be used since the start.", nil, nil)
)

// linkCollector reads the security of links when it is asked.
type linkCollector struct{ n *Node }

func (linkCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRefused, descTLSEnd, descTLSFail} {
		ch <- d
	}
}

func (c linkCollector) Collect(ch chan<- prometheus.Metric) {
	for reason, n := range c.n.host.Refusals() {
		ch <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(n), string(reason))
	}
	if c.n.tls == nil {
		return
	}
	s := c.n.tls.Status()
	ch <- prometheus.MustNewConstMetric(descTLSEnd, prometheus.GaugeValue, float64(s.NotAfter.Unix()))
	ch <- prometheus.MustNewConstMetric(descTLSFail, prometheus.CounterValue, float64(s.Failed))
}
