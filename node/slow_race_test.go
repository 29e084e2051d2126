//go:build race

package node

// slow stretches the times of the tests: the race detector takes several times as long.
const slow = 4
