// Package dev runs a whole deployment on one machine: the controller and every node as a process
// of its own, so that a single one, or a whole availability zone, can be killed. It starts, finds
// and ends processes; it never restarts one by itself, and never signals a process that it has not
// verified to be a part of the same directory.
//
// The directory:
//
//	dev.lock                 held by the supervisor; two on one directory refuse
//	change.lock              held while a process is started or everything is stopped
//	dev.json                 Spec: zones, ports, ids; written at the first start
//	admin-password           0600
//	openrc, clouds.yaml      0600, credentials for clients
//	controller.{yaml,log,pid}
//	etcd/                    the embedded store
//	<az>/node-<n>.{yaml,log,pid,sock}
//	<az>/pool-<n>/           the volumes
package dev

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Spec is what a directory is, for ever; only nodes may be added.
type Spec struct {
	Region     string   `json:"region"`
	AZs        []string `json:"azs"`
	NodesPerAZ int      `json:"nodes_per_az"`
	Listen     string   `json:"listen"` // host:port of the API
	// Etcd are the URLs of an etcd cluster that somebody else runs; none: the store is a member
	// embedded in the controller.
	Etcd []string `json:"etcd,omitempty"`
}

// Layout names the files of a directory.
type Layout struct {
	Dir string // absolute
}

// ErrRefused means that the directory is in a condition that does not allow what was asked for.
var ErrRefused = errors.New("refused")

// ErrUsage means that what was asked for can be of no directory.
var ErrUsage = errors.New("usage")

var azName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Member is one process of the deployment: the controller, or a node if N > 0.
type Member struct {
	AZ string
	N  int // 1 and up; 0: the controller
}

// Controller is the member that is no node.
var Controller = Member{}

// IsNode reports whether m is a node.
func (m Member) IsNode() bool { return m.N > 0 }

func (m Member) String() string {
	if !m.IsNode() {
		return "controller"
	}
	return fmt.Sprintf("%s/node-%d", m.AZ, m.N)
}

// NodeID is the node's name in the cluster.
func (m Member) NodeID() string { return fmt.Sprintf("%s-node-%d", m.AZ, m.N) }

// Members lists the nodes of one zone, or of all for "".
func (s Spec) Members(az string) []Member {
	var all []Member
	for _, z := range s.AZs {
		if az != "" && z != az {
			continue
		}
		for n := 1; n <= s.NodesPerAZ; n++ {
			all = append(all, Member{z, n})
		}
	}
	return all
}

// Open makes dir absolute; it need not exist.
func Open(dir string) (Layout, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Layout{}, fmt.Errorf("directory %q: %w", dir, err)
	}
	if strings.ContainsAny(abs, "\n\x00") {
		return Layout{}, fmt.Errorf("directory %q: a line break in it", dir)
	}
	return Layout{abs}, nil
}

func (l Layout) path(parts ...string) string {
	return filepath.Join(append([]string{l.Dir}, parts...)...)
}

// file is a member's file with that extension.
func (l Layout) file(m Member, ext string) string {
	if !m.IsNode() {
		return l.path("controller" + ext)
	}
	return l.path(m.AZ, "node-"+strconv.Itoa(m.N)+ext)
}

// Config is a member's configuration, written by the supervisor.
func (l Layout) Config(m Member) string { return l.file(m, ".yaml") }

// Log is the file a member writes its log to.
func (l Layout) Log(m Member) string { return l.file(m, ".log") }

// PIDFile holds a member's process id.
func (l Layout) PIDFile(m Member) string { return l.file(m, ".pid") }

// Pool is the directory of a node's volumes.
func (l Layout) Pool(m Member) string { return l.path(m.AZ, "pool-"+strconv.Itoa(m.N)) }

// CloudsFile holds the credentials for clients.
func (l Layout) CloudsFile() string { return l.path("clouds.yaml") }

// OpenRC is the file to source in a shell.
func (l Layout) OpenRC() string { return l.path("openrc") }

func (l Layout) passwordFile() string { return l.path("admin-password") }

