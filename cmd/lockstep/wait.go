package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

// pollEvery is the pause between two looks at a status; pollFailuresMax is how many looks in a
// row may fail to reach the API before waiting gives up.
const (
	pollEvery       = 250 * time.Millisecond
	pollFailuresMax = 20
)

// waiter is the --wait and --timeout flags.
type waiter struct {
	wait    bool
	timeout time.Duration
}

func (w *waiter) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.wait, "wait", false, "wait until it is done, showing progress")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 5*time.Minute, "how long --wait waits")
}

// look is one look at a status: what it is, how far in percent (-1: not known), whether it is
// settled. An error ends the wait. The detail changes all the time: it makes no line of its own in a log.
type look struct {
	text    string
	detail  string
	percent int
	done    bool
}

// until looks until it is done. On a terminal it draws a bar, elsewhere it prints a line for
// every new status.
func (a *app) until(ctx context.Context, w waiter, what string, see func(context.Context) (look, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, w.timeout, fmt.Errorf("%s: %w after %s", what, errWaitTimeout, w.timeout))
	defer cancel()
	meter := newMeter(a.err, what)
	defer meter.end()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for failures := 0; ; {
		l, err := see(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, client.ErrUnreachable) && failures < pollFailuresMax:
			failures++ // a controller may be restarting; the operation goes on without it
		case err != nil:
			return err
		default:
			failures = 0
			meter.show(l)
			if l.done {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// meter shows looks to a person or to a log.
type meter struct {
	w    io.Writer
	what string
	bar  *progressbar.ProgressBar // nil: not a terminal
	last string
}

func newMeter(w io.Writer, what string) *meter {
	m := &meter{w: w, what: what}
	if isTerminal(w) {
		m.bar = progressbar.NewOptions(100, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what),
			progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(false))
	}
	return m
}

func (m *meter) show(l look) {
	if m.bar != nil {
		if l.detail != "" {
			l.text += ", " + l.detail
		}
		m.bar.Describe(m.what + ": " + printable(l.text))
		_ = m.bar.Set(max(l.percent, 0)) // a bar that cannot be drawn is no reason to fail
		return
	}
	text := l.text
	if l.percent >= 0 {
		text += fmt.Sprintf(" %d%%", l.percent)
	}
	if text != m.last {
		m.last = text
		if l.detail != "" {
			text += ", " + l.detail
		}
		fmt.Fprintf(m.w, "%s: %s\n", m.what, printable(text))
	}
}

func (m *meter) end() {
	if m.bar != nil {
		_ = m.bar.Finish()
	}
}

// failed makes the error for a thing that settled in an error status.
func failed(what, status string, detail *string) error {
	if d := deref(detail); d != "" {
		return fmt.Errorf("%s is in status %s: %s", what, status, d)
	}
	return fmt.Errorf("%s is in status %s", what, status)
}

func isErrorStatus(status string) bool { return strings.HasPrefix(status, "error") }

// untilVolume waits for a disk to be usable.
func (a *app) untilVolume(ctx context.Context, w waiter, c *client.Client, id string) error {
	return a.until(ctx, w, "volume "+id, func(ctx context.Context) (look, error) {
		v, err := c.Volume(ctx, id)
		if err != nil {
			return look{}, err
		}
		if isErrorStatus(v.Status) {
			return look{}, failed("volume "+id, v.Status, nil)
		}
		return look{text: v.Status, percent: -1, done: v.Status == "available" || v.Status == "in-use"}, nil
	})
}

func (a *app) untilPair(ctx context.Context, w waiter, c *client.Client, id string) error {
	return a.until(ctx, w, "pair "+id, func(ctx context.Context) (look, error) {
		p, err := c.Pair(ctx, id)
		if err != nil {
			return look{}, err
		}
		if isErrorStatus(p.Status) {
			return look{}, failed("pair "+id, p.Status, p.FailureDetail)
		}
		return look{text: p.Status, percent: -1, done: p.Status == "available"}, nil
	})
}

// untilGone waits for a deletion.
func (a *app) untilGone(ctx context.Context, w waiter, what string, status func(context.Context) (string, error)) error {
	return a.until(ctx, w, what, func(ctx context.Context) (look, error) {
		s, err := status(ctx)
		switch {
		case client.IsNotFound(err):
			return look{text: "gone", percent: -1, done: true}, nil
		case err != nil:
			return look{}, err
		case isErrorStatus(s):
			return look{}, failed(what, s, nil)
		}
		return look{text: s, percent: -1}, nil
	})
}

// untilGroup waits until done says so; an error status that was not there before ends it.
func (a *app) untilGroup(ctx context.Context, w waiter, c *client.Client, id string, done func(client.Group) bool) error {
	return a.until(ctx, w, "group "+id, func(ctx context.Context) (look, error) {
		g, err := c.Group(ctx, id)
		if err != nil {
			return look{}, err
		}
		l := look{text: g.Status + "/" + g.ReplicationStatus, percent: -1, done: done(g)}
		if l.done {
			return l, nil
		}
		if isErrorStatus(g.Status) {
			return look{}, failed("group "+id, g.Status, g.FailureDetail)
		}
		if g.ReplicationStatus == "copying" {
			l.percent, l.detail = resyncPercent(g.Resync), resyncText(g.Resync)
		}
		return l, nil
	})
}

// settledGroup: no operation is under way.
func settledGroup(g client.Group) bool {
	switch g.Status {
	case "creating", "updating", "deleting", "reversing", "failovering":
		return false
	}
	return !isErrorStatus(g.Status)
}

func activeGroup(g client.Group) bool {
	return g.Status == "available" && g.ReplicationStatus == "active"
}
