package clients

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// volumes makes disks at the same time, each at the other controller than the one before, and
// returns their ids by name.
func (c *cluster) volumes(az map[string]string) map[string]string {
	c.t.Helper()
	var mu sync.Mutex // guards ids and errs
	ids, errs := map[string]string{}, []error{}
	var wg sync.WaitGroup
	i := 0
	for name, zone := range az {
		api := c.api[controllers[i%len(controllers)]]
		i++
		wg.Go(func() {
			v, err := api.CreateVolume(c.ctx, client.VolumeCreate{Name: &name, SizeGiB: 1, AvailabilityZone: zone})
			mu.Lock()
			defer mu.Unlock()
			ids[name], errs = v.ID, append(errs, err)
		})
	}
	wg.Wait()
	ok(c.t, errors.Join(errs...))
	for i, name := range slices.Sorted(maps.Keys(ids)) {
		settle(c.t, "volume "+name, []string{"creating"}, "available", c.volumeStatus(controllers[i%2], ids[name]))
	}
	return ids
}

// count is how many entries of a group's history begin so.
func (c *cluster) count(group, what string) int {
	c.t.Helper()
	list, err := c.api[c.leader()].History(c.ctx, group)
	ok(c.t, err)
	n, last := 0, uint64(0)
	for _, e := range list {
		if e.Epoch < last || e.Epoch == last && strings.HasPrefix(e.What, what) {
			c.t.Errorf("epoch %d twice, or after %d: %+v", e.Epoch, last, list)
		}
		last = e.Epoch
		if strings.HasPrefix(e.What, what) {
			n++
		}
	}
	return n
}

// activeGroup makes two disks, a pair and a group, each call at both controllers at once: one of
// them must be refused. The group is active in az1.
func (c *cluster) activeGroup() (group, pair string, disks map[string]string) {
	c.t.Helper()
	v := c.volumes(map[string]string{"prod": "az1", "dr": "az2"})
	disks = map[string]string{"az1": v["prod"], "az2": v["dr"]}
	var mu sync.Mutex // guards pair and group
	exactlyOne(c.t, "create pair", c.atOnce(func(api *client.Client) error {
		p, err := api.CreatePair(c.ctx, client.PairCreate{VolumeIDs: []string{v["prod"], v["dr"]}, PriorityStation: "az1"})
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			pair = p.ID
		}
		return err
	}), http.StatusBadRequest)
	settle(c.t, "pair", []string{"creating"}, "available", c.pairStatus("c1", pair))
	exactlyOne(c.t, "create group", c.atOnce(func(api *client.Client) error {
		g, err := api.CreateGroup(c.ctx, client.GroupCreate{PairIDs: []string{pair}, PriorityStation: "az1"})
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			group = g.ID
		}
		return err
	}), http.StatusBadRequest)
	settle(c.t, "group", []string{"creating/inactive/az1"}, "available/inactive/az1", c.state("c2", group))
	for _, err := range c.atOnce(func(api *client.Client) error { return api.Act(c.ctx, group, client.ActionSync) }) {
		ok(c.t, err)
	}
	settle(c.t, "sync", []string{"available/copying/az1"}, "available/active/az1", c.state("c1", group))
	return group, pair, disks
}

