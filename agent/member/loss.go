package member

import (
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Restoring reports whether this member's data were replaced, or are just being, and may
// not have again what they had acknowledged before (agent/ha/restoring.go).
func (m *Member) Restoring() bool {
	return m.task != nil && m.task.replaces || m.Loss != nil
}

// mindLoss asks the leader which position this member must come to, and notes when it
// has. It is asked when the task which has replaced the data is over: the old data
// acknowledge nothing any more then.
func (m *Member) mindLoss(v ha.View) {
	loss := m.Loss
	if loss == nil || m.task != nil {
		return
	}
	goal := ha.Goal{Timeline: loss.Timeline, LSN: loss.LSN}
	leads := v.Postgres.Running && v.Postgres.Accepting && v.Postgres.Primary
	if leads || goal.Reached(v.Postgres) {
		m.Loss = nil
		m.Log.Info().Msg("this member has again all that its earlier data may have acknowledged")
		m.Postgres.ForgetLoss(m.Dynamic.RetryTimeout, loss.ID, func(err error) {
			if err != nil {
				m.Log.Warn().Err(err).Msg("it could not be noted that this member has all data again; it is found out anew when the agent is started")
			}
		})
		return
	}
	leader := m.Snapshot.LeaderName()
	other, found := m.Snapshot.Member(leader)
	if m.askingGoal || leader == m.Name || !found || !other.OK() || !cluster.IsPrimary(other.Value.Role) || !goal.Outdated(other.Value.Timeline) {
		return
	}
	up, err := m.upstreamOf(leader)
	if err != nil {
		return
	}
	m.askingGoal = true
	m.Postgres.AimAt(m.Dynamic.RetryTimeout, *loss, up, func(aimed pg.Loss, err error) {
		if err != nil {
			m.Log.Warn().Err(fmt.Errorf("asking %s: %w", leader, err)).Msg("it is not known yet from which position on this member counts again as a synchronous standby")
			m.Later.After(m.retryAfter(), func() { m.askingGoal = false })
			return
		}
		m.askingGoal = false
		if m.Loss != nil && m.Loss.ID == aimed.ID {
			m.Loss = &aimed
		}
	})
}
