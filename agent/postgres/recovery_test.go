package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
)

// A table is dropped by mistake; what a restore program, or the configuration, says of
// the moment before is what the new shard gets. The programs here want the data directory
// in three ways: to make it with cp or mkdir, or to find it.
func TestPointInTimeRecovery(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	archive := filepath.Join(dir, "archive")
	must(t, os.Mkdir(archive, 0o777))
	must(t, os.Chmod(archive, 0o777)) //nolint:gosec // another user writes into it
	s := settings(t, dir, "source")
	s.Postgres.Parameters["archive_mode"] = "on"
	s.Postgres.Parameters["archive_command"] = "cp %p " + archive + "/%f"
	source := newInstance(t, s)
	id := bootstrapped(ctx, t, source)
	must(t, source.Start(ctx, StartAs{Role: Primary}))
	backup := newInstance(t, settings(t, dir, "backup"))
	must(t, backup.BaseBackup(ctx, upstream(source), nil))
	must(t, os.Remove(backup.inData("standby.signal"))) // a backup has none
	sql(ctx, t, source, "CREATE TABLE public.kept AS SELECT 42 AS answer")
	xid := value(ctx, t, source, "SELECT xmin::text FROM public.kept")
	lsn := value(ctx, t, source, "SELECT pg_current_wal_lsn()::text")
	at := value(ctx, t, source, "SELECT clock_timestamp()::text")
	sql(ctx, t, source, "SELECT pg_create_restore_point('before')")
	sql(ctx, t, source, "DROP TABLE public.kept")
	must(t, source.Stop(ctx, Fast))
	to := func(name, target string) map[string]any {
		return map[string]any{"recovery_conf": map[string]any{"restore_command": "cp " + archive + "/%f %p", name: target}}
	}

	const (
		cp    = `cp -a "$0.backup" "$d"` + "\n"
		mkdir = `mkdir "$d" && cp -a "$0.backup/." "$d"` + "\n"
		// PostgreSQL 12 is told by its history.
		unreached = "target was reached"
		found     = `[ -d "$d" ] || { echo "the directory does not exist" >&2; exit 38; }` + "\n" + `cp -a "$0.backup/." "$d"` + "\n"
	)
	restore := "restore_command = 'cp " + archive + "/%f %p'\n"
	heredoc := func(to, lines string) string { return fmt.Sprintf("cat >> \"$d/%s\" <<'END'\n%sEND\n", to, lines) }
	signal := "touch \"$d/recovery.signal\"\n"
	for i, test := range []struct {
		name, script string
		method       map[string]any
		elsewhere    bool   // restore_command is in postgresql.recovery_conf
		want         string // of the error; empty: the table is there
	}{
		{
			"kept, with its restore_command", cp + heredoc("postgresql.auto.conf", restore+"recovery_target_name = 'before'\nrecovery_target_action = 'promote'\n") + signal,
			map[string]any{"keep_existing_recovery_conf": true},
			false, "",
		},
		{
			"kept, restore_command elsewhere, no action", found + heredoc("postgresql.auto.conf", "recovery_target_name = 'before'\n") + signal,
			map[string]any{"keep_existing_recovery_conf": true},
			true, "",
		},
		{
			"kept, in postgresql.conf", mkdir + heredoc("postgresql.conf", restore+"recovery_target_name = before\nrecovery_target_action = pause\n") + signal,
			map[string]any{"keep_existing_recovery_conf": "yes"},
			false, "",
		},
		{
			"configured, the program's own not kept", cp + heredoc("postgresql.auto.conf", "recovery_target_xid = '3'\nrestore_command = false\n") + signal,
			map[string]any{"recovery_conf": map[string]any{"restore_command": "cp " + archive + "/%f %p", "recovery_target_name": "before", "recovery_target_action": "Shutdown"}},
			false, "",
		},
		{"to a time", cp, to("recovery_target_time", at), false, ""},
		{"to a position", cp, to("recovery_target_lsn", lsn), false, ""},
		{"to a transaction", cp, to("recovery_target_xid", xid), false, ""},
		{"to where the backup is consistent", cp, to("recovery_target", "immediate"), false, `relation "public.kept" does not exist`},
		{"to a name that there is not", cp, to("recovery_target_name", "never"), false, unreached},
		{"to a time after the last WAL", cp, to("recovery_target_time", "2999-01-01 00:00:00+00"), false, unreached},
		{"to a position after the last WAL", cp, to("recovery_target_lsn", "FF/0"), false, unreached},
		{"to a position before the backup's end", cp, to("recovery_target_lsn", "0/1000000"), false, "before consistent recovery point"},
		{"to a timeline that there is not", cp, to("recovery_target_timeline", "7"), false, "timeline 7"},
		{"a time without a zone", "touch \"$0.touched\"", to("recovery_target_time", "2026-11-29 10:00"), false, "bootstrap.restore.recovery_conf.recovery_target_time"},
		{"no restore_command", "touch \"$0.touched\"", map[string]any{"recovery_conf": map[string]any{"recovery_target": "immediate"}}, false, "bootstrap.restore.recovery_conf.restore_command: must be set"},
		{
			"kept, a standby", cp + heredoc("postgresql.auto.conf", restore) + "touch \"$d/standby.signal\"\n",
			map[string]any{"keep_existing_recovery_conf": true},
			false, "standby.signal",
		},
		{
			"kept, a target without its signal", cp + heredoc("postgresql.auto.conf", restore+"recovery_target_name = 'before'\n"),
			map[string]any{"keep_existing_recovery_conf": true},
			false, "no recovery.signal",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := settings(t, dir, fmt.Sprintf("restored%d", i))
			if test.elsewhere {
				s.Postgres.RecoveryConf = map[string]any{"restore_command": "cp " + archive + "/%f %p"}
			}
			p := newInstance(t, s)
			command := writeScript(t, dir, fmt.Sprintf("restore%d", i), getDatadir+"set -e\n"+test.script)
			must(t, exec.Command("cp", "-a", backup.dataDir, command+".backup").Run())
			test.method["command"] = command
			got, err := p.Bootstrap(ctx, config.Bootstrap{
				Method: "restore", Methods: map[string]any{"restore": test.method},
				PostBootstrap: `/bin/sh -c 'psql -qAtX -d "$0" -c "TABLE public.kept"'`,
			})
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, want %s", err, test.want)
				}
				if d, err := p.DataDir(ctx); err != nil || d.State == Bootstrapped || d.State == Valid {
					t.Errorf("it is left as a data directory: %+v %v", d, err)
				}
				if _, err := os.Stat(command + ".touched"); err == nil {
					t.Error("it was begun")
				}
				return
			}
			if must(t, err); got != id {
				t.Errorf("system identifier %s, want %s", got, id)
			}
			must(t, p.FinishBootstrap())
			// A later standby stops at no target.
			must(t, p.writeConfig(as{role: Primary}))
			left, err := p.recoveryLeft()
			must(t, err)
			if target := targetOf(left); target != "" || has(t, p, "standby.signal") || has(t, p, "recovery.signal") {
				t.Errorf("it is left with %v", left)
			}
		})
	}
}

