package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// inconsistency looks at the whole store at one revision for what no reader may ever see: pairs,
// groups, records and the volumes' access disagreeing. rest: nothing may be under way either.
func inconsistency(s *site, rest bool) error {
	kvs, _, err := s.st.List(context.Background(), "")
	if err != nil {
		return err
	}
	snap := newSnapshot()
	for _, kv := range kvs {
		if _, _, err := snap.apply(kv.Key, kv.Value, false, sceneNow); err != nil {
			return fmt.Errorf("%s: %w", kv.Key, err)
		}
	}
	member := map[lockstep.PairID]lockstep.GroupID{}
	for id, g := range snap.groups {
		r, ok := snap.records[id]
		if !ok {
			return fmt.Errorf("group %s has no record", id)
		}
		var pairs []lockstep.PairID
		for _, m := range r.Members {
			if have, twice := member[m.Pair]; twice {
				return fmt.Errorf("pair %s is in groups %s and %s", m.Pair, have, id)
			}
			member[m.Pair] = id
			pairs = append(pairs, m.Pair)
			if snap.pairs[m.Pair].Group != id {
				return fmt.Errorf("pair %s is a member of %s but says %q", m.Pair, id, snap.pairs[m.Pair].Group)
			}
		}
		if !slices.Equal(pairs, g.Pairs) {
			return fmt.Errorf("group %s has pairs %v, its record %v", id, g.Pairs, pairs)
		}
		if _, ok := snap.ops[g.Op]; g.Op != "" && !ok {
			return fmt.Errorf("group %s waits for operation %s, which does not exist", id, g.Op)
		}
		if status := recordStatus(g, r); !slices.Contains(GroupStatuses, status) {
			return fmt.Errorf("group %s is %q", id, status)
		}
		if rest && (g.Op != "" || len(snap.ops) > 0 || g.Overlay != "" && !strings.HasPrefix(g.Overlay, StatusError) || r.State != protocol.StateNormal) {
			return fmt.Errorf("group %s is not at rest: overlay %q, %s, operations %v", id, g.Overlay, r.Describe(), snap.ops)
		}
	}
	for id, p := range snap.pairs {
		if p.Group != member[id] {
			return fmt.Errorf("pair %s says group %q, it is a member of %q", id, p.Group, member[id])
		}
		if rest && p.Status != StatusAvailable {
			return fmt.Errorf("pair %s is %s", id, p.Status)
		}
		if p.Status == StatusDeleting {
			continue
		}
		for _, vid := range p.Volumes {
			v := snap.volumes[vid]
			want := serveInPair(p, vid)
			if p.Group != "" {
				want = store.Access{Mode: store.AccessGroup, Group: p.Group}
			}
			if v.Pair != id || v.Access != want {
				return fmt.Errorf("volume %s of pair %s: pair %q, access %+v, want %+v", vid, id, v.Pair, v.Access, want)
			}
			if rest && v.SizeBytes != p.Meta.SizeGiB*lockstep.GiB {
				return fmt.Errorf("volume %s has %d bytes, its pair %d GiB", vid, v.SizeBytes, p.Meta.SizeGiB)
			}
		}
	}
	for id, v := range snap.volumes {
		if _, ok := snap.pairs[v.Pair]; v.Pair != "" && !ok {
			return fmt.Errorf("volume %s says pair %s, which does not exist", id, v.Pair)
		}
		if v.Pair == "" && v.Access.Mode == store.AccessGroup {
			return fmt.Errorf("volume %s in no pair has access %+v", id, v.Access)
		}
	}
	for id, r := range snap.records {
		for _, m := range r.Members {
			if rest && (m.ExtendBytes != 0 || m.SizeBytes != snap.pairs[m.Pair].Meta.SizeGiB*lockstep.GiB) {
				return fmt.Errorf("record %s: pair %s has %d bytes, extending to %d; the pair has %d GiB", id, m.Pair, m.SizeBytes, m.ExtendBytes, snap.pairs[m.Pair].Meta.SizeGiB)
			}
		}
		if rest && r.State == protocol.StateDeleted {
			return fmt.Errorf("record %s is not buried", id)
		}
		if _, ok := snap.groups[id]; !ok && r.State != protocol.StateDeleted {
			return fmt.Errorf("record %s has no group", id)
		}
	}
	return nil
}

// checkRest waits until nothing is under way and everything agrees.
func checkRest(t testing.TB, s *site) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := inconsistency(s, true)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Millisecond)
	}
}
