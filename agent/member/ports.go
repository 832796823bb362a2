package member

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Ports are all that a member reaches the world through. No call waits: each returns at
// once, and calls its done exactly once, on the loop, which then comes round. Where a call
// has a limit, done is called within it, whatever hangs; what was begun may go on.
type Ports struct {
	Clock    Clock
	Later    Later
	Consul   Consul
	Postgres Postgres
	Guard    GuardPort
	Watchdog Watchdog
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
	// ID is a name by chance that nobody else has.
	ID() string
}

// Consul is the shard's part of Consul (package consul). An error that is neither
// cluster.ErrConflict nor cluster.ErrUncertain says that nothing was changed.
type Consul interface {
	Beat(limit time.Duration, session string, index uint64, status cluster.Status, done func(index uint64, err error))
	TakeOver(limit time.Duration, t cluster.TakeOver, done func(cluster.Indexes, error))
	Release(limit time.Duration, session string, index uint64, status cluster.Status, done func(index uint64, err error))
	// Announce makes the cluster of a major upgrade the shard's, with a beat.
	Announce(limit time.Duration, a cluster.Announcement, done func(cluster.Indexes, error))
	// Read is a consistent reading of everything.
	Read(limit time.Duration, done func(cluster.Snapshot, error))
	// WriteAsLeader replaces a key, or deletes it when value is nil, if it still has index
	// (zero: does not exist) and the lock is held by session.
	WriteAsLeader(limit time.Duration, session, key string, index uint64, value any, done func(index uint64, err error))
	// Touch writes a member's own key, bound to its session. A key that another session holds
	// is replaced if it still has index (zero: it is absent, or ours).
	Touch(limit time.Duration, session string, index uint64, value cluster.Member, done func(index uint64, err error))
	// BeginBootstrap wins the right to make the shard (cluster.ErrConflict: somebody else
	// has it). The key goes with the session.
	BeginBootstrap(w *Work, limit time.Duration, session string, done func(error))
	// EndBootstrap gives up the bootstrap that session has begun.
	EndBootstrap(limit time.Duration, session string, done func(error))
	// BeginRebuild takes the turn of the shard for a member, and with it that of its host unless
	// host is empty, or keeps them (cluster.ErrConflict: another member has one). They go with the
	// session.
	BeginRebuild(limit time.Duration, session, member, host string, done func(error))
	// EndRebuild gives up the turn of the host, and unless hostOnly that of the shard.
	EndRebuild(limit time.Duration, session, host string, hostOnly bool, done func(error))
	// EndSession destroys a session if it has this name.
	EndSession(limit time.Duration, session, name string, done func(error))
}

