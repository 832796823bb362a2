package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/agent/printable"
)

// rules are those by which this agent reads the dynamic configuration.
func (a *Agent) rules() cluster.Rules { return a.cfg.Lictor.Rules() }

// inForce is a dynamic configuration as it is written for others to read: Patroni
// 3.0 keeps timings that do not fit together, by patroni-4 what stands there is what
// is in force.
func inForce(cfg config.Config, d cluster.Dynamic, raw map[string]any) map[string]any {
	if cfg.Lictor.Speaks() == config.DefaultCompat {
		return d.WithTiming(raw)
	}
	return raw
}

// initialConfig is the dynamic configuration that this member writes when
// Consul has none: the one that is kept with the data, else bootstrap.dcs.
func (a *Agent) initialConfig() []byte {
	if cached := a.m.cachedConfig; cached != nil {
		return cached
	}
	value, err := cluster.CanonicalJSON(a.cfg.Bootstrap.DCS)
	if err != nil {
		a.m.Once("bootstrap.dcs", "bootstrap.dcs cannot be written as JSON", err.Error())
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
	dynamic, warnings, err := a.rules().ParseJSON(snapshot.Config.Value)
	if err != nil {
		a.log.Error().Err(err).Str("key", a.keys.Config()).Msg("the dynamic configuration is not valid; the last good one stays")
		if !a.m.configKnown || snapshot.Status.Exists() && snapshot.Status.Value.Lictor == nil {
			a.heedStandbyCluster(snapshot.Config.Value)
		}
		return
	}
	a.m.configKnown = true
	for _, w := range warnings {
		a.log.Warn().Stringer("warning", w).Msg("dynamic configuration")
	}
	before := a.m.Dynamic
	a.m.Dynamic = dynamic
	a.dynamic.Store(&dynamic)
	// A shorter ttl cuts the lease when the beat that tells of it is sent.
	if before.Pause != dynamic.Pause || before.TTL != dynamic.TTL {
		a.m.Tenure.BeatSoon() // both are in force when the others know of them
		a.m.ArmGuard()
	}
	a.applyPostgresConfig()
	a.m.configToCache = snapshot.Config.Value
	a.log.Info().Dur("ttl", dynamic.TTL).Dur("loop_wait", dynamic.LoopWait).Dur("retry_timeout", dynamic.RetryTimeout).
		Str("synchronous_mode", string(dynamic.SynchronousMode)).Msg("dynamic configuration applied")
}

// heedStandbyCluster keeps this member from leading where the configuration that is
// not taken may say for good reason that the shard follows another one: no valid one
// of this shard is known, or it is led by Patroni, which does follow.
func (a *Agent) heedStandbyCluster(value []byte) {
	raw, err := cluster.DecodeObject(value)
	if err != nil {
		return
	}
	if standby, _ := raw["standby_cluster"].(map[string]any); len(standby) > 0 {
		a.m.Dynamic.StandbyCluster = standby
		dynamic := a.m.Dynamic
		a.dynamic.Store(&dynamic)
	}
}

// reconfigure makes what can change at run time of the agent's own file take
// effect, and says what of it cannot.
func (a *Agent) reconfigure(cfg config.Config) {
	if a.logging != nil {
		a.logging.Hide(settings.Secrets(cfg))
		if err := a.logging.Set(cfg.Log.Level); err != nil {
			a.log.Error().Err(err).Msg("the log's level stays as it was")
		}
	}
	if changed := a.cfg.NeedsNewAgent(cfg); len(changed) > 0 {
		a.log.Warn().Strs("settings", changed).Msg("these have changed and take effect when the agent is started anew")
	}
	a.cfg.Tags, a.cfg.Log = cfg.Tags, cfg.Log
	a.m.Tags = cfg.Tags
	a.cfg.Postgres.Callbacks = cfg.Postgres.Callbacks
	a.cfg.Postgres.RemoveOnRewindFail, a.cfg.Postgres.RemoveOnDiverged = cfg.Postgres.RemoveOnRewindFail, cfg.Postgres.RemoveOnDiverged
	a.pg.Reconfigure(cfg.Postgres)
	a.m.reloadAsked = true
	a.applyPostgresConfig()
	a.log.Info().Msg("configuration reloaded")
}

// applyPostgresConfig hands PostgreSQL's part to PostgreSQL.
func (a *Agent) applyPostgresConfig() {
	a.pg.Apply(a.m.Dynamic)
	if !a.m.PG.Running || a.m.TaskKind() != ha.TaskNone {
		a.m.rewrite = a.m.PG.Running // when the task is done
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
	ctx, cancel := context.WithTimeout(a.ctx, a.m.Dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		changed, err := a.pg.Rewrite(ctx)
		return func() {
			a.m.rewriting = false
			a.m.reloadAsked = a.m.reloadAsked || changed
			if err != nil {
				a.log.Error().Err(err).Msg("PostgreSQL's configuration could not be written; it stays as it was")
			} else if changed {
				a.checkFiles()
			}
			kick(a.kickPostgres)
		}
	})
}

// checkFiles asks PostgreSQL what it does not take of its new configuration: that
// would keep it from starting the next time. It was written past the REST API,
// which refuses such values.
func (a *Agent) checkFiles() {
	ctx, cancel := context.WithTimeout(a.ctx, a.m.Dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		problems, err := a.pg.ConfigProblems(ctx)
		if why, failed := a.pg.TryStart(ctx, postgres.Changed{}); failed == nil && why != "" && len(problems) == 0 {
			problems, err = []string{why}, nil
		}
		return func() {
			switch {
			case err != nil: // PostgreSQL does not answer, which is told elsewhere
			case len(problems) > 0:
				a.m.Once("settings", "PostgreSQL does not take its new configuration and would not start with it; mend it before the next restart", strings.Join(problems, "; "))
			default:
				a.m.ClearOnce("settings")
			}
		}
	})
}

