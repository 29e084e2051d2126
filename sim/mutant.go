package sim

// Mutant breaks the simulation's shell on purpose, one duty at a time, to show that the checkers
// would see such a bug. The zero value breaks nothing.
type Mutant struct {
	NoIntent          bool // writes are not preceded by a durable write intent
	ClearAlone        bool // write intent is cleared without the secondary's flush
	StaleSessions     bool // older sessions are neither closed nor refused
	AckEarly          bool // a two-sided write is acknowledged when the own copy has it
	AckUnapplied      bool // the secondary acknowledges before it applied
	NoFence           bool // the secondary refuses no old epoch
	NoFlush           bool // fdatasync of a batch does nothing
	NoLeaseWait       bool // a new primary serves at once
	BootIgnored       bool // a secondary answers ready under whatever boot id is recorded
	NoResend          bool // unacknowledged writes are forgotten with their session
	JobsGoOn          bool // a repair goes on under an old epoch
	NoUnion           bool // reprotect ignores the old primary's marks
	NoPoint           bool // no recovery point is made
	NoReadLease       bool // reads are answered without a lease
	ReadInFlight      bool // reads do not wait for an overlapping write
	NoDirtyFromIntent bool // write intent does not become dirty
	IntentAssumed     bool // write intent became dirty once, and counts as dirty after a clear, too
	FenceAssumed      bool // an operator's continue counts as every secondary's fence
	UnrepairedServed  bool // requests do not wait for the repair of their region
	UnrepairedCleared bool // write intent of a region is cleared before its repair
	OffUntrue         bool // an operator says that a node is off that runs
	NoRollBack        bool // a secondary goes into a forced failover with its recovery point forgotten
	NoKeep            bool // what a side had that lost a forced failover is not kept
	ForcedUnfenced    bool // a forced failover waits for no word of the old primary
	NoStoreWait       bool // a new primary does not wait for what the store gave the old one
	StrictIgnored     bool // the strict policy needs no lease from the store
}
