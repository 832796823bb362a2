package simulation

import (
	"maps"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// agent is one run of an agent's process: what package agent does around
// ha.Decide, without its goroutines. The names are those of package agent.
type agent struct {
	host    *host
	dead    bool
	stopped int           // faults that keep it from running (SIGSTOP)
	starved time.Duration // by how much everything comes late
	held    []func()
	timer   int // so that only the timer that was set last counts
	stepped bool

	*member.Member
	sessionTimer int

	pg                    pgState
	observedAt            cluster.Instant // when the last look at it began
	adopted               cluster.Instant
	adoptedUntil          cluster.Instant // the deadline of the guard that was found
	adoptedUnled          bool
	crashes               []cluster.Instant
	pgDown, unservedSince cluster.Instant
	upstream              string

	data       ha.DataState
	loss       *loss
	askingGoal bool
	alone      cluster.Instant // when it was last found to have ended its WAL receiver

	task       *task
	taskEdge   int
	attempt    ha.Attempt
	stopping   bool
	fencing    bool
	handedOver uint64 // the request that was carried out last

	configIndex uint64

	settingSync bool
	barredUntil cluster.Instant // pre_promote has failed

	touched struct {
		told     told
		session  string
		index    uint64
		at       cluster.Instant
		touching bool
	}
	history int
	reason  string
	shown   ha.Peer // what other members are told
}

// pgState is PostgreSQL as the agent saw it last.
type pgState struct {
	running, wasPrimary bool
	observed            observed
	syncNames           []string
	syncAny             int
	syncSince           int64
	syncValue           string
	syncSet             bool
}

func (p pgState) primary() bool {
	if p.observed.accepting {
		return !p.observed.recovery
	}
	return p.wasPrimary
}

// startAgent begins a run of the agent's process.
func (h *host) startAgent() {
	if h.agent != nil || !h.up {
		return
	}
	a := &agent{host: h}
	a.Member = member.New(member.Settings{
		Name: h.name, SessionName: "shard-" + h.name, Keys: keys(), Margins: h.w.schedule.margins, Log: h.w.log(h.name),
	}, a.ports(), shell{a}, h.w.schedule.bootConfig())
	h.changes(func() { h.agent = a })
	h.w.say("%s: the agent starts", h.name)
	a.adopt()
	a.later(h.w.between(0, 5*time.Millisecond), a.keepSession)
	a.later(h.w.between(0, 5*time.Millisecond), func() { a.watchConsul(0) })
	a.later(0, a.watchPostgres)
	a.later(0, a.step)
}

// die is the end of the process, by whatever means.
func (a *agent) die() {
	a.dead, a.held = true, nil
	if a.host.agent == a {
		a.host.agent = nil
	}
}

// do runs something in the agent's process.
func (a *agent) do(f func()) {
	if a.starved > 0 && !a.dead {
		a.host.w.after(a.host.w.between(0, a.starved), func() { a.now(f) })
		return
	}
	a.now(f)
}

func (a *agent) now(f func()) {
	a.host.process(func() {
		switch {
		case a.dead:
		case a.stopped > 0:
			a.held = append(a.held, f)
		default:
			f()
		}
	})
}

// post runs something on the loop, which then comes round.
func (a *agent) post(f func()) { a.do(func() { f(); a.step() }) }

// later runs something in the agent's process after a time.
func (a *agent) later(d time.Duration, f func()) { a.host.w.after(d, func() { a.do(f) }) }

// step observes, decides and acts once, and sets the timer.
func (a *agent) step() {
	if a.dead || a.stepped {
		return
	}
	switch {
	case a.Tenure.Until().IsZero(), a.pg.running && a.pg.observed.accepting && !a.pg.observed.recovery:
		a.unservedSince = 0
	case a.unservedSince.IsZero():
		a.unservedSince = a.host.clock()
	}
	v := shell{a}.View()
	d := ha.Decide(v)
	if d.Reason != a.reason && d.Reason != "" {
		a.reason = d.Reason
		a.host.w.say("%s: %s %v", a.host.name, d.Reason, d.Actions)
	}
	a.host.w.judge.decided(a, v, d)
	a.stepped = true // what an action calls back at once does not come round in between
	for _, action := range d.Actions {
		if _, last := action.(ha.Exit); last {
			a.host.w.say("%s: the agent ends", a.host.name)
			a.die()
			return
		}
		a.Perform(action)
	}
	a.stepped = false
	a.mindLoss(v)
	a.publish()
	a.shown = a.peerValue()
	tick := a.Dynamic.LoopWait
	if !d.Wake.IsZero() {
		tick = min(tick, d.Wake.Sub(a.host.clock()))
	}
	a.timer++
	timer := a.timer
	a.host.w.at(a.host.when(a.host.clock().Add(max(tick, time.Millisecond))), func() {
		if timer == a.timer {
			a.do(func() {
				if timer == a.timer {
					a.step()
				}
			})
		}
	})
}

// view is what the decision rests on (agent/observe.go).
func (a *agent) view() ha.View {
	o := a.pg.observed
	v := ha.View{
		Now: a.host.clock(), Wall: time.Unix(0, 0).Add(a.host.w.now), Name: a.host.name, Tags: a.tags(),
		Config: a.Dynamic, Fence: a.FenceMargins(),
		Cluster: a.Snapshot, Read: a.Read, FirstRead: a.FirstRead, StatusSeen: a.StatusSeen, Session: a.Session,
		Lease: a.Tenure.Lease(), Promise: a.Tenure.Promise(), Giving: a.Tenure.Giving(), HandedOver: a.handedOver,
		Peers: a.Answers, PeersAsked: a.Asked, PeersDone: !a.Asking, PeersAskedLSN: a.AskedLSN, PeersParted: a.AskedToPart, Parted: a.Parted,
		Attempt: a.attempt, Adopted: a.adopted, AdoptedUntil: a.adoptedUntil, AdoptedPaused: a.AdoptedPaused, AdoptedUnled: a.adoptedUnled, Stopping: a.stopping,
		SyncWriting: a.Writing(a.Keys.Sync()), SyncUncertain: a.SyncUncertain, SyncBefore: a.SyncBefore,
		WatchdogOK: true,
	}
	if a.task != nil {
		v.Task = a.task.kind
	}
	crashes := 0
	for _, at := range a.crashes {
		if v.Now.Sub(at) < crashWindow {
			crashes++
		}
	}
	v.Postgres = ha.Postgres{
		Data: a.data, SystemIdentifier: systemIdentifier,
		Running: a.pg.running, Accepting: o.accepting, Primary: a.pg.primary(),
		Timeline: o.timeline, LSN: o.lsn, Replaying: o.replaying, Restoring: a.restoring(),
		Upstream: a.upstream, Streaming: o.streaming,
		DownSince: a.pgDown, UnservedSince: a.unservedSince, Hung: a.pg.running && o.hung, Crashes: crashes,
		Standbys: o.standbys, SyncNames: a.pg.syncNames, SyncAny: a.pg.syncAny, SyncSince: a.pg.syncSince,
		SyncUnsure:        !a.pg.syncSet || a.settingSync || o.accepting && o.syncValue != a.pg.syncValue,
		SynchronousCommit: "on",
	}
	return v
}

// tags are the member's; one whose pre_promote has failed does not want to lead for a
// while.
func (a *agent) tags() map[string]any {
	if a.barredUntil.IsZero() || !a.host.clock().Before(a.barredUntil) {
		return a.host.tags
	}
	tags := maps.Clone(a.host.tags)
	tags["nofailover"] = true
	return tags
}

const (
	crashWindow      = 3 * time.Minute
	systemIdentifier = "7000000000000000001"
)

// adopt takes charge of what runs already (agent/configure.go).
func (a *agent) adopt() {
	pg := &a.host.pg
	a.pg.wasPrimary, a.pg.running = pg.primary, pg.running
	a.data, a.loss = pg.data(), pg.loss
	if !pg.running {
		return
	}
	a.sawPostgres(pg.observe())
	a.follows(pg.aim)
	if a.pg.primary() {
		guard := a.host.guard.recall()
		a.adopted, a.adoptedUntil, a.AdoptedPaused, a.adoptedUnled = a.host.clock(), guard.Until, guard.Paused, guard.Unled
		a.Guardian.Recall(guard)
		if a.Resume(guard) {
			a.Session, a.Dynamic = guard.Memo.Session, a.host.w.remembered(guard.Memo, a.Dynamic)
		}
	}
}

// sawPostgres takes in what PostgreSQL looks like.
func (a *agent) sawPostgres(o observed) {
	if a.pg.observed.accepting {
		a.pg.wasPrimary = !a.pg.observed.recovery
	}
	a.pg.running, a.pg.observed = o.running, o
	switch {
	case o.accepting:
		a.pg.wasPrimary, a.pgDown = !o.recovery, 0
	case !o.running && a.host.pg.diskHangs > 0: // the data cannot be looked at
	default:
		a.pg.wasPrimary = a.host.pg.primary
	}
}

// postmasterGone: the postmaster has ended.
func (a *agent) postmasterGone() {
	if a.host.pg.running {
		return
	}
	a.pg.running = false
	a.pg.wasPrimary = a.pg.primary()
	a.pg.observed.accepting, a.pg.observed.running, a.pg.observed.hung = false, false, false
	if a.task == nil && a.pgDown.IsZero() {
		a.pgDown = a.host.clock()
		a.crashes = append(a.crashes, a.pgDown)
	}
	a.step()
}

// stoppedOnPurpose notes that PostgreSQL is down because it was told to stop.
func (a *agent) stoppedOnPurpose() {
	a.pg.wasPrimary = a.pg.primary()
	a.pg.running, a.pg.observed.running, a.pg.observed.accepting = false, false, false
	a.pgDown, a.upstream, a.adopted, a.AdoptedPaused, a.adoptedUnled = 0, "", 0, false, false
}
