package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The segment with the shutdown checkpoint is archived once, and PostgreSQL does not archive it again; a failure
// is told, and one that was killed has no such segment.
func TestArchiveLast(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	archive := filepath.Join(dir, "archive")
	must(t, os.Mkdir(archive, 0o777)) //nolint:gosec // PostgreSQL's user writes into it
	must(t, os.Chmod(archive, 0o777)) //nolint:gosec // the same
	s := settings(t, dir, "a")
	s.Postgres.Parameters["archive_mode"] = "on"
	s.Postgres.Parameters["archive_command"] = "test ! -e " + archive + "/%f && cp %p " + archive + "/%f"
	a := newInstance(t, s)
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, a, "primary", func(s State) bool { return s.Accepting })
	must(t, a.Stop(ctx, Fast))
	control, err := a.control(ctx)
	must(t, err)
	segment, err := a.segmentAt(control.Timeline, control.CheckpointLSN)
	must(t, err)
	last := filepath.Join(archive, filepath.Base(segment))
	if _, err := os.Stat(last); err == nil {
		t.Fatal("PostgreSQL has archived it itself")
	}
	must(t, a.ArchiveLast(ctx, 10*time.Second))
	if _, err := os.Stat(last); err != nil {
		t.Fatal(err)
	}
	if err := a.ArchiveLast(ctx, 10*time.Second); err == nil || !strings.Contains(err.Error(), "archive_command") {
		t.Errorf("archived twice: %v", err)
	}
	must(t, a.Start(ctx, StartAs{Role: Replica}))
	must(t, a.Kill(ctx))
	if err := a.ArchiveLast(ctx, 10*time.Second); err == nil || !strings.Contains(err.Error(), "not shut down") {
		t.Errorf("after a kill: %v", err)
	}
}
