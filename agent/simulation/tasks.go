package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// task is the long piece of work under way (agent/task.go).
type task struct {
	a         *agent
	kind      ha.TaskKind
	replaces  bool                   // the data, or has interrupted a task that does
	before    *task                  // the one that this one stops; nil: none
	last      func(then func(error)) // of one that stops PostgreSQL; nil: nothing
	cancelled bool
	worked    bool   // its work is done
	finished  bool   // and that of what it interrupted
	next      func() // goes on when it is finished
	done      func(error)
}

const (
	handoverLimit = 10 * time.Second
	backoffMin    = time.Second
	backoffMax    = 10 * time.Second
	lingering     = 2 * time.Second
)

var errCancelled = errors.New("interrupted")

func (a *agent) newTask(kind ha.TaskKind, done func(error)) (t, before *task) {
	before = a.task
	t = &task{a: a, kind: kind, done: done}
	t.replaces = kind == ha.TaskClone || kind == ha.TaskRejoin || kind == ha.TaskReinit || before != nil && before.replaces
	a.taskEdge++
	a.task = t
	if before != nil && before.finished {
		before = nil
	}
	return t, before
}

// startTask runs work in the background, after the task that it interrupts has come
// to its end. Work calls t.end once.
func (a *agent) startTask(kind ha.TaskKind, work func(t *task), done func(error)) {
	t, before := a.newTask(kind, done)
	if before != nil {
		before.next = func() { work(t) }
		return
	}
	a.later(a.dispatch(), func() { work(t) })
}

// startStop interrupts whatever is under way and runs stop, which stops PostgreSQL, at
// once. With disarm the guard is disarmed last.
func (a *agent) startStop(stop func(t *task), disarm bool, done func(error)) {
	a.task.cancel()
	t, before := a.newTask(ha.TaskDemote, done)
	t.before = before
	if disarm {
		t.last = a.Guardian.Disarm
	}
	if before != nil && a.host.w.mutant.StopWaits {
		before.next = func() { stop(t) }
		return
	}
	a.later(a.dispatch(), func() { stop(t) })
}

// end is the end of a task's work. One that stops PostgreSQL gives what it interrupted a
// short time to end.
func (t *task) end(err error) {
	if t.worked {
		return
	}
	t.worked = true
	a, b := t.a, t.before
	if b == nil || b.finished {
		t.lastly(err, func(err error) { t.finish(func() { t.outcome(err) }) })
		return
	}
	told := false
	tell := func(then func(error)) {
		if !told {
			told = true
			t.lastly(err, then)
		}
	}
	ended := false
	b.next = func() {
		if ended = true; told {
			t.finish(func() {})
			return
		}
		tell(func(err error) { t.finish(func() { t.outcome(err) }) })
	}
	a.later(lingering, func() {
		if ended || a.task != t {
			return
		}
		tell(func(err error) {
			a.taskEdge++
			if a.task == t {
				t.kind = ha.TaskInterrupted
				t.outcome(err)
				a.kickPostgres()
				a.step()
			}
			if ended {
				t.finish(func() {})
			}
		})
	})
}

// lastly does what comes last when PostgreSQL was stopped.
func (t *task) lastly(err error, then func(error)) {
	if err != nil || t.last == nil {
		then(err)
		return
	}
	t.last(then)
}

// finish is the end of a task and of what it interrupted.
func (t *task) finish(outcome func()) {
	t.finished = true
	a := t.a
	a.taskEdge++
	if t.next != nil {
		a.later(a.dispatch(), t.next)
	}
	a.later(a.dispatch(), func() {
		if a.task != t {
			return // interrupted: its successor tells the outcome
		}
		a.task = nil
		if a.host.pg.diskHangs == 0 {
			a.data, a.loss = a.host.pg.data(), a.host.pg.loss
			a.pg.wasPrimary = a.host.pg.primary
		}
		outcome()
		a.kickPostgres()
		a.step()
	})
}

// outcome takes in how a task has ended.
func (t *task) outcome(err error) {
	a := t.a
	a.pg.running = a.host.pg.running
	if !a.pg.running {
		a.pg.observed.accepting = false
	}
	kind := t.kind
	if kind == ha.TaskInterrupted {
		kind = ha.TaskDemote
	}
	a.noteAttempt(kind, err)
	if t.done != nil {
		t.done(err)
	}
}

