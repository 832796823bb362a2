package simulation

import (
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// agent is one run of an agent's process: the state machine (package member) with what
// package agent does around it, without its goroutines.
type agent struct {
	*member.Member
	host    *host
	dead    bool
	stopped int           // faults that keep it from running (SIGSTOP)
	starved time.Duration // by how much everything comes late
	held    []func()
	timer   int // so that only the timer that was set last counts
	stepped bool

	sessionTimer int
	version      int // of the programs (upgrade.go)
	configIndex  uint64
	onFailsafe   bool
	holds        bool       // it does not weaken synchronous_commit for now
	troubled     bool       // its last probe of the disk has found trouble
	probe        *diskProbe // that has not come back
	shown        ha.Peer    // what other members are told
	before       int64      // where its PostgreSQL was, as it was known when it was asked to detach (LookedBefore)
}

// startAgent begins a run of the agent's process.
func (h *host) startAgent() {
	if h.agent != nil || !h.up {
		return
	}
	if h.w.schedule.runsPatroni(h.id) {
		h.startPatroni()
		return
	}
	a := &agent{host: h, version: programsOf(&h.pg)}
	a.Member = member.New(member.Settings{
		Name: h.name, SessionName: "shard-" + h.name, Keys: keys(), PrimaryWord: cluster.RolePrimary,
		ConnURL: "postgres://" + h.name + ":5432/postgres", APIURL: "http://" + h.name, Host: h.name, Port: 5432, Tags: h.tags, Margins: func(ttl time.Duration) ha.FenceMargins { return h.w.schedule.margins(h.id, ttl) }, ScriptLimit: time.Minute,
		MayRewind: func() bool { return h.w.schedule.mayRewind(h.id) }, MayRemove: func(cluster.Dynamic) string { return h.w.schedule.mayRemove(h.id) },
		Decided: a.decided, Shown: h.w.shown(), Log: h.w.log(h.name),
	}, a.ports(), shell{a}, h.w.schedule.bootConfig())
	h.changes(func() { h.agent = a })
	h.w.say("%s: the agent starts", h.name)
	a.adopt()
	a.later(h.w.between(0, 5*time.Millisecond), a.keepSession)
	a.later(h.w.between(0, 5*time.Millisecond), func() { a.watchConsul(0) })
	a.later(0, a.watchPostgres)
	a.watchDisk()
	a.later(0, a.step)
}

// shown is what a mutant makes of what decisions are shown.
func (w *world) shown() func(ha.View) ha.View {
	if w.mutant == (Mutant{}) {
		return nil
	}
	return w.mutant.see
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

// decided hears of each decision.
func (a *agent) decided(_ ha.View, d ha.Decision) {
	if d.Reason != a.Reason && d.Reason != "" {
		a.host.w.say("%s: %s %v", a.host.name, d.Reason, d.Actions)
	}
}

// step observes, decides and acts once, and sets the timer.
func (a *agent) step() {
	if a.dead || a.stepped {
		return
	}
	a.stepped = true // what an action calls back at once does not come round in between
	v, d := a.Step()
	a.stepped = false
	if a.Exit {
		a.host.w.say("%s: the agent ends", a.host.name)
		a.die()
		return
	}
	if a.beginAnew() {
		return
	}
	if on := a.LeaseState.OnFailsafe(); on != a.onFailsafe {
		a.onFailsafe = on
		if on {
			a.host.w.judge.tally.Failsafe++
		}
	}
	a.applyCommit()
	if o := a.PG.Observed; o.Accepting && !o.InRecovery && !a.Opening() && a.LeaseState.Held(a.host.clock()) {
		a.host.w.judge.leadsTo(a.host)
	}
	a.Publish()
	a.shown = a.peerValue()
	tick := a.Dynamic.LoopWait
	if wake := a.host.w.mutant.wakes(v, d.Wake); !wake.IsZero() {
		tick = min(tick, wake.Sub(a.host.clock()))
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

const systemIdentifier = "7000000000000000001"

// adopt takes charge of what runs already (agent/adopt.go).
func (a *agent) adopt() {
	pg := &a.host.pg
	a.Adopt(pg.found(), pg.running)
	if !pg.running {
		return
	}
	guard := a.host.guard.recall()
	if a.AdoptRunning(pg.observe(), pg.aim, guard) {
		a.Session, a.Dynamic = guard.PersistedState.Session, a.host.w.remembered(guard.PersistedState, a.Dynamic)
	}
	if a.host.w.mutant.ConsentForgotten {
		a.LeaseState.Withdrawn()
		a.holds = false
	}
}

// postmasterGone: the postmaster has ended.
func (a *agent) postmasterGone() {
	if !a.host.pg.running {
		a.PostmasterGone()
		a.step()
	}
}
