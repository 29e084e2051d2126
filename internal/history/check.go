package history

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Violation is something that disks which lose nothing cannot have answered.
type Violation struct {
	Disk  int    `json:"disk"`
	Block int64  `json:"block"`
	Text  string `json:"text"`
	// Story lists the requests among which no order was found, by the time at which they were asked.
	Story []string `json:"story,omitempty"`
}

// Verdict is the outcome of a check.
type Verdict struct {
	Requests   int         `json:"requests"` // judged in this check
	Segments   int         `json:"segments"`
	Undecided  int         `json:"undecided"` // segments for which the time did not suffice
	Violations []Violation `json:"violations,omitempty"`
}

// Err is nil if every request was judged and found right.
func (v Verdict) Err() error {
	var errs []error
	for _, x := range v.Violations {
		text := fmt.Sprintf("block %d of disk %d: %s", x.Block, x.Disk, x.Text)
		if len(x.Story) > 0 {
			text += "\n\t" + strings.Join(x.Story, "\n\t")
		}
		errs = append(errs, errors.New(text))
	}
	if v.Undecided > 0 {
		errs = append(errs, fmt.Errorf("%d pieces of the history took too long to judge", v.Undecided))
	}
	return errors.Join(errs...)
}

// Check judges everything that was recorded since the last check; requests under way may still take
// effect. What is settled is forgotten. limit bounds the search for each piece. Recording goes on
// meanwhile.
func (r *Recorder) Check(limit time.Duration) Verdict {
	r.mu.Lock()
	v := Verdict{Violations: r.fouls}
	r.fouls = nil
	var pieces []segment
	for p, reg := range r.blocks {
		pieces = append(pieces, reg.segments(p)...)
	}
	r.mu.Unlock()
	slices.SortStableFunc(pieces, func(a, b segment) int {
		return cmp.Or(cmp.Compare(a.disk, b.disk), cmp.Compare(a.block, b.block)) // stable: those of a block stay in their order
	})
	for _, s := range pieces {
		v.Segments++
		v.Requests += len(s.ops)
		switch s.judge(limit) {
		case porcupine.Ok:
		case porcupine.Illegal:
			v.Violations = append(v.Violations, Violation{
				Disk: s.disk, Block: s.block, Story: s.story(),
				Text: fmt.Sprintf("no order of its requests explains what was read (before them it held %d)", s.states),
			})
		default:
			v.Undecided++
		}
	}
	return v
}

// judge looks for an order. After a power loss any of several values may have been the first.
func (s segment) judge(limit time.Duration) porcupine.CheckResult {
	list := make([]porcupine.Operation, len(s.ops))
	for i := range s.ops {
		o := &s.ops[i]
		list[i] = porcupine.Operation{ClientId: i, Input: o, Output: o, Call: o.call, Return: o.ret}
	}
	result := porcupine.Illegal
	for _, first := range s.states {
		switch porcupine.CheckOperationsTimeout(model(first), list, limit) {
		case porcupine.Ok:
			return porcupine.Ok
		case porcupine.Unknown:
			result = porcupine.Unknown
		case porcupine.Illegal:
		}
	}
	return result
}

// model is a register that holds first.
func model(first Value) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return first },
		Step: func(state, input, _ any) (bool, any) {
			o := input.(*op)
			if o.kind == opWrite {
				return true, o.value
			}
			return o.value == state.(Value), state
		},
		Hash: func(state any) uint64 { return uint64(state.(Value)) },
	}
}

// storyLines bounds a story: the end of a piece is where it went wrong, if it went wrong once.
const storyLines = 80

func (s segment) story() []string {
	slices.SortStableFunc(s.ops, func(a, b op) int { return cmp.Compare(a.call, b.call) })
	var lines []string
	for i := range s.ops {
		lines = append(lines, s.ops[i].String())
	}
	if cut := len(lines) - storyLines; cut > 0 {
		lines = append([]string{fmt.Sprintf("(%d requests before)", cut)}, lines[cut:]...)
	}
	return lines
}
