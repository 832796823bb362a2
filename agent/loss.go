package agent

import (
	"context"
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// restoring reports whether this member's data were replaced, or are just being, and may
// not have again what they had acknowledged before (agent/ha/restoring.go).
func (a *Agent) restoring() bool {
	return a.m.task.replaces || a.m.loss != nil
}

// mindLoss asks the leader which position this member must come to, and notes when it
// has. It is asked when the task which has replaced the data is over: the old data
// acknowledge nothing any more then.
func (a *Agent) mindLoss(v ha.View) {
	loss := a.m.loss
	if loss == nil || a.m.task.kind != ha.TaskNone {
		return
	}
	goal := ha.Goal{Timeline: loss.Timeline, LSN: loss.LSN}
	leads := v.Postgres.Running && v.Postgres.Accepting && v.Postgres.Primary
	if leads || goal.Reached(v.Postgres) {
		a.m.loss = nil
		a.log.Info().Msg("this member has again all that its earlier data may have acknowledged")
		ctx, cancel := context.WithTimeout(a.ctx, a.m.Dynamic.RetryTimeout)
		a.effect(ctx, cancel, func(context.Context) func() {
			if err := a.pg.ForgetLoss(loss.ID); err != nil {
				a.log.Warn().Err(err).Msg("it could not be noted that this member has all data again; it is found out anew when the agent is started")
			}
			return func() {}
		})
		return
	}
	leader := a.m.Snapshot.LeaderName()
	m, found := a.m.Snapshot.Member(leader)
	if a.m.askingGoal || leader == a.cfg.Name || !found || !m.OK() || !cluster.IsPrimary(m.Value.Role) || !goal.Outdated(m.Value.Timeline) {
		return
	}
	up, err := a.upstreamOf(leader)
	if err != nil {
		return
	}
	a.m.askingGoal = true
	ctx, cancel := context.WithTimeout(a.ctx, a.m.Dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		aimed := *loss
		var err error
		if aimed.Timeline, aimed.LSN, err = a.pg.PositionOf(ctx, up); err == nil {
			err = a.pg.KeepLoss(aimed)
		}
		return func() {
			if err != nil {
				a.log.Warn().Err(fmt.Errorf("asking %s: %w", leader, err)).Msg("it is not known yet from which position on this member counts again as a synchronous standby")
				a.afterwards(retryAfter(), func() { a.m.askingGoal = false })
				return
			}
			a.m.askingGoal = false
			if a.m.loss != nil && a.m.loss.ID == aimed.ID {
				a.m.loss = &aimed
			}
		}
	})
}
