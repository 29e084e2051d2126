package torture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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
	"github.com/lockstep-dr/lockstep/store/etcdstore"
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
	etcd   []*memberProcess // of dev.Member{storeZone, 1} and so on
	c      *client.Client
	direct *etcdstore.Store // the store as such, past API and cables
	tell   *story

	mu    sync.Mutex // guards what follows; faults overlap
	links map[dev.Member]*cable.Cable
	store map[dev.Member][]*cable.Cable // from that node to each member of the store
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
		tell: tell, links: map[dev.Member]*cable.Cable{}, store: map[dev.Member][]*cable.Cable{}, state: map[dev.Member]state{},
		under: map[string]int{}, blows: map[string]int{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.close())
		}
	}()
	if x.etcd, err = makeStore(o.Dir); err != nil {
		return nil, err
	}
	options := dev.Options{AZs: zones, NodesPerAZ: o.NodesPerAZ}
	for _, p := range x.etcd {
		if err := p.start(); err != nil {
			return nil, err
		}
		options.Etcd = append(options.Etcd, "http://"+p.client)
	}
	if x.child, err = dev.StartChild(ctx, o.Dir, options, func(line string) { tell.note("dev: %s", line) }); err != nil {
		return nil, err
	}
	x.layout = x.child.Layout
	spec, err := x.layout.Spec()
	if err != nil {
		return nil, err
	}
	x.nodes = spec.Members("")
	if x.c, err = client.Dial(ctx, client.Options{Cloud: "lockstep", CloudsFile: x.layout.CloudsFile(), UserAgent: "lockstep-torture"}); err != nil {
		return nil, err
	}
	quiet := slog.New(slog.DiscardHandler) // it is broken on purpose
	if x.direct, err = etcdstore.Open(ctx, etcdstore.Config{Endpoints: options.Etcd, Logger: quiet}); err != nil {
		return nil, err
	}
	return x, x.wire(ctx)
}

// wire restarts the nodes behind cables.
func (x *rig) wire(ctx context.Context) error {
	if _, err := x.layout.End(ctx, x.nodes, syscall.SIGTERM, 20*time.Second); err != nil {
		return err
	}
	for _, m := range x.nodes {
		listen, err := dev.FreePort("127.0.0.1")
		if err != nil {
			return err
		}
		if x.links[m], err = cable.New(listen); err != nil {
			return err
		}
		var endpoints []string
		for _, p := range x.etcd {
			c, err := cable.New(p.client)
			if err != nil {
				return err
			}
			x.store[m] = append(x.store[m], c)
			endpoints = append(endpoints, "http://"+c.Addr())
		}
		if err := x.newBootID(m); err != nil {
			return err
		}
		err = x.layout.Configure(m, map[string]any{
			"replicate": listen, "advertise": x.links[m].Addr(), "boot_id_path": x.bootIDFile(m),
			"etcd_endpoints": endpoints,
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

// site lists what stands in a zone: its nodes and the store's member there.
func (x *rig) site(az string) []dev.Member {
	return append(slices.DeleteFunc(slices.Clone(x.nodes), func(m dev.Member) bool { return m.AZ != az }), storeOf(az))
}

// kill ends processes at once; with reboot they come back under another boot id.
func (x *rig) kill(reboot bool, members ...dev.Member) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var err error
	for _, m := range members {
		if isStore(m) {
			err = errors.Join(err, x.etcd[m.N-1].signal(syscall.SIGKILL))
		}
	}
	_, endErr := x.layout.End(context.Background(), slices.DeleteFunc(slices.Clone(members), isStore), syscall.SIGKILL, 20*time.Second)
	err = errors.Join(err, endErr)
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
	var err error
	for _, m := range members {
		if isStore(m) {
			err = errors.Join(err, x.etcd[m.N-1].start())
		}
		x.state[m] = running
	}
	_, launchErr := x.layout.Launch(slices.DeleteFunc(members, isStore))
	return errors.Join(err, launchErr)
}

// signal sends a signal that does not end a process.
func (x *rig) signal(m dev.Member, s syscall.Signal) error {
	if isStore(m) {
		return x.etcd[m.N-1].signal(s)
	}
	_, err := x.layout.Signal(m, s)
	return err
}

// runs asks whether a process is there.
func (x *rig) runs(m dev.Member) (bool, error) {
	if isStore(m) {
		return x.etcd[m.N-1].running(), nil
	}
	pid, err := x.layout.PID(m)
	return pid != 0, err
}

func (x *rig) log(m dev.Member) string {
	if isStore(m) {
		return x.etcd[m.N-1].log
	}
	return x.layout.Log(m)
}

// all lists every process: the store, the controller, the nodes.
func (x *rig) all() []dev.Member {
	var list []dev.Member
	for i := range x.etcd {
		list = append(list, dev.Member{AZ: storeZone, N: i + 1})
	}
	return append(append(list, dev.Controller), x.nodes...)
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
		errs = append(errs, x.signal(m, syscall.SIGSTOP))
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
		errs = append(errs, x.signal(m, syscall.SIGCONT))
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

// cutStore cuts a node from the store, or joins it.
func (x *rig) cutStore(m dev.Member, cut bool) {
	for _, c := range x.store[m] {
		c.Cut(cut, cut)
	}
}

// isolate cuts a zone off: its links to the other zone, both ways, and its way to the store. The
// store's member there is stopped, which for the others is the same.
func (x *rig) isolate(az string, cut bool) error {
	for _, m := range x.nodes {
		x.links[m].Cut(cut, cut) // every link is between the zones
		if m.AZ == az {
			x.cutStore(m, cut)
		}
	}
	if cut {
		return x.pause(storeOf(az))
	}
	return x.resume(storeOf(az))
}

// mend undoes everything that is broken. A process that ended although nobody killed it is told.
func (x *rig) mend() (died []dev.Member, err error) {
	for _, c := range x.cables() {
		c.Limit(0)
		c.Deliver()
		c.Join()
	}
	all := x.all()
	err = x.resume(all...)
	x.mu.Lock()
	clear(x.under) // of an interrupted round
	x.mu.Unlock()
	for _, m := range all {
		x.mu.Lock()
		if x.state[m] != dead {
			runs, runsErr := x.runs(m)
			err = errors.Join(err, runsErr)
			if runsErr == nil && !runs {
				died = append(died, m)
			}
		}
		x.mu.Unlock()
	}
	return died, errors.Join(err, x.start(all...))
}

// close stops everything. What is stopped by a signal is let go first, so that it can end cleanly.
func (x *rig) close() error {
	err := x.resume(x.all()...)
	if x.direct != nil {
		err = errors.Join(err, x.direct.Close())
	}
	if x.child != nil {
		err = errors.Join(err, x.child.Stop())
	}
	for _, p := range x.etcd {
		// Nothing of it is kept, so it need not end cleanly; without a quorum it could not.
		err = errors.Join(err, p.signal(syscall.SIGKILL))
	}
	for _, c := range x.cables() {
		c.Close()
	}
	return err
}

func (x *rig) cables() []*cable.Cable {
	return slices.Concat(append(slices.Collect(maps.Values(x.store)), slices.Collect(maps.Values(x.links)))...)
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
