package postgres

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lictor-ha/lictor/agent/pg"
)

// A standby is stopped while it receives the first segment of a new timeline again
// from its beginning, before it has come to the fork: it must start all the same.
func TestStartWithAPartOfANewTimeline(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	sql(ctx, t, a, "CREATE TABLE public.t AS SELECT generate_series(1, 20000) AS n")
	caughtUp(ctx, t, a, b)
	must(t, b.Stop(ctx, Fast))
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Replica}))
	must(t, a.Promote(ctx, 0))
	history, err := a.TimelineHistory(2)
	must(t, err)
	fork := history[len(history)-1].LSN
	whole, err := a.segmentAt(2, fork)
	must(t, err)
	control, err := b.control(ctx)
	must(t, err)
	if control.Timeline != 1 {
		t.Fatalf("b is on timeline %d already", control.Timeline)
	}

	// What b's WAL receiver would have left.
	content, err := os.ReadFile(whole)
	must(t, err)
	const page = 8192
	upTo := fork % int64(len(content)) / page / 2 * page
	if upTo == 0 {
		t.Fatalf("the fork %s is too near to the beginning of its segment", pg.FormatLSN(fork))
	}
	clear(content[upTo:])
	part := b.inData(filepath.Join("pg_wal", filepath.Base(whole)))
	must(t, b.writeNew(part, string(content)))
	text, err := os.ReadFile(a.historyFile(2))
	must(t, err)
	must(t, b.writeNew(b.historyFile(2), string(text)))

	up := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	caughtUp(ctx, t, a, b)
	observe(ctx, t, b, "on the new timeline", func(s State) bool { return s.ReplicationState == Streaming && s.Timeline == 2 })

	// One that goes beyond the fork holds WAL of its own: it stays.
	must(t, b.Stop(ctx, Fast))
	must(t, b.removePartialSegment(ctx, Control{Timeline: 1}))
	if _, err := os.Stat(part); err != nil {
		t.Errorf("a segment with WAL of its own: %v", err)
	}
}
