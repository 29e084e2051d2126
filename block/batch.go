package block

// Batcher is a Device that can also begin requests without a goroutine for each.
type Batcher interface {
	Device
	// NewBatch gives a batch for one goroutine at a time.
	NewBatch() Batch
}

// Batch begins those requests that need not wait for anything; every other one is refused, has had no
// effect, and is made by the Device's own calls. Nothing here blocks but the local I/O of Run.
type Batch interface {
	// Write begins a write of p at off, whose end is told to c: never before Run was called, but
	// perhaps before Run returns, from any goroutine. p is c's owner's again then. It reports whether
	// the write was begun.
	Write(p []byte, off int64, c Completion) bool
	// Read fills p from off if the bytes are in memory and nothing stands in the way, and reports
	// whether it did. If not, what is in p means nothing.
	Read(p []byte, off int64) bool
	// Run carries out what Write has begun.
	Run()
}

// Completion is who waits for a request.
type Completion interface {
	// Done tells the outcome, once. It must not block, nor call the device. Who calls it soon calls
	// Flush of what it gives, with no lock held: one Flush may stand for several Dones.
	Done(err error) Flusher
}

// Flusher sends answers on their way. Flush does not block.
type Flusher interface{ Flush() }
