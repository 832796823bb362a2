package member

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is what all long tasks have in common: one at a time, how they begin and
// end, and how one that must stop PostgreSQL comes before whatever is under way.

// Work is a piece of work whose calls can be broken off.
type Work struct {
	why     error
	onBreak []func()
}

// ErrBroken: something more urgent has come in between.
var ErrBroken = errors.New("broken off")

// Broken is why the work was broken off, nil: it was not.
func (w *Work) Broken() error { return w.why }

// OnBreak has f called when the work is broken off, at once if it is already.
func (w *Work) OnBreak(f func()) {
	if w.why != nil {
		f()
		return
	}
	w.onBreak = append(w.onBreak, f)
}

func (w *Work) breakOff(why error) {
	if w.why != nil {
		return
	}
	w.why = why
	for _, f := range w.onBreak {
		f()
	}
	w.onBreak = nil
}

// step is a part of a task's work. It calls next once, with nil if the work is to go on.
type step func(next func(error))

// inOrder runs steps one after another, until one fails or the work is broken off.
func inOrder(w *Work, done func(error), steps ...step) {
	switch {
	case len(steps) == 0:
		done(nil)
	case w.Broken() != nil:
		done(w.Broken())
	default:
		steps[0](func(err error) {
			if err != nil {
				done(err)
				return
			}
			inOrder(w, done, steps[1:]...)
		})
	}
}

// task is the long piece of work under way.
type task struct {
	kind      ha.TaskKind
	since     time.Time
	successor string // of a handover
	// replaces: it replaces the data, or has interrupted a task that does.
	replaces bool
	work     *Work
	// finished: its work has ended, and that of what it interrupted. next is what waits
	// for that.
	finished bool
	next     func()
}

const (
	handoverLimit = 10 * time.Second
	// A task that failed is tried again after a time that doubles from backoffMin to
	// backoffMax.
	backoffMin = time.Second
	backoffMax = 10 * time.Second
	// backoffBootstrap is that of a bootstrap, whose failures cost more.
	backoffBootstrap = 2 * time.Minute
	// killAgainAfter spaces out kills that fail at once.
	killAgainAfter = 200 * time.Millisecond
	// lingering is how long killed processes, and an interrupted task, may wait for a
	// hung disk before they are left to the kernel.
	lingering = 2 * time.Second
	// startLimit bounds a start, whom to follow, and the end of what was shut down. A
	// PostgreSQL that recovers longer has been started by then.
	startLimit = time.Minute
	// lookWithin bounds the look at the data after a kill or an interruption.
	lookWithin = time.Second
)

// StopLimit bounds an orderly stop of the agent: Patroni's users expect SIGTERM to be over
// within 15 s.
const StopLimit = 14 * time.Second

// TaskKind is that of the task under way.
func (m *Member) TaskKind() ha.TaskKind {
	if m.task == nil {
		return ha.TaskNone
	}
	return m.task.kind
}

// TaskSince is when the task under way has begun.
func (m *Member) TaskSince() time.Time {
	if m.task == nil {
		return time.Time{}
	}
	return m.task.since
}

// Successor is that of the handover under way, empty: there is none.
func (m *Member) Successor() string {
	if m.TaskKind() != ha.TaskHandover {
		return ""
	}
	return m.task.successor
}

// newTask makes a task the one under way, and returns the one before, if that has not
// finished.
func (m *Member) newTask(kind ha.TaskKind) (t, before *task) {
	before = m.task
	t = &task{kind: kind, since: m.Clock.Wall(), work: &Work{}}
	t.replaces = kind == ha.TaskClone || kind == ha.TaskRejoin || kind == ha.TaskReinit || before != nil && before.replaces
	m.edge, m.task = m.now(), t
	if before != nil && before.finished {
		before = nil
	}
	return t, before
}

