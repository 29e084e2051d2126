package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-dr/lockstep/client"
)

func (a *app) groupVerify() *cobra.Command {
	var w waiter
	var rate int64
	var cancel bool
	cmd := &cobra.Command{
		Use: "verify GROUP", Short: "Prove that both sides are equal",
		Long: `Compares every byte of both sides while the group replicates and serves, at a bounded
rate. What differs is reported, kept in both versions in the primary's pool, and
repaired from the primary. If a verification runs already, it is that one. It is
refused (exit code 4) unless the group is active, and proves nothing if the group
leaves in sync meanwhile.

With --wait it ends with exit code 1 if it was not completed, or if it found a
difference, even though that is repaired: somebody should look for the cause.`,
		Example: "  lockstep group verify shop --rate 100 --wait --timeout 8h\n  lockstep group verify shop --cancel", Args: exactArgs("GROUP"),
	}
	cmd.Flags().Int64Var(&rate, "rate", 0, "MiB/s that each primary node compares; 0: as its configuration says")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "end the verification that runs")
	w.flags(cmd)
	a.jsonFlag(cmd)
	return a.apiCommand(cmd, func(ctx context.Context, c *client.Client, args []string) error {
		switch {
		case rate < 0:
			return usage(fmt.Errorf("--rate is MiB/s, not %d", rate))
		case cancel && (w.wait || rate != 0):
			return usage(errors.New("--cancel goes with neither --wait nor --rate"))
		}
		g, err := findGroup(ctx, c, args[0])
		if err != nil {
			return err
		}
		if cancel {
			return c.CancelVerify(ctx, g.ID)
		}
		v, err := c.Verify(ctx, g.ID, rate)
		if err != nil {
			return err
		}
		if w.wait {
			if v, err = a.untilVerified(ctx, w, c, g.ID, v.ID); err != nil {
				return err
			}
		}
		if err := a.printVerification(v); err != nil {
			return err
		}
		switch {
		case !w.wait:
			return nil
		case v.State != client.VerifyEqual:
			return fmt.Errorf("group %s: the verification is %s: %s", g.ID, v.State, orDash(deref(v.Reason)))
		case v.Differences > 0:
			return fmt.Errorf("group %s: the sides were not equal: %d differences were found, and repaired", g.ID, v.Differences)
		}
		return nil
	})
}

// untilVerified waits for the end of a verification.
func (a *app) untilVerified(ctx context.Context, w waiter, c *client.Client, group, id string) (client.Verification, error) {
	var last client.Verification
	err := a.until(ctx, w, "verification of group "+group, func(ctx context.Context) (look, error) {
		g, err := c.Group(ctx, group)
		switch {
		case err != nil:
			return look{}, err
		case g.Verification == nil || g.Verification.ID != id:
			return look{}, fmt.Errorf("group %s: another verification took the place of %s", group, id)
		}
		last = *g.Verification
		l := look{text: last.State, percent: -1, done: last.State != client.VerifyRunning}
		if last.TotalBytes > 0 && !l.done {
			l.percent = int(last.Bytes * 100 / last.TotalBytes)
		}
		if last.Differences > 0 {
			l.text += fmt.Sprintf(", %d differences", last.Differences)
		}
		if len(last.Waits) > 0 {
			l.text += ", " + strings.Join(last.Waits, ", ")
		}
		return l, nil
	})
	return last, err
}

func (a *app) printVerification(v client.Verification) error {
	if a.json {
		return a.printJSON(v)
	}
	fields := [][2]string{
		{"id", v.ID},
		{"result", v.State},
		{"reason", orDash(deref(v.Reason))},
		{"compared", fmt.Sprintf("%d of %d bytes", v.Bytes, v.TotalBytes)},
		{"started", v.StartedAt.UTC().Format(time.DateTime)},
	}
	if v.EndedAt != nil {
		fields = append(fields, [2]string{"duration", v.EndedAt.Sub(v.StartedAt).Round(time.Millisecond).String()})
	}
	fields = append(fields, [2]string{"differences", fmt.Sprint(v.Differences)})
	for _, d := range v.FirstDifferences {
		fields = append(fields, [2]string{"difference", describeDifference(d)})
	}
	return a.printFields(fields)
}

func describeDifference(d client.Difference) string {
	s := fmt.Sprintf("volume %s, %d bytes at %d", d.VolumeID, d.Length, d.Offset)
	if d.Repaired {
		s += ", repaired"
	}
	if d.Kept != nil {
		s += fmt.Sprintf("; kept on node %s: %s", d.Node, *d.Kept)
	}
	return s
}

// proofText is the last proof in one line.
func proofText(g client.Group) string {
	p := g.Verified
	if p == nil {
		return "-"
	}
	s := fmt.Sprintf("%s, epoch %d", p.VerifiedAt.UTC().Format(time.DateTime), p.Epoch)
	for _, link := range slices.Sorted(maps.Keys(p.WriteNumbers)) {
		s += fmt.Sprintf(", write %s of %s", p.WriteNumbers[link], link)
	}
	if p.Differences > 0 {
		s += fmt.Sprintf(", %d differences repaired", p.Differences)
	}
	return s
}

// verificationText is the running or last verification in one line.
func verificationText(g client.Group) string {
	v := g.Verification
	switch {
	case v == nil:
		return "-"
	case v.State == client.VerifyRunning && v.TotalBytes > 0:
		return fmt.Sprintf("running, %d%%", v.Bytes*100/v.TotalBytes)
	case v.Reason != nil:
		return v.State + ": " + *v.Reason
	}
	return v.State
}
