// Package member is the state machine of one member of a shard: what it knows, what it
// has begun, and what it makes of each answer. Package ha decides; a member carries the
// decisions out, through ports. It starts no goroutine, does no input or output and has
// no clock of its own, so that the simulator drives the very code that the agent runs.
//
//	member.go   of what parts it is made, how a step goes, and what it is told
//	ports.go    what it reaches the world through
//	shard.go    what every part rests on: who it is, the time, what it knows of its shard
//	view.go     the view that a decision rests on
//	reading.go  what Consul shows
//	postgres.go how its own PostgreSQL fares
//	lease.go    its leadership: beats, releases, what the guard and Consul are told of a lease
//	takeover.go the lock is taken
//	guard_supervisor.go the guard's deadline
//	recall.go   what an agent that begins anew knows of a PostgreSQL that runs
//	keys.go     the leader's own keys
//	failsafe.go what a leader without Consul asks of the others, and how a new one deposes it
//	hear.go     what the others ask of this one
//	quorum_takeover.go the leader is probed, and a takeover by quorum carried out
//	opening.go  when a primary that was started is led to, with takeover by quorum
//	peers.go    how the others fare
//	task.go     long tasks: one at a time, how they begin, are interrupted and end
//	wait.go     who waits until something holds
//	stop.go     what stops PostgreSQL: fence, demote, give up
//	tasks.go    start, clone, rejoin, follow
//	bootstrap.go a new shard
//	promote.go  the promotion
//	handover.go the planned change of primary
//	requests.go what operators ask for: restart, reinit
//	restore.go  the shard is put back to an earlier moment
//	upgrade.go  its data become those of a later major version
//	remote.go   a standby leader and the primary at another site
//	site.go     two sites that take turns: the other one is asked
//	rebuild.go  a replica that cannot go on with its data
//	loss.go     what a member whose data were replaced must get again
//	synchronous.go whom commits wait for
//	publish.go  what others are told: the member key
//	route.go    the route
//	history.go  the history of the timelines
//	readers.go  which replicas the route sends readers to
//	slots.go    replication slots
//	retained_slots.go those of members that went away
//	logical_slots.go a replica's copies of the leader's logical ones
//	checkpoint.go a new timeline's first checkpoint
package member
