package member

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// beat answers the beat that is due, and gives what it says of discarded WAL.
func (w *world) beatsDiscarded(index uint64) (timeline, before int) {
	w.t.Helper()
	w.always["Guard.Arm"], w.always["Guard.Mark"], w.always["Guard.Shorten"] = yes, yes, yes
	w.beat(false)
	c := w.take("Consul.Beat")
	b := c.args[3].(cluster.Status).Lictor
	c.answer(index, nil)
	w.settle()
	return b.Discarded, b.DiscardedBefore
}

// The data are moved aside only after Consul says that their WAL is discarded; what fails
// until the note is dropped leaves that to be undone.
func TestRestore(t *testing.T) {
	w := newWorld(t).leading()
	var ended error
	over := false
	w.RestoreTo(pg.Restore{Target: time.Unix(7, 0), Label: "F"}, func(err error) { ended, over = err, true })
	w.wantTask(ha.TaskRestore)
	c := w.take("Postgres.BeginRestore")
	if r := c.args[0].(pg.Restore); r.Timeline != 3 || r.Discarded != 3 || r.Before != 0 || r.Label != "F" || r.SystemIdentifier != systemA {
		t.Fatalf("%+v", r)
	}
	c.answer(nil)
	w.answer("Postgres.BeforeStop")
	w.running = false
	w.answer("Postgres.Stop")
	w.none("Postgres.SetAside")
	if w.View().Postgres.Replacing {
		t.Error("it may wait for ever before anybody was told")
	}
	if timeline, _ := w.beatsDiscarded(120); timeline != 3 {
		t.Fatalf("the beat says %d", timeline)
	}
	if b := w.Snapshot.Status.Value.Lictor; b.Timeline != 4 {
		t.Errorf("the status says that timeline %d may be in use", b.Timeline)
	}
	if at := w.Snapshot.Status.Value.OpTime; at != 0 {
		t.Errorf("the status says where the discarded WAL was: %d", at)
	}
	w.waiters.tell()
	if !w.View().Postgres.Replacing {
		t.Error("it would give its lease up while nobody else may lead")
	}
	w.answer("Postgres.SetAside")
	w.Saw(Look{Began: w.clock + 1, State: pg.State{Running: true, Accepting: true, Timeline: 4, WriteLSN: 1}})
	if w.PG.Running {
		t.Error("what runs while it recovers passes for the shard's")
	}
	if timeline, _ := w.beatsDiscarded(125); timeline != 3 {
		t.Errorf("while it restores a beat says %d", timeline)
	}
	if b := w.Snapshot.Status.Value.Lictor; b.Timeline != 4 {
		t.Errorf("while it restores the status says that timeline %d may be in use", b.Timeline)
	}
	if w.Restored {
		t.Error("it has come to its end before its data are there")
	}
	w.answer("Postgres.Restore")
	w.answer("Postgres.EndRestore")
	// Too late to have it undone: nobody may be told that it was.
	if !w.CancelRestore() || !w.Restored {
		t.Errorf("while its data are looked at: restored %v", w.Restored)
	}
	if !over || ended != nil {
		t.Fatalf("over %v, %v", over, ended)
	}
	w.wantTask(ha.TaskRestore) // until its data were looked at
	w.take("Postgres.Look").answer(Found{Data: Data{State: ha.DataValid, SystemIdentifier: systemA, Timeline: 4, WasPrimary: true}}, true)
	w.settle()
	w.wantTask(ha.TaskNone)
	if timeline, _ := w.beatsDiscarded(130); timeline != 3 {
		t.Errorf("the next beat says %d", timeline)
	}
}

