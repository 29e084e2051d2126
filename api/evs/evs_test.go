package evs

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/api/rest"
	"github.com/lockstep-dr/lockstep/control"
)

func draw[T ~string](t *rapid.T, label string, from ...T) T {
	return rapid.SampledFrom(from).Draw(t, label)
}

// TestPairFilters compares the filters with their definition: a pair is admitted if every filter
// that is given holds, and volume_ids is a set.
func TestPairFilters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p control.PairView
		p.Volumes = [2]lockstep.VolumeID{draw[lockstep.VolumeID](t, "v0", "a", "b"), draw[lockstep.VolumeID](t, "v1", "c", "d")}
		p.Group = draw[lockstep.GroupID](t, "group", "", "g")
		p.Priority = draw[lockstep.AZ](t, "station", "az1", "az2")
		p.Pair.Status = draw[string](t, "status", "available", "error")
		p.CreatedAt = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
		if name := draw[string](t, "name", "nil", "", "n"); name != "nil" {
			p.Name = &name
		}
		q := url.Values{}
		want := true
		give := func(key, value string, holds bool) {
			if rapid.Bool().Draw(t, "give "+key) {
				q.Set(key, value)
				want = want && holds
			}
		}
		give("name", "n", p.Name != nil && *p.Name == "n")
		give("status", "error", p.Pair.Status == "error")
		give("priority_station", "az1", p.Priority == "az1")
		give("replication_consistency_group_id", "g", p.Group == "g")
		give("volume_id", "c", p.Volumes[1] == "c")
		give("changes-since", "2020-01-01T00:00:01", false)
		ids := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 3).Draw(t, "ids")
		sorted := slices.Sorted(slices.Values(ids))
		give("volume_ids", strings.Join(ids, " , "), slices.Equal(sorted, []string{string(p.Volumes[0]), string(p.Volumes[1])}))
		keep, err := keepPair(q)
		if err != nil {
			t.Fatal(err)
		}
		if got := keep(p); got != want {
			t.Fatalf("%v admits %+v: %v, want %v", q, p, got, want)
		}
	})
}

// TestGroupFilters likewise; that of the volume chooses what is looked at.
func TestGroupFilters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := control.GroupView{Priority: draw[lockstep.AZ](t, "station", "az1", "az2"), Status: draw[string](t, "status", "available", "error")}
		q := url.Values{}
		want := true
		give := func(key, value string, holds bool) {
			if rapid.Bool().Draw(t, "give "+key) {
				q.Set(key, value)
				want = want && holds
			}
		}
		give("name", "n", false)
		give("status", "error", g.Status == "error")
		give("priority_station", "az2", g.Priority == "az2")
		keep, err := keepGroup(q)
		if err != nil {
			t.Fatal(err)
		}
		if got := keep(g); got != want {
			t.Fatalf("%v admits %+v: %v, want %v", q, g, got, want)
		}
	})
}

// TestActions reads every body that is right; those that are wrong are refused at the handler,
// whose test has them.
func TestActions(t *testing.T) {
	for body, want := range map[string]control.Action{
		`{"os-failover-replication-consistency-group":null}`:            control.ActionFailover,
		`{"os-failover-replication-consistency-group":{}}`:              control.ActionFailover,
		`{"os-failover-replication-consistency-group":{"force":false}}`: control.ActionFailover,
		`{"os-sync-replication-consistency-group":null}`:                control.ActionSync,
		`{"os-reverse-replication-consistency-group":{}}`:               control.ActionReverse,
		`{"os-stop-replication-consistency-group":null}`:                control.ActionStop,
		`{"os-reprotect-replication-consistency-group":{}}`:             control.ActionReprotect,
	} {
		o, err := rest.ParseObject([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if got, ext, err := readAction(o); got != want || ext != nil || err != nil {
			t.Errorf("%s: %s, %v, %v", body, got, ext, err)
		}
	}
	for body, want := range map[string][]control.Extend{
		`{"os-extend-replication-volumes":{"id":"p","new_size":20}}`:                                            {{Pair: "p", SizeGiB: 20}},
		`{"os-extend-replication-volumes":{"replications":[{"id":"p","new_size":20},{"id":"q","new_size":1}]}}`: {{Pair: "p", SizeGiB: 20}, {Pair: "q", SizeGiB: 1}},
	} {
		o, err := rest.ParseObject([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if got, ext, err := readAction(o); got != control.ActionExtend || !slices.Equal(ext, want) || err != nil {
			t.Errorf("%s: %s, %v, %v", body, got, ext, err)
		}
	}
}

// TestRecordMetadata: whatever the type is called, the string is JSON as the vendor spells it.
func TestRecordMetadata(t *testing.T) {
	var p control.PairView
	p.Meta.SizeGiB, p.Meta.Type, p.Meta.Multiattach = 10, `s"d`, true
	if got, want := recordMetadata(p), `{"volume_size": 10, "volume_type": "s\"d", "multiattach": true}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
