package replica

import (
	"errors"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/wire"
)

// Goal: a volume that joins a group at its secondary refuses requests as the others there do, though the group's
// mode was said before it came: held, a client at the wrong side would wait for ever, and not try the other.
// Method: the group forgets the volume, and binds it anew with the next record.
func TestVolumeThatJoinsASecondaryRefuses(t *testing.T) {
	p := newPair(t)
	p.sync(t)
	v, g := p.b.Volume("vb"), p.b.group("g")
	refuses := func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return errors.Is(v.refusal(), lockstep.ErrDemoted)
	}
	p.until(t, "the secondary refuses", refuses)
	g.mu.Lock()
	pair := g.pairOf["vb"]
	delete(g.vols, wire.Key(pair))
	g.mu.Unlock()
	if err := p.st.change(func(r protocol.Record) (protocol.Record, error) { return r.SetStrict(true) }); err != nil {
		t.Fatal(err)
	}
	p.until(t, "the volume is bound again", func() bool { return g.volumeByKey(wire.Key(pair)) == v })
	p.until(t, "the volume that joined refuses", refuses)
}
