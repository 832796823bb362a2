// Package postgres runs one local PostgreSQL, 12 to 18: its process, its
// configuration files, its SQL, replication, rewinding, base backups and
// promotion. It decides nothing; the agent's loop tells it what to do, one thing
// at a time, while Observe and Exited may be used at any moment.
//
//	instance.go     what an instance is; running PostgreSQL's programs
//	address.go, login.go, require_auth.go
//	                where a PostgreSQL is reached, as whom, and what it may ask for
//
//	datadir.go      what is in the data directory, and the few ways to change that
//	absent.go       data directories that a method makes itself
//	aside.go        the last bootstrap that failed is kept
//	outside.go      WAL and tablespaces to which it has links
//	borrowed.go     links that a method has copied
//	linked.go       its configuration files, where they are links
//	inside.go       what lies in it and is not its own
//	modes.go        who may read it
//	loss.go         that the data were replaced
//	lockfile.go     postmaster.pid
//	control.go      pg_control
//
//	conf.go         postgresql.conf, pg_hba.conf, pgpass, signal files
//	conffile.go     the grammar of configuration files
//	ownfiles.go     what the operator's own configuration files say
//	check.go        settings are checked before they are written
//	trial.go        PostgreSQL itself judges its configuration
//	dynamic_cache.go  the last dynamic configuration, beside the data
//	synchronous.go  whom commits wait for
//
//	process.go      the postmaster: launching, adopting, ending, its leftovers
//	start.go, stop.go, follow.go, timeline.go
//	                start, promote; stop; follow; the next timeline's number
//	senders.go      WAL senders during a stop
//	script.go, callback_state.go
//	                pre_promote and before_stop; what callbacks were told last
//	observe.go      how it fares
//	words.go        the words of package pg, under the names that they have here
//	postmaster_answers.go  whether it lets a client in
//	standstill.go   why replay stands still
//	archiver.go     whether WAL gets into the archive
//	writes.go       when the first transaction has written
//	probe.go, probe_child.go
//	                whether the data directory can be written
//
//	bootstrap.go    the first member of a shard
//	clone.go        base backups
//	rewind.go, room.go  rewinding, and the room that it needs
//	methods.go      the operator's own commands for both
//	replica.go      a replica by the first of these that succeeds
//	recovery.go     the recovery of a shard that is made from a backup
//	diverged.go     whether this member's WAL has left the upstream's
//	partial_segment.go       segments that hide WAL of an older timeline
//	slots.go        replication slots, timeline history
//
// The data directory is sacred (design 5.20): only DiscardIncomplete and
// RemoveForReinit take one away, and both say in their comments when.
package postgres
