package nbd

import "syscall"

// sysShutdown: the simulation's platform has no ESHUTDOWN, and nothing there asks for it.
const sysShutdown = syscall.ENOTCONN