// Spec reads what the directory is; fs.ErrNotExist means that nothing was started there yet.
func (l Layout) Spec() (Spec, error) {
	var s Spec
	data, err := os.ReadFile(l.path("dev.json"))
	if err != nil {
		return s, fmt.Errorf("read what %s is: %w", l.Dir, err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("read %s: %w", l.path("dev.json"), err)
	}
	return s, nil
}

// Options are what the command line says; zero values mean "as it was", or the default.
type Options struct {
	Region     string
	AZs        []string
	NodesPerAZ int
	Listen     string
	Etcd       []string
	Binary     string // that StartChild runs; default: this one
}

// defaults of a new directory.
const (
	defaultRegion = "region-1"
	defaultListen = "127.0.0.1:8776"
	nodesMax      = 64
)

// settle makes the spec of this start: what the directory was, with what may change. A listen
// port of 0 is replaced by a free one.
func (l Layout) settle(o Options) (Spec, error) {
	s, err := l.Spec()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s = Spec{Region: defaultRegion, AZs: []string{"az1", "az2"}, NodesPerAZ: 1, Listen: defaultListen}
		if o.Region != "" {
			s.Region = o.Region
		}
		if len(o.AZs) > 0 {
			s.AZs = o.AZs
		}
		s.Etcd = o.Etcd
	case err != nil:
		return s, err
	default:
		if o.Region != "" && o.Region != s.Region {
			return s, fmt.Errorf("%w: %s was made with region %s", ErrRefused, l.Dir, s.Region)
		}
		if len(o.AZs) > 0 && !slices.Equal(o.AZs, s.AZs) {
			return s, fmt.Errorf("%w: %s was made with the zones %s", ErrRefused, l.Dir, strings.Join(s.AZs, ", "))
		}
		if len(o.Etcd) > 0 && !slices.Equal(o.Etcd, s.Etcd) {
			return s, fmt.Errorf("%w: %s was made with another store", ErrRefused, l.Dir)
		}
		if o.NodesPerAZ != 0 && o.NodesPerAZ < s.NodesPerAZ {
			return s, fmt.Errorf("%w: %s has %d nodes in a zone already", ErrRefused, l.Dir, s.NodesPerAZ)
		}
	}
	if o.NodesPerAZ != 0 {
		s.NodesPerAZ = o.NodesPerAZ
	}
	if o.Listen != "" {
		host, port, err := net.SplitHostPort(o.Listen)
		if err != nil {
			return s, fmt.Errorf("%w: listen address: %w", ErrUsage, err)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil {
			return s, fmt.Errorf("%w: listen address: port %q is no number up to 65535", ErrUsage, port)
		} else if n != 0 {
			s.Listen = o.Listen
		} else if s.Listen == "" || s.Listen == defaultListen {
			if s.Listen, err = FreePort(host); err != nil {
				return s, err
			}
		}
	}
	return s, s.check()
}

func (s Spec) check() error {
	if len(s.AZs) == 0 {
		return fmt.Errorf("%w: at least one zone is needed", ErrUsage)
	}
	for i, az := range s.AZs {
		if !azName.MatchString(az) || az == "etcd" || strings.HasSuffix(az, ".lock") {
			return fmt.Errorf("%w: zone name %q: letters, digits, dots, dashes and underscores only, at most 63, and not \"etcd\"", ErrUsage, az)
		}
		if slices.Contains(s.AZs[:i], az) {
			return fmt.Errorf("%w: zone %q is there twice", ErrUsage, az)
		}
	}
	if s.NodesPerAZ < 1 || s.NodesPerAZ > nodesMax {
		return fmt.Errorf("%w: %d nodes in a zone: between 1 and %d are possible", ErrUsage, s.NodesPerAZ, nodesMax)
	}
	return nil
}

// FreePort finds a port that nobody listens on. It is remembered for the next starts, so it is
// taken from below the range from which Linux takes the ports of outgoing connections: none of
// those can sit on it then.
func FreePort(host string) (string, error) {
	const low, high, tries = 20000, 32000, 100
	var err error
	for range tries {
		addr := net.JoinHostPort(host, strconv.Itoa(low+mathrand.IntN(high-low)))
		var ln net.Listener
		if ln, err = net.Listen("tcp", addr); err == nil {
			return addr, ln.Close()
		}
	}
	return "", fmt.Errorf("find a free port at %s: %w", host, err)
}

// prepare makes the directories, the password and the controller's configuration.
func (l Layout) prepare(s Spec) error {
	for _, az := range s.AZs {
		if err := os.MkdirAll(l.path(az), 0o700); err != nil {
			return fmt.Errorf("make the directory of zone %s: %w", az, err)
		}
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(l.path("dev.json"), append(data, '\n')); err != nil {
		return err
	}
	if _, err := l.password(); err != nil {
		return err
	}
	return writeFile(l.Config(Controller), l.controllerConfig(s))
}

// prepareNodes makes the nodes' pools and configurations. The store's address is known once the
// controller has started it.
func (l Layout) prepareNodes(s Spec) error {
	etcd := s.Etcd
	if len(etcd) == 0 {
		url, err := os.ReadFile(l.path("etcd", "client-url"))
		if err != nil {
			return fmt.Errorf("find the store: %w", err)
		}
		etcd = []string{strings.TrimSpace(string(url))}
	}
	for _, m := range s.Members("") {
		if err := os.MkdirAll(l.Pool(m), 0o700); err != nil {
			return fmt.Errorf("make the pool of %s: %w", m, err)
		}
		socket, err := l.Socket(m)
		if err != nil {
			return err
		}
		if err := writeFile(l.Config(m), l.nodeConfig(m, socket, etcd)); err != nil {
			return err
		}
	}
	return nil
}

// password reads the administrator's password, making it at the first start.
func (l Layout) password() (string, error) {
	data, err := os.ReadFile(l.passwordFile())
	if errors.Is(err, fs.ErrNotExist) {
		raw := make([]byte, 24)
		_, _ = rand.Read(raw) // never fails
		data = []byte(base64.RawURLEncoding.EncodeToString(raw) + "\n")
		err = writeFile(l.passwordFile(), data)
	}
	if err != nil {
		return "", fmt.Errorf("password of the administrator: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

func (l Layout) controllerConfig(s Spec) []byte {
	store := []any{"site", "this-machine", "etcd_dir", l.path("etcd")}
	if len(s.Etcd) > 0 {
		store = []any{"etcd_endpoints", s.Etcd}
	}
	return yamlLines(append(store,
		"id", "controller",
		"listen", s.Listen,
		"region", s.Region,
		"azs", s.AZs,
		"admin_password_file", l.passwordFile(),
		"pid_file", l.PIDFile(Controller),
	)...)
}

func (l Layout) nodeConfig(m Member, socket string, etcd []string) []byte {
	return yamlLines(
		"id", m.NodeID(),
		"az", m.AZ,
		"pool", l.Pool(m),
		"replicate", "127.0.0.1:0",
		"nbd_socket", socket,
		"pid_file", l.PIDFile(m),
		"etcd_endpoints", etcd,
	)
}

// RawFile finds a volume's raw file in a node's pool: the one of that size with the volume's id in
// its name.
func (l Layout) RawFile(m Member, volume string, size int64) (string, error) {
	pool := l.Pool(m)
	var found []string
	err := filepath.WalkDir(pool, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(path, volume) {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() == size {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("look for volume %s in %s: %w", volume, pool, err)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files of %d bytes for volume %s in %s: %v", len(found), size, volume, pool, found)
	}
	return found[0], nil
}

// Configure changes settings of a member, which count from its next start, until the next
// `lockstep dev` on the directory writes them anew.
func (l Layout) Configure(m Member, settings map[string]any) error {
	data, err := os.ReadFile(l.Config(m))
	if err != nil {
		return fmt.Errorf("configuration of %s: %w", m, err)
	}
	var kept []string
	for line := range strings.Lines(string(data)) {
		key, _, _ := strings.Cut(line, ":")
		if _, replaced := settings[key]; !replaced {
			kept = append(kept, line)
		}
	}
	var pairs []any
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		pairs = append(pairs, key, settings[key])
	}
	return writeFile(l.Config(m), append([]byte(strings.Join(kept, "")), yamlLines(pairs...)...))
}

// yamlLines writes key and value pairs; JSON's strings and lists are YAML's, too.
func yamlLines(pairs ...any) []byte {
	var b strings.Builder
	b.WriteString("# Written by `lockstep dev` at every start.\n")
	for i := 0; i < len(pairs); i += 2 {
		value, err := json.Marshal(pairs[i+1])
		if err != nil {
			panic(err) // strings and lists of strings only
		}
		fmt.Fprintf(&b, "%s: %s\n", pairs[i], value)
	}
	return []byte(b.String())
}

// sunPathMax is what a Unix socket's address holds besides its closing zero byte.
const sunPathMax = 107

// Socket is the path of a node's NBD socket. Where the directory's own path is too long for a
// socket's address it goes through a short symbolic link in the directory for temporary files.
func (l Layout) Socket(m Member) (string, error) {
	direct := l.file(m, ".sock")
	if len(direct) <= sunPathMax {
		return direct, nil
	}
	sum := sha256.Sum256([]byte(l.Dir))
	link := filepath.Join(os.TempDir(), "lockstep-"+hex.EncodeToString(sum[:6]))
	short := filepath.Join(link, m.AZ, filepath.Base(direct))
	if len(short) > sunPathMax {
		return "", fmt.Errorf("socket path %s has %d bytes, and %d at most are possible: use a shorter directory or TMPDIR, or a shorter zone name", short, len(short), sunPathMax)
	}
	if err := os.Symlink(l.Dir, link); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("shorten the socket path %s: %w", direct, err)
	}
	// The name is predictable and the directory may be everybody's: only a link that leads to
	// our directory is good.
	if to, err := os.Readlink(link); err != nil || to != l.Dir {
		return "", fmt.Errorf("shorten the socket path %s: %s is there and does not lead to %s", direct, link, l.Dir)
	}
	return short, nil
}

// writeCredentials writes openrc and clouds.yaml. The scope is the project's id; a domain scope
// beside it would be refused by clients.
func (l Layout) writeCredentials(s Spec, c Credentials) error {
	vars := [][2]string{
		{"OS_AUTH_URL", c.AuthURL},
		{"OS_USERNAME", c.Username},
		{"OS_PASSWORD", c.Password},
		{"OS_PROJECT_NAME", c.ProjectName},
		{"OS_PROJECT_ID", c.ProjectID},
		{"OS_USER_DOMAIN_NAME", c.Domain},
		{"OS_PROJECT_DOMAIN_NAME", c.Domain},
		{"OS_REGION_NAME", s.Region},
		{"OS_IDENTITY_API_VERSION", "3"},
	}
	var rc strings.Builder
	rc.WriteString("# source this file\n")
	for _, v := range vars {
		fmt.Fprintf(&rc, "export %s=%s\n", v[0], shellQuote(v[1]))
	}
	if err := writeFile(l.OpenRC(), []byte(rc.String())); err != nil {
		return err
	}
	quote := func(s string) string { b, _ := json.Marshal(s); return string(b) } // a string cannot fail
	yaml := fmt.Sprintf(`clouds:
  lockstep:
    auth:
      auth_url: %s
      username: %s
      password: %s
      project_name: %s
      project_id: %s
      user_domain_name: %s
      project_domain_name: %s
    region_name: %s
    identity_api_version: 3
`, quote(c.AuthURL), quote(c.Username), quote(c.Password), quote(c.ProjectName), quote(c.ProjectID),
		quote(c.Domain), quote(c.Domain), quote(s.Region))
	return writeFile(l.CloudsFile(), []byte(yaml))
}

// Credentials are what clients need to log in.
type Credentials struct {
	AuthURL, Username, Password, ProjectName, ProjectID, Domain string
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// writeFile replaces a file as a whole, readable by its owner only.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
