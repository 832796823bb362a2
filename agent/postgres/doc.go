// Package postgres runs one local PostgreSQL, 12 to 18: its process, its
// configuration files, its SQL, replication, rewinding, base backups and
// promotion. It decides nothing; the agent's loop tells it what to do, one thing
// at a time, while Observe and Exited may be used at any moment.
//
//	instance.go     what an instance is, and how its parts are put together
//	installation.go the programs, the directories, and with whose rights they are used
//	modes.go        who may read what
//	control.go      pg_control
//	conffile.go     the grammar of configuration files
//	log.go          what PostgreSQL has written to stderr
//
// Each part is a type of its own. It embeds the parts that it uses, and so knows no others:
//
//	records         what is noted down for the agent's later runs: records.go; loss.go: that
//	                the data were replaced; detachment.go: that it has detached from a leader
//
//	dataDirectory   the files of a PostgreSQL that does not run
//	datadir.go      what is in the data directory, and the few ways to change that
//	absent.go       data directories that a method makes itself
//	aside.go        the last bootstrap that failed is kept
//	outside.go      WAL and tablespaces to which it has links
//	borrowed.go     links that a method has copied
//	inside.go       what lies in it and is not its own
//	room.go         the room that a rewind needs
//
//	walDir          pg_wal
//	timeline.go     histories, and the next timeline's number
//	partial_segment.go       segments that hide WAL of an older timeline
//	diverged.go     whether this member's WAL has left the upstream's
//	archive_last.go the segment with the shutdown checkpoint, for a site that follows by the archive
//	site.go         how far another site is, and whether it has left this one's history
//
//	credentials     as whom the agent and its programs log in: login.go, require_auth.go
//
//	confFiles       postgresql.conf, pg_hba.conf, pgpass
//	conf.go         how they are written
//	confdir.go      where they are, if not beside the data
//	held.go         what they do not weaken while others rest on it
//	ownfiles.go     what the operator's own configuration files say
//
//	checker         what PostgreSQL takes
//	check.go        settings are checked before they are written
//	start_limits.go settings are compared with the slots and transactions that are there
//	trial.go        PostgreSQL itself judges its configuration
//
//	session         what the local PostgreSQL is asked in SQL: session.go
//	address.go      where it is reached
//	postmaster_answers.go  whether it lets a client in
//	archiver.go     whether WAL gets into the archive
//	writes.go       when the first transaction has written
//
//	upstreams       what other members' PostgreSQL is asked: upstream.go, wal_gone.go
//	own_member.go   whether another site's host is a member of this shard
//
//	processes       the postmaster, its children, and what has outlived it
//	process.go      adopting, signalling and ending them
//	lockfile.go     postmaster.pid
//	senders.go      WAL senders during a stop
//	commands.go     the commands of the operator that PostgreSQL waits for while it recovers
//
//	server          start.go, stop.go: start, promote; stop
//
//	replication     whom it follows, and who follows it
//	follow.go       the upstream of a replica
//	slots.go        replication slots
//	failover_slots.go logical slots that PostgreSQL itself keeps on replicas
//	logical_slots.go  copies of the primary's logical ones
//	synchronous.go  whom commits wait for
//
//	observer        how PostgreSQL fares: observe.go
//	standstill.go   why replay stands still
//
//	scripts         pre_promote, before_stop and callbacks: script.go
//	customMethods   the operator's own ways to fill a data directory: methods.go
//
//	bootstrapper    the first member of a shard
//	bootstrap.go    by initdb, or by a method
//	recovery.go     from a backup
//
//	cloner          a replica
//	replica.go      by the first method that succeeds
//	clone.go        base backups
//	linked.go       configuration files that are links
//
//	restorer        a shard that is put back to an earlier moment: restore.go
//
//	rewinder        data that have left their upstream's history: rewind.go
//
//	upgrader        whether the data could become those of a later major version: upgrade.go
//	dataUpgrader    and how they do, beside themselves: upgrade_data.go
//	upgrade_undo.go how that is taken back
//	upgrade_note.go where what is meanwhile
//	upgraded_version.go  data of a later version than the configuration's programs
//
// words.go has the words of package pg, under the names that they have here; probe.go and
// probe_child.go find out whether the data directory can be written.
//
// The data directory is sacred (design 5.20): only DiscardIncomplete and
// RemoveForReinit take one away, and both say in their comments when.
package postgres
