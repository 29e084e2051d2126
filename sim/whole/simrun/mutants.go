package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// mutant is a rule of the product left out: in engine, disk or orchestration, where the simulation of the
// protocol (package sim) has a shell of its own and sees nothing.
type mutant struct {
	name  string
	edits []patch // files below the root of the repository
	most  int     // seeds within which it must be caught
	seen  bool    // it was seen to be caught; the others run only when they are named
}

var mutants = []mutant{
	{"a write is acknowledged before the secondary's answer", []patch{
		{"replica/volume.go", "if !o.acked && !oneSided {", "if !o.acked && !oneSided && o.ext.Len < 0 {"},
	}, 30, true},
	{"a write of a copying epoch is not sent although its chunk was", []patch{
		{"replica/volume.go", "return to <= v.todo.Len() && v.todo.AllSet(from, to)\n", "return from <= to\n"},
	}, 60, true},
	{"a transaction does not compare what it read", []patch{
		{"control/tx.go", "\t\tcmps = append(cmps, store.Cmp{Key: key, ModRev: t.cmps[key]})\n", "\t\t_ = key\n"},
	}, 150, true},
	{"an epoch is acted on before it is persisted", []patch{
		{"replica/batch.go", "if err := g.host.pool.SaveGroup(g.id, blob); err != nil {", "if err := error(nil); err != nil && len(blob) > 0 {"},
	}, 60, true},
	{"after a restart marked regions are not compared", []patch{
		{"replica/repair.go", "for _, e := range marked {\n\t\tu.left", "for _, e := range marked[:0] {\n\t\tu.left"},
	}, 700, true},
	{"the first epoch out of sync makes nothing dirty of what the log names", []patch{
		{"disk/dirty.go", "v.AddDirty(v.Doubtful())", "v.AddDirty(nil)"},
	}, 1000, false},
	{"what was confirmed once stays so, whatever is written", []patch{
		{"disk/intent.go", "c == 0 || w.touched.at(r).Load() > c", "c == 0"},
	}, 400, true},
	{"a write of one side alone marks no chunk", []patch{
		{"replica/volume.go", "\t\t\terr := v.disk.MarkDirty(o.ext.Off, o.ext.Len)\n", "\t\t\terr := error(nil)\n"},
	}, 100, true},
	{"a secondary takes frames of older epochs", []patch{
		{"replica/accept.go", "\tcase h.Epoch < b.fenced:\n\t\treturn nil, lockstep.ErrStaleEpoch\n\tcase announced && h.Epoch != c.epoch:\n", "\tcase false:\n"},
	}, 400, true},
	{"a node serves before it has adopted the record", []patch{
		{"replica/volume.go", "mode: protocol.ModeHeld, why: \"starting\"", "mode: protocol.ModePlain, why: \"starting\""},
	}, 60, false},
	{"the new primary does not wait for the leases it gave", []patch{
		{"replica/accept.go", "\t\tleft := until - b.g.host.now()\n", "\t\tleft := min(0, until-b.g.host.now())\n"},
	}, 300, false},
	{"a read is given out without a lease", []patch{
		{"replica/read.go", "\t\tif ok {\n\t\t\treturn true, nil\n\t\t}\n\t\tchanged", "\t\tif ok || true {\n\t\t\treturn true, nil\n\t\t}\n\t\tchanged"},
	}, 300, false},
	{"no recovery point before a resync overwrites", []patch{
		{"replica/batch.go", "return g.eachOf(s.Pairs, func(v *Volume) error { return v.disk.SetPoint(s.Epoch, s.InSyncEpoch) })", "return nil"},
	}, 200, true},
	{"no roll-back before a forced failover", []patch{
		{"replica/batch.go", "err := v.disk.RollBackSince(s.InSyncEpoch)", "err := error(nil)"},
	}, 200, true},
	{"the divergence image is not kept", []patch{
		{"replica/batch.go", "return g.eachOf(s.Pairs, func(v *Volume) error { return v.disk.KeepImage(s.Epoch) })", "return nil"},
	}, 200, true},
	{"strict serves without the store's lease", []patch{
		{"replica/volume.go", "if !o.dirty || v.lease != nil && !v.lease.holds(v.epoch) {", "if !o.dirty {"},
	}, 60, true},
	{"an extend grows one side only", []patch{
		{"control/extend.go", "\t\treturn j.grow(sizes, j.r.Secondary, stepWaitSecondary)\n", "\t\tj.step(stepGrowPrimary)\n\t\treturn nil\n"},
		{"control/extend.go", "for _, az := range []lockstep.AZ{j.r.Secondary, j.r.Primary} {\n\t\t\tif ok", "for _, az := range []lockstep.AZ{j.r.Primary} {\n\t\t\tif ok"},
	}, 60, true},
	{"no mark of the write-intent log before the data", []patch{
		{"replica/volume.go", "case !o.marked && v.mode != protocol.ModePlain:", "case !o.marked && v.mode == protocol.ModeOneSided:"},
	}, 100, true},
	{"a flush does not wait for the secondary", []patch{
		{"replica/read.go", "\t\tif !twoSided {\n\t\t\treturn nil\n", "\t\tif !twoSided || true {\n\t\t\treturn nil\n"},
	}, 300, false},
}

