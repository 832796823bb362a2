package backup

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// The repository's host falls silent: archive_command and restore_command hang until their
// time is over. Nobody waits for archive_command. PostgreSQL waits for restore_command, four or
// five times for a promotion (docs/backups.md), so here that bounds a switchover and a failover.
func TestSilentRepository(t *testing.T) {
	all(t)
	s := serving(t, lab.Options{Members: 3}, nil)
	shard := s.Shard(0)
	ctx := testkit.Within(t, 2*patience)
	must(t, shard.AwaitSync(ctx))
	must(t, s.repo.Isolate(ctx))
	// What is to be archived makes the archiver hang.
	busy := func(m *lab.Member) {
		t.Helper()
		sql(ctx, t, m, "DROP TABLE IF EXISTS public.t", "CREATE TABLE public.t ()", "SELECT pg_switch_wal()")
		testkit.Await(ctx, t, "the archiver is at work on "+m.Name, func() error {
			found, err := m.Find(func(i lab.ProcessInfo) bool { return slices.Contains(i.Args, "archive-push") })
			if err == nil && len(found) == 0 {
				err = errors.New("archive_command does not run")
			}
			return err
		})
	}
	took := func(what string, within time.Duration, do func()) {
		t.Helper()
		began := time.Now()
		do()
		passed := time.Since(began)
		t.Logf("%s: %.1f s", what, passed.Seconds())
		if passed > within {
			t.Errorf("%s took %s, want at most %s", what, passed, within)
		}
	}
	leader := got(shard.Leader(ctx))(t)
	busy(leader)
	took("restart", 20*time.Second, func() {
		if status, answer, err := leader.Post(ctx, "/restart", map[string]any{}); err != nil || status != http.StatusOK {
			t.Fatalf("restart: %d %s %v", status, answer, err)
		}
	})
	got(shard.AwaitHealthy(ctx))(t)
	must(t, shard.AwaitSync(ctx))
	busy(leader)
	took("switchover", time.Minute, func() {
		if status, answer, err := leader.Post(ctx, "/switchover", map[string]string{"leader": leader.Name}); err != nil || status != http.StatusOK {
			t.Fatalf("switchover: %d %s %v", status, answer, err)
		}
	})
	next := got(shard.AwaitHealthy(ctx))(t)
	must(t, shard.AwaitSync(ctx))
	busy(next)
	took("failover", time.Minute, func() {
		must(t, next.PowerOff(ctx))
		got(shard.AwaitLeader(ctx, next))(t)
	})
	took("rejoin", time.Minute, func() {
		must(t, next.Start(ctx))
		got(shard.AwaitHealthy(ctx))(t)
	})
	must(t, s.repo.Heal(ctx))
	testkit.Await(ctx, t, "the archive goes on", func() error {
		return s.pgbackrest(ctx, shard, "check")
	})
}

// The primary's host is lost in the middle of a backup: the backup fails, the shard does not,
// and the next backup is made of the new primary.
func TestFailoverDuringABackup(t *testing.T) {
	all(t)
	s := serving(t, lab.Options{Members: 2}, nil)
	shard := s.Shard(0)
	ctx := testkit.Within(t, 2*patience)
	must(t, shard.AwaitSync(ctx))
	leader := got(shard.Leader(ctx))(t)
	sql(ctx, t, leader, "CREATE TABLE public.big AS SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, 300000) g", "CHECKPOINT")
	must(t, shard.AwaitSync(ctx))
	backup := make(chan error, 1)
	go func() { backup <- s.backup(ctx, shard) }()
	watch := got(leader.Connect(ctx, "postgres"))(t)
	defer watch.Close(context.WithoutCancel(ctx))
	testkit.Await(ctx, t, "the backup copies", func() error {
		select {
		case err := <-backup:
			t.Fatalf("the backup has ended before: %v", err)
		default:
		}
		var n int
		err := watch.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgBackRest%backup%' AND state = 'idle'").Scan(&n)
		if err == nil && n == 0 {
			err = errors.New("pgBackRest has no connection")
		}
		return err
	})
	must(t, leader.PowerOff(ctx))
	next := got(shard.AwaitLeader(ctx, leader))(t)
	if err := <-backup; err == nil {
		t.Error("the backup of a host that was lost has succeeded")
	} else {
		t.Logf("%.600v", err)
	}
	must(t, s.backup(ctx, shard))
	must(t, leader.Start(ctx))
	got(shard.AwaitHealthy(ctx))(t)
	s.reinit(ctx, t, leader)
	if n := count(ctx, t, leader, "SELECT count(*) FROM public.big"); n != 300000 {
		t.Errorf("%d rows", n)
	}
	t.Log(made(ctx, t, leader), next.Name)
}

// WAL fills a disk, as no archive takes it: that is told while there is room.
func TestWALFillsTheDisk(t *testing.T) {
	all(t)
	s := serving(t, lab.Options{Members: 2, VolumeMB: 600, Parameters: map[string]any{
		"max_wal_size": "64MB", "min_wal_size": "32MB", "wal_keep_size": "32MB",
	}}, nil)
	shard := s.Shard(0)
	ctx := testkit.Within(t, 2*patience)
	leader := got(shard.Leader(ctx))(t)
	if out := s.lictor(ctx, shard, "doctor"); strings.Contains(out, "WAL fills") {
		t.Errorf("with an archive: %s", out)
	}
	must(t, s.repo.Process(serverName).Kill(ctx))
	sql(ctx, t, leader, "CREATE TABLE public.filler (a text)")
	testkit.Await(ctx, t, "it is told", func() error {
		out := s.lictor(ctx, shard, "doctor")
		if strings.Contains(out, "WAL fills the disk") && strings.Contains(out, "the archive has not taken it") {
			return nil
		}
		var free unix.Statfs_t
		must(t, unix.Statfs(leader.Volume.Dir, &free))
		if left := int64(free.Bavail) * free.Bsize; left < 60<<20 {
			t.Fatalf("%d MB are free and nobody has told: %s", left>>20, out)
		} else if left > 100<<20 { // then the agent has time to look
			sql(ctx, t, leader, "INSERT INTO public.filler SELECT repeat('x', 1000) FROM generate_series(1, 8000)", "TRUNCATE public.filler", "SELECT pg_switch_wal()", "CHECKPOINT")
		}
		return errors.New(out)
	})
	must(t, s.repo.Start(ctx))
	sql(ctx, t, leader, "SELECT pg_switch_wal()") // wakes the archiver, which else tries again in a minute
	testkit.Await(ctx, t, "it is over", func() error {
		if err := execute(ctx, leader, "CHECKPOINT"); err != nil { // which removes WAL
			return err
		}
		if out := s.lictor(ctx, shard, "doctor"); strings.Contains(out, "WAL fills the disk") {
			return errors.New(out)
		}
		return nil
	})
	got(shard.AwaitHealthy(ctx))(t)
}
