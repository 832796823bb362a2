package postgres

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Replay that stands still is told with its cause; that of a replica with less of
// something than its primary goes on after a restart.
func TestStandstill(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	s := observe(ctx, t, b, "replays", func(s State) bool { return s.Accepting })
	if s.Standstill != "" || s.Undersized {
		t.Errorf("replays, and says: %q, undersized %v", s.Standstill, s.Undersized)
	}

	sql(ctx, t, b, "SELECT pg_wal_replay_pause()")
	s = observe(ctx, t, b, "says that it was paused", func(s State) bool { return s.Standstill != "" })
	if s.Standstill != "paused by pg_wal_replay_pause()" || s.Undersized {
		t.Errorf("paused by an operator: %q, undersized %v", s.Standstill, s.Undersized)
	}
	sql(ctx, t, b, "SELECT pg_wal_replay_resume()")
	observe(ctx, t, b, "replays again", func(s State) bool { return s.Accepting && s.Standstill == "" })

	delayed := func(delay any) {
		b.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{RecoveryConf: map[string]any{"recovery_min_apply_delay": delay}}})
		rewrite(ctx, t, b)
	}
	delayed("90min")
	s = observe(ctx, t, b, "says that it is delayed", func(s State) bool { return s.Standstill != "" })
	if s.Standstill != "delayed by recovery_min_apply_delay, 90min" || s.Undersized {
		t.Errorf("delayed: %q, undersized %v", s.Standstill, s.Undersized)
	}
	delayed(0)
	observe(ctx, t, b, "is not delayed any more", func(s State) bool { return s.Accepting && s.Standstill == "" })

	// The primary is restarted with more of everything; the replica is not.
	a.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: map[string]any{"max_connections": 133, "max_worker_processes": 11}}})
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	if b.Major() < 14 {
		select { // it ends
		case <-b.Exited():
		case <-ctx.Done():
			t.Fatal("the replica still runs")
		}
	} else {
		s = observe(ctx, t, b, "says what it lacks", func(s State) bool { return s.Undersized })
		if want := "paused until a restart: max_connections is 100 here, 133 on the primary, max_worker_processes is 8 here, 11 on the primary"; s.Standstill != want {
			t.Errorf("undersized: %q, want %q", s.Standstill, want)
		}
		must(t, b.Stop(ctx, Fast))
	}
	follow(ctx, t, b, a)
	sql(ctx, t, a, "CREATE TABLE public.after (n int)")
	caughtUp(ctx, t, a, b)
	if s = observe(ctx, t, b, "replays", func(s State) bool { return s.Accepting }); s.Standstill != "" || s.Undersized {
		t.Errorf("after the restart: %q, undersized %v", s.Standstill, s.Undersized)
	}
}
