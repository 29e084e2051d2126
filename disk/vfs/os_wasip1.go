package vfs

// OS is nil in the simulation, which gives each node a file system of its own.
var OS FS
