package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lockstep-dr/lockstep/block"
)

// written is a device with some data, and its bytes.
func written(t *testing.T) (*block.Memory, []byte) {
	t.Helper()
	image := make([]byte, 3*exportStep+exportHole+4096) // ends within a step and within a hole's unit
	dice := rand.New(rand.NewPCG(1, 2))
	dev := block.NewMemory(int64(len(image)))
	for _, off := range []int{0, exportHole - 512, exportStep - 4096, 2*exportStep + 1234*512, len(image) - 512} {
		for i := range min(8192, len(image)-off) {
			image[off+i] = byte(dice.Uint32()) | 1
		}
		end := min(off+8192, len(image))
		if err := dev.WriteAt(t.Context(), image[off:end], int64(off), false); err != nil {
			t.Fatal(err)
		}
	}
	return dev, image
}

func TestAnExportIsTheImageAndSparse(t *testing.T) {
	t.Parallel()
	dev, image := written(t)
	path := filepath.Join(t.TempDir(), "image.raw")
	last := int64(0)
	if err := exportFile(t.Context(), dev, path, func(done int64) { last = done }); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, image) {
		t.Errorf("the file is another image: %v", err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil || st.Blocks*512 > exportStep {
		t.Errorf("%d bytes are allocated for 5 pieces of 8 KiB, %v", st.Blocks*512, err)
	}
	if last != dev.Size() {
		t.Errorf("progress ended at %d of %d", last, dev.Size())
	}
	alone(t, path, true)
}

func TestAnExportThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	dev, _ := written(t)
	broken := block.NewFault(dev)
	broken.Inject(block.FaultRule{Ops: block.OpRead, Skip: 1, Err: syscall.EIO})
	path := filepath.Join(t.TempDir(), "image.raw")
	if err := exportFile(t.Context(), broken, path, func(int64) {}); !errors.Is(err, syscall.EIO) {
		t.Errorf("a read that fails: %v", err)
	}
	alone(t, path, false)

	ctx, cancel := context.WithCancel(t.Context())
	if err := exportFile(ctx, dev, path, func(int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted export: %v", err)
	}
	alone(t, path, false)

	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := exportFile(t.Context(), dev, path, func(int64) {}); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file that was made meanwhile: %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "mine" {
		t.Errorf("it holds %q, %v", got, err)
	}
	alone(t, path, true)
}

// alone checks that the directory holds the file and nothing else, or nothing.
func alone(t *testing.T, path string, there bool) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || there != (len(entries) == 1) || !there && len(entries) > 0 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}
