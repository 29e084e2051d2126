package demo

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
)

const testDiskBytes = 9 << 20

func testDisks(t *testing.T) [disksCount]block.Device {
	t.Helper()
	var d [disksCount]block.Device
	for i := range d {
		d[i] = block.NewMemory(testDiskBytes)
	}
	return d
}

// written runs the workload for some writes on fresh disks.
func written(t *testing.T) (*history, [disksCount]block.Device) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	disks := testDisks(t)
	h := newHistory(7, testDiskBytes, 0)
	w := startWorkload(ctx, h, disks)
	if err := w.until(ctx, 20); err != nil {
		t.Fatal(err)
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	return h, disks
}

// wipe makes a write undone.
func wipe(t *testing.T, h *history, disks [disksCount]block.Device, chain int, seq uint64) {
	t.Helper()
	if err := disks[seq%disksCount].WriteAt(t.Context(), make([]byte, blockBytes), h.offset(chain, seq), false); err != nil {
		t.Fatal(err)
	}
}

func TestInspectAcceptsWhatWasWritten(t *testing.T) {
	h, disks := written(t)
	acked := h.acknowledged()
	v, err := inspect(t.Context(), h, disks)
	if err != nil {
		t.Fatal(err)
	}
	if v.acknowledged != acked || v.missing != 0 || v.extra != 0 || v.holes != 0 {
		t.Fatalf("verdict %+v of %d writes", v, acked)
	}
}

// TestInspectAcceptsTheWriteInFlight: one write of a chain may be there without having been
// acknowledged, and the chain goes on after it.
func TestInspectAcceptsTheWriteInFlight(t *testing.T) {
	h, disks := written(t)
	n := h.next[3].Load()
	h.next[3].Store(n - 1)
	v, err := inspect(t.Context(), h, disks)
	if err != nil || v.extra != 1 {
		t.Fatalf("verdict %+v, %v", v, err)
	}
	if got := h.next[3].Load(); got != n {
		t.Fatalf("the chain goes on at %d, not at %d", got, n)
	}
}

func TestInspectFindsFaults(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, h *history, disks [disksCount]block.Device)
		want   string
	}{
		"last acknowledged write lost": {
			func(t *testing.T, h *history, d [disksCount]block.Device) { wipe(t, h, d, 2, h.next[2].Load()-1) }, "1 acknowledged writes (4096 bytes) are lost",
		},
		"hole before an unacknowledged write": {
			func(t *testing.T, h *history, d [disksCount]block.Device) {
				h.next[2].Store(h.next[2].Load() - 2)
				wipe(t, h, d, 2, h.next[2].Load())
			}, "without their predecessor",
		},
		"two writes beyond the last acknowledged one": {
			func(t *testing.T, h *history, _ [disksCount]block.Device) { h.next[2].Store(h.next[2].Load() - 2) }, "1 chains hold writes that were never issued",
		},
		"a flipped bit": {
			func(t *testing.T, h *history, d [disksCount]block.Device) {
				b := make([]byte, 1)
				off := h.offset(5, 4) + 100
				if err := d[0].ReadAt(t.Context(), b, off); err != nil {
					t.Fatal(err)
				}
				b[0] ^= 4
				if err := d[0].WriteAt(t.Context(), b, off, false); err != nil {
					t.Fatal(err)
				}
			}, "neither empty nor whole",
		},
		"disks swapped": {
			func(t *testing.T, _ *history, d [disksCount]block.Device) {
				b := make([]byte, blockBytes)
				if err := d[0].ReadAt(t.Context(), b, 0); err != nil {
					t.Fatal(err)
				}
				if err := d[1].WriteAt(t.Context(), b, 0, false); err != nil {
					t.Fatal(err)
				}
			}, "the block holds write 0 of chain 0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, disks := written(t)
			c.damage(t, h, disks)
			if _, err := inspect(t.Context(), h, disks); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestCompareFiles(t *testing.T) {
	dir := t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*compareBytes/16+5)
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a, b := write("vol-a.raw", data), write("vol-b.raw", data)
	if _, n, err := compareFiles(a, b); err != nil || n != int64(len(data)) {
		t.Fatalf("equal files: %d, %v", n, err)
	}
	at, err := sabotage(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, n, err := compareFiles(a, b); err == nil || !strings.Contains(err.Error(), "differs") {
		t.Fatalf("a flipped bit at %d was not found: %d, %v", at, n, err)
	}
	short := write("vol-c.raw", data[:len(data)-1])
	if _, _, err := compareFiles(a, short); err == nil || !strings.Contains(err.Error(), "one ends") {
		t.Fatalf("a shorter file: %v", err)
	}
	mem := block.NewMemory(int64(compareBytes))
	zeros := write("vol-d.raw", make([]byte, compareBytes))
	if err := compareDevice(t.Context(), mem, zeros); err != nil {
		t.Fatal(err)
	}
	if err := compareDevice(t.Context(), mem, a); err == nil {
		t.Fatal("a device and a different file count as equal")
	}
}
