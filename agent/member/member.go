package member

import (
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
	// Copying says how far a copy is that is being made, and when and how the data were
	// made last, in words; empty: none.
	Copying() (now, made string)
}

// Member is the state machine of one member of a shard. It is made of parts, each of which
// owns what it changes; here is what belongs to none of them, and what needs several. Its
// methods, and those of its parts, run on the goroutine of the loop, all of them: there are no
// locks.
type Member struct {
	*Shard
	Ports
	shell Shell

	reader
	leadership
	leaderKeys
	Local
	worker
	stopper
	syncLeave
	waiters    waiters
	poll       poll
	failsafe   failsafe
	deposer    deposer
	quorum     quorumTakeover
	opener     opener
	bootstrap  bootstrapper
	commits    commitWait
	restorer   restorer
	remote     remoteWatch
	otherSite  siteWatch
	rebuilder  rebuilder
	key        memberKey
	route      routeWriter
	restoring  *Work // of the restore that is under way; nil: there is none
	history    historyWriter
	slots      slotKeeper
	checkpoint firstCheckpoint
	handovers  handovers
	promoter   promoter

	hidden   bool // what runs in the data directory is not the shard's yet
	Upgrades Upgrades
	// Restored: the last restore that was asked for here has come to its end; else it
	// was undone, or is under way (RestoreUnfinished).
	Restored bool
	// Reason is that of the last decision.
	Reason string
	// Failed says why the agent must end.
	Failed error
	// Exit: the agent has nothing left to do.
	Exit bool
}

// New makes a member that knows nothing yet.
func New(s Settings, p Ports, shell Shell, dynamic cluster.Dynamic) *Member {
	shard := &Shard{Settings: s, Clock: p.Clock, Later: p.Later, Dynamic: dynamic, logged: map[string]string{}}
	m := &Member{Shard: shard, Ports: p, shell: shell}
	m.Upgrades = Upgrades{Member: m}
	local, work, lead, keys, planned := &m.Local, &m.worker, &m.leadership, &m.leaderKeys, &m.handovers
	m.reader = reader{Shard: shard, consul: p.Consul, leaseState: &lead.LeaseState, accept: m.Accept}
	m.leadership = leadership{
		Shard: shard, local: local, consul: p.Consul, watches: p.Watches, consulFailed: m.ConsulFailed,
		GuardSupervisor: GuardSupervisor{port: p.Guard, clock: p.Clock, later: p.Later, log: s.Log},
	}
	m.leaderKeys = leaderKeys{Shard: shard, consul: p.Consul, reread: m.Reread, writing: map[string]bool{}}
	m.Local = Local{Shard: shard, postgres: p.Postgres}
	m.worker = worker{Shard: shard, local: local, postgres: p.Postgres, watches: p.Watches}
	m.stopper = stopper{Shard: shard, work: work, lead: lead, local: local, postgres: p.Postgres, guard: p.Guard}
	m.waiters = waiters{Shard: shard}
	m.poll = poll{Shard: shard, peers: p.Peers}
	m.failsafe = failsafe{Shard: shard, lead: lead, keys: keys, peers: p.Peers}
	m.deposer = deposer{Shard: shard, peers: p.Peers}
	m.quorum = quorumTakeover{Shard: shard, lead: lead, local: local, work: work, peers: p.Peers, bouncers: p.Bouncers, postgres: p.Postgres, watches: p.Watches}
	m.quorum.hosts = addressBook{Shard: shard, peers: p.Peers, known: map[string]*hostAddresses{}}
	m.opener = opener{Shard: shard, lead: lead, local: local, commits: &m.commits}
	m.bootstrap = bootstrapper{Shard: shard, work: work, local: local, leaseState: &lead.LeaseState, consul: p.Consul, postgres: p.Postgres, reread: m.Reread}
	m.commits = commitWait{Shard: shard, local: local, postgres: p.Postgres, watches: p.Watches}
	m.restorer = restorer{Shard: shard, local: local, postgres: p.Postgres}
	m.remote = remoteWatch{Shard: shard, local: local, postgres: p.Postgres}
	m.otherSite = siteWatch{Shard: shard, local: local, lead: lead, postgres: p.Postgres}
	m.rebuilder = rebuilder{Shard: shard, local: local, lead: lead, consul: p.Consul, postgres: p.Postgres}
	m.key = memberKey{Shard: shard, consul: p.Consul, reread: m.Reread}
	m.route = routeWriter{Shard: shard, local: local, work: work, keys: keys, handovers: planned, bouncers: p.Bouncers}
	m.history = historyWriter{Shard: shard, local: local, lead: lead, keys: keys, postgres: p.Postgres}
	m.slots = slotKeeper{Shard: shard, local: local, postgres: p.Postgres}
	m.checkpoint = firstCheckpoint{Shard: shard, local: local, postgres: p.Postgres}
	m.handovers = handovers{Shard: shard, local: local, lead: lead, work: work, keys: keys, stop: &m.stopper, postgres: p.Postgres, peers: p.Peers, bouncers: p.Bouncers}
	m.promoter = promoter{
		Shard: shard, work: work, lead: lead, keys: keys, local: local, stop: &m.stopper, checkpoint: &m.checkpoint,
		watchdog: p.Watchdog, consul: p.Consul, postgres: p.Postgres, reread: m.Reread,
	}
	return m
}

