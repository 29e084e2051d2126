package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/test/need"
)

// toolServer serves a 64 MiB volume "vol" on a Unix socket for clients of other projects.
func toolServer(t *testing.T) (dev *block.Memory, uri string, run func(tool string, args ...string) string) {
	dev = block.NewMemory(64 << 20)
	s := newTestServer(t, &Server{Exports: testExports{
		"vol":   {Device: dev, Description: "a volume"},
		"other": {Device: block.NewMemory(1 << 20), ReadOnly: true},
	}}, "unix")
	uri = "nbd+unix:///vol?socket=" + s.address
	run = func(tool string, args ...string) string {
		t.Helper()
		need.Programs(t, tool)
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, tool, args...)
		cmd.Dir = t.TempDir() // fio leaves files
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s %s: %v\n%s%s", tool, strings.Join(args, " "), err, out.String(), stderr.String())
		}
		return out.String()
	}
	return dev, uri, run
}

// randomImage is data with holes.
func randomImage(size int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	image := make([]byte, size)
	for off := 0; off < size; off += 3 << 20 {
		_, _ = r.Read(image[off:min(off+1<<20, size)]) // never fails
	}
	return image
}

func TestNbdinfo(t *testing.T) {
	dev, uri, run := toolServer(t)
	var info struct {
		Protocol   string
		Structured bool
		Exports    []map[string]any
	}
	if err := json.Unmarshal([]byte(run("nbdinfo", "--json", uri)), &info); err != nil {
		t.Fatal(err)
	}
	if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 1 {
		t.Fatalf("%+v", info)
	}
	for key, want := range map[string]any{
		"export-name": "vol", "description": "a volume", "export-size": float64(64 << 20), "is_read_only": false,
		"can_multi_conn": true, "can_df": true, "can_fua": true, "can_flush": true, "can_trim": true, "can_zero": true,
		"can_cache": true, "can_fast_zero": false, "is_rotational": false,
		"block_size_minimum": float64(1), "block_size_preferred": float64(4096), "block_size_maximum": float64(32 << 20),
	} {
		if got := info.Exports[0][key]; got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if list := run("nbdinfo", "--list", uri); !strings.Contains(list, `export="vol"`) || !strings.Contains(list, `export="other"`) {
		t.Errorf("list:\n%s", list)
	}
	if err := dev.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 1<<20), 4<<20, false); err != nil {
		t.Fatal(err)
	}
	want := "0 4194304 3 hole,zero 4194304 1048576 0 data 5242880 61865984 3 hole,zero"
	if got := strings.Join(strings.Fields(run("nbdinfo", "--map", uri)), " "); got != want {
		t.Errorf("map %q, want %q", got, want)
	}
}

func TestNbdcopy(t *testing.T) {
	dev, uri, run := toolServer(t)
	image := randomImage(64 << 20)
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, image, 0o600); err != nil {
		t.Fatal(err)
	}
	run("nbdcopy", "--flush", in, uri)
	got := make([]byte, len(image))
	if err := dev.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, image) {
		t.Fatalf("the device differs from the file (%v)", err)
	}
	run("nbdcopy", uri, out)
	got, err := os.ReadFile(out)
	if err != nil || !bytes.Equal(got, image) {
		t.Fatalf("the file differs from the device (%v)", err)
	}
	run("qemu-img", "compare", "-f", "raw", "-F", "raw", in, uri)
}

func TestQemuIO(t *testing.T) {
	dev, uri, run := toolServer(t)
	commands := []string{"-f", "raw", uri}
	for _, c := range []string{
		"write -P 0xa1 0 64k", "write -P 0xb2 1000 5000", "read -P 0xb2 1000 5000", "read -P 0xa1 0 1000", "read -P 0xa1 6000 4k",
		"write -f -P 0xc3 1M 512", "flush", "read -P 0xc3 1M 512",
		"write -P 0xd4 8M 8M", "write -z 9M 1M", "read -P 0 9M 1M", "read -P 0xd4 10M 6M", "read -P 0xd4 8M 1M",
		"write -z -u 8M 64k", "read -P 0 8M 64k", "discard 12M 1M", "read -P 0 12M 1M", "read -P 0xd4 13M 3M",
		"aio_write -P 0xe5 20M 1M", "aio_write -P 0xf6 30M 1M", "aio_flush", "read -P 0xe5 20M 1M", "read -P 0xf6 30M 1M",
	} {
		commands = append(commands, "-c", c)
	}
	if out := run("qemu-io", commands...); strings.Contains(out, "failed") || strings.Contains(out, "error") {
		t.Fatal(out)
	}
	p := make([]byte, 1)
	if err := dev.ReadAt(t.Context(), p, 1000); err != nil || p[0] != 0xb2 {
		t.Fatalf("device has %#x, %v", p[0], err)
	}
	if out := run("qemu-img", "info", "--output=json", uri); !strings.Contains(out, fmt.Sprint(64<<20)) {
		t.Fatal(out)
	}
	if out := run("qemu-img", "map", "--output=json", "-f", "raw", uri); !strings.Contains(out, `"zero": true`) {
		t.Fatal(out)
	}
}

func TestFio(t *testing.T) {
	if testing.Short() {
		t.Skip("takes five seconds")
	}
	_, uri, run := toolServer(t)
	if !strings.Contains(run("fio", "--enghelp"), "nbd") {
		need.Missing(t, "fio has no nbd engine")
	}
	// Blocks of one size: fio's own bookkeeping does not survive overlapping blocks of several.
	out := run("fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randrw", "--bs=4k", "--iodepth=32",
		"--size=48M", "--runtime=5", "--time_based", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256", "--randrepeat=0", "--fsync=100")
	if !strings.Contains(out, "err= 0") {
		t.Fatal(out)
	}
}