func TestRestoreThatFails(t *testing.T) {
	w := newWorld(t).leading()
	w.Data = Data{State: ha.DataValid, SystemIdentifier: systemA, Timeline: 3, WasPrimary: true, Restores: RestoresIn(cluster.History{{Timeline: 1}, {Timeline: 2}}, 3)}
	var ended error
	w.RestoreTo(pg.Restore{Label: "F"}, func(err error) { ended = err })
	w.answer("Postgres.BeginRestore")
	w.answer("Postgres.BeforeStop")
	w.running = false
	w.answer("Postgres.Stop")
	w.beatsDiscarded(120)
	w.waiters.tell()
	w.answer("Postgres.SetAside")
	w.deny("Postgres.Restore", errBoom)
	if !errors.Is(ended, errBoom) {
		t.Fatal(ended)
	}
	if timeline, _ := w.beatsDiscarded(125); timeline != 3 || w.View().Postgres.Replacing {
		t.Errorf("while its data are looked at a beat says %d", timeline)
	}
	note := &ha.Discard{Timeline: 3}
	w.take("Postgres.Look").answer(Found{Data: Data{State: ha.DataSetAside}, Restore: note}, true)
	w.settle()
	if timeline, _ := w.beatsDiscarded(130); timeline != 3 {
		t.Errorf("with the old data aside a beat says %d", timeline)
	}
	if w.Restored {
		t.Error("a restore that has failed has come to its end")
	}
	w.Restored = true // what dropped its note has failed
	w.begin(ha.PutBack{})
	if w.Restored {
		t.Error("a restore that is undone has come to its end")
	}
	w.answer("Postgres.PutBack")
	w.take("Postgres.Look").answer(Found{Data: Data{State: ha.DataValid, SystemIdentifier: systemA, Timeline: 3, WasPrimary: true, CheckpointLSN: 300 * mib}, Restore: note}, true)
	w.settle()
	if timeline, _ := w.beatsDiscarded(140); timeline != 0 {
		t.Errorf("with the old data back a beat says %d", timeline)
	}
	if at := w.Snapshot.Status.Value.OpTime; at != 300*mib {
		t.Errorf("with the old data back the status says %d", at)
	}
	if !w.unservedSince.IsZero() {
		t.Error("the time of the restore counts as one without service")
	}
	w.begin(ha.EndRestore{})
	w.answer("Postgres.EndRestore")
}

// Consul does not hear of it in time: the data stay where they are.
func TestRestoreThatConsulDoesNotHearOf(t *testing.T) {
	w := newWorld(t).leading()
	var ended error
	w.RestoreTo(pg.Restore{Label: "F"}, func(err error) { ended = err })
	w.answer("Postgres.BeginRestore")
	w.answer("Postgres.BeforeStop")
	w.answer("Postgres.Stop")
	w.pass(w.Dynamic.TTL)
	if !errors.Is(ended, errNotTold) {
		t.Fatal(ended)
	}
	w.none("Postgres.SetAside")
}

// The data that lead know what was discarded: a beat of a restore that came to nothing, which
// Consul took late, is taken back, and what Consul has forgotten is said again.
func TestDiscardedByTheData(t *testing.T) {
	const restored = "before 2026-11-29 10:00:00+00"
	for name, test := range map[string]struct {
		known        int // what the status says
		lines        cluster.History
		timeline     int
		change       func(*world)
		want, before int
	}{
		"a late beat":                        {known: 3, timeline: 3, lines: cluster.History{{Timeline: 2, Reason: "no recovery target specified"}}},
		"a late beat, on the first timeline": {known: 1, timeline: 1},
		"Consul has gone back":               {timeline: 3, lines: cluster.History{{Timeline: 1, Reason: restored}}, want: 2},
		"it knows of the restore before":     {known: 1, timeline: 4, lines: cluster.History{{Timeline: 1, Reason: restored}, {Timeline: 2, Reason: restored}}, want: 3, before: 1},
		"it says what the data say":          {known: 2, timeline: 3, lines: cluster.History{{Timeline: 1, Reason: restored}}, want: 2},
		"the history was not read yet":       {known: 3, timeline: 3, want: 3},
		"that of another timeline was":       {known: 3, timeline: 4, change: func(w *world) { w.history.lead.led = Restores{Timeline: 3} }, want: 3},
		"a restore of its own has not ended": {known: 3, timeline: 3, lines: cluster.History{{Timeline: 2}}, change: func(w *world) { w.Restore = &ha.Discard{Timeline: 4} }, want: 3},
		"it is down, and was on the restored line": {timeline: 3, change: func(w *world) {
			w.PG.Running, w.PG.Observed, w.PG.wasPrimary = false, pg.State{}, true
			w.Data = Data{State: ha.DataValid, WasPrimary: true, Timeline: 3, Restores: RestoresIn(cluster.History{{Timeline: 1, Reason: restored}}, 3)}
		}, want: 2},
		"it is down, and its history cannot be read": {known: 3, timeline: 3, change: func(w *world) {
			w.PG.Running, w.PG.Observed, w.PG.wasPrimary = false, pg.State{}, true
			w.Data = Data{State: ha.DataValid, WasPrimary: true, Timeline: 3}
		}, want: 3},
		"PostgreSQL does not say where it is": {known: 3, timeline: 3, lines: cluster.History{{Timeline: 2}}, change: func(w *world) { w.PG.Observed = pg.State{Running: true} }, want: 3},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).leading()
			w.Snapshot.Status.Value.Lictor.Discarded = test.known
			w.PG.Observed.Timeline = test.timeline
			if test.lines != nil {
				w.history.write()
				w.answer("Postgres.TimelineHistory", test.lines, nil)
			}
			if test.change != nil {
				test.change(w)
			}
			if timeline, before := w.history.lead.nextDiscarded(); timeline != test.want || before != test.before {
				t.Errorf("the next beat says %d, %d, want %d, %d", timeline, before, test.want, test.before)
			}
			if got := w.View().Postgres.Discards; got != test.want {
				t.Errorf("the leader takes what is up to %d for discarded, want %d", got, test.want)
			}
		})
	}
}

