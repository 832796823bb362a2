package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/ha"
)

// This file is the scheduled restart, Patroni's way: the member keeps it, shows it
// under its own key, and carries it out itself.
//
//	PostgreSQL was started anew since   drop it: that was the restart
//	too early                           wait
//	paused                              wait
//	1.5 loop_waits late, or more        drop it
//	something else is under way         wait
//	its conditions do not hold          drop it
//	otherwise                           restart
//
// A scheduled switchover is the shard's, in the key failover (ha/handover.go).

// plannedRestart is a restart that is scheduled; without a time it is none.
type plannedRestart struct {
	api.RestartRequest
	started string // the start of PostgreSQL that it is about, as it was written
}

// verdict is what becomes of a scheduled restart now.
type verdict int

const (
	keepPlan verdict = iota
	dropPlan
	carryOut
)

// judge decides about the plan; state is what the loop shows.
func (p plannedRestart) judge(state api.State, now time.Time, busy bool) (v verdict, why string) {
	late := now.Sub(p.At)
	switch {
	case !api.SameStart(p.started, state.Postgres.StartTime):
		return dropPlan, "PostgreSQL was started anew since"
	case late < 0 || state.Dynamic.Pause:
		return keepPlan, ""
	case late > state.Dynamic.LoopWait*3/2:
		return dropPlan, fmt.Sprintf("it is %s late, more than 1.5 loop_wait", late.Round(time.Millisecond))
	case busy:
		return keepPlan, ""
	}
	if why := p.Unmet(state); why != "" {
		return dropPlan, why
	}
	return carryOut, ""
}

// ScheduleRestart remembers a restart for later (api.Node). It is shown under the
// member's key when this returns, or as soon as Consul answers.
func (n *node) ScheduleRestart(ctx context.Context, r api.RestartRequest) error {
	return n.ask(ctx, func() error {
		switch {
		case n.m.Dynamic.Pause:
			return fmt.Errorf("%w: Can't schedule restart in the paused state", api.ErrRefused)
		case !n.m.planned.At.IsZero():
			return fmt.Errorf("%w: a restart is scheduled for %s", api.ErrConflict, n.m.planned.At.Format(time.RFC3339))
		}
		value := r.Value(n.m.PG.Observed.StartTime)
		p, err := parsePlan(value)
		if err != nil {
			return err
		}
		n.m.planned = p
		n.log.Info().Interface("restart", value).Msg("restart scheduled")
		return nil
	})
}

// CancelRestart forgets the scheduled restart (api.Node).
func (n *node) CancelRestart(ctx context.Context) error {
	return n.ask(ctx, func() error {
		if n.m.planned.At.IsZero() {
			return api.ErrNone
		}
		n.m.planned = plannedRestart{}
		n.log.Info().Msg("the scheduled restart was taken back")
		return nil
	})
}

func parsePlan(value map[string]any) (plannedRestart, error) {
	r, started, err := api.ParseRestartValue(value)
	return plannedRestart{RestartRequest: r, started: started}, err
}

// value is what the member's key says of the plan; nil: nothing.
func (p plannedRestart) value() map[string]any {
	if p.At.IsZero() {
		return nil
	}
	v := p.Value(time.Time{})
	if p.started != "" {
		v["postmaster_start_time"] = p.started
	}
	return v
}

// mindPlan carries a scheduled restart out when it is due. It runs before this
// member's key is written: the plan of an earlier run of this agent is in there.
func (a *Agent) mindPlan() {
	if !a.m.planRecalled && !a.m.Read.IsZero() {
		a.m.planRecalled = true
		if own, found := a.m.Snapshot.Member(a.cfg.Name); found && own.OK() && own.Value.ScheduledRestart != nil && a.m.planned.At.IsZero() {
			p, err := parsePlan(own.Value.ScheduledRestart)
			if err != nil {
				a.log.Warn().Err(err).Msg("the scheduled restart of an earlier run is dropped")
			} else {
				a.m.planned = p
			}
		}
	}
	p := a.m.planned
	if p.At.IsZero() {
		return
	}
	seen := a.State()
	seen.Dynamic = a.m.Dynamic
	decision, why := p.judge(seen, time.Now(), a.m.TaskKind() != ha.TaskNone)
	switch decision {
	case keepPlan:
	case dropPlan:
		a.m.planned = plannedRestart{}
		a.log.Warn().Time("at", p.At).Str("reason", why).Msg("the scheduled restart is dropped")
	case carryOut:
		a.m.planned = plannedRestart{}
		a.log.Info().Time("at", p.At).Msg("the scheduled restart is due")
		a.goDo(func(ctx context.Context) {
			if p.Timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, p.Timeout)
				defer cancel()
			}
			if err := a.node.Restart(ctx); err != nil {
				a.log.Error().Err(err).Msg("the scheduled restart failed")
				return
			}
			a.log.Info().Msg("the scheduled restart is done")
		})
	}
}

// untilPlan is when the scheduled restart is due, if that is sooner than tick.
func (a *Agent) untilPlan(tick time.Duration) time.Duration {
	if left := time.Until(a.m.planned.At); left > 0 && !a.m.planned.At.IsZero() {
		return min(tick, left)
	}
	return tick
}
