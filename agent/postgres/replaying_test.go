package postgres

import (
	"maps"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/pg"
)

// What a standby received in an earlier life it replays while it answers already: until
// it has, its positions are not what it has acknowledged.
func TestPositionOfAStandbyThatReplays(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	sql(ctx, t, a, "CREATE TABLE public.t (n int)")
	caughtUp(ctx, t, a, b)
	observe(ctx, t, b, "has replayed", func(s State) bool { return !s.Replaying })
	sql(ctx, t, b, "CHECKPOINT")
	sql(ctx, t, b, "SELECT pg_wal_replay_pause()") // so that a crash makes it begin here
	for range 3 {
		sql(ctx, t, a, "INSERT INTO public.t SELECT generate_series(1, 10000)")
	}
	end := observe(ctx, t, a, "a primary", func(s State) bool { return true }).WriteLSN
	has := observe(ctx, t, b, "has received all", func(s State) bool { return s.ReceivedLSN >= end }).ReceivedLSN
	crash(t, b)

	local := *b.local.Load()
	local.RecoveryConf = maps.Clone(local.RecoveryConf)
	if local.RecoveryConf == nil {
		local.RecoveryConf = map[string]any{}
	}
	local.RecoveryConf["recovery_min_apply_delay"] = "1h" // it takes as long as we like
	b.Reconfigure(local)
	must(t, b.Start(ctx, StartAs{Role: Replica}))
	seen := 0
	before := observe(ctx, t, b, "answers", func(s State) bool {
		if s.Accepting {
			seen++
		}
		if s.Accepting && !s.Replaying {
			t.Fatalf("it says that it has all it has at %s, and had acknowledged %s", pg.FormatLSN(s.LSN()), pg.FormatLSN(has))
		}
		return seen > 5
	})
	if before.LSN() >= has {
		t.Fatalf("it is at %s at once: this tests nothing", pg.FormatLSN(before.LSN()))
	}

	delete(local.RecoveryConf, "recovery_min_apply_delay")
	b.Reconfigure(local)
	rewrite(ctx, t, b)
	allThere := func(s State) bool {
		if s.Accepting && !s.Replaying && s.LSN() < has {
			t.Fatalf("it says that it has all it has at %s, and had acknowledged %s", pg.FormatLSN(s.LSN()), pg.FormatLSN(has))
		}
		return s.Accepting && !s.Replaying
	}
	observe(ctx, t, b, "has replayed what it had", allThere)

	// The postmaster stays when one of its processes crashes; recovery begins anew.
	local.RecoveryConf["recovery_min_apply_delay"] = "1h"
	b.Reconfigure(local)
	rewrite(ctx, t, b)
	must(t, b.Follow(ctx, upstream(a)))
	sql(ctx, t, a, "INSERT INTO public.t SELECT generate_series(1, 10000)")
	end = observe(ctx, t, a, "a primary", func(s State) bool { return true }).WriteLSN
	has = observe(ctx, t, b, "has received all", func(s State) bool { return s.ReceivedLSN >= end && !s.Replaying }).ReceivedLSN
	told := false
	receiver, err := b.walReceiver(ctx, &told)
	must(t, err)
	must(t, unix.Kill(receiver, unix.SIGKILL))
	seen = 0
	observe(ctx, t, b, "begins anew", func(s State) bool {
		if allThere(s); s.Replaying {
			seen++
		}
		return seen > 5
	})
}

// A standby that has followed to a new timeline says so when it is started anew, though
// its control file does not know yet: else it would count as behind one that has less.
func TestTimelineOfAStandbyThatWasStartedAnew(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	sql(ctx, t, a, "CREATE TABLE public.t (n int)")
	caughtUp(ctx, t, a, b)
	sql(ctx, t, b, "CHECKPOINT")
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Replica}))
	must(t, a.Promote(ctx, 0))
	sql(ctx, t, a, "INSERT INTO public.t SELECT generate_series(1, 1000)")
	observe(ctx, t, b, "on the new timeline", func(s State) bool { return s.Timeline == 2 && s.ReplicationState == Streaming })
	caughtUp(ctx, t, a, b)
	has := observe(ctx, t, b, "on the new timeline", func(s State) bool { return s.Timeline == 2 })
	crash(t, b)
	control, err := b.control(ctx)
	must(t, err)
	if control.Timeline != 1 || control.MinRecoveryTimeline > 1 {
		t.Skipf("the control file knows of timeline %d, %d already: this tests nothing", control.Timeline, control.MinRecoveryTimeline)
	}
	must(t, b.Start(ctx, StartAs{Role: Replica}))
	s := observe(ctx, t, b, "has replayed", func(s State) bool { return s.Accepting && !s.Replaying })
	if s.Timeline != 2 || s.LSN() < has.LSN() {
		t.Errorf("it is on timeline %d at %s, and was on %d at %s", s.Timeline, pg.FormatLSN(s.LSN()), has.Timeline, pg.FormatLSN(has.LSN()))
	}
}
