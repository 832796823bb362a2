package member

import (
	"fmt"
	"testing"

	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// A rejoin stops PostgreSQL, rewinds and starts. The data are not touched otherwise.
func TestRejoin(t *testing.T) {
	for _, noStream := range []bool{false, true} {
		w := newWorld(t)
		w.agree("Guard.Awake")
		w.Snapshot = w.shard("b")
		w.begin(ha.Rejoin{Upstream: "b", NoStream: noStream})
		if c := w.take("Postgres.Stop"); c.args[0] != w.stopWithin() || c.args[1] != false {
			t.Fatalf("%v", c.args)
		} else {
			w.none("Postgres.Rewind")
			w.running = false
			c.answer()
		}
		if c := w.take("Postgres.Rewind"); c.args[0].(pg.Upstream).Name != "b" || c.args[1] != true {
			t.Fatalf("%v", c.args)
		} else {
			c.answer()
		}
		c := w.take("Postgres.Start")
		if as := c.args[1].(StartAs); as.Primary || (as.Upstream == nil) != noStream {
			t.Fatalf("%+v", as)
		}
		c.answer()
		w.looked()
		if (w.Upstream == "b") == noStream {
			t.Fatalf("follows %q", w.Upstream)
		}
		if line := w.View().Postgres.Rejoined; line.Leader != "b" || line.Timeline == 0 {
			t.Fatalf("the data fit %+v", line)
		}
		w.wantAsked("Postgres", "Postgres.Stop", "Postgres.Rewind", "Postgres.Start", "Postgres.Look")
	}
}

// I7: data that have diverged are replaced only where that is allowed, when somebody else
// leads, and when that leader has just answered. What is not so is said to who removes.
func TestRejoinReplacesTheDataOnlyWhenAllowed(t *testing.T) {
	diverged := fmt.Errorf("pg_rewind: %w", ErrDiverged)
	for _, tt := range []struct {
		name    string
		leader  string
		remove  string
		rewind  error
		broken  bool // the task is interrupted meanwhile
		follows bool // whom it follows answers
		answers bool // the leader does
		asks    bool // to remove
		want    pg.Permission
		from    string
	}{
		{name: "not allowed", leader: "b", rewind: diverged},
		{name: "a rewind that could not begin", leader: "b", remove: "setting", rewind: errBoom},
		{name: "interrupted", leader: "b", remove: "setting", rewind: diverged, broken: true},
		{name: "allowed", leader: "b", remove: "setting", rewind: diverged, follows: true, answers: true, asks: true, want: pg.Permission{NotLeader: true, LeaderReachable: true, AllowedBy: "setting", Shard: systemA}, from: "c"},
		{name: "whom it follows is silent", leader: "b", remove: "setting", rewind: diverged, answers: true, asks: true, want: pg.Permission{NotLeader: true, LeaderReachable: true, AllowedBy: "setting", Shard: systemA}, from: "b"},
		{name: "the leader is silent", leader: "b", remove: "setting", rewind: diverged, follows: true, asks: true, want: pg.Permission{NotLeader: true, AllowedBy: "setting", Shard: systemA}},
		{name: "nobody leads", remove: "setting", rewind: diverged, follows: true, asks: true, want: pg.Permission{AllowedBy: "setting", Shard: systemA}},
		{name: "an unknown one leads", leader: "x", remove: "setting", rewind: diverged, follows: true, asks: true, want: pg.Permission{AllowedBy: "setting", Shard: systemA}},
		{name: "it leads itself", leader: "a", remove: "setting", rewind: diverged, follows: true, answers: true, asks: true, want: pg.Permission{LeaderReachable: true, AllowedBy: "setting", Shard: systemA}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.agree("Guard.Awake", "Postgres.Stop")
			w.Snapshot = w.shard(tt.leader)
			w.mayRemove = tt.remove
			w.begin(ha.Rejoin{Upstream: "c"})
			w.settle()
			c := w.take("Postgres.Rewind")
			if tt.broken {
				w.InterruptTask()
			}
			c.fail(tt.rewind)
			if tt.asks {
				f := w.take("Postgres.Answers")
				if f.args[0].(pg.Upstream).Name != "c" || f.args[1] != false {
					t.Fatalf("%v", f.args)
				}
				f.fail(silent(tt.follows))
				if tt.want.NotLeader || tt.leader == "a" {
					w.none("Postgres.RemoveForReinit")
					l := w.take("Postgres.Answers")
					if l.args[0].(pg.Upstream).Name != tt.leader || l.args[1] != true {
						t.Fatalf("%v", l.args)
					}
					l.fail(silent(tt.answers))
				}
				r := w.take("Postgres.RemoveForReinit")
				if r.args[0] != tt.want {
					t.Fatalf("%+v, want %+v", r.args[0], tt.want)
				}
				if tt.from == "" {
					r.fail(errBoom) // it is not permitted
				} else {
					w.none("Postgres.MakeReplica")
					r.answer()
					m := w.take("Postgres.MakeReplica")
					if m.args[0].(*pg.Upstream).Name != tt.from || m.args[1] != systemA {
						t.Fatalf("%v", m.args)
					}
					m.answer()
					s := w.take("Postgres.Start")
					if s.args[1].(StartAs).Upstream.Name != "c" {
						t.Fatalf("%v", s.args)
					}
					s.answer()
					w.looked()
					if w.Upstream != "c" {
						t.Fatalf("follows %q", w.Upstream)
					}
					return
				}
			}
			w.none("Postgres.Answers", "Postgres.RemoveForReinit", "Postgres.MakeReplica", "Postgres.Start")
			w.looked()
			w.wantTask(ha.TaskNone)
		})
	}
	// Whoever answered may lead no more when the data would be removed.
	w := newWorld(t)
	w.agree("Guard.Awake", "Postgres.Stop")
	w.mayRemove = "setting"
	w.begin(ha.Rejoin{Upstream: "c"})
	w.settle()
	w.take("Postgres.Rewind").fail(ErrDiverged)
	w.answer("Postgres.Answers")
	w.Snapshot = w.shard("c")
	w.answer("Postgres.Answers")
	if r := w.take("Postgres.RemoveForReinit"); r.args[0].(pg.Permission).NotLeader {
		t.Fatalf("%+v, and b leads no more", r.args[0])
	}
	w = newWorld(t)
	w.begin(ha.Rejoin{Upstream: "x"})
	w.none("Postgres.Stop")
	if w.Attempt.Kind != ha.TaskRejoin {
		t.Fatalf("%+v", w.Attempt)
	}
}

