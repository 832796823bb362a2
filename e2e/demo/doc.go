// Package demo is `make demo` (cmd/demo): a sharded PostgreSQL cluster on this machine,
// with clients that write to it all the time, and faults to break it with. The
// cluster is the one of package lab, on loopback; what the clients saw is told
// from their own records.
package demo