// pgBackRest itself: it wants the directory to be there, and writes the recovery.
func TestPgBackRest(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("pgbackrest"); err != nil {
		t.Skip("pgbackrest is not installed")
	}
	ctx, dir := within(t), newDir(t)
	source, id, options := backedUp(ctx, t, dir)
	sql(ctx, t, source, "CREATE TABLE public.kept AS SELECT 42 AS answer")
	sql(ctx, t, source, "SELECT pg_create_restore_point('before')")
	sql(ctx, t, source, "DROP TABLE public.kept")
	must(t, source.Stop(ctx, Fast))

	p := newInstance(t, settings(t, dir, "restored"))
	got, err := p.Bootstrap(ctx, config.Bootstrap{
		Method: "pgbackrest", Methods: map[string]any{"pgbackrest": map[string]any{
			"command":   "pgbackrest " + options + " --pg1-path=" + p.dataDir + " --type=name --target=before restore",
			"no_params": true, "keep_existing_recovery_conf": true,
		}},
		PostBootstrap: `/bin/sh -c 'psql -qAtX -d "$0" -c "TABLE public.kept"'`,
	})
	if must(t, err); got != id {
		t.Errorf("system identifier %s, want %s", got, id)
	}
}

// backedUp is a primary whose backup and archive pgBackRest keeps below dir, with the options to
// find them by.
func backedUp(ctx context.Context, t *testing.T, dir string, before ...func(*Instance)) (source *Instance, id, options string) {
	t.Helper()
	options = fmt.Sprintf("--stanza=main --repo1-path=%[1]s/repo --log-path=%[1]s --lock-path=%[1]s/lock --config=/dev/null --log-level-console=warn", dir)
	s := settings(t, dir, "source")
	s.Postgres.Parameters["archive_mode"] = "on"
	s.Postgres.Parameters["archive_command"] = "pgbackrest " + options + " --pg1-path=" + s.Postgres.DataDir + " archive-push %p"
	source = newInstance(t, s)
	id = bootstrapped(ctx, t, source)
	must(t, source.Start(ctx, StartAs{Role: Primary}))
	for _, do := range before {
		do(source)
	}
	run := func(command string, more ...string) {
		t.Helper()
		words := append(strings.Fields(options), "--pg1-path="+source.dataDir, fmt.Sprintf("--pg1-port=%d", source.port), "--pg1-socket-path="+dir)
		words = append(append(words, more...), command)
		auth := source.local.Load().Authentication.Superuser
		cmd := exec.CommandContext(ctx, "pgbackrest", words...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: source.credential}
		cmd.Env = append(os.Environ(), "PGPASSWORD="+auth.Password, "PGUSER="+auth.Username)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("pgbackrest %s: %v: %s", command, err, out)
		}
	}
	run("stanza-create")
	run("backup", "--start-fast", "--type=full")
	return source, id, options
}

