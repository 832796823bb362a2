package postgres

import (
	"os"
	"path/filepath"
	"testing"
)

// A promotion that was killed half-way has left the history of timeline 2, on which nobody
// is; the member went on on timeline 1 and was shut down. It follows the leader, which is
// on timeline 3, all the same.
func TestHistoryOfAPromotionThatWasKilled(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := newInstance(t, settings(t, newDir(t), "a")), newInstance(t, settings(t, newDir(t), "b"))
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	keepSlots(ctx, t, a, "b")
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	observe(ctx, t, b, "streams", func(s State) bool { return s.ReplicationState == Streaming })
	must(t, a.Stop(ctx, Fast)) // b gets all WAL
	must(t, b.Promote(ctx, 2))
	observe(ctx, t, b, "is on timeline 3", func(s State) bool { return s.Accepting && s.Timeline == 3 })

	stale := filepath.Join(a.dataDir, "pg_wal", "00000002.history")
	must(t, os.WriteFile(stale, []byte("1\t0/1000000\tkilled\n"), 0o600))
	give(t, a, stale)
	outcome, err := a.Rewind(ctx, upstream(b), false)
	must(t, err)
	if outcome != NotNeeded {
		t.Fatalf("it is %s", outcome)
	}
	keepSlots(ctx, t, b, "a")
	follow(ctx, t, a, b)
	observe(ctx, t, a, "follows on timeline 3", func(s State) bool { return s.ReplicationState == Streaming && s.Timeline == 3 })
}
