package agent

import (
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// dataState is what is in the data directory, as last looked at.
type dataState struct {
	State            ha.DataState
	Problem          string
	SystemIdentifier string
	Timeline         int
	// checkpointLSN is that of the last checkpoint in the control file.
	checkpointLSN int64
	wasPrimary    bool // by its signal files
}

// pgState is PostgreSQL as last looked at.
type pgState struct {
	running  bool
	observed postgres.State
	// observedAt is when the look at it began, and leaderLSN the leader's position that
	// was known then: what is behind that lags. Zero: not known.
	observedAt cluster.Instant
	leaderLSN  int64
	// shutDown is since when it has been seen shut down without an end.
	shutDown cluster.Instant
	// servedBy is the postmaster that was seen to answer last; zero: none.
	servedBy int
	// primaryKnown is the role of a postmaster that does not answer SQL (yet).
	wasPrimary bool
	syncNames  []string
	syncAny    int
	syncSince  int64
	syncValue  string // what PostgreSQL must show for these to hold
	syncSet    bool   // they were set by this agent, successfully
	// alone is when it was last found to have ended its WAL receiver, to follow nobody.
	alone cluster.Instant
}

// seenAlone reports whether PostgreSQL was looked at since it follows nobody: what it
// received before that, and acknowledged, its position then includes.
func (p pgState) seenAlone() bool { return p.observedAt > p.alone }

// primary tells whether PostgreSQL is outside recovery, or was when it was last
// seen.
func (p pgState) primary() bool {
	if p.observed.Accepting {
		return !p.observed.InRecovery
	}
	return p.wasPrimary
}

// view is what the decision rests on.
func (a *Agent) view() ha.View {
	now := a.clock()
	m := &a.m
	v := ha.View{
		Now: now, Wall: time.Now(), Name: a.cfg.Name, Tags: a.tags(),
		Config: m.Dynamic, Fence: a.m.FenceMargins(),
		Cluster: m.Snapshot, Read: m.Read, FirstRead: m.FirstRead, StatusSeen: m.StatusSeen, Session: m.Session,
		Lease: m.Tenure.Lease(), Promise: m.Tenure.Promise(), Giving: m.Tenure.Giving(), HandedOver: m.handedOver,
		Peers: m.Answers, PeersAsked: m.Asked, PeersDone: !m.Asking, PeersAskedLSN: m.AskedLSN, PeersParted: m.AskedToPart, Parted: m.Parted,
		Task: m.task.kind, Attempt: m.attempt, Adopted: m.adopted, AdoptedUntil: m.adoptedUntil,
		AdoptedPaused: m.AdoptedPaused, AdoptedUnled: m.adoptedUnled,
		Stopping:    m.stopping,
		SyncWriting: m.Writing(a.keys.Sync()), SyncUncertain: m.SyncUncertain, SyncBefore: m.SyncBefore,
	}
	v.WatchdogOK, v.WatchdogProblem = a.watchdogOK()
	o := m.pg.observed
	v.Postgres = ha.Postgres{
		RestoresAlone: m.data.State == ha.DataEmpty && a.pg.ClonesWithoutLeader(),
		Data:          m.data.State, DataProblem: m.data.Problem, SystemIdentifier: m.data.SystemIdentifier,
		Running: m.pg.running, Accepting: o.Accepting, Primary: m.pg.primary(),
		Timeline: o.Timeline, LSN: o.LSN(), Replaying: o.Replaying, Restoring: a.restoring(),
		Upstream: m.upstream, Streaming: o.ReplicationState == postgres.Streaming,
		ShutDown: m.pg.shutDown, DownSince: m.pgDown, UnservedSince: m.unservedSince, Hung: o.Silent && m.pg.running && a.pg.PID() == m.pg.servedBy, Crashes: m.recentCrashes(now),
		SyncNames: m.pg.syncNames, SyncAny: m.pg.syncAny, SyncSince: m.pg.syncSince,
		SyncUnsure:        !m.pg.syncSet || m.settingSync || o.Accepting && o.SyncNames != m.pg.syncValue,
		SynchronousCommit: a.pg.SynchronousCommit(),
		DiskTrouble:       m.disk.trouble, DiskSince: m.disk.since,
	}
	if o.Undersized {
		v.Postgres.Undersized = o.Standstill
	}
	for _, s := range o.Standbys {
		v.Postgres.Standbys = append(v.Postgres.Standbys, ha.Standby{
			Name: s.ApplicationName, Streaming: s.State == postgres.Streaming,
			Sync:     s.SyncState == "sync" || s.SyncState == "quorum",
			WriteLSN: s.WriteLSN, FlushLSN: s.FlushLSN, ReplayLSN: s.ReplayLSN,
		})
	}
	return v
}

// staleAfter is when a look at PostgreSQL is too old to say that it serves: the next
// ones are stuck, or fail.
const staleAfter = 10 * time.Second

// noteService notes since when a leader's PostgreSQL was not seen to serve.
func (m *loopState) noteService(now cluster.Instant) {
	stale := now.Sub(m.pg.observedAt) > staleAfter+m.Dynamic.RetryTimeout
	switch {
	case m.Tenure.Until().IsZero(), m.pg.running && m.pg.observed.Accepting && m.pg.primary() && !stale:
		m.unservedSince = 0
	case m.unservedSince.IsZero():
		m.unservedSince = now
	}
}

// crashWindow is how long an unexpected end of PostgreSQL is remembered.
const crashWindow = 3 * time.Minute

func (m *loopState) recentCrashes(now cluster.Instant) int {
	n := 0
	for _, at := range m.crashes {
		if now.Sub(at) < crashWindow {
			n++
		}
	}
	return n
}

// sawPostgres takes in what PostgreSQL looks like.
// data is nil when the data directory was not looked at, as it runs.
func (a *Agent) sawPostgres(state postgres.State, data *dataState, err error) {
	m := &a.m
	if err != nil {
		a.once("postgres", "PostgreSQL runs but cannot be observed", err.Error())
	} else {
		a.clearOnce("postgres")
	}
	if data != nil {
		m.data = *data
	}
	if m.pg.observed.Accepting {
		m.pg.wasPrimary = !m.pg.observed.InRecovery
	}
	m.pg.running, m.pg.observed = state.Running, state
	if !state.ShutDown {
		m.pg.shutDown = 0
	} else if m.pg.shutDown.IsZero() {
		m.pg.shutDown = a.clock()
	}
	switch {
	case state.Accepting:
		m.pg.wasPrimary = !state.InRecovery
		m.pgDown, m.pg.servedBy = 0, a.pg.PID()
	case state.Running && a.pg.StartedAs() != "":
		m.pg.wasPrimary = a.pg.StartedAs() == postgres.Primary
	case m.data.State == ha.DataValid:
		m.pg.wasPrimary = m.data.wasPrimary
	}
}

// sawPostgresAt takes in a look that began at a moment. The leader's position is only
// compared with it if it was known by then: else one that was written meanwhile, perhaps
// a whole segment further, would pass for a lag.
func (m *loopState) sawPostgresAt(began cluster.Instant) {
	m.pg.observedAt = began
	if s := m.Snapshot.Status; s.OK() && !m.StatusSeen.IsZero() && !began.Before(m.StatusSeen) {
		m.pg.leaderLSN = s.Value.OpTime
	}
}

// leaderLSN is the leader's position that PostgreSQL's are to be compared with. After a
// failover the shard may be behind what the old leader had.
func (m *loopState) leaderLSN() int64 {
	if !m.Snapshot.Status.OK() {
		return 0
	}
	return min(m.pg.leaderLSN, m.Snapshot.Status.Value.OpTime)
}

// postmasterGone: the postmaster has ended. Unless it was told to, that counts
// as a crash.
func (a *Agent) postmasterGone() {
	m := &a.m
	m.pg.running, m.pg.shutDown = false, 0
	m.pg.wasPrimary = m.pg.primary()
	m.pg.observed.Accepting, m.pg.observed.Running = false, false
	if m.task.kind == ha.TaskNone && m.pgDown.IsZero() {
		m.pgDown = a.clock()
		m.crashes = append(m.crashes, m.pgDown)
		a.log.Error().Msg("PostgreSQL ended without being told to; its log says why")
	}
	kick(a.kickPostgres)
}

// show makes the loop's state readable for the REST API.
func (a *Agent) show(reason string) {
	a.tellOfWatcher()
	o := a.m.pg.observed
	now := a.clock()
	state := &api.State{
		At: time.Now(), LoopAt: time.Now(), Name: a.cfg.Name, Scope: a.cfg.Scope, Version: publicVersion(a.version), Tags: publishedTags(a.tags()),
		Cluster: a.m.Snapshot, Dynamic: a.m.Dynamic, ConsulSeen: a.m.ReadWall, Reason: reason, Refused: a.m.Refused,
		Leader: a.m.Tenure.Held(now), LeaseLeft: a.m.LeaseLeft(), FailsafeActive: a.m.Tenure.OnFailsafe(), OtherPrimaries: a.m.others, Watchdog: a.watchdog.State(),
		Member: a.memberValue(), Task: a.progress(), Problems: a.problems(),
		Postgres: api.Postgres{
			State: a.pgStateName(), Accepting: o.Accepting && a.m.pg.running, InRecovery: !a.m.pg.primary(),
			StartTime: o.StartTime, ServerVersion: o.ServerVersion, SystemIdentifier: a.m.data.SystemIdentifier,
			Timeline: o.Timeline, LSN: o.LSN(), ReceivedLSN: o.ReceivedLSN, ReplayedLSN: o.ReplayedLSN,
			ReplayedAt: o.ReplayedAt, ReplayPaused: o.ReplayPaused, Standstill: o.Standstill,
			Replaying: o.Replaying, Restoring: a.restoring(), ReplicationState: o.ReplicationState,
			PendingRestart: o.PendingRestart,
		},
	}
	if a.m.upstream == "" && a.m.task.kind == ha.TaskNone && !a.m.pg.primary() {
		state.Parted = a.m.Parted
		if a.m.pg.seenAlone() {
			state.ObservedParted = a.m.Parted
		}
	}
	if at := a.m.pg.observedAt; !at.IsZero() {
		state.ObservedAt = state.At.Add(-now.Sub(at))
	}
	state.GuardRunning, state.GuardArmedFor = a.m.Guardian.Shown()
	if o.InRecovery {
		state.Postgres.LeaderLSN = a.m.leaderLSN()
	}
	for _, s := range o.Standbys {
		state.Postgres.Standbys = append(state.Postgres.Standbys, api.Standby{
			User: s.User, ApplicationName: s.ApplicationName, ClientAddr: s.ClientAddr,
			State: s.State, SyncState: s.SyncState, SyncPriority: s.SyncPriority,
		})
	}
	a.shown.Store(state)
	a.showStatus(reason)
	a.changed.send()
}

// margins are the moments before the end of a lease at which PostgreSQL is stopped and killed.
func margins(cfg config.Config) func(time.Duration) ha.FenceMargins {
	return func(ttl time.Duration) ha.FenceMargins {
		demote, kill := cfg.Lictor.Fence.Margins(ttl)
		return ha.FenceMargins{DemoteBefore: demote, KillBefore: kill}
	}
}