// startTask begins work, after the task that it interrupts has ended. When it ends, its
// outcome is noted, and done, if set, is called.
func (m *Member) startTask(kind ha.TaskKind, work func(w *Work, end func(error)), done func(error)) {
	t, before := m.newTask(kind)
	begin := func() {
		work(t.work, func(err error) {
			// What a task has left is looked at for as long as that takes, unless it is
			// interrupted.
			look := &Work{}
			t.work.OnBreak(func() { m.Later.After(lookWithin, func() { look.breakOff(ErrBroken) }) })
			m.Postgres.Look(look, 0, func(found Found, seen bool) {
				m.finish(t, found, seen, func() { m.taskOutcome(kind, err, done) })
			})
		})
	}
	if before != nil {
		before.next = begin
		return
	}
	begin()
}

// startStop interrupts whatever is under way and runs stop, which stops PostgreSQL, at
// once: what was interrupted may wait for a disk that hangs. It gets a short time to end
// before last, if set, is run, and the outcome is told. If it does not, the outcome is told
// without it, and the task lives on as one that was interrupted (ha.TaskInterrupted).
func (m *Member) startStop(stop func(w *Work, end func(error)), last func(done func(error)), done func(error)) {
	if m.task != nil {
		m.task.work.breakOff(ErrBroken)
	}
	t, before := m.newTask(ha.TaskDemote)
	lastly := func(err error, then func(error)) {
		if err != nil || last == nil {
			then(err)
			return
		}
		last(then)
	}
	stop(t.work, func(err error) {
		if before == nil || before.finished {
			lastly(err, func(err error) {
				m.finishStop(t, func() { m.taskOutcome(ha.TaskDemote, err, done) })
			})
			return
		}
		m.awaitInterrupted(t, before, err, lastly, done)
	})
}

// awaitInterrupted tells the outcome of a task that has stopped PostgreSQL when what it
// interrupted has ended, or does not end.
func (m *Member) awaitInterrupted(t, before *task, err error, lastly func(error, func(error)), done func(error)) {
	ended, told := false, false
	before.next = func() {
		ended = true
		if told {
			return
		}
		told = true
		lastly(err, func(err error) {
			m.finishStop(t, func() { m.taskOutcome(ha.TaskDemote, err, done) })
		})
	}
	m.Later.After(lingering, func() {
		if told {
			return
		}
		told = true
		lastly(err, func(err error) {
			over := func() {
				m.finishStop(t, func() { m.Log.Info().Msg("what was interrupted has ended") })
			}
			m.edge = m.now()
			if m.task == t {
				m.Log.Warn().Msg("what was interrupted does not end (a disk that hangs?); nothing else is begun until it has")
				t.kind, t.since = ha.TaskInterrupted, m.Clock.Wall()
				m.taskOutcome(ha.TaskDemote, err, done)
				m.Watches.KickPostgres()
			}
			if ended {
				over()
				return
			}
			before.next = over
		})
	})
}

// finishStop ends a task that has stopped PostgreSQL with a short look at what is left.
func (m *Member) finishStop(t *task, outcome func()) {
	m.Postgres.Look(nil, lookWithin, func(found Found, seen bool) { m.finish(t, found, seen, outcome) })
}

// finish is the end of a task and of what it interrupted. What a look that did not end
// would have shown is believed to be as before.
func (m *Member) finish(t *task, found Found, seen bool, outcome func()) {
	m.edge = m.now()
	t.finished = true
	if t.next != nil {
		defer t.next()
	}
	if m.task != t {
		return // interrupted: its successor tells the outcome
	}
	m.task = nil
	if seen {
		m.Data, m.Loss = found.Data, found.Loss
		// What it was before the task says nothing of what it is now.
		m.PG.wasPrimary = found.Data.WasPrimary
	}
	outcome()
	m.Watches.KickPostgres()
}

// taskOutcome takes in how a task has ended.
func (m *Member) taskOutcome(kind ha.TaskKind, err error, done func(error)) {
	m.PG.Running = m.Postgres.Running()
	if !m.PG.Running {
		m.PG.Observed.Accepting = false
	}
	m.noteAttempt(kind, err)
	if done != nil {
		done(err)
	}
}

