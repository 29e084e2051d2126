package torture

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/internal/cable"
)

var zones = []string{"az1", "az2"}

func otherZone(az string) string {
	if az == zones[0] {
		return zones[1]
	}
	return zones[0]
}

// state of a process as we made it.
type state int

const (
	running state = iota
	paused        // by SIGSTOP
	dead          // killed
)

// rig is the deployment with the means to break it. Every node's replication listener and its way
// to the store is behind a cable of its own, and every node has a boot id of its own.
type rig struct {
	child  *dev.Child
	layout dev.Layout
	nodes  []dev.Member
	c      *client.Client
	tell   *story

	mu    sync.Mutex // guards what follows; faults overlap
	links map[dev.Member]*cable.Cable
	store map[dev.Member]*cable.Cable
	state map[dev.Member]state
	life  int
	under map[string]int // faults under way, by the zone that cannot take over
	blows map[string]int // of these, all that ever began
}

// spaceBytes is what a disk may take on both sides, with recovery points, and some more.
const spaceBytes = 1 << 30

// build starts the deployment and puts the cables in.
func build(ctx context.Context, o Options, tell *story) (x *rig, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(o.Dir, &fs); err != nil {
		return nil, err
	}
	if need := int64(o.Groups*o.Disks) * spaceBytes; int64(fs.Bavail)*fs.Bsize < need {
		return nil, fmt.Errorf("%s has %d MiB free, and %d are needed", o.Dir, int64(fs.Bavail)*fs.Bsize>>20, need>>20)
	}
	x = &rig{
		tell: tell, links: map[dev.Member]*cable.Cable{}, store: map[dev.Member]*cable.Cable{}, state: map[dev.Member]state{},
		under: map[string]int{}, blows: map[string]int{},
	}
	x.child, err = dev.StartChild(ctx, o.Dir, dev.Options{AZs: zones, NodesPerAZ: o.NodesPerAZ}, func(line string) { tell.note("dev: %s", line) })
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.close())
		}
	}()
	x.layout = x.child.Layout
	spec, err := x.layout.Spec()
	if err != nil {
		return nil, err
	}
	x.nodes = spec.Members("")
	if x.c, err = client.Dial(ctx, client.Options{Cloud: "lockstep", CloudsFile: x.layout.CloudsFile(), UserAgent: "lockstep-torture"}); err != nil {
		return nil, err
	}
	return x, x.wire(ctx)
}

// wire restarts the nodes behind cables.
func (x *rig) wire(ctx context.Context) error {
	url, err := os.ReadFile(x.layout.StoreURLFile())
	if err != nil {
		return fmt.Errorf("find the store: %w", err)
	}
	etcd := strings.TrimPrefix(strings.TrimSpace(string(url)), "http://")
	if _, err := x.layout.End(ctx, x.nodes, syscall.SIGTERM, 20*time.Second); err != nil {
		return err
	}
	for _, m := range x.nodes {
		listen, err := freeAddr()
		if err != nil {
			return err
		}
		if x.links[m], err = cable.New(listen); err != nil {
			return err
		}
		if x.store[m], err = cable.New(etcd); err != nil {
			return err
		}
		if err := x.newBootID(m); err != nil {
			return err
		}
		err = x.layout.Configure(m, map[string]any{
			"replicate": listen, "advertise": x.links[m].Addr(), "boot_id_path": x.bootIDFile(m),
			"etcd_endpoints": []string{"http://" + x.store[m].Addr()},
		})
		if err != nil {
			return err
		}
	}
	if _, err := x.layout.Launch(x.nodes); err != nil {
		return err
	}
	return poll(ctx, time.Minute, "the nodes are alive", x.alive)
}

// freeAddr is an address of the loopback that nobody listens on.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

func (x *rig) bootIDFile(m dev.Member) string {
	return strings.TrimSuffix(x.layout.Config(m), ".yaml") + ".boot-id"
}

func (x *rig) newBootID(m dev.Member) error {
	x.life++
	return os.WriteFile(x.bootIDFile(m), fmt.Appendf(nil, "00000000-0000-4000-8000-%012d\n", x.life), 0o600)
}

