package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// task is the long piece of work under way (agent/tasks.go).
type task struct {
	a         *agent
	kind      ha.TaskKind
	cancelled bool
	finished  bool
	next      func() // begins the task that interrupted this one
	done      func(error)
}

const (
	handoverLimit = 10 * time.Second
	backoffMin    = time.Second
	backoffMax    = 10 * time.Second
)

var errCancelled = errors.New("interrupted")

// startTask runs work in the background, after the task that it interrupts has come
// to its end. Work calls t.end once.
func (a *agent) startTask(kind ha.TaskKind, work func(t *task), done func(error)) {
	t := &task{a: a, kind: kind, done: done}
	before := a.task
	a.taskEdge++
	a.task = t
	if before != nil && !before.finished {
		before.next = func() { work(t) }
		return
	}
	a.later(a.dispatch(), func() { work(t) })
}

// end is the end of a task's work.
func (t *task) end(err error) {
	if t.finished {
		return
	}
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
		a.data, a.loss = a.host.pg.data(), a.host.pg.loss
		a.pg.running, a.pg.wasPrimary = a.host.pg.running, a.host.pg.primary
		if !a.pg.running {
			a.pg.observed.accepting = false
		}
		a.noteAttempt(t.kind, err)
		if t.done != nil {
			t.done(err)
		}
		a.kickPostgres()
		a.step()
	})
}

// cancel interrupts a task: its work ends soon, whatever it does.
func (t *task) cancel() {
	if t == nil || t.cancelled || t.finished {
		return
	}
	t.cancelled = true
	t.a.later(t.a.host.w.between(0, 20*time.Millisecond), func() { t.end(errCancelled) })
}

// then runs the next part of a task's work in the agent's process, unless the task was
// interrupted.
func (t *task) then(do func()) {
	t.a.do(func() {
		if !t.cancelled && !t.finished {
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
	a.attempt = ha.Attempt{Kind: kind, Failures: failures, NotUntil: a.clock().Add(backoff)}
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
		a.rejoin(act.Upstream)
	case ha.Clone:
		a.clone(act.From)
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
	a.tenure.Drop()
	a.task.cancel()
	a.startTask(ha.TaskDemote, func(t *task) {
		a.host.pg.kill(func() {
			t.then(func() { a.guardian.disarm(func() { t.ends(nil) }) })
		})
	}, func(error) {
		a.fencing = false
		a.stoppedOnPurpose()
	})
}

// demote stops PostgreSQL in an orderly way, then drops the lease.
func (a *agent) demote() {
	if a.task != nil && a.task.kind == ha.TaskDemote {
		return
	}
	a.task.cancel()
	a.startTask(ha.TaskDemote, func(t *task) {
		a.host.pg.stop(func(error) {
			t.then(func() { a.guardian.disarm(func() { t.ends(nil) }) })
		})
	}, func(err error) {
		if err == nil {
			a.tenure.Drop()
			a.stoppedOnPurpose()
		}
	})
}

// giveUp ends a leadership that PostgreSQL cannot fill.
func (a *agent) giveUp(successor string) {
	if a.task != nil && a.task.kind == ha.TaskDemote {
		return
	}
	a.task.cancel()
	a.startTask(ha.TaskDemote, func(t *task) {
		a.host.pg.kill(func() {
			t.then(func() { a.guardian.disarm(func() { t.ends(nil) }) })
		})
	}, func(err error) {
		if err == nil {
			a.complete = false
			a.tenure.GiveTo(successor)
			a.stoppedOnPurpose()
		}
	})
}

// startPostgres starts PostgreSQL, a primary only under an armed guard.
func (a *agent) startPostgres(primary bool, upstream string, sync *ha.SetSync) {
	memo := a.memo()
	var setting *waits
	if sync != nil {
		setting = &waits{names: sync.Standbys, any: sync.Any}
	}
	a.pg.syncSet = false
	a.startTask(ha.TaskStart, func(t *task) {
		start := func() { a.host.pg.start(primary, upstream, setting, t.ends) }
		if !primary {
			start()
			return
		}
		a.guardian.armNow(memo, func(err error) {
			if err != nil {
				t.ends(err)
				return
			}
			t.then(func() { a.host.guard.start(start, t.ends) })
		})
	}, func(err error) {
		if err == nil {
			a.follows(upstream)
		}
	})
}

// rejoin makes this member a replica of upstream.
func (a *agent) rejoin(upstream string) {
	a.pg.syncSet = false
	up := a.host.w.hostNamed(upstream)
	a.startTask(ha.TaskRejoin, func(t *task) {
		a.host.pg.stop(func(error) {
			t.then(func() {
				a.host.pg.rejoin(up, func(err error) {
					if err != nil {
						t.ends(err)
						return
					}
					t.then(func() { a.host.pg.start(false, upstream, nil, t.ends) })
				})
			})
		})
	}, func(err error) {
		if err == nil {
			a.upstream = upstream
		}
	})
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
	memo, above := a.memo(), a.Timeline()-1
	if m.TimelineUntold {
		above = 0
	}
	var seen observed
	forbidden, session, before := false, a.session, a.Snapshot.Sync
	replaced, uncertain := uint64(0), false
	// note keeps what became of the key, also when the task is interrupted.
	note := func(promoted bool) {
		a.do(func() {
			if replaced != 0 {
				a.Wrote(replaced)
				a.syncUncertain = false
				a.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *p.Sync, ModifyIndex: replaced}
			}
			a.syncUncertain = a.syncUncertain || uncertain
			a.syncBefore = nil
			if !promoted && (replaced != 0 || uncertain) && !m.PromiseKept {
				a.syncBefore = &before
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
			a.transact(a.dynamic.RetryTimeout, ops, func(indexes map[string]uint64, err error) {
				if err == nil {
					replaced = indexes[keySync]
				}
				uncertain = errors.Is(err, errUncertain)
				if t.cancelled || t.finished {
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
		a.guardian.armNow(memo, func(err error) {
			if err != nil {
				t.ends(err)
				return
			}
			t.then(func() {
				if a.host.pg.failing > 0 && a.host.w.chance(0.2) {
					forbidden = true
					a.guardian.disarm(func() { t.ends(errors.New("pre_promote failed")) })
					return
				}
				a.host.pg.promote(above, last, ended)
			})
		})
	}, func(err error) {
		if forbidden && a.tenure.Held(a.clock()) {
			a.barredUntil = a.clock().Add(a.dynamic.TTL)
			a.complete = false
			a.tenure.GiveTo("")
		}
		if err != nil {
			a.reread()
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
		deadline := a.clock().Add(handoverLimit)
		a.host.w.at(a.host.when(deadline), func() { t.ends(errors.New("the handover took too long")) })
		drop := func() {
			dropped = true
			a.guardian.disarm(func() { t.ends(nil) })
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
			a.complete = successor != ""
			a.tenure.GiveTo(successor)
			return
		}
		a.clearFailover(a.Snapshot.Failover.ModifyIndex)
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
		a.later(a.dynamic.RetryTimeout, func() { finish(0) })
	})
}
