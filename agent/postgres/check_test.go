package postgres

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// One pair of members for what their settings must obey.
func TestSettings(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	with := func(parameters map[string]any) cluster.Dynamic {
		return cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: parameters}}
	}

	t.Run("a bad change is refused with field and rule", func(t *testing.T) {
		compression := ""
		if a.Major() < 15 {
			compression = "must be on or off"
		}
		for _, test := range []struct {
			parameter string
			value     any
			rule      string // empty: accepted
		}{
			{"work_mem", "8MB", ""},
			{"work_mem", 8192, ""},
			{"Work_Mem", "1.5GB", ""},
			{"work_mem", "8XB", "its unit must be one of B, kB, MB, GB, TB"},
			{"work_mem", "1kB", "must be from 64 to 2147483647 (in units of kB)"},
			{"work_mem", "much", "must be a number"},
			{"shared_buffers", "128MB", ""},
			{"shared_buffers", "8kB", "must be from 16"},
			{"checkpoint_timeout", "5min", ""},
			{"checkpoint_timeout", "5m", "its unit must be one of us, ms, s, min, h, d"},
			{"checkpoint_timeout", "1ms", "must be from 30 to 86400 (in units of s)"},
			{"random_page_cost", "1.1", ""},
			{"random_page_cost", "1.1MB", "must be a number without a unit"},
			{"log_rotation_size", "10MB", ""},
			{"log_file_mode", "0640", ""},
			{"jit", "maybe", "must be on or off"},
			{"jit", true, ""},
			{"constraint_exclusion", true, ""},
			{"constraint_exclusion", "yes", ""},
			{"bytea_output", true, "must be one of"},
			{"log_statement", "n", "must be one of"},
			{"wal_sync_method", "off", "must be one of"},
			{"wal_compression", "pglz", compression},
			{"synchronous_commit", "remote_apply", ""},
			{"synchronous_commit", "sometimes", "must be one of local, remote_write, remote_apply, on, off"},
			{"max_connections", 24, "must be a whole number, at least 25"},
			{"max_connections", "200", ""},
			{"wal_level", "minimal", "must be replica or logical"},
			{"wal_level", "hot_standby", ""}, // replica's name before 9.6
			{"hot_standby", "on", ""},
			{"hot_standby", "off", "is always on"},
			{"port", 5433, "is each member's own"},
			{"work_memm", "8MB", fmt.Sprintf("PostgreSQL %d has no such parameter", a.Major())},
			{"server_version", "9", "cannot be changed"},
			{"pg_stat_statements.max", "many", ""}, // not loaded: nobody knows
			{"log_line_prefix", "a\nb", "must be one line"},
			{"my parameter", "1", "is not the name of a parameter"},
			{"wal_keep_segments", 100, ""}, // of other versions
			{"session_preload_libraries", "auto_explain", ""},
			{"session_preload_libraries", "auto_explain, nosuch", "nobody could log in any more: PostgreSQL says: could not access file"},
			{"local_preload_libraries", "auto_explain", "could not access file \"$libdir/plugins/auto_explain\""},
			{"restore_command", "cp %f %p", ""},
			{"archive_command", strings.Repeat("x", maxCommand+1), map[bool]string{true: "runs no more than the first 1023 bytes"}[a.Major() <= 15]},
		} {
			err := a.CheckChange(ctx, with(nil), with(map[string]any{test.parameter: test.value}))
			switch path := "postgresql.parameters." + test.parameter + ": "; {
			case test.rule == "" && err != nil:
				t.Errorf("%s = %v: %v", test.parameter, test.value, err)
			case test.rule != "" && (err == nil || !strings.HasPrefix(err.Error(), path) || !strings.Contains(err.Error(), test.rule)):
				t.Errorf("%s = %v: %v, want %s", test.parameter, test.value, err, test.rule)
			}
		}
		for _, test := range []struct {
			parameter string
			value     any
			rule      string // empty: accepted
		}{
			{"recovery_min_apply_delay", "5min", ""},
			{"recovery_min_apply_delay", "soon", "must be a number"},
			{"recovery_target_time", "tea", ""},        // it has no effect, which a warning says
			{"primary_conninfo", "host=elsewhere", ""}, // the same
			{"restore_command", "cp %f %p", ""},
		} {
			after := with(nil)
			after.Postgres.RecoveryConf = map[string]any{test.parameter: test.value}
			err := a.CheckChange(ctx, with(nil), after)
			if (err == nil) != (test.rule == "") || err != nil && (!strings.HasPrefix(err.Error(), "postgresql.recovery_conf."+test.parameter) || !strings.Contains(err.Error(), test.rule)) {
				t.Errorf("recovery_conf.%s = %v: %v, want %q", test.parameter, test.value, err, test.rule)
			}
		}
		// What was bad before is not this change's fault, and all problems are told at once.
		if err := a.CheckChange(ctx, with(map[string]any{"jit": "maybe"}), with(map[string]any{"jit": "maybe", "work_mem": "8MB"})); err != nil {
			t.Errorf("an old problem: %v", err)
		}
		after := with(map[string]any{"jit": "maybe", "max_wal_senders": 0})
		after.Postgres.PgHBA = []string{"host all all all scrum"}
		if err := a.CheckChange(ctx, with(nil), after); len(cluster.Problems(err)) != 3 {
			t.Errorf("three problems: %v", err)
		}
	})

	t.Run("what PostgreSQL does not take of its files is told", func(t *testing.T) {
		base, err := os.ReadFile(a.baseConf())
		must(t, err)
		must(t, a.writeFile(a.baseConf(), string(base)+"jit = 'maybe'\n")) // the operator's own file is not the agent's to mend
		a.Apply(with(map[string]any{"work_mem": "6MB"}))
		if !rewrite(ctx, t, a) {
			t.Error("the files have changed")
		}
		observe(ctx, t, a, "the problem", func(State) bool {
			problems, err := a.ConfigProblems(ctx)
			must(t, err)
			return len(problems) > 0 && strings.Contains(problems[0], "jit = 'maybe'")
		})
		must(t, a.writeFile(a.baseConf(), string(base)))
		a.Apply(with(map[string]any{"shared_buffers": "64MB"})) // only with a restart, which is no problem
		rewrite(ctx, t, a)
		if rewrite(ctx, t, a) {
			t.Error("nothing has changed the second time")
		}
		observe(ctx, t, a, "no problem", func(State) bool {
			problems, err := a.ConfigProblems(ctx)
			must(t, err)
			return len(problems) == 0
		})
	})

	t.Run("the agent's own file wins over the shard's", func(t *testing.T) {
		local := *a.local.Load()
		local.Parameters = maps.Clone(local.Parameters)
		local.Parameters["work_mem"], local.Parameters["max_connections"] = "7MB", 500
		a.Reconfigure(local)
		a.Apply(with(map[string]any{"work_mem": "5MB", "maintenance_work_mem": "70MB"}))
		rewrite(ctx, t, a)
		if got := a.parameters(); got["work_mem"] != "7MB" || got["maintenance_work_mem"] != "70MB" {
			t.Errorf("parameters %v", got)
		}
		if got := a.commandLineValues(Primary, Control{})["max_connections"]; got != "100" {
			t.Errorf("max_connections is the shard's alone, and is %s", got)
		}
	})

	// Raised: replicas first. Lowered: the primary first. A replica never runs with
	// less than the WAL that it has to replay needs.
	t.Run("replicas must not have less than the primary", func(t *testing.T) {
		up := upstream(a)
		restart := func(p *Instance, s StartAs) {
			must(t, p.Stop(ctx, Fast))
			must(t, p.Start(ctx, s))
		}
		pending := func(p *Instance, old, value string) {
			observe(ctx, t, p, "pending "+old+" -> "+value, func(s State) bool {
				return s.Accepting && s.PendingRestart["max_connections"] == cluster.PendingChange{OldValue: old, NewValue: value}
			})
		}
		settled := func(p *Instance, value int) {
			observe(ctx, t, p, "nothing pending", func(s State) bool {
				_, pends := s.PendingRestart["max_connections"]
				control, err := p.control(ctx)
				return s.Accepting && !pends && err == nil && control.Minima["max_connections"] == value
			})
		}
		set := func(value int) {
			for _, p := range []*Instance{a, b} {
				p.Apply(with(map[string]any{"max_connections": value}))
				rewrite(ctx, t, p)
			}
		}
		set(120)
		pending(a, "100", "120")
		pending(b, "100", "120")
		restart(b, StartAs{Role: Replica, Upstream: &up})
		observe(ctx, t, b, "the replica has more", func(s State) bool { return s.ReplicationState == Streaming && len(s.PendingRestart) == 0 })
		restart(a, StartAs{Role: Primary})
		settled(a, 120)
		settled(b, 120) // the WAL has told it

		set(100)
		pending(a, "120", "100")
		restart(b, StartAs{Role: Replica, Upstream: &up})
		pending(b, "120", "100") // it had to keep the primary's
		restart(a, StartAs{Role: Primary})
		settled(a, 100)
		observe(ctx, t, b, "the WAL says that less is enough", func(State) bool {
			control, err := b.control(ctx)
			return err == nil && control.Minima["max_connections"] == 100
		})
		pending(b, "120", "100")
		restart(b, StartAs{Role: Replica, Upstream: &up})
		settled(b, 100)
	})

	t.Run("the dynamic configuration is kept with the data", func(t *testing.T) {
		must(t, a.CacheDynamic([]byte(`{"ttl":30}`)))
		if got, err := a.CachedDynamic(); err != nil || string(got) != `{"ttl":30}` {
			t.Errorf("%s, %v", got, err)
		}
	})
}

