package member

import (
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// restorer finds out when a member whose data were replaced has again what they had
// acknowledged (Local.Loss, agent/ha/restoring.go).
type restorer struct {
	*Shard
	local    *Local
	postgres Postgres
	asking   bool
}

// mind asks the leader which position this member must come to, and notes when it
// has. It is to be called when no task is under way: the old data acknowledge nothing any
// more then.
func (r *restorer) mind(seen ha.Postgres) {
	loss := r.local.Loss
	if loss == nil {
		r.Failure("loss", "", nil)
		return
	}
	goal := ha.Goal{Timeline: loss.Timeline, LSN: loss.LSN}
	leads := seen.Running && seen.Accepting && seen.Primary
	if leads || goal.Reached(seen) {
		r.local.Loss = nil
		r.Log.Info().Msg("this member has again all that its earlier data may have acknowledged")
		r.postgres.ForgetLoss(r.Dynamic.RetryTimeout, loss.ID, func(err error) {
			if err != nil {
				r.Log.Warn().Err(err).Msg("it could not be noted that this member has all data again; it is found out anew when the agent is started")
			}
		})
		return
	}
	leader := r.Snapshot.LeaderName()
	other, found := r.Snapshot.Member(leader)
	if r.asking || leader == r.Name || !found || !other.OK() || !cluster.IsPrimary(other.Value.Role) || !goal.Outdated(other.Value.Timeline) {
		return
	}
	up, err := r.upstreamOf(leader)
	if err != nil {
		return
	}
	r.asking = true
	r.postgres.AimAt(r.Dynamic.RetryTimeout, *loss, up, func(aimed pg.Loss, err error) {
		if err != nil {
			r.Failure("loss", "it is not known yet from which position on this member counts again as a synchronous standby", fmt.Errorf("asking %s: %w", leader, err))
			r.After(r.retryAfter(), func() { r.asking = false })
			return
		}
		r.asking = false
		r.Failure("loss", "", nil)
		if r.local.Loss != nil && r.local.Loss.ID == aimed.ID {
			r.local.Loss = &aimed
		}
	})
}
