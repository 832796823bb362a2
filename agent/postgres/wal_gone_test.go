package postgres

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
)

// keepsNoWAL makes a primary keep no more WAL than it needs itself, and no slot of a standby that
// is away.
func keepsNoWAL(ctx context.Context, t *testing.T, a *Instance) {
	t.Helper()
	sql(ctx, t, a, "ALTER SYSTEM SET wal_keep_size = 0")
	sql(ctx, t, a, "SELECT pg_reload_conf()")
	sql(ctx, t, a, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
}

// writesOn makes a primary go on for n segments.
func writesOn(ctx context.Context, t *testing.T, a *Instance, n int) {
	t.Helper()
	sql(ctx, t, a, "CREATE TABLE IF NOT EXISTS public.more (n int)")
	for range n {
		sql(ctx, t, a, "INSERT INTO public.more VALUES (1)")
		sql(ctx, t, a, "SELECT pg_switch_wal()")
		must(t, a.Checkpoint(ctx))
	}
}

// A primary says whether a standby can go on from where it stands; a standby that cannot
// counts as one that has replayed all it has, and receives nothing.
func TestWALGone(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	id := observe(ctx, t, a, "is there", func(s State) bool { return s.Accepting }).SystemIdentifier
	must(t, b.Stop(ctx, Fast))
	control, err := b.control(ctx)
	must(t, err)
	at := control.MinRecovery
	wants := func(what string, want bool, timeline int, lsn int64) {
		t.Helper()
		if gone, err := a.WALGone(ctx, upstream(a), id, timeline, lsn); gone != want || err != nil {
			t.Errorf("%s: %t, %v", what, gone, err)
		}
	}
	wants("before it is", false, 1, at)
	_, end, err := a.PositionOf(ctx, upstream(a))
	must(t, err)
	wants("at its end", false, 1, end)
	wants("beyond its end", false, 1, end+1<<30)
	keepsNoWAL(ctx, t, a)
	writesOn(ctx, t, a, 4)
	wants("after it went", true, 1, at)
	if gone, err := a.WALGone(ctx, upstream(a), id, 7, at); gone || err == nil {
		t.Errorf("of a timeline that never was: %t, %v", gone, err)
	}
	if gone, err := a.WALGone(ctx, upstream(a), "1"+id, 1, at); gone || err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("of another cluster: %t, %v", gone, err)
	}
	up := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	stands := observe(ctx, t, b, "stands still", func(s State) bool { return s.Accepting && !s.Replaying && s.ReplicationState != Streaming })
	wants("where the standby stands", true, stands.Timeline, stands.LSN())

	// What is copied from one that cannot go on cannot either.
	c := newInstance(t, settings(t, filepath.Dir(a.dataDir), "c"))
	from := upstream(b)
	must(t, c.MakeReplica(ctx, &from, id, nil))
	must(t, c.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	copied := observe(ctx, t, c, "stands still", func(s State) bool { return s.Accepting && !s.Replaying && s.ReplicationState != Streaming })
	wants("where its copy stands", true, copied.Timeline, copied.LSN())
}

// c, which was made later, has not the WAL that b needs; the leader a has it.
func TestWALGoneFromACascadeAlone(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	id := observe(ctx, t, a, "is there", func(s State) bool { return s.Accepting }).SystemIdentifier
	must(t, b.Stop(ctx, Fast)) // its slot on a stays
	control, err := b.control(ctx)
	must(t, err)
	writesOn(ctx, t, a, 5)
	c := newInstance(t, settings(t, filepath.Dir(a.dataDir), "c"))
	keepSlots(ctx, t, a, "b", "c")
	must(t, c.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, c, a)
	if gone, err := b.WALGone(ctx, upstream(c), id, 1, control.MinRecovery); !gone || err != nil {
		t.Errorf("from c: %t, %v", gone, err)
	}
	if gone, err := b.WALGone(ctx, upstream(a), id, 1, control.MinRecovery); gone || err != nil {
		t.Errorf("from the leader: %t, %v", gone, err)
	}
}

// Nobody sees among the standbys of a primary that it is asked.
func TestWALGoneIsAskedUnseen(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	id := observe(ctx, t, a, "is there", func(s State) bool { return s.Accepting }).SystemIdentifier
	keepsNoWAL(ctx, t, a)
	_, end, err := a.PositionOf(ctx, upstream(a))
	must(t, err)
	sql(ctx, t, a, "CREATE TABLE public.seen (name text)")
	writesOn(ctx, t, a, 4)
	for _, lsn := range []int64{end, 1 << 24, 1 << 40} {
		if _, err := b.WALGone(ctx, upstream(a), id, 1, lsn); err != nil {
			t.Fatal(err)
		}
		for _, s := range observe(ctx, t, a, "is there", func(s State) bool { return s.Accepting }).Standbys {
			if s.ApplicationName == agentName {
				t.Errorf("among its standbys is %+v", s)
			}
		}
	}
}
