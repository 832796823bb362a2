package member

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// Ports are all that a member reaches the world through. No call waits: each returns at
// once, and calls its done exactly once, on the loop, which then comes round. Where a call
// has a limit, done is called within it, whatever hangs; what was begun may go on.
type Ports struct {
	Clock    Clock
	Later    Later
	Consul   Consul
	Guard    GuardPort
	Peers    Peers
	Watches  Watches
	Bouncers Bouncers
}

// Clock tells the time. Everything that matters is counted by Now.
type Clock interface {
	// Now is the host's CLOCK_BOOTTIME.
	Now() cluster.Instant
	// Wall is the time of day, for what people read and schedule.
	Wall() time.Time
}

// Later does something after a while.
type Later interface {
	// After runs f on the loop after d.
	After(d time.Duration, f func())
	// Jitter is a duration by chance, from low up to high.
	Jitter(low, high time.Duration) time.Duration
}

// Consul is the shard's part of Consul (package consul). An error that is neither
// cluster.ErrConflict nor cluster.ErrUncertain says that nothing was changed.
type Consul interface {
	Beat(limit time.Duration, session string, index uint64, status cluster.Status, done func(index uint64, err error))
	TakeOver(limit time.Duration, t cluster.TakeOver, done func(cluster.Indexes, error))
	Release(limit time.Duration, session string, index uint64, status cluster.Status, done func(index uint64, err error))
	// Read is a consistent reading of everything.
	Read(limit time.Duration, done func(cluster.Snapshot, error))
	// WriteAsLeader replaces a key, or deletes it when value is nil, if it still has index
	// (zero: does not exist) and the lock is held by session.
	WriteAsLeader(limit time.Duration, session, key string, index uint64, value any, done func(index uint64, err error))
	// EndBootstrap gives up the bootstrap that session has begun.
	EndBootstrap(limit time.Duration, session string, done func(error))
	// EndSession destroys a session if it has this name.
	EndSession(limit time.Duration, session, name string, done func(error))
}

// GuardPort is the guard process, and the mark beside the data directory which outlives
// it. Orders to the guard are sent one after another (Guardian); each is answered
// within two seconds, or given up.
type GuardPort interface {
	// Arm sets the deadline to m.KillAt and has the guard remember m; grant: of a new
	// lease. It fails when the guard has fired, unless it is a new lease.
	Arm(m Memo, grant bool, done func(error))
	// Disarm takes the deadline away, and what is remembered.
	Disarm(done func(error))
	// StandDown takes the deadline away and has the guard remember m.
	StandDown(m Memo, done func(error))
	// Remember has the guard remember m and leaves its deadline as it is.
	Remember(m Memo, done func(error))
	// Mark says beside the data directory that this member may lead until then, or that it
	// rests on a pause. Marks take effect in the order in which they are asked for.
	Mark(until cluster.Instant, paused bool, done func(error))
	// Unmark removes the mark. On a disk that hangs that happens later: until then it
	// says too much, which does no harm.
	Unmark(done func(error))
}

// Peers are the shard's other members, by their REST API.
type Peers interface {
	// Failsafe asks a member of the failsafe list to let this one lead without Consul;
	// patroni: by its key in Consul it runs Patroni, and proves nothing.
	Failsafe(limit time.Duration, to ha.FailsafeMember, patroni bool, lease time.Duration, index uint64, done func(error))
	// Part asks a member to part from the old leader. One that runs Patroni knows nothing of
	// that: nil as well.
	Part(limit time.Duration, to cluster.Member, index uint64, done func(error))
	// Observe asks a member how it fares; it looks at its PostgreSQL before it answers, if
	// there is time.
	Observe(limit time.Duration, to cluster.Member, done func(Seen, error))
	// Depose tells a member that this one has taken the lock, with the status at index.
	Depose(limit time.Duration, to cluster.Member, index uint64, done func(error))
}

// Seen is what another member says of itself; Parted is its own word.
type Seen struct {
	ha.Peer
	// Lictor: it runs Lictor, and tells how old what it says is.
	Lictor bool
	// Age is that of its look at PostgreSQL, negative: there was none.
	Age time.Duration
}

// Watches are what listens on its own: to Consul, to PostgreSQL.
type Watches interface {
	// KickSession has the Consul session renewed at once: it may be gone.
	KickSession()
}

// Bouncers are the poolers' companions.
type Bouncers interface {
	// Poke tells those that serve this shard that the route was written.
	Poke(route cluster.Route, index uint64)
}
