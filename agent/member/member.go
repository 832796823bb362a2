package member

import (
	"maps"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Settings are what a member is told when it is made, and what of it may change.
type Settings struct {
	Name string
	// SessionName is that of its sessions in Consul.
	SessionName string
	Keys        cluster.Keys
	// ConnURL, APIURL and ProxyURL are where others reach this member, Host and Port where
	// its PostgreSQL is.
	ConnURL, APIURL, ProxyURL string
	Host                      string
	Port                      int
	Version                   string
	// PrimaryWord is the role of a primary in the words of the Patroni that is spoken.
	PrimaryWord string
	// Tags are the member's own.
	Tags map[string]any
	// Margins are the moments before the end of a lease of ttl at which PostgreSQL is
	// stopped and killed.
	Margins func(ttl time.Duration) ha.FenceMargins
	// ScriptLimit bounds each of the operator's scripts.
	ScriptLimit time.Duration
	// MayRewind reports whether pg_rewind is allowed; MayRemove names the setting that allows
	// to replace a data directory which cannot be rewound, empty when none does.
	MayRewind func() bool
	MayRemove func(cluster.Dynamic) string
	// Decided, if set, hears of each decision before it is carried out.
	Decided func(ha.View, ha.Decision)
	// Shown, if set, changes what a decision is shown: for tests.
	Shown func(ha.View) ha.View
	Log   zerolog.Logger
}

// Shell is what of the member's state machine still lies outside of this package.
type Shell interface {
	// InitialConfig is the dynamic configuration for a shard that has none.
	InitialConfig() []byte
	// Accepted hears of each reading that was taken.
	Accepted(cluster.Snapshot)
	// Problems are those that this member shows.
	Problems() []string
	// ScheduledRestart is what the member key says of it; nil: nothing.
	ScheduledRestart() map[string]any
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
	// Complete: the successor of the lease that is given up has all WAL.
	Complete bool
	// HandedOver is the request that was carried out last.
	HandedOver uint64
	// SyncUncertain: a write of the key sync may still land.
	SyncUncertain bool
	// syncBefore is the key sync as it was before a promotion that did not happen.
	syncBefore *cluster.Entry[cluster.Sync]
	Dynamic    cluster.Dynamic

	// PostgreSQL
	Data    Data
	PG      PG
	adopted cluster.Instant
	// adoptedUntil is the deadline of the guard that was found with it.
	adoptedUntil cluster.Instant
	// adoptedPaused, adoptedUnled: ha.View.
	adoptedPaused, adoptedUnled bool
	crashes                     []cluster.Instant
	PGDown                      cluster.Instant // since when it is down on its own
	// unservedSince is since when, as the leader, it was not seen to serve.
	unservedSince cluster.Instant
	Upstream      string // whom the replica follows
	// Disk says what is wrong with the disk under the data directory; empty: nothing.
	Disk      string
	diskSince cluster.Instant

	// Work
	task    *task // nil: none is under way
	edge    cluster.Instant
	Attempt ha.Attempt
	// Loss says what the data that were replaced may have acknowledged; nil: they were
	// not, or have got everything again.
	Loss        *pg.Loss
	askingGoal  bool
	Stopping    bool
	fencing     bool
	settingSync bool
	LeavingSync bool            // this standby asks the leader to do without it
	barredUntil cluster.Instant // pre_promote has failed: this member does not want to lead before
	waiters     []*waiter
	published   published

	// What the other members answered, and to which question.
	Answers []ha.Peer
	Asked   cluster.Instant
	Asking  bool
	// AskedLSN is this member's own position as it was known then.
	AskedLSN int64
	// AskedToPart is the status that they were asked to part from first; zero: none.
	AskedToPart uint64

	// Reason is that of the last decision.
	Reason string
	// Refused says why the last request for a switchover was refused.
	Refused string
	told    map[string]string // problems that were logged and last, by topic
	// Failed says why the agent must end.
	Failed error
	// Exit: the agent has nothing left to do.
	Exit bool
}

// New makes a member that knows nothing yet.
func New(s Settings, p Ports, shell Shell, dynamic cluster.Dynamic) *Member {
	m := &Member{Settings: s, Ports: p, shell: shell, Dynamic: dynamic, writing: map[string]bool{}}
	m.told = map[string]string{}
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

// Idle reports whether nothing is under way, here, in Consul and with the guard.
func (m *Member) Idle() bool {
	return m.task == nil && !m.Tenure.Writing() && len(m.writing) == 0 && !m.settingSync && m.Guardian.idle()
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

// Step observes, decides and acts once.
func (m *Member) Step() (ha.View, ha.Decision) {
	m.noteService()
	v := m.View()
	d := ha.Decide(v)
	if m.Decided != nil {
		m.Decided(v, d)
	}
	if d.Reason != "" {
		m.Reason = d.Reason
	}
	for _, action := range d.Actions {
		m.perform(action)
	}
	m.mindLoss(v)
	m.tellWaiters()
	return v, d
}

// perform begins an action. It never waits.
func (m *Member) perform(action ha.Action) {
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
		m.Refused = m.Reason
		m.ClearFailover(act.Index)
	case ha.Exit:
		m.Exit = true
	default:
		m.begin(action)
	}
}

// Once logs a problem when it is new or has changed, until ClearOnce.
func (m *Member) Once(topic, message, detail string) {
	problem := message + ": " + detail
	if m.told[topic] == problem {
		return
	}
	m.told[topic] = problem
	m.Log.Error().Str("detail", detail).Msg(message)
}

// ClearOnce says that the problem of a topic is over.
func (m *Member) ClearOnce(topic string) {
	if _, told := m.told[topic]; told {
		delete(m.told, topic)
		m.Log.Info().Str("topic", topic).Msg("well again")
	}
}

// Told are the problems that were logged and last.
func (m *Member) Told() []string { return slices.Collect(maps.Values(m.told)) }