// TestTwoControllersAtOnce calls both at the same time: each thing is done once.
func TestTwoControllersAtOnce(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	want := map[string]string{}
	for i := range 16 {
		want[fmt.Sprintf("v%02d", i)] = fmt.Sprintf("az%d", i%2+1)
	}
	ids := c.volumes(want)
	for _, id := range controllers {
		list, err := c.api[id].Volumes(c.ctx, client.Filter{})
		ok(t, err)
		seen := map[string]bool{}
		for _, v := range list {
			if name := *v.Name; ids[name] != v.ID || seen[v.ID] || v.AvailabilityZone != want[name] {
				t.Errorf("%s lists %+v", id, v)
			}
			seen[v.ID] = true
		}
		if len(seen) != len(ids) {
			t.Errorf("%s lists %d volumes of %d", id, len(seen), len(ids))
		}
	}
	// Both delete all of them: one succeeds, the other may come while it is deleting, or too late.
	for _, id := range ids {
		for _, err := range c.atOnce(func(api *client.Client) error { return api.DeleteVolume(c.ctx, id) }) {
			var e *client.Error
			if err != nil && (!errors.As(err, &e) || e.Status != http.StatusBadRequest && e.Status != http.StatusNotFound) {
				t.Errorf("delete: %v", err)
			}
		}
		settle(t, "deleted volume", []string{"deleting"}, gone, c.volumeStatus("c1", id))
	}

	g, pair, _ := c.activeGroup()
	const rounds = 4
	zone := "az1"
	for range rounds {
		exactlyOne(t, "failover", c.atOnce(func(api *client.Client) error { return api.Act(c.ctx, g, client.ActionFailover) }), http.StatusConflict)
		settle(t, "failover", []string{"failovering/active/" + zone, "failovering/active-stopped/" + zone}, "failovered/active-stopped/"+opposite(zone), c.state("c2", g))
		zone = opposite(zone)
		exactlyOne(t, "reprotect", c.atOnce(func(api *client.Client) error { return api.Act(c.ctx, g, client.ActionReprotect) }), http.StatusConflict)
		settle(t, "reprotect", []string{"available/copying/" + zone}, "available/active/"+zone, c.state("c1", g))
	}
	if n := c.count(g, "failover from"); n != rounds {
		t.Errorf("%d failovers in the history, %d were asked for", n, rounds)
	}
	if n := c.count(g, "copying from"); n != rounds+1 {
		t.Errorf("%d synchronizations in the history, %d were asked for", n, rounds+1)
	}
	exactlyOne(t, "switchover", c.atOnce(func(api *client.Client) error { return api.Act(c.ctx, g, client.ActionReverse) }), http.StatusConflict)
	settle(t, "switchover", []string{"reversing/active/" + zone}, "available/active/"+opposite(zone), c.state("c2", g))

	// Stop is idempotent; both of two updates are taken one after the other, or one is refused.
	for _, err := range c.atOnce(func(api *client.Client) error { return api.Act(c.ctx, g, client.ActionStop) }) {
		ok(t, err)
	}
	for _, err := range c.atOnce(func(api *client.Client) error {
		_, err := api.UpdateGroup(c.ctx, g, client.GroupUpdate{Remove: []string{pair}})
		return err
	}) {
		var e *client.Error
		if err != nil && (!errors.As(err, &e) || e.Status != http.StatusBadRequest && e.Status != http.StatusConflict) {
			t.Errorf("update: %v", err)
		}
	}
	if n := c.count(g, "members changed"); n != 1 {
		t.Errorf("%d changes of members in the history", n)
	}
}

func opposite(az string) string {
	if az == "az1" {
		return "az2"
	}
	return "az1"
}

