package simulation

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
)

// inPostgres is member.Postgres.
type inPostgres struct{ *agent }

// work is a part of a task: begin begins it, when another goroutine has been scheduled. When
// the task is broken off it ends soon, whatever it does, unless the disk hangs.
func (p inPostgres) work(w *member.Work, begin func(done func(error)), done func(error)) {
	over := false
	end := func(err error) {
		if !over {
			over = true
			done(err)
			p.step()
		}
	}
	if w != nil {
		w.OnBreak(func() {
			p.later(p.host.w.between(0, 20*time.Millisecond), func() {
				p.host.pg.onDisk(func() { p.do(func() { end(w.Broken()) }) })
			})
		})
	}
	p.later(p.dispatch(), func() {
		if !over {
			begin(func(err error) { p.do(func() { end(err) }) })
		}
	})
}

func (p inPostgres) Running() bool             { return p.host.pg.running && !p.host.pg.stray }
func (p inPostgres) StartedAs() (bool, bool)   { return p.host.pg.primary, true }
func (p inPostgres) Major() int                { return p.version + 1 }
func (p inPostgres) Upstream() string          { return p.host.pg.aim }
func (p inPostgres) ClonesWithoutLeader() bool { return false }
func (p inPostgres) KeepsData() bool           { return p.host.w.schedule.KeepsClones }
func (p inPostgres) SynchronousCommit() string { return p.wantedCommit() }
func (p inPostgres) Fsync() bool               { return true }
func (p inPostgres) HoldCommits(hold bool)     { p.holds = hold }

func (p inPostgres) PID() int {
	if !p.Running() {
		return 0
	}
	return p.host.pg.life
}

func (p inPostgres) Kill(_ *member.Work, limit time.Duration, done func(error)) {
	p.work(nil, func(done func(error)) {
		kill := func() { p.kill(limit, done) }
		if p.host.w.mutant.Unpromoted && p.TaskKind() == ha.TaskPromote {
			done(nil)
			return
		}
		if p.host.w.mutant.StopWaits {
			p.host.pg.onDisk(kill)
			return
		}
		kill()
	}, done)
}

// kill is the agent's kill. One that cannot tell who is PostgreSQL's kills nobody; what waits
// for a disk outlasts it.
func (p inPostgres) kill(limit time.Duration, done func(error)) {
	pg := &p.host.pg
	if pg.running {
		p.host.w.judge.acts(p.host, "the agent kills PostgreSQL")
	}
	if pg.unkillable > 0 && (pg.running || pg.orphans) {
		p.later(p.host.w.between(0, min(limit, time.Second)), func() { done(errNotKilled) })
		return
	}
	pg.kill(func() {
		if pg.remains {
			p.later(limit, func() {
				if pg.remains {
					done(member.ErrLingering)
					return
				}
				done(nil)
			})
			return
		}
		done(nil)
	})
}

func (p inPostgres) Stop(w *member.Work, limit time.Duration, _ bool, done func(error)) {
	p.work(w, func(done func(error)) {
		stopped := false
		if p.host.pg.running {
			p.host.w.judge.acts(p.host, "the agent stops PostgreSQL")
		}
		p.host.pg.stop(func(err error) { stopped = true; done(err) })
		p.later(limit, func() {
			if !stopped {
				p.kill(limit, done)
			}
		})
	}, done)
}

func (p inPostgres) StopFor(w *member.Work, _ func(int64, func(error)), done func(error)) {
	p.work(w, func(done func(error)) { p.host.pg.stop(done) }, done)
}

func (p inPostgres) EndShutDown(w *member.Work, _ time.Duration, done func(error)) {
	p.work(w, func(done func(error)) { done(nil) }, done)
}

// Start writes files first, which needs the disk. What was given up by then is not
// started.
func (p inPostgres) Start(w *member.Work, _ time.Duration, as member.StartAs, done func(error)) {
	upstream, setting := "", (*waits)(nil)
	if as.Upstream != nil {
		upstream = as.Upstream.Name
	}
	if as.Sync != nil {
		setting = &waits{names: as.Sync.Standbys, any: as.Sync.Any}
	}
	p.work(w, func(done func(error)) {
		start := func() { p.host.pg.start(as.Primary, upstream, setting, done) }
		p.host.pg.onDisk(func() {
			p.do(func() {
				p.host.w.judge.acts(p.host, "the agent starts PostgreSQL")
				if w.Broken() == nil || as.Primary && p.host.w.mutant.LateStart {
					p.launch(as.Primary, start, done)
				}
			})
		})
	}, done)
}

// launch has the guard start PostgreSQL. One that stands still is asked whether it is
// there first, so that it does not start what was given up.
func (p inPostgres) launch(primary bool, start func(), failed func(error)) {
	g, asleep, over := &p.host.guard, p.host.guard.stopped > 0, false
	g.start(primary, func() {
		if !over || !asleep {
			over = true
			start()
		}
	}, func(err error) {
		over = true
		failed(err)
	})
	p.later(startWithin, func() {
		if !over {
			over = true
			failed(errNoAnswer)
		}
	})
}

