package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// sawArchiver looks until what is said of the archiver holds.
func sawArchiver(ctx context.Context, t *testing.T, p *Instance, what string, holds func(pg.Archiver) bool) (a pg.Archiver) {
	t.Helper()
	testkit.Await(ctx, t, what, func() (err error) {
		if a, err = p.Archiver(ctx); err == nil && !holds(a) {
			err = fmt.Errorf("it says %+v", a)
		}
		return err
	})
	return a
}

// PostgreSQL's archiver is seen to be off, to work, to fail with what waits for it, and to
// work again.
func TestArchiver(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	dir := newDir(t)
	archive := filepath.Join(dir, "archive")
	s := settings(t, dir, "a")
	s.Postgres.Parameters["archive_mode"] = "on"
	s.Postgres.Parameters["archive_command"] = "test -d " + archive + " && cp %p " + archive + "/%f"
	p := newInstance(t, s)
	must(t, os.Mkdir(archive, 0o700))
	give(t, p, archive)
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, p, "CREATE TABLE public.t (n int); SELECT pg_switch_wal()")
	works := func(a pg.Archiver) bool {
		return a.On && a.Archived > 0 && a.LastArchived != "" && !a.ArchivedAt.IsZero() && a.Waiting == 0 && a.WaitingSince.IsZero()
	}
	if a := sawArchiver(ctx, t, p, "the archiver works", works); a.Failing() || a.Trouble() != "" || a.Failed != 0 {
		t.Errorf("it works, and says %+v: %s", a, a.Trouble())
	}

	must(t, os.Rename(archive, archive+".gone"))
	began := time.Now().Add(-time.Minute) // clocks of files are coarse
	sql(ctx, t, p, "INSERT INTO public.t VALUES (1); SELECT pg_switch_wal()")
	a := sawArchiver(ctx, t, p, "the archiver fails", pg.Archiver.Failing)
	if a.LastFailed == "" || a.Failed == 0 || a.Waiting != 1 || a.WaitingSince.Before(began) || a.WaitingSince.After(time.Now().Add(time.Minute)) || a.Trouble() == "" {
		t.Errorf("it fails, and says %+v: %q", a, a.Trouble())
	}

	must(t, os.Rename(archive+".gone", archive))
	sql(ctx, t, p, "INSERT INTO public.t VALUES (2); SELECT pg_switch_wal()") // wakes it, else it tries again in a minute
	if a := sawArchiver(ctx, t, p, "the archiver works again", works); a.Failing() || a.Failed == 0 {
		t.Errorf("it works again, and says %+v", a)
	}

	// max_wal_size is 1 GB, and wal_keep_size what Lictor sets.
	if a.Keeps < 1<<30 || a.Keeps > 4<<30 {
		t.Errorf("the settings explain %d bytes of WAL", a.Keeps)
	}
	bytes, free, err := p.WALRoom()
	if must(t, err); bytes < 16<<20 || bytes > 1<<30 || free <= 0 {
		t.Errorf("pg_wal holds %d bytes, %d are free", bytes, free)
	}

	_, off := pair(ctx, t)
	if a, err := off.Archiver(ctx); err != nil || a.On || a.Failing() {
		t.Errorf("a replica without archive_mode says %+v, %v", a, err)
	}
}
