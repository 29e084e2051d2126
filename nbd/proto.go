package nbd

// The numbers of the NBD protocol, all of them and only here. Each group cites the section of the
// specification (doc/proto.md of the NetworkBlockDevice/nbd repository) that defines it. Every
// number on the wire is big endian.

// Magic numbers. NBD spec, "Newstyle negotiation", "Fixed newstyle negotiation", "Request message",
// "Simple reply message", "Structured reply chunk message".
const (
	MagicInit            = 0x4e42444d41474943 // u64, "NBDMAGIC", first bytes of the server
	MagicOption          = 0x49484156454F5054 // u64, "IHAVEOPT", second of the server and before each option
	MagicOptionReply     = 0x0003e889045565a9 // u64, before each reply to an option
	MagicRequest         = 0x25609513         // u32
	MagicSimpleReply     = 0x67446698         // u32
	MagicStructuredReply = 0x668e33ef         // u32
)

// Sizes in bytes of the fixed parts of messages. NBD spec, same sections.
const (
	GreetingBytes        = 8 + 8 + 2 // init magic, option magic, handshake flags
	OptionHeaderBytes    = 8 + 4 + 4 // magic, option, length
	OptionReplyBytes     = 8 + 4 + 4 + 4
	RequestBytes         = 4 + 2 + 2 + 8 + 8 + 4 // magic, flags, type, cookie, offset, length
	SimpleReplyBytes     = 4 + 4 + 8             // magic, error, cookie
	StructuredReplyBytes = 4 + 2 + 2 + 8 + 4     // magic, flags, type, cookie, length
	ExportNamePadBytes   = 124                   // zeroes after EXPORT_NAME unless NO_ZEROES
)

// MaxStringBytes bounds every string. NBD spec, "Conventions".
const MaxStringBytes = 4096

// Handshake flags, u16 from the server. NBD spec, "Handshake flags".
const (
	FlagFixedNewstyle = 1 << 0
	FlagNoZeroes      = 1 << 1
)

// Client flags, u32 from the client. NBD spec, "Client flags".
const (
	ClientFlagFixedNewstyle = 1 << 0
	ClientFlagNoZeroes      = 1 << 1
)

// Options, u32. NBD spec, "Option types".
const (
	OptExportName      = 1
	OptAbort           = 2
	OptList            = 3
	OptStartTLS        = 5
	OptInfo            = 6
	OptGo              = 7
	OptStructuredReply = 8
	OptListMetaContext = 9
	OptSetMetaContext  = 10
)

// Option reply types, u32. NBD spec, "Option reply types".
const (
	RepAck         = 1
	RepServer      = 2
	RepInfo        = 3
	RepMetaContext = 4

	RepErrFlag     = 1 << 31 // set in every error type
	RepErrUnsup    = RepErrFlag + 1
	RepErrPolicy   = RepErrFlag + 2
	RepErrInvalid  = RepErrFlag + 3
	RepErrTLSReqd  = RepErrFlag + 5
	RepErrUnknown  = RepErrFlag + 6
	RepErrShutdown = RepErrFlag + 7
	RepErrTooBig   = RepErrFlag + 9
)

// Information types, u16, in RepInfo. NBD spec, "Option reply types", NBD_REP_INFO.
const (
	InfoExport      = 0
	InfoName        = 1
	InfoDescription = 2
	InfoBlockSize   = 3
)

// Transmission flags, u16. NBD spec, "Transmission flags".
const (
	TransHasFlags        = 1 << 0
	TransReadOnly        = 1 << 1
	TransSendFlush       = 1 << 2
	TransSendFUA         = 1 << 3
	TransSendTrim        = 1 << 5
	TransSendWriteZeroes = 1 << 6
	TransSendDF          = 1 << 7
	TransCanMultiConn    = 1 << 8
	TransSendCache       = 1 << 10
	TransSendFastZero    = 1 << 11 // never advertised: a replica cannot promise speed
)

// Request types, u16. NBD spec, "Request types".
const (
	CmdRead        = 0
	CmdWrite       = 1
	CmdDisc        = 2
	CmdFlush       = 3
	CmdTrim        = 4
	CmdCache       = 5
	CmdWriteZeroes = 6
	CmdBlockStatus = 7
)

// Command flags, u16. NBD spec, "Command flags".
const (
	CmdFlagFUA      = 1 << 0
	CmdFlagNoHole   = 1 << 1
	CmdFlagDF       = 1 << 2
	CmdFlagReqOne   = 1 << 3
	CmdFlagFastZero = 1 << 4
)

// Structured reply flags and chunk types, u16 each. NBD spec, "Structured reply flags",
// "Structured reply types".
const (
	ReplyFlagDone = 1 << 0

	ReplyTypeNone        = 0
	ReplyTypeOffsetData  = 1
	ReplyTypeOffsetHole  = 2
	ReplyTypeBlockStatus = 5
	ReplyTypeErrorFlag   = 1 << 15 // set in every error type
	ReplyTypeError       = ReplyTypeErrorFlag + 1
	ReplyTypeErrorOffset = ReplyTypeErrorFlag + 2
)

// The one metadata context of the specification. NBD spec, "`base:allocation` metadata context".
const (
	ContextBase           = "base:" // wildcard in LIST_META_CONTEXT, selects nothing in SET_META_CONTEXT
	ContextBaseAllocation = "base:allocation"
	StateHole             = 1 << 0
	StateZero             = 1 << 1
)

// Errno is an error number of a reply, u32. NBD spec, "Error values".
type Errno uint32

// The values a server may send.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// Size constraints that every export announces, in bytes. NBD spec, "Size constraints".
const (
	MinBlockBytes       = 1
	PreferredBlockBytes = 4096
)