// Idle reports whether nothing is under way, here, in Consul and with the guard.
func (m *Member) Idle() bool {
	return m.task == nil && !m.LeaseState.Writing() && len(m.writing) == 0 && !m.commits.setting && m.GuardSupervisor.idle()
}

// Restoring reports whether this member's data were replaced, or are just being, and may
// not have again what they had acknowledged before (agent/ha/restoring.go).
func (m *Member) Restoring() bool { return m.replacing() || m.Loss != nil }

// Step observes, decides and acts once.
func (m *Member) Step() (ha.View, ha.Decision) {
	m.otherSite.mind()
	m.noteService(!m.LeaseState.Until().IsZero())
	m.noteOutset(m.leadingLine(), m.task == nil)
	m.quorum.mind()
	m.opener.mind()
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
	m.rebuilder.keep()
	if m.task == nil {
		m.restorer.mind(v.Postgres)
		m.remote.mind(v.Postgres)
		m.rebuilder.mind()
	}
	m.waiters.tell()
	return v, d
}

// perform begins an action. It never waits.
func (m *Member) perform(action ha.Action) {
	switch act := action.(type) {
	case ha.Beat:
		m.beat(act.Consent)
	case ha.TakeOver:
		m.takeOver(act, false)
	case ha.Register:
		m.takeOver(act.TakeOver, true)
	case ha.Release:
		m.release(act.Successor)
	case ha.Reread:
		m.Reread()
	case ha.AskPeers:
		m.poll.ask(act.Detach, m.PG.Observed.LSN())
	case ha.BeginAttempt:
		m.quorum.begin(act.Index)
	case ha.DetachForAttempt:
		m.quorum.detach()
	case ha.EndAttempt:
		m.quorum.end(act)
	case ha.WriteSync:
		m.writeSync(act)
	case ha.AskFailsafe:
		m.failsafe.ask()
	case ha.WriteFailsafe:
		m.failsafe.writeList(act)
	case ha.ClearFailover:
		m.Refused = m.Reason
		m.ClearFailover(act.Index)
	case ha.Exit:
		m.Exit = true
	default:
		m.begin(action)
	}
}

// Saw takes in a look at PostgreSQL.
func (m *Member) Saw(l Look) {
	if m.hidden {
		return
	}
	if m.saw(l) && l.Found != nil && l.Found.Stray {
		m.adoptStray()
	}
}

// PostmasterGone hears that the postmaster has ended. Unless it was told to, that counts
// as a crash.
func (m *Member) PostmasterGone() {
	m.gone()
	m.PG.shutDown, m.PG.Observed.Silent = 0, false
	if m.task == nil && !m.onPurpose {
		m.crashed()
	}
	m.Watches.KickPostgres()
}

// AdoptRunning takes charge of a PostgreSQL that runs already, as it was seen, with what
// its guard knows. It reports whether the lease or pause of the agent's earlier run goes on.
func (m *Member) AdoptRunning(state pg.State, upstream string, guard Recalled) bool {
	m.sawState(state)
	m.follows(upstream)
	m.GuardSupervisor.Recall(guard)
	if !m.PG.Primary() {
		return false
	}
	m.adopted = guard.adoption(m.Now())
	// The earlier run may have had a beat under way that consents to a takeover by quorum, whatever the configuration says
	// that is known so far. The first beat, or takeover, settles it.
	m.LeaseState.BeginConsent(true)
	m.holdCommits()
	if !m.resume(guard) {
		return false
	}
	if guard.PersistedState.Unopened { // whatever the configuration says that is known so far
		m.opening, m.unopened = &opening{since: m.Now()}, true
		m.LeaseState.BeatSoon()
	}
	// The earlier run may have had a write of the key sync under way.
	m.SyncUncertain = m.SyncUncertain || !guard.Paused
	return true
}

// Adopt takes in, before anything else happens, what is in the data directory, and whether
// PostgreSQL runs in it. A note that this member has detached holds first.
func (m *Member) Adopt(found Found, running bool) {
	m.Local.Adopt(found, running)
	m.quorum.recall(found.Detachment)
}

// DetachRequest is the status under which this member has detached from the old leader, and the
// same if its PostgreSQL was looked at since; zero: it has not.
func (m *Member) Detaching() (detached, observed uint64) {
	if m.Upstream != "" || m.task != nil || m.PG.Primary() {
		return 0, 0
	}
	if m.PG.SeenAlone() {
		observed = m.Detached
	}
	return m.Detached, observed
}