// Postgres is this member's PostgreSQL and its data directory (package postgres). A call
// with a Work ends when that is broken off, with an error, unless its disk hangs.
type Postgres interface {
	// Running reports whether a postmaster lives, PID which; zero: none.
	Running() bool
	PID() int
	// StartedAs is the role that the running PostgreSQL was started in; known: by us.
	StartedAs() (primary, known bool)
	// Major is the major version of the programs.
	Major() int
	// Upstream is whom a replica is set up to follow.
	Upstream() string
	// ClonesWithoutLeader reports whether a replica can be made though nobody leads.
	ClonesWithoutLeader() bool
	// KeepsData reports whether a replica is made out of what is in the data directory.
	KeepsData() bool
	// SynchronousCommit and Fsync are these parameters as they are configured.
	SynchronousCommit() string
	Fsync() bool
	// HoldCommits has the configuration of a primary, until it is told otherwise, not weaken what another member's
	// takeover by quorum would rest on (design 5.30).
	HoldCommits(hold bool)

	// Kill ends every process at once. ErrLingering: some wait for a disk that hangs; the
	// kernel ends them.
	Kill(w *Work, limit time.Duration, done func(error))
	// Stop stops PostgreSQL in an orderly way, and kills what has not stopped within
	// limit. Its standbys get all WAL; with quick, they get the rest later.
	Stop(w *Work, limit time.Duration, quick bool, done func(error))
	// StopFor stops PostgreSQL in an orderly way and kills nothing: served, if set, is called
	// when it is shut down, with the position of its last checkpoint, and says when a
	// successor has what it must have; else all standbys get all WAL.
	StopFor(w *Work, served func(checkpoint int64, done func(error)), done func(error))
	// EndShutDown ends what is left of a PostgreSQL that is shut down.
	EndShutDown(w *Work, limit time.Duration, done func(error))
	// Start has the guard start PostgreSQL.
	Start(w *Work, limit time.Duration, as StartAs, done func(error))
	// Adopt takes charge of a PostgreSQL that somebody has started by hand.
	Adopt(w *Work, done func(error))
	// TryStart says why PostgreSQL would not start with its configuration; empty: nothing was
	// found.
	TryStart(w *Work, done func(why string, err error))
	Observe(w *Work, done func(pg.State, error))
	// Look looks at the data directory; not seen: it was broken off, or its limit (zero:
	// none) has passed.
	Look(w *Work, limit time.Duration, done func(found Found, seen bool))

	Follow(w *Work, limit time.Duration, up pg.Upstream, done func(error))
	Unfollow(w *Work, limit time.Duration, done func(error))
	// Promote ends recovery, on a timeline above this one. last is what must succeed when
	// nothing is left but to ask PostgreSQL.
	Promote(w *Work, above int, last func(done func(error)), done func(error))
	SetSynchronous(limit time.Duration, s ha.SetSync, done func(pg.SyncInForce, error))
	Checkpoint(w *Work, done func(error))

	// TimelineHistory is how the timelines before this one ended.
	TimelineHistory(timeline int, done func(cluster.History, error))
	UseSlots() bool
	// SyncsSlots reports whether PostgreSQL itself keeps logical slots on replicas.
	SyncsSlots() bool
	// SyncSlots makes and moves the slots that are wanted, and drops inactive ones of nobody.
	SyncSlots(limit time.Duration, o pg.SlotOrders, done func(error))
	// AdvanceLogical moves a replica's copies of logical slots, as long as it is on timeline.
	AdvanceLogical(limit time.Duration, timeline int, slots []pg.WantedSlot, done func(error))
	// FetchSlots reads logical slots of the primary, all of them, and PlaceSlots puts them into
	// the data directory of a replica that is down.
	FetchSlots(w *Work, from pg.Upstream, slots []cluster.Slot, done func([]pg.SlotFile, error))
	PlaceSlots(w *Work, files []pg.SlotFile, done func(error))

	// Bootstrap makes a new data directory. What a bootstrap that failed has made is marked
	// as unfinished.
	Bootstrap(w *Work, done func(error))
	FinishBootstrap(w *Work, done func(error))
	DiscardIncomplete(w *Work, done func(error))
	// MakeReplica fills the empty data directory from a member, or without one (nil) by the
	// operator's own method. systemIdentifier is the shard's, if it is known.
	MakeReplica(w *Work, from *pg.Upstream, systemIdentifier string, done func(error))
	// Rewind makes the data directory fit to follow a member. An error that is ErrDiverged
	// says that it has diverged and was not rewound, one that is ErrBeyondRewind that it never will be.
	Rewind(w *Work, up pg.Upstream, allowed bool, done func(error))
	// RemoveForReinit empties the data directory, if that is permitted.
	RemoveForReinit(w *Work, p pg.Permission, done func(error))
	// BeginRestore notes beside the data what a restore is about to do, SetAside moves the data
	// there, and Restore makes others in their place: restored, recovered, promoted above
	// r.Discarded, and stopped. Until EndRestore has dropped the note, PutBack undoes it.
	BeginRestore(w *Work, r pg.Restore, done func(error))
	SetAside(w *Work, done func(error))
	Restore(w *Work, r pg.Restore, done func(error))
	PutBack(w *Work, done func(error))
	EndRestore(w *Work, done func(error))
	// BeginUpgrade notes beside the data a major upgrade to a version, and makes an empty cluster of it, while
	// PostgreSQL serves: above a timeline. UpgradeData makes that the shard's data, as they were shut down, and PlaceUpgraded puts
	// them into their place. NoteAnnouncement notes which status the announcement replaces. Until EndUpgrade has
	// dropped the note, by an agent with the new version's programs, UndoUpgrade takes all of that back.
	BeginUpgrade(w *Work, to, above int, done func(error))
	UpgradeData(w *Work, done func(error))
	PlaceUpgraded(w *Work, done func(Upgraded, error))
	NoteAnnouncement(w *Work, index uint64, done func(error))
	UndoUpgrade(w *Work, done func(error))
	EndUpgrade(w *Work, done func(error))
	// Answers says why a member's PostgreSQL does not answer; primary: not as a primary. One with
	// another systemIdentifier than the shard's, if that is known, does not, nor one that does not prove whose it is.
	Answers(w *Work, up pg.Upstream, primary bool, systemIdentifier string, done func(error))
	// CheckRemote says why a remote primary cannot be followed: it does not answer, is no primary,
	// or is of another cluster than the data directory; or that this has WAL which is none of its.
	// stops: a primary is stopped by the answer, so it has to prove whose it is.
	CheckRemote(w *Work, limit time.Duration, up pg.Upstream, stops bool, done func(diverged bool, err error))
	// AskSite asks another site's hosts how far they are, by the history of the own timeline. The error is
	// that none has answered.
	AskSite(w *Work, limit time.Duration, up pg.Upstream, timeline int, done func(cluster.Site, error))
	// ArchiveLast archives the segment with the shutdown checkpoint of a PostgreSQL that archives WAL.
	ArchiveLast(w *Work, limit time.Duration, done func(error))
	// WALGone reports whether a member has no WAL from a position on any more. One of another
	// cluster than that of systemIdentifier says nothing.
	WALGone(limit time.Duration, up pg.Upstream, systemIdentifier string, timeline int, lsn int64, done func(gone bool, err error))
	// AimAt asks a primary how far its WAL goes and keeps that as the end of the loss.
	AimAt(limit time.Duration, l pg.Loss, up pg.Upstream, done func(pg.Loss, error))
	ForgetLoss(limit time.Duration, id string, done func(error))
	// KeepDetachment makes sure, durably, that this replica follows nobody when it is started again, by whomever, and
	// notes why. DropDetachment drops the note if it is this one.
	KeepDetachment(w *Work, d pg.Detachment, done func(error))
	DropDetachment(limit time.Duration, d pg.Detachment, done func(error))

	// BeforeStop and PrePromote run the operator's scripts.
	BeforeStop(w *Work, limit time.Duration, done func(error))
	PrePromote(w *Work, limit time.Duration, done func(error))
}

