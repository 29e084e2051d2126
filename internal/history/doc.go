// Package history records what clients asked of disks and what they were answered, and judges
// whether disks that lose nothing could have answered so. It has two witnesses:
//
//   - Recorder: blocks that many clients write and read at the same time, through whichever node
//     takes their requests. Each block must be linearizable: there is one order of all requests to
//     it, which agrees with the times at which they were asked and answered, and in which each read
//     returns what the write before it wrote. The search is porcupine's.
//   - Chains: dependent writes over several disks. Any image of the disks must be a consistent cut
//     that holds every acknowledged write.
//
// A request that got no answer, or an error for one, may take effect at any later time, or never.
// Nothing here knows about replication, nodes or NBD: a disk is a block.Device.
//
// A use of it:
//
//	rec := history.New(seed)
//	disk := rec.Disk(0, device)            // one connection to disk 0; any number, to any node
//	_ = disk.Write(ctx, 7, false)          // block 7 gets a value that nothing else ever has
//	_ = disk.Read(ctx, 7)
//	if v := rec.Check(time.Minute); v.Err() != nil { … }
package history
