// Package disk is the storage engine of one node: a pool directory with volumes as raw files, the
// metadata that replication needs beside them, and one opaque blob per consistency group. It knows
// nothing of roles, peers or the order of requests: whoever calls it orders overlapping reads and
// writes. It never retries a failed sync, never cuts a raw file that has data, never takes metadata
// that it cannot trust for "nothing marked", and never starts a goroutine.
//
// # A pool
//
//	<pool>/lock             locked (flock) while a process has the pool open
//	<pool>/node.json        format version, instance id, start counter, checksum
//	<pool>/<volume>.raw     the bytes, a sparse file: qemu-img and losetup read it as it is
//	<pool>/<volume>.meta    write-intent log and dirty map; the volume exists while this does
//	<pool>/<volume>.undo    recovery point: header, and old contents unless there is a clone
//	<pool>/<volume>.point   recovery point: clone of the raw file (file systems with FICLONE)
//	<pool>/<volume>.<epoch>.diverged  divergence image: what the volume held when its side lost a forced failover
//	<pool>/<volume>.failed  the volume failed for good (text); goes with the volume only
//	<pool>/<volume>.removed a removal that has begun; the next OpenPool finishes it
//	<pool>/groups/<g>.state one group's blob
//	*.tmp                   being written; deleted by OpenPool
//
// All numbers below are little endian, all checksums CRC-32C. A checksum begins with the bytes of
// the volume's (or group's) id, so that a file under a wrong name is not taken. Files replaced as a
// whole (node.json, *.state, *.failed, the header of *.undo, a new *.meta) are written to a .tmp
// file, synced, renamed, and the directory is synced: a crash leaves the old or the new one.
//
// # The metadata file
//
// It consists of 4 KiB pages; each page has two slots, A and B, far apart, so that no single
// torn or misdirected write harms both:
//
//	0        4 KiB     32 KiB    36 KiB     64 KiB              584 KiB             1104 KiB
//	+--------+---------+---------+----------+-------------------+-------------------+---
//	| head A |         | head B  |          | stripe 0          | stripe 1          | ...
//	+--------+---------+---------+----------+-------------------+-------------------+---
//
//	a stripe (126 GiB of volume), 130 pages:
//	+----------+----------+-----+-----------+----------+----------+-----+-----------+
//	| intent A | dirty A0 | ... | dirty A63 | intent B | dirty B0 | ... | dirty B63 |
//	+----------+----------+-----+-----------+----------+----------+-----+-----------+
//
//	a page:
//	0       4          6      7   8          16      24       60     64             4096
//	+-------+----------+------+---+----------+-------+--------+------+--------------+
//	| LSMP  | version  | kind | 0 | page no. | seq   | zeroes | crc  | payload      |
//	| u32   | u16 = 1  | u8   |   | u64      | u64   |        | u32  | 4032 bytes   |
//	+-------+----------+------+---+----------+-------+--------+------+--------------+
//
// Kind is 1 for the header, 2 for intent, 3 for dirty. Page numbers: 0 the header, then 65 per
// stripe. The crc covers id, bytes 0 to 59 and the payload. The payload of a map page is 32256
// bits, least significant first: an intent bit stands for a region of 4 MiB, a dirty bit for a chunk
// of 64 KiB, so that a stripe's 64 dirty pages cover what its intent page covers, and a volume grows
// by adding pages without moving any. The header's payload: size u64, region bytes u32, chunk bytes
// u32, length of the id u16, id. Both slots of every page a volume of this size needs have been
// written before the header names the size: their blocks are allocated, so that the sync of a mark
// need not wait for the file system's journal, and a page that reads as zeroes is damage.
//
// # Why no mark is lost
//
// Of a page's slots one, called durable, holds an image that a successful fdatasync covers; only
// the other is ever written to, with a higher seq. When that image has been synced the slots change
// places. A reader takes the whole image with the highest seq.
//
//   - A crash tears at most the slot that is not durable. Its image is then refused by its checksum
//     and the durable one is read: it has every bit that was promised durably, for a promise is made
//     only after the sync that makes its image the durable one.
//   - If the newer image arrived whole without having been synced, it has those bits too: it was
//     made from memory, where bits are only taken away by ClearIntent, ClearDirty and ClearMaps,
//     whose callers allow exactly that.
//   - A process that is killed loses nothing that it wrote. The next Open syncs the file before it
//     reads, so that what it reads is the durable image, and goes on from there.
//   - If neither slot is whole, or both are another page's, the page counts as all ones, is written
//     so, and is reported (Volume.DamagedPages). If neither header is whole, the volume does not open
//     (lockstep.ErrCorrupt) until an operator asks for Pool.RebuildMeta, which marks everything.
//
// Intent pages are written by one committer at a time, each run followed by one fdatasync and
// shared by all marks that came before it began. A bit is visible to the fast path of MarkIntent
// (hot) only after that sync. ClearIntent takes a bit from hot first and then looks whether the
// region was touched after the snapshot; MarkIntent touches first and then looks at hot. So at least
// one of them sees the other: either the clear gives way, or the mark takes the slow path and waits
// for a commit that contains it. Pages are built under the lock that a clear holds, so no page
// misses a bit that a clear took and gave back.
//
// Dirty bits set by MarkDirty are written, not synced, into the slot that is not durable, again
// and again into the same one. A power loss may tear it and lose them, which a new boot id tells;
// then DirtyFromIntent sets every chunk under a marked region. This is enough because a region is
// marked, durably, before any of its bytes is written or sent, and out of sync no mark is cleared.
// What AddDirty, DirtyFromIntent, MarkAllDirty and SyncMeta promised is in the durable slot, and a
// torn image cannot take it away.
//
// # The undo file
//
//	0      4     6       8      16     24      32      36     60    64       4096
//	+------+-----+-------+------+------+-------+-------+------+-----+--------+----------+---
//	| LSUH | ver | flags | epoch| size | nonce | chunk | 0    | crc | zeroes | record 1 | ...
//	| u32  | u16 | u16   | u64  | u64  | u64   | bytes |      | u32 |        |          |
//	+------+-----+-------+------+------+-------+-------+------+-----+--------+----------+---
//
//	a record (64 bytes, then the data):
//	0      4      8     16      24       32      36        44      52   56     60     64
//	+------+------+-----+-------+--------+-------+---------+-------+----+------+------+------+
//	| LSUR | kind | seq | chunk | chunks | data  | durable | nonce | 0  | data | head | data |
//	| u32  | u32  | u64 | u64   | u64    | bytes | u64     | u64   |    | crc  | crc  |      |
//	+------+------+-----+-------+--------+-------+---------+-------+----+------+------+------+
//
// Flag 1: the old contents are in the .point file and there are no records. Kind 1 (data): the old
// bytes of one chunk, shorter only at the end of the volume. Kind 2 (hole): that many chunks were
// holes. Kind 3 (seal): nothing but its durable field. Records are numbered from 1 without gaps and
// carry the header's random nonce, so that nothing else can be taken for one. The first record that
// is not whole ends the file: Preserve returns, and its caller overwrites, only after a sync of the
// file up to its last record, so what a torn tail lacks was not overwritten. "durable" is the length
// of the file that was known to be durable when the record was written: if the valid part ends
// before a length that a later record names, the file was damaged, not torn, and the point is
// refused as a whole (lockstep.ErrCorrupt) instead of being rolled back in part. A rollback only
// writes what the records say and drops the point last; repeating it changes nothing.
//
// # A group's file
//
//	0      4     6   8           12    16
//	+------+-----+---+-----------+-----+------+
//	| LSGS | ver | 0 | blob bytes| crc | blob |
//	|      | u16 |   | u32       | u32 |      |
//	+------+-----+---+-----------+-----+------+
//
// # Versions
//
// Every format carries a version, all of them 1. A higher one is refused, never guessed at.
package disk
