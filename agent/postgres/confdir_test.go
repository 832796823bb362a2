package postgres

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
)

// debian turns a member that was stopped into what pg_createcluster makes: the operator's
// files in a directory of their own, which name each other and the data, beside a
// directory of further ones. It returns the settings with which it goes on.
func debian(t *testing.T, s Settings, p *Instance) Settings {
	t.Helper()
	etc := filepath.Join(filepath.Dir(p.dataDir), "etc", p.name)
	must(t, os.MkdirAll(filepath.Join(etc, "conf.d"), 0o755))
	must(t, os.Remove(p.inData("postgresql.conf")))
	must(t, os.Rename(p.inData("postgresql.base.conf"), filepath.Join(etc, "postgresql.conf")))
	for _, name := range []string{"pg_hba.conf", "pg_ident.conf"} {
		must(t, os.Rename(p.inData(name), filepath.Join(etc, name)))
	}
	conf := "\ndata_directory = '" + p.dataDir + "'\nhba_file = '" + filepath.Join(etc, "pg_hba.conf") + "'\nident_file = '" + filepath.Join(etc, "pg_ident.conf") + "'\n" +
		"external_pid_file = '" + filepath.Join(etc, "pid") + "'\ncluster_name = '15/main'\ninclude_dir = 'conf.d'\n"
	must(t, appendTo(filepath.Join(etc, "postgresql.conf"), conf))
	must(t, os.WriteFile(filepath.Join(etc, "conf.d", "memory.conf"), []byte("work_mem = '7MB'\n"), 0o644))
	must(t, os.Chmod(filepath.Join(etc, "postgresql.conf"), 0o644))
	give(t, p, filepath.Join(filepath.Dir(p.dataDir), "etc"))
	s.Postgres.ConfigDir = etc
	return s
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return f.Close()
}

// shows is what a running PostgreSQL has of parameters.
func shows(ctx context.Context, t *testing.T, p *Instance, names ...string) string {
	t.Helper()
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	var all []string
	for _, name := range names {
		var value string
		must(t, conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&value))
		all = append(all, value)
	}
	return strings.Join(all, " ")
}

// A member whose configuration files are where Debian has them goes on with them; a
// clone, with a directory of its own or without, has what they say; and a member is
// rewound after a crash.
func TestConfigDir(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	a := newInstance(t, s)
	bootstrapped(ctx, t, a)
	a = newInstance(t, debian(t, s, a))
	etc := a.configDir
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	want := filepath.Join(etc, "postgresql.conf") + " " + filepath.Join(etc, "pg_hba.conf") + " shard 7MB"
	if got := shows(ctx, t, a, "config_file", "hba_file", "cluster_name", "work_mem"); got != want {
		t.Errorf("config_file, hba_file, cluster_name, work_mem: %s, want %s", got, want)
	}
	if has(t, a, "postgresql.conf") || has(t, a, "pg_hba.conf") {
		t.Error("configuration files beside the data, which nobody reads")
	}
	if info, err := os.Stat(filepath.Join(etc, "postgresql.conf")); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("postgresql.conf, which Debian's commands read: %v %v", info.Mode(), err)
	}
	// What is configured is written there, and judged there before.
	local := s.Postgres
	local.PgHBA = []string{"local all all trust", "host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"}
	local.Parameters["work_mem"] = "8MB"
	a.Reconfigure(local)
	if changed, err := a.Rewrite(ctx); err != nil || !changed {
		t.Errorf("rewriting the configuration: changed %v, %v", changed, err)
	}
	observe(ctx, t, a, "the new lines are in force", func(State) bool { return shows(ctx, t, a, "work_mem") == "8MB" })
	if why, err := a.TryStart(ctx, Changed{}); why != "" || err != nil {
		t.Errorf("the files as they are: %q %v", why, err)
	}

	// A host that has no such directory yet.
	s = settings(t, dir, "b")
	s.Postgres.ConfigDir = filepath.Join(dir, "new", "b")
	b := newInstance(t, s)
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	u := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &u}))
	observe(ctx, t, b, "streams", func(s State) bool { return s.ReplicationState == Streaming })
	if got, want := shows(ctx, t, b, "config_file", "work_mem"), filepath.Join(s.Postgres.ConfigDir, "postgresql.conf")+" 7MB"; got != want {
		t.Errorf("config_file and work_mem of the clone: %s, want %s", got, want)
	}
	// A member that has its files beside the data.
	c := newInstance(t, settings(t, dir, "c"))
	must(t, c.BaseBackup(ctx, upstream(b), nil))
	must(t, c.Start(ctx, StartAs{Role: Replica, Upstream: &u}))
	observe(ctx, t, c, "streams", func(s State) bool { return s.ReplicationState == Streaming })
	if got, want := shows(ctx, t, c, "config_file", "work_mem"), c.inData("postgresql.conf")+" 7MB"; got != want {
		t.Errorf("config_file and work_mem of the clone with its files beside the data: %s, want %s", got, want)
	}
	must(t, c.Stop(ctx, Fast))

	// Both go their ways; the one that crashed is recovered by itself before its rewind.
	must(t, b.Promote(ctx, 0))
	sql(ctx, t, b, "CREATE TABLE public.other ()")
	must(t, b.Kill(ctx))
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Replica}))
	observe(ctx, t, a, "a replica", func(s State) bool { return s.InRecovery && s.Accepting })
	must(t, a.Promote(ctx, 2))
	must(t, a.Checkpoint(ctx))
	if how, err := b.Rewind(ctx, upstream(a), true); err != nil || how != Rewound {
		t.Fatalf("%s %v", how, err)
	}
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &u}))
	observe(ctx, t, b, "streams again", func(s State) bool { return s.ReplicationState == Streaming })
}

// A new shard's files go to config_dir; of one that is restored the copies do, which a
// backup has of them.
func TestConfigDirOfANewShard(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.ConfigDir = filepath.Join(dir, "etc-a")
	a := newInstance(t, s)
	id := bootstrapped(ctx, t, a)
	must(t, appendTo(a.inConf("postgresql.base.conf"), "\nwork_mem = '9MB'\n"))
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	if got, want := shows(ctx, t, a, "config_file", "work_mem"), a.inConf("postgresql.conf")+" 9MB"; got != want {
		t.Errorf("config_file and work_mem: %s, want %s", got, want)
	}
	for _, name := range configFiles() {
		if has(t, a, name) {
			t.Errorf("%s is beside the data, where nobody reads it", name)
		}
	}
	must(t, a.Stop(ctx, Fast))

	s = settings(t, dir, "b")
	s.Postgres.ConfigDir = filepath.Join(dir, "etc-b")
	b := newInstance(t, s)
	command := "sh -c 'cp -a " + a.dataDir + "/. " + b.dataDir + "'"
	got, err := b.Bootstrap(ctx, config.Bootstrap{Method: "copy", Methods: map[string]any{"copy": map[string]any{"command": command, "no_params": true}}})
	must(t, err)
	if got != id {
		t.Errorf("system identifier %s, want %s", got, id)
	}
	must(t, b.FinishBootstrap())
	must(t, b.Start(ctx, StartAs{Role: Primary}))
	if got, want := shows(ctx, t, b, "config_file", "work_mem"), b.inConf("postgresql.conf")+" 9MB"; got != want {
		t.Errorf("config_file and work_mem of the restored shard: %s, want %s", got, want)
	}
}
