package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// errStopping is what a request gets that the agent no longer carries out.
var errStopping = member.ErrStopping

// Restart restarts PostgreSQL in place (api.Node). The leader keeps its lease and
// beats meanwhile, and makes a checkpoint before, so that the one at the shutdown
// has little left to write; a synchronous standby has its leader let it go first, so
// that no commit waits for it.
func (a *Agent) Restart(ctx context.Context) error {
	replica := false
	if err := a.hear(ctx, func(done func(error)) {
		replica = !a.m.PG.Primary()
		done(a.m.MayRestart())
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
		if err := a.hear(ctx, func(done func(error)) { a.m.LeaveSync(nil, done) }); err != nil {
			return err
		}
	case before.Accepting:
		limit, cancel := context.WithTimeout(ctx, ha.UnservedLimit(*a.dynamic.Load()))
		err := a.pg.Checkpoint(limit)
		cancel()
		if err != nil {
			a.log.Warn().Err(err).Msg("the checkpoint before the restart failed; its shutdown will take longer")
		}
	}
	err := a.hear(ctx, func(done func(error)) {
		a.warnOfReplicas()
		a.m.Restart(done)
	})
	if errors.Is(err, member.ErrBroken) {
		return errors.New("the restart was broken off by something more urgent: GET /patroni says what")
	}
	if err != nil {
		return err
	}
	return a.await(ctx, func(s api.State) bool {
		return s.Task.Kind != string(ha.TaskRestart) && s.Postgres.Accepting && !s.Postgres.StartTime.Equal(before.StartTime)
	})
}

// rejoinSync lets this standby be waited for again.
func (a *Agent) rejoinSync(ctx context.Context) {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), rejoinLimit)
	defer cancel()
	// It fails only when the agent ends, whose tags nobody heeds then.
	_ = a.ask(limit, func() error { a.m.LeavingSync = false; return nil })
}

// rejoinLimit bounds how long a request waits for the loop when it is over.
const rejoinLimit = 10 * time.Second

// Reinitialize replaces this replica's data directory by a new clone, as the
// operator asked (api.Node). It returns when that has begun: the member's state
// says so by then.
func (a *Agent) Reinitialize(ctx context.Context, r api.ReinitRequest) error {
	return a.hear(ctx, func(done func(error)) {
		err := a.m.Reinitialize(r.FromLeader, r.Force)
		if err == nil {
			a.show(a.m.Reason)
		}
		done(err)
	})
}

// progress is the task under way as the API shows it.
func (a *Agent) progress() api.Progress {
	if a.m.TaskKind() == ha.TaskNone {
		return api.Progress{}
	}
	return api.Progress{Kind: string(a.m.TaskKind()), Since: a.m.TaskSince()}
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