// Who is killed while a method makes the data directory finds what it has made.
func TestMethodThatMakesTheDirectory(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	for _, kind := range []string{markCustom, markClone} {
		must(t, p.mark(kind, ""))
		if removed, err := p.removeEmpty(marker{Kind: kind, Made: time.Now()}); err != nil || !removed {
			t.Fatalf("%v %v", removed, err)
		}
		if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
			t.Errorf("before it is made: %+v %v", d, err)
		}
		put(t, p.inData("half"), "x")
		give(t, p, p.dataDir)
		if d, err := p.DataDir(ctx); err != nil || d.State != Incomplete {
			t.Errorf("made: %+v %v", d, err)
		}
		// Nobody has seen who made it, so it is not removed.
		must(t, p.DiscardIncomplete(ctx))
		if found, _ := filepath.Glob(p.dataDir + ".failed.*/half"); len(found) != 1 {
			t.Errorf("not moved aside: %v", listing(t, dir))
		}
	}
	t.Run("an older directory in its place is left alone", func(t *testing.T) {
		older := filepath.Join(dir, "older")
		put(t, filepath.Join(older, "precious"), "x")
		must(t, p.mark(markClone, ""))
		if removed, err := p.removeEmpty(marker{Kind: markClone, Made: time.Now().Add(time.Hour)}); err != nil || !removed {
			t.Fatalf("%v %v", removed, err)
		}
		must(t, os.Rename(older, p.dataDir))
		before := listing(t, dir)
		if d, err := p.DataDir(ctx); err == nil && d.State != Foreign {
			t.Errorf("%+v", d)
		}
		if err := p.DiscardIncomplete(ctx); err == nil {
			t.Error("discarded")
		}
		if after := listing(t, dir); !slices.Equal(before, after) {
			t.Errorf("changed: %v", after)
		}
	})
}

// What PostgreSQL writes of where a recovery has stopped. (Version 12 promotes itself where
// the WAL ends, and writes zeroes; TestPointInTimeRecovery has the histories of the version
// that is installed.)
func TestHistoryOfARecovery(t *testing.T) {
	for reason, want := range map[string]bool{
		`at restore point "before"`: true, "after transaction 742": true, "before 2026-11-29 10:00:00.123+00\n": true, "after LSN 0/3000060\n": true,
		`at restore point ""`: false, "before transaction 0": false, "before 2000-01-01 00:00:00+00\n": false, "before 1999-12-31 18:30:00-05:30\n": false, "before LSN 0/0\n": false,
	} {
		if got := stoppedAtTarget("1\t0/2000000\tno recovery target specified\n\n2\t0/3000060\t" + reason + "\n"); got != want {
			t.Errorf("%q: %v", reason, got)
		}
	}
}
