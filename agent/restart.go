package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// errStopping is what a request gets that the agent no longer carries out.
var errStopping = errors.New("the agent is stopping")

// Restart restarts PostgreSQL in place (api.Node). The leader keeps its lease and
// beats meanwhile, and makes a checkpoint before, so that the one at the shutdown
// has little left to write; a synchronous standby has its leader let it go first, so
// that no commit waits for it.
func (a *Agent) Restart(ctx context.Context) error {
	replica := false
	if err := a.ask(ctx, func() error {
		replica = !a.m.pg.primary()
		return a.mayRestart()
	}); err != nil {
		return err
	}
	before := a.State().Postgres
	if before.Accepting {
		// It may have been changed past the REST API, which checks.
		if problems, err := a.pg.ConfigProblems(ctx); err == nil && len(problems) > 0 {
			return fmt.Errorf("%w: PostgreSQL would not start again with its configuration: %s; mend it first (lictor edit-config)",
				api.ErrRefused, strings.Join(problems, "; "))
		}
	}
	if why, err := a.pg.TryStart(ctx, postgres.Changed{}); err == nil && why != "" {
		return fmt.Errorf("%w: PostgreSQL would not start again: %s; mend it first (lictor edit-config)", api.ErrRefused, why)
	}
	switch {
	case replica:
		defer a.rejoinSync(ctx)
		if err := a.leaveSync(ctx); err != nil {
			return err
		}
	case before.Accepting:
		checkpoint := within(ha.UnservedLimit(*a.dynamic.Load()), a.pg.Checkpoint)
		if err := checkpoint(ctx); err != nil {
			a.log.Warn().Err(err).Msg("the checkpoint before the restart failed; its shutdown will take longer")
		}
	}
	done := make(chan error, 1)
	err := a.ask(ctx, func() error {
		if err := a.mayRestart(); err != nil {
			return err
		}
		restart := a.restartPostgres()
		a.startTask(ha.TaskRestart, func(ctx context.Context) error {
			err := restart(ctx)
			done <- err
			return err
		}, nil)
		return nil
	})
	if err != nil {
		return err
	}
	select {
	case err := <-done:
		if errors.Is(err, context.Canceled) {
			return errors.New("the restart was broken off by something more urgent: GET /patroni says what")
		}
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ctx.Done():
		return errStopping
	}
	return a.await(ctx, func(s api.State) bool {
		return s.Task.Kind != string(ha.TaskRestart) && s.Postgres.Accepting && !s.Postgres.StartTime.Equal(before.StartTime)
	})
}

// mayRestart says why PostgreSQL cannot be restarted now.
func (a *Agent) mayRestart() error {
	switch {
	case a.m.stopping:
		return fmt.Errorf("%w: %w", api.ErrRefused, errStopping)
	case a.m.task.kind != ha.TaskNone:
		return fmt.Errorf("%w: %s already in progress", api.ErrRefused, a.m.task.kind)
	case a.m.data.State != ha.DataValid:
		return fmt.Errorf("%w: there is no data directory to start PostgreSQL in", api.ErrRefused)
	case a.m.pg.primary() && !a.m.Tenure.Held(a.clock()) && !a.m.LockIsOurs():
		return fmt.Errorf("%w: it was a primary, and this member does not hold the leader lock", api.ErrRefused)
	}
	return nil
}

func (a *Agent) restartPostgres() func(context.Context) error {
	as := postgres.StartAs{Role: postgres.Primary}
	if !a.m.pg.primary() {
		as.Role = postgres.Replica
		if up, err := a.upstreamOf(a.m.upstream); err == nil {
			as.Upstream = &up
		}
	}
	a.warnOfReplicas()
	limit := a.stopWithin()
	return func(ctx context.Context) error {
		a.beforeStop(ctx, a.scriptLimit)
		// Standbys get the rest of the WAL when it is back.
		if err := a.pg.StopWithin(ctx, limit, func(context.Context, int64) error { return nil }); err != nil {
			return err
		}
		return a.startWithin(ctx, as)
	}
}

// restartReplica restarts a replica whose replay goes on only after that. A synchronous
// standby has its leader let it go first.
func (a *Agent) restartReplica(upstream string) {
	as := postgres.StartAs{Role: postgres.Replica}
	if upstream != "" {
		up, err := a.upstreamOf(upstream)
		if err != nil {
			a.noteAttempt(ha.TaskRestart, err)
			return
		}
		as.Upstream = &up
	}
	scripts, limit := a.beforeStopLimit(), a.stopWithin()
	a.startTask(ha.TaskRestart, func(ctx context.Context) error {
		if why, err := a.pg.TryStart(ctx, postgres.Changed{}); err == nil && why != "" {
			return fmt.Errorf("it would not start again: %s", why)
		}
		if upstream != "" {
			defer a.rejoinSync(ctx)
			if err := a.leaveSync(ctx); err != nil {
				return err
			}
		}
		a.beforeStop(ctx, scripts)
		if err := a.pg.StopWithin(ctx, limit, nil); err != nil {
			return err
		}
		return a.startWithin(ctx, as)
	}, func(err error) {
		if err == nil {
			a.m.upstream = upstream
		}
	})
}

// leaveSync publishes the tag nosync and waits until the leader has taken this
// member out of the key sync, or, as there may be nobody to take its place, for two
// loop_waits, as Patroni does. rejoinSync takes the tag back.
func (a *Agent) leaveSync(ctx context.Context) error {
	if err := a.ask(ctx, func() error { a.m.leavingSync = true; return nil }); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, 2*a.dynamic.Load().LoopWait)
	defer cancel()
	err := a.await(limit, func(s api.State) bool {
		return !slices.ContainsFunc(s.Cluster.Sync.Value.Standbys(), func(n string) bool { return strings.EqualFold(n, a.cfg.Name) })
	})
	if limit.Err() != nil && ctx.Err() == nil {
		a.log.Warn().Msg("the leader does not do without this synchronous standby; commits may wait for it meanwhile")
		return nil
	}
	return err
}

func (a *Agent) rejoinSync(ctx context.Context) {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), backoffMax)
	defer cancel()
	// It fails only when the agent ends, whose tags nobody heeds then.
	_ = a.ask(limit, func() error { a.m.leavingSync = false; return nil })
}

// withNosync are the tags of a member that must not be a synchronous standby for
// now.
func withNosync(tags map[string]any) map[string]any {
	out := map[string]any{"nosync": true}
	maps.Copy(out, tags)
	out["nosync"] = true
	if _, set := out["sync_priority"]; set {
		out["sync_priority"] = 0
	}
	return out
}

// progress is the task under way as the API shows it.
func (a *Agent) progress() api.Progress {
	if a.m.task.kind == ha.TaskNone {
		return api.Progress{}
	}
	return api.Progress{Kind: string(a.m.task.kind), Since: a.m.task.since}
}

// cloned is how far a clone is. Its task writes it, the API reads it.
type cloned struct {
	from         string
	began        time.Time
	bytes, total int64
}

// cloneProgress keeps and, now and then, logs how far a clone is.
func (a *Agent) cloneProgress(from string) func(done, total int64) {
	began := time.Now()
	a.cloned.Store(&cloned{from: from, began: began})
	var last time.Time
	return func(done, total int64) {
		a.cloned.Store(&cloned{from: from, began: began, bytes: done, total: total})
		if time.Since(last) < 5*time.Second {
			return
		}
		last = time.Now()
		a.log.Info().Str("from", from).Int64("bytes", done).Int64("of", total).Msg("cloning")
	}
}