// warnOfReplicas says before a restart of the primary which replicas would not be
// able to replay its WAL any more: they must not have less of these settings, and so
// are to be restarted first where they are raised.
func (a *Agent) warnOfReplicas() {
	if !a.m.PG.Primary() {
		return
	}
	for name, change := range a.m.PG.Observed.PendingRestart {
		raised, err := strconv.Atoi(change.NewValue)
		if err != nil || !postgres.BindsStandbys(name) {
			continue
		}
		for _, m := range a.m.Snapshot.Members {
			runs, err := strconv.Atoi(m.Value.PendingRestartReason[name].OldValue)
			if m.OK() && m.Value.Name != a.cfg.Name && err == nil && runs < raised {
				a.log.Warn().Str("member", m.Value.Name).Str("parameter", name).Int("runs_with", runs).Int("primary_with", raised).
					Msg("this replica will stop replaying WAL until it is restarted, too: where a parameter is raised, restart replicas first")
			}
		}
	}
}

// checkChange checks what a request would change of PostgreSQL's settings.
func (a *Agent) checkChange(ctx context.Context, old, changed cluster.Dynamic) error {
	ctx, cancel := context.WithTimeout(ctx, changed.RetryTimeout)
	defer cancel()
	return a.pg.CheckChange(ctx, old, changed)
}

// cacheConfig keeps the dynamic configuration with the data, once there are any and
// nobody is at work on them.
func (a *Agent) cacheConfig() {
	value := a.m.configToCache
	if value == nil || a.m.TaskKind() != ha.TaskNone || a.m.Data.State != ha.DataValid {
		return
	}
	a.m.configToCache = nil
	ctx, cancel := context.WithTimeout(a.ctx, a.m.Dynamic.RetryTimeout)
	a.effect(ctx, cancel, func(context.Context) func() {
		err := a.pg.CacheDynamic(value)
		return func() {
			if err != nil {
				a.m.Once("cached configuration", "the dynamic configuration cannot be kept with the data", err.Error())
				return
			}
			a.m.ClearOnce("cached configuration")
		}
	})
}

// recallConfig begins with the dynamic configuration that is kept with the data.
func (a *Agent) recallConfig() {
	cached, err := a.pg.CachedDynamic()
	if err != nil || cached == nil {
		return
	}
	dynamic, _, err := a.rules().ParseJSON(cached)
	if err != nil {
		a.log.Warn().Err(err).Msg("the dynamic configuration that is kept with the data is not valid and is not used")
		a.heedStandbyCluster(cached)
		return
	}
	a.m.configKnown = true
	a.m.cachedConfig, a.m.Dynamic = cached, dynamic
	a.dynamic.Store(&dynamic)
}

