package demo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-dr/lockstep/block"
)

// The base is what a disk holds before it is replicated, so that the first synchronization has
// something to copy: after the blocks of each chain, so many bytes that follow from the run. Nothing
// writes there afterwards, so it must be the same wherever and whenever it is read.
const (
	pieceBytes    = 1 << 20
	baseChain     = 25 * pieceBytes // after the blocks of each chain
	baseDiskBytes = chainsCount * baseChain
)

var errBase = errors.New("what was written before the replication began is not there")

// fillPiece makes one piece of a disk's base.
func fillPiece(b []byte, run uint64, disk int, off int64) {
	r := rand.New(rand.NewPCG(run, uint64(disk)<<40|uint64(off)))
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
}

// eachPiece visits the base of all disks, the disks at the same time.
func (h *history) eachPiece(ctx context.Context, disks [disksCount]block.Device, visit func(ctx context.Context, disk block.Device, want []byte, off int64) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, disk := range disks {
		g.Go(func() error {
			want := make([]byte, pieceBytes)
			for chain := range chainsCount {
				end := h.offset(chain+1, 0)
				for off := h.offset(chain, h.capacity()); off < end; off += pieceBytes {
					fillPiece(want, h.run, i, off)
					if err := visit(ctx, disk, want, off); err != nil {
						return fmt.Errorf("disk %d, %d bytes from byte %d: %w", i, pieceBytes, off, err)
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func writeBase(ctx context.Context, h *history, disks [disksCount]block.Device) error {
	return h.eachPiece(ctx, disks, func(ctx context.Context, disk block.Device, want []byte, off int64) error {
		return disk.WriteAt(ctx, want, off, false)
	})
}

// checkBase reads all of it back.
func checkBase(ctx context.Context, h *history, disks [disksCount]block.Device) error {
	return h.eachPiece(ctx, disks, func(ctx context.Context, disk block.Device, want []byte, off int64) error {
		have := make([]byte, len(want))
		if err := disk.ReadAt(ctx, have, off); err != nil {
			return err
		}
		if !bytes.Equal(have, want) {
			return errBase
		}
		return nil
	})
}
