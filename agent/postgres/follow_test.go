package postgres

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
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
	t.Parallel()
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

// A new configuration is written while a replica is told whom to follow, as after a
// reload: it must not put back what the file said before. A voter that has detached from an
// old leader would receive from it again.
func TestFollowWhileRewriting(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	_, b := pair(ctx, t)
	b.files.Lock() // as Unfollow has them, which writes and notes whom PostgreSQL follows
	rewritten := make(chan error)
	go func() {
		_, err := b.Rewrite(ctx)
		rewritten <- err
	}()
	testkit.Await(ctx, t, "Rewrite does not wait for the files", func() error {
		stacks := make([]byte, 1<<20)
		for _, one := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(one, "sync.(*Mutex).Lock") && strings.Contains(one, ".Rewrite(") {
				return nil
			}
		}
		return errors.New("no goroutine does")
	})
	b.setRuns(as{role: Replica})
	b.files.Unlock()
	must(t, <-rewritten)
	lines, err := b.readConf(b.inData("postgresql.conf"))
	must(t, err)
	if line, _ := lastOf(lines, "primary_conninfo"); line.Value != "" {
		t.Errorf("primary_conninfo is %q", line.Value)
	}
}

// A replica that was started to follow nobody, and waits for WAL that it does not have before it answers, gets that
// from whom it is pointed at then.
func TestFollowWhileStarting(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	if b.Major() < reloadableConninfo {
		t.Skip("it is restarted to follow another one")
	}
	sql(ctx, t, a, "CREATE TABLE public.t (n int)")
	sql(ctx, t, a, "SELECT pg_switch_wal()")
	sql(ctx, t, a, "INSERT INTO public.t SELECT generate_series(1, 1000)")
	caughtUp(ctx, t, a, b)
	must(t, b.Stop(ctx, Fast)) // it has come to there, and says so in its control file
	segments := matches(t, b.dataDir, "pg_wal/00000001????????????????")
	control, err := b.control(ctx)
	must(t, err)
	last, err := b.segmentAt(1, control.MinRecovery-1)
	must(t, err)
	first, err := b.segmentAt(1, control.CheckpointLSN)
	if must(t, err); last == "" || first == "" || last == first {
		t.Fatalf("of %v it needs %s to %s", segments, first, last)
	}
	must(t, os.Remove(last))
	must(t, b.Start(ctx, StartAs{Role: Replica}))
	if s, err := b.Observe(ctx); err != nil || s.Accepting || !s.Running {
		t.Fatalf("it answers without the WAL: %+v, %v", s, err)
	}
	must(t, b.Follow(ctx, upstream(a)))
	caughtUp(ctx, t, a, b)
}
