package member

import (
	"strings"
	"testing"
	"time"

	pg "github.com/lictor-ha/lictor/agent/postgres"
)

// At each start and stop PostgreSQL runs and cannot be asked for a moment: no problem, and no line
// of the level error, until it lasts.
func TestPostgreSQLThatCannotBeObserved(t *testing.T) {
	w := newWorld(t)
	w.sawReplica(100, "db2")
	fails := func() {
		w.Saw(Look{Began: w.clock, State: pg.State{Running: true}, Err: errBoom})
	}
	for range 4 {
		w.pass(2 * time.Second)
		if fails(); len(w.Logged()) != 0 {
			t.Fatalf("told at once: %v", w.Logged())
		}
	}
	w.pass(staleAfter)
	if fails(); len(w.Logged()) != 1 || !strings.Contains(w.Logged()[0], "cannot be observed: "+errBoom.Error()) {
		t.Fatalf("it lasts, and is told as %v", w.Logged())
	}
	w.pass(2 * time.Second)
	if fails(); len(w.Logged()) != 1 {
		t.Fatal("over, though it still fails")
	}
	w.sawReplica(101, "db2")
	if len(w.Logged()) != 0 {
		t.Fatalf("it answers: %v", w.Logged())
	}
}
