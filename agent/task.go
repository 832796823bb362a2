package agent

import (
	"context"
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// This file is what all long tasks have in common: one at a time, how they begin and
// end, and how one that must stop PostgreSQL comes before whatever is under way.

// task is the long piece of work under way.
type task struct {
	kind      ha.TaskKind
	since     time.Time
	successor string // of a handover
	// replaces: it replaces the data, or has interrupted a task that does.
	replaces bool
	cancel   context.CancelFunc
	// finished is closed when its work has ended, and that of what it interrupted.
	finished chan struct{}
}

const (
	// lingering is how long killed processes, and an interrupted task, may wait for a
	// hung disk before they are left to the kernel.
	lingering = 2 * time.Second
	// startLimit bounds a start, whom to follow, and the end of what was shut down. A
	// PostgreSQL that recovers longer has been started by then.
	startLimit = time.Minute
	// lookWithin bounds the look at the data after a kill or an interruption.
	lookWithin = time.Second
)

// within bounds work.
func within(limit time.Duration, work func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return work(ctx)
	}
}

// startWithin starts PostgreSQL within the limit of a start.
func (a *Agent) startWithin(ctx context.Context, as postgres.StartAs) error {
	return within(startLimit, func(ctx context.Context) error {
		if err := a.awakenGuard(ctx); err != nil {
			return err
		}
		return a.pg.Start(ctx, as)
	})(ctx)
}

// awakenGuard makes sure that there is a guard to start PostgreSQL.
func (a *Agent) awakenGuard(ctx context.Context) error {
	if a.pg.Running() {
		return nil
	}
	return a.guard.awake(ctx)
}

// stopWithin is how long an orderly stop may take before PostgreSQL is killed: as long
// as a leader may serve nobody.
func (a *Agent) stopWithin() time.Duration {
	limit := ha.UnservedLimit(a.m.Dynamic)
	if !a.m.Tenure.Held(a.clock()) {
		limit = max(limit, stopLimit) // nobody waits for it
	}
	return limit
}

// newTask makes a task the one under way, and returns the end of the one before.
func (a *Agent) newTask(kind ha.TaskKind) (ctx context.Context, t task, before <-chan struct{}) {
	ctx, cancel := context.WithCancel(a.ctx)
	replaces := kind == ha.TaskClone || kind == ha.TaskRejoin || kind == ha.TaskReinit
	t = task{
		kind: kind, since: time.Now(), cancel: cancel, finished: make(chan struct{}),
		replaces: replaces || a.m.task.replaces,
	}
	before = a.m.task.finished
	a.taskEdge.Add(1)
	a.m.task = t
	return ctx, t, before
}

// startTask runs work in the background, after the task that it interrupts has ended.
// When it ends, its outcome is noted and done, if set, is called, both on the loop's
// goroutine.
func (a *Agent) startTask(kind ha.TaskKind, work func(context.Context) error, done func(error)) {
	ctx, t, before := a.newTask(kind)
	a.goDo(func(context.Context) {
		defer t.cancel()
		if before != nil {
			<-before
		}
		err := work(ctx)
		look, cancel := context.WithCancel(a.ctx)
		defer cancel()
		// What a task has left is looked at for as long as that takes, unless it is
		// interrupted.
		defer context.AfterFunc(ctx, func() { pause(look, lookWithin); cancel() })()
		a.endTask(look, t, func() { a.taskOutcome(kind, err, done) })
	})
}

// startStop interrupts whatever is under way and runs stop, which stops PostgreSQL, at
// once: what was interrupted may wait for a disk that hangs. It gets a short time to end
// before last, if set, is run, and the outcome is told. If it does not, the outcome is told
// without it, and the task lives on as one that was interrupted (ha.TaskInterrupted).
func (a *Agent) startStop(stop, last func(context.Context) error, done func(error)) {
	if a.m.task.cancel != nil {
		a.m.task.cancel()
	}
	ctx, t, before := a.newTask(ha.TaskDemote)
	a.goDo(func(context.Context) {
		defer t.cancel()
		err := stop(ctx)
		ended := endsWithin(before, lingering)
		if err == nil && last != nil {
			err = last(ctx)
		}
		outcome := func() { a.taskOutcome(ha.TaskDemote, err, done) }
		if !ended {
			a.taskEdge.Add(1)
			told := outcome
			a.post(func() {
				if a.m.task.finished != t.finished {
					return
				}
				a.log.Warn().Msg("what was interrupted does not end (a disk that hangs?); nothing else is begun until it has")
				a.m.task.kind, a.m.task.since = ha.TaskInterrupted, time.Now()
				told()
				kick(a.kickPostgres)
			})
			<-before
			outcome = func() { a.log.Info().Msg("what was interrupted has ended") }
		}
		limit, cancel := context.WithTimeout(a.ctx, lookWithin)
		defer cancel()
		a.endTask(limit, t, outcome)
	})
}

