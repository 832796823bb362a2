package agent

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/logging"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// dynamicConfig is the configuration that takes effect at run time: the shard's, and what of
// the agent's own file may change. Its methods run on the loop; it gives PostgreSQL what is
// PostgreSQL's.
type dynamicConfig struct {
	*board
	m       *member.Member
	cfg     *config.Config // the loop's
	rules   cluster.Rules  // by which this agent reads it
	pg      *postgres.Instance
	logging *logging.Log
	kick    chan struct{} // has PostgreSQL looked at
	log     zerolog.Logger

	index uint64 // of the key config
	// valid: a valid dynamic configuration of this shard has been read.
	valid bool
	// last is the last valid dynamic configuration that this agent knows of: of Consul, of the
	// guard or kept with the data.
	last []byte
	// toCache is the one that is to be kept there now, nil when it is.
	toCache     []byte
	rewrite     bool // PostgreSQL's configuration is to be written when the task is done
	rewriting   bool
	asking      bool // PostgreSQL is soon asked again of values that it could not be asked of
	reloadAsked bool // the file was read anew, which on_reload is told of
}

// take makes a dynamic configuration the one in force.
func (c *dynamicConfig) take(d cluster.Dynamic) {
	c.valid, c.m.Dynamic = true, d
	c.dynamic.Store(&d)
}

// inForce is a dynamic configuration as it is written for others to read: Patroni
// 3.0 keeps timings that do not fit together, by patroni-4 what stands there is what
// is in force.
func inForce(compat string, d cluster.Dynamic, raw map[string]any) map[string]any {
	if compat == config.DefaultCompat {
		return d.WithTiming(raw)
	}
	return raw
}

// initial is the dynamic configuration that this member writes when Consul has none: the one in
// force, else bootstrap.dcs.
func (c *dynamicConfig) initial() []byte {
	if c.last != nil {
		return c.last
	}
	value, err := cluster.CanonicalJSON(c.cfg.Bootstrap.DCS)
	if err != nil {
		c.m.Failure("bootstrap.dcs", "bootstrap.dcs cannot be written as JSON", err)
		return []byte("{}")
	}
	return value
}

// apply makes a new dynamic configuration take effect. One that is not
// valid is reported, and the last good one stays.
func (c *dynamicConfig) apply(snapshot cluster.Snapshot) {
	if !snapshot.Config.Exists() || snapshot.Config.ModifyIndex == c.index {
		return
	}
	c.index = snapshot.Config.ModifyIndex
	dynamic, warnings, err := c.rules.ParseJSON(snapshot.Config.Value)
	if err != nil {
		c.log.Error().Err(err).Str("key", c.m.Keys.Config()).Msg("the dynamic configuration is not valid; the last good one stays")
		if !c.valid || snapshot.Status.Exists() && snapshot.Status.Value.Lictor == nil {
			c.heedStandbyCluster(snapshot.Config.Value)
		}
		return
	}
	for _, w := range warnings {
		c.log.Warn().Stringer("warning", w).Msg("dynamic configuration")
	}
	before := c.m.Dynamic
	c.take(dynamic)
	// A shorter ttl cuts the lease when the beat that tells of it is sent.
	if before.Pause != dynamic.Pause || before.TTL != dynamic.TTL {
		c.m.LeaseState.BeatSoon() // both are in force when the others know of them
		c.m.ArmGuard()
	}
	c.applyPostgres()
	c.last, c.toCache = snapshot.Config.Value, snapshot.Config.Value
	c.log.Info().Dur("ttl", dynamic.TTL).Dur("loop_wait", dynamic.LoopWait).Dur("retry_timeout", dynamic.RetryTimeout).
		Str("synchronous_mode", string(dynamic.SynchronousMode)).Msg("dynamic configuration applied")
}

// heedStandbyCluster keeps this member from being promoted where the configuration that is
// not taken says that the shard follows another one: no valid one of this shard is known, or
// it is led by Patroni, which does follow.
func (c *dynamicConfig) heedStandbyCluster(value []byte) {
	raw, err := cluster.DecodeObject(value)
	if err != nil {
		return
	}
	if standby := cluster.HeedStandbyCluster(raw); standby.On() {
		c.m.Dynamic.StandbyCluster = standby
		dynamic := c.m.Dynamic
		c.dynamic.Store(&dynamic)
	}
}

// reconfigure makes what can change at run time of the agent's own file take
// effect, and says what of it cannot.
func (c *dynamicConfig) reconfigure(cfg config.Config) {
	if c.logging != nil {
		c.logging.Hide(settings.Secrets(cfg))
		if err := c.logging.Set(cfg.Log.Level); err != nil {
			c.log.Error().Err(err).Msg("the log's level stays as it was")
		}
	}
	if changed := c.cfg.NeedsNewAgent(cfg); len(changed) > 0 {
		c.log.Warn().Strs("settings", changed).Msg("these have changed and take effect when the agent is started anew")
	}
	c.cfg.Tags, c.cfg.Log = cfg.Tags, cfg.Log
	c.m.Retag(cfg.Tags)
	c.cfg.Postgres.Callbacks = cfg.Postgres.Callbacks
	c.cfg.Postgres.RemoveOnRewindFail, c.cfg.Postgres.RemoveOnDiverged = cfg.Postgres.RemoveOnRewindFail, cfg.Postgres.RemoveOnDiverged
	c.pg.Reconfigure(cfg.Postgres)
	c.reloadAsked = true
	c.applyPostgres()
	c.log.Info().Msg("configuration reloaded")
}

