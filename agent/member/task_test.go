package member

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// left is what a look at the data directory finds: data of a standby's.
func (w *world) left() Found {
	return Found{Data: Data{State: ha.DataValid, SystemIdentifier: systemA, Timeline: 3}}
}

// looked answers the look at what a task has left.
func (w *world) looked() {
	w.t.Helper()
	w.answer("Postgres.Look", w.left(), true)
}

func TestWork(t *testing.T) {
	work, calls := &Work{}, 0
	work.OnBreak(func() { calls++ })
	work.breakOff(ErrTooLong)
	work.breakOff(ErrBroken)
	if calls != 1 || !errors.Is(work.Broken(), ErrTooLong) {
		t.Fatalf("%d calls, %v", calls, work.Broken())
	}
	work.OnBreak(func() { calls++ })
	if calls != 2 {
		t.Fatal("work that is broken off already")
	}
}

func TestInOrder(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail int // the step that fails
		stop int // the step during which the work is broken off
		done []int
		want error
	}{
		{"all", -1, -1, []int{0, 1, 2}, nil},
		{"one fails", 1, -1, []int{0, 1}, errBoom},
		{"broken off", -1, 1, []int{0, 1}, ErrBroken},
		{"broken off in the last", -1, 2, []int{0, 1, 2}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			work := &Work{}
			var done []int
			var steps []step
			for i := range 3 {
				steps = append(steps, func(_ *Work, next func(error)) {
					done = append(done, i)
					if i == tt.stop {
						work.breakOff(ErrBroken)
					}
					if i == tt.fail {
						next(errBoom)
						return
					}
					next(nil)
				})
			}
			told := 0
			inOrder(steps...)(work, func(err error) {
				told++
				if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
					t.Errorf("ended with %v", err)
				}
			})
			if told != 1 || !slices.Equal(done, tt.done) {
				t.Fatalf("told %d times, done %v", told, done)
			}
		})
	}
}

// A task ends with a look at what it has left; then its outcome is noted.
func TestATaskEndsWithALook(t *testing.T) {
	w := newWorld(t)
	w.Watches.KickPostgres()
	w.kicked["postgres"] = 0
	var o outcomeOf
	var end func(error)
	w.startTask(ha.TaskClone, func(_ *Work, e func(error)) { end = e }, o.done)
	w.wantTask(ha.TaskClone)
	if !w.View().Postgres.Restoring || w.TaskSince() != w.wall || w.Idle() {
		t.Fatal("a clone replaces the data")
	}
	began := w.clock
	w.pass(time.Second)
	end(nil)
	w.wantTask(ha.TaskClone)
	o.want(t, 0, false)
	w.running = false
	if c := w.take("Postgres.Look"); c.args[0] != time.Duration(0) {
		t.Fatalf("the look is bounded: %v", c.args)
	} else {
		c.answer(Found{Data: Data{State: ha.DataValid, WasPrimary: true}, Loss: &pg.Loss{ID: "x"}}, true)
	}
	o.want(t, 1, false)
	if w.Data.State != ha.DataValid || w.Loss == nil || w.PG.Running || w.PG.Observed.Accepting || !w.PG.Primary() || w.kicked["postgres"] != 1 {
		t.Fatalf("%+v, kicked %v", w.PG, w.kicked)
	}
	if w.TaskKind() != ha.TaskNone || !w.TaskSince().IsZero() {
		t.Fatal("the task is not over")
	}
	// What was looked at before the end, or from the beginning on, shows what is no longer so.
	for _, at := range []time.Duration{0, time.Second} {
		w.Saw(Look{Began: began.Add(at), State: pg.State{Running: true, Accepting: true}})
		if w.PG.Running {
			t.Fatalf("a look of %v after the beginning counts", at)
		}
	}
	w.pass(1)
	w.Saw(Look{Began: w.clock, State: pg.State{Running: true, Accepting: true}})
	if !w.PG.Running {
		t.Fatal("a look of after the end does not count")
	}
}

// What a look that did not end would have shown is believed to be as before.
func TestALookThatDoesNotEnd(t *testing.T) {
	w := newWorld(t)
	w.startTask(ha.TaskStart, func(_ *Work, end func(error)) { end(nil) }, nil)
	look := w.take("Postgres.Look")
	if look.w.Broken() != nil {
		t.Fatal("broken off")
	}
	w.fenceNow() // interrupted, it gets a short time
	w.pass(lookWithin - 1)
	if look.w.Broken() != nil {
		t.Fatal("broken off at once")
	}
	w.pass(1)
	if look.w.Broken() == nil {
		t.Fatal("it may take for ever")
	}
	look.answer(Found{Data: Data{State: ha.DataForeign}}, false)
	if w.Data.State != ha.DataValid {
		t.Fatal("what was not seen counts")
	}
	w.wantTask(ha.TaskDemote)
}

// A failure keeps its kind from being tried again at once; each is waited for longer.
func TestNoteAttempt(t *testing.T) {
	w := newWorld(t)
	for i, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		w.noteAttempt(ha.TaskClone, errBoom)
		if a := w.Attempt; a.Kind != ha.TaskClone || a.Failures != i+1 || a.NotUntil != w.clock.Add(want*time.Second) {
			t.Fatalf("failure %d: %+v", i+1, a)
		}
	}
	w.noteAttempt(ha.TaskStart, nil)
	if w.Attempt.Failures != 6 {
		t.Fatal("another kind's success counts")
	}
	w.noteAttempt(ha.TaskStart, errBoom)
	if a := w.Attempt; a.Kind != ha.TaskStart || a.Failures != 1 {
		t.Fatalf("%+v", a)
	}
	w.noteAttempt(ha.TaskStart, errors.Join(errBoom, ErrBroken))
	if w.Attempt != (ha.Attempt{}) {
		t.Fatal("what was broken off has failed")
	}
	for range 12 {
		w.noteAttempt(ha.TaskBootstrap, errBoom)
	}
	if w.Attempt.NotUntil != w.clock.Add(backoffBootstrap) {
		t.Fatalf("%+v", w.Attempt)
	}
}
