package ha

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// View is everything a decision rests on, read at one moment. Nobody changes a
// view once it is made.
type View struct {
	Shard

	// Wall is the wall clock, for what an operator scheduled and nothing else.
	Wall time.Time
	Tags map[string]any

	Fence    FenceMargins
	Lease    Lease
	Postgres Postgres
	Peers    []Peer
	// PeersAsked is when the last round of questions to the peers began,
	// PeersDone whether every one of them answered or failed to.
	PeersAsked cluster.Instant
	PeersDone  bool
	// PeersAskedLSN is this member's own position, as it was known when they were asked:
	// what a peer had not reached later is its lag, whatever was written meanwhile.
	PeersAskedLSN int64
	// PeersDetached is the status that they were asked to detach from first; zero: none.
	PeersDetached uint64
	// Detached is the status (its ModifyIndex) under which this member has detached from
	// the old leader; zero: it has not, or the shard has gone on since.
	Detached uint64

	// Takeover is what this member has found out for a takeover by quorum (quorum_takeover.go).
	Takeover TakeoverView

	// Adopted is when this agent found a primary that was already running;
	// zero: it did not.
	Adopted cluster.Instant
	// AdoptedUntil is the deadline of the guard that was found with it; zero: the
	// guard was disarmed, or there was none. A guard that does not answer counts as
	// one whose deadline has passed.
	AdoptedUntil cluster.Instant
	// AdoptedPaused: the guard remembers that a pause was in force (PauseInForce) when
	// the agent's earlier run ended.
	AdoptedPaused bool
	// AdoptedUnled: no run of this agent has ever led with the data of the primary that was found.
	AdoptedUnled bool
	// Task is the long piece of work under way, if any.
	Task TaskKind
	// Attempt says how the last task failed and when it may be tried again.
	Attempt Attempt

	// Giving is set from the moment that a handover or a shutdown has stopped
	// PostgreSQL and dropped the lease until Consul shows it released.
	Giving *Giving
	// HandedOver is the index of the request whose handover this member has carried
	// out last.
	HandedOver uint64
	// RolledBack is the request whose handover was rolled back last.
	RolledBack RolledBack
	// Stopping says that the agent was told to exit.
	Stopping bool
	// Site is what is known of the other site.
	Site SiteView
	// SyncWriting says that a write of the key sync is under way, SyncUncertain
	// that one had an unknown outcome and none has succeeded since: a late one
	// could still land.
	SyncWriting   bool
	SyncUncertain bool
	// SyncBefore is the key sync as this member has replaced it for a promotion that
	// certainly did not happen; nil: there was none, or it was written back.
	SyncBefore *cluster.Entry[cluster.Sync]
	// WatchdogOK is false when a required watchdog does not work.
	WatchdogOK bool
	// WatchdogProblem says why, in words.
	WatchdogProblem string
}

// Shard is the shard as a member knows it: what it has read in Consul, when, and what it has
// promised.
type Shard struct {
	Now cluster.Instant
	// Name is this member's.
	Name   string
	Config cluster.Dynamic

	// Cluster is the shard as last read from Consul; Read says when that was,
	// zero when it was never read.
	Cluster cluster.Snapshot
	Read    cluster.Instant
	// FirstRead is when it was read first; zero: never.
	FirstRead cluster.Instant
	// StatusSeen is when this agent first saw the status key at its present
	// ModifyIndex (or first saw that there is none).
	StatusSeen cluster.Instant
	// Confirmed and OwnerChangedAt are as in ClusterView.
	Confirmed, OwnerChangedAt cluster.Instant
	// GoneBack is as in ClusterView.
	GoneBack cluster.Instant
	// Session is this agent's own Consul session, empty while there is none.
	Session string

	// Promise is what this member has promised to a leader without Consul.
	Promise *Promise
}

// FenceMargins are the moments before the end of the lease at which a leader
// that could not renew it stops PostgreSQL (design 5.4).
type FenceMargins struct {
	DemoteBefore time.Duration
	KillBefore   time.Duration
}

