package control

import (
	"slices"
	"testing"
	"time"

	"github.com/lockstep-dr/lockstep"
	"github.com/lockstep-dr/lockstep/protocol"
	"github.com/lockstep-dr/lockstep/store"
)

// scene is a group of two pairs over two primary nodes, and what is seen of it.
type scene struct {
	g     store.Group
	r     protocol.Record
	seen  map[lockstep.NodeID]Sight
	alive map[lockstep.NodeID]bool
}

var sceneNow = time.Unix(1e9, 0)

func newScene() *scene {
	s := &scene{
		g:     store.Group{ID: "g"},
		seen:  map[lockstep.NodeID]Sight{},
		alive: map[lockstep.NodeID]bool{"a1": true, "a2": true, "b1": true, "b2": true},
	}
	s.r = protocol.NewGroup("g", "p", "az1", "az2", []protocol.Member{
		{Pair: "p1", SizeBytes: 1000, Replicas: [2]protocol.Replica{{Volume: "v1", Node: "a1", AZ: "az1"}, {Volume: "w1", Node: "b1", AZ: "az2"}}},
		{Pair: "p2", SizeBytes: 1000, Replicas: [2]protocol.Replica{{Volume: "v2", Node: "a2", AZ: "az1"}, {Volume: "w2", Node: "b2", AZ: "az2"}}},
	})
	for n, v := range map[lockstep.NodeID]lockstep.VolumeID{"a1": "v1", "a2": "v2", "b1": "w1", "b2": "w2"} {
		peer := lockstep.NodeID("b") + n[1:]
		if n[0] == 'b' {
			peer = lockstep.NodeID("a") + n[1:]
		}
		s.seen[n] = Sight{GroupObserved: store.GroupObserved{
			Node: n, Serving: n[0] == 'a', At: sceneNow,
			Volumes: map[lockstep.VolumeID]store.ReplicaObserved{v: {}},
			Peers:   map[lockstep.NodeID]store.PeerObserved{peer: {Connected: true}},
		}}
	}
	return s
}

// inSync brings the scene to active.
func (s *scene) inSync() {
	s.r.State, s.r.InSync, s.r.Intent, s.r.Cause = protocol.StateNormal, true, protocol.IntentRun, protocol.CauseNone
	s.r.Epoch, s.r.InSyncEpoch = 3, 3
	for i := range s.r.Members {
		s.r.Members[i].InSyncEpoch = 3
	}
}

func (s *scene) tripped(cause protocol.Cause) {
	s.inSync()
	s.r.InSync, s.r.Cause, s.r.Epoch = false, cause, 5
}

// held makes a primary node hold requests for d, with its peer away.
func (s *scene) held(n lockstep.NodeID, d time.Duration) {
	x := s.seen[n]
	x.Serving, x.HeldSince = false, sceneNow.Add(-d)
	for p := range x.Peers {
		x.Peers[p] = store.PeerObserved{}
	}
	s.seen[n] = x
}

func (s *scene) volume(n lockstep.NodeID, v lockstep.VolumeID, o store.ReplicaObserved) {
	s.seen[n].Volumes[v] = o
}

const null = "null"