// Where Consul has gone back to before a restore, the position that it tells is of WAL that was
// discarded: nobody is measured by it any more.
func TestThePositionOfBeforeARestore(t *testing.T) {
	for _, known := range []int{0, 2} {
		w := newWorld(t).leading()
		w.Snapshot.Status.Value.OpTime, w.Snapshot.Status.Value.Lictor.Discarded = 900*mib, known
		w.PG.Running, w.PG.Observed, w.PG.wasPrimary = false, pg.State{}, true
		w.Data = Data{State: ha.DataValid, WasPrimary: true, Timeline: 3, Restores: RestoresIn(cluster.History{{Timeline: 1, Reason: "before 2026-11-29 10:00:00+00"}}, 3)}
		want := int64(0)
		if known == 2 {
			want = 900 * mib
		}
		if got := w.nextStatus(); got.OpTime != want || got.Lictor.Discarded != 2 {
			t.Errorf("discarded was %d: %d, %+v", known, got.OpTime, got.Lictor)
		}
	}
}

func TestRestoreIsCancelled(t *testing.T) {
	w := newWorld(t).leading()
	if w.CancelRestore() {
		t.Fatal("there was none")
	}
	w.RestoreTo(pg.Restore{Label: "F"}, func(error) {})
	if !w.CancelRestore() || !slices.Contains(w.names(), "Postgres.BeginRestore") {
		t.Fatal(w.names())
	}

	// One that is being undone goes on with that.
	w = newWorld(t).leading()
	w.Restore, w.Data.State = &ha.Discard{Timeline: 3}, ha.DataSetAside
	w.begin(ha.PutBack{})
	if !w.CancelRestore() || w.task.work.Broken() != nil {
		t.Error("putting the data back was broken off")
	}
	w.answer("Postgres.PutBack")
	w.take("Postgres.Look").answer(Found{Data: Data{State: ha.DataValid, SystemIdentifier: systemA, Timeline: 3, WasPrimary: true}, Restore: w.Restore}, true)
	w.settle()
	if !w.CancelRestore() {
		t.Error("its note is still there")
	}
	w.Restore = nil
	if w.CancelRestore() {
		t.Error("it was undone")
	}
}

func TestRestoreIsRefused(t *testing.T) {
	for name, change := range map[string]func(*world){
		"a replica":            func(w *world) { w.sawReplica(1, "b") },
		"in pause":             func(w *world) { w.Dynamic.Pause = true },
		"the agent ends":       func(w *world) { w.Stopping = true },
		"beside Patroni":       func(w *world) { w.Snapshot.Members[2].Value.Lictor = nil },
		"another task":         func(w *world) { w.begin(ha.EndShutDown{}) },
		"an earlier one":       func(w *world) { w.Restore = &ha.Discard{Timeline: 2} },
		"it does not serve":    func(w *world) { w.PG.Observed.Accepting = false },
		"its timeline unknown": func(w *world) { w.PG.Observed.Timeline = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).leading()
			change(w)
			var refused Refused
			w.RestoreTo(pg.Restore{Label: "F"}, func(err error) {
				if !errors.As(err, &refused) {
					t.Error(err)
				}
			})
			if w.TaskKind() == ha.TaskRestore || refused == (Refused{}) {
				t.Errorf("%q is under way, %v", w.TaskKind(), refused)
			}
		})
	}
}

// Who follows may be made anew where it was left behind by a restore, and only then.
func TestRejoinAfterARestore(t *testing.T) {
	for discarded, want := range map[int]bool{0: false, 2: false, 3: true} {
		w := newWorld(t)
		w.Snapshot.Status.Value.Lictor.Discarded = discarded
		w.begin(ha.Rejoin{Upstream: "b"})
		w.answer("Postgres.Stop")
		w.deny("Postgres.Rewind", ErrDiverged)
		w.settle()
		if got := slices.Contains(w.names(), "Postgres.Answers"); got != want {
			t.Errorf("discarded up to %d: replaced %v", discarded, got)
		}
	}
}