// applyPostgres hands PostgreSQL's part to PostgreSQL.
func (c *dynamicConfig) applyPostgres() {
	c.pg.Apply(c.m.Dynamic)
	if !c.m.PG.Running || c.m.TaskKind() != ha.TaskNone {
		c.rewrite = c.m.PG.Running // when the task is done
		return
	}
	c.write()
}

// write writes PostgreSQL's configuration files anew, once at a time.
func (c *dynamicConfig) write() {
	if c.rewriting {
		c.rewrite = true
		return
	}
	c.rewrite, c.rewriting = false, true
	call(c.runner, c.m.Dynamic.RetryTimeout, c.pg.Rewrite, func(changed bool, err error) {
		c.rewriting = false
		c.reloadAsked = c.reloadAsked || changed
		if err != nil {
			c.log.Error().Err(err).Msg("PostgreSQL's configuration could not be written; it stays as it was")
		} else if changed {
			c.checkFiles()
		}
		kick(c.kick)
	})
}

// askAgain has the configuration written anew in a while when PostgreSQL could not be asked of all its values: what it would
// not start with is used until then, and nobody may change anything for months.
func (c *dynamicConfig) askAgain(unasked func() bool) {
	if c.asking || c.rewriting || !c.m.PG.Running || !unasked() {
		return
	}
	c.asking = true
	c.afterwards(c.m.Dynamic.LoopWait, func() {
		c.asking = false
		c.rewrite = c.rewrite || c.m.PG.Running && unasked()
	})
}

// checkFiles asks PostgreSQL what it does not take of its new configuration: that
// would keep it from starting the next time. It was written past the REST API,
// which refuses such values.
func (c *dynamicConfig) checkFiles() {
	call(c.runner, c.m.Dynamic.RetryTimeout, func(ctx context.Context) ([]string, error) {
		problems, err := c.pg.ConfigProblems(ctx)
		if why, failed := c.pg.TryStart(ctx, postgres.Changed{}); failed == nil && why != "" && len(problems) == 0 {
			return []string{why}, nil
		}
		return problems, err
	}, func(problems []string, err error) {
		if err == nil { // else PostgreSQL does not answer, which is told elsewhere
			c.m.Problem("settings", "PostgreSQL does not take its new configuration and would not start with it; mend it before the next restart", strings.Join(problems, "; "))
		}
	})
}

// warnOfReplicas says before a restart of the primary which replicas would not be
// able to replay its WAL any more: they must not have less of these settings, and so
// are to be restarted first where they are raised.
func (c *dynamicConfig) warnOfReplicas() {
	if !c.m.PG.Primary() {
		return
	}
	for name, change := range c.m.PG.Observed.PendingRestart {
		raised, err := strconv.Atoi(change.NewValue)
		if err != nil || !postgres.BindsStandbys(name) {
			continue
		}
		for _, m := range c.m.Snapshot.Members {
			runs, err := strconv.Atoi(m.Value.PendingRestartReason[name].OldValue)
			if m.OK() && m.Value.Name != c.m.Name && err == nil && runs < raised {
				c.log.Warn().Str("member", m.Value.Name).Str("parameter", name).Int("runs_with", runs).Int("primary_with", raised).
					Msg("this replica will stop replaying WAL until it is restarted, too: where a parameter is raised, restart replicas first")
			}
		}
	}
}

// checkChange checks what a request would change of PostgreSQL's settings.
func (c *dynamicConfig) checkChange(ctx context.Context, old, changed cluster.Dynamic) error {
	ctx, cancel := context.WithTimeout(ctx, changed.RetryTimeout)
	defer cancel()
	return c.pg.CheckChange(ctx, old, changed)
}

// cache keeps the dynamic configuration with the data, once there are any and
// nobody is at work on them.
func (c *dynamicConfig) cache() {
	value := c.toCache
	if value == nil || c.m.TaskKind() != ha.TaskNone || c.m.Data.State != ha.DataValid {
		return
	}
	c.toCache = nil
	order(c.runner, c.m.Dynamic.RetryTimeout, func(context.Context) error { return c.pg.CacheDynamic(value) }, func(err error) {
		c.m.Failure("cached configuration", "the dynamic configuration cannot be kept with the data", err)
	})
}

// recall begins with the dynamic configuration that is kept with the data.
func (c *dynamicConfig) recall() {
	cached, err := c.pg.CachedDynamic()
	if err != nil || cached == nil {
		return
	}
	dynamic, _, err := c.rules.ParseJSON(cached)
	if err != nil {
		c.log.Warn().Err(err).Msg("the dynamic configuration that is kept with the data is not valid and is not used")
		c.heedStandbyCluster(cached)
		return
	}
	c.last = cached
	c.take(dynamic)
}

// mayRemoveData names the setting that allows to replace a data directory which
// cannot be rewound, empty when none does (I7).
func (c *dynamicConfig) mayRemoveData(d cluster.Dynamic) string {
	own, pg := c.cfg.Postgres, d.Postgres
	switch {
	case own.RemoveOnRewindFail || pg.RemoveOnRewindFail != nil && *pg.RemoveOnRewindFail:
		return "remove_data_directory_on_rewind_failure"
	case own.RemoveOnDiverged || pg.RemoveOnDiverged != nil && *pg.RemoveOnDiverged:
		return "remove_data_directory_on_diverged_timelines"
	}
	return ""
}

// resume takes up the dynamic configuration that the guard remembers.
func (c *dynamicConfig) resume(config json.RawMessage) {
	dynamic, _, err := c.rules.ParseJSON(config)
	if len(config) == 0 || err != nil {
		return
	}
	c.last = config
	c.take(dynamic)
	c.pg.Apply(dynamic)
}
