package postgres

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// The agent connects through the socket that PostgreSQL has, whichever layer names its
// directory, also after a change that waits for a restart.
func TestUnixSocketOfEveryLayer(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.UseUnixSocket = true
	s.Postgres.PgHBA = []string{"local all all scram-sha-256", "host all all all reject"}
	delete(s.Postgres.Parameters, "unix_socket_directories")
	p := newInstance(t, s)
	sockets := map[string]string{}
	for _, name := range []string{"dynamic 1", "dynamic2", "base"} {
		sockets[name] = filepath.Join(dir, name)
		must(t, os.Mkdir(sockets[name], 0o777))
		must(t, os.Chmod(sockets[name], 0o777))
	}
	set := func(value any) {
		p.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: map[string]any{"unix_socket_directories": value}}})
	}
	answers := func(ctx context.Context, p *Instance, in string) {
		t.Helper()
		if got := p.address(); got != sockets[in] {
			t.Errorf("connects to %s, want %s", got, sockets[in])
		}
		conn, err := p.dedicated(ctx)
		must(t, err)
		hangUpOn(conn)
	}
	set(`"` + sockets["dynamic 1"] + `"`)
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	answers(ctx, p, "dynamic 1")
	set(sockets["dynamic2"]) // in force after a restart
	rewrite(ctx, t, p)
	answers(ctx, p, "dynamic 1")
	again, err := New(s)
	must(t, err)
	if adopted, err := again.Adopt(ctx); err != nil || !adopted {
		t.Fatal(adopted, err)
	}
	answers(ctx, again, "dynamic 1")
	must(t, p.Stop(ctx, Fast))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	answers(ctx, p, "dynamic2")
	must(t, p.Stop(ctx, Fast))
	set(nil)
	put(t, p.inData("postgresql.base.conf"), "unix_socket_directories = '"+sockets["base"]+"'\n")
	readable(t, p.inData("postgresql.base.conf"))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	answers(ctx, p, "base")
	for list, want := range map[string][]string{
		"/a, /b c ,/d": {"/a", "/b c", "/d"}, `"/a, ""b""" , /c`: {`/a, "b"`, "/c"}, "": nil, " @x": {"@x"},
	} {
		if got := config.SplitDirectories(list); !slices.Equal(got, want) {
			t.Errorf("%s: %q", list, got)
		}
	}
}

// Where postgresql.database names another one, no database postgres is needed.
func TestWithoutTheDatabasePostgres(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	member := func(name string) *Instance {
		s := settings(t, dir, name)
		s.Postgres.Database = `the "App's"`
		s.Postgres.Authentication.Rewind.Username = "" // the superuser rewinds
		return newInstance(t, s)
	}
	a, b := member("a"), member("b")
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, a, "DROP DATABASE postgres")
	keepSlots(ctx, t, a, "b")
	must(t, b.BaseBackup(ctx, upstream(a), func(int64, int64) {}))
	follow(ctx, t, b, a)
	caughtUp(ctx, t, a, b)
	if err := b.Answers(ctx, upstream(a), true, ""); err != nil {
		t.Error("the primary is not reachable", err)
	}
	must(t, b.Promote(ctx, 0))
	sql(ctx, t, a, "CREATE TABLE public.only_here AS SELECT generate_series(1, 1000)")
	must(t, a.Stop(ctx, Fast))
	outcome, err := a.Rewind(ctx, upstream(b), true)
	if err != nil || outcome != Rewound {
		t.Errorf("%s %v", outcome, err)
	}
	follow(ctx, t, a, b)
}
