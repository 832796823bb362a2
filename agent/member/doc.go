// Package member is the state machine of one member of a shard: what it knows, what it
// has begun, and what it makes of each answer. Package ha decides; a member carries the
// decisions out, through ports. It starts no goroutine, does no input or output and has
// no clock of its own, so that the simulator drives the very code that the agent runs.
//
//	member.go   the state, and how a step goes
//	ports.go    what it reaches the world through
//	lease.go    the lock: beats, takeovers, releases
//	guardian.go the guard's deadline
//	reading.go  what Consul shows
//	keys.go     the leader's own keys
//	failsafe.go what a leader without Consul asks of the others, and what they tell each other
//	peers.go    how the others fare
//	postgres.go how PostgreSQL fares, and the view that a decision rests on
//	task.go     long tasks: one at a time, how they begin, are interrupted and end
//	tasks.go    bootstrap, clone, start, rejoin, demote, fence
//	promote.go  the promotion
//	handover.go the planned change of primary
//	requests.go what operators ask for: restart, reinit
//	loss.go     what a member whose data were replaced must get again
//	publish.go  what others are told: the member key
//	route.go    the route, and the history of the timelines
//	readers.go  which replicas the route sends readers to
//	slots.go    replication slots
package member
