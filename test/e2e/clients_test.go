package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/block"
	"github.com/lockstep-dr/lockstep/test/need"
)

func bytesOf(mib int) string { return strconv.Itoa(mib << 20) }

// tool runs a client of another project, at most for a minute.
func (d *deployment) tool(name string, args ...string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = d.dir
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestClientsOfOtherProjectsWorkOnReplicatedDisksAcrossAFailover(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img", "qemu-io", "nbdcopy", "nbdinfo", "fio")
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	uri := func(i int, az string) string { return d.uri(g.pairs[i].disk[az], g.pairs[i].node[az]) }

	image := filepath.Join(d.dir, "image.raw")
	data := make([]byte, 48<<20)
	_, _ = rand.Read(data) // never fails
	if err := os.WriteFile(image, append(data, make([]byte, 16<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, gib); err != nil {
		t.Fatal(err)
	}

	if out := d.tool("nbdinfo", "--size", uri(0, "az1")); strings.TrimSpace(out) != strconv.Itoa(gib) {
		t.Errorf("nbdinfo --size: %s", out)
	}
	list := d.tool("nbdinfo", "--list", fmt.Sprintf("nbd+unix:///?socket=%s", d.path(node("az1", 1), ".sock")))
	for i := range g.pairs {
		if !strings.Contains(list, g.pairs[i].disk["az1"]) {
			t.Errorf("nbdinfo --list does not name %s:\n%s", g.pairs[i].disk["az1"], list)
		}
	}
	if list := d.tool("nbdinfo", "--list", fmt.Sprintf("nbd+unix:///?socket=%s", d.path(node("az2", 1), ".sock"))); strings.Contains(list, g.pairs[0].disk["az2"]) {
		t.Errorf("the secondary lists a disk that it refuses:\n%s", list)
	}

	d.tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri(0, "az1"))
	d.tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri(0, "az1"))
	d.tool("qemu-io", "-f", "raw", "-c", "write -P 0x5a 100M 1M", "-c", "write -z -u 4M 64k", "-c", "discard 8M 1M",
		"-c", "flush", "-c", "read -P 0x5a 100M 1M", "-c", "read -P 0 4M 64k", "-c", "read -P 0 8M 1M", uri(0, "az1"))
	if out := d.tool("nbdinfo", "--map", uri(0, "az1")); !strings.Contains(out, "hole") || !strings.Contains(out, "data") {
		t.Errorf("nbdinfo --map:\n%s", out)
	}

	d.tool("nbdcopy", "--flush", image, uri(1, "az1"))
	copied := filepath.Join(d.dir, "copied.raw")
	d.tool("nbdcopy", uri(1, "az1"), copied)
	if err := equalFiles(image, copied); err != nil {
		t.Fatalf("nbdcopy there and back: %v", err)
	}

	fio := func(az string, extra ...string) {
		t.Helper()
		args := append([]string{
			"--name=x", "--ioengine=nbd", "--uri=" + uri(0, az), "--rw=randwrite", "--bs=4k", "--offset=256M", "--size=32M", "--iodepth=16",
			"--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--output-format=terse",
		}, extra...)
		d.tool("fio", args...)
	}
	fio("az1")

	g.until(time.Second, "available", "active", "0")
	var sums [2][sha256.Size]byte
	for i := range g.pairs {
		disk := g.open(g.pairs[i], "az1")
		if err := disk.Flush(d.ctx); err != nil {
			t.Fatal(err)
		}
		sums[i] = checksum(t, disk)
		_ = disk.Close()
	}
	d.sameFiles(g.pairs...)
	d.kill(node("az1", 1))
	g.failover()
	for i := range g.pairs {
		if checksum(t, g.open(g.pairs[i], "az2")) != sums[i] {
			t.Errorf("disk %d is another one after the failover", i)
		}
	}
	fio("az2", "--verify_only")
}

// checksum is that of the whole disk.
func checksum(t *testing.T, disk block.Device) [sha256.Size]byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	h := sha256.New()
	buf := make([]byte, 8<<20)
	for off := int64(0); off < disk.Size(); off += int64(len(buf)) {
		if err := disk.ReadAt(ctx, buf, off); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(h, bytes.NewReader(buf)); err != nil {
			t.Fatal(err)
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}
