package nbd

import "syscall"

const sysShutdown = syscall.ESHUTDOWN
