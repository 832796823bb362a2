package agent

import (
	"context"
	"fmt"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// Reinitialize replaces this replica's data directory by a new clone, as the
// operator asked (api.Node). It returns when that has begun: the member's state
// says so by then.
func (a *Agent) Reinitialize(ctx context.Context, r api.ReinitRequest) error {
	return a.ask(ctx, func() error {
		if err := a.reinitialize(r); err != nil {
			return err
		}
		a.show(a.m.reason)
		return nil
	})
}

func (a *Agent) reinitialize(r api.ReinitRequest) error {
	leader := a.m.Snapshot.LeaderName()
	switch {
	case a.m.stopping:
		return fmt.Errorf("%w: %w", api.ErrRefused, errStopping)
	case leader == a.cfg.Name || a.m.Tenure.Held(a.clock()):
		return fmt.Errorf("%w: I am the leader, can not reinitialize", api.ErrRefused)
	case leader == "":
		return fmt.Errorf("%w: Cluster has no leader, can not reinitialize", api.ErrRefused)
	case a.m.task.kind != ha.TaskNone && (!r.Force || !a.m.task.repeatable()):
		return fmt.Errorf("%w: %s already in progress", api.ErrRefused, a.m.task.kind)
	}
	up, err := a.upstreamOf(leader)
	if err != nil {
		return fmt.Errorf("%w: %w", api.ErrRefused, err)
	}
	source := up
	if name := a.cloneSource(leader); !r.FromLeader && name != leader {
		if source, err = a.upstreamOf(name); err != nil {
			return fmt.Errorf("%w: %w", api.ErrRefused, err)
		}
	}
	if a.m.Parted > 0 {
		return fmt.Errorf("%w: a candidate for the leadership counts on what this member has: try again when the shard has a leader", api.ErrRefused)
	}
	noStream := cluster.NoStream(a.tags())
	a.interruptTask()
	limit := a.stopWithin()
	a.startTask(ha.TaskReinit, func(ctx context.Context) error {
		defer a.rejoinSync(ctx)
		if err := a.leaveSync(ctx); err != nil {
			return err
		}
		if !a.pg.Reachable(ctx, up) {
			return fmt.Errorf("the leader %s does not answer, so the data directory stays", leader)
		}
		if err := a.pg.StopWithin(ctx, limit, nil); err != nil {
			return err
		}
		if err := a.pg.RemoveForReinit(ctx, postgres.Permission{
			NotLeader: true, LeaderReachable: true, AllowedBy: "POST /reinitialize",
		}); err != nil {
			return err
		}
		a.log.Info().Str("from", source.Name).Msg("a copy is made anew on an operator's demand")
		if err := a.pg.MakeReplica(ctx, &source, "", a.cloneProgress(source.Name)); err != nil {
			return err
		}
		return a.startWithin(ctx, replicaOf(&up, noStream))
	}, func(err error) {
		if err == nil {
			a.followsUnless(noStream, leader)
		}
	})
	return nil
}

// cloneSource is the member to clone from: a running replica with the tag
// clonefrom, else the leader.
func (a *Agent) cloneSource(leader string) string {
	for _, m := range a.m.Snapshot.Members {
		if m.OK() && m.Value.Name != a.cfg.Name && m.Value.Name != leader && m.Value.Tag("clonefrom") && m.Value.State == cluster.StateRunning {
			return m.Value.Name
		}
	}
	return leader
}
