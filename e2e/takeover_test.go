package e2e

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// takeoverLimit is how long clients may not be able to write when the primary's host has fallen silent (design 5.30). Where
// other work takes the processors that is no figure, and only far less than the lease.
func takeoverLimit() time.Duration {
	if os.Getenv("LICTOR_TEST_FIGURES") != "" {
		return 3500 * time.Millisecond
	}
	return 10 * time.Second
}

// With takeover: quorum a host that is lost costs seconds, though its lease of 30 s runs on, and no row that was
// acknowledged.
func TestTakeoverByQuorum(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: each host has a network of its own")
	}
	for name, shard := range map[string]struct {
		mode    any
		members int
	}{"on": {true, 3}, "quorum": {"quorum", 3}, "two members, and bouncers": {true, 2}} {
		t.Run(name, func(t *testing.T) {
			l := start(t, lab.Options{
				Substrate: lab.Netns, TTL: 30, Members: shard.members,
				Dynamic: map[string]any{"synchronous_mode": shard.mode, "takeover": "quorum"},
			})
			s := l.Shard(0)
			ctx := within(t)
			must(t, s.Prepare(ctx))
			must(t, l.AwaitServing(ctx))
			must(t, l.AwaitPoolers(ctx))
			old := got(s.AwaitHealthy(ctx))(t)
			await(ctx, t, "the leader does not consent", func() error { return consents(ctx, s) })
			w := clients(t, s, func(ctx context.Context) {
				must(t, old.PowerOff(ctx))
				got(s.AwaitLeader(ctx, old))(t)
				must(t, old.Start(ctx))
			})
			if gap := w.Writes.LongestGap(time.Time{}, time.Now()); gap > takeoverLimit() {
				t.Errorf("clients could not write for %s, more than %s", gap, takeoverLimit())
			}
			if leads := got(s.Leader(ctx))(t); leads == old {
				t.Errorf("%s leads again", old.Name)
			}
		})
	}
}

// consents is why the leader of a shard may not be replaced before its lease is over.
func consents(ctx context.Context, s *lab.Shard) error {
	now, err := s.Snapshot(ctx)
	if err != nil {
		return err
	}
	if b := now.Status.Value.Lictor; b == nil || !b.Consents() {
		return errors.New("its last beat does not say so")
	}
	return nil
}
