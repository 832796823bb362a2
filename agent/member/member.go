package member

import (
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// Settings are what a member is told when it is made.
type Settings struct {
	Name string
	// SessionName is that of its sessions in Consul.
	SessionName string
	Keys        cluster.Keys
	// Margins are the moments before the end of a lease of ttl at which PostgreSQL is
	// stopped and killed.
	Margins func(ttl time.Duration) ha.FenceMargins
	Log     zerolog.Logger
}

// Shell is what of the member's state machine still lies outside of this package.
type Shell interface {
	View() ha.View
	// WAL is how far this member's own WAL goes, as last looked at.
	WAL() WAL
	// Data is what was last seen of the data directory.
	Data() Data
	// Busy reports whether a task is under way.
	Busy() bool
	// Reason is that of the last decision.
	Reason() string
	// Begin begins the task that an action asks for.
	Begin(ha.Action)
	// InitialConfig is the dynamic configuration for a shard that has none.
	InitialConfig() []byte
	// Route is what this member would have bouncers know as the leader, if anything.
	Route() (cluster.Route, bool)
	// TookOver hears that a lease has begun.
	TookOver()
	// Accepted hears of each reading that was taken.
	Accepted(cluster.Snapshot)
}

// WAL is how far a member's own WAL goes.
type WAL struct {
	LSN      int64 // 0: not known
	Timeline int
	// Replaying: there is more than is known yet.
	Replaying bool
	// Primary: PostgreSQL is outside recovery, or was when it was last seen.
	Primary bool
}

// Data is what is in the data directory.
type Data struct {
	State            ha.DataState
	SystemIdentifier string
	// CheckpointLSN is that of the last checkpoint.
	CheckpointLSN int64
	// Running: PostgreSQL runs in it. Upstream is whom it follows.
	Running  bool
	Upstream string
}

// Member is the state machine of one member of a shard. Its methods run on the goroutine
// of the loop, all of them: it has no locks.
type Member struct {
	Settings
	Ports
	shell Shell

	// Consul
	ha.Outlook
	ReadWall        time.Time // when it was read last
	Session         string
	rereading       bool
	rereadNotBefore cluster.Instant // spaces out readings that fail
	consulDown      bool
	writing         map[string]bool // the leader's own keys that are being written
	problems        string          // values that make no sense
	problemsSince   cluster.Instant // when they were seen first; zero: they were logged

	// Tenure is the lease, and what this member has written and promised.
	Tenure   ha.Tenure
	Guardian Guardian
	// AdoptedPaused: ha.View.
	AdoptedPaused bool
	// Complete: the successor of the lease that is given up has all WAL.
	Complete bool
	// SyncUncertain: a write of the key sync may still land.
	SyncUncertain bool
	// SyncBefore is the key sync as it was before a promotion that did not happen.
	SyncBefore *cluster.Entry[cluster.Sync]
	Dynamic    cluster.Dynamic

	// What the other members answered, and to which question.
	Answers []ha.Peer
	Asked   cluster.Instant
	Asking  bool
	// AskedLSN is this member's own position as it was known then.
	AskedLSN int64
	// AskedToPart is the status that they were asked to part from first; zero: none.
	AskedToPart uint64

	// Refused says why the last request for a switchover was refused.
	Refused string
	// Failed says why the agent must end.
	Failed error
	// Exit: the agent has nothing left to do.
	Exit bool
}

// New makes a member that knows nothing yet.
func New(s Settings, p Ports, shell Shell, dynamic cluster.Dynamic) *Member {
	m := &Member{Settings: s, Ports: p, shell: shell, Dynamic: dynamic, writing: map[string]bool{}}
	m.Guardian = Guardian{port: p.Guard, clock: p.Clock, later: p.Later, log: s.Log}
	return m
}

func (m *Member) now() cluster.Instant { return m.Clock.Now() }

// retryAfter is how soon a request to Consul that certainly failed is tried again, with
// jitter so that many members do not knock together.
func (m *Member) retryAfter() time.Duration {
	return m.Later.Jitter(200*time.Millisecond, 400*time.Millisecond)
}

// wakeAfter brings the loop round after d.
func (m *Member) wakeAfter(d time.Duration) { m.Later.After(d, func() {}) }

// Writing reports whether one of the leader's own keys is being written.
func (m *Member) Writing(key string) bool { return m.writing[key] }

// Idle reports whether nothing is under way in Consul and with the guard.
func (m *Member) Idle() bool {
	return !m.Tenure.Writing() && len(m.writing) == 0 && m.Guardian.idle()
}

// LockIsOurs reports whether Consul shows the lock held by this member's session.
func (m *Member) LockIsOurs() bool {
	l := m.Snapshot.Leader
	return l.Exists() && m.Session != "" && l.Session == m.Session
}

// Leads reports whether the lease runs and the lock is shown as this member's.
func (m *Member) Leads() bool { return m.Tenure.Held(m.now()) && m.LockIsOurs() }

// LeaseLeft is how long the lease still runs, zero when none is held.
func (m *Member) LeaseLeft() time.Duration {
	now := m.now()
	if !m.Tenure.Held(now) {
		return 0
	}
	return m.Tenure.Until().Sub(now)
}

// Perform begins an action. It never waits.
func (m *Member) Perform(action ha.Action) {
	switch act := action.(type) {
	case ha.Beat:
		m.beat()
	case ha.TakeOver:
		m.takeOver(act, false)
	case ha.Register:
		m.takeOver(act.TakeOver, true)
	case ha.Release:
		m.release(act.Successor)
	case ha.Reread:
		m.Reread()
	case ha.AskPeers:
		m.askPeers(act.Part)
	case ha.WriteSync:
		m.writeSync(act)
	case ha.AskFailsafe:
		m.askFailsafe()
	case ha.WriteFailsafe:
		m.writeFailsafe(act)
	case ha.ClearFailover:
		m.Refused = m.shell.Reason()
		m.ClearFailover(act.Index)
	case ha.Exit:
		m.Exit = true
	default:
		m.shell.Begin(action)
	}
}