// Lease is the leader's own account of its lease.
type Lease struct {
	// Until is the end of the lease; zero: none is held.
	Until cluster.Instant
	// BeatSent is when the last beat was sent, InFlight whether its answer, or
	// that of a takeover or release, is still out.
	BeatSent cluster.Instant
	InFlight bool
	// Uncertain says that the outcome of the last write is unknown: read
	// before deciding.
	Uncertain bool
	// NotBefore is when a takeover or release that failed may be tried again.
	NotBefore cluster.Instant
	// Renewed is when the last beat or takeover that succeeded was sent: what
	// the lease owes to Consul.
	Renewed cluster.Instant
	// Length is how long the lease in force was granted for; zero: none is.
	Length time.Duration
	// Failsafe says that the key failsafe is certain to exist, so that the
	// members in it may stand in for Consul; Asking that they are being asked,
	// Asked since when, or when they were asked last.
	Failsafe bool
	Asking   bool
	Asked    cluster.Instant
	// Agreed is when the last round of questions began in which all of them have promised; zero: none has.
	Agreed cluster.Instant
	// Consented: a beat that consents to a takeover by quorum may stand in Consul.
	Consented bool
	// Deposed is the index of the status with which another member says it has
	// taken the lock.
	Deposed uint64
}

// DataState says what is in the data directory.
type DataState string

// The states of a data directory.
const (
	DataEmpty        DataState = "empty"
	DataIncomplete   DataState = "incomplete"   // our own bootstrap or clone was cut short
	DataBootstrapped DataState = "bootstrapped" // our own bootstrap is finished, Consul may not know of it
	DataForeign      DataState = "foreign"      // not empty and not PostgreSQL's, or another major version
	DataValid        DataState = "valid"
	// DataSetAside: a restore has not ended; the data that it was to replace lie beside.
	DataSetAside DataState = "set aside"
	// DataUpgrading: a major upgrade has not ended, for which PostgreSQL was stopped.
	DataUpgrading DataState = "upgrading"
)

// Line is a shard's history as one leader has it on one timeline.
type Line struct {
	Leader   string
	Timeline int
}

