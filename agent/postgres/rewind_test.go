package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A rewind that has begun to write and broke off is not repeated on what it left; one
// that could not begin is. What would break it off is told before.
func TestRewindThatBreaksOff(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	s := settings(t, dir, "b")
	runs := filepath.Join(dir, "runs")
	says := filepath.Join(dir, "says")
	program := writeScript(t, dir, "pg_rewind", "case \"$*\" in *--dry-run*) exit 0;; esac; echo run >> "+runs+"; cat "+says+" >&2; exit 1")
	relative, err := filepath.Rel(s.Postgres.BinDir, program)
	must(t, err)
	s.Postgres.BinName = map[string]string{"pg_rewind": relative}
	b := newInstance(t, s)
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	// Both go their ways.
	must(t, b.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, b, "CREATE TABLE public.other ()")
	must(t, b.Stop(ctx, Fast))
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Replica}))
	observe(ctx, t, a, "a replica", func(s State) bool { return s.InRecovery && s.Accepting })
	must(t, a.Promote(ctx, 0))

	rewind := func() error {
		t.Helper()
		_, err := b.Rewind(ctx, upstream(a), true)
		if !errors.Is(err, ErrDiverged) {
			t.Fatalf("%v", err)
		}
		return err
	}
	count := func() int {
		content, _ := os.ReadFile(runs)
		return strings.Count(string(content), "run")
	}
	if _, err := b.Rewind(ctx, upstream(a), false); !errors.Is(err, ErrBeyondRewind) {
		t.Errorf("not allowed: %v", err)
	}
	// It is beyond a rewind for what the data lack, not for what nobody knows the reason of.
	for i, what := range []string{
		"could not find previous WAL record at 0/3000028", "could not find common ancestor of the source and target cluster's timelines",
		`target server needs to use either data checksums or "wal_log_hints = on"`, "unexpected page in a place where none is",
	} {
		put(t, says, "pg_rewind: error: "+what+"\n")
		must(t, os.Chmod(says, 0o644)) //nolint:gosec // another user reads it
		if err := rewind(); !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "half-written") || count() != i+1 ||
			errors.Is(err, ErrBeyondRewind) != (i < 3) {
			t.Errorf("%d runs: %v", count(), err)
		}
	}
	must(t, os.Remove(runs))
	put(t, runs, "run\nrun\n")
	must(t, os.Chmod(runs, 0o666)) //nolint:gosec // another user writes it
	// With a line of progress for each second.
	put(t, says, "pg_rewind: need to copy 33 MB (total source directory size is 51 MB)\n"+strings.Repeat("10240/33792 kB (30%) copied\n", 100)+
		"pg_rewind: error: could not fetch file list: the cause\n")
	if err := rewind(); !strings.Contains(err.Error(), "half-written") || !strings.Contains(err.Error(), "the cause") || !errors.Is(err, ErrBeyondRewind) {
		t.Errorf("%v", err)
	}
	if err := rewind(); !strings.Contains(err.Error(), "half-written") || !errors.Is(err, ErrBeyondRewind) || count() != 3 {
		t.Errorf("%d runs: %v", count(), err)
	}
	if err := b.Start(ctx, StartAs{Role: Replica}); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("started: %v", err)
	}

	t.Run("a socket in the source's data directory", func(t *testing.T) {
		must(t, b.forgetRewind())
		must(t, a.Stop(ctx, Fast))
		local := *a.local.Load()
		local.Parameters = map[string]any{"fsync": "off", "unix_socket_directories": fmt.Sprintf("%s, .", dir)}
		a.Reconfigure(local)
		must(t, a.Start(ctx, StartAs{Role: Primary}))
		if err := rewind(); !strings.Contains(err.Error(), "unix_socket_directories: .") || errors.Is(err, ErrBeyondRewind) || count() != 3 {
			t.Errorf("%d runs: %v", count(), err)
		}
	})
}

// An old primary has crashed, and for want of memory (here: a setting that asks for more than there is)
// its host cannot run it alone before the rewind. That says nothing of the data: with
// remove_data_directory_on_rewind_failure they would be removed for it (I7).
func TestRewindForWantOfMemory(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	must(t, b.Promote(ctx, 0))
	sql(ctx, t, b, "CREATE TABLE public.theirs (n int)")
	sql(ctx, t, a, "CREATE TABLE public.mine (n int)")
	must(t, a.Kill(ctx))
	must(t, b.Checkpoint(ctx))
	conf := a.inConf("postgresql.base.conf")
	content, err := os.ReadFile(conf)
	must(t, err)
	must(t, os.WriteFile(conf, append(content, "\nshared_buffers = '2TB'\nhuge_pages = on\n"...), 0o600))
	give(t, a, conf)
	if _, err := a.Rewind(ctx, upstream(b), true); err == nil || errors.Is(err, ErrDiverged) {
		t.Errorf("counts as a rewind that cannot work: %v", err)
	}
}