// An interruption keeps a data directory from being removed, however far the task is.
func TestAnInterruptedRejoinRemovesNothing(t *testing.T) {
	for _, at := range []string{"Postgres.Stop", "first", "second"} {
		w := newWorld(t)
		w.agree("Guard.Awake")
		w.mayRemove = "setting"
		w.begin(ha.Rejoin{Upstream: "c"})
		if at != "Postgres.Stop" {
			w.answer("Postgres.Stop")
			w.deny("Postgres.Rewind", ErrDiverged)
		}
		switch at {
		case "Postgres.Stop":
			w.InterruptTask()
			w.answer("Postgres.Stop") // well all the same
		case "first":
			w.InterruptTask()
			w.answer("Postgres.Answers")
		case "second":
			w.answer("Postgres.Answers")
			w.InterruptTask()
			w.answer("Postgres.Answers")
		}
		w.none("Postgres.Rewind", "Postgres.RemoveForReinit")
		w.looked()
		if w.Attempt.Failures != 0 {
			t.Fatalf("%s: %+v", at, w.Attempt)
		}
	}
}

// Who led when a replica was started is known until it answers, also where another leads by the time that it runs.
func TestWhoLedWhenAReplicaWasStarted(t *testing.T) {
	w := newWorld(t)
	w.agree("Guard.Awake")
	w.Snapshot = w.shard("b")
	at := func() ha.Line { return w.View().Postgres.Outset }
	w.PG.Running, w.PG.Observed = false, pg.State{}
	w.noteOutset(w.leadingLine(), w.task == nil)
	led := at()
	if led.Leader != "b" || led.Timeline == 0 {
		t.Fatalf("%+v", led)
	}
	w.begin(ha.Rejoin{Upstream: "b"})
	w.Snapshot = w.shard("c")
	w.Step()
	if at() != led {
		t.Errorf("%+v, and another leads since", at())
	}
	w.noteOutset(ha.Line{Leader: "c", Timeline: 9}, true)
	if w.PG.Running = true; at().Leader != "c" {
		t.Errorf("down, and nothing is done: %+v", at())
	}
	w.noteOutset(ha.Line{Leader: "b", Timeline: 10}, true)
	if at().Leader != "c" {
		t.Errorf("it runs: %+v", at())
	}
	w.PG.Observed.Accepting = true
	if w.noteOutset(ha.Line{Leader: "b", Timeline: 10}, true); at() != (ha.Line{}) {
		t.Errorf("it answers: %+v", at())
	}
}
