package member

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// A look at PostgreSQL is compared with what the leader had told before it began.
func TestPositionsOfOneMoment(t *testing.T) {
	const before, switched = int64(0x44242d8), int64(0x5000000)
	m := &Local{Shard: &Shard{}}
	status := func(lsn int64, seen cluster.Instant) {
		m.Snapshot.Status = cluster.Entry[cluster.Status]{ModifyIndex: uint64(seen), Value: cluster.Status{OpTime: lsn}}
		m.StatusSeen = seen
	}
	m.sawAt(5)
	if got := m.LeaderLSN(); got != 0 {
		t.Errorf("before anything was read: %X", got)
	}
	status(before, 10)
	m.sawAt(9) // it began before
	if got := m.LeaderLSN(); got != 0 {
		t.Errorf("known after the look only: %X", got)
	}
	m.sawAt(10)
	if got := m.LeaderLSN(); got != before {
		t.Errorf("known by then: %X, want %X", got, before)
	}
	status(switched, 20)
	if got := m.LeaderLSN(); got != before {
		t.Errorf("the leader has switched segments since the look: %X, want %X", got, before)
	}
	m.sawAt(21)
	if got := m.LeaderLSN(); got != switched {
		t.Errorf("after the next look: %X, want %X", got, switched)
	}
	status(before, 30) // a failover that has lost something
	if got := m.LeaderLSN(); got != before {
		t.Errorf("the shard has less by now: %X, want %X", got, before)
	}
}

// What a voter received, and acknowledged, after it was looked at and before its WAL
// receiver had ended is in no position that is told.
func TestPositionOfBeforeDetaching(t *testing.T) {
	for _, tt := range []struct {
		name string
		pg   PG
		want bool
	}{
		{"looked at before", PG{ObservedAt: 9, alone: 10}, false},
		{"looked at when it ended", PG{ObservedAt: 10, alone: 10}, false},
		{"looked at since", PG{ObservedAt: 11, alone: 10}, true},
	} {
		if got := tt.pg.SeenAlone(); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// That a postmaster has ended may be heard after the task that stopped it. The end of the
// next one is a crash again, whoever started it.
func TestAnEndThatIsHeardLate(t *testing.T) {
	for name, next := range map[string]func(w *world){
		"a look shows the next one": func(w *world) { w.sawReplica(200*mib, "b") },
		"a task started it": func(w *world) {
			w.newTask(ha.TaskStart)
			w.task = nil
		},
	} {
		w := newWorld(t)
		w.sawReplica(200*mib, "b")
		w.stoppedOnPurpose()
		w.PostmasterGone()
		if !w.PGDown.IsZero() || len(w.crashes) != 0 {
			t.Errorf("%s: its end counts as a crash", name)
		}
		next(w)
		w.PostmasterGone()
		if w.PGDown.IsZero() || len(w.crashes) != 1 {
			t.Errorf("%s: the end of the next one is no crash", name)
		}
	}
}

// A postmaster hangs when that one has been silent for as long as a leader may serve nobody,
// whether it was seen to serve or not; each answer, also that it recovers, begins the time anew.
func TestHung(t *testing.T) {
	silent := pg.State{Running: true, Silent: true}
	for name, tt := range map[string]struct {
		meanwhile func(w *world)
		want      bool
	}{
		"it stays silent":          {func(w *world) {}, true},
		"it says that it recovers": {func(w *world) { w.sawState(pg.State{Running: true}) }, false},
		"another took its place":   {func(w *world) { w.pid++ }, false},
		"it was seen to end":       {func(w *world) { w.PostmasterGone(); w.sawState(pg.State{}) }, false},
	} {
		w := newWorld(t)
		limit := ha.UnservedLimit(w.Dynamic)
		w.sawState(silent)
		w.clock = w.clock.Add(limit - 1)
		if w.View().Postgres.Hung {
			t.Errorf("%s: hangs too early", name)
		}
		tt.meanwhile(w)
		w.clock = w.clock.Add(1)
		w.sawState(silent)
		if got := w.View().Postgres.Hung; got != tt.want {
			t.Errorf("%s: hangs: %t", name, got)
		}
	}
}
