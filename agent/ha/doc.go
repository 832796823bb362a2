// Package ha decides. Decide is a pure function: a View of the member and its
// shard goes in, a Decision comes out: what to do, why, and when to look again.
// There is no I/O here, no clock, no goroutine and no state, so that the tables
// in the tests and the simulator run exactly what runs in production.
//
// A decision is read top to bottom in decide.go; each situation that a member
// can be in has a file of its own, with its table in the comment:
//
//	fencing.go    may PostgreSQL go on accepting commits?
//	starting.go   no usable data directory yet
//	leading.go    this member holds the lease
//	handover.go   this member holds the lease and was asked to give it away
//	following.go  somebody else leads
//	electing.go   nobody leads
//	paused.go     the operator said: hands off
//	stopping.go   this agent is on its way out
//
// The rules of the lease are those of docs/design.md (design 5).
package ha