// Postgres is the state of the local PostgreSQL.
type Postgres struct {
	Data DataState
	// RestoresAlone: a method of create_replica_methods makes a replica without a
	// leader.
	RestoresAlone bool
	// Resumable: what an unfinished clone has left is what a method of
	// create_replica_methods goes on with (keep_data).
	Resumable bool
	// DataProblem says why a foreign data directory cannot be used.
	DataProblem      string
	SystemIdentifier string
	// Running says that a postmaster lives, Accepting that it answers SQL.
	Running   bool
	Accepting bool
	// Primary is true outside recovery. Of a stopped PostgreSQL it says what
	// it was.
	Primary  bool
	Timeline int
	// LSN is the write position of a primary; of a replica the greater of what
	// it received and replayed.
	LSN int64
	// Replaying says that a replica has WAL from before its start which it has not
	// replayed yet, or may have: timeline and LSN are no more than what it has at
	// least.
	Replaying bool
	// Restoring says that the data were removed, rewound or cloned, and may not have
	// again what they had acknowledged before (restoring.go).
	Restoring bool
	// Restore is what this member has noted of a restore that it began and that has not
	// ended; nil: there is none (discarded.go).
	Restore *Discard
	// Replacing: a restore has told the shard what it discards, and has begun to move the data aside: nobody
	// else may lead until it has ended, or has put them back.
	Replacing bool
	// Upgrade is what this member has noted of a major upgrade that it began and that has not ended; nil:
	// there is none (upgrading.go).
	Upgrade *Upgrade
	// ShutDown is since when PostgreSQL has been seen shut down from outside, with
	// processes left that do not end; zero: it is not.
	ShutDown cluster.Instant
	// DiskTrouble says what is wrong with writing to the data directory, in
	// words, empty when nothing is; DiskSince is when it was first seen.
	DiskTrouble string
	DiskSince   cluster.Instant
	// Upstream is the member that this replica is set up to follow, empty:
	// none.
	Upstream string
	// Rejoined is the line to which the last rejoin has made the data fit, or found that
	// they do; zero: there was none.
	Rejoined Line
	// Outset is the line that led when a replica was started that does not answer yet; zero: nobody
	// led, or it answers.
	Outset Line
	// Undersized says why replay stands still until a restart, empty: it does not.
	Undersized string
	// Strayed says that a standby leader has WAL which is none of the remote primary's, and receives
	// nothing.
	Strayed bool
	// Discards is up to which timeline a restore has discarded WAL, as the data of a primary
	// know, where Consul may not; 0: none, or it is not known.
	Discards int
	// LacksSlots are logical slots that this replica is to have a copy of, and the leader has.
	LacksSlots []cluster.Slot
	// Stranded says why this replica cannot go on with its data: the WAL that it needs is gone, or
	// it cannot be rewound; empty: it can.
	Stranded string
	// Turn: of those whose data are to be made anew by policy, it is this member's turn.
	Turn bool
	// Streaming says that the WAL receiver is connected.
	Streaming bool
	// DownSince is when the postmaster was first seen gone without being told
	// to; zero when it runs or was stopped on purpose.
	DownSince cluster.Instant
	// UnservedSince is since when PostgreSQL was not seen to serve as a primary though
	// this member holds the lease; zero: it serves, or no lease is held.
	UnservedSince cluster.Instant
	// Hung: for UnservedLimit the postmaster has neither let a client in nor said why not.
	Hung bool
	// Crashes counts unexpected ends within the last minutes.
	Crashes int
	// Standbys are the replicas connected to this primary.
	Standbys []Standby
	// SyncNames are the members that PostgreSQL's synchronous_standby_names
	// now makes commits wait for; SyncSince is the flush position read after
	// that setting took effect: a standby beyond it holds every commit that was
	// acknowledged under an earlier setting.
	SyncNames []string
	SyncSince int64
	// SyncAny is how many of SyncNames a commit waits for; 0: for all of them.
	SyncAny int
	// SyncUnsure: what PostgreSQL waits for is not known for certain: a change of
	// it is under way or failed, this agent has not set it yet, or PostgreSQL
	// shows another value. SyncNames and SyncSince are then not to be built on.
	SyncUnsure bool
	// SynchronousCommit is PostgreSQL's setting of that name.
	SynchronousCommit string
	// Durable says what PostgreSQL shows of what a takeover by quorum rests on.
	Durable Durability
}

// Durability is what PostgreSQL itself shows, whatever is configured.
type Durability struct {
	// SynchronousCommit is the parameter; empty: not known.
	SynchronousCommit string
	// Fsync says that it is on.
	Fsync bool
	// StartRace: commits just after a start may wait for nobody, as of minor releases before May 2025.
	StartRace bool
	// ReplayPaused: a replica does not replay what it has.
	ReplayPaused bool
}

// Standby is one line of pg_stat_replication.
type Standby struct {
	Name      string // application_name: the member's name
	Streaming bool
	Sync      bool // sync_state is sync or quorum
	// Foreign: it comes from another address than the member's.
	Foreign   bool
	WriteLSN  int64
	FlushLSN  int64
	ReplayLSN int64
}

// Peer is another member's answer when it was asked how it fares.
type Peer struct {
	Name     string
	Answered bool
	State    string
	// Primary is true outside recovery.
	Primary  bool
	Timeline int
	LSN      int64
	// Replaying says that timeline and LSN are no more than what the member has at
	// least: it replays WAL that it had received before it was started.
	Replaying bool
	// Restoring is as in Postgres.
	Restoring bool
	// SystemIdentifier is that of its data; empty: it did not say.
	SystemIdentifier string
	Tags             map[string]any
	// Observed is when, at the earliest, the member has looked at its PostgreSQL
	// for this answer, by our clock; zero: when it was asked.
	Observed cluster.Instant
	// Detached is the status under which it had detached from the old leader, as it was
	// asked to, when it began to look at its PostgreSQL for this answer; zero: it was
	// not asked, or had not.
	Detached uint64
	// Attempts are the attempts at a takeover by quorum for which it has detached, under that
	// status, and looked at its PostgreSQL since.
	Attempts []string
}

// runsAsPrimary reports whether the member has answered that it does.
func (p Peer) runsAsPrimary() bool {
	return p.Answered && p.Primary && p.State == cluster.StateRunning
}

