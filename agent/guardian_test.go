package agent

import (
	"context"
	"testing"
	"testing/synctest"
)

// A mark is made when the loop has heard of the one before: else it could hear of the later
// one first, and take the earlier one for what the disk says.
func TestMarksAreHeardOfInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := &guarded{runner: &runner{ctx: ctx, events: make(chan func())}}
		var made, heard []string
		for _, name := range []string{"led", "paused", "removed"} {
			g.mark(func() error { made = append(made, name); return nil }, func(error) { heard = append(heard, name) })
		}
		for i, want := range []string{"led", "paused", "removed"} {
			synctest.Wait()
			if len(made) != i+1 {
				t.Fatalf("%v were made though the loop has heard of %v alone", made, heard)
			}
			(<-g.events)()
			if heard[i] != want {
				t.Fatalf("the loop has heard of %v", heard)
			}
		}
		cancel()
		g.work.Wait()
	})
}