// endsWithin waits for the end of a task, nil when there was none.
func endsWithin(before <-chan struct{}, limit time.Duration) bool {
	if before == nil {
		return true
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-before:
		return true
	case <-timer.C:
		return false
	}
}

// endTask ends a task with a look at what it has left. What a look that does not end
// would have shown is believed to be as before.
func (a *Agent) endTask(ctx context.Context, t task, outcome func()) {
	found, seen := a.lookAtData(ctx)
	a.taskEdge.Add(1)
	close(t.finished)
	a.post(func() {
		if a.m.task.finished != t.finished {
			return // interrupted: its successor tells the outcome
		}
		a.m.task = task{}
		if seen {
			a.m.data, a.m.loss = found.data, found.loss
			// What it was before the task says nothing of what it is now.
			a.m.pg.wasPrimary = found.data.wasPrimary
		}
		outcome()
		kick(a.kickPostgres)
	})
}

// taskOutcome takes in how a task has ended.
func (a *Agent) taskOutcome(kind ha.TaskKind, err error, done func(error)) {
	a.m.pg.running = a.pg.Running()
	if !a.m.pg.running {
		a.m.pg.observed.Accepting = false
	}
	a.noteAttempt(kind, err)
	if done != nil {
		done(err)
	}
}

// interruptTask ends a task that can be done again from its beginning.
func (a *Agent) interruptTask() {
	if a.m.task.repeatable() {
		a.m.task.cancel()
	}
}

// repeatable tells whether a task can be broken off and done again from its
// beginning.
func (t task) repeatable() bool {
	switch t.kind {
	case ha.TaskBootstrap, ha.TaskClone, ha.TaskStart, ha.TaskRejoin, ha.TaskReinit:
		return true
	}
	return false
}

// noteAttempt remembers failures, so that a task that fails is not tried again
// at once and for ever.
func (a *Agent) noteAttempt(kind ha.TaskKind, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		if a.m.attempt.Kind == kind {
			a.m.attempt = ha.Attempt{}
		}
		return
	}
	failures := 1
	if a.m.attempt.Kind == kind {
		failures = a.m.attempt.Failures + 1
	}
	most := backoffMax
	if kind == ha.TaskBootstrap {
		most = backoffBootstrap
	}
	backoff := min(backoffMin<<min(failures-1, 8), most)
	a.m.attempt = ha.Attempt{Kind: kind, Failures: failures, NotUntil: a.clock().Add(backoff)}
	a.log.Error().Err(err).Int("failures", failures).Dur("next_try", backoff).Msgf("%s failed", kind)
}

// found is what a look at the data directory, and beside it, has found.
type found struct {
	data dataState
	loss *postgres.Loss
	// stray: PostgreSQL runs in it that nobody has taken charge of.
	stray bool
}

// lookAtData looks at the data directory. It tells false when ctx has ended first. A disk
// that hangs keeps one look, and no more.
func (a *Agent) lookAtData(ctx context.Context) (found, bool) {
	select {
	case a.looking <- struct{}{}:
	case <-ctx.Done():
		return found{}, false
	}
	looked := make(chan found, 1)
	a.goDo(func(context.Context) {
		defer func() { <-a.looking }()
		data, err := a.pg.DataDir(ctx)
		if ctx.Err() != nil {
			return
		}
		looked <- found{data: dataStateOf(data, err), loss: a.pg.Loss(), stray: a.pg.Stray()}
	})
	select {
	case f := <-looked:
		return f, true
	case <-ctx.Done():
		return found{}, false
	}
}
