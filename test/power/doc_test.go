// Package power takes the power from hosts, for real: each of two storage nodes runs in a small
// virtual machine of its own, and the process of the machine is killed. What its page cache held is
// gone, what reached its disk (a file of this host) is there, and the boot id is another one after the
// next start. Store and controller run on this host, and so does the load.
//
// Only one host without power: nothing acknowledged is missing, and the history of each block is that of
// a disk. Both: what was flushed is there, on both sides the same.
//
// A machine that loses its power here resets its connections, which a real one does not: silence is
// tested in test/faults.
package power
