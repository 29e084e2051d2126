// Package client speaks the EVS replication API, the block storage calls beside it, and those of the
// identity API that manage users, projects and roles, on a gophercloud provider that has logged in. It is what the command line uses; nothing in it knows
// how Lockstep works inside.
//
// Success codes are exact: a create or an update of a pair or group is 202, an action 200;
// anything else is an error of type *Error that carries the HTTP status, the message of the fault
// body and the request id. A server that could not be reached is ErrUnreachable.
package client