// TestLeaderKilledInMidOperation kills the leader twice in each operation, that either controller was
// asked for, and starts it again at once. The first time a node that the operation needs is frozen,
// so that it is under way for sure when the blow falls; the second time the blow falls at a random
// time after the call. Everything ends in the status that is documented for it, seen at the
// controller that lives, and is done once.
func TestLeaderKilledInMidOperation(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	g, pair, disks := c.activeGroup()
	zone := "az1"
	data := make([]byte, 1<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	c.nbd(disks[zone], func(ctx context.Context, d *nbdclient.Client) error { return d.WriteAt(ctx, data, 0, false) })

	size, failovers, switchovers := int64(1), 0, 0
	ops := []struct {
		name string
		call func(*client.Client) error
		// began is how the entry of the history begins that the call makes, ended how the state
		// does at the end.
		began string
		ended func() string
		// after waits for the end at the controller that lives.
		after func(api string)
	}{
		{"failover", func(api *client.Client) error { return api.Act(c.ctx, g, client.ActionFailover) }, "failover from", func() string { return "failovered/" }, func(api string) {
			settle(t, "failover", []string{"failovering/active/" + zone, "failovering/active-stopped/" + zone}, "failovered/active-stopped/"+opposite(zone), c.state(api, g))
			zone = opposite(zone)
			failovers++
		}},
		{"reprotect", func(api *client.Client) error { return api.Act(c.ctx, g, client.ActionReprotect) }, "copying from", func() string { return "available/active/" }, func(api string) {
			settle(t, "reprotect", []string{"available/copying/" + zone}, "available/active/"+zone, c.state(api, g))
		}},
		{"switchover", func(api *client.Client) error { return api.Act(c.ctx, g, client.ActionReverse) }, "switchover from", func() string { return "available/active/" + opposite(zone) }, func(api string) {
			settle(t, "switchover", []string{"reversing/active/" + zone}, "available/active/"+opposite(zone), c.state(api, g))
			zone = opposite(zone)
			switchovers++
		}},
		{"stop", func(api *client.Client) error { return api.Act(c.ctx, g, client.ActionStop) }, "stopping (", func() string { return "available/active-stopped/" }, func(api string) {
			settle(t, "stop", []string{"available/active/" + zone}, "available/active-stopped/"+zone, c.state(api, g))
		}},
		{"sync", func(api *client.Client) error { return api.Act(c.ctx, g, client.ActionSync) }, "copying from", func() string { return "available/active/" }, func(api string) {
			settle(t, "sync", []string{"available/copying/" + zone}, "available/active/"+zone, c.state(api, g))
		}},
		{"extend", func(api *client.Client) error {
			return api.ExtendPairs(c.ctx, g, []client.Growth{{PairID: pair, NewSizeGiB: size + 1}})
		}, "extending ", nil, func(api string) {
			size++
			eventually(t, patience, "both disks have grown", func() error {
				for _, id := range disks {
					v, err := c.api[api].Volume(c.ctx, id)
					if err == nil && v.SizeGiB != size {
						err = fmt.Errorf("%s has %d GiB", id, v.SizeGiB)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
			settle(t, "extend", nil, "available/active/"+zone, c.state(api, g))
		}},
	}
	kills, hits := 2*len(ops), 0
	for round := range kills {
		op, frozen := ops[round%len(ops)], round < len(ops)
		leader := c.leader()
		lives := otherThan(leader)
		c.answering()
		asked := []string{leader, lives}[(round+round/len(ops))%2]
		// under way: recorded, and not at its end.
		before := c.entries(lives, g, op.began)
		underWay := func() bool {
			if c.entries(lives, g, op.began) == before {
				return false
			}
			if op.ended == nil {
				return !c.grown(lives, disks, size+1)
			}
			return !strings.HasPrefix(must[string](t)(c.state(lives, g)()), op.ended())
		}
		needed := c.node[opposite(zone)]
		if op.name == "stop" {
			needed = c.node[zone] // alone has to confirm it
		}
		if frozen {
			needed.freeze()
		}
		answered := make(chan error, 1)
		called := time.Now()
		go func() { answered <- op.call(c.api[asked]) }() // answers within the client's time limit
		if frozen {
			eventually(t, patience, op.name+" is under way", func() error {
				if !underWay() {
					return errors.New("it is not")
				}
				return nil
			})
		} else {
			time.Sleep(mrand.N(40 * time.Millisecond)) // the one wait that is not for a condition: it decides where the blow falls
		}
		c.ctl[leader].kill()
		delay, hit := time.Since(called), underWay()
		c.ctl[leader].start()
		if hit {
			hits++
		}
		if frozen {
			if !hit {
				t.Errorf("%s was not under way at the kill", op.name)
			}
			needed.thaw()
		}
		err := <-answered
		t.Logf("%s, asked %s, killed %s after %s, under way %t: %v", op.name, asked, leader, delay, hit, err)
		if asked == lives && err != nil {
			t.Fatalf("%s was answered %v by the controller that lives", op.name, err)
		}
		if err != nil {
			if !errors.Is(err, client.ErrUnreachable) {
				t.Fatalf("%s was answered %v by a controller that was killed", op.name, err)
			}
			// Whether it was recorded is not known. Who asks again is told that it was, or it is done now.
			err = op.call(c.api[lives])
			if err != nil && !client.IsConflict(err) && !(op.name == "extend" && c.grown(lives, disks, size+1)) {
				t.Fatalf("%s again: %v", op.name, err)
			}
		}
		op.after(lives)
	}
	fmt.Printf("leader killed in mid-operation: kills=%d under way=%d\n", kills, hits)
	if hits < len(ops) {
		t.Errorf("only %d of %d kills fell into an operation", hits, kills)
	}
	c.answering()
	if s := must[string](t)(c.state(c.leader(), g)()); strings.HasPrefix(s, "failovered") {
		t.Fatalf("the rounds end with a group that is %s", s)
	}
	if n := c.count(g, "failover from"); n != failovers {
		t.Errorf("%d failovers in the history, %d were asked for", n, failovers)
	}
	if n := c.count(g, "switchover from"); n != switchovers {
		t.Errorf("%d switchovers in the history, %d were asked for", n, switchovers)
	}
	eventually(t, patience, "both controllers say the same", func() error {
		a := must[string](t)(c.state("c1", g)())
		b, err := c.state("c2", g)()
		if err == nil && a != b {
			err = fmt.Errorf("%s and %s", a, b)
		}
		return err
	})
	got := make([]byte, len(data))
	c.nbd(disks[zone], func(ctx context.Context, d *nbdclient.Client) error { return d.ReadAt(ctx, got, 0) })
	if !bytes.Equal(got, data) {
		t.Error("the disk does not hold what was written before the first kill")
	}
}

// entries is how many entries of a group's history begin so, as one controller tells it.
func (c *cluster) entries(api, group, what string) (n int) {
	c.t.Helper()
	for _, e := range must[[]client.HistoryEntry](c.t)(c.api[api].History(c.ctx, group)) {
		if strings.HasPrefix(e.What, what) {
			n++
		}
	}
	return n
}

// grown reports whether both disks have that size.
func (c *cluster) grown(api string, disks map[string]string, size int64) bool {
	c.t.Helper()
	for _, id := range disks {
		v, err := c.api[api].Volume(c.ctx, id)
		ok(c.t, err)
		if v.SizeGiB != size {
			return false
		}
	}
	return true
}

// nbd opens a disk where the API says.
func (c *cluster) nbd(volume string, use func(context.Context, *nbdclient.Client) error) {
	c.t.Helper()
	uri, err := c.api[c.leader()].ConnectionURI(c.ctx, volume)
	ok(c.t, err)
	onDisk(c.t, uri, use)
}

// TestCreationsWhileTheLeaderIsKilled makes and deletes disks and pairs while it is killed.
func TestCreationsWhileTheLeaderIsKilled(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	leader := c.leader()
	lives := otherThan(leader)
	type made struct {
		name, asked, id string
		err             error
	}
	const each = 12
	results := make(chan made, 2*each)
	for i := range 2 * each {
		name, asked := fmt.Sprintf("v%02d", i), controllers[i%2]
		go func() { // answers within the client's time limit
			v, err := c.api[asked].CreateVolume(c.ctx, client.VolumeCreate{Name: &name, SizeGiB: 1, AvailabilityZone: fmt.Sprintf("az%d", i/2%2+1)})
			results <- made{name, asked, v.ID, err}
		}()
	}
	time.Sleep(mrand.N(30 * time.Millisecond)) // decides where the blow falls
	c.ctl[leader].kill()
	c.ctl[leader].start()
	unknown := map[string]bool{}
	ids := map[string]string{}
	for range 2 * each {
		r := <-results
		switch {
		case r.err == nil:
			ids[r.name] = r.id
		case r.asked == leader && errors.Is(r.err, client.ErrUnreachable):
			unknown[r.name] = true
		default:
			t.Errorf("%s at %s (killed: %s): %v", r.name, r.asked, leader, r.err)
		}
	}
	t.Logf("%d answered, %d cut off", len(ids), len(unknown))
	for name, id := range ids {
		settle(t, "volume "+name, []string{"creating"}, "available", c.volumeStatus(lives, id))
	}
	list, err := c.api[lives].Volumes(c.ctx, client.Filter{})
	ok(t, err)
	found := map[string]int{}
	byZone := map[string][]string{}
	for _, v := range list {
		name := *v.Name
		found[name]++
		if ids[name] != v.ID && !unknown[name] || found[name] > 1 {
			t.Errorf("nobody asked for %+v, or only once", v)
		}
		settle(t, "volume "+name, []string{"creating"}, "available", c.volumeStatus(lives, v.ID))
		byZone[v.AvailabilityZone] = append(byZone[v.AvailabilityZone], v.ID)
	}
	for name := range ids {
		if found[name] != 1 {
			t.Errorf("%s was answered and is there %d times", name, found[name])
		}
	}

	// Pairs of them, at the controller that lives, over the next kill; then their end over another.
	c.answering()
	leader = c.leader()
	lives = otherThan(leader)
	var pairs []string
	for i := range min(len(byZone["az1"]), len(byZone["az2"]), 4) {
		p, err := c.api[lives].CreatePair(c.ctx, client.PairCreate{VolumeIDs: []string{byZone["az1"][i], byZone["az2"][i]}, PriorityStation: "az1"})
		ok(t, err)
		pairs = append(pairs, p.ID)
	}
	c.ctl[leader].kill()
	c.ctl[leader].start()
	for _, p := range pairs {
		settle(t, "pair", []string{"creating"}, "available", c.pairStatus(lives, p))
	}
	c.answering()
	leader = c.leader()
	lives = otherThan(leader)
	for _, p := range pairs {
		ok(t, c.api[lives].DeletePair(c.ctx, p))
	}
	c.ctl[leader].kill()
	c.ctl[leader].start()
	for _, p := range pairs {
		settle(t, "deleted pair", []string{"deleting"}, gone, c.pairStatus(lives, p))
	}
	for _, v := range list {
		ok(t, c.api[lives].DeleteVolume(c.ctx, v.ID))
	}
	for _, v := range list {
		settle(t, "deleted volume", []string{"available", "deleting"}, gone, c.volumeStatus(lives, v.ID))
	}
}
