package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/lockstep-dr/lockstep/api/policy"
)

// controllerConfig is what `lockstep controller` needs to know. The defaults are those of
// defaultControllerConfig; etc/controller.yaml is its commented sample.
type controllerConfig struct {
	ID                string        `yaml:"id"`
	Listen            string        `yaml:"listen"`
	PublicURL         string        `yaml:"public_url"`
	TLSCert           string        `yaml:"tls_cert"`
	TLSKey            string        `yaml:"tls_key"`
	Region            string        `yaml:"region"`
	AZs               []string      `yaml:"azs"`
	Site              string        `yaml:"site"`
	EtcdEndpoints     []string      `yaml:"etcd_endpoints"`
	EtcdCA            string        `yaml:"etcd_ca"`
	EtcdCert          string        `yaml:"etcd_cert"`
	EtcdKey           string        `yaml:"etcd_key"`
	EtcdSites         []string      `yaml:"etcd_sites"`
	EtcdDir           string        `yaml:"etcd_dir"`
	EtcdListen        string        `yaml:"etcd_listen"`
	AdminUser         string        `yaml:"admin_user"`
	AdminProject      string        `yaml:"admin_project"`
	AdminPasswordFile string        `yaml:"admin_password_file"`
	FailoverRole      string        `yaml:"failover_role"`
	AuditLog          string        `yaml:"audit_log"`
	PIDFile           string        `yaml:"pid_file"`
	LogLevel          string        `yaml:"log_level"`
	LogFormat         string        `yaml:"log_format"`
	ShutdownTimeout   time.Duration `yaml:"shutdown_timeout"`
}

var controllerHelp = map[string]string{
	"id":                  "name of this controller in logs and elections; default: a random one at each start",
	"listen":              "host:port of the API",
	"public_url":          "URL by which clients reach the API, for the catalog; default: made of listen",
	"tls_cert":            "PEM file with the API's certificate chain; empty: plain HTTP",
	"tls_key":             "PEM file with the certificate's key",
	"region":              "name of the region in the catalog",
	"azs":                 "availability zones, the first is the default one; default: those of the nodes",
	"site":                "availability zone or third site where this controller's embedded etcd runs",
	"etcd_endpoints":      "URLs of an external etcd cluster",
	"etcd_ca":             "PEM file with the CA of the etcd cluster; of an embedded member: of its clients",
	"etcd_cert":           "PEM file with the certificate for etcd, of an embedded member its own",
	"etcd_key":            "PEM file with the key of etcd_cert",
	"etcd_sites":          "zone or third site of each member of the external etcd: tells which zone's loss makes failover impossible",
	"etcd_dir":            "directory of an embedded etcd member, instead of etcd_endpoints",
	"etcd_listen":         "host:port at which the embedded member serves clients; default: a free port of 127.0.0.1, the same one ever after",
	"admin_user":          "user that is made at the first start",
	"admin_project":       "project that is made at the first start",
	"admin_password_file": "file with the password of admin_user, read at start",
	"failover_role":       "least role that may decide which side of a group serves: operator or member",
	"audit_log":           "file for the audit trail as lines of JSON, opened anew at SIGHUP; -: standard output; empty: in the log only",
	"pid_file":            "file for the process id, removed at a clean stop",
	"log_level":           "debug, info, warn or error",
	"log_format":          "text or json",
	"shutdown_timeout":    "how long requests may finish after SIGTERM",
}

func defaultControllerConfig() controllerConfig {
	return controllerConfig{
		Listen:          "127.0.0.1:8776",
		Region:          "region-1",
		AdminUser:       "admin",
		AdminProject:    "admin",
		FailoverRole:    string(policy.Operator),
		LogLevel:        "info",
		LogFormat:       "text",
		ShutdownTimeout: 10 * time.Second,
	}
}

// validate names every setting that is wrong.
func (c controllerConfig) validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
	}
	hostPort := func(key, value string) {
		if _, port, err := net.SplitHostPort(value); err != nil || port == "" {
			bad(key, "%q is not host:port", value)
		}
	}
	hostPort("listen", c.Listen)
	switch {
	case c.EtcdDir == "" && len(c.EtcdEndpoints) == 0:
		bad("etcd_dir, etcd_endpoints", "one of the two must be set")
	case c.EtcdDir != "" && len(c.EtcdEndpoints) > 0:
		bad("etcd_dir, etcd_endpoints", "only one of the two may be set")
	case c.EtcdDir != "" && c.EtcdListen != "":
		hostPort("etcd_listen", c.EtcdListen)
	}
	for _, e := range c.EtcdEndpoints {
		if u, err := url.Parse(e); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			bad("etcd_endpoints", "%q is not an http or https URL", e)
		}
	}
	if len(c.EtcdSites) > 0 && c.EtcdDir != "" {
		bad("etcd_sites", "is for an external etcd; the embedded member's is site")
	}
	if c.PublicURL != "" {
		if u, err := url.Parse(c.PublicURL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			bad("public_url", "%q is not an http or https URL", c.PublicURL)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("tls_cert, tls_key", "both or neither must be set")
	}
	if (c.EtcdCert == "") != (c.EtcdKey == "") {
		bad("etcd_cert, etcd_key", "both or neither must be set")
	}
	for key, value := range map[string]string{"region": c.Region, "admin_user": c.AdminUser, "admin_project": c.AdminProject} {
		if strings.TrimSpace(value) == "" {
			bad(key, "must be set")
		}
	}
	if c.AdminPasswordFile == "" {
		bad("admin_password_file", "must be set")
	}
	if _, err := c.policy(); err != nil {
		bad("failover_role", "%v", err)
	}
	seen := map[string]bool{}
	for _, az := range c.AZs {
		if seen[az] {
			bad("azs", "%q is there twice", az)
		}
		seen[az] = true
	}
	if _, err := logLevel(c.LogLevel); err != nil {
		bad("log_level", "%v", err)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		bad("log_format", "%q is neither text nor json", c.LogFormat)
	}
	if c.ShutdownTimeout < 0 {
		bad("shutdown_timeout", "%s is negative", c.ShutdownTimeout)
	}
	return errors.Join(errs...)
}

// policy is what is chosen of the roles.
func (c controllerConfig) policy() (policy.Policy, error) {
	return policy.ParseFailover(c.FailoverRole)
}

// storeSites is the zone or third site of each member of the store; nil: not known.
func (c controllerConfig) storeSites() []string {
	if c.EtcdDir != "" && c.Site != "" {
		return []string{c.Site}
	}
	return c.EtcdSites
}

// publicURL is where clients reach the API.
func (c controllerConfig) publicURL() string {
	if c.PublicURL != "" {
		return strings.TrimSuffix(c.PublicURL, "/")
	}
	scheme := "http"
	if c.TLSCert != "" {
		scheme = "https"
	}
	host, port, _ := net.SplitHostPort(c.Listen) // validated
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
