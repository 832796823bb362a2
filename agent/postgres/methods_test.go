package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
)

// getDatadir is the beginning of scripts that want --datadir and --connstring.
const getDatadir = `printf '%s\n' "$@" > "$0.args"
for a in "$@"; do case $a in --datadir=*) d=${a#*=};; --connstring=*) c=${a#*=};; esac; done
`

func argsOf(t *testing.T, script string) []string {
	t.Helper()
	content, err := os.ReadFile(script + ".args")
	must(t, err)
	return strings.Split(strings.TrimSpace(string(content)), "\n")
}

// A new shard and its replicas, made by the operator's own scripts.
func TestMethods(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	source := newInstance(t, settings(t, dir, "backup"))
	id := bootstrapped(ctx, t, source)
	must(t, source.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, source, "CREATE TABLE public.kept AS SELECT 42 AS answer")
	must(t, source.Stop(ctx, Fast))
	copyBackup := writeScript(t, dir, "restore", getDatadir+`cp -a "`+source.dataDir+`/." "$d"; mv "$d/pg_hba.conf" "$d/pg_hba.conf.backup"`)

	a := newInstance(t, settings(t, dir, "a"))
	custom := func(method map[string]any) config.Bootstrap {
		return config.Bootstrap{Method: "restore", Methods: map[string]any{"restore": method}}
	}

	t.Run("bootstrap: what is there is left alone", func(t *testing.T) {
		other := newInstance(t, settings(t, dir, "other"))
		must(t, os.Mkdir(other.dataDir, 0o755)) //nolint:gosec // somebody else's
		must(t, os.WriteFile(filepath.Join(other.dataDir, "precious"), nil, 0o600))
		if _, err := other.Bootstrap(ctx, custom(map[string]any{"command": copyBackup})); err == nil || !strings.Contains(err.Error(), "is not empty") {
			t.Errorf("%v", err)
		}
		if err := other.MakeReplica(ctx, nil, id, nil); err == nil {
			t.Error("a replica was made in it")
		}
		if entries, err := os.ReadDir(other.dataDir); err != nil || len(entries) != 1 {
			t.Errorf("%v %v", entries, err)
		}
	})

	t.Run("bootstrap: a command that fails, or leaves nothing", func(t *testing.T) {
		for body, want := range map[string]string{
			"echo no such backup >&2; exit 7": "bootstrap restore: exit status 7: no such backup",
			"exit 0":                          "left no PostgreSQL data directory",
		} {
			if _, err := a.Bootstrap(ctx, custom(map[string]any{"command": writeScript(t, dir, "failing", body)})); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
			if d, err := a.DataDir(ctx); err != nil || d.State != Empty && d.State != Incomplete {
				t.Errorf("%+v %v", d, err)
			} else if d.State == Incomplete {
				must(t, a.DiscardIncomplete(ctx))
			}
		}
	})

	t.Run("bootstrap from a backup, with recovery", func(t *testing.T) {
		b := custom(map[string]any{
			"command": copyBackup + " 'two words'", "test-argument": "test-value",
			"recovery_conf": map[string]any{"restore_command": "/bin/false %f %p", "recovery_target_timeline": "latest"},
		})
		b.PgHBA = []string{"host all somebody 127.0.0.1/32 reject"}
		hook := filepath.Join(dir, "hook")
		b.PostBootstrap = "/bin/sh -c 'echo \"$0\" > " + hook + "'"
		got, err := a.Bootstrap(ctx, b)
		must(t, err)
		if got != id {
			t.Errorf("system identifier %s, want that of the backup, %s", got, id)
		}
		want := []string{"two words", "--datadir=" + a.dataDir, "--scope=shard", "--test-argument=test-value"}
		if args := argsOf(t, copyBackup); !slices.Equal(args, want) {
			t.Errorf("arguments %q, want %q", args, want)
		}
		if !strings.Contains(awaitFile(ctx, t, hook), "dbname=postgres") {
			t.Error("post_bootstrap was not called with a connection string")
		}
		// It is ours to clear away until Consul knows the shard, though the cluster is old.
		if d, err := a.DataDir(ctx); err != nil || d.State != Bootstrapped || d.Control.SystemIdentifier != id {
			t.Errorf("before Consul knows the shard: %+v %v", d, err)
		}
		must(t, a.FinishBootstrap())
		must(t, a.Start(ctx, StartAs{Role: Primary}))
		s := observe(ctx, t, a, "a primary on a timeline of its own", func(s State) bool { return s.Accepting && !s.InRecovery && s.Timeline == 2 })
		if s.SystemIdentifier != id {
			t.Errorf("%+v", s)
		}
		sql(ctx, t, a, "SELECT 1 / count(*) FROM public.kept")
		sql(ctx, t, a, "SELECT 1 / count(*) FROM pg_hba_file_rules WHERE user_name = '{somebody}' AND auth_method = 'reject'")
	})

	up := upstream(a)
	replica := func(t *testing.T, name string, methods ...string) *Instance {
		t.Helper()
		s := settings(t, dir, name)
		s.Postgres.CreateReplica = methods
		s.Postgres.Methods = map[string]any{
			"junk":    map[string]any{"command": writeScript(t, dir, "junk", getDatadir+`touch "$d/junk"; exit 1`)},
			"foreign": map[string]any{"command": writeScript(t, dir, "foreign", getDatadir+`cp -a "`+filepath.Join(dir, "elsewhere")+`/." "$d"`)},
			"backup": map[string]any{
				"command": writeScript(t, dir, "backup.sh", getDatadir+binDir(t)+`/pg_basebackup -w -D "$d" -X stream -c fast -d "$c"`),
				"repo":    7, "check": true,
			},
			"alone":   map[string]any{"command": copyBackup, "no_leader": 1},
			"quiet":   map[string]any{"command": writeScript(t, dir, "quiet", `printf '%s\n' "$@" > "$0.args"; exit 1`), "no_params": true, "x": "y"},
			"touched": map[string]any{"command": writeScript(t, dir, "touched", getDatadir+`[ -e "$d/PG_VERSION" ]`), "keep_data": true},
		}
		p := newInstance(t, s)
		keepSlots(ctx, t, a, name)
		return p
	}

	t.Run("replica: methods are tried in order, each begins afresh", func(t *testing.T) {
		b := replica(t, "b", "junk", "quiet", "backup", "basebackup")
		must(t, b.MakeReplica(ctx, &up, "", nil))
		if found, err := b.DataDir(ctx); err != nil || found.State != Valid || !found.Standby {
			t.Errorf("a copy that was just made could be taken for a primary's data: %+v %v", found, err)
		}
		if _, err := os.Stat(b.inData("junk")); err == nil {
			t.Error("what the failed method has left is still there")
		}
		if args := argsOf(t, filepath.Join(dir, "quiet")); !slices.Equal(args, []string{"--x=y"}) {
			t.Errorf("no_params: %q", args)
		}
		args := argsOf(t, filepath.Join(dir, "backup.sh"))
		if !strings.HasPrefix(args[1], "--connstring=host=127.0.0.1 port=") || strings.Contains(strings.Join(args, " "), secret) {
			t.Errorf("connstring: %q", args)
		}
		args = slices.Delete(args, 1, 2)
		if want := []string{"--check=True", "--datadir=" + b.dataDir, "--repo=7", "--role=replica", "--scope=shard"}; !slices.Equal(args, want) {
			t.Errorf("arguments %q, want %q", args, want)
		}
		follow(ctx, t, b, a)
		t.Run("keep_data", func(t *testing.T) {
			must(t, b.Stop(ctx, Fast))
			local := *b.local.Load()
			local.CreateReplica = []string{"touched"}
			b.Reconfigure(local)
			must(t, b.RemoveForReinit(ctx, allowed(t, b)))
			if d, err := b.DataDir(ctx); err != nil || d.State != Incomplete {
				t.Errorf("before the method: %+v %v", d, err)
			}
			must(t, b.MakeReplica(ctx, &up, "", nil))
			follow(ctx, t, b, a)
		})
	})

	t.Run("replica: another cluster's backup is of no use", func(t *testing.T) {
		elsewhere := newInstance(t, settings(t, dir, "elsewhere"))
		bootstrapped(ctx, t, elsewhere)
		c := replica(t, "c", "foreign")
		if err := c.MakeReplica(ctx, &up, "", nil); err == nil || !strings.Contains(err.Error(), "another cluster") {
			t.Errorf("%v", err)
		}
		if d, err := c.DataDir(ctx); err != nil || d.State != Empty {
			t.Errorf("%+v %v", d, err)
		}
	})

	t.Run("replica: without a leader", func(t *testing.T) {
		d := replica(t, "d", "backup", "alone")
		if !d.ClonesWithoutLeader() {
			t.Error("no_leader is not seen")
		}
		must(t, d.MakeReplica(ctx, nil, id, nil))
		if found, err := d.DataDir(ctx); err != nil || found.State != Valid || !found.Standby {
			t.Errorf("a copy that was just made could be taken for a primary's data: %+v %v", found, err)
		}
		if args := argsOf(t, copyBackup); !slices.Contains(args, "--connstring=") {
			t.Errorf("without a leader the connection string is empty: %q", args)
		}
		must(t, d.Start(ctx, StartAs{Role: Replica}))
		observe(ctx, t, d, "a replica of nobody", func(s State) bool { return s.InRecovery })
		e := replica(t, "e", "backup", "basebackup")
		if err := e.MakeReplica(ctx, nil, id, nil); err == nil || !strings.Contains(err.Error(), "no_leader") {
			t.Errorf("%v", err)
		}
	})

	t.Run("replica: what a killed agent has left at work is ended", func(t *testing.T) {
		f := replica(t, "f")
		must(t, f.mark(markClone, id))
		orphan := exec.Command("sleep", "1000")
		orphan.Env = append(os.Environ(), methodMark+"="+f.dataDir)
		must(t, orphan.Start())
		must(t, os.WriteFile(f.inData("half"), nil, 0o600))
		must(t, f.DiscardIncomplete(ctx))
		if err := orphan.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the method's process: %v", err)
		}
	})
}