// alive is nil once the store believes in all nodes.
func (x *rig) alive(ctx context.Context) error {
	list, err := x.c.Nodes(ctx)
	if err != nil {
		return err
	}
	up := map[string]bool{}
	for _, n := range list {
		up[n.ID] = n.Alive
	}
	for _, m := range x.nodes {
		if !up[m.NodeID()] {
			return fmt.Errorf("%s is not alive", m)
		}
	}
	return nil
}

// zone lists the nodes of a zone.
func (x *rig) zone(az string) []dev.Member {
	return slices.DeleteFunc(slices.Clone(x.nodes), func(m dev.Member) bool { return m.AZ != az })
}

// kill ends processes at once; with reboot they come back under another boot id.
func (x *rig) kill(reboot bool, members ...dev.Member) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, err := x.layout.End(context.Background(), members, syscall.SIGKILL, 20*time.Second)
	for _, m := range members {
		if reboot && x.state[m] != dead {
			err = errors.Join(err, x.newBootID(m))
		}
		x.state[m] = dead
	}
	return err
}

// start starts what was killed.
func (x *rig) start(members ...dev.Member) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	members = slices.DeleteFunc(slices.Clone(members), func(m dev.Member) bool { return x.state[m] != dead })
	_, err := x.layout.Launch(members)
	for _, m := range members {
		x.state[m] = running
	}
	return err
}

// pause stops processes with SIGSTOP.
func (x *rig) pause(members ...dev.Member) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for _, m := range members {
		if x.state[m] != running {
			continue
		}
		_, err := x.layout.Signal(m, syscall.SIGSTOP)
		errs = append(errs, err)
		x.state[m] = paused
	}
	return errors.Join(errs...)
}

// resume ends a pause.
func (x *rig) resume(members ...dev.Member) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for _, m := range members {
		if x.state[m] != paused {
			continue
		}
		_, err := x.layout.Signal(m, syscall.SIGCONT)
		errs = append(errs, err)
		x.state[m] = running
	}
	return errors.Join(errs...)
}

// hurt notes that a fault of zones begins (1) or ends (-1).
func (x *rig) hurt(zones []string, by int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, az := range zones {
		x.under[az] += by
		x.blows[az] += max(by, 0)
	}
}

// hurts tells whether a zone is hurt now, and how often it ever was.
func (x *rig) hurts(az string) (now bool, ever int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.under[az] > 0, x.blows[az]
}

// isolate cuts a zone off: its links to the other zone, both ways, and its way to the store.
func (x *rig) isolate(az string, cut bool) {
	for _, m := range x.nodes {
		x.links[m].Cut(cut, cut) // every link is between the zones
		if m.AZ == az {
			x.store[m].Cut(cut, cut)
		}
	}
}

// mend undoes everything that is broken. A process that ended although nobody killed it is told.
func (x *rig) mend() (died []dev.Member, err error) {
	for _, c := range slices.Concat(slices.Collect(maps.Values(x.links)), slices.Collect(maps.Values(x.store))) {
		c.Limit(0)
		c.Join()
	}
	all := append([]dev.Member{dev.Controller}, x.nodes...)
	err = x.resume(all...)
	x.mu.Lock()
	clear(x.under) // of an interrupted round
	x.mu.Unlock()
	for _, m := range all {
		x.mu.Lock()
		if x.state[m] != dead {
			pid, pidErr := x.layout.PID(m)
			err = errors.Join(err, pidErr)
			if pidErr == nil && pid == 0 {
				died = append(died, m)
			}
		}
		x.mu.Unlock()
	}
	return died, errors.Join(err, x.start(all...))
}

// close stops everything. What is stopped by a signal is let go first, so that it can end cleanly.
func (x *rig) close() error {
	err := x.resume(append([]dev.Member{dev.Controller}, x.nodes...)...)
	if x.child != nil {
		err = errors.Join(err, x.child.Stop())
	}
	for _, c := range x.links {
		c.Close()
	}
	for _, c := range x.store {
		c.Close()
	}
	return err
}

// poll asks every 20 ms until ask gives nil; within bounds it. The error says what was waited for,
// and the last answer.
func poll(ctx context.Context, within time.Duration, what string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %s: %w", within, what, last)
		case <-tick.C:
		}
	}
}
