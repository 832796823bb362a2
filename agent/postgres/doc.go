// Package postgres runs one local PostgreSQL, 12 to 18: its process, its
// configuration files, its SQL, replication, rewinding, base backups and
// promotion. It decides nothing; the agent's loop tells it what to do, one thing
// at a time, while Observe and Exited may be used at any moment.
//
//	instance.go   what an instance is; running PostgreSQL's programs
//	datadir.go    what is in the data directory, and the few ways to change that
//	absent.go     data directories that a method makes itself
//	aside.go      the last bootstrap that failed is kept
//	outside.go    WAL and tablespaces to which it has links
//	linked.go     its configuration files, where they are links
//	control.go    pg_control
//	trial.go      PostgreSQL itself judges its configuration
//	process.go    the postmaster: launching, adopting, ending, its leftovers
//	conf.go       postgresql.conf, pg_hba.conf, pgpass, signal files
//	start.go      start, stop, promote, follow
//	observe.go    how it fares
//	bootstrap.go  the first member of a shard
//	methods.go    the operator's own commands for both
//	recovery.go   the recovery of a shard that is made from a backup
//	replica.go    base backups and rewinding
//	diverged.go   whether this member's WAL has left the upstream's
//	slots.go      replication slots, timeline history
//	synchronous.go  whom commits wait for
//
// The data directory is sacred (design 5.20): only DiscardIncomplete and
// RemoveForReinit take one away, and both say in their comments when.
package postgres