func (p inPostgres) Adopt(w *member.Work, done func(error)) {
	p.work(w, func(done func(error)) { p.host.pg.stray = false; done(nil) }, done)
}

func (p inPostgres) TryStart(w *member.Work, done func(string, error)) {
	p.work(w, func(done func(error)) { done(nil) }, func(err error) { done("", err) })
}

func (p inPostgres) Observe(w *member.Work, done func(pg.State, error)) {
	var seen pg.State
	p.work(w, func(done func(error)) {
		seen = p.host.pg.observe()
		p.later(p.host.pg.takes(0, 4*time.Millisecond), func() { done(nil) })
	}, func(err error) { done(seen, err) })
}

func (p inPostgres) Look(w *member.Work, limit time.Duration, done func(member.Found, bool)) {
	over := false
	end := func(found member.Found, seen bool) {
		if !over {
			over = true
			done(found, seen)
			p.step()
		}
	}
	if w != nil {
		w.OnBreak(func() { p.later(0, func() { end(member.Found{}, false) }) })
	}
	if limit > 0 {
		p.later(limit, func() { end(member.Found{}, false) })
	}
	p.later(p.dispatch(), func() {
		p.host.pg.onDisk(func() { p.do(func() { end(p.host.pg.found(), true) }) })
	})
}

func (p inPostgres) Follow(w *member.Work, _ time.Duration, up pg.Upstream, done func(error)) {
	p.follow(w, up.Name, done)
}

func (p inPostgres) Unfollow(w *member.Work, _ time.Duration, done func(error)) {
	p.follow(w, "", done)
}

// follow writes a file, and has it read.
func (p inPostgres) follow(w *member.Work, upstream string, done func(error)) {
	p.work(w, func(done func(error)) {
		p.host.pg.onDisk(func() { p.do(func() { p.host.pg.follow(upstream, done) }) })
	}, done)
}

func (p inPostgres) Promote(w *member.Work, above int, last func(func(error)), done func(error)) {
	m := &p.host.w.mutant
	if m.TimelineUntold {
		above = 0
	}
	if m.PromoteUnbound {
		last = func(done func(error)) { done(nil) }
	}
	p.host.w.judge.acts(p.host, "the agent promotes PostgreSQL")
	p.work(w, func(done func(error)) {
		p.host.pg.promote(above, func(then func(error)) { p.do(func() { last(then) }) }, done)
	}, done)
}

func (p inPostgres) SetSynchronous(limit time.Duration, s ha.SetSync, done func(pg.SyncInForce, error)) {
	setting := waits{names: s.Standbys, any: s.Any}
	var since int64
	p.work(nil, func(done func(error)) {
		p.host.pg.asked = setting // kept in memory before the file is written (agent/postgres/synchronous.go)
		p.host.pg.onDisk(func() {
			if p.host.w.mutant.SettingLate {
				p.host.pg.asked = setting
			}
			p.host.pg.setSync(func(at int64) {
				if since = at; at == 0 {
					done(errors.New("it failed"))
					return
				}
				done(nil)
			})
		})
		p.later(limit, func() { done(errors.New("it took too long")) })
	}, func(err error) { done(pg.SyncInForce{Value: setting.value(), Since: since}, err) })
}

func (p inPostgres) Checkpoint(w *member.Work, done func(error)) {
	p.work(w, func(done func(error)) {
		p.later(p.host.pg.takes(time.Millisecond, 50*time.Millisecond), func() { p.host.pg.flush(func() { done(nil) }, func() { done(errStopped) }) })
	}, done)
}

func (p inPostgres) TimelineHistory(_ int, done func(cluster.History, error)) {
	var lines cluster.History
	p.work(nil, func(done func(error)) {
		p.host.pg.onDisk(func() { lines = p.host.pg.at.history(); done(nil) })
	}, func(err error) { done(lines, err) })
}

func (p inPostgres) UseSlots() bool { return p.host.w.schedule.Keeps > 0 }

// SyncsSlots is false: that is PostgreSQL's own work.
func (p inPostgres) SyncsSlots() bool { return false }

func (p inPostgres) SyncSlots(_ time.Duration, o pg.SlotOrders, done func(error)) {
	p.work(nil, func(done func(error)) {
		p.later(p.host.pg.takes(time.Millisecond, 50*time.Millisecond), func() {
			if !p.host.pg.ready {
				done(errStopped)
				return
			}
			p.host.pg.syncSlots(p.host.w.mutant.slots(&p.host.pg, o.Wanted), o.Keep(cluster.Slot{}))
			done(nil)
		})
	}, done)
}

func (p inPostgres) AdvanceLogical(_ time.Duration, timeline int, slots []pg.WantedSlot, done func(error)) {
	p.work(nil, func(done func(error)) {
		p.later(p.host.pg.takes(time.Millisecond, 50*time.Millisecond), func() { done(p.host.pg.advanceFeed(timeline, slots[0].To)) })
	}, done)
}

