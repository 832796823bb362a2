package postgres

import (
	"context"
	"errors"
	"testing"
	"time"
)

// diverge makes a a primary that was stopped and has WAL which the new one, b, has not.
func diverge(ctx context.Context, t *testing.T) (a, b *Instance) {
	t.Helper()
	a, b = pair(ctx, t)
	caughtUp(ctx, t, a, b)
	must(t, b.Promote(ctx, 0))
	sql(ctx, t, b, "CREATE TABLE public.theirs (n int)")
	sql(ctx, t, a, "CREATE TABLE public.mine (n int)")
	must(t, a.Stop(ctx, Fast))
	must(t, b.Checkpoint(ctx))
	return a, b
}

// A rewind whose connection is refused, or which is broken off before it has written anything, is
// tried again: it is no reason to take the data away. Until then they are a standby's: whatever
// starts PostgreSQL on them makes no primary, and no agent takes them for the shard's last one.
func TestRewindThatIsRefused(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := diverge(ctx, t)
	must(t, a.Start(ctx, StartAs{Role: Replica})) // as it is while nobody leads
	must(t, a.Kill(ctx))
	isStandby := func(when string) {
		t.Helper()
		if d, err := a.DataDir(ctx); err != nil || !d.Standby {
			t.Errorf("%s: the data are a primary's: %v, %v", when, d.State, err)
		}
	}
	sql(ctx, t, b, `ALTER ROLE "Rewinder" CONNECTION LIMIT 0`)
	if _, err := a.Rewind(ctx, upstream(b), true); err == nil || errors.Is(err, ErrDiverged) {
		t.Errorf("its connection is refused: %v", err)
	}
	isStandby("its connection is refused")
	sql(ctx, t, b, `ALTER ROLE "Rewinder" CONNECTION LIMIT -1`)
	for d := 100 * time.Millisecond; ; d += 100 * time.Millisecond {
		soon, cancel := context.WithTimeout(ctx, d)
		out, err := a.Rewind(soon, upstream(b), true)
		cancel()
		if err == nil {
			if out != Rewound {
				t.Errorf("in the end: %s", out)
			}
			return
		}
		half, halfErr := a.rewindCutShort()
		must(t, halfErr)
		if half {
			return // it had begun to write
		}
		if errors.Is(err, ErrDiverged) {
			t.Fatalf("broken off after %s: %v", d, err)
		}
		isStandby("broken off after " + d.String())
	}
}

// At the address of a member another cluster answers, which takes the same passwords: it is not
// the leader that lets data be removed, and nothing is copied from it.
func TestAnotherClusterAnswers(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a := newInstance(t, settings(t, newDir(t), "a"))
	x := newInstance(t, settings(t, newDir(t), "x"))
	b := newInstance(t, settings(t, newDir(t), "b"))
	shard := bootstrapped(ctx, t, a)
	bootstrapped(ctx, t, x)
	must(t, x.Start(ctx, StartAs{Role: Primary}))
	at := upstream(x)
	if b.Answers(ctx, at, true, shard) == nil || b.Answers(ctx, at, true, "") != nil || b.Answers(ctx, at, false, shard) == nil {
		t.Error("another cluster answers as a member of the shard, or none does")
	}
	if err := b.MakeReplica(ctx, &at, shard, nil); err == nil {
		t.Error("it was cloned")
	}
	if d, err := b.DataDir(ctx); err != nil || d.State != Empty {
		t.Errorf("left behind: %v, %v", d.State, err)
	}
	must(t, b.MakeReplica(ctx, &at, "", nil))
}
