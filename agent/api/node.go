// Package api is the agent's REST API: Patroni's, with a few more fields
// (design 3). It shows what the loop last saw and passes
// requests on to it; it never touches PostgreSQL or Consul itself, so that many
// or slow clients cannot disturb the loop.
package api

import (
	"context"
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Node is the agent as the API sees it.
type Node interface {
	// State is what the loop saw last. It does not block.
	State() State
	// Reload re-reads the configuration file and makes it take effect, as
	// SIGHUP does.
	Reload(ctx context.Context) error
	// Restart restarts PostgreSQL in place and returns when it accepts connections
	// again.
	Restart(ctx context.Context) error
	// ScheduleRestart has PostgreSQL restarted at the request's time, if its
	// conditions hold then. ErrConflict: another one is scheduled.
	ScheduleRestart(ctx context.Context, r RestartRequest) error
	// CancelRestart takes a scheduled restart back. ErrNone: there is none.
	CancelRestart(ctx context.Context) error
	// Reinitialize replaces this replica's data directory by a new clone. It
	// returns when that has begun.
	Reinitialize(ctx context.Context, r ReinitRequest) error
	// Restore puts the shard back to an earlier moment and returns when it is, or when it
	// was undone.
	Restore(ctx context.Context, r RestoreRequest) error
	// CancelRestore has a restore undone, and returns when it is. ErrNone: there is none.
	CancelRestore(ctx context.Context) error
	// CheckUpgrade tries whether this member's data could become those of a later major version, and
	// changes nothing. ErrConflict: another check goes on.
	CheckUpgrade(ctx context.Context, to int) (pg.UpgradeCheck, error)
	// Upgrade makes the shard's data those of a later major version, and returns when that is announced: the agent begins
	// anew then. What fails before is taken back.
	Upgrade(ctx context.Context, to int) error
	// Analyze makes what statistics are missing.
	Analyze(ctx context.Context) error
	// Switchover asks the leader to hand over and waits for the outcome. With
	// scheduled set it only leaves the request. Failover is the same without a
	// leader named.
	Switchover(ctx context.Context, request cluster.Failover) (Outcome, error)
	// Observe looks at PostgreSQL anew and returns when State shows it, or when
	// ctx ends.
	Observe(ctx context.Context)
	// Failsafe promises a leader that cannot reach Consul not to take the lock
	// for as long as it asks, or says why not.
	Failsafe(ctx context.Context, r FailsafeRequest) error
	// Deposed hears that another member has taken the lock.
	Deposed(ctx context.Context, d Deposition) error
	// Part has PostgreSQL receive nothing more from the old leader and returns when
	// it does not.
	Detach(ctx context.Context, p DetachRequest) error
	// CancelSwitchover removes a scheduled request.
	CancelSwitchover(ctx context.Context) error
	// ChangeConfig changes the dynamic configuration: change gets the present
	// one and returns the new one, and warnings tell what of it is lowered, ignored or
	// altered. A lost race gives ErrConflict.
	ChangeConfig(ctx context.Context, change func(map[string]any) (map[string]any, error)) (config map[string]any, warnings []cluster.Warning, err error)
}

// Errors that a Node gives and the API turns into Patroni's status codes.
var (
	// ErrConflict: somebody else changed the same thing at the same time.
	ErrConflict = errors.New("somebody else made a change at the same time: try again")
	// ErrNone: there is nothing of that kind (no config, no scheduled request).
	ErrNone = errors.New("there is none")
	// ErrNotUndone: what has failed is not undone yet.
	ErrNotUndone = errors.New("it is not undone yet")
	// ErrRestored: a restore that was to be undone has come to its end instead.
	ErrRestored = errors.New("the restored data are the shard's")
	// ErrRefused: the request makes no sense in the present state; the text of
	// the wrapping error says why.
	ErrRefused = errors.New("refused")
)

// RestoreRequest says to which moment a shard is put back, and from which backup.
type RestoreRequest struct {
	Target time.Time
	Label  string
	// Timeline is the one on which the moment is; zero: the one that the shard was on then.
	Timeline int
}

// ReinitRequest says how a replica is to be made anew.
type ReinitRequest struct {
	// Force breaks off what is under way, where that can be done again.
	Force bool
	// FromLeader clones from the leader, not from a replica with the tag clonefrom.
	FromLeader bool
}

// Progress is a long piece of work under way.
type Progress struct {
	// Kind is what it is, in one word: clone, reinitialize, restart, ...
	Kind string
	// Since is when it began.
	Since time.Time
	// From is the member that a clone is made from, empty where nothing is cloned.
	From string
	// Copying is how far a clone is.
	pg.Copying
}

// Outcome is how a switchover ended.
type Outcome struct {
	// Leader is who leads now.
	Leader string
	// Known is false when the time was over before the outcome was.
	Known bool
	// Done says that the leadership has changed hands.
	Done bool
	// Reason says why it did not.
	Reason string
	// Took is the time from the request to the new leader's lock.
	Took time.Duration
}

// State is one moment of the agent. Nobody changes it once it is made.
type State struct {
	At      time.Time // wall clock
	Name    string
	Scope   string
	Version string // the agent's, X.Y.Z
	Tags    map[string]any

	Cluster cluster.Snapshot
	Dynamic cluster.Dynamic
	// ObservedAt is when PostgreSQL was looked at last; zero: never.
	ObservedAt time.Time
	// ConsulSeen is when Consul last answered; zero: never.
	ConsulSeen time.Time
	// LoopAt is when the loop last came round.
	LoopAt time.Time
	// Detached is the status (its ModifyIndex) under which this member receives nothing
	// more from the old leader; zero: it may.
	Detached uint64
	// ObservedParted is the same if PostgreSQL was looked at, for what is shown here,
	// after its WAL receiver had ended; else zero.
	ObservedDetached uint64
	// Attempts are those at a takeover by quorum for which it has, and was looked at since.
	Attempts []string
	// Refused says why the last request for a switchover was refused.
	Refused string
	// Reason is the last decision in words.
	Reason string
	// Problems are what somebody has to mend that the agent has told in its log.
	Problems []string

	// Leader says that this member holds the lock and an unexpired lease.
	Leader bool
	// LeaseLeft is what is left of the lease, zero when none is held.
	LeaseLeft time.Duration
	// Opening: its primary was started, and nobody is to be led to it yet (design 5.30).
	Opening bool
	// Guard says whether the guard runs and until when it lets PostgreSQL live.
	GuardRunning  bool
	GuardArmedFor time.Duration
	// FailsafeActive says that the lease rests on the members instead of
	// Consul: this member leads by it, or has promised it to the leader.
	FailsafeActive bool
	// OtherPrimaries are other members that were seen to run as a primary though
	// this one holds the lease.
	OtherPrimaries []string
	// Watchdog is the state of the watchdog device.
	Watchdog fence.WatchdogState

	// RestoreUnfinished: a restore to an earlier moment has neither come to its end nor been
	// undone.
	RestoreUnfinished bool
	// Task is the long piece of work under way, its Kind empty when there is none.
	Task Progress

	// Member is what this member publishes under its own key.
	Member   cluster.Member
	Postgres Postgres
	// Archiver is how WAL gets into the archive, zero while that is not known.
	Archiver pg.Archiver
	// WALRoom is how much room WAL has, zero while that is not known.
	WALRoom pg.WALRoom
	// Backups are those of the shard, as this leader was told last; nil: it was not.
	Backups *Backups
	// Verified is the backup that was restored and checked on this host last; zero: none.
	Verified Verification
}

// Postgres is the local PostgreSQL as last observed.
type Postgres struct {
	// State is one of cluster.State*.
	State string
	// Accepting says that it answers SQL; without it the fields below are
	// unknown.
	Accepting        bool
	InRecovery       bool
	StartTime        time.Time
	ServerVersion    int // server_version_num
	SystemIdentifier string
	Timeline         int
	LSN              int64 // primary: write position
	ReceivedLSN      int64 // replica
	ReplayedLSN      int64
	ReplayedAt       time.Time // zero: unknown
	ReplayPaused     bool
	// Standstill says why replay stands still or is delayed, empty: it is not.
	Standstill string
	// Replaying: a replica may have more WAL than the positions say, from before its
	// start.
	Replaying bool
	// Restoring: its data were removed, rewound or cloned, and may not have again all
	// that they had acknowledged before.
	Restoring bool
	// ReplicationState is "streaming", "in archive recovery" or empty.
	ReplicationState string
	Standbys         []Standby
	PendingRestart   map[string]cluster.PendingChange
	// LeaderLSN is the leader's position that was known before this look began, which a
	// replica's own ones are compared with; 0: unknown.
	LeaderLSN int64
}

// Lag is how many bytes a replica that answers is behind the leader with one of its
// positions, by this look; not known where one of the two is not.
func (p Postgres) Lag(position int64) (bytes int64, known bool) {
	if !p.Accepting || !p.InRecovery || p.LeaderLSN <= 0 || position <= 0 {
		return 0, false
	}
	return max(0, p.LeaderLSN-position), true
}

// within reports whether a replica at one of its positions is no more than that many bytes behind.
// A position that is not known is too far behind; where the leader's is not, nobody is, as with
// Patroni.
func (p Postgres) within(limit, position int64) bool {
	behind, _ := p.Lag(position)
	return position > 0 && behind <= limit
}

// Standby is one line of pg_stat_replication.
type Standby struct {
	User            string
	ApplicationName string
	ClientAddr      string
	State           string
	SyncState       string
	SyncPriority    int
}
