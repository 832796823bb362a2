package postgres

import (
	"bytes"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// Names with all that means something in SQL, pg_hba.conf, pgpass, connection strings
// or postgresql.conf mean only themselves: PostgreSQL says so.
func TestNamesInEveryGrammar(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	const replicator, super = `+all, "@f" #x$lictor$'\\:`, `Su per=:ü, #`
	member := func(name string) *Instance {
		s := settings(t, dir, name)
		s.Postgres.Authentication.Replication.Username, s.Postgres.Authentication.Superuser.Username = replicator, super
		s.Postgres.Authentication.Rewind.Username, s.Postgres.Authentication.Rewind.Password = "", ""
		s.Postgres.Parameters["standard_conforming_strings"], s.Postgres.Parameters["idle_session_timeout"] = "off", "1h"
		if binMajor(t, s) < 14 {
			delete(s.Postgres.Parameters, "idle_session_timeout")
		}
		return newInstance(t, s)
	}
	a, b := member("a"), member(`b(1)*;b`)
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	keepSlots(ctx, t, a, b.name)
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	caughtUp(ctx, t, a, b)
	conn, err := a.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	var roles, standby, owner string
	must(t, conn.QueryRow(ctx, `SELECT (SELECT string_agg(u, '|') FROM pg_hba_file_rules, unnest(user_name) u WHERE database = '{replication}' AND u <> 'all'),
		(SELECT application_name FROM pg_stat_replication), current_user`).Scan(&roles, &standby, &owner))
	if roles != replicator || standby != b.name || owner != super {
		t.Errorf("pg_hba.conf lets %q in, the standby is %q, the superuser %q", roles, standby, owner)
	}
	_, err = a.SetSynchronous(ctx, SyncSetting{Names: []string{b.name}})
	must(t, err)
	observe(ctx, t, a, "synchronous", func(s State) bool { return len(s.Standbys) == 1 && s.Standbys[0].SyncState == "sync" })

	// What config.Validate refuses in a member's name, PostgreSQL would change.
	var changed string
	must(t, conn.QueryRow(ctx, "SELECT set_config('application_name', 'dübel', false)").Scan(&changed))
	if changed == "dübel" {
		t.Error("PostgreSQL takes application names that are not ASCII: config refuses them in vain")
	}
	if a.Major() >= 14 { // the agent's session is idle between two looks
		kept, err := a.take(ctx)
		must(t, err)
		defer a.give(kept)
		var idle string
		must(t, kept.QueryRow(ctx, "SHOW idle_session_timeout").Scan(&idle))
		if idle != "0" {
			t.Errorf("the agent's session may be ended after %s", idle)
		}
	}
}

// What a WAL receiver would not get of primary_conninfo is refused.
func TestLongConninfo(t *testing.T) {
	dir := newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.Authentication.Replication.SSLRootCert = "/" + strings.Repeat("long/", 200)
	p := newInstance(t, s)
	must(t, p.makeDataDir())
	err := p.writeConfig(as{role: Replica, upstream: &Upstream{Name: "b", Host: "127.0.0.1", Port: 1}})
	if err == nil || !strings.Contains(err.Error(), "postgresql.authentication.replication: ") || !strings.Contains(err.Error(), "beyond 1023") {
		t.Errorf("%v", err)
	}
}

// What the agent says in the place of the operator, because something else was asked for, is told where the
// operator said otherwise: in the parameters, and in the files that postgresql.conf includes.
func TestToldWhatIsOverridden(t *testing.T) {
	off := map[string]any{"hot_standby_feedback": "off"}
	slots := map[string]any{"reader": map[string]any{"type": "logical", "database": "db", "plugin": "pgoutput"}}
	for name, c := range map[string]struct {
		major int
		local map[string]any
		set   func(d *cluster.Dynamic)
		base  []confSetting
		want  []string
	}{
		"feedback beside slots that PostgreSQL keeps": {major: 17, local: off, set: func(d *cluster.Dynamic) {
			d.Postgres.Parameters = map[string]any{"sync_replication_slots": "on"}
		}, want: []string{`"hot_standby_feedback","reason":"not used: it is on, as sync_replication_slots is`}},
		"feedback beside slots that are copied": {
			major: 15, local: off, set: func(d *cluster.Dynamic) { d.Slots = slots },
			want: []string{`"hot_standby_feedback","reason":"not used: it is on, as replicas have copies`},
		},
		"feedback before there is such a parameter": {major: 16, local: off, set: func(d *cluster.Dynamic) {
			d.Postgres.Parameters = map[string]any{"sync_replication_slots": "on"}
		}},
		"feedback in the included file": {
			major: 17, set: func(d *cluster.Dynamic) {
				d.Postgres.Parameters = map[string]any{"sync_replication_slots": "on"}
			}, base: []confSetting{{Name: "hot_standby_feedback", Value: "off", File: "/base", Line: 7}},
			want: []string{`/base line 7: off is not used: it is on, as sync_replication_slots is`},
		},
		"feedback that is on everywhere": {major: 17, local: map[string]any{"hot_standby_feedback": "ON"}, set: func(d *cluster.Dynamic) {
			d.Postgres.Parameters = map[string]any{"sync_replication_slots": "on"}
		}, base: []confSetting{{Name: "hot_standby_feedback", Value: "true"}}},
		"who commits wait for in the included file": {
			major: 17, set: func(d *cluster.Dynamic) { d.SynchronousMode = cluster.SyncOn },
			base: []confSetting{{Name: "synchronous_standby_names", Value: "theirs", File: "/base", Line: 8}},
			want: []string{`/base line 8: theirs is not used: synchronous_mode is on`},
		},
		"whose slots in the included file": {
			major: 17, set: func(d *cluster.Dynamic) {
				d.SynchronousMode = cluster.SyncOn
				d.Postgres.Parameters = map[string]any{"sync_replication_slots": "on"}
			}, base: []confSetting{{Name: "synchronized_standby_slots", Value: "theirs", File: "/base", Line: 9}},
			want: []string{`/base line 9: theirs is not used: synchronous_mode is on`},
		},
		"what promotes in the included file": {
			major: 15,
			base:  []confSetting{{Name: "promote_trigger_file", Value: "/go", File: "/base", Line: 1}, {Name: "recovery_target_time", Value: "2026-01-01", File: "/base", Line: 2}, {Name: "recovery_target_name", File: "/base", Line: 3}},
			want:  []string{`/base line 1: /go is not used: nothing but the agent promotes`, `/base line 2: 2026-01-01 is not used: nothing but the agent promotes`},
		},
		"the standby leader's restore_command": {major: 17, local: map[string]any{"restore_command": "mine"}, set: func(d *cluster.Dynamic) {
			d.StandbyCluster = cluster.StandbyCluster{Host: "other", RestoreCommand: "theirs"}
		}, want: []string{`"restore_command","reason":"not used on the standby leader: standby_cluster has another one`}},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			p := unwired(c.major, config.Postgres{Parameters: c.local}, cluster.DynamicPostgres{})
			p.dataDir, p.log = newDir(t), zerolog.New(&log)
			if c.set != nil {
				c.set(&p.dynamic)
			}
			for range 2 {
				p.tellSettings()
				p.tellOwn(c.base, nil)
			}
			for _, want := range c.want {
				if strings.Count(log.String(), want) != 1 {
					t.Errorf("%s is told %d times", want, strings.Count(log.String(), want))
				}
			}
			if n := strings.Count(log.String(), "\n"); n != len(c.want) {
				t.Errorf("%d lines: %s", n, log.String())
			}
		})
	}
}

