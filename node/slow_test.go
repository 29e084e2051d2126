//go:build !race

package node

// slow stretches the times of the tests.
const slow = 1
