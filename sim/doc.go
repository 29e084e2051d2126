// Package sim runs the replication protocol of package protocol in a simulated cluster: virtual
// time, a virtual network, disks, store, controllers and clients, all in one goroutine and all
// decided by one seed. An adversary cuts links, kills processes, reboots hosts, stops clocks'
// owners, loses answers and repeats late frames; independent checkers watch what clients were
// promised.
//
// It never looks into the code under test to decide what is right: the checkers know only what was
// issued, what was acknowledged, what was read, and what the disks hold.
//
// The faults that the design must survive, and that are simulated here:
//
//   - a process dies at any event and starts again (same boot id: page cache kept, memory lost);
//   - a host reboots (new boot id; of the unflushed blocks a random subset survives);
//   - a node stands still for seconds and goes on as if nothing had happened;
//   - a link is cut in one or both directions, a connection breaks with frames under way, and
//     frames of the old connection arrive after the new one was opened;
//   - the store is away, is away for one node only, answers late, or does a compare-and-swap whose
//     answer is lost; a watch is late or silent;
//   - a controller stops between any two of its steps; two controllers act at once;
//   - a volume fails for good;
//   - an operator continues a trip, says that a dead node is off, gives a secondary up rightly or wrongly, or changes the policy.
//
// Forced failovers are simulated with them, out of pauses, trips and the middle of copying: what they
// serve has everything that was acknowledged in sync, and what was lost is kept before it is overwritten.
//
// Not simulated: pairs that join or leave, and volumes that grow (of both only the epoch is); of the
// strict policy it is checked that no answer outlasts the store's lease.
//
// A failing seed is run again with its story switched on, so that a run without failure pays
// nothing for it.
package sim
