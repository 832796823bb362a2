package postgres

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A primary says whether a standby can go on from where it stands; a standby that cannot
// counts as one that has replayed all it has, and receives nothing.
func TestWALGone(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	must(t, b.Stop(ctx, Fast))
	sql(ctx, t, a, "CREATE TABLE public.more (n int)")
	sql(ctx, t, a, "SELECT pg_drop_replication_slot('b')")
	sql(ctx, t, a, "ALTER SYSTEM SET wal_keep_size = 0")
	sql(ctx, t, a, "SELECT pg_reload_conf()")
	control, err := b.control(ctx)
	must(t, err)
	at := control.MinRecovery
	gone, err := a.WALGone(ctx, upstream(a), 1, at)
	if gone || err != nil {
		t.Fatalf("before it is: %t, %v", gone, err)
	}
	_, end, err := a.PositionOf(ctx, upstream(a))
	must(t, err)
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if gone, err := a.WALGone(soon, upstream(a), 1, end); gone || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at its end: %t, %v", gone, err)
	}
	for range 4 {
		sql(ctx, t, a, "INSERT INTO public.more VALUES (1)")
		sql(ctx, t, a, "SELECT pg_switch_wal()")
		must(t, a.Checkpoint(ctx))
	}
	if gone, err := a.WALGone(ctx, upstream(a), 1, at); !gone || err != nil {
		t.Errorf("after it went: %t, %v", gone, err)
	}
	if gone, err := a.WALGone(ctx, upstream(a), 7, at); gone || err == nil {
		t.Errorf("of a timeline that never was: %t, %v", gone, err)
	}
	up := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	stands := observe(ctx, t, b, "stands still", func(s State) bool { return s.Accepting && !s.Replaying && s.ReplicationState != Streaming })
	if gone, err := a.WALGone(ctx, upstream(a), stands.Timeline, stands.LSN()); !gone || err != nil {
		t.Errorf("where the standby stands: %t, %v", gone, err)
	}
}
