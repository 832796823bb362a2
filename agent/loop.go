package agent

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/callbacks"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
)

// loopState is the state of the loop. Only the loop's goroutine touches it.
type loopState struct {
	*member.Member

	upgrade bool

	// watchersLost counts the watchers of the guard that were seen to have ended.
	watchersLost  int
	others        []string                   // primaries beside this one
	archiver      pg.Archiver                // as it was seen last
	walRoom       pg.WALRoom                 // the same
	backups       *api.Backups               // as this leader was told last; nil: not yet
	verified      api.Verification           // of a backup, on this host
	reasons       map[string]cluster.Instant // when each was logged last
	callbackState callbacks.CallbackState
	stopBy        cluster.Instant // when an orderly stop must be over; zero: none is under way

	planned      plannedRestart // a restart that is scheduled
	planRecalled bool           // that of an earlier run was looked for
}

// loop runs until the agent has stopped in an orderly way or its context ends.
func (a *Agent) loop(signals Signals, failed <-chan error) error {
	var deadline <-chan time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case f := <-a.events:
			f()
			a.drain()
		case <-timer.C:
		case <-signals.Stop:
			signals.Stop = nil
			a.m.BeginStop()
			limit := time.NewTimer(member.StopLimit)
			defer limit.Stop()
			deadline = limit.C
			a.systemd.Stopping()
			a.log.Info().Msg("asked to stop")
		case <-signals.Upgrade:
			a.checkUpgrade()
		case <-deadline:
			a.log.Error().Dur("limit", member.StopLimit).Msg("could not stop in an orderly way in time; PostgreSQL is killed")
			err := a.lastKill()
			if err == nil {
				a.watchdog.disable(a.ctx)
			}
			return err
		case err := <-failed:
			return err
		case <-a.ctx.Done():
			return context.Cause(a.ctx)
		}
		if a.m.Failed != nil {
			return a.m.Failed
		}
		began := time.Now()
		wake := a.step()
		a.metrics.Steps.Observe(time.Since(began).Seconds())
		if a.mayUpgrade() {
			return ErrUpgrade
		}
		if a.m.Exit {
			a.watchdog.disable(a.ctx)
			if !a.pg.Running() {
				a.guard.dismiss(a.ctx)
			}
			return nil
		}
		timer.Reset(wake)
	}
}

// lastLimit bounds what the loop still waits for, or asks of a program, before the agent
// makes room for another one, or ends.
const lastLimit = 10 * time.Second

// lastKill kills PostgreSQL as the agent ends.
func (a *Agent) lastKill() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), lastLimit)
	defer cancel()
	return killForGood(ctx, a.pg.Kill, a.guard.cancelStarts)
}

// finishFence ends a fence that was under way when the loop ended, whose rest nobody would
// carry out.
func (a *Agent) finishFence() {
	if !a.m.Fencing() {
		return
	}
	if err := a.lastKill(); err != nil {
		a.log.Error().Err(err).Msg("PostgreSQL could not be fenced before the agent ended; the guard keeps its deadline")
	}
}

// checkUpgrade makes sure that the binary which is installed by now can be run
// before it is given this one's place.
func (a *Agent) checkUpgrade() {
	order(a.runner, lastLimit, a.runnable, func(err error) {
		if err != nil {
			a.log.Error().Err(err).Msg("upgrade refused: the installed binary cannot be run; nothing changes")
			return
		}
		a.m.upgrade = true
		a.log.Info().Str("busy", string(a.m.TaskKind())).Msg("upgrade requested; re-executing when idle")
	})
}

// mayUpgrade reports whether this process may end for another binary: nothing is
// under way that would be broken off, and the guard has the latest deadline.
func (a *Agent) mayUpgrade() bool {
	return (a.m.upgrade || a.m.Upgrades.BeginsAnew()) && !a.m.Stopping && a.m.TaskKind() == ha.TaskNone && a.m.Idle() && !a.conf.rewriting && a.callbacks.Idle()
}

// step observes, decides and acts once, and says when to come round again.
func (a *Agent) step() time.Duration {
	a.callBack()
	v, d := a.m.Step()
	a.m.callbackState.Saw(a.m.TaskKind())
	a.watchdog.mind(v)
	a.raiseAlarm(v.OtherPrimaries())
	a.mindPlan()
	a.m.Publish()
	a.eventLog.record(d.Reason, a.conf.index, a.m.watchersLost, a.m.archiver.Trouble(), a.m.backups.Problem())
	a.show(d.Reason)
	a.conf.cache()
	a.conf.rewrite = a.conf.rewrite || a.m.PG.Running && a.pg.LetGo()
	a.conf.askAgain(a.pg.Unasked)
	if a.conf.rewrite && a.m.TaskKind() == ha.TaskNone {
		a.conf.write()
	}
	tick := a.m.Dynamic.LoopWait
	if !d.Wake.IsZero() {
		tick = min(tick, d.Wake.Sub(a.clock()))
	}
	tick = a.untilPlan(tick)
	return max(tick, time.Millisecond)
}

// raiseAlarm says loudly, whenever it changes, that there is another primary.
func (a *Agent) raiseAlarm(others []string) {
	if slices.Equal(others, a.m.others) {
		return
	}
	a.m.others = others
	if len(others) > 0 {
		a.log.Error().Strs("members", others).Msg("TWO PRIMARIES: other members of this shard run as a primary, too; " +
			"the ones without a lease fence themselves, see that nothing was written there")
		return
	}
	a.log.Warn().Msg("there is no other primary any more")
}

// repeatReasons is how soon a reason is logged again that comes and goes.
const repeatReasons = 30 * time.Second

// note logs a decision when it differs from the last one: one line with what is
// done and why, and no repeated noise.
func (a *Agent) note(v ha.View, d ha.Decision) {
	if d.Reason == a.m.Reason || d.Reason == "" {
		return
	}
	actions, weighty := []string(nil), false
	for _, action := range d.Actions {
		switch action.(type) {
		case ha.Beat:
			continue
		case ha.Reread, ha.AskPeers, ha.TakeOver:
		default:
			weighty = true
		}
		actions = append(actions, action.String())
	}
	// Reasons that alternate while something is tried again and again are told
	// now and then; what changes something is told every time.
	if last, told := a.m.reasons[d.Reason]; told && !weighty && v.Now.Sub(last) < repeatReasons {
		return
	}
	a.m.reasons[d.Reason] = v.Now
	maps.DeleteFunc(a.m.reasons, func(_ string, at cluster.Instant) bool { return v.Now.Sub(at) >= repeatReasons })
	line := a.log.Info()
	if len(actions) > 0 {
		line = line.Strs("action", actions) // a key stands once in a line
	}
	if !v.Lease.Until.IsZero() {
		line = line.Dur("lease_left", v.Lease.Until.Sub(v.Now))
	}
	line.Msg(d.Reason)
}