// Goal: each row of the table of faults in the design, and the API's wording beyond it.
func TestDeriveGroup(t *testing.T) {
	rows := []struct {
		name                          string
		make                          func(*scene)
		status, replication, fault    string
		progress                      string
		pairReplication, pairProgress string // of p1; "": as the group
	}{
		{
			name: "new, never synchronized", make: func(*scene) {},
			status: "available", replication: "inactive", fault: "0", progress: null,
		},
		{
			name: "paused", make: func(s *scene) { s.tripped(protocol.CausePause); s.r.Intent, s.r.Drained = protocol.IntentPaused, true },
			status: "available", replication: "active-stopped", fault: "0", progress: "100",
		},
		{name: "paused, then written", make: func(s *scene) {
			s.tripped(protocol.CausePause)
			s.r.Intent, s.r.Drained = protocol.IntentPaused, true
			s.volume("a1", "v1", store.ReplicaObserved{DirtyBytes: 250})
		}, status: "available", replication: "active-stopped", fault: "0", progress: "87", pairReplication: "inactive", pairProgress: "75"},
		{
			name: "paused while copying", make: func(s *scene) { s.tripped(protocol.CausePause); s.r.Intent = protocol.IntentPaused },
			status: "available", replication: "inactive", fault: "0", progress: "100",
		},
		{name: "paused, a node dead", make: func(s *scene) {
			s.tripped(protocol.CausePause)
			s.r.Intent, s.alive["b1"] = protocol.IntentPaused, false
		}, status: "available", replication: "inactive", fault: "5", progress: "100"},
		{
			name: "copying, nothing reported", make: func(s *scene) { s.tripped(protocol.CauseLink); s.r.State = protocol.StateCopying },
			status: "available", replication: "copying", fault: "0", progress: "0",
		},
		{name: "copying", make: func(s *scene) {
			s.tripped(protocol.CauseLink)
			s.r.State = protocol.StateCopying
			s.volume("a1", "v1", store.ReplicaObserved{ToSendBytes: 100, TotalBytes: 400})
			s.volume("a2", "v2", store.ReplicaObserved{ToSendBytes: 100, TotalBytes: 100})
		}, status: "available", replication: "copying", fault: "0", progress: "60", pairProgress: "75"},
		{name: "copying, all sent", make: func(s *scene) {
			s.r.State, s.r.Intent = protocol.StateCopying, protocol.IntentRun
			s.volume("a1", "v1", store.ReplicaObserved{TotalBytes: 400})
			s.volume("a2", "v2", store.ReplicaObserved{TotalBytes: 100})
		}, status: "available", replication: "copying", fault: "0", progress: "99"},
		{
			name: "active", make: (*scene).inSync,
			status: "available", replication: "active", fault: "0", progress: "100",
		},
		{name: "holds at rest, all connected", make: func(s *scene) {
			s.inSync()
			x := s.seen["a1"]
			x.Serving, x.HeldSince = false, sceneNow.Add(-5*time.Second)
			s.seen["a1"] = x
		}, status: "available", replication: "active", fault: "2", progress: "100"},
		{name: "holds at rest, paused", make: func(s *scene) {
			s.tripped(protocol.CausePause)
			s.r.Intent, s.r.Drained = protocol.IntentPaused, true
			x := s.seen["a1"]
			x.Serving, x.HeldSince = false, sceneNow.Add(-5*time.Second)
			s.seen["a1"] = x
		}, status: "available", replication: "active-stopped", fault: "5", progress: "100"},
		{name: "failed over", make: func(s *scene) {
			s.tripped(protocol.CauseFailover)
			s.r.FailedOver, s.r.Primary, s.r.Secondary = true, "az2", "az1"
			s.alive["a1"], s.alive["a2"] = false, false
		}, status: "failovered", replication: "active-stopped", fault: "0", progress: "100"},
		{name: "failed over, the new primary node dies", make: func(s *scene) {
			s.tripped(protocol.CauseFailover)
			s.r.FailedOver, s.r.Primary, s.r.Secondary = true, "az2", "az1"
			s.alive["b1"] = false
		}, status: "failovered", replication: "active-stopped", fault: "5", progress: "100"},
		{name: "failed over and written", make: func(s *scene) {
			s.tripped(protocol.CauseFailover)
			s.r.FailedOver, s.r.Primary, s.r.Secondary = true, "az2", "az1"
			s.volume("b1", "w1", store.ReplicaObserved{DirtyBytes: 1})
		}, status: "failovered", replication: "active-stopped", fault: "0", progress: "99", pairReplication: "inactive"},
		{
			name: "primary node dies", make: func(s *scene) { s.inSync(); s.alive["a1"] = false },
			status: "available", replication: "active", fault: "2", progress: "100",
		},
		{
			name: "primary AZ dies", make: func(s *scene) { s.inSync(); s.alive["a1"], s.alive["a2"] = false, false },
			status: "available", replication: "active", fault: "2", progress: "100",
		},
		{
			name: "primary disk fails", make: func(s *scene) { s.inSync(); s.volume("a1", "v1", store.ReplicaObserved{Failed: "EIO"}) },
			status: "available", replication: "active", fault: "2", progress: "100",
		},
		{
			name: "replication link down", make: func(s *scene) { s.tripped(protocol.CauseLink) },
			status: "available", replication: "inactive", fault: "5", progress: "100",
		},
		{
			name: "replication link down, before the trip", make: func(s *scene) { s.inSync(); s.held("a1", time.Second) },
			status: "available", replication: "active", fault: "0", progress: "100",
		},
		{
			name: "secondary node dies", make: func(s *scene) { s.tripped(protocol.CauseLink); s.alive["b1"] = false },
			status: "available", replication: "inactive", fault: "5", progress: "100",
		},
		{
			name: "secondary node dies, before the trip", make: func(s *scene) { s.inSync(); s.alive["b1"] = false },
			status: "available", replication: "active", fault: "0", progress: "100",
		},
		{
			name: "secondary disk fails", make: func(s *scene) { s.tripped(protocol.CauseSecondaryDisk) },
			status: "available", replication: "error", fault: "5", progress: "100",
		},
		{name: "secondary disk failed while paused", make: func(s *scene) {
			s.tripped(protocol.CausePause)
			s.r.Intent, s.r.Drained = protocol.IntentPaused, true
			s.volume("b1", "w1", store.ReplicaObserved{Failed: "EIO"})
		}, status: "available", replication: "error", fault: "5", progress: "100"},
		{name: "primary cut from secondary and store", make: func(s *scene) {
			s.inSync()
			s.alive["a1"] = false // its presence ran out
			s.held("a1", time.Minute)
		}, status: "available", replication: "active", fault: "2", progress: "100"},
		{
			name: "primary host rebooted while its link is down", make: func(s *scene) { s.inSync(); s.held("a1", time.Minute) },
			status: "available", replication: "active", fault: "2", progress: "100",
		},
		{name: "two primary nodes: one dead and the other's link down", make: func(s *scene) {
			s.inSync()
			s.r.State, s.r.Cause = protocol.StateTripping, protocol.CauseLink
			s.alive["a1"] = false
			s.held("a2", time.Minute)
		}, status: "available", replication: "active", fault: "2", progress: "100"},
		{
			name: "tripping", make: func(s *scene) { s.inSync(); s.r.State, s.r.Cause = protocol.StateTripping, protocol.CauseLink },
			status: "available", replication: "active", fault: "0", progress: "100",
		},
		{
			name: "failovering", make: func(s *scene) { s.inSync(); s.r.State = protocol.StateFailovering; s.alive["a1"] = false },
			status: "failovering", replication: "active", fault: "2", progress: "100",
		},
		{
			name: "reversing", make: func(s *scene) { s.inSync(); s.r.State = protocol.StateReversing },
			status: "reversing", replication: "active", fault: "0", progress: "100",
		},
		{
			name: "back-out", make: func(s *scene) { s.inSync(); s.g.Overlay = StatusErrorFailovered },
			status: "error_failovering", replication: "active", fault: "0", progress: "100",
		},
		{
			name: "emptied", make: func(s *scene) { s.r.Members = nil },
			status: "available", replication: "inactive", fault: "0", progress: null, pairReplication: "inactive", pairProgress: null,
		},
		{name: "updating a failed-over group", make: func(s *scene) {
			s.tripped(protocol.CauseFailover)
			s.r.FailedOver, s.g.Overlay = true, StatusUpdating
		}, status: "updating", replication: "active-stopped", fault: "0", progress: "100"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			s := newScene()
			row.make(s)
			got := DeriveGroup(s.g, s.r, s.seen, s.alive, sceneNow)
			if got.Status != row.status || got.ReplicationStatus != row.replication || got.FaultLevel != row.fault || str(got.Progress) != row.progress {
				t.Errorf("group: got %s / %s / %s / %s, want %s / %s / %s / %s", got.Status, got.ReplicationStatus, got.FaultLevel, str(got.Progress),
					row.status, row.replication, row.fault, row.progress)
			}
			if row.pairReplication == "" {
				row.pairReplication = row.replication
			}
			pair := DerivePair(store.Pair{ID: "p1"}, &s.r, s.seen, s.alive, sceneNow)
			if pair.ReplicationStatus != row.pairReplication || row.pairProgress != "" && str(pair.Progress) != row.pairProgress {
				t.Errorf("pair: got %s / %s, want %s / %s", pair.ReplicationStatus, str(pair.Progress), row.pairReplication, row.pairProgress)
			}
		})
	}
}

