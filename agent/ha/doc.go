// Package ha decides. Decide is a pure function: a View of the member and its
// shard goes in, a Decision comes out: what to do, why, and when to look again.
// There is no I/O here, no clock, no goroutine and no state, so that the tables
// in the tests and the simulator run exactly what runs in production.
//
// A decision is read top to bottom in decide.go; each situation that a member
// can be in has a file of its own, with its table in the comment:
//
//	fencing.go    may PostgreSQL go on accepting commits?
//	leading.go    this member holds the lease
//	standby.go    this member holds the lease of a shard that follows another site's
//	sites.go      the other site has a primary, or has taken over
//	handover.go   this member holds the lease and was asked to give it away, or gives it
//	              up as its agent is on its way out
//	paused.go     the operator said: hands off
//	shutdown.go   PostgreSQL was shut down from outside the agent
//	starting.go   no usable data directory yet
//	quorum_takeover.go  the leader is silent, and its standbys may stand in for its lease
//	detaching.go    a candidate counts on this member's receiving nothing
//	following.go  somebody else leads
//	electing.go   nobody leads
//	quorum.go     what a candidate must know first in quorum mode
//	identifier.go  whose data are another cluster's than the shard's
//	discarded.go  a restore to an earlier moment, and who must not lead after it
//	upgrading.go  a major upgrade that was cut short
//	restoring.go  whether a member whose data were replaced may count again
//	sync.go       whom commits wait for, and who may lead without them
//
// What goes in and comes out is in files of its own, and so is what a member must
// remember from one decision to the next:
//
//	view.go, decision.go
//	              what a decision rests on, and what it can ask for
//	lease_state.go, lease.go
//	              a member's dealings with the lock: its lease, its writes and their outcome
//	cluster_view.go    what it knows of its shard, and since when
//	failsafe.go   what leader and members without Consul promise each other
//
// The rules of the lease are those of docs/design.md (design 5).
package ha