// runMutants runs mutants until a seed catches it, and prints a table.
func runMutants(cache, only string, from uint64, jobs int) error {
	missed := 0
	fmt.Println("| left out | caught by seed | of | found |\n|---|---|---|---|")
	for _, m := range mutants {
		if only == "" && !m.seen || !strings.Contains(m.name, only) {
			continue
		}
		row, caught, err := m.test(cache, from, jobs)
		if err != nil {
			return fmt.Errorf("mutant %q: %w", m.name, err)
		}
		if !caught {
			missed++
		}
		fmt.Println(row)
	}
	if missed > 0 {
		return fmt.Errorf("%d mutants were not caught", missed)
	}
	return nil
}

func (m mutant) test(cache string, from uint64, jobs int) (row string, caught bool, err error) {
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return "", false, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	sources, err := edit(".", m.edits)
	if err != nil {
		return "", false, err
	}
	replace := map[string]map[string]string{"Replace": {}}
	for file, text := range sources {
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", false, err
		}
		abs, err := filepath.Abs(file)
		if err != nil {
			return "", false, err
		}
		replace["Replace"][abs] = to
	}
	raw, err := json.Marshal(replace)
	if err != nil {
		return "", false, err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, raw, 0o600); err != nil {
		return "", false, err
	}
	r := &runner{stats: map[string]int{}, first: true}
	r.out = &bytes.Buffer{}
	if err := r.build(cache, overlay); err != nil {
		return "", false, err
	}
	defer r.clean()
	var list []uint64
	for i := range m.most {
		list = append(list, from+uint64(i))
	}
	began := time.Now()
	_ = r.seeds(list, jobs, 0) // that one fails is what is wanted
	if len(r.failed) == 0 {
		return fmt.Sprintf("| %s | **none** | %d | nothing in %.0f s |", m.name, r.ran, time.Since(began).Seconds()), false, nil
	}
	return fmt.Sprintf("| %s | %d | %d | %s |", m.name, r.failed[0], r.ran, r.found), true, nil
}

// edit gives the text of files with their patches.
func edit(root string, edits []patch) (map[string]string, error) {
	sources := map[string]string{}
	for _, p := range edits {
		file := filepath.Join(root, p.file)
		if sources[file] == "" {
			raw, err := os.ReadFile(file) //nolint:gosec // its name is in the table
			if err != nil {
				return nil, err
			}
			sources[file] = string(raw)
		}
		if strings.Count(sources[file], p.line) != 1 {
			return nil, fmt.Errorf("%s has not once the text %q", file, p.line)
		}
		sources[file] = strings.Replace(sources[file], p.line, p.instead, 1)
	}
	return sources, nil
}
