package main

import "testing"

// A mutant whose text is gone from the code tests nothing.
func TestMutantsFollowTheCode(t *testing.T) {
	for _, m := range mutants {
		if _, err := edit("../../..", m.edits); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