func binMajor(t *testing.T, s Settings) int {
	t.Helper()
	p, err := New(s)
	must(t, err)
	return p.Major()
}

// What is not used as it is given is told, once.
func TestToldWhatIsNotUsed(t *testing.T) {
	dir := newDir(t)
	var log bytes.Buffer
	p := unwired(16, config.Postgres{Parameters: map[string]any{"force_parallel_mode": "on", "wal_keep_segments": 7}}, cluster.DynamicPostgres{
		Parameters: map[string]any{"max_wal_senders": 20, "wal_keep_size": "1GB"},
	})
	p.dataDir, p.syncNames, p.log = dir, `"b"`, zerolog.New(&log)
	p.dynamic.Postgres.Parameters[syncNames] = "theirs"
	p.dynamic.Postgres.Parameters["work_mem"], p.dynamic.Postgres.Parameters["maintenance_work_mem"] = "7MB", "70MB"
	p.dynamic.Postgres.Parameters["restore_command"], p.dynamic.Postgres.RecoveryConf = "cp", map[string]any{"Restore_Command": "get"}
	put(t, p.inData("postgresql.auto.conf"), "max_connections = '500'\nmax_wal_senders = '5'\nport = 7\nwork_mem = 1\n"+
		"WORK_MEM = '5MB'\nmaintenance_work_mem = '70MB'\n")
	auto, err := p.readConf(p.inData("postgresql.auto.conf"))
	must(t, err)
	for range 2 {
		p.tellSettings()
		p.tellOwn([]confSetting{{Name: "max_locks_per_transaction", Value: "64"}, {Name: "max_worker_processes", Value: "16", File: "/base", Line: 3}}, auto)
		p.tellRaised(Replica, Control{Minima: map[string]int{"max_connections": 300}})
	}
	lines := log.String()
	for _, want := range []string{
		`"force_parallel_mode","reason":"not used: PostgreSQL 16 has no such`, `"wal_keep_segments","reason":"not used: wal_keep_size is set`,
		`"synchronous_standby_names","reason":"not used: synchronous_mode`, `postgresql.auto.conf line 1: 500 is not used, 100 is in force`,
		`/base line 3: 16 is not used, 8 is in force`, `raised from 100 to 300`,
		`"postgresql.parameters.restore_command","reason":"not used: postgresql.recovery_conf has another`, `postgresql.auto.conf line 3: not used`, `line 5: 5MB, which ALTER SYSTEM has set on this member alone, wins over 7MB`,
	} {
		if strings.Count(lines, want) != 1 {
			t.Errorf("%s is told %d times", want, strings.Count(lines, want))
		}
	}
	if n := strings.Count(lines, "\n"); n != 9 {
		t.Errorf("%d lines: %s", n, lines)
	}
	if got := p.parameters()["wal_keep_size"]; got != "1GB" {
		t.Errorf("wal_keep_size = %s", got)
	}
}