// InterruptTask ends a task that can be done again from its beginning.
func (m *Member) InterruptTask() {
	if m.repeatable() {
		m.task.work.breakOff(ErrBroken)
	}
}

// repeatable reports whether the task under way can be broken off and done again from its
// beginning.
func (m *Member) repeatable() bool {
	switch m.TaskKind() {
	case ha.TaskBootstrap, ha.TaskClone, ha.TaskStart, ha.TaskRejoin, ha.TaskReinit:
		return true
	}
	return false
}

// noteAttempt remembers failures, so that a task that fails is not tried again
// at once and for ever.
func (m *Member) noteAttempt(kind ha.TaskKind, err error) {
	if err == nil || errors.Is(err, ErrBroken) {
		if m.Attempt.Kind == kind {
			m.Attempt = ha.Attempt{}
		}
		return
	}
	failures := 1
	if m.Attempt.Kind == kind {
		failures = m.Attempt.Failures + 1
	}
	most := backoffMax
	if kind == ha.TaskBootstrap {
		most = backoffBootstrap
	}
	backoff := min(backoffMin<<min(failures-1, 8), most)
	m.Attempt = ha.Attempt{Kind: kind, Failures: failures, NotUntil: m.now().Add(backoff)}
	m.Log.Error().Err(err).Int("failures", failures).Dur("next_try", backoff).Msgf("%s failed", kind)
}

// waiter is somebody who waits until something holds.
type waiter struct {
	holds func() bool
	done  func(held bool)
	over  bool
}

// await calls done as soon as something holds, or after limit, or when the work is broken
// off.
func (m *Member) await(w *Work, limit time.Duration, holds func() bool, done func(held bool)) {
	if holds() {
		done(true)
		return
	}
	one := &waiter{holds: holds}
	end := func(held bool) {
		if !one.over {
			one.over = true
			done(held)
		}
	}
	one.done = end
	m.waiters = append(m.waiters, one)
	m.Later.After(limit, func() { end(false) })
	if w != nil {
		w.OnBreak(func() { end(false) })
	}
}

// tellWaiters tells those whose wait is over.
func (m *Member) tellWaiters() {
	if len(m.waiters) == 0 {
		return
	}
	all := m.waiters
	m.waiters = nil
	for _, one := range all {
		switch {
		case one.over:
		case one.holds():
			one.done(true)
		default:
			m.waiters = append(m.waiters, one)
		}
	}
}

// upstreamOf is how to reach a member's PostgreSQL.
func (m *Member) upstreamOf(name string) (pg.Upstream, error) {
	other, found := m.Snapshot.Member(name)
	if !found || !other.OK() {
		return pg.Upstream{}, fmt.Errorf("member %s: its key in Consul is missing or not understood", name)
	}
	host, port, err := other.Value.Address()
	if err != nil {
		return pg.Upstream{}, err
	}
	return pg.Upstream{Name: name, Host: host, Port: port}, nil
}

// stopWithin is how long an orderly stop may take before PostgreSQL is killed: as long
// as a leader may serve nobody.
func (m *Member) stopWithin() time.Duration {
	limit := ha.UnservedLimit(m.Dynamic)
	if !m.Tenure.Held(m.now()) {
		limit = max(limit, StopLimit) // nobody waits for it
	}
	return limit
}

// beforeStopLimit is how long before_stop may take before a stop that begins now:
// of what is left until PostgreSQL would be killed, half is PostgreSQL's own.
func (m *Member) beforeStopLimit() time.Duration {
	limit := m.ScriptLimit
	if now := m.now(); m.Tenure.Held(now) && !m.PauseInForce() {
		limit = min(limit, m.KillAt().Sub(now)/2)
	}
	if m.Stopping {
		limit = min(limit, StopLimit/2)
	}
	return limit
}
