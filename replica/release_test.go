package replica

import (
	"bytes"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
)

// Goal: a copy whose overwriting was cut off goes back to its recovery point when it is released as
// a plain disk; without a point it stays as it is.
func TestReleasedCopyGoesBackToItsPoint(t *testing.T) {
	for name, point := range map[string]bool{"point": true, "none": false} {
		t.Run(name, func(t *testing.T) {
			v := newBed(t).v
			old, newer := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(v.disk.WriteAt(old, 0))
			must(v.disk.Sync())
			if point {
				must(v.disk.SetPoint(4, 3))
				must(v.disk.Preserve([]lockstep.Extent{{Off: 0, Len: 4096}}))
			}
			must(v.disk.WriteAt(newer, 0))
			v.setMode(protocol.ModeRefused, 0, nil, nil, "was a DR disk")
			v.apply0(access{plain: true})
			want := newer
			if point {
				want = old
			}
			got := make([]byte, 4096)
			must(v.ReadAt(t.Context(), got, 0))
			if !bytes.Equal(got, want) {
				t.Errorf("holds %d, want %d", got[0], want[0])
			}
			if _, ok := v.disk.Point(); ok || v.disk.DirtyBytes() != 0 {
				t.Error("a point or dirty bits are left")
			}
		})
	}
}

// Goal: the same where the released copy is in a new group, as its truth, before its node has seen that it
// was released: what is served there, and copied from there, is the recovery point. (R96)
func TestReleasedCopyThatJoinsAtOnceGoesBackToItsPoint(t *testing.T) {
	p := newPair(t)
	v := p.a.Volume("va")
	old, newer := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(v.disk.WriteAt(old, 0))
	must(v.disk.Sync())
	must(v.disk.SetPoint(40, 30)) // epochs of the group that it left
	must(v.disk.Preserve([]lockstep.Extent{{Off: 0, Len: 4096}}))
	must(v.disk.WriteAt(newer, 0))
	v.setMode(protocol.ModeRefused, 0, nil, nil, "was a DR disk")
	p.sync(t)
	for _, v := range []*Volume{v, p.b.Volume("vb")} {
		got := make([]byte, 4096)
		must(v.disk.ReadAt(got, 0))
		if !bytes.Equal(got, old) {
			t.Errorf("volume %s holds %d, want %d", v.id, got[0], old[0])
		}
		if _, ok := v.disk.Point(); ok {
			t.Errorf("volume %s has a point left", v.id)
		}
	}
}
