package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/client"
	"github.com/lockstep-dr/lockstep/nbd/nbdclient"
)

// waitFor asks every 20 ms until see says yes, fails, or ctx ends.
func waitFor(ctx context.Context, what string, see func(context.Context) (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := see(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		}
		if err != nil {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// disks are the two NBD connections of an application.
type disks [disksCount]*nbdclient.Client

func (d disks) devices() (out [disksCount]block.Device) {
	for i, c := range d {
		out[i] = c
	}
	return out
}

func (d disks) close() error {
	var errs []error
	for _, c := range d {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

func (d disks) flush(ctx context.Context) error {
	for i, c := range d {
		if err := c.Flush(ctx); err != nil {
			return fmt.Errorf("flush disk %d: %w", i, err)
		}
	}
	return nil
}

// openSoon is open for disks that a new primary is about to serve: it tries until they are, which
// is when the old primary's lease has run out at the latest.
func openSoon(ctx context.Context, c *client.Client, volumes [disksCount]string) (d disks, err error) {
	err = waitFor(ctx, "the disks are served", func(ctx context.Context) (bool, error) {
		var refusal *nbdclient.OptionError
		var openErr error
		d, openErr = open(ctx, c, volumes)
		if errors.As(openErr, &refusal) {
			return false, nil
		}
		return openErr == nil, openErr
	})
	return d, err
}

// open connects to both volumes where the API says they are.
func open(ctx context.Context, c *client.Client, volumes [disksCount]string) (d disks, err error) {
	for i, id := range volumes {
		uri, err := c.ConnectionURI(ctx, id)
		if err != nil {
			return disks{}, errors.Join(fmt.Errorf("ask where volume %s is: %w", id, err), d.close())
		}
		if d[i], err = nbdclient.Dial(ctx, uri); err != nil {
			d[i] = nil
			return disks{}, errors.Join(fmt.Errorf("connect to %s: %w", uri, err), d.close())
		}
	}
	return d, nil
}
