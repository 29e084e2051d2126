// Package whole simulates whole deployments: the real node (engine, disk format, links, protocol) and
// the real controllers, on virtual time, with a network, disks and a store that break as a seed says.
// Package sim beside it simulates the protocol's state machine alone, a hundred times as fast.
//
// What is real: node.RunOn with everything below it but the operating system, control.Controller with
// its election. What is not: the file system is vfs.Mem (with its crash states), the store is memstore,
// connections are streams in memory, and guests use a volume as the NBD server does, without NBD.
//
// The tests run with a patched runtime, in a process for each seed (see simrun). There, Go has one thread, time
// is testing/synctest's, and every other source of chance (scheduling, select, the order of maps, ids) is fed
// by a generator made from the seed: a seed repeats a run exactly, to the last event.
//
// Operators do what the API has, and what came of it is judged: by the history of what guests asked and were
// told (invariants 1 and 2 of the design), by the images on the disks (3 and 4), by statuses (5), and by what a
// forced failover, a divergence image, a verification, an extend and the policy strict promise (forced.go).
//
// The network is TCP's: bytes of a connection arrive once and in order, or the connection breaks. Loss,
// reordering and duplication below it show as delay; what they can do to the protocol is what is
// simulated: late bytes of an older connection beside those of a newer one, connections that break within
// a frame, that stay open with nobody behind them, that carry in one direction only, and bytes that changed
// on the way.
//
// A paused process stands still at its next step out of itself: a call of the disk, of the network, of the
// store, or an answer to a guest. Between two of these it goes on computing.
package whole