// cancel interrupts a task: its work ends soon, whatever it does, unless the disk hangs.
func (t *task) cancel() {
	if t == nil || t.cancelled || t.worked {
		return
	}
	t.cancelled = true
	t.a.later(t.a.host.w.between(0, 20*time.Millisecond), func() {
		t.a.host.pg.onDisk(func() { t.a.do(func() { t.end(errCancelled) }) })
	})
}

// then runs the next part of a task's work in the agent's process, unless the task was
// interrupted.
func (t *task) then(do func()) {
	t.a.do(func() {
		if !t.cancelled && !t.worked {
			do()
		}
	})
}

// ends is a callback that ends the task.
func (t *task) ends(err error) { t.a.do(func() { t.end(err) }) }

func (a *agent) interruptTask() {
	if a.task == nil {
		return
	}
	switch a.task.kind {
	case ha.TaskBootstrap, ha.TaskClone, ha.TaskStart, ha.TaskRejoin, ha.TaskReinit:
		a.task.cancel()
	}
}

func (a *agent) noteAttempt(kind ha.TaskKind, err error) {
	if err == nil || errors.Is(err, errCancelled) {
		if a.attempt.Kind == kind {
			a.attempt = ha.Attempt{}
		}
		return
	}
	failures := 1
	if a.attempt.Kind == kind {
		failures = a.attempt.Failures + 1
	}
	backoff := min(backoffMin<<min(failures-1, 8), backoffMax)
	a.attempt = ha.Attempt{Kind: kind, Failures: failures, NotUntil: a.host.clock().Add(backoff)}
	a.host.w.say("%s: %s failed: %v", a.host.name, kind, err)
}

// begin starts the task that an action asks for.
func (a *agent) begin(action ha.Action) {
	switch act := action.(type) {
	case ha.Fence:
		a.fenceNow()
		return
	case ha.Demote:
		a.demote()
		return
	case ha.GiveUp:
		a.giveUp(act.Successor)
		return
	case ha.EndHung:
		a.endHung()
		return
	}
	if a.task != nil {
		return
	}
	switch act := action.(type) {
	case ha.StartPrimary:
		a.startPostgres(true, "", act.Sync)
	case ha.StartReplica:
		a.startPostgres(false, act.Upstream, nil)
	case ha.Rejoin:
		a.rejoin(act)
	case ha.Clone:
		a.clone(act)
	case ha.Follow:
		a.follow(act.Upstream)
	case ha.Promote:
		a.promote(act)
	case ha.Handover:
		a.handover(act.Successor)
	case ha.SetSync:
		a.setSync(act)
	default:
		panic("simulation: an action that is not modelled: " + action.String())
	}
}

// fenceNow kills every process of PostgreSQL. The lease is dropped here and now.
func (a *agent) fenceNow() {
	if a.fencing {
		return
	}
	a.fencing = true
	a.Tenure.Drop()
	a.startStop(func(t *task) { t.kill() }, true, func(err error) {
		a.fencing = false
		if err == nil || !a.host.pg.running {
			a.stoppedOnPurpose()
		}
	})
}

// kill ends PostgreSQL for a task, so that no start which was asked for before comes up
// any more.
func (t *task) kill() {
	pg, g, dead := &t.a.host.pg, &t.a.host.guard, func() { t.end(nil) }
	pg.kill(func() {
		t.then(func() {
			t.a.answered(func(done func(error)) {
				g.overtake(func() { t.then(func() { done(nil) }) })
			}, func(err error) {
				if err != nil {
					g.die()
				} else if !pg.running {
					dead()
					return
				}
				pg.kill(func() { t.then(dead) })
			})
		})
	})
}

// awaken ends a guard that does not answer, before PostgreSQL is started.
func (t *task) awaken(then func()) {
	g := &t.a.host.guard
	t.a.answered(func(done func(error)) {
		g.command(func() {}, func() { t.a.do(func() { done(nil) }) })
	}, func(err error) {
		if err != nil && !t.a.host.pg.running {
			g.die()
		}
		t.then(then)
	})
}

// launch has the guard start PostgreSQL. One that stands still is asked whether it is
// there first, so that it does not start what was given up.
func (t *task) launch(primary bool, start func()) {
	if !primary {
		t.awaken(func() { t.ask(primary, start) })
		return
	}
	t.ask(primary, start)
}

func (t *task) ask(primary bool, start func()) {
	g, asleep, over := &t.a.host.guard, t.a.host.guard.stopped > 0, false
	g.start(primary, func() {
		if !over || !asleep {
			over = true
			start()
		}
	}, func(err error) {
		over = true
		t.ends(err)
	})
	t.a.later(startWithin, func() {
		if !over {
			over = true
			t.end(errNoAnswer)
		}
	})
}

