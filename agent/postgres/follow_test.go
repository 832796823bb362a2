package postgres

import (
	"context"
	"testing"
)

// receivedLSN is how far a replica has received WAL.
func receivedLSN(ctx context.Context, t *testing.T, p *Instance) int64 {
	t.Helper()
	s, err := p.Observe(ctx)
	must(t, err)
	return s.ReceivedLSN
}

// A replica that follows nobody acknowledges nothing any more, also when it is slow
// to replay, which is when PostgreSQL itself would leave the WAL receiver at work.
func TestUnfollow(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	sql(ctx, t, a, "CREATE TABLE public.t (n int)")
	caughtUp(ctx, t, a, b)
	sql(ctx, t, b, "SELECT pg_wal_replay_pause()")
	sql(ctx, t, a, "INSERT INTO public.t SELECT generate_series(1, 1000)")
	must(t, b.Unfollow(ctx))
	if b.Upstream() != "" {
		t.Errorf("still follows %q", b.Upstream())
	}
	before := receivedLSN(ctx, t, b)
	sql(ctx, t, a, "INSERT INTO public.t SELECT generate_series(1, 1000)")
	told := false
	if receiver, err := b.walReceiver(ctx, &told); err != nil || receiver != 0 || !told {
		t.Errorf("WAL receiver %d, told %v: %v", receiver, told, err)
	}
	sql(ctx, t, b, "SELECT pg_wal_replay_resume()")
	observe(ctx, t, b, "has replayed what it had", func(s State) bool { return s.ReplayedLSN >= before })
	if after := receivedLSN(ctx, t, b); after != before {
		t.Errorf("it has received up to %d, and said %d", after, before)
	}
	must(t, b.Follow(ctx, upstream(a)))
	caughtUp(ctx, t, a, b)
}
