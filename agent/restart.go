package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/backup"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// errStopping is what a request gets that the agent no longer carries out.
var errStopping = member.ErrStopping

// Restart restarts PostgreSQL in place (api.Node). The leader keeps its lease and
// beats meanwhile, and makes a checkpoint before, so that the one at the shutdown
// has little left to write; a synchronous standby has its leader let it go first, so
// that no commit waits for it.
func (n *node) Restart(ctx context.Context) error {
	replica := false
	if err := n.hear(ctx, func(done func(error)) {
		replica = !n.m.PG.Primary()
		done(n.m.MayRestart())
	}); err != nil {
		return err
	}
	before := n.State().Postgres
	if before.Accepting {
		// It may have been changed past the REST API, which checks.
		if problems, err := n.pg.ConfigProblems(ctx); err == nil && len(problems) > 0 {
			return fmt.Errorf("%w: PostgreSQL would not start again with its configuration: %s; mend it first (lictor edit-config)",
				api.ErrRefused, strings.Join(problems, "; "))
		}
	}
	if why, err := n.pg.TryStart(ctx, postgres.Changed{}); err == nil && why != "" {
		return fmt.Errorf("%w: PostgreSQL would not start again: %s; mend it first (lictor edit-config)", api.ErrRefused, why)
	}
	switch {
	case replica:
		defer n.rejoinSync(ctx)
		if err := n.hear(ctx, func(done func(error)) { n.m.LeaveSync(nil, done) }); err != nil {
			return err
		}
	case before.Accepting:
		limit, cancel := context.WithTimeout(ctx, ha.UnservedLimit(*n.dynamic.Load()))
		err := n.pg.Checkpoint(limit)
		cancel()
		if err != nil {
			n.log.Warn().Err(err).Msg("the checkpoint before the restart failed; its shutdown will take longer")
		}
	}
	err := n.hear(ctx, func(done func(error)) {
		n.conf.warnOfReplicas()
		n.m.Restart(done)
	})
	if errors.Is(err, member.ErrBroken) {
		return errors.New("the restart was broken off by something more urgent: GET /patroni says what")
	}
	if err != nil {
		return err
	}
	return n.await(ctx, func(s api.State) bool {
		return s.Task.Kind != string(ha.TaskRestart) && s.Postgres.Accepting && !s.Postgres.StartTime.Equal(before.StartTime)
	})
}

// rejoinSync lets this standby be waited for again.
func (n *node) rejoinSync(ctx context.Context) {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), rejoinLimit)
	defer cancel()
	// It fails only when the agent ends, whose tags nobody heeds then.
	_ = n.ask(limit, func() error { n.m.RejoinSync(); return nil })
}

// rejoinLimit bounds how long a request waits for the loop when it is over.
const rejoinLimit = 10 * time.Second

// Reinitialize replaces this replica's data directory by a new clone, as the
// operator asked (api.Node). It returns when that has begun: the member's state
// says so by then.
func (n *node) Reinitialize(ctx context.Context, r api.ReinitRequest) error {
	return n.hear(ctx, func(done func(error)) {
		err := n.m.Reinitialize(r.FromLeader, r.Force)
		if err == nil {
			n.show()
		}
		done(err)
	})
}

// Restore puts the shard back to an earlier moment (api.Node). What lictor restore refuses is
// refused here, too: somebody else may ask, or much later than it has looked.
func (n *node) Restore(ctx context.Context, r api.RestoreRequest) error {
	if n.backups.Stanza == "" {
		return fmt.Errorf("%w: lictor.backup.stanza is not set", api.ErrRefused)
	}
	if err := n.hear(ctx, func(done func(error)) { done(n.m.MayRestore()) }); err != nil {
		return err
	}
	plan, err := n.planRestore(ctx, r)
	if err != nil {
		return fmt.Errorf("%w: %w", api.ErrRefused, err)
	}
	err = n.hear(ctx, func(done func(error)) {
		n.m.RestoreTo(pg.Restore{Target: r.Target, Label: r.Label, Timeline: plan.Line.Timeline}, done)
	})
	if err == nil || errors.Is(err, api.ErrRefused) {
		return err
	}
	if undone := n.restoreUndone(ctx); undone != nil {
		err = fmt.Errorf("%w; %w", err, undone)
	}
	return err
}

