package member

import (
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Data is what is in the data directory, as last looked at.
type Data struct {
	State            ha.DataState
	Problem          string
	SystemIdentifier string
	Timeline         int
	// CheckpointLSN is that of the last checkpoint in the control file; ShutDown: it was made
	// when PostgreSQL was shut down, and nothing was written since.
	CheckpointLSN int64
	ShutDown      bool
	WasPrimary    bool // by its signal files
}

// Found is what a look at the data directory, and beside it, has found.
type Found struct {
	Data Data
	Loss *pg.Loss
	// Stray: PostgreSQL runs in it that nobody has taken charge of.
	Stray bool
}

// PG is PostgreSQL as last looked at.
type PG struct {
	Running  bool
	Observed pg.State
	// ObservedAt is when the look at it began, and leaderLSN the leader's position that
	// was known then: what is behind that lags. Zero: not known.
	ObservedAt cluster.Instant
	leaderLSN  int64
	// shutDown is since when it has been seen shut down without an end.
	shutDown cluster.Instant
	// servedBy is the postmaster that was seen to answer last; zero: none.
	servedBy int
	// wasPrimary is the role of a postmaster that does not answer SQL (yet).
	wasPrimary bool
	syncNames  []string
	syncAny    int
	syncSince  int64
	syncValue  string // what PostgreSQL must show for these to hold
	syncSet    bool   // they were set by this agent, successfully
	// alone is when it was last found to have ended its WAL receiver, to follow nobody.
	alone cluster.Instant
}

// SeenAlone reports whether PostgreSQL was looked at since it follows nobody: what it
// received before that, and acknowledged, its position then includes.
func (p PG) SeenAlone() bool { return p.ObservedAt > p.alone }

// Primary reports whether PostgreSQL is outside recovery, or was when it was last
// seen.
func (p PG) Primary() bool {
	if p.Observed.Accepting {
		return !p.Observed.InRecovery
	}
	return p.wasPrimary
}

// View is what the decision rests on.
func (m *Member) View() ha.View {
	now := m.now()
	v := ha.View{
		Now: now, Wall: m.Clock.Wall(), Name: m.Name, Tags: m.TagsNow(),
		Config: m.Dynamic, Fence: m.FenceMargins(),
		Cluster: m.Snapshot, Read: m.Read, FirstRead: m.FirstRead, StatusSeen: m.StatusSeen, Session: m.Session,
		Lease: m.Tenure.Lease(), Promise: m.Tenure.Promise(), Giving: m.Tenure.Giving(), HandedOver: m.HandedOver,
		Peers: m.Answers, PeersAsked: m.Asked, PeersDone: !m.Asking, PeersAskedLSN: m.AskedLSN, PeersParted: m.AskedToPart, Parted: m.Parted,
		Task: m.TaskKind(), Attempt: m.Attempt, Adopted: m.adopted, AdoptedUntil: m.adoptedUntil,
		AdoptedPaused: m.adoptedPaused, AdoptedUnled: m.adoptedUnled,
		Stopping:    m.Stopping,
		SyncWriting: m.writing[m.Keys.Sync()], SyncUncertain: m.SyncUncertain, SyncBefore: m.syncBefore,
	}
	v.WatchdogOK, v.WatchdogProblem = m.Watchdog.OK()
	o := m.PG.Observed
	v.Postgres = ha.Postgres{
		RestoresAlone: m.Data.State == ha.DataEmpty && m.Postgres.ClonesWithoutLeader(),
		Data:          m.Data.State, DataProblem: m.Data.Problem, SystemIdentifier: m.Data.SystemIdentifier,
		Running: m.PG.Running, Accepting: o.Accepting, Primary: m.PG.Primary(),
		Timeline: o.Timeline, LSN: o.LSN(), Replaying: o.Replaying, Restoring: m.Restoring(),
		Upstream: m.Upstream, Streaming: o.ReplicationState == pg.Streaming,
		ShutDown: m.PG.shutDown, DownSince: m.PGDown, UnservedSince: m.unservedSince,
		Hung: o.Silent && m.PG.Running && m.Postgres.PID() == m.PG.servedBy, Crashes: m.recentCrashes(now),
		SyncNames: m.PG.syncNames, SyncAny: m.PG.syncAny, SyncSince: m.PG.syncSince,
		SyncUnsure:        !m.PG.syncSet || m.settingSync || o.Accepting && o.SyncNames != m.PG.syncValue,
		SynchronousCommit: m.Postgres.SynchronousCommit(),
		DiskTrouble:       m.Disk, DiskSince: m.diskSince,
	}
	if o.Undersized {
		v.Postgres.Undersized = o.Standstill
	}
	v.Postgres.Standbys = slices.Grow(v.Postgres.Standbys, len(o.Standbys))
	for _, s := range o.Standbys {
		v.Postgres.Standbys = append(v.Postgres.Standbys, ha.Standby{
			Name: s.ApplicationName, Streaming: s.State == pg.Streaming,
			Sync:     s.SyncState == "sync" || s.SyncState == "quorum",
			WriteLSN: s.WriteLSN, FlushLSN: s.FlushLSN, ReplayLSN: s.ReplayLSN,
		})
	}
	if m.Shown != nil {
		return m.Shown(v)
	}
	return v
}

// TagsNow are this member's. One whose pre_promote has failed just now does not want
// to lead for a while, so that another member can.
func (m *Member) TagsNow() map[string]any {
	if m.barredUntil.IsZero() || !m.now().Before(m.barredUntil) {
		return m.Tags
	}
	tags := map[string]any{"nofailover": true}
	for name, value := range m.Tags {
		if name != "nofailover" && name != "failover_priority" {
			tags[name] = value
		}
	}
	return tags
}

// staleAfter is when a look at PostgreSQL is too old to say that it serves: the next
// ones are stuck, or fail.
const staleAfter = 10 * time.Second

// noteService notes since when a leader's PostgreSQL was not seen to serve.
func (m *Member) noteService() {
	now := m.now()
	stale := now.Sub(m.PG.ObservedAt) > staleAfter+m.Dynamic.RetryTimeout
	switch {
	case m.Tenure.Until().IsZero(), m.PG.Running && m.PG.Observed.Accepting && m.PG.Primary() && !stale:
		m.unservedSince = 0
	case m.unservedSince.IsZero():
		m.unservedSince = now
	}
}

// crashWindow is how long an unexpected end of PostgreSQL is remembered.
const crashWindow = 3 * time.Minute

func (m *Member) recentCrashes(now cluster.Instant) int {
	n := 0
	for _, at := range m.crashes {
		if now.Sub(at) < crashWindow {
			n++
		}
	}
	return n
}

// Look is a look at PostgreSQL that began at a moment.
type Look struct {
	Began cluster.Instant
	State pg.State
	Err   error
	// Found is nil when the data directory was not looked at, as it runs.
	Found *Found
}

// Saw takes in a look at PostgreSQL. One that spans the beginning or the end of a task may
// show what is no longer so.
func (m *Member) Saw(l Look) {
	if !l.Began.IsZero() && (l.Began <= m.edge || l.Began < m.PG.ObservedAt) {
		return
	}
	if l.Err != nil {
		m.Once("postgres", "PostgreSQL runs but cannot be observed", l.Err.Error())
	} else {
		m.ClearOnce("postgres")
	}
	if l.Found != nil {
		m.Data = l.Found.Data
	}
	m.sawState(l.State)
	if l.Err == nil && !l.Began.IsZero() {
		m.sawAt(l.Began)
	}
	if l.Found != nil && l.Found.Stray {
		m.adoptStray()
	}
}

func (m *Member) sawState(state pg.State) {
	if m.PG.Observed.Accepting {
		m.PG.wasPrimary = !m.PG.Observed.InRecovery
	}
	m.PG.Running, m.PG.Observed = state.Running, state
	if !state.ShutDown {
		m.PG.shutDown = 0
	} else if m.PG.shutDown.IsZero() {
		m.PG.shutDown = m.now()
	}
	primary, started := m.Postgres.StartedAs()
	switch {
	case state.Accepting:
		m.PG.wasPrimary = !state.InRecovery
		m.PGDown, m.PG.servedBy = 0, m.Postgres.PID()
	case state.Running && started:
		m.PG.wasPrimary = primary
	case m.Data.State == ha.DataValid:
		m.PG.wasPrimary = m.Data.WasPrimary
	}
}

// sawAt takes in when a look began. The leader's position is only
// compared with it if it was known by then: else one that was written meanwhile, perhaps
// a whole segment further, would pass for a lag.
func (m *Member) sawAt(began cluster.Instant) {
	m.PG.ObservedAt = began
	if s := m.Snapshot.Status; s.OK() && !m.StatusSeen.IsZero() && !began.Before(m.StatusSeen) {
		m.PG.leaderLSN = s.Value.OpTime
	}
}

// LeaderLSN is the leader's position that PostgreSQL's are to be compared with. After a
// failover the shard may be behind what the old leader had.
func (m *Member) LeaderLSN() int64 {
	if !m.Snapshot.Status.OK() {
		return 0
	}
	return min(m.PG.leaderLSN, m.Snapshot.Status.Value.OpTime)
}

// PostmasterGone hears that the postmaster has ended. Unless it was told to, that counts
// as a crash.
func (m *Member) PostmasterGone() {
	m.PG.Running, m.PG.shutDown = false, 0
	m.PG.wasPrimary = m.PG.Primary()
	m.PG.Observed.Accepting, m.PG.Observed.Running, m.PG.Observed.Silent = false, false, false
	if m.task == nil && m.PGDown.IsZero() {
		m.PGDown = m.now()
		m.crashes = append(m.crashes, m.PGDown)
		m.Log.Error().Msg("PostgreSQL ended without being told to; its log says why")
	}
	m.Watches.KickPostgres()
}

// SawDisk hears what is wrong with the disk under the data directory, and since when; empty:
// nothing is.
func (m *Member) SawDisk(trouble string, since cluster.Instant) {
	if trouble == "" || m.Disk == "" {
		m.diskSince = since
	}
	m.Disk = trouble
}

// Adopt takes in, before anything else happens, what is in the data directory, and whether
// PostgreSQL runs in it.
func (m *Member) Adopt(found Found, running bool) {
	m.Data, m.Loss = found.Data, found.Loss
	m.PG.wasPrimary, m.PG.Running = found.Data.WasPrimary, running
}

// AdoptRunning takes charge of a PostgreSQL that runs already, as it was seen, with what
// its guard knows. It reports whether the lease or pause of the agent's earlier run goes on.
func (m *Member) AdoptRunning(state pg.State, upstream string, guard Recalled) bool {
	m.sawState(state)
	m.follows(upstream)
	m.Guardian.Recall(guard)
	if !m.PG.Primary() {
		return false
	}
	m.adopted, m.adoptedUntil = m.now(), guard.Until
	m.adoptedPaused, m.adoptedUnled = guard.Paused, guard.Unled
	return m.resume(guard)
}

// stoppedOnPurpose notes that PostgreSQL is down because it was told to stop.
func (m *Member) stoppedOnPurpose() {
	m.PG.wasPrimary = m.PG.Primary()
	m.PG.Running, m.PG.Observed.Running, m.PG.Observed.Accepting = false, false, false
	m.PGDown, m.Upstream = 0, ""
	m.adopted, m.adoptedPaused, m.adoptedUnled = 0, false, false
}

// follows notes whom the replica follows by now.
func (m *Member) follows(upstream string) {
	m.Upstream = upstream
	if upstream == "" {
		m.PG.alone = m.now()
	}
}

// Parting is the status under which this member has parted from the old leader, and the
// same if its PostgreSQL was looked at since; zero: it has not.
func (m *Member) Parting() (parted, observed uint64) {
	if m.Upstream != "" || m.task != nil || m.PG.Primary() {
		return 0, 0
	}
	if m.PG.SeenAlone() {
		observed = m.Parted
	}
	return m.Parted, observed
}
