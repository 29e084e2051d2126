package main

// mutant is lockstep with something taken out.
type mutant struct {
	name  string
	rule  string   // of docs/internals/rules.md, or the part of the data path
	plans []string // that are aimed at it
	edits []edit
}

// edit replaces a text, which a file has exactly once, by another.
type edit struct {
	file     string // from the root of the module
	old, new string
}

// mutants are those that a killed process can show. What only a lost page cache shows, a missing
// fdatasync for one, is the business of test/power.
var mutants = []mutant{
	{
		"f7", "F7: no fall-back after the two-sided report",
		[]string{"report"},
		[]edit{{"protocol/primary.go", "c.adopted != c.rec.Epoch || c.reported ||", "c.adopted != c.rec.Epoch ||"}},
	},
	{
		"lease-check", "reads under a lease",
		[]string{"isolated readers", "frozen primary"},
		[]edit{{
			"replica/read.go", "		ok, renewed := v.lease.valid(v.epoch)\n		if ok {",
			"		ok, renewed := v.lease.valid(v.epoch)\n		if ok || true {",
		}},
	},
	{
		"lease-wait", "F15: the new primary waits for the last lease",
		[]string{"isolated readers"},
		[]edit{{"replica/accept.go", "	until := granted + b.g.host", "	granted = -time.Hour\n	until := granted + b.g.host"}},
	},
	{
		"ack-before-peer", "acknowledge when both have it",
		[]string{"isolated readers", "kill in mid-write"},
		[]edit{{
			"replica/volume.go", "if !o.acked && !oneSided {", "if !o.acked && !oneSided && o.ext.Len < 0 {",
		}},
	},
	{
		"copying-unsent", "a write of a copying epoch reaches the secondary, itself or with its chunk",
		[]string{"kill in mid-write"},
		[]edit{{
			"replica/volume.go", "return to <= v.todo.Len() && v.todo.AllSet(from, to)\n", "return from <= to\n",
		}},
	},
	{
		"repair-skipped", "F9: marked regions are repaired after a restart",
		[]string{"kill in mid-write"},
		[]edit{{"protocol/primary.go", "	if c.repairFree || p.repaired {\n		return true", "	if c.repairFree || p.repaired || true {\n		return true"}, {
			"protocol/primary.go", "unrepaired := m == ModeTwoSided && !c.repairFree && !p.repaired", "unrepaired := false",
		}},
	},
	{
		"intent-not-marked", "the intent log is marked before the data goes anywhere",
		[]string{"kill in mid-write"},
		[]edit{{"replica/volume.go", "err = v.disk.MarkIntent(o.ext.Off, o.ext.Len)", "err = nil"}},
	},
	{
		"chunks-not-marked", "F14: a write of one side alone marks its chunks",
		[]string{"kill in mid-resync"},
		[]edit{{"replica/volume.go", "\t\t\terr := v.disk.MarkDirty(o.ext.Off, o.ext.Len)\n", "\t\t\terr := error(nil)\n"}},
	},
	{
		"unacknowledged-reads", "a read waits for the writes that it overlaps",
		[]string{"isolated readers", "hot block"},
		[]edit{{"replica/read.go", "if o.kind != opChunk && o.submitted && o.ext.Overlaps(ext) {", "if false && o.ext.Overlaps(ext) {"}},
	},
	{
		"torn-reads", "what a write has torn is read again",
		[]string{"hot block"},
		[]edit{{"replica/read.go", "		todo = torn\n", "		todo = nil\n"}},
	},
	{
		"batch-not-marked", "a batch begins only writes to marked regions",
		[]string{"kill in mid-write"},
		[]edit{{"replica/submit.go", " || !v.disk.TryMarkIntent(off, ext.Len)", ""}},
	},
	{
		"batch-unacknowledged-reads", "a batch reads nothing that is not acknowledged",
		[]string{"isolated readers", "hot block"},
		[]edit{{"replica/submit.go", " || v.inFlight(ext) {", " {"}},
	},
	{
		"batch-lease", "a batch reads under a lease",
		[]string{"isolated readers", "frozen primary"},
		[]edit{{"replica/submit.go", " && (v.lease == nil || v.lease.holds(v.epoch))", ""}},
	},
	{
		"old-epochs", "a secondary refuses frames of older epochs",
		[]string{"frozen primary"},
		[]edit{{"replica/accept.go", "	case h.Epoch < b.fenced:\n", "	case false:\n"}},
	},
	{
		"half-resync", "a synchronization sends all that differs",
		[]string{"kill in mid-resync"},
		[]edit{{"replica/jobs.go", "		if differ[i] == 0 || !want(i) {\n", "		if differ[i] == 0 || !want(i) || i == 3 {\n"}},
	},
	{
		"alone-in-sync", "leaving in sync is an epoch",
		[]string{"isolated readers"},
		[]edit{{"protocol/primary.go", "if c.rec.State != StateCopying || c.adopted", "if c.adopted"}},
	},
	{
		"old-sessions", "F8: a hello closes and drains older sessions",
		[]string{"late frames"},
		[]edit{{
			"replica/accept.go", "		default:\n			b.mu.Unlock()\n			_ = old.conn.Close()\n			old.end() // the answer to an announcement may be long in coming, and is for nobody now\n			<-old.done\n",
			"		default:\n			b.conns[c.from], b.newest[c.from] = c, c.session\n			b.mu.Unlock()\n			return nil\n",
		}},
	},
	{
		"restart-in-copying", "F19: a copying in which the node starts is aborted",
		[]string{"restart after the report"},
		[]edit{{"protocol/primary.go", "if r.State == StateCopying && c.startIn == r.Epoch {", "if false {"}},
	},
}