// StartAs says how to start PostgreSQL.
type StartAs struct {
	Primary bool
	// Upstream is whom a replica follows; nil: nobody.
	Upstream *pg.Upstream
	// Sync is whom a primary's commits wait for from the first one on; nil: for whom
	// its configuration file says.
	Sync *ha.SetSync
}

// ErrUnproved: who has answered has not proved whose it is, and is not believed.
var ErrUnproved = errors.New("it does not prove whose it is")

// ErrDiverged: a data directory has diverged and cannot be rewound.
var ErrDiverged = errors.New("it has diverged and cannot be rewound")

// ErrBeyondRewind: it is ErrDiverged, and will be at each attempt.
var ErrBeyondRewind = fmt.Errorf("%w by any attempt", ErrDiverged)

// ErrLingering: PostgreSQL is stopped or killed, but for processes that wait for a disk.
var ErrLingering = errors.New("processes linger on a disk that hangs")

// GuardPort is the guard process, and the mark beside the data directory which outlives
// it. Orders to the guard are sent one after another (GuardSupervisor); each is answered, or
// given up, in bounded time: two seconds, and ten more where a guard has to be started.
type GuardPort interface {
	// Arm sets the deadline to m.KillAt and has the guard remember m; grant: of a new
	// lease. It fails when the guard has fired, unless it is a new lease.
	Arm(m PersistedState, grant bool, done func(error))
	// Disarm takes the deadline away, and what is remembered.
	Disarm(done func(error))
	// StandDown takes the deadline away and has the guard remember m.
	StandDown(m PersistedState, done func(error))
	// Remember has the guard remember m and leaves its deadline as it is.
	Remember(m PersistedState, done func(error))
	// Awake ends a guard that does not answer, before PostgreSQL is started, if none runs.
	Awake(w *Work, done func(error))
	// CancelStarts makes sure that no start comes up any more which was asked for before, and
	// reports whether one may have since PostgreSQL was killed.
	CancelStarts(done func(started bool, err error))
	// Recall is what guard and mark know of an agent's earlier run.
	Recall(done func(Recalled))
	// Mark says beside the data directory that this member may lead until then, or that it
	// rests on a pause. Marks take effect in the order in which they are asked for.
	Mark(until cluster.Instant, paused bool, done func(error))
	// Unmark makes a mark, if there is one, say that this has ended. On a disk that hangs that
	// happens later, on one that is read-only not at all: then it says too much, which does no harm.
	Unmark(done func())
}

