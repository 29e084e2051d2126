package torture

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/dev"
	"github.com/lockstep-dr/lockstep/internal/cable"
	"github.com/lockstep-dr/lockstep/internal/history"
)

// stillRig is a rig without processes.
func stillRig(t *testing.T) *rig {
	t.Helper()
	layout, err := dev.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	x := &rig{
		layout: layout, nodes: dev.Spec{AZs: zones, NodesPerAZ: 2}.Members(""),
		links: map[dev.Member]*cable.Cable{}, store: map[dev.Member][]*cable.Cable{},
		state: map[dev.Member]state{}, under: map[string]int{}, blows: map[string]int{},
	}
	for _, m := range x.nodes {
		if err := os.MkdirAll(layout.Pool(m), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

func TestAPlanFollowsFromItsSeed(t *testing.T) {
	r := &run{rig: stillRig(t), groups: []*group{{}, {number: 1}}, report: newReport(Options{})}
	plan := func(seed uint64) string { return r.draw(rand.New(rand.NewPCG(seed, 1))).String() }
	all := ""
	for seed := range uint64(300) {
		p := plan(seed)
		if again := plan(seed); again != p {
			t.Fatalf("seed %d: %s; and then: %s", seed, p, again)
		}
		if seed > 0 && p == plan(seed-1) {
			t.Fatalf("seeds %d and %d have the same plan: %s", seed-1, seed, p)
		}
		all += p + "\n"
	}
	for _, want := range []string{
		"kill az1/node-2 (", "kill az1/node-1, new boot id", "kill az2/node-1 and az2/node-2 and store-2", "pause az1/node-1 (", "pause az1/node-1 and az1/node-2 and store-1",
		"cut the links to az2/node-1 (", "requests only", "answers only", "with a reset", "reset the links", "slow the links",
		"from the store", "isolate az1", "isolate az2", "pause controller", "kill controller", "pause store-3 (", "kill store-1 (", "pause store-3 and store-2", "kill store-1 and store-3",
		"fail over group 0", "fail over group 1", "switch over", "pause group", "synchronize",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no plan of 300 has %q", want)
		}
	}
}

// Every other round is random, the aimed plans take turns, and all of it follows from the seed.
func TestPlansTakeTurns(t *testing.T) {
	count, orders := map[string]int{}, map[string]bool{}
	const cycles = 5
	for seed := range uint64(10) {
		order := ""
		for n := 1; n <= 2*cycles*len(aimedPlans); n++ {
			name := planOf(seed, n, nil)
			if (n%2 == 0) != (name == RandomPlan) {
				t.Fatalf("round %d is %s", n, name)
			}
			if again := planOf(seed, n, nil); again != name {
				t.Fatalf("seed %d, round %d: %s, and then %s", seed, n, name, again)
			}
			count[name]++
			order += name + " "
		}
		orders[order] = true
	}
	for _, p := range aimedPlans {
		if count[p.name] != 10*cycles {
			t.Errorf("%s had %d turns instead of %d", p.name, count[p.name], 10*cycles)
		}
	}
	if len(orders) < 5 {
		t.Errorf("10 seeds have %d orders", len(orders))
	}
	for n := 1; n < 20; n++ {
		if have := planOf(1, n, []string{"report"}); have != "report" {
			t.Errorf("only one plan is wanted, and round %d is %s", n, have)
		}
		if have := planOf(1, n, []string{RandomPlan}); have != RandomPlan {
			t.Errorf("only random rounds are wanted, and round %d is %s", n, have)
		}
	}
	if err := checkPlans([]string{"report", "no such"}); !errors.Is(err, ErrUsage) {
		t.Errorf("a plan that is none: %v", err)
	}
}

func TestAimedPlansFollowFromTheirSeed(t *testing.T) {
	r := &run{rig: stillRig(t), groups: []*group{{}, {number: 1}}, report: newReport(Options{})}
	for _, p := range aimedPlans {
		texts := map[string]bool{}
		for seed := range uint64(30) {
			draw := func() string { return r.drawAimed(p.name, rand.New(rand.NewPCG(seed, 1))).String() }
			if a, b := draw(), draw(); a != b {
				t.Errorf("%s: %s, and then %s", p.name, a, b)
			}
			texts[draw()] = true
		}
		if len(texts) < 2 {
			t.Errorf("%s is always the same: %v", p.name, texts)
		}
	}
}

// A window that was missed is counted and no failure; anything else that goes wrong is one.
func TestAMissedWindowIsNoFailure(t *testing.T) {
	tell, err := newStory(filepath.Join(t.TempDir(), "s"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	r := &run{tell: tell, report: newReport(Options{})}
	for _, tc := range []struct {
		err          error
		missed, good bool
	}{{nil, false, true}, {missed(errors.New("it tripped")), true, true}, {errors.New("undocumented"), false, false}} {
		p := &plan{name: "report", aimed: func(context.Context) error { return tc.err }}
		r.carryOut(t.Context(), t.Context(), p)
		if p.missed != tc.missed || (p.judge() == nil) != tc.good {
			t.Errorf("%v: missed %t, judged %v", tc.err, p.missed, p.judge())
		}
		r.report.round(p)
	}
	if c := r.report.Plans["report"]; c.Rounds != 3 || c.Reached != 2 {
		t.Errorf("counted %+v", c)
	}
}

func TestTornBlocks(t *testing.T) {
	b := make([]byte, 4*tornBlock)
	for i := range b {
		b[i] = byte(1 + i/tornBlock) // blocks of several writes are no torn ones
	}
	if at := tornAt(b); at >= 0 {
		t.Errorf("byte %d of whole blocks is torn", at)
	}
	for _, at := range []int{0, 1, tornBlock - 1, tornBlock + 17, len(b) - 1} {
		was := b[at]
		b[at] = 200
		if tornAt(b) < 0 {
			t.Errorf("a torn byte %d was not found", at)
		}
		b[at] = was
	}
}

// A step that fails is a failure of the round; the end of the context leaves out what follows.
func TestCarryOut(t *testing.T) {
	tell, err := newStory(filepath.Join(t.TempDir(), "s"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	r := &run{tell: tell}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	done := map[string]bool{}
	note := func(what string) { mu.Lock(); done[what] = true; mu.Unlock() }
	p := &plan{steps: []step{
		{0, func(context.Context) error { note("first"); return errors.New("no such process") }},
		{20 * time.Millisecond, func(context.Context) error { note("second"); cancel(); return nil }},
		{time.Hour, func(context.Context) error { note("third"); return nil }},
	}}
	r.carryOut(ctx, t.Context(), p)
	if !done["first"] || !done["second"] || done["third"] {
		t.Errorf("done: %v", done)
	}
	if f := p.judge(); f == nil || f.Kind != KindWrong || !strings.Contains(f.Error(), "no such process") {
		t.Errorf("judged %v", f)
	}
}

func TestCompareFindsEveryByte(t *testing.T) {
	r := &run{rig: stillRig(t)}
	d := &disk{volume: map[string]string{}, node: map[string]dev.Member{}}
	files := map[string]*os.File{}
	for _, az := range zones {
		m := dev.Member{AZ: az, N: 1}
		d.volume[az], d.node[az] = "vol-"+az, m
		f, err := os.Create(filepath.Join(r.rig.layout.Pool(m), "vol-"+az+".raw"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if err := f.Truncate(sizeGiB << 30); err != nil {
			t.Fatal(err)
		}
		files[az] = f
	}
	put := func(az string, at int64, b ...byte) {
		t.Helper()
		if _, err := files[az].WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	const middle, last = 300<<20 + 17, sizeGiB<<30 - 1
	put("az1", middle, 1, 2, 3)
	put("az2", middle, 1, 2, 3)
	put("az1", 5<<20, 0, 0) // zeroes are equal to a hole
	if n, err := r.compare(d); err != nil || n == 0 || n > 16<<20 {
		t.Fatalf("equal sides: %d bytes, %v", n, err)
	}
	for _, at := range []int64{0, middle + 1, last} {
		was := make([]byte, 1)
		if _, err := files["az2"].ReadAt(was, at); err != nil {
			t.Fatal(err)
		}
		put("az2", at, was[0]^0x80)
		if _, err := r.compare(d); err == nil {
			t.Errorf("a flipped bit of byte %d was not found", at)
		}
		put("az2", at, was[0])
	}
}

// What the data show counts more than what did not end, and the first of two counts.
func TestTheFailureThatCounts(t *testing.T) {
	a, b, c := lost(errors.New("a")), stuck(errors.New("b")), wrong(errors.New("c"))
	for _, tc := range []struct{ first, second, want *Failure }{
		{nil, nil, nil}, {a, nil, a}, {nil, b, b}, {b, a, a}, {a, b, a}, {b, c, c}, {a, c, a},
	} {
		if have := earlier(tc.first, tc.second); have != tc.want {
			t.Errorf("of %v and %v: %v", tc.first, tc.second, have)
		}
	}
	if stuck(nil) != nil || lostOrStuck(errors.New("x")).Kind != KindStuck || lostOrStuck(&history.ImageError{}).Kind != KindLost {
		t.Error("a kind is wrong")
	}
}