// demote stops PostgreSQL in an orderly way, then drops the lease.
func (a *agent) demote() {
	if a.task != nil && a.task.kind == ha.TaskDemote {
		return
	}
	limit := ha.UnservedLimit(a.Dynamic)
	a.startStop(func(t *task) {
		stopped := false
		then := func() {
			if !stopped {
				stopped = true
				t.then(t.kill)
			}
		}
		a.host.pg.stop(func(error) { then() })
		a.later(limit, then)
	}, true, func(err error) {
		if err == nil {
			a.Tenure.Drop()
			a.stoppedOnPurpose()
		}
	})
}

// giveUp ends a leadership that PostgreSQL cannot fill.
func (a *agent) giveUp(successor string) {
	if a.task != nil && a.task.kind == ha.TaskDemote {
		return
	}
	a.startStop(func(t *task) { t.kill() }, true, func(err error) {
		if err == nil {
			a.Complete = false
			a.Tenure.GiveTo(successor)
			a.stoppedOnPurpose()
		}
	})
}

// endHung kills a postmaster that hangs. The lease is kept.
func (a *agent) endHung() {
	if a.task != nil && a.task.kind == ha.TaskDemote {
		return
	}
	a.startStop(func(t *task) { t.kill() }, false, func(err error) {
		if err == nil {
			a.stoppedOnPurpose()
		}
	})
}

// startPostgres starts PostgreSQL, a primary only under an armed guard.
func (a *agent) startPostgres(primary bool, upstream string, sync *ha.SetSync) {
	memo := a.Memo()
	var setting *waits
	if sync != nil {
		setting = &waits{names: sync.Standbys, any: sync.Any}
	}
	a.pg.syncSet = false
	a.startTask(ha.TaskStart, func(t *task) {
		start := func() { a.host.pg.start(primary, upstream, setting, t.ends) }
		if !primary {
			a.host.pg.onDisk(func() { t.then(func() { t.launch(false, start) }) })
			return
		}
		onDisk := func() {
			a.host.pg.onDisk(func() {
				if a.host.w.mutant.LateStart {
					a.do(func() { t.launch(true, start) })
					return
				}
				t.then(func() { t.launch(true, start) })
			})
		}
		t.awaken(func() {
			a.Guardian.ArmNow(memo, func(err error) {
				if err != nil {
					t.ends(err)
					return
				}
				t.then(onDisk)
			})
		})
	}, func(err error) {
		if err == nil {
			a.follows(upstream)
		}
	})
}

// rejoin makes this member a replica of upstream.
func (a *agent) rejoin(r ha.Rejoin) {
	a.pg.syncSet = false
	up := a.host.w.hostNamed(r.Upstream)
	a.startTask(ha.TaskRejoin, func(t *task) {
		a.host.pg.stop(func(error) {
			t.then(func() {
				a.host.pg.rejoin(up, func(err error) {
					if err != nil {
						t.ends(err)
						return
					}
					start := func() { a.host.pg.start(false, unless(r.NoStream, r.Upstream), nil, t.ends) }
					a.host.pg.onDisk(func() { t.then(func() { t.launch(false, start) }) })
				})
			})
		})
	}, func(err error) {
		if err == nil {
			a.follows(unless(r.NoStream, r.Upstream))
		}
	})
}

// unless is whom a replica follows: nobody if it does not stream.
func unless(noStream bool, upstream string) string {
	if noStream {
		return ""
	}
	return upstream
}

// follow points the running replica at another upstream.
func (a *agent) follow(upstream string) {
	a.startTask(ha.TaskStart, func(t *task) {
		a.host.pg.follow(upstream, t.ends)
	}, func(err error) {
		if err == nil {
			a.follows(upstream)
		}
	})
}

