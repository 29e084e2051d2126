package main

import (
	"slices"
	"testing"

	"github.com/lockstep-dr/lockstep/cmd/lockstep/internal/torture"
)

// A mutant whose text is gone from the code, or that names no plan, tests nothing.
func TestMutantsFollowTheCode(t *testing.T) {
	root, err := moduleRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range mutants {
		if names[m.name] {
			t.Errorf("%s is there twice", m.name)
		}
		names[m.name] = true
		if _, err := m.overlay(root, t.TempDir()); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		for _, p := range m.plans {
			if !slices.Contains(torture.PlanNames(), p) {
				t.Errorf("%s: there is no plan %q", m.name, p)
			}
		}
		if len(m.plans) == 0 || m.rule == "" {
			t.Errorf("%s says neither plan nor rule", m.name)
		}
	}
	if torture.NothingLost != nothingLost {
		t.Errorf("the verdict of a good run is %q", torture.NothingLost)
	}
}
