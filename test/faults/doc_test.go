// Package faults breaks a real deployment in every way that the network and the kernel allow, under
// load, and checks that nothing acknowledged is missing: etcd with three members on three sites, a
// controller on each, storage nodes in two zones, every process in a network namespace of its own,
// joined by a network (network_test.go) that can cut, lose and delay packets in each direction.
//
// Namespaces and interfaces have no names: they end with the last process in them and with the test's
// own, so nothing is left behind, however the test ends.
//
// Which faults come, where and when, follows from a seed; rounds_test.go draws them.
package faults
