// Package clients runs the lockstep binary as e2e does, and drives it with the clients that users
// have: the vendor's Go SDK, the calls of its Terraform provider in their order, OpenStack's Go SDK
// and command line, and lockstep's own command line; and it runs two controllers on one etcd under
// TLS, which are killed in the middle of operations.
//
// What clients decide by is what is checked: success codes, bodies that their decoders take, and
// the statuses seen while they poll. A status that is not documented for an operation fails the
// test, however short it was. Faults of nodes and data are the matter of package e2e.
//
// The binary is built once, or taken from LOCKSTEP_BIN. Every wait is for a condition, with a
// deadline. A watchdog outside of the test process ends whatever is left if that process dies.
package clients
