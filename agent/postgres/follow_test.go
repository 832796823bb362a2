package postgres

import (
	"context"
	"errors"
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

// A replica that is not consistent yet, as the WAL for that is to come from its upstream, answers no SQL; it
// follows another upstream all the same, and is stopped as any other.
func TestFollowBeforeItAnswers(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a := newInstance(t, settings(t, dir, "a"))
	id := bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	s := settings(t, dir, "b")
	s.Postgres.CreateReplica = []string{"without"}
	s.Postgres.Methods = map[string]any{"without": map[string]any{
		"command": writeScript(t, dir, "without-wal.sh", getDatadir+binDir(t)+`/pg_basebackup -w -D "$d" -X none -c fast -d "$c"`),
	}}
	keepSlots(ctx, t, a, "b")
	b := newInstance(t, s)
	up := upstream(a)
	must(t, b.MakeReplica(ctx, &up, id, nil))
	nobody := up
	nobody.Name, nobody.Port = "gone", 1
	for range 2 {
		must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &nobody}))
		if s, err := b.Observe(ctx); err != nil || !s.Running || s.Accepting || s.Silent {
			t.Fatalf("without the WAL that makes it consistent: %+v, %v", s, err)
		}
		must(t, b.Stop(ctx, Fast))
	}
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &nobody}))
	must(t, b.Follow(ctx, up))
	observe(ctx, t, b, "follows another upstream, and answers", func(s State) bool { return s.Accepting })
	caughtUp(ctx, t, a, b)
}
