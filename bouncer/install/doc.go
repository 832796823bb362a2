// Package install puts files into place: PgBouncer's own, which a failover waits for, and
// others, which nothing waits for.
//
//	replace.go  text -> file, atomically
//	config.go   pgbouncer.ini, for which nobody waits longer than is needed; the last
//	            good one
//	order.go    what a power cut leaves without fsync
//	spare.go    a file for the time when the disk is full
package install