// promote makes the replica the primary, under an armed guard.
func (a *agent) promote(p ha.Promote) {
	m := &a.host.w.mutant
	memo, above := a.Memo(), a.Timeline()-1
	if m.TimelineUntold {
		above = 0
	}
	var seen observed
	forbidden, session, before := false, a.Session, a.Snapshot.Sync
	replaced, uncertain := uint64(0), false
	// note keeps what became of the key, also when the task is interrupted.
	note := func(promoted bool) {
		a.do(func() {
			if replaced != 0 {
				a.Wrote(replaced)
				a.SyncUncertain = false
				a.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *p.Sync, ModifyIndex: replaced}
			}
			a.SyncUncertain = a.SyncUncertain || uncertain
			a.SyncBefore = nil
			if !promoted && (replaced != 0 || uncertain) && !m.PromiseKept {
				a.SyncBefore = &before
			}
		})
	}
	a.startTask(ha.TaskPromote, func(t *task) {
		last := func(then func(error)) {
			if p.Sync == nil || m.PromoteUnbound {
				then(nil)
				return
			}
			ops := append([]op{{verb: checkSession, key: keyLeader, session: session}}, replace(keySync, p.SyncIndex, *p.Sync, m.SyncIndexKept)...)
			a.transact(a.Dynamic.RetryTimeout, ops, func(indexes map[string]uint64, err error) {
				if err == nil {
					replaced = indexes[keySync]
				}
				uncertain = errors.Is(err, cluster.ErrUncertain)
				if t.cancelled || t.worked {
					note(false)
					return
				}
				then(err)
			})
		}
		ended := func(err error) {
			seen = a.host.pg.observe()
			if err == nil || replaced == 0 {
				note(err == nil)
				t.ends(err)
				return
			}
			a.host.pg.kill(func() { // what was asked for may come after all
				note(a.host.pg.primary)
				t.ends(err)
			})
		}
		a.Guardian.ArmNow(memo, func(err error) {
			if err != nil {
				t.ends(err)
				return
			}
			t.then(func() {
				if a.host.pg.failing > 0 && a.host.w.chance(0.2) {
					forbidden = true
					a.Guardian.Disarm(func(err error) { t.ends(errors.Join(errors.New("pre_promote failed"), err)) })
					return
				}
				a.host.pg.promote(above, last, ended)
			})
		})
	}, func(err error) {
		if forbidden && a.Tenure.Held(a.host.clock()) {
			a.barredUntil = a.host.clock().Add(a.Dynamic.TTL)
			a.Complete = false
			a.Tenure.GiveTo("")
		}
		if err != nil {
			a.Reread()
			return
		}
		a.sawPostgres(seen)
		a.upstream = ""
	})
}

// handover stops PostgreSQL while the lease goes on being renewed, makes sure that
// the successor has all of its WAL, and gives the lease to it.
func (a *agent) handover(successor string) {
	dropped, asked := false, a.Snapshot.Failover.ModifyIndex
	a.startTask(ha.TaskHandover, func(t *task) {
		deadline := a.host.clock().Add(handoverLimit)
		a.host.w.at(a.host.when(deadline), func() { t.ends(errors.New("the handover took too long")) })
		drop := func() {
			dropped = true
			a.Guardian.Disarm(t.ends)
		}
		a.host.pg.stop(func(error) {
			t.then(func() {
				if successor == "" {
					drop()
					return
				}
				a.awaitWAL(t, successor, drop)
			})
		})
	}, func(error) {
		a.stoppedOnPurpose()
		if dropped {
			if successor != "" {
				a.host.w.judge.handedOver(a.host, successor)
				a.handedOver = asked
			}
			a.Complete = successor != ""
			a.Tenure.GiveTo(successor)
			return
		}
		a.ClearFailover(a.Snapshot.Failover.ModifyIndex)
	})
}

// awaitWAL waits until the successor has all WAL.
func (a *agent) awaitWAL(t *task, successor string, drop func()) {
	end, timeline := a.host.pg.at.lsn, a.host.pg.at.branch.timeline
	to := a.host.w.hostNamed(successor)
	call(a, to, time.Second, serveStatus, func(p ha.Peer, ok bool) {
		t.then(func() {
			if ok && p.Timeline == timeline && p.LSN >= end {
				drop()
				return
			}
			a.later(20*time.Millisecond, func() { t.then(func() { a.awaitWAL(t, successor, drop) }) })
		})
	})
}

// setSync makes commits wait for standbys.
func (a *agent) setSync(s ha.SetSync) {
	if a.settingSync {
		return
	}
	a.settingSync, a.pg.syncSet = true, false
	setting := waits{names: s.Standbys, any: s.Any}
	a.later(a.dispatch(), func() {
		finished := false
		finish := func(since int64) {
			a.do(func() {
				if finished {
					return
				}
				finished = true
				a.settingSync = false
				if since > 0 {
					pg := &a.pg
					pg.syncNames, pg.syncAny, pg.syncSince, pg.syncValue, pg.syncSet = s.Standbys, s.Any, since, setting.value(), true
					pg.observed.syncValue = pg.syncValue
					a.kickPostgres()
				}
				a.step()
			})
		}
		a.host.pg.setSync(setting, finish)
		a.later(a.Dynamic.RetryTimeout, func() { finish(0) })
	})
}
