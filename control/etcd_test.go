package control

import (
	"io"
	"log/slog"
	"testing"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/store/etcdstore"
)

// Goal: the largest group that one call may make fits into a transaction of the real store, which
// the cache follows as it follows the one in memory.
func TestLargestGroupOnEtcd(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a store on disk")
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	member, err := etcdstore.StartEmbedded(etcdstore.EmbedConfig{Dir: t.TempDir(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := member.Close(); err != nil {
			t.Error(err)
		}
	})
	st, err := etcdstore.Open(t.Context(), etcdstore.Config{Endpoints: member.Endpoints(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	s := newSiteOn(t, st, "a1", "b1")
	c, _ := s.controller()
	var pairs []lockstep.PairID
	for range maxPairsChanged {
		var vols []lockstep.VolumeID
		for _, az := range []lockstep.AZ{"az1", "az2"} {
			vols = append(vols, must[VolumeView](t)(c.CreateVolume(s.ctx, caller, VolumeCreate{SizeGiB: 1, AZ: az})).ID)
		}
		eventually(t, "volumes", func() bool {
			ok := true
			for _, v := range vols {
				got, err := c.GetVolume(s.ctx, caller, v)
				ok = ok && err == nil && got.Status == StatusAvailable
			}
			return ok
		})
		p := must[PairView](t)(c.CreatePair(s.ctx, caller, PairCreate{Volumes: vols, Priority: "az1", Model: modelHypermetro}))
		pairs = append(pairs, p.ID)
	}
	eventually(t, "pairs", func() bool {
		for _, p := range must[[]PairView](t)(c.ListPairs(s.ctx, caller)) {
			if p.Status != StatusAvailable {
				return false
			}
		}
		return true
	})
	g := must[GroupView](t)(c.CreateGroup(s.ctx, caller, GroupCreate{Pairs: pairs, Priority: "az1", Model: modelHypermetro}))
	s.awaitGroup(c, g.ID, StatusAvailable, ReplicationInactive)
	s.act(c, g.ID, ActionSync)
	s.awaitGroup(c, g.ID, StatusAvailable, ReplicationActive)
	s.act(c, g.ID, ActionStop)
	must[GroupView](t)(c.UpdateGroup(s.ctx, caller, g.ID, GroupUpdate{Remove: pairs}))
	s.awaitGroup(c, g.ID, StatusAvailable, ReplicationInactive)
	if !c.peekCache(func(*snapshot) {}) {
		t.Fatal("the cache does not follow")
	}
	if err := c.DeleteGroup(s.ctx, caller, g.ID); err != nil {
		t.Fatal(err)
	}
	checkRest(t, s)
}
