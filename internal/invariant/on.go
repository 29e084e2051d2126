//go:build invariants

package invariant

// Check panics with what check says, unless that is empty.
func Check(check func() string) {
	if broken := check(); broken != "" {
		panic("invariant: " + broken)
	}
}