// mayRemoveData names the setting that allows to replace a data directory which
// cannot be rewound, empty when none does (I7).
func (a *Agent) mayRemoveData(d cluster.Dynamic) string {
	pg := d.Postgres
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
	a.recallConfig()
	a.pg.Apply(a.m.Dynamic)
	running, err := a.pg.Adopt(ctx)
	if err != nil {
		return "", fmt.Errorf("looking for a running PostgreSQL: %w", err)
	}
	now, seen := a.lookAtData(ctx)
	if !seen {
		return "", fmt.Errorf("looking at the data directory: %w", ctx.Err())
	}
	a.m.Adopt(now, running)
	a.recallTold()
	if !running {
		return "", nil
	}
	limit, cancel := context.WithTimeout(ctx, a.m.Dynamic.RetryTimeout)
	defer cancel()
	state, err := a.pg.Observe(limit)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		a.log.Warn().Err(err).Msg("PostgreSQL runs but cannot be observed yet")
	}
	ask, done := context.WithTimeout(ctx, a.m.Dynamic.RetryTimeout)
	defer done()
	guard, none := a.guard.recall(ask)
	if a.m.AdoptRunning(state, a.pg.Upstream(), guard) {
		a.resumeConfig(guard.Memo.Config)
		session = guard.Memo.Session
	}
	if none {
		a.log.Warn().Msg("no guard has started this PostgreSQL: if the one that is started for it now is killed, no signal ends PostgreSQL; " +
			"restart PostgreSQL through the agent at a convenient moment (POST /restart)")
	}
	// What commits wait for now must go on until the key sync says otherwise.
	a.log.Info().Bool("primary", a.m.PG.Primary()).Msg("PostgreSQL runs already and is taken charge of")
	return session, nil
}

// resumeConfig takes up the dynamic configuration that the guard remembers.
func (a *Agent) resumeConfig(config json.RawMessage) {
	dynamic, _, err := a.rules().ParseJSON(config)
	if len(config) == 0 || err != nil {
		return
	}
	a.m.configKnown = true
	a.m.Dynamic = dynamic
	a.dynamic.Store(&dynamic)
	a.pg.Apply(dynamic)
}

// problems are those that were logged and last, and the values that PostgreSQL refuses.
func (a *Agent) problems() []string {
	all := a.m.Told()
	for _, why := range a.pg.Refused() {
		all = append(all, "PostgreSQL refuses the value of a parameter, which is not used: "+why)
	}
	slices.Sort(all)
	for i := range all {
		all[i] = printable.Short(all[i], mostOfAProblem)
	}
	return all[:min(len(all), mostProblems)]
}

// What is shown of problems at most: how many, and bytes of each.
const (
	mostProblems   = 16
	mostOfAProblem = 500
)

// nameLimit bounds each of the two questions of nameIsFree.
const nameLimit = time.Second

// nameIsFree returns an error when another agent of this shard answers by this one's name:
// with two, the member key would go to and fro, and either's copy of the data would count
// as the one synchronous standby. It is asked before PostgreSQL is started, and nobody who
// cannot be asked holds a start up.
func (a *Agent) nameIsFree(ctx context.Context) error {
	read, cancel := context.WithTimeout(ctx, nameLimit)
	snapshot, err := a.store.Read(read)
	cancel()
	m, found := snapshot.Member(a.cfg.Name)
	if err != nil || !found || !m.OK() || m.Value.APIURL == "" || m.Value.APIURL == a.m.Value().APIURL {
		return nil //nolint:nilerr // the loop reads the shard until that works
	}
	asked, cancel := context.WithTimeout(ctx, nameLimit)
	defer cancel()
	other, err := a.peers.Status(asked, m.Value.APIURL)
	if err != nil || other.Scope != a.cfg.Scope || other.Name != "" && other.Name != a.cfg.Name {
		return nil //nolint:nilerr // it has gone: this member has another address now
	}
	return fmt.Errorf("this agent ends before it starts PostgreSQL: member %q of %s runs already, at %s; give this one another name (setting name)",
		a.cfg.Name, a.cfg.Scope, m.Value.APIURL)
}
