// Package protocol is the replication protocol as a pure state machine. Events go in (a record was
// read, a peer answered, a flush is done, time passed); actions come out (persist, hold, announce,
// answer, serve). The same state and input always give the same output. There is no I/O, clock,
// goroutine, log or randomness here: disk, network, store and time belong to the caller.
//
// Three parts:
//
//   - record.go, transitions.go, advance.go: the group's record in the store and every legal change
//     of it, used by controllers and nodes alike.
//   - core.go and its neighbours: one group on one node, in either role.
//   - the order of a Core's actions is the durability promise: see Action.
package protocol