// undoneLimit bounds the wait for the end of a restore that is undone: its programs are killed,
// directories are renamed, and Consul is told.
const undoneLimit = time.Minute

// restoreUndone waits until a restore that was broken off is undone. It may have come to its
// end instead: api.ErrRestored.
func (n *node) restoreUndone(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, undoneLimit)
	defer cancel()
	if err := n.await(limit, func(s api.State) bool { return !s.RestoreUnfinished }); err != nil {
		return fmt.Errorf("%w: %w", api.ErrNotUndone, err)
	}
	return n.ask(limit, func() error {
		if n.m.Restored {
			return api.ErrRestored
		}
		return nil
	})
}

// planRestore looks whether a restore is possible, and touches nothing.
func (n *node) planRestore(ctx context.Context, r api.RestoreRequest) (backup.Plan, error) {
	dir, err := n.pg.RestoreDir()
	if err != nil {
		return backup.Plan{}, err
	}
	cfg, state := n.backups.InForce(), n.State().Postgres
	repository := backup.Repository{Stanza: cfg.Stanza, Output: func(ctx context.Context, args ...string) ([]byte, error) {
		return n.pg.Output(ctx, backup.QuestionLimit, "lictor.backup.command", cfg.Command, args...)
	}}
	plan, err := repository.Plan(ctx, backup.Wanted{Target: r.Target, Label: r.Label, System: state.SystemIdentifier, Timeline: state.Timeline, Dir: dir})
	if err != nil {
		return plan, err
	}
	if r.Timeline != 0 && r.Timeline != plan.Line.Timeline {
		return plan, fmt.Errorf("timeline: the shard was on %d at %s, not on %d", plan.Line.Timeline, backup.TargetText(r.Target), r.Timeline)
	}
	_, err = repository.Reaches(ctx, plan)
	return plan, err
}

// upgradeCheckLimit bounds a check: pg_upgrade asks each database of the cluster several times.
const upgradeCheckLimit = 30 * time.Minute

// CheckUpgrade tries whether this member's data could become those of a later major version
// (api.Node).
func (n *node) CheckUpgrade(ctx context.Context, to int) (pg.UpgradeCheck, error) {
	select { // its directory has one name
	case n.checkingUpgrade <- struct{}{}:
		defer func() { <-n.checkingUpgrade }()
	default:
		return pg.UpgradeCheck{}, api.ErrConflict
	}
	state := n.State()
	switch {
	case !state.Postgres.Accepting:
		return pg.UpgradeCheck{}, fmt.Errorf("%w: PostgreSQL does not serve, and is looked at while it does", api.ErrRefused)
	case state.Task.Kind != "":
		return pg.UpgradeCheck{}, fmt.Errorf("%w: %s in progress", api.ErrRefused, state.Task.Kind)
	}
	ctx, cancel := context.WithTimeout(ctx, upgradeCheckLimit)
	defer cancel()
	n.log.Info().Int("to", to).Msg("checking for a major upgrade")
	found, err := n.pg.CheckUpgrade(ctx, to, n.upgradeBinDir)
	if n.dynamic.Load().StandbyCluster.On() {
		found.Problems = append(found.Problems, "this is a standby shard (standby_cluster): physical replication cannot follow another major version; make it anew after the other site's upgrade")
	}
	return found, err
}

// Upgrade makes the shard's data those of a later major version (api.Node).
func (n *node) Upgrade(ctx context.Context, to int) error {
	return n.hear(ctx, func(done func(error)) { n.m.Upgrades.To(to, done) })
}

// Analyze makes what statistics are missing (api.Node).
func (n *node) Analyze(ctx context.Context) error { return n.pg.Analyze(ctx) }

// CancelRestore has a restore that is under way undone (api.Node).
func (n *node) CancelRestore(ctx context.Context) error {
	err := n.ask(ctx, func() error {
		if !n.m.CancelRestore() {
			return api.ErrNone
		}
		n.show() // or the state of before would pass for the end of it
		return nil
	})
	if err != nil {
		return err
	}
	return n.restoreUndone(ctx)
}
