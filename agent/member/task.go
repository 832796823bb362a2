package member

import (
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
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
type step func(w *Work, next func(error))

// inOrder is steps one after another, until one fails or the work is broken off.
func inOrder(steps ...step) step {
	return func(w *Work, next func(error)) {
		switch {
		case len(steps) == 0:
			next(nil)
		case w.Broken() != nil:
			next(w.Broken())
		default:
			steps[0](w, func(err error) {
				if err != nil {
					next(err)
					return
				}
				inOrder(steps[1:]...)(w, next)
			})
		}
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

// worker carries out the long tasks, and remembers those that failed.
type worker struct {
	*Shard
	local    *Local
	postgres Postgres
	watches  Watches

	task    *task // nil: none is under way
	Attempt ha.Attempt
}

// TaskKind is that of the task under way.
func (k *worker) TaskKind() ha.TaskKind {
	if k.task == nil {
		return ha.TaskNone
	}
	return k.task.kind
}

// TaskSince is when the task under way has begun.
func (k *worker) TaskSince() time.Time {
	if k.task == nil {
		return time.Time{}
	}
	return k.task.since
}

// Successor is that of the handover under way, empty: there is none.
func (k *worker) Successor() string {
	if k.TaskKind() != ha.TaskHandover {
		return ""
	}
	return k.task.successor
}

// newTask makes a task the one under way, and returns the one before, if that has not
// finished.
func (k *worker) newTask(kind ha.TaskKind) (t, before *task) {
	before = k.task
	t = &task{kind: kind, since: k.Wall(), work: &Work{}}
	t.replaces = kind == ha.TaskClone || kind == ha.TaskRejoin || kind == ha.TaskReinit || before != nil && before.replaces
	k.local.edge, k.local.onPurpose, k.task = k.Now(), false, t
	if before != nil && before.finished {
		before = nil
	}
	return t, before
}

// startTask begins work, after the task that it interrupts has ended. When it ends, its
// outcome is noted, and done, if set, is called.
func (k *worker) startTask(kind ha.TaskKind, work step, done func(error)) {
	t, before := k.newTask(kind)
	begin := func() {
		work(t.work, func(err error) {
			// What a task has left is looked at for as long as that takes, unless it is
			// interrupted.
			look := &Work{}
			t.work.OnBreak(func() { k.After(lookWithin, func() { look.breakOff(ErrBroken) }) })
			k.postgres.Look(look, 0, func(found Found, seen bool) {
				k.finish(t, found, seen, func() { k.taskOutcome(kind, err, done) })
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
func (k *worker) startStop(stop step, last func(done func(error)), done func(error)) {
	if k.task != nil {
		k.task.work.breakOff(ErrBroken)
	}
	t, before := k.newTask(ha.TaskDemote)
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
				k.finishStop(t, func() { k.taskOutcome(ha.TaskDemote, err, done) })
			})
			return
		}
		k.awaitInterrupted(t, before, err, lastly, done)
	})
}

// awaitInterrupted tells the outcome of a task that has stopped PostgreSQL when what it
// interrupted has ended, or does not end.
func (k *worker) awaitInterrupted(t, before *task, err error, lastly func(error, func(error)), done func(error)) {
	ended, told := false, false
	before.next = func() {
		ended = true
		if told {
			return
		}
		told = true
		lastly(err, func(err error) {
			k.finishStop(t, func() { k.taskOutcome(ha.TaskDemote, err, done) })
		})
	}
	k.After(lingering, func() {
		if told {
			return
		}
		told = true
		lastly(err, func(err error) {
			over := func() {
				k.finishStop(t, func() { k.Log.Info().Msg("what was interrupted has ended") })
			}
			k.local.edge = k.Now()
			if k.task == t {
				k.Log.Warn().Msg("what was interrupted does not end (a disk that hangs?); nothing else is begun until it has")
				t.kind, t.since = ha.TaskInterrupted, k.Wall()
				k.taskOutcome(ha.TaskDemote, err, done)
				k.watches.KickPostgres()
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
func (k *worker) finishStop(t *task, outcome func()) {
	k.postgres.Look(nil, lookWithin, func(found Found, seen bool) { k.finish(t, found, seen, outcome) })
}

// finish is the end of a task and of what it interrupted. What a look that did not end
// would have shown is believed to be as before.
func (k *worker) finish(t *task, found Found, seen bool, outcome func()) {
	k.local.edge = k.Now()
	t.finished = true
	if t.next != nil {
		defer t.next()
	}
	if k.task != t {
		return // interrupted: its successor tells the outcome
	}
	k.task = nil
	if seen {
		k.local.found(found)
	}
	outcome()
	k.watches.KickPostgres()
}

// taskOutcome takes in how a task has ended.
func (k *worker) taskOutcome(kind ha.TaskKind, err error, done func(error)) {
	k.local.PG.Running = k.postgres.Running()
	if !k.local.PG.Running {
		k.local.PG.Observed.Accepting = false
	}
	k.noteAttempt(kind, err)
	if done != nil {
		done(err)
	}
}

// replacing reports whether the data are being replaced.
func (k *worker) replacing() bool { return k.task != nil && k.task.replaces }

// InterruptTask ends a task that can be done again from its beginning.
func (k *worker) InterruptTask() {
	if k.repeatable() {
		k.task.work.breakOff(ErrBroken)
	}
}

// repeatable reports whether the task under way can be broken off and done again from its
// beginning.
func (k *worker) repeatable() bool {
	switch k.TaskKind() {
	case ha.TaskBootstrap, ha.TaskClone, ha.TaskStart, ha.TaskRejoin, ha.TaskReinit:
		return true
	}
	return false
}

// noteAttempt remembers failures, so that a task that fails is not tried again
// at once and for ever.
func (k *worker) noteAttempt(kind ha.TaskKind, err error) {
	data := kind == ha.TaskBootstrap || kind == ha.TaskClone || kind == ha.TaskReinit // one makes up for another
	if err == nil && data {
		delete(k.logged, "data")
	}
	if err == nil || errors.Is(err, ErrBroken) {
		if k.Attempt.Kind == kind {
			k.Attempt = ha.Attempt{}
		}
		return
	}
	failures := 1
	if k.Attempt.Kind == kind {
		failures = k.Attempt.Failures + 1
	}
	most := backoffMax
	if kind == ha.TaskBootstrap {
		most = backoffBootstrap
	}
	backoff := min(backoffMin<<min(failures-1, 8), most)
	k.Attempt = ha.Attempt{Kind: kind, Failures: failures, NotUntil: k.Now().Add(backoff)}
	k.Log.Error().Err(err).Int("failures", failures).Dur("next_try", backoff).Msgf("%s failed", kind)
	if data {
		k.logged["data"] = fmt.Sprintf("%s failed: %v", kind, err)
	}
}
