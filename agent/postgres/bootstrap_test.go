package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// What a new shard is made with is there, works over TCP with scram, and no
// password was written down anywhere, however much PostgreSQL logs.
func TestBootstrap(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.Parameters["log_statement"] = "all"
	s.Postgres.Parameters["log_min_duration_statement"] = 0
	s.Postgres.Authentication.Superuser.Password += strings.Repeat("long", 40)
	p := newInstance(t, s)
	p.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: map[string]any{"max_connections": 55, "log_min_error_statement": "debug5"}}})
	b := bootstrapOptions()
	b.Users = map[string]config.BootstrapUser{"AppUser": {Password: secret + "app", Options: []string{"createdb"}}}
	b.PgHBA = []string{"host all all 127.0.0.1/32 scram-sha-256", "host replication replicator 127.0.0.1/32 scram-sha-256"}
	hook := filepath.Join(dir, "hook")
	b.PostBootstrap = "/bin/sh -c 'echo \"$0 $PGOPTIONS\" > " + hook + "'"
	id, err := p.Bootstrap(ctx, b)
	must(t, err)
	if d, err := p.DataDir(ctx); err != nil || d.State != Bootstrapped || d.Control.SystemIdentifier != id {
		t.Errorf("before Consul knows the shard: %+v %v", d, err)
	}
	must(t, p.FinishBootstrap())
	if _, err := os.Stat(p.stateFile("pwfile")); err == nil {
		t.Error("initdb's password file was left")
	}
	content, err := os.ReadFile(hook)
	must(t, err)
	if got := string(content); !strings.Contains(got, "dbname=postgres") || strings.Contains(got, "s3cr") || !strings.Contains(got, "synchronous_commit=local") {
		t.Errorf("post_bootstrap was given %s", got)
	}

	must(t, p.Start(ctx, StartAs{Role: Primary}))
	auth := p.local.Load().Authentication
	for _, role := range []config.PgUser{auth.Superuser, auth.Rewind, {Username: "AppUser", Password: secret + "app"}} {
		conn, err := p.connect(ctx, "127.0.0.1", p.port, role, "postgres", "test")
		if err != nil {
			t.Errorf("%s: %v", role.Username, err)
			continue
		}
		hangUpOn(conn)
		role.Password += "x"
		if conn, err := p.connect(ctx, "127.0.0.1", p.port, role, "postgres", "test"); err == nil {
			hangUpOn(conn)
			t.Errorf("%s: logged in with another password", role.Username)
		} else if strings.Contains(err.Error(), "s3cr") {
			t.Errorf("%s: the password is in the error", role.Username)
		}
	}
	if got, err := p.identify(ctx, upstream(p)); err != nil || got != id {
		t.Errorf("replication role: %s %v", got, err)
	}
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	for query, want := range map[string]string{
		"SELECT current_setting('pg_stat_statements.max')":                                        "77",
		"SELECT current_setting('max_connections')":                                               "55",
		"SELECT current_setting('cluster_name')":                                                  "shard",
		"SELECT current_setting('data_checksums')":                                                "on",
		"SELECT string_agg(DISTINCT left(rolpassword, 13), ',') FROM pg_authid WHERE rolcanlogin": "SCRAM-SHA-256",
		"SELECT rolcreatedb::text FROM pg_authid WHERE rolname = 'AppUser'":                       "true",
		`SELECT has_function_privilege('Rewinder', 'pg_read_binary_file(text)', 'EXECUTE')::text || rolsuper
		 FROM pg_authid WHERE rolname = 'Rewinder'`: "truefalse",
	} {
		var got string
		if err := conn.QueryRow(ctx, query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %q %v", query, got, err)
		}
	}
	noSecrets(t, dir, p)
}

func TestBootstrapRefusals(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*config.Bootstrap)
		want   string
	}{
		"custom method":     {func(b *config.Bootstrap) { b.Method = "clone" }, "bootstrap.clone.command"},
		"option of our own": {func(b *config.Bootstrap) { b.InitDB = []any{"nosync"} }, "nosync"},
		"initdb fails":      {func(b *config.Bootstrap) { b.InitDB = []any{map[string]any{"encoding": "no-such"}} }, "no-such"},
		"bad role option": {func(b *config.Bootstrap) {
			b.Users = map[string]config.BootstrapUser{"x": {Password: secret, Options: []string{"superuser; drop"}}}
		}, "bootstrap.users.x.options"},
		"post_bootstrap fails": {func(b *config.Bootstrap) { b.PostBootstrap = "/bin/sh -c 'echo the reason >&2; exit 3'" }, "the reason"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, dir := within(t), newDir(t)
			p := newInstance(t, settings(t, dir, "a"))
			b := bootstrapOptions()
			test.change(&b)
			_, err := p.Bootstrap(ctx, b)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "s3cr") {
				t.Errorf("%v", err)
			}
			must(t, p.Kill(ctx))
			// Whatever was made is known as ours, and makes room.
			d, err := p.DataDir(ctx)
			must(t, err)
			if d.State == Incomplete {
				must(t, p.DiscardIncomplete(ctx))
			}
			if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
				t.Errorf("after: %+v %v", d, err)
			}
		})
	}
}

func TestProgramsMissing(t *testing.T) {
	dir := newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.BinDir = dir
	if _, err := New(s); err == nil || !strings.Contains(err.Error(), "postgresql.bin_dir") {
		t.Errorf("%v", err)
	}
	for text, want := range map[string]int{"postgres (PostgreSQL) 15.20 (Debian 15.20-0)": 15, "postgres (PostgreSQL) 18beta1": 18, "postgres (PostgreSQL) 11.2": 0, "x": 0} {
		if got, err := parseMajor(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("%s: %d %v", text, got, err)
		}
	}
	if _, _, err := splitListen("nowhere"); err == nil {
		t.Error("listen without a port is taken")
	}
	for listen, want := range map[string]string{
		"127.0.0.1, [::1]:5432": "127.0.0.1,::1", "[::1]:5432": "::1", "::1:5432": "::1", "[::1], db1 ,*:5432": "::1,db1,*", "127.0.0.1,::1:5432": "127.0.0.1,::1",
		"fe80::1%lo:5432": "fe80::1%lo",
	} {
		if hosts, port, err := splitListen(listen); hosts != want || port != 5432 || err != nil {
			t.Errorf("%s: %s %d %v", listen, hosts, port, err)
		}
	}
	for hosts, want := range map[string]string{"*": "127.0.0.1", "10.0.0.1,127.0.0.1": "127.0.0.1", "::": "::1", "10.0.0.1": "10.0.0.1"} {
		if got := localHost(hosts); got != want {
			t.Errorf("%s: %s", hosts, got)
		}
	}
}
