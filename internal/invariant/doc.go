// Package invariant holds assertions that are too dear for production. They are compiled in with the
// build tag invariants, which `make unit`, `make sim`, `make long` and `make e2e` set. One that does
// not hold stops the process: what is on disk is what a restart begins with.
package invariant
