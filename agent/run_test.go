package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/pg"
)

// newRunner is a runner whose loop takes up what is posted until the test ends.
func newRunner(t *testing.T) (r *runner, stop func()) {
	t.Helper()
	r = &runner{events: make(chan func())}
	r.ctx, r.end = context.WithCancel(t.Context())
	r.goDo(func(ctx context.Context) {
		for {
			select {
			case f := <-r.events:
				f()
			case <-ctx.Done():
				return
			}
		}
	})
	return r, func() { r.end(); r.work.Wait() }
}

// What is asked of the loop has its answer, now or later, and nobody waits for one that does
// not come.
func TestAskTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := newRunner(t)
		if err := r.ask(t.Context(), func() error { return nil }); err != nil {
			t.Error(err)
		}
		if err := r.ask(t.Context(), func() error { return member.Refused{Why: "not now"} }); !errors.Is(err, api.ErrRefused) {
			t.Errorf("refused: %v", err)
		}
		var later func(error)
		began := time.Now()
		r.afterwards(time.Minute, func() { later(nil) })
		if err := r.hear(t.Context(), func(done func(error)) { later = done }); err != nil || time.Since(began) != time.Minute {
			t.Errorf("answered after %v: %v", time.Since(began), err)
		}
		limited, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.hear(limited, func(func(error)) {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("never answered: %v", err)
		}
		stop()
		for what, f := range map[string]func(func(error)){"no loop": func(func(error)) {}, "no answer": func(done func(error)) { done(nil) }} {
			if err := r.hear(t.Context(), f); !errors.Is(err, errStopping) {
				t.Errorf("the agent has ended, %s: %v", what, err)
			}
		}
	})
}

// A call's answer comes on the loop, also when its limit has passed.
func TestCallInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := newRunner(t)
		answers := make(chan error, 1)
		order(r, time.Second, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, func(err error) { answers <- err })
		if err := <-answers; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		w := &member.Work{}
		work(r, w, 0, func(ctx context.Context) error { return ctx.Err() }, func(err error) { answers <- err })
		if err := <-answers; err != nil {
			t.Error(err)
		}
		stop()
	})
}

// Whoever waits for what the loop shows sees each state, the one that is there already first.
func TestAwaitAState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := newRunner(t)
		b := newBoard(r)
		b.show(&api.State{Reason: "first"})
		reason := func(want string) func(api.State) bool { return func(s api.State) bool { return s.Reason == want } }
		if err := b.await(t.Context(), reason("first")); err != nil {
			t.Error(err)
		}
		r.afterwards(time.Second, func() { b.show(&api.State{Reason: "second"}) })
		r.afterwards(2*time.Second, func() { b.show(&api.State{Reason: "third"}) })
		began := time.Now()
		if err := b.await(t.Context(), reason("third")); err != nil || time.Since(began) != 2*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		limited, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.await(limited, reason("fourth")); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		stop()
		if err := b.await(t.Context(), reason("fourth")); !errors.Is(err, errStopping) {
			t.Error(err)
		}
	})
}

// How far a clone is, is shown with the task that makes it, and with no later one.
func TestACloneIsShownWithItsTask(t *testing.T) {
	b := newBoard(&runner{})
	began := time.Now()
	tell := b.cloneProgress("b", zerolog.Nop())
	tell(pg.Copying{Method: "basebackup", Done: 10 << 20, Total: 100 << 20, Failed: "method x: no such stanza"})
	for kind, since := range map[string]time.Time{"clone": began.Add(-time.Second), "": {}, "rejoin": began.Add(time.Minute)} {
		b.show(&api.State{Task: api.Progress{Kind: kind, Since: since}})
		got := b.State().Task
		if want := kind == "clone"; (got.Total == 100<<20 && got.Done == 10<<20 && got.From == "b") != want {
			t.Errorf("%q: %+v", kind, got)
		}
		now, _ := b.Copying(since)
		if want := map[bool]string{true: "basebackup, 10 of 100 MB; method x: no such stanza"}[kind == "clone"]; now != want {
			t.Errorf("%q: %q, want %q", kind, now, want)
		}
	}
	if _, made := b.Copying(time.Time{}); made != "" {
		t.Errorf("made: %q", made)
	}
	b.copyMade()
	if _, made := b.Copying(time.Time{}); !strings.HasSuffix(made, "Z by basebackup in 0 s; method x: no such stanza") {
		t.Errorf("made: %q", made)
	}
}

// The end of the agent waits for what is under way, but not for ever.
func TestTheEndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newRunner(t)
		release := make(chan struct{})
		r.goDo(func(context.Context) { <-release })
		began := time.Now()
		r.end()
		r.awaitWork(zerolog.Nop())
		if time.Since(began) != workLimit {
			t.Errorf("waited for %v", time.Since(began))
		}
		close(release)
		r.awaitWork(zerolog.Nop())
		if time.Since(began) != workLimit {
			t.Errorf("waited for %v", time.Since(began))
		}
	})
}
