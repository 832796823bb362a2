package member

import (
	"slices"
	"testing"
	"time"
)

func TestAwait(t *testing.T) {
	w := newWorld(t)
	holds := false
	var got []bool
	wait := func(work *Work) {
		w.waiters.await(work, time.Minute, func() bool { return holds }, func(held bool) { got = append(got, held) })
	}
	work := &Work{}
	wait(nil)
	wait(work)
	w.waiters.tell()
	if len(got) != 0 {
		t.Fatal("told too soon")
	}
	work.breakOff(ErrBroken)
	if !slices.Equal(got, []bool{false}) {
		t.Fatalf("%v", got)
	}
	holds = true
	w.waiters.tell()
	wait(nil) // it holds already
	if !slices.Equal(got, []bool{false, true, true}) {
		t.Fatalf("%v", got)
	}
	holds = false
	wait(nil)
	w.pass(time.Minute)
	w.waiters.tell()
	if !slices.Equal(got, []bool{false, true, true, false}) || len(w.waiters.all) != 0 {
		t.Fatalf("%v, %d wait", got, len(w.waiters.all))
	}
}
