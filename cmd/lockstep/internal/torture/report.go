package torture

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-dr/lockstep/internal/history"
)

// Kinds of a failure, in the words of the verdict.
const (
	NothingLost = "nothing lost"
	KindLost    = "LOST"  // data: a write, an order, a stale read, or sides that differ
	KindStuck   = "STUCK" // something did not end
	KindWrong   = "WRONG" // an undocumented status or answer, a process that ended by itself
)

// Failure is why a round failed.
type Failure struct {
	Kind string
	err  error
}

func (f *Failure) Error() string { return f.Kind + ": " + f.err.Error() }

func lost(err error) *Failure  { return &Failure{KindLost, err} }
func wrong(err error) *Failure { return &Failure{KindWrong, err} }

func stuck(err error) *Failure {
	if err == nil {
		return nil
	}
	return &Failure{KindStuck, err}
}

// lostOrStuck tells what an image lacks from a disk that does not answer.
func lostOrStuck(err error) *Failure {
	var image *history.ImageError
	if errors.As(err, &image) {
		return lost(err)
	}
	return stuck(err)
}

// Report is what a run found and did. Times are milliseconds.
type Report struct {
	Verdict     string   `json:"verdict"` // NothingLost, or a kind with its reason
	Seed        uint64   `json:"seed"`
	Seconds     float64  `json:"seconds"`
	Rounds      int      `json:"rounds"`
	Interrupted bool     `json:"interrupted"`
	Directory   string   `json:"directory,omitempty"` // kept
	Story       []string `json:"story,omitempty"`     // of the round that failed
	Groups      int      `json:"groups"`
	Disks       int      `json:"disks"` // of each group
	NodesPerAZ  int      `json:"nodes_per_az"`

	Choice []string `json:"plan_choice,omitempty"` // the plans that were asked for; empty: all
	// Plans tells how many rounds there were of each plan, and how many of these came into the window
	// that they were aimed at.
	Plans  map[string]PlanCount      `json:"plans"`
	Faults map[string]int            `json:"faults"` // by kind
	Calls  map[string]map[string]int `json:"calls"`  // by action: done, refused, unanswered

	ChainWrites     uint64         `json:"chain_writes"` // acknowledged, in chains
	Registers       history.Counts `json:"registers"`
	RequestsJudged  int            `json:"requests_judged"`
	ImagesJudged    int64          `json:"images_judged"`
	HotReads        int64          `json:"hot_reads"`      // of a range that is written at the same time
	BytesCompared   int64          `json:"bytes_compared"` // of each side
	LongestWriteMS  int64          `json:"longest_write_ms"`
	Failovers       int            `json:"failovers"` // timed, with nothing hurt but the old primary
	FailoverWorstMS int64          `json:"failover_worst_ms"`
	FailoverMedMS   int64          `json:"failover_median_ms"`
	// Failovers that went on while the new primary, the controller or the store were hurt, too.
	FailoversHurt     int   `json:"failovers_under_more_faults"`
	FailoverHurtWorst int64 `json:"failover_worst_under_more_faults_ms"`

	*counters
}

// PlanCount counts the rounds of one plan.
type PlanCount struct {
	Rounds  int `json:"rounds"`
	Reached int `json:"reached"` // all of them at random ones
}

// counters are filled while a round runs.
type counters struct {
	mu       sync.Mutex // guards the maps of the report and the lists
	took     []time.Duration
	tookHurt []time.Duration
	images   atomic.Int64
	compared atomic.Int64
	hot      atomic.Int64
	longest  time.Duration
}

func newReport(o Options) Report {
	return Report{
		Seed: o.Seed, Groups: o.Groups, Disks: o.Disks, NodesPerAZ: o.NodesPerAZ, Choice: o.Plans,
		Plans: map[string]PlanCount{}, Faults: map[string]int{}, Calls: map[string]map[string]int{}, counters: &counters{},
	}
}

func (r *Report) fault(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Faults[name]++
}

// round counts a round that is over.
func (r *Report) round(p *plan) {
	c := r.Plans[p.name]
	c.Rounds++
	if !p.missed {
		c.Reached++
	}
	r.Plans[p.name] = c
}

func (r *Report) call(name, outcome string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Calls[name] == nil {
		r.Calls[name] = map[string]int{}
	}
	r.Calls[name][outcome]++
}

func (r *Report) failover(took time.Duration, alone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if alone {
		r.took = append(r.took, took)
	} else {
		r.tookHurt = append(r.tookHurt, took)
	}
}

func (r *Report) judged(v history.Verdict) { r.RequestsJudged += v.Requests }

// count takes the counters over after a round.
func (r *run) count() {
	p := &r.report
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Registers, p.ChainWrites = r.rec.Counts(), 0
	for _, g := range r.groups {
		p.ChainWrites += g.chains.Acknowledged()
		p.longest = max(p.longest, g.chains.Longest())
	}
	p.LongestWriteMS = p.longest.Milliseconds()
	p.ImagesJudged, p.BytesCompared, p.HotReads = p.images.Load(), p.compared.Load(), p.hot.Load()
	slices.Sort(p.took)
	if p.Failovers = len(p.took); p.Failovers > 0 {
		p.FailoverMedMS, p.FailoverWorstMS = p.took[len(p.took)/2].Milliseconds(), p.took[len(p.took)-1].Milliseconds()
	}
	if p.FailoversHurt = len(p.tookHurt); p.FailoversHurt > 0 {
		p.FailoverHurtWorst = slices.Max(p.tookHurt).Milliseconds()
	}
	r.trimLogs()
}

// fail notes a failure with its story.
func (r *run) fail(f *Failure) {
	r.report.Verdict = f.Error()
	r.report.Story = r.tell.last()
}

// logBytes is how long a member's log may be: a long run would fill the disk.
const logBytes = 64 << 20

// trimLogs empties logs that are too long. They are open for appending, so nothing else is lost.
func (r *run) trimLogs() {
	for _, m := range r.rig.all() {
		path := r.rig.log(m)
		if info, err := os.Stat(path); err == nil && info.Size() > logBytes {
			r.tell.note("emptied %s: %v", filepath.Base(path), os.Truncate(path, 0))
		}
	}
}