// Watchdog is the host's watchdog device.
type Watchdog interface {
	// OK reports whether it lets this member lead, and if not, why.
	OK() (ok bool, problem string)
	// Activate makes it protect a lease before there is a primary.
	Activate(w *Work, until cluster.Instant, ttl time.Duration, margins ha.FenceMargins, done func(error))
}

// Peers are the shard's other members, by their REST API.
type Peers interface {
	// Failsafe asks a member of the failsafe list to let this one lead without Consul;
	// patroni: by its key in Consul it runs Patroni, and proves nothing.
	Failsafe(limit time.Duration, to ha.FailsafeMember, patroni bool, r ha.FailsafeRequest, done func(error))
	// Detach asks a member to detach from the old leader. One that runs Patroni knows nothing of
	// that: nil as well.
	Detach(limit time.Duration, to cluster.Member, index uint64, done func(error))
	// Probe asks a member's PostgreSQL and its agent whether they are there: either of them answers, or one
	// alone is refused, as by a host that lives.
	Probe(limit time.Duration, to cluster.Member, done func(answered bool))
	// Misses asks a member whether it misses the leader of the status at index, too.
	Misses(limit time.Duration, to cluster.Member, index uint64, done func(bool, error))
	// DetachFor asks a member to detach for an attempt at a takeover by quorum.
	DetachFor(limit time.Duration, to cluster.Member, index uint64, attempt string, done func(error))
	// Succeed tells a member that it is ahead, and is to begin such an attempt at once.
	Succeed(limit time.Duration, to cluster.Member, index uint64, done func(error))
	// Observe asks a member how it fares; it looks at its PostgreSQL before it answers, if
	// there is time.
	Observe(limit time.Duration, to cluster.Member, done func(Seen, error))
	// LookUp looks up the addresses of a member's host that has a name.
	LookUp(limit time.Duration, host string, done func([]string, error))
	// Depose tells a member that this one has taken the lock, with the status at index.
	Depose(limit time.Duration, to cluster.Member, index uint64, done func(error))
}

// Seen is what another member says of itself; Detached is its own word.
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
	// KickPostgres has PostgreSQL looked at at once.
	KickPostgres()
}

// Bouncers are the poolers' companions.
type Bouncers interface {
	// Misses is one that has tried the leader for as long as silent, and was not answered, on a host that is none of these; empty: none.
	Misses(limit time.Duration, leader string, notOn []string, silent time.Duration, done func(bouncer string, err error))
	// Poke tells those that serve this shard that the route was written.
	Poke(route cluster.Route, index uint64)
	// EndHandover takes a handover's announcement back and tells them that it is over.
	EndHandover(limit time.Duration, session string, plan cluster.Handover, done func(error))
	// Hold announces a handover and waits until they hold the shard's clients. It fails
	// where that must not cancel what the clients do (cluster.Failover, OnBusy).
	Hold(w *Work, session string, plan cluster.Handover, onBusy string, done func(error))
}
