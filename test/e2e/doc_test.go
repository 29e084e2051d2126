// Package e2e runs the lockstep binary as its users do: a whole deployment of two zones with
// `lockstep dev`, each node a process of its own, which tests kill, stop, cut off and start again
// while clients write to its disks. A test's name is the sentence that it proves.
//
// The binary is built once, or taken from LOCKSTEP_BIN. Every wait is for a condition, with a
// deadline; after a failure the ends of all logs are printed. A watchdog outside of the test
// process ends whatever is left if the test process dies; then the directory /tmp/ls-e2e-* stays, with
// all logs.
//
//	go test ./test/e2e -parallel 2                               # two deployments at once fit on two cores
//	go test ./test/e2e -run LosingAZone -rounds 100              # 20 by default; prints a line of figures
//	go test ./test/e2e -run AnySequence -random 10m -seed 7 -v   # random faults; the seed decides which
//
// With LOCKSTEP_BIN set to a binary built with -race, a data race in any process fails its test.
package e2e