func str(s *string) string {
	if s == nil {
		return null
	}
	return *s
}

func TestDerivePairOutside(t *testing.T) {
	got := DerivePair(store.Pair{ID: "p"}, nil, nil, nil, sceneNow)
	if got != (PairStatus{ReplicationStatus: ReplicationInactive, FaultLevel: FaultNone}) {
		t.Fatalf("a pair in no group is %+v", got)
	}
}

// Goal: whatever a record says, and whatever is wrong around it, the statuses are documented ones
// and do not lie about a failover. Method: all combinations.
func TestEveryRecordHasADocumentedStatus(t *testing.T) {
	replications := []string{ReplicationActive, ReplicationStopped, ReplicationCopying, ReplicationInactive, ReplicationError}
	faultLevels := []string{FaultNone, FaultProduction, FaultLink}
	overlays := append([]string{""}, StatusCreating, StatusUpdating, StatusDeleting, StatusError, StatusErrorDeleting, StatusErrorFailovered, StatusErrorReversing)
	count := 0
	for _, state := range []protocol.State{protocol.StateNormal, protocol.StateTripping, protocol.StateCopying, protocol.StateFailovering, protocol.StateReversing, protocol.StateDeleted} {
		for _, cause := range []protocol.Cause{protocol.CauseNone, protocol.CauseLink, protocol.CauseSecondaryBoot, protocol.CauseSecondaryDisk, protocol.CausePause, protocol.CausePrimaryBoot, protocol.CauseBackOut, protocol.CauseCopyAborted, protocol.CauseFailover, protocol.CauseNew} {
			for bits := range 1 << 10 {
				bit := func(i int) bool { return bits>>i&1 == 1 }
				s := newScene()
				s.inSync()
				s.r.State, s.r.Cause = state, cause
				s.r.InSync, s.r.FailedOver, s.r.Drained = bit(0), bit(1), bit(2)
				if bit(3) {
					s.r.Intent = protocol.IntentPaused
				}
				s.alive["a1"], s.alive["b1"] = !bit(4), !bit(5)
				if bit(6) {
					s.volume("a2", "v2", store.ReplicaObserved{Failed: "EIO"})
				}
				if bit(7) {
					s.volume("b2", "w2", store.ReplicaObserved{Failed: "EIO"})
				}
				if bit(8) {
					s.held("a1", time.Minute)
				}
				if bit(9) {
					s.r.Members = nil
				}
				s.g.Overlay = overlays[bits%len(overlays)]
				got := DeriveGroup(s.g, s.r, s.seen, s.alive, sceneNow)
				pair := DerivePair(store.Pair{ID: "p1"}, &s.r, s.seen, s.alive, sceneNow)
				switch {
				case !slices.Contains(GroupStatuses, got.Status):
					t.Fatalf("status %q of %s", got.Status, s.r.Describe())
				case !slices.Contains(replications, got.ReplicationStatus), !slices.Contains(replications, pair.ReplicationStatus):
					t.Fatalf("replication %q, pair %q of %s", got.ReplicationStatus, pair.ReplicationStatus, s.r.Describe())
				case !slices.Contains(faultLevels, got.FaultLevel):
					t.Fatalf("fault level %q of %s", got.FaultLevel, s.r.Describe())
				case got.FaultLevel == FaultProduction && !s.r.InSync:
					t.Fatalf("a failover is advised that would be refused: %s", s.r.Describe())
				case (got.ReplicationStatus == ReplicationActive) != s.r.InSync:
					t.Fatalf("%s for %s", got.ReplicationStatus, s.r.Describe())
				}
				count++
			}
		}
	}
	if count != 6*10*1024 {
		t.Fatalf("looked at %d records", count)
	}
}

// DerivePair gives the replication statuses of one pair; r is nil for a pair in no group.
func DerivePair(p store.Pair, r *protocol.Record, seen map[lockstep.NodeID]Sight, alive map[lockstep.NodeID]bool, now time.Time) PairStatus {
	none := PairStatus{ReplicationStatus: ReplicationInactive, FaultLevel: FaultNone}
	if r == nil {
		return none
	}
	var member *protocol.Member
	for i := range r.Members {
		if r.Members[i].Pair == p.ID {
			member = &r.Members[i]
		}
	}
	if member == nil {
		return none
	}
	return memberStatus(*member, *r, inspect(*r, seen, alive, now), seen)
}