func (p inPostgres) FetchSlots(w *member.Work, from pg.Upstream, _ []cluster.Slot, done func([]pg.SlotFile, error)) {
	var files []pg.SlotFile
	p.work(w, func(done func(error)) {
		p.later(p.host.pg.takes(time.Millisecond, 50*time.Millisecond), func() {
			f, err := p.host.pg.fetchFeed(p.host.w.hostNamed(from.Name))
			files = []pg.SlotFile{f}
			done(err)
		})
	}, func(err error) { done(files, err) })
}

func (p inPostgres) PlaceSlots(w *member.Work, files []pg.SlotFile, done func(error)) {
	p.work(w, func(done func(error)) {
		p.host.pg.onDisk(func() { done(p.host.pg.placeFeed(files[0])) })
	}, done)
}

// MakeReplica clones from the member, or at a reinit from another one that runs and can go on (with
// the tag clonefrom, say), which may lag.
func (p inPostgres) MakeReplica(w *member.Work, from *pg.Upstream, _ string, done func(error)) {
	source := p.host.w.hostNamed(from.Name)
	if p.TaskKind() == ha.TaskReinit {
		for _, h := range p.host.w.hosts {
			if h != p.host && h != source && h.pg.ready && !h.pg.primary && !h.pg.stranded() && p.host.w.chance(0.5) {
				source = h
			}
		}
	}
	pg := &p.host.pg
	p.work(w, func(done func(error)) {
		p.host.w.judge.removes(p.host)
		pg.clone(source, done)
	}, func(err error) {
		if err == nil && pg.made == workUnfinished {
			pg.made = workNone
		}
		done(err)
	})
}

func (p inPostgres) RemoveForReinit(w *member.Work, allowed pg.Permission, done func(error)) {
	p.work(w, func(done func(error)) {
		if !allowed.NotLeader || !allowed.LeaderReachable || allowed.AllowedBy == "" {
			done(errors.New("the data directory stays"))
			return
		}
		if p.host.pg.running { // somebody else has started it
			done(errors.New("the data directory stays: PostgreSQL runs in it"))
			return
		}
		p.host.w.judge.removesFor(p.host)
		if allowed.Version != 0 {
			p.host.pg.wants = allowed.Version - 1
		}
		p.host.pg.remove()
		done(nil)
	}, done)
}

func (p inPostgres) Answers(w *member.Work, up pg.Upstream, primary bool, system string, done func(error)) {
	p.work(w, func(done func(error)) {
		p.later(p.host.w.between(time.Millisecond, 20*time.Millisecond), func() {
			h := p.host.w.hostNamed(up.Name)
			if p.answers(up, primary) && (system == "" || h.pg.system == system) || p.host.w.mutant.RebuildUnanswered && p.TaskKind() == ha.TaskReinit {
				done(nil)
				return
			}
			done(errSilent)
		})
	}, done)
}

func (p inPostgres) answers(up pg.Upstream, primary bool) bool {
	h := p.host.w.hostNamed(up.Name)
	return h.up && !h.frozen && h.pg.ready && (h.pg.primary || !primary) && p.host.w.net.both(p.host.id, h.id)
}

// WALGone is asked of a member that serves: a slot plays no part.
func (p inPostgres) WALGone(_ time.Duration, up pg.Upstream, _ string, _ int, lsn int64, done func(bool, error)) {
	gone := false
	p.work(nil, func(done func(error)) {
		p.later(p.host.w.between(time.Millisecond, 50*time.Millisecond), func() {
			if !p.answers(up, false) {
				done(errors.New("the upstream is not reachable"))
				return
			}
			from := p.host.w.hostNamed(up.Name).pg
			gone = from.at.holds(p.host.pg.at) && from.oldest > lsn
			done(nil)
		})
	}, func(err error) { done(gone, err) })
}

func (p inPostgres) AimAt(_ time.Duration, l pg.Loss, up pg.Upstream, done func(pg.Loss, error)) {
	p.work(nil, func(done func(error)) {
		p.later(p.host.w.between(time.Millisecond, 50*time.Millisecond), func() {
			if !p.answers(up, true) {
				done(errors.New("the leader is not reachable, or no primary"))
				return
			}
			at := p.host.w.hostNamed(up.Name).pg.at
			l.Timeline, l.LSN = at.branch.timeline, at.lsn
			done(p.host.pg.keepLoss(l))
		})
	}, func(err error) { done(l, err) })
}

func (p inPostgres) ForgetLoss(_ time.Duration, id string, done func(error)) {
	p.work(nil, func(done func(error)) { p.host.pg.forgetLoss(id); done(nil) }, done)
}

func (p inPostgres) BeforeStop(w *member.Work, _ time.Duration, done func(error)) {
	p.work(w, func(done func(error)) {
		p.later(p.host.w.between(0, 5*time.Millisecond), func() { done(nil) })
	}, done)
}

func (p inPostgres) PrePromote(w *member.Work, _ time.Duration, done func(error)) {
	p.work(w, func(done func(error)) {
		if p.host.pg.failing > 0 && p.host.w.chance(0.2) {
			done(errors.New("pre_promote failed"))
			return
		}
		p.host.pg.halfWay(func() { done(nil) }, func() { done(errStopped) })
	}, done)
}