// mayRunAsPrimary reports whether the member has answered that it does, or that its primary
// is about to begin or to end.
func (p Peer) mayRunAsPrimary() bool {
	switch p.State {
	case cluster.StateRunning, cluster.StateStarting, cluster.StateStopping, cluster.StateRestarting:
		return p.Primary
	default:
		return false
	}
}

// TaskKind names a long piece of work. At most one runs at a time, in the
// background, while the leader goes on beating.
type TaskKind string

// The kinds of task.
const (
	TaskNone      TaskKind = ""
	TaskBootstrap TaskKind = "bootstrap"
	TaskClone     TaskKind = "clone"
	TaskStart     TaskKind = "start"
	TaskRejoin    TaskKind = "rejoin"
	TaskPromote   TaskKind = "promote"
	TaskDemote    TaskKind = "demote"
	TaskHandover  TaskKind = "handover"
	TaskRestart   TaskKind = "restart"
	TaskReinit    TaskKind = "reinitialize"
	TaskRestore   TaskKind = "restore"
	TaskUpgrade   TaskKind = "major upgrade"
	// TaskInterrupted is a task that was broken off and has not ended yet, as a disk
	// hangs perhaps. PostgreSQL was killed meanwhile.
	TaskInterrupted TaskKind = "interrupted"
)

// Attempt remembers how often a task failed in a row.
type Attempt struct {
	Kind     TaskKind
	Failures int
	NotUntil cluster.Instant
}

// Giving is a lease on its way to somebody else.
type Giving struct {
	Successor string
}

// ttl is that of the lease in force, or the configured one where that is shorter
// or there is no lease.
func (v View) ttl() time.Duration {
	if v.Lease.Length > 0 {
		return min(v.Lease.Length, v.Config.TTL)
	}
	return v.Config.TTL
}

// beatInterval is how often a lease of that ttl is renewed.
func (v View) beatInterval() time.Duration { return min(v.Config.BeatInterval(), v.ttl()/4) }

// leader is the member that the shard follows according to Consul, empty when
// nobody leads. A Lictor leader leads as long as its lease may run, even when
// its lock vanished with its session (design 5.3), and not a moment longer, even
// when the lock still stands. A released lease belongs to nobody. A leader
// without beats is Patroni's: its lock is all there is.
func (v Shard) leader() string {
	holder := v.Cluster.LeaderName()
	b := v.beat()
	switch {
	case b == nil:
		return holder
	case b.Released:
		return ""
	case !v.Now.Before(v.leaseExpires()):
		if p := v.promised(); p != nil {
			return p.Leader // goes on without Consul
		}
		return ""
	case holder != "":
		return holder
	default:
		return b.Owner
	}
}

// beat is the last beat that Consul showed, nil when there is none or when the
// leader is Patroni.
func (v Shard) beat() *cluster.Beat {
	if !v.Cluster.Status.OK() {
		return nil
	}
	return v.Cluster.Status.Value.Lictor
}

// DriftMargin is by how much two hosts' clocks may run apart: an observer adds
// this share to the lease before it calls it expired (design 5.2).
const DriftMargin = 0.025

func withDrift(d time.Duration) time.Duration {
	return d + time.Duration(float64(d)*DriftMargin)
}

// leaseExpires is when this member may regard the shard's lease as expired, by
// its own clock. A status that is missing, of unknown age or not understood
// counts as a beat at the moment it was first seen. Where Consul has gone back, the last
// beat may have been another one.
func (v Shard) leaseExpires() cluster.Instant {
	lease := v.Config.TTL
	if b := v.beat(); b != nil {
		lease = b.Lease()
	} else if v.Cluster.Status.OK() && v.Cluster.Status.Value.Lictor == nil {
		// A Patroni leader has no lease: its session is all there is.
		return v.StatusSeen
	}
	return max(v.StatusSeen.Add(withDrift(lease)), v.GoneBack)
}

// upstream is the member to replicate from.
func (v View) upstream(leader string) string {
	return v.Cluster.Upstream(v.Name, v.Tags, leader)
}
