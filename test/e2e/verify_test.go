package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep/client"
)

// dd overwrites blocks of a file of a running node, as a disk that forgets or a hand that slips does.
func (d *deployment) dd(file string, bs int, seek int64, count int) {
	d.t.Helper()
	out, err := exec.Command("dd", "if=/dev/urandom", "of="+file, fmt.Sprintf("bs=%d", bs), fmt.Sprintf("seek=%d", seek), fmt.Sprintf("count=%d", count), "conv=notrunc").CombinedOutput()
	if err != nil {
		d.t.Fatalf("dd: %v: %s", err, out)
	}
}

// verification waits until the group's verification has come into that state.
func (g *group) verification(id, state string) client.Verification {
	g.t.Helper()
	var v client.Verification
	g.eventually(2*patience, "the verification is "+state, func() error {
		got, err := g.c.Group(g.ctx, g.id)
		if err != nil {
			return err
		}
		if got.Verification == nil || got.Verification.ID != id || got.Verification.State != state {
			return fmt.Errorf("it is %+v", got.Verification)
		}
		v = *got.Verification
		return nil
	})
	return v
}

func (g *group) verify(rate int64) string {
	g.t.Helper()
	v, err := g.c.Verify(g.ctx, g.id, rate)
	if err != nil {
		g.t.Fatal(err)
	}
	return v.ID
}

// Under load, bytes of the DR disks are changed behind everybody's back: a verification reports exactly
// these, keeps both versions, and repairs them; the writers notice nothing.
func TestAVerificationUnderLoadFindsAndRepairsWhatChangedBehindItsBack(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1), d.pair(1))
	data := make([]byte, 32<<20)
	_, _ = rand.Read(data) // never fails
	disks := g.disks("az1")
	if err := disks[0].WriteAt(d.ctx, data, 64<<20, false); err != nil {
		t.Fatal(err)
	}
	c, began := newChains(), time.Now()
	c.run(disks)
	c.progress(g, patience, 200)

	clean := g.verification(g.verify(1000), "equal")
	if clean.Differences != 0 || clean.Bytes != 2*gib {
		t.Fatalf("a verification of what nobody changed: %+v", clean)
	}

	const at, length = 70<<20 + 8192, 12288
	dr := g.pairs[0]
	before, err := os.ReadFile(g.raw(dr, "az2"))
	if err != nil {
		t.Fatal(err)
	}
	g.dd(g.raw(dr, "az2"), 4096, at/4096, length/4096)
	g.dd(g.raw(g.pairs[1], "az2"), 512, 900<<20/512, 1) // in a hole
	v := g.verification(g.verify(1000), "equal")
	if v.Differences != 2 || v.DifferentBytes != length+512 || len(v.FirstDifferences) != 2 {
		t.Fatalf("%+v", v)
	}
	for _, have := range v.FirstDifferences {
		want := client.Difference{VolumeID: dr.disk["az1"], Offset: at, Length: length}
		if have.VolumeID != want.VolumeID {
			want = client.Difference{VolumeID: g.pairs[1].disk["az1"], Offset: 900 << 20, Length: 512}
		}
		if have.VolumeID != want.VolumeID || have.Offset != want.Offset || have.Length != want.Length || !have.Repaired || have.Kept == nil {
			t.Errorf("%+v, want %+v", have, want)
			continue
		}
		if have.Offset != at {
			continue
		}
		kept, err := os.ReadFile(filepath.Join(d.dir, "az1", "pool-1", *have.Kept+".primary"))
		chunk := int64(at) / (64 << 10) * (64 << 10)
		if err != nil || !bytes.Equal(kept, before[chunk:chunk+int64(len(kept))]) {
			t.Errorf("the kept bytes of the primary are not those: %v", err)
		}
	}
	c.progress(g, patience, 200)
	if err := c.stop(g); err != nil {
		t.Fatal(err)
	}
	if err := c.inspect(d.ctx, disks); err != nil {
		t.Error(err)
	}
	if longest := c.Longest(); longest > 10*time.Second+stalls.slack(began) {
		t.Errorf("a write took %s", longest)
	}
	for _, x := range disks {
		if err := x.Flush(d.ctx); err != nil {
			t.Fatal(err)
		}
	}
	closeAll(disks)
	g.sameFiles(g.pairs...)

	got, err := g.c.Group(g.ctx, g.id)
	if err != nil || got.Verified == nil || got.Verified.VerificationID != v.ID || len(got.Warnings) == 0 || len(got.Verified.WriteNumbers) == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	history, err := g.c.History(g.ctx, g.id)
	if err != nil || !strings.Contains(fmt.Sprint(history), fmt.Sprintf("the sides differ: volume %s, %d bytes at %d", dr.disk["az1"], length, at)) && !strings.Contains(fmt.Sprint(history), fmt.Sprintf("volume %s, %d bytes at %d", dr.disk["az1"], length, at)) {
		t.Errorf("history %v, %v", history, err)
	}
	// As a cron job does it: nothing is found, and the exit code is 0.
	out := g.cli("group", "verify", g.id, "--rate", "1000", "--wait", "--json")
	if !strings.Contains(out, `"state": "equal"`) || !strings.Contains(out, `"differences": 0`) {
		t.Errorf("%s", out)
	}
	if out := g.cli("group", "show", g.id); !strings.Contains(out, "proven equal") {
		t.Errorf("%s", out)
	}
}

// A secondary that dies in the middle ends the verification, which says so and is no proof; after the
// group came back to in sync, another one is.
func TestASecondaryThatDiesEndsTheVerification(t *testing.T) {
	t.Parallel()
	d := deploy(t, 1)
	g := d.syncedGroup(d.pair(1))
	disk := g.open(g.pairs[0], "az1")
	data := make([]byte, 16<<20)
	_, _ = rand.Read(data) // never fails
	if err := disk.WriteAt(d.ctx, data, 0, false); err != nil {
		t.Fatal(err)
	}
	id := g.verify(2)
	if again := g.verify(0); again != id {
		t.Errorf("a second verification: %s, want %s", again, id)
	}
	g.eventually(patience, "it is in the middle", func() error {
		got, err := g.c.Group(g.ctx, g.id)
		if err == nil && got.Verification.Bytes == 0 {
			err = errNotYet
		}
		return err
	})
	d.kill(node("az2", 1))
	v := g.verification(id, "not-completed")
	if v.Reason == nil || !strings.Contains(*v.Reason, "left in sync") {
		t.Errorf("%+v", v)
	}
	if got, err := g.c.Group(g.ctx, g.id); err != nil || got.Verified != nil {
		t.Errorf("a proof of what was not compared: %+v, %v", got.Verified, err)
	}
	if _, err := g.c.Verify(g.ctx, g.id, 0); !client.IsConflict(err) {
		t.Errorf("out of sync: %v", err)
	}
	d.writes(disk, 0, patience)
	d.start(node("az2", 1))
	g.untilActive()
	v = g.verification(g.verify(1000), "equal")
	if v.Differences != 0 {
		t.Errorf("%+v", v)
	}
	if err := disk.Flush(d.ctx); err != nil {
		t.Fatal(err)
	}
	g.sameFiles(g.pairs...)
}
