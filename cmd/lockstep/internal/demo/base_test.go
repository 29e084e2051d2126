package demo

import (
	"errors"
	"testing"

	"github.com/lockstep-dr/lockstep/block"
)

// The chains write all that they can, and must leave the base alone; then one bit of it is flipped.
func TestCheckOfTheBaseFindsAnyBit(t *testing.T) {
	var disks [disksCount]block.Device
	for i := range disks {
		disks[i] = block.NewMemory(reservedBytes + chainsCount*(2*pieceBytes+16*blockBytes))
	}
	h := newHistory(7, disks[0].Size(), 2*pieceBytes)
	if h.slots != 16 {
		t.Fatalf("%d blocks for a chain", h.slots)
	}
	if err := writeBase(t.Context(), h, disks); err != nil {
		t.Fatal(err)
	}
	w := startWorkload(t.Context(), h, disks)
	if err := w.until(t.Context(), h.capacity()); err != nil {
		t.Fatal(err)
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := inspect(t.Context(), h, disks); err != nil {
		t.Fatal(err)
	}
	if err := checkBase(t.Context(), h, disks); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{h.offset(0, h.capacity()), disks[1].Size() - reservedBytes - 1} { // its first byte and its last one
		b := make([]byte, 1)
		flip := func() {
			if err := disks[1].ReadAt(t.Context(), b, at); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 1
			if err := disks[1].WriteAt(t.Context(), b, at, false); err != nil {
				t.Fatal(err)
			}
		}
		flip()
		if err := checkBase(t.Context(), h, disks); !errors.Is(err, errBase) {
			t.Errorf("byte %d of disk 1 has a flipped bit: %v", at, err)
		}
		flip()
	}
}