// What is refused of pg_hba's lines is what PostgreSQL refuses.
func TestLinesOfHBA(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	lines := []string{
		"host all all all ident", "local all all ident", "local all all peer map=x", "hostgssenc all all all md5", "host all all 10.0.0.0 255.0.0 md5",
		`host all all "all" "md5"`, "host all all all ldap ldapserver=x ldapprefix=cn=", "host a,b all all reject",
		"host all all all radius radiusservers=127.0.0.1 radiussecrets=x",

		"host all all all peer", "host all all all cert", "hostnossl all all all cert", "local all all gss", "host all all all ldap",
		"host all all all ldap ldapserver=x", "host all all all radius", "host all all all md5 foo", "local all all peer map",
		"host all all all trust md5", "host all all all reject foo=bar", "host all all all md5 map=x",
		"host all all all scram-sha-256 clientcert=verify-ca", "host all all a,b md5", "host all all 10.0.0.0 ffff:: md5",
	}
	must(t, p.writeFile(p.inData("pg_hba.conf"), strings.Join(lines, "\n")+"\n"))
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	for i, line := range lines {
		var why string
		must(t, conn.QueryRow(ctx, "SELECT COALESCE(string_agg(error, '; '), '') FROM pg_hba_file_rules WHERE line_number = $1", i+1).Scan(&why))
		if errs := cluster.CheckHBA("pg_hba", []string{line}); (len(errs) > 0) != (why != "") {
			t.Errorf("%s: %v, PostgreSQL says %q", line, errs, why)
		}
	}
}
