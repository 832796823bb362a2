// Package install puts files into place: PgBouncer's own, which a failover waits for, and
// others, which nothing waits for.
//
//	replace.go  text -> file, atomically
//	spare.go    the same on a full disk
//	lastgood.go the last pgbouncer.ini that was verified
package install
