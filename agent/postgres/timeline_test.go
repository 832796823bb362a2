package postgres

import (
	"os"
	"testing"
)

// A member that was lost may have promoted to the next timelines, of which nothing
// has reached this one.
func TestPromotionPassesOverTimelines(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	must(t, a.Stop(ctx, Fast))
	must(t, b.Promote(ctx, 3))
	observe(ctx, t, b, "on a timeline that nobody can have", func(s State) bool { return !s.InRecovery && s.Timeline == 4 })
	history, err := b.TimelineHistory(4)
	must(t, err)
	if len(history) != 1 || history[0].Timeline != 1 {
		t.Errorf("history %+v", history)
	}

	// An agent that was killed in the middle of it leaves its marks.
	leave := func(p *Instance, above int) {
		t.Helper()
		c, err := p.control(ctx)
		must(t, err)
		must(t, p.skipTimelines(max(c.Timeline, c.MinRecoveryTimeline), above))
		if _, err := os.Stat(p.historyFile(above)); err != nil {
			t.Error(err)
		}
	}
	leave(b, 6)
	must(t, b.Stop(ctx, Fast))
	must(t, b.Start(ctx, StartAs{Role: Primary}))
	for n, want := range map[int]bool{3: true, 4: true, 5: false, 6: false} {
		if _, err := os.Stat(b.historyFile(n)); err == nil != want {
			t.Errorf("history of timeline %d: %v, %v", n, !want, err)
		}
	}
	keepSlots(ctx, t, b, "a")
	follow(ctx, t, a, b)
	caughtUp(ctx, t, b, a)
	leave(a, 7)
	must(t, a.Stop(ctx, Fast))
	follow(ctx, t, a, b)
	caughtUp(ctx, t, b, a)
	must(t, a.Promote(ctx, 0))
	observe(ctx, t, a, "the usual number", func(s State) bool { return !s.InRecovery && s.Timeline == 5 })
}
