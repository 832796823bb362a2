package member

import (
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// A: nostream never streams: turn for ever.
func TestAttackNoStream(t *testing.T) {
	w := stranded(t)
	w.Tags = map[string]any{"nostream": true}
	w.agree("Postgres.Stop", "Postgres.RemoveForReinit", "Postgres.MakeReplica", "Postgres.Start", "Guard.Awake")
	w.always["Postgres.Answers"] = func(c *call) { c.answer(true) }
	w.begin(ha.Rebuild{})
	w.answer("Consul.BeginRebuild")
	w.begin(ha.Rebuild{})
	w.pass(2 * w.Dynamic.LoopWait)
	w.settle()
	w.looked()
	if !slices.Contains(w.asked, "Postgres.MakeReplica") || w.task != nil {
		t.Fatalf("%v", w.asked)
	}
	for i := range 1000 {
		w.sawReplica(300*mib+int64(i), "") // goes on by the archive
		w.rebuilder.mind(w.View().Postgres)
		w.pass(time.Minute)
	}
	t.Logf("upstream %q: after 1000 minutes: turns held on the host %d, key asked to end: %t", w.Upstream, w.turns, slices.Contains(w.asked, "Consul.EndRebuild"))
	if w.turns != 0 || !slices.Contains(w.asked, "Consul.EndRebuild") {
		t.Error("FINDING: nostream keeps the turn for ever")
	}
}

// B: the answer to BeginRebuild was lost though it took effect; then it streams.
func TestAttackLostAnswer(t *testing.T) {
	w := stranded(t)
	w.begin(ha.Rebuild{})
	w.deny("Consul.BeginRebuild", errBoom) // a timeout; Consul has it
	w.sawReplica(300*mib, "b")
	for range 100 {
		w.rebuilder.mind(w.View().Postgres)
		w.pass(time.Minute)
	}
	if !slices.Contains(w.asked, "Consul.EndRebuild") {
		t.Error("FINDING: the key is never given up")
	}
}

// C: it has its turn, and is then not stranded any more without streaming (archive is back), or
// policy is ask again.
func TestAttackTurnWithoutNeed(t *testing.T) {
	w := stranded(t)
	w.begin(ha.Rebuild{})
	w.answer("Consul.BeginRebuild")
	w.Dynamic.Rebuild = cluster.RebuildAsk
	for i := range 1000 {
		seen := stopped(w, 200*mib+int64(i)*mib) // moves on by the archive
		w.rebuilder.mind(seen)
		w.pass(time.Minute)
		for _, c := range w.pending { _ = c }
	}
	if w.turns != 0 {
		t.Errorf("FINDING: stranded %q, policy %s, and the turn is held still: %d", w.Stranded, w.Dynamic.Rebuild, w.turns)
	}
}

// D: pause begins, or it streams again, between begin and removal.
func TestAttackPauseMeanwhile(t *testing.T) {
	for name, meanwhile := range map[string]func(w *world){
		"pause":          func(w *world) { w.Dynamic.Pause = true; w.Snapshot.Config.ModifyIndex++ },
		"ask":            func(w *world) { w.Dynamic.Rebuild = cluster.RebuildAsk },
		"streams again":  func(w *world) { w.sawReplica(300*mib, "b") },
		"session is lost": func(w *world) { w.Session = "" },
		"b lost the lock, nobody leads": func(w *world) { w.Snapshot = w.shard("") },
		"c leads": func(w *world) { w.Snapshot = w.shard("c") },
	} {
		t.Run(name, func(t *testing.T) {
			w := stranded(t)
			w.agree("Postgres.Stop", "Guard.Awake")
			w.begin(ha.Rebuild{})
			w.answer("Consul.BeginRebuild")
			w.begin(ha.Rebuild{})
			w.wantTask(ha.TaskReinit)
			w.pass(w.Dynamic.LoopWait)
			meanwhile(w)
			for range 3 { w.Step() }
			w.pass(2*w.Dynamic.LoopWait)
			w.settle()
			if i := slices.IndexFunc(w.pending, func(c *call) bool { return c.name == "Postgres.Answers" }); i >= 0 {
				w.take("Postgres.Answers").answer(true)
			}
			for range 3 { w.Step() }
			w.settle()
			if slices.Contains(w.asked, "Postgres.RemoveForReinit") {
				t.Errorf("FINDING: removed although meanwhile: %s (task %v)", name, w.task.kind)
			}
		})
	}
}

// E: clonefrom member that is stranded itself is the source.
func TestAttackStrandedSource(t *testing.T) {
	w := stranded(t)
	c := &w.Snapshot.Members[2].Value
	c.Tags = map[string]any{"clonefrom": true}
	c.Lictor = &cluster.MemberLictor{Stranded: "the WAL that it needs is gone from b"}
	w.agree("Postgres.Stop", "Postgres.RemoveForReinit", "Postgres.Start", "Guard.Awake")
	w.always["Postgres.Answers"] = func(c *call) { c.answer(true) }
	w.Dynamic.Rebuild = cluster.RebuildAuto
	times := 0
	for i := range 400 {
		seen := stopped(w, 200*mib)
		_ = seen
		w.PG.Observed.ReplicationState = ""
		w.Step()
		for _, n := range []string{"Consul.BeginRebuild"} {
			if slices.ContainsFunc(w.pending, func(c *call) bool { return c.name == n }) { w.answer(n) }
		}
		if slices.ContainsFunc(w.pending, func(c *call) bool { return c.name == "Postgres.WALGone" }) { w.take("Postgres.WALGone").answer(true, nil) }
		w.settle()
		if slices.ContainsFunc(w.pending, func(c *call) bool { return c.name == "Postgres.MakeReplica" }) {
			m := w.take("Postgres.MakeReplica")
			times++
			if times < 3 { t.Logf("copy %d from %s", times, m.args[0].(*pg.Upstream).Name) }
			m.answer()
			w.settle()
			if w.find("Postgres.Look") != nil { w.looked() }
		}
		_ = i
		w.pass(5 * time.Second)
	}
	t.Logf("copies in %d s: %d; turn given up: %t", 400*5, times, slices.Contains(w.asked, "Consul.EndRebuild"))
	if times > 1 { t.Error("FINDING: made anew again and again from a stranded source, holding the turn") }
}

// F: a rejoin that is interrupted by the operator / fence
func TestAttackInterruptedRewind(t *testing.T) {
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	w.agree("Postgres.Stop", "Postgres.Start", "Guard.Awake")
	w.sawReplica(200*mib, "b")
	w.begin(ha.Rejoin{Upstream: "b"})
	c := w.take("Postgres.Rewind")
	w.InterruptTask()
	c.fail(ErrDiverged)
	w.settle()
	w.running, w.PG.Running = false, false
	if w.find("Postgres.Look") != nil { w.looked() }
	t.Logf("stranded after an interruption: %q", w.Stranded)
}

// G: stranded and down: rejoin is never tried again under auto, waiting for the turn.
func TestAttackNeverRejoinsAgain(t *testing.T) {
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	w.Dynamic.Rebuild = cluster.RebuildAuto
	w.turnTaken = true
	w.agree("Postgres.Stop", "Postgres.Start", "Guard.Awake")
	w.sawReplica(200*mib, "b")
	w.begin(ha.Rejoin{Upstream: "b"})
	w.deny("Postgres.Rewind", ErrDiverged)
	w.running, w.PG.Running, w.PG.Observed.Running, w.PG.Observed.Accepting = false, false, false, false
	w.looked()
	n := len(w.asked)
	reasons := map[string]int{}
	for range 500 { w.Step(); w.settle(); w.pass(10*time.Second); reasons[w.Reason]++ }
	again := 0
	for _, name := range w.asked[n:] { if name == "Postgres.Rewind" { again++ } }
	t.Logf("asked in 5000 s: rewinds %d, reasons %v, logged %v", again, reasons, w.Logged())
}

// H: reinit on ask: what is said meanwhile
func TestAttackReinitKeepsSaying(t *testing.T) {
	w := stranded(t)
	w.agree("Postgres.Stop", "Postgres.RemoveForReinit", "Guard.Awake")
	w.always["Postgres.Answers"] = func(c *call) { c.answer(true) }
	must2(t, w.Reinitialize(true, false))
	w.pass(2 * w.Dynamic.LoopWait)
	w.settle()
	w.Step()
	t.Logf("while it is copied on an operator's demand its key says stranded %q, state %s", w.Value().Lictor.Stranded, w.Value().State)
}
func must2(t *testing.T, err error) { t.Helper(); if err != nil { t.Fatal(err) } }

// I: two on the host after EndRebuild failed
func TestAttackHostTurn(t *testing.T) {
	w := stranded(t)
	w.begin(ha.Rebuild{})
	w.answer("Consul.BeginRebuild")
	w.sawReplica(300*mib, "b")
	w.rebuilder.mind(w.View().Postgres)
	w.deny("Consul.EndRebuild", errBoom)
	w.turnTaken = true // another agent of the host has taken the socket
	w.Stranded = "again"
	w.begin(ha.Rebuild{})
	if w.task != nil { t.Errorf("FINDING: begins without the host's turn (turns %d)", w.turns) }
}

// J: the leader is lost while this replica stops, after it had answered.
func TestAttackLeaderLostDuringStop(t *testing.T) {
	w := stranded(t)
	w.agree("Guard.Awake")
	w.begin(ha.Rebuild{})
	w.answer("Consul.BeginRebuild")
	w.begin(ha.Rebuild{})
	w.pass(2 * w.Dynamic.LoopWait)
	w.answer("Postgres.Answers", true)
	stop := w.find("Postgres.Stop")
	t.Logf("pending %v", w.names())
	if stop == nil { t.Skip("no stop") }
	w.Snapshot = w.shard("") // b's host is gone; nobody leads
	for range 12 { w.Step(); w.pass(time.Second) }
	w.answer("Postgres.Stop")
	w.settle()
	if c := w.find("Postgres.RemoveForReinit"); c != nil { t.Errorf("FINDING: the data are removed although the leader is gone by now: %+v", c.args) }
}

// K: gone from b; PostgreSQL ends; c leads by now: c is not asked.
func TestAttackOtherLeaderWhileDown(t *testing.T) {
	w := stranded(t)
	w.Stranded = "the WAL that it needs, from 0/C800000 on, is gone from b"
	w.Dynamic.Rebuild = cluster.RebuildAuto
	w.running = false
	w.PostmasterGone()
	w.pass(time.Millisecond)
	found := w.left()
	w.Saw(Look{Began: w.clock, State: pg.State{}, Found: &found})
	w.Snapshot = w.shard("c")
	for range 3 { _, d := w.Step(); t.Log(d.Reason, d.Actions) ; w.pass(time.Second) }
	t.Log(w.asked)
	if slices.Contains(w.asked, "Consul.BeginRebuild") { t.Error("FINDING") }
}

// L: the session is lost in the middle of the copy; the agent is restarted in the middle of the copy.
func TestAttackTurnIsNotKept(t *testing.T) {
	w := stranded(t)
	w.agree("Postgres.Stop", "Postgres.RemoveForReinit", "Guard.Awake")
	w.always["Postgres.Answers"] = func(c *call) { c.answer(true) }
	w.begin(ha.Rebuild{})
	w.answer("Consul.BeginRebuild")
	w.begin(ha.Rebuild{})
	w.pass(2 * w.Dynamic.LoopWait)
	w.settle()
	if w.find("Postgres.MakeReplica") == nil { t.Fatal("no copy") }
	n := len(w.asked)
	w.Session = "new" // the old one was lost, and with it the key
	for range 3600 { w.Step(); w.pass(time.Second); w.settle() }
	t.Logf("an hour later: task %s, asked %v", w.TaskKind(), count(w.asked[n:]))
	if !slices.Contains(w.asked[n:], "Consul.BeginRebuild") { t.Error("FINDING: it copies on for an hour without the key: another member of the shard may begin") }
}

func TestAttackRestartedAgentCopiesWithoutTurn(t *testing.T) {
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	w.Dynamic.Rebuild = cluster.RebuildAuto
	w.running = false
	w.PG = PG{}
	w.turnTaken = true
	w.Data = Data{State: ha.DataEmpty}
	w.agree("Guard.Awake", "Postgres.DiscardIncomplete")
	for range 5 {
		_, d := w.Step()
		t.Log(d.Reason, d.Actions, w.names())
		w.settle()
		if w.find("Postgres.Look") != nil { w.answer("Postgres.Look", Found{Data: Data{State: ha.DataEmpty}}, false) }
		w.pass(time.Second)
	}
	if slices.Contains(w.asked, "Postgres.MakeReplica") && !slices.Contains(w.asked, "Consul.BeginRebuild") { t.Error("FINDING: it copies without a turn, though another agent of the host has it") }
}
func count(all []string) map[string]int { m := map[string]int{}; for _, n := range all { m[n]++ }; return m }
