// Package member is the state machine of one member of a shard: what it knows, what it
// has begun, and what it makes of each answer. Package ha decides; a member carries the
// decisions out, through ports. It starts no goroutine, does no input or output and has
// no clock of its own, so that the simulator drives the very code that the agent runs.
//
//	member.go   the state, and how an action begins
//	ports.go    what it reaches the world through
//	lease.go    the lock: beats, takeovers, releases
//	reading.go  what Consul shows
//	keys.go     the leader's own keys
//	failsafe.go what a leader without Consul asks of the others, and what they tell each other
//	peers.go    how the others fare
//	guardian.go the guard's deadline
package member