func TestMethodThatIsCalledOff(t *testing.T) {
	all, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.CreateReplica = []string{"slow"}
	s.Postgres.Methods = map[string]any{"slow": map[string]any{
		"no_leader": true, "command": writeScript(t, dir, "slow", getDatadir+`touch "$d/half"; echo > "$0.began"; sleep 1000`),
	}}
	p := newInstance(t, s)
	ctx, cancel := context.WithCancel(all)
	ended := make(chan error, 1)
	go func() { ended <- p.MakeReplica(ctx, nil, "4711", nil) }()
	awaitFile(all, t, filepath.Join(dir, "slow.began"))
	cancel()
	if err := <-ended; err == nil {
		t.Error("it was called off and succeeded")
	}
	if d, err := p.DataDir(all); err != nil || d.State != Empty {
		t.Errorf("%+v %v", d, err)
	}
}

func TestMethodSettings(t *testing.T) {
	for _, test := range []struct {
		value any
		want  string
	}{
		{nil, "m [--datadir=/d --role=replica] false false"},
		{map[string]any{"command": "x y"}, "x y [--datadir=/d --role=replica] false false"},
		{map[string]any{"no_master": 1, "b": "c d", "a": 1.5}, "m [--a=1.5 --b=c d --datadir=/d --no_master=1 --role=replica] true false"},
		{map[string]any{"no_params": "yes", "keep_data": true, "a": false}, "m [--a=False] false true"},
	} {
		m, err := customMethod("m", test.value)
		must(t, err)
		if got := fmt.Sprintf("%s %v %v %v", m.command, m.arguments(map[string]string{"role": "replica", "datadir": "/d"}), m.noLeader, m.keepData); got != test.want {
			t.Errorf("%v: %s, want %s", test.value, got, test.want)
		}
	}
	for _, bad := range []any{"text", map[string]any{"no_leader": "perhaps"}} {
		if _, err := customMethod("m", bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}

func TestGistOfFailures(t *testing.T) {
	pgbackrest := errors.New("method pgbackrest: exit status 75: ...nable to load info file\n      HINT: has a stanza-create been performed?\n" +
		"2026-11-29 23:15:50.346 P00  ERROR: [075]: no backup set found to restore\n2026-11-29 23:15:50.346 P00 DETAIL: statistics: {}")
	want := "method pgbackrest: [075]: no backup set found to restore; method copy: exit status 1: no route to\\x1b host"
	if got := gist([]error{pgbackrest, errors.New("method copy: exit status 1: no route\nto\x1b host")}); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := gist(nil); got != "" {
		t.Errorf("%q", got)
	}
}
