package simulation

import (
	"errors"
	"maps"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
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
	// firstRead is when Consul was read first, for mutants.
	firstRead cluster.Instant

	ha.Outlook
	tenure          ha.Tenure
	session         string
	sessionTimer    int
	rereading       bool
	rereadNotBefore cluster.Instant
	writing         map[string]bool

	pg           pgState
	observedAt   cluster.Instant // when the last look at it began
	adopted      cluster.Instant
	adoptedUntil cluster.Instant // the deadline of the guard that was found
	// adoptedPaused, adoptedUnled: ha.View.
	adoptedPaused, adoptedUnled bool
	crashes                     []cluster.Instant
	pgDown, unservedSince       cluster.Instant
	upstream                    string

	answers []ha.Peer
	asked   cluster.Instant
	// askedLSN is its own position as it was known then.
	askedLSN int64
	// askedToPart is the status that they were asked to part from first.
	askedToPart uint64
	pending     bool

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
	complete   bool   // the successor of the lease that is given up has all WAL

	dynamic     cluster.Dynamic
	configIndex uint64

	settingSync, syncUncertain bool
	syncBefore                 *cluster.Entry[cluster.Sync]
	barredUntil                cluster.Instant // pre_promote has failed

	guardian guardian
	memos    uint64
	touched  struct {
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
	a := &agent{host: h, writing: map[string]bool{}, dynamic: h.w.schedule.bootConfig()}
	a.guardian.a = a
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

func (a *agent) clock() cluster.Instant { return a.host.clock() }

// wakeAfter brings the loop round after d.
func (a *agent) wakeAfter(d time.Duration) { a.later(d, a.step) }

func (a *agent) retryAfter() time.Duration {
	return a.host.w.between(200*time.Millisecond, 400*time.Millisecond)
}

// step observes, decides and acts once, and sets the timer.
func (a *agent) step() {
	if a.dead || a.stepped {
		return
	}
	switch {
	case a.tenure.Until().IsZero(), a.pg.running && a.pg.observed.accepting && !a.pg.observed.recovery:
		a.unservedSince = 0
	case a.unservedSince.IsZero():
		a.unservedSince = a.clock()
	}
	v := a.view()
	a.host.w.mutant.see(a, &v)
	d := ha.Decide(v)
	if d.Reason != a.reason && d.Reason != "" {
		a.reason = d.Reason
		a.host.w.say("%s: %s %v", a.host.name, d.Reason, d.Actions)
	}
	a.host.w.judge.decided(a, v, d)
	a.stepped = true // what an action calls back at once does not come round in between
	for _, action := range d.Actions {
		a.perform(action)
		if a.dead {
			return
		}
	}
	a.stepped = false
	a.mindLoss(v)
	a.publish()
	a.shown = a.peerValue()
	tick := a.dynamic.LoopWait
	if !d.Wake.IsZero() {
		tick = min(tick, d.Wake.Sub(a.clock()))
	}
	a.timer++
	timer := a.timer
	a.host.w.at(a.host.when(a.clock().Add(max(tick, time.Millisecond))), func() {
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
		Now: a.clock(), Wall: time.Unix(0, 0).Add(a.host.w.now), Name: a.host.name, Tags: a.tags(),
		Config: a.dynamic, Fence: a.margins(),
		Cluster: a.Snapshot, Read: a.Read, FirstRead: a.FirstRead, StatusSeen: a.StatusSeen, Session: a.session,
		Lease: a.tenure.Lease(), Promise: a.tenure.Promise(), Giving: a.tenure.Giving(), HandedOver: a.handedOver,
		Peers: a.answers, PeersAsked: a.asked, PeersDone: !a.pending, PeersAskedLSN: a.askedLSN, PeersParted: a.askedToPart, Parted: a.Parted,
		Attempt: a.attempt, Adopted: a.adopted, AdoptedUntil: a.adoptedUntil, AdoptedPaused: a.adoptedPaused, AdoptedUnled: a.adoptedUnled, Stopping: a.stopping,
		SyncWriting: a.writing[keySync], SyncUncertain: a.syncUncertain, SyncBefore: a.syncBefore,
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
	if a.barredUntil.IsZero() || !a.clock().Before(a.barredUntil) {
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

func (a *agent) margins() ha.FenceMargins {
	ttl := a.dynamic.TTL
	if length := a.tenure.Length(); length > 0 {
		ttl = min(ttl, length)
	}
	margins := ha.FenceMargins{DemoteBefore: ttl / 4, KillBefore: ttl / 10}
	if k := a.host.w.schedule.KillBefore; k > 0 {
		margins.DemoteBefore, margins.KillBefore = 2*k, k
	}
	return margins
}

func (a *agent) killAt() cluster.Instant {
	until := a.tenure.Until()
	if until.IsZero() {
		return 0
	}
	return until.Add(-a.margins().KillBefore)
}

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
		until, memo, paused, unled := a.host.guard.recall()
		a.adopted, a.adoptedUntil, a.adoptedPaused, a.adoptedUnled = a.clock(), until, paused, unled
		a.guardian.resting = paused
		a.resume(until, memo, paused)
	}
}

// resume goes on with the lease that the guard remembers.
func (a *agent) resume(until cluster.Instant, memo *guardMemo, paused bool) {
	now := a.clock()
	if paused {
		a.tenure.ResumeLists(memo.Memo)
		a.dynamic, a.session = memo.config, memo.Session
		a.host.w.say("%s: goes on with the pause", a.host.name)
		return
	}
	if memo == nil || !now.Before(until) || a.tenure.Resume(now, memo.Memo) != nil {
		return
	}
	a.Snapshot.Status.ModifyIndex = memo.Index
	a.syncUncertain = true
	a.dynamic = memo.config
	a.session = memo.Session
	a.host.w.say("%s: goes on with its lease, %s left", a.host.name, a.tenure.Until().Sub(now))
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
		a.pgDown = a.clock()
		a.crashes = append(a.crashes, a.pgDown)
	}
	a.step()
}

// stoppedOnPurpose notes that PostgreSQL is down because it was told to stop.
func (a *agent) stoppedOnPurpose() {
	a.pg.wasPrimary = a.pg.primary()
	a.pg.running, a.pg.observed.running, a.pg.observed.accepting = false, false, false
	a.pgDown, a.upstream, a.adopted, a.adoptedPaused, a.adoptedUnled = 0, "", 0, false, false
}

// guardian keeps the guard's deadline in step with the lease (agent/guardian.go):
// orders reach the guard one after another; of those that the loop leaves, the
// latest replaces earlier ones.
type guardian struct {
	a     *agent
	left  *guardOrder
	sent  bool // an order that was left is waiting for its turn
	queue []func(done func())
	busy  bool
	may   cluster.Instant // the latest deadline that the guard may have
	// newest is the latest memo that anybody passed on.
	newest guardMemo
	// resting: the guard may remember that a pause is in force.
	resting bool
}

type guardOrder struct {
	memo   guardMemo
	grant  bool
	disarm bool
}

func (g *guardian) leave(o guardOrder) {
	if o.memo.killAt.IsZero() && !o.disarm {
		return
	}
	g.latest(o.memo)
	o.grant = o.grant || g.left != nil && g.left.grant && !o.disarm
	g.left = &o
	if g.sent {
		return
	}
	g.sent = true
	g.enqueue(func(done func()) {
		g.sent = false
		order := g.left
		g.left = nil
		switch {
		case order == nil:
			done()
		case order.disarm:
			g.a.host.guard.standDown(g.latest(order.memo), func() { g.may = 0; done() })
		default:
			g.tell(order.memo, order.grant, func(error) { done() })
		}
	})
}

func (g *guardian) enqueue(job func(done func())) {
	g.queue = append(g.queue, job)
	g.next()
}

// How long the agent waits for the guard, and for one that starts PostgreSQL (agent/fence).
const (
	answerWithin = 2 * time.Second
	startWithin  = 10 * time.Second
)

var errNoAnswer = errors.New("the guard does not answer")

// answered gives an order to the guard up when it is not answered in time.
func (a *agent) answered(order func(done func(error)), done func(error)) {
	over := false
	finish := func(err error) {
		if !over {
			over = true
			done(err)
		}
	}
	a.later(answerWithin, func() { finish(errNoAnswer) })
	order(finish)
}

func (g *guardian) next() {
	if g.busy || len(g.queue) == 0 {
		return
	}
	job := g.queue[0]
	g.queue = g.queue[1:]
	g.busy = true
	over := false
	next := func() {
		if !over {
			over, g.busy = true, false
			g.next()
		}
	}
	job(func() { g.a.do(next) })
	g.a.later(answerWithin, next)
}

// armNow sets the deadline of a new lease; done hears when the guard has it.
func (g *guardian) armNow(memo guardMemo, done func(error)) {
	if g.a.host.led.IsZero() {
		g.a.host.led = memo.killAt
	}
	g.enqueue(func(next func()) {
		g.a.answered(func(told func(error)) {
			g.tell(memo, true, func(err error) { g.a.do(func() { told(err) }) })
		}, func(err error) {
			next()
			done(err)
		})
	})
}

// latest is the newest memo that anybody has passed on.
func (g *guardian) latest(memo guardMemo) guardMemo {
	if memo.version > g.newest.version {
		g.newest = memo
	}
	return g.newest
}

// tell has the guard take the latest deadline.
func (g *guardian) tell(memo guardMemo, grant bool, done func(error)) {
	memo = g.latest(memo)
	if g.may.Before(memo.killAt) {
		g.may = memo.killAt
	}
	g.a.host.guard.arm(memo.killAt, memo, grant, func(err error) {
		if err == nil {
			g.may = memo.killAt
		}
		done(err)
	})
}

// shorten sends only when the guard has no later deadline than the lease allows.
func (g *guardian) shorten(memo guardMemo, limit time.Duration, done func(error)) {
	if memo = g.latest(memo); memo.killAt.IsZero() || !memo.killAt.Before(g.may) {
		done(nil)
		return
	}
	over := false
	finish := func(err error) {
		if !over {
			over = true
			done(err)
		}
	}
	g.a.later(limit, func() { finish(errNotSent) })
	g.enqueue(func(next func()) {
		g.tell(memo, false, func(err error) {
			next()
			g.a.do(func() { finish(err) })
		})
	})
}

func (g *guardian) disarm(done func(error)) {
	g.enqueue(func(next func()) {
		g.left = nil
		g.a.answered(func(told func(error)) {
			g.a.host.guard.disarm(func() { g.a.do(func() { told(nil) }) })
		}, func(err error) {
			if err == nil {
				g.may, g.resting, g.a.host.led = 0, false, 0
			}
			next()
			done(err)
		})
	})
}

// leads makes sure that a restarted agent will know of the lease, and that the guard
// does not remember a pause, before a status says that there is none.
func (g *guardian) leads(memo guardMemo, until cluster.Instant, limit time.Duration, done func(error)) {
	if g.a.host.led.IsZero() {
		g.a.host.led = until
	}
	if memo.Paused || !g.resting {
		done(nil)
		return
	}
	over := false
	finish := func(err error) {
		if !over {
			over = true
			g.resting = g.resting && err != nil
			done(err)
		}
	}
	g.a.later(limit, func() { finish(errNotSent) })
	g.enqueue(func(next func()) {
		memo := g.latest(memo)
		told := func(err error) {
			next()
			g.a.do(func() { finish(err) })
		}
		if memo.killAt.IsZero() {
			g.a.host.guard.remember(memo, func() { told(nil) })
			return
		}
		g.tell(memo, false, told)
	})
}

func (g *guardian) remember(memo guardMemo, done func()) {
	g.enqueue(func(next func()) {
		g.a.host.guard.remember(g.latest(memo), func() { next(); g.a.do(done) })
	})
}

func (a *agent) memo() guardMemo {
	a.memos++
	m := guardMemo{
		Memo: a.tenure.Memo(a.session, a.Snapshot.Status.ModifyIndex), config: a.dynamic,
		killAt: a.killAt(), version: a.memos,
	}
	m.Paused = a.pauseInForce()
	return m
}

func (a *agent) pauseInForce() bool {
	return ha.View{Name: a.host.name, Config: a.dynamic, Cluster: a.Snapshot, Read: a.Read, AdoptedPaused: a.adoptedPaused}.PauseInForce()
}

// armGuard moves the guard's deadline with the lease.
func (a *agent) armGuard() {
	if a.pauseInForce() {
		a.guardian.resting = true
		a.guardian.leave(guardOrder{disarm: true, memo: a.memo()})
		return
	}
	a.guardian.leave(guardOrder{memo: a.memo()})
}
