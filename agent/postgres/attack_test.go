package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func churn(ctx context.Context, t *testing.T, a *Instance, n int) {
	t.Helper()
	sql(ctx, t, a, "CREATE TABLE IF NOT EXISTS public.more (n int)")
	for range n {
		sql(ctx, t, a, "INSERT INTO public.more VALUES (1)")
		sql(ctx, t, a, "SELECT pg_switch_wal()")
		must(t, a.Checkpoint(ctx))
	}
}

func keepsNothing(ctx context.Context, t *testing.T, a *Instance) {
	for range 50 {
		sql(ctx, t, a, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
		time.Sleep(50 * time.Millisecond)
	}
	sql(ctx, t, a, "ALTER SYSTEM SET wal_keep_size = 0")
	sql(ctx, t, a, "SELECT pg_reload_conf()")
}

// Another cluster at the upstream's address.
func TestAttackOtherCluster(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	x := newInstance(t, settings(t, newDir(t), "x"))
	other := bootstrapped(ctx, t, x)
	must(t, x.Start(ctx, StartAs{Role: Primary}))
	keepsNothing(ctx, t, x)
	churn(ctx, t, x, 6)
	// b follows a, by an address at which x answers.
	up := Upstream{Name: "a", Host: "127.0.0.1", Port: x.port}
	must(t, b.Follow(ctx, up))
	s := observe(ctx, t, b, "does not stream", func(s State) bool { return s.Accepting && s.ReplicationState != Streaming && !s.Replaying })
	time.Sleep(7 * time.Second)
	s = observe(ctx, t, b, "does not stream", func(s State) bool { return s.Accepting && s.ReplicationState != Streaming && !s.Replaying })
	gone, err := b.WALGone(ctx, up, s.Timeline, s.LSN())
	t.Logf("b of %s: gone %t %v; the leader 'answers as a primary': %t", s.SystemIdentifier, gone, err, b.Reachable(ctx, up))
	if !gone { return }
	must(t, b.Stop(ctx, Fast))
	must(t, b.RemoveForReinit(ctx, Permission{NotLeader: true, LeaderReachable: b.Reachable(ctx, up), AllowedBy: "rebuild: auto"}))
	err = b.MakeReplica(ctx, &up, "", nil)
	if err == nil { err = b.Start(ctx, StartAs{Role: Replica, Upstream: &up}) }
	if err != nil { t.Logf("refused: %v", err); return }
	s2 := observe(ctx, t, b, "streams", func(s State) bool { return s.ReplicationState == Streaming })
	t.Errorf("FINDING: data of cluster %s were removed and replaced by those of %s (other %s)", s.SystemIdentifier, s2.SystemIdentifier, other)
}

// restore_command by ALTER SYSTEM / own conf, slow archive.
func TestAttackAlterSystemArchive(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	arch := filepath.Join(dir, "archive")
	a := newInstance(t, settings(t, dir, "a"))
	sb := settings(t, dir, "b")
	sb.Postgres.Parameters["restore_command"] = fmt.Sprintf("sleep 4; cp %s/%%f %%p", arch)
	b := newInstance(t, sb)
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	keepSlots(ctx, t, a, "b")
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	must(t, os.Mkdir(arch, 0o777)); must(t, os.Chmod(arch, 0o777))
	caughtUp(ctx, t, a, b)
	must(t, b.Stop(ctx, Fast))
	keepsNothing(ctx, t, a)
	for range 6 {
		// archives by hand
		churn(ctx, t, a, 1)
		files, _ := filepath.Glob(a.inData("pg_wal/0000000100000000000000*"))
		for _, f := range files { if _, err := os.Stat(filepath.Join(arch, filepath.Base(f))); err != nil { c, _ := os.ReadFile(f); os.WriteFile(filepath.Join(arch, filepath.Base(f)), c, 0o644) } }
	}
	up := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	begun := time.Now()
	var lsn int64
	var since time.Time
	for time.Since(begun) < 45*time.Second {
		s, err := b.Observe(ctx)
		if err != nil { continue }
		if s.LSN() != lsn { lsn, since = s.LSN(), time.Now(); t.Logf("%v lsn %X replaying %t state %q", time.Since(begun), lsn, s.Replaying, s.ReplicationState) }
		if s.ReplicationState == Streaming { t.Log("streams"); break }
		if s.Accepting && !s.Replaying && s.ReplicationState != Streaming && time.Since(since) > 3*time.Second {
			gone, err := a.WALGone(ctx, up, s.Timeline, s.LSN())
			t.Logf("%v stands at %X for %v; HasRestoreCommand %t, state %q: gone %t %v", time.Since(begun), lsn, time.Since(since), b.HasRestoreCommand(), s.ReplicationState, gone, err)
			if gone && !b.HasRestoreCommand() { t.Errorf("FINDING: called stranded after 3 s, while it replays from the archive (in force: %q)", s.ReplicationState); return }
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// Replay paused by an operator, receiver lost.
func TestAttackPausedReplay(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	sql(ctx, t, b, "SELECT pg_wal_replay_pause()")
	sql(ctx, t, a, "CREATE TABLE public.received (n int)")
	time.Sleep(time.Second)
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, b, "loses it", func(s State) bool { return s.ReplicationState != Streaming })
	keepsNothing(ctx, t, a)
	churn(ctx, t, a, 5)
	time.Sleep(6 * time.Second)
	s, err := b.Observe(ctx)
	must(t, err)
	gone, err := a.WALGone(ctx, upstream(a), s.Timeline, s.LSN())
	t.Logf("accepting %t replaying %t state %q paused %t standstill %q received %X replayed %X: gone %t %v", s.Accepting, s.Replaying, s.ReplicationState, s.ReplayPaused, s.Standstill, s.ReceivedLSN, s.ReplayedLSN, gone, err)
	if gone && !s.Replaying && s.ReplicationState != Streaming { t.Error("FINDING: paused replay with unreplayed WAL counts as stranded") }
}

// delayed replica that is restarted
func TestAttackDelayed(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	sql(ctx, t, b, "ALTER SYSTEM SET recovery_min_apply_delay = '1h'")
	sql(ctx, t, b, "SELECT pg_reload_conf()")
	time.Sleep(time.Second)
	churn(ctx, t, a, 2)
	sql(ctx, t, a, "INSERT INTO public.more VALUES (1)")
	time.Sleep(2*time.Second)
	s, err := b.Observe(ctx)
	t.Logf("before: replaying %t state %q standstill %q received %X replayed %X", s.Replaying, s.ReplicationState, s.Standstill, s.ReceivedLSN, s.ReplayedLSN)
	// its WAL receiver goes for the primary's restart; startup process waits for the delay
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	time.Sleep(8*time.Second)
	s, err = b.Observe(ctx)
	t.Logf("after the primary's restart: replaying %t state %q standstill %q received %X replayed %X", s.Replaying, s.ReplicationState, s.Standstill, s.ReceivedLSN, s.ReplayedLSN)
	keepsNothing(ctx, t, a)
	churn(ctx, t, a, 5)
	time.Sleep(8*time.Second)
	s, err = b.Observe(ctx)
	must(t, err)
	gone, err := a.WALGone(ctx, upstream(a), s.Timeline, s.LSN())
	t.Logf("then: accepting %t replaying %t state %q standstill %q received %X replayed %X: gone %t %v", s.Accepting, s.Replaying, s.ReplicationState, s.Standstill, s.ReceivedLSN, s.ReplayedLSN, gone, err)
	if gone && !s.Replaying && s.ReplicationState != Streaming { t.Error("FINDING: delayed replica with unreplayed WAL counts as stranded") }
}

// probes leave walsenders?
func TestAttackLeak(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	_, end, err := a.PositionOf(ctx, upstream(a))
	must(t, err)
	for range 5 {
		soon, cancel := context.WithTimeout(ctx, time.Second)
		_, err := b.WALGone(soon, upstream(a), 1, end)
		cancel()
		t.Log(err)
	}
	c, err := a.dedicated(ctx)
	must(t, err)
	defer c.Close(ctx)
	go func() { soon, cancel := context.WithTimeout(ctx, 3*time.Second); defer cancel(); b.WALGone(soon, upstream(a), 1, end) }()
	for range 6 {
		rows, _ := c.Query(ctx, "SELECT application_name, state, sync_state, coalesce(flush_lsn::text,'-') FROM pg_stat_replication")
		all, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (string, error) { v, err := r.Values(); return fmt.Sprint(v...), err })
		t.Log(all, err)
		s, _ := a.Observe(ctx)
		t.Log("agent sees standbys:", s.Standbys)
		time.Sleep(time.Second)
	}
}

// clone of a stranded replica is stranded
func TestAttackCloneOfStranded(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	must(t, b.Stop(ctx, Fast))
	keepsNothing(ctx, t, a)
	churn(ctx, t, a, 5)
	up := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	observe(ctx, t, b, "stands", func(s State) bool { return s.Accepting && !s.Replaying && s.ReplicationState != Streaming })
	d := newInstance(t, settings(t, filepath.Dir(a.dataDir), "d"))
	from := upstream(b)
	began := time.Now()
	must(t, d.MakeReplica(ctx, &from, "", nil))
	t.Logf("cloned from the stranded b in %v", time.Since(began))
	must(t, d.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	time.Sleep(6*time.Second)
	s := observe(ctx, t, d, "stands", func(s State) bool { return s.Accepting && !s.Replaying && s.ReplicationState != Streaming })
	gone, err := d.WALGone(ctx, up, s.Timeline, s.LSN())
	if gone { t.Errorf("FINDING: copy of a stranded replica is stranded: %X %v", s.LSN(), err) }
}

// a transient failure of pg_rewind counts as "cannot be rewound"
func TestAttackTransientRewind(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	sql(ctx, t, a, "CREATE TABLE public.one (n int)")
	caughtUp(ctx, t, a, b)
	must(t, b.Promote(ctx, 0))
	sql(ctx, t, b, "CREATE TABLE public.theirs (n int)")
	sql(ctx, t, a, "CREATE TABLE public.mine (n int)")
	must(t, a.Stop(ctx, Fast))
	must(t, b.Checkpoint(ctx))
	sql(ctx, t, b, `ALTER ROLE "Rewinder" CONNECTION LIMIT 0`) // as too many clients, pg_hba, a password that is rotated...
	_, err := a.Rewind(ctx, upstream(b), true)
	t.Logf("rewind: %v", err)
	first := errors.Is(err, ErrDiverged)
	sql(ctx, t, b, `ALTER ROLE "Rewinder" CONNECTION LIMIT -1`)
	out, err := a.Rewind(ctx, upstream(b), true)
	t.Logf("a moment later: %v %v", out, err)
	if first && err == nil { t.Error("FINDING: 'cannot be rewound' was a refused connection; a moment later it was rewound") }
}

// c, from which b cascades, was cloned anew: it has no old WAL; the leader a has.
func TestAttackCascade(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	must(t, b.Stop(ctx, Fast)) // its slot on a stays
	churn(ctx, t, a, 5)
	c := newInstance(t, settings(t, filepath.Dir(a.dataDir), "c"))
	keepSlots(ctx, t, a, "b", "c")
	up := upstream(a)
	must(t, c.BaseBackup(ctx, up, nil))
	follow(ctx, t, c, a)
	from := upstream(c)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &from}))
	s := observe(ctx, t, b, "stands", func(s State) bool { return s.Accepting && !s.Replaying && s.ReplicationState != Streaming })
	time.Sleep(6*time.Second)
	s = observe(ctx, t, b, "stands", func(s State) bool { return s.Accepting && !s.Replaying && s.ReplicationState != Streaming })
	gone, err := b.WALGone(ctx, from, s.Timeline, s.LSN())
	soon, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	goneA, errA := b.WALGone(soon, up, s.Timeline, s.LSN())
	t.Logf("gone from c: %t %v; gone from the leader a: %t %v", gone, err, goneA, errA)
	if gone && !goneA {
		must(t, b.Follow(ctx, up))
		observe(ctx, t, b, "streams", func(s State) bool { return s.ReplicationState == Streaming })
		t.Error("FINDING: stranded by the word of its cascade, while the leader has the WAL: following that it streams")
	}
}

// a rewind that is broken off in its dry run
func TestAttackRewindInterrupted(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	must(t, b.Promote(ctx, 0))
	sql(ctx, t, b, "CREATE TABLE public.theirs (n int)")
	sql(ctx, t, a, "CREATE TABLE public.mine (n int)")
	must(t, a.Stop(ctx, Fast))
	must(t, b.Checkpoint(ctx))
	for d := 50 * time.Millisecond; d < 2*time.Second; d += 50 * time.Millisecond {
		soon, cancel := context.WithTimeout(ctx, d)
		_, err := a.Rewind(soon, upstream(b), true)
		cancel()
		t.Log(d, errors.Is(err, ErrDiverged), err)
		if err == nil { return }
		if cut, _ := a.rewindCutShort(); cut { t.Log("half-written"); return }
	}
}
