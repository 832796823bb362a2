package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// initialConfig is the dynamic configuration that this member writes when
// Consul has none: bootstrap.dcs.
func (a *Agent) initialConfig() []byte {
	value, err := cluster.CanonicalJSON(a.cfg.Bootstrap.DCS)
	if err != nil {
		a.once("bootstrap.dcs", "bootstrap.dcs cannot be written as JSON", err.Error())
		return []byte("{}")
	}
	return value
}

// applyConfig makes a new dynamic configuration take effect. One that is not
// valid is reported, and the last good one stays.
func (a *Agent) applyConfig(snapshot cluster.Snapshot) {
	if !snapshot.Config.Exists() || snapshot.Config.ModifyIndex == a.m.configIndex {
		return
	}
	a.m.configIndex = snapshot.Config.ModifyIndex
	dynamic, warnings, err := cluster.ParseDynamicJSON(snapshot.Config.Value)
	if err != nil {
		a.log.Error().Err(err).Str("key", a.keys.Config()).Msg("the dynamic configuration is not valid; the last good one stays")
		return
	}
	for _, w := range warnings {
		a.log.Warn().Stringer("warning", w).Msg("dynamic configuration")
	}
	before := a.m.dynamic
	a.m.dynamic = dynamic
	a.dynamic.Store(&dynamic)
	// A shorter ttl cuts the lease when the beat that tells of it is sent.
	if before.Pause != dynamic.Pause || before.TTL != dynamic.TTL {
		a.m.tenure.BeatSoon() // both are in force when the others know of them
		a.armGuard()
	}
	a.applyPostgresConfig()
	a.log.Info().Dur("ttl", dynamic.TTL).Dur("loop_wait", dynamic.LoopWait).Dur("retry_timeout", dynamic.RetryTimeout).
		Str("synchronous_mode", string(dynamic.SynchronousMode)).Msg("dynamic configuration applied")
}

// applyPostgresConfig hands PostgreSQL's part to PostgreSQL.
func (a *Agent) applyPostgresConfig() {
	a.pg.Apply(a.m.dynamic)
	if !a.m.pg.running || a.m.task.kind != ha.TaskNone {
		a.m.rewrite = a.m.pg.running // when the task is done
		return
	}
	a.rewriteConfig()
}

// rewriteConfig writes PostgreSQL's configuration files anew, once at a time.
func (a *Agent) rewriteConfig() {
	if a.m.rewriting {
		a.m.rewrite = true
		return
	}
	a.m.rewrite, a.m.rewriting = false, true
	ctx, cancel := context.WithTimeout(a.ctx, a.m.dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		err := a.pg.Rewrite(ctx)
		return func() {
			a.m.rewriting = false
			if err != nil {
				a.log.Error().Err(err).Msg("PostgreSQL's configuration could not be written; it stays as it was")
			}
			kick(a.kickPostgres)
		}
	})
}

// mayRewind tells whether the configuration allows pg_rewind.
func (a *Agent) mayRewind() bool { return a.pg.UsePgRewind() }

// mayRemoveData names the setting that allows to replace a data directory which
// cannot be rewound, empty when none does (I7).
func (a *Agent) mayRemoveData() string {
	pg := a.m.dynamic.Postgres
	switch {
	case a.cfg.Postgres.RemoveOnRewindFail || pg.RemoveOnRewindFail != nil && *pg.RemoveOnRewindFail:
		return "remove_data_directory_on_rewind_failure"
	case a.cfg.Postgres.RemoveOnDiverged || pg.RemoveOnDiverged != nil && *pg.RemoveOnDiverged:
		return "remove_data_directory_on_diverged_timelines"
	}
	return ""
}

// adopt takes charge of a PostgreSQL that runs already, and looks at the data
// directory, before anything else happens. It returns the Consul session of the
// agent's earlier run, if the guard remembers one.
func (a *Agent) adopt(ctx context.Context) (session string, err error) {
	a.pg.Apply(a.m.dynamic)
	running, err := a.pg.Adopt()
	if err != nil {
		return "", fmt.Errorf("looking for a running PostgreSQL: %w", err)
	}
	a.m.data = a.lookAtData(ctx)
	a.m.pg.wasPrimary = a.m.data.wasPrimary
	a.m.pg.running = running
	if !running {
		return "", nil
	}
	limit, cancel := context.WithTimeout(ctx, a.m.dynamic.RetryTimeout)
	defer cancel()
	state, err := a.pg.Observe(limit)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		a.log.Warn().Err(err).Msg("PostgreSQL runs but cannot be observed yet")
	}
	a.sawPostgres(state, nil, nil)
	ask, done := context.WithTimeout(ctx, a.m.dynamic.RetryTimeout)
	defer done()
	guard := a.guard.recall(ask)
	if a.m.pg.primary() {
		a.m.adopted, a.m.adoptedUntil = a.clock(), guard.until
		session = a.resume(guard)
	}
	if guard.none {
		a.log.Warn().Msg("no guard has started this PostgreSQL: if the one that is started for it now is killed, no signal ends PostgreSQL; " +
			"restart PostgreSQL through the agent at a convenient moment (POST /restart)")
	}
	// What commits wait for now must go on until the key sync says otherwise.
	a.log.Info().Bool("primary", a.m.pg.primary()).Msg("PostgreSQL runs already and is taken charge of")
	return session, nil
}

// resume goes on with the lease of the agent's earlier run, as the guard remembers
// it: without a word to Consul, which may be away.
func (a *Agent) resume(guard recalled) (session string) {
	now, memo := a.clock(), guard.memo
	// The guard has the last word on how long PostgreSQL lives.
	if memo == nil || !now.Before(guard.until) || a.m.tenure.Resume(now, memo.Memo) != nil {
		return ""
	}
	a.m.Snapshot.Status.ModifyIndex = memo.Index
	a.m.syncUncertain = true // the earlier run may have had one under way
	if dynamic, _, err := cluster.ParseDynamicJSON(memo.Config); len(memo.Config) > 0 && err == nil {
		a.m.dynamic = dynamic
		a.dynamic.Store(&dynamic)
		a.pg.Apply(dynamic)
	}
	a.log.Info().Dur("lease_left", a.leaseLeft(a.clock())).Msg("going on with the lease of the agent's earlier run")
	return memo.Session
}

// once logs a problem when it is new or has changed, until clearOnce.
func (a *Agent) once(topic, message, detail string) {
	if a.m.told[topic] == detail {
		return
	}
	a.m.told[topic] = detail
	a.log.Error().Str("detail", detail).Msg(message)
}

func (a *Agent) clearOnce(topic string) {
	if _, told := a.m.told[topic]; told {
		delete(a.m.told, topic)
		a.log.Info().Str("topic", topic).Msg("well again")
	}
}
