package member

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// stopped is a replica of b that receives nothing and stands at a position.
func stopped(w *world, lsn int64) {
	w.sawReplica(lsn, "b")
	w.PG.Observed.ReplicationState = ""
}

// A replica that stands still has its leader asked, once at a time and not at once; it is
// stranded by that word alone, until it moves, streams or leads, or another leads.
func TestStranded(t *testing.T) {
	for name, tt := range map[string]struct {
		gone           bool
		err            error
		before, unseen func(w *world) // the answer
		after          func(w *world)
		want           bool
	}{
		"its WAL is gone":                       {gone: true, want: true},
		"its WAL is there":                      {},
		"the leader does not answer":            {err: errBoom},
		"it moved before the answer":            {gone: true, before: func(w *world) { w.PG.Observed.ReceivedLSN++ }},
		"it moved, which is not looked at yet":  {gone: true, unseen: func(w *world) { w.PG.Observed.ReceivedLSN++ }},
		"it replayed before the answer":         {gone: true, before: func(w *world) { w.PG.Observed.ReplayedLSN-- }},
		"another led before the answer":         {gone: true, before: func(w *world) { w.Snapshot = w.shard("c") }},
		"it follows somebody else":              {gone: true, after: func(w *world) { w.Upstream = "c" }},
		"another leads":                         {gone: true, after: func(w *world) { w.Snapshot = w.shard("c") }},
		"the leader was promoted anew":          {gone: true, after: func(w *world) { w.Snapshot.Members[1].Value.Timeline = 4 }},
		"it streams again":                      {gone: true, after: func(w *world) { w.PG.Observed.ReplicationState = pg.Streaming }},
		"it is a primary":                       {gone: true, after: func(w *world) { w.PG.Observed.InRecovery = false }},
		"an operator pauses its replay":         {gone: true, after: func(w *world) { w.PG.Observed.Standstill = "paused" }},
		"it replays what came from nobody":      {gone: true, after: func(w *world) { w.PG.Observed.Replaying = true }},
		"PostgreSQL is down: it stays so":       {gone: true, after: func(w *world) { w.gone() }, want: true},
		"PostgreSQL is down, and another leads": {gone: true, after: func(w *world) { w.gone(); w.Snapshot = w.shard("c") }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Snapshot = w.shard("b")
			stopped(w, 200*mib)
			w.rebuilder.mind()
			w.none("Postgres.WALGone")
			w.pass(w.Dynamic.LoopWait)
			w.rebuilder.mind()
			w.rebuilder.mind()
			c := w.take("Postgres.WALGone")
			w.none("Postgres.WALGone")
			if up := c.args[1].(pg.Upstream); up.Name != "b" || c.args[2] != systemA || c.args[3] != 3 || c.args[4] != 200*mib {
				t.Fatalf("asked %v", c.args)
			}
			if tt.before != nil {
				tt.before(w)
				w.rebuilder.mind()
			}
			if tt.unseen != nil {
				tt.unseen(w)
			}
			c.answer(tt.gone, tt.err)
			if tt.after != nil {
				tt.after(w)
			}
			w.rebuilder.mind()
			if reason := w.View().Postgres.Stranded; (reason != "") != tt.want {
				t.Fatalf("stranded: %q", reason)
			}
			if told := slices.ContainsFunc(w.Logged(), func(p string) bool { return strings.Contains(p, "must be made anew") }); told != tt.want {
				t.Fatalf("told: %v", w.Logged())
			}
			if published := w.Value().Lictor.Stranded; (published != "") != tt.want {
				t.Fatalf("its key says %q", published)
			}
		})
	}
}

// The leader is asked, whomever the replica follows. Where PostgreSQL recovers from an archive,
// that is given time; a replica of another site's primary, one of nobody, one that replays, and one
// whose replay is paused or delayed are not asked about.
func TestStrandedIsNotAskedYet(t *testing.T) {
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	ask := func(so func()) bool {
		w.Snapshot = w.shard("b")
		stopped(w, 200*mib)
		so()
		w.rebuilder.mind()
		w.pass(2 * w.Dynamic.LoopWait)
		w.rebuilder.mind()
		return w.find("Postgres.WALGone") != nil
	}
	for name, so := range map[string]func(){
		"it follows nobody":      func() { w.Upstream = "" },
		"another site's":         func() { w.Upstream = remotePrimary },
		"it replays":             func() { w.PG.Observed.Replaying = true },
		"it starts":              func() { w.PG.Observed.Accepting = false },
		"it streams":             func() { w.PG.Observed.ReplicationState = pg.Streaming },
		"a primary":              func() { w.PG.Observed.InRecovery = false },
		"replay is delayed":      func() { w.PG.Observed.Standstill = "delayed by recovery_min_apply_delay, 1h" },
		"nobody leads":           func() { w.Snapshot = w.shard("") },
		"the shard is not known": func() { w.Snapshot.Initialize = cluster.Entry[string]{} },
		"an archive":             func() { w.PG.Observed.ReplicationState = pg.InArchiveRecovery },
	} {
		if ask(so) {
			t.Fatalf("asked: %s", name)
		}
	}
	if ask(func() { w.PG.Observed.ReplicationState = pg.InArchiveRecovery }) {
		t.Fatal("asked before the archive had time")
	}
	w.pass(archiveGets)
	w.rebuilder.mind()
	w.answer("Postgres.WALGone", false, nil)
	if !ask(func() { w.Upstream = "c" }) {
		t.Fatal("a cascade's is not asked about")
	}
	if c := w.take("Postgres.WALGone"); c.args[1].(pg.Upstream).Name != "b" {
		t.Fatalf("asked %v", c.args)
	}
}

// Where nothing proves that it is the leader which says so, a replica is not stranded, and that is told while it waits.
func TestStrandedByAnImpostor(t *testing.T) {
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	stopped(w, 200*mib)
	w.rebuilder.mind()
	w.pass(w.Dynamic.LoopWait)
	w.rebuilder.mind()
	w.answer("Postgres.WALGone", false, fmt.Errorf("b: %w", ErrUnproved))
	if got := w.Logged(); w.Stranded != "" || len(got) != 1 || !strings.Contains(got[0], "does not prove") {
		t.Fatalf("%q, told %v", w.Stranded, got)
	}
	w.PG.Observed.ReplicationState = pg.Streaming
	if w.rebuilder.mind(); len(w.Logged()) != 0 {
		t.Fatalf("it streams, and is told %v", w.Logged())
	}
}

// A rejoin that failed strands only for a reason that is beyond any rewind; it stays so, and is
// rejoined all the same, until that works, or another leads.
func TestStrandedByARewind(t *testing.T) {
	failed := func(t *testing.T, err error) *world {
		t.Helper()
		w := newWorld(t)
		w.Snapshot = w.shard("b")
		w.Dynamic.Rebuild = cluster.RebuildAuto
		w.agree("Postgres.Stop", "Postgres.Start", "Guard.Awake")
		w.sawReplica(200*mib, "b")
		w.begin(ha.Rejoin{Upstream: "b"})
		w.deny("Postgres.Rewind", err)
		w.running, w.PG.Running, w.PG.Observed.Running, w.PG.Observed.Accepting = false, false, false, false
		w.looked()
		return w
	}
	if w := failed(t, ErrDiverged); w.Stranded != "" {
		t.Fatalf("stranded by what may work the next time: %q", w.Stranded)
	}
	w := failed(t, ErrBeyondRewind)
	if w.Stranded != ErrBeyondRewind.Error() {
		t.Fatalf("stranded %q", w.Stranded)
	}
	w.later(time.Minute)
	if _, d := w.Step(); w.TaskKind() != ha.TaskRejoin {
		t.Fatalf("it waits for its turn, and does not rejoin meanwhile: %s", d.Reason)
	}
	w.answer("Postgres.Rewind")
	w.looked()
	if w.Stranded != "" {
		t.Fatalf("stranded %q", w.Stranded)
	}

	w = failed(t, ErrBeyondRewind)
	w.Snapshot = w.shard("c")
	w.rebuilder.mind()
	if w.Stranded != "" {
		t.Fatalf("stranded by the word of b, and c leads: %q", w.Stranded)
	}

	// One that was interrupted has found out nothing.
	w = newWorld(t)
	w.agree("Postgres.Stop", "Postgres.Start", "Guard.Awake")
	w.begin(ha.Rejoin{Upstream: "b"})
	c := w.take("Postgres.Rewind")
	w.fenceNow()
	c.fail(ErrBeyondRewind)
	w.settle()
	if w.Stranded != "" {
		t.Fatalf("stranded by an interruption: %q", w.Stranded)
	}
}

// later lets time pass in which the leader beats.
func (w *world) later(d time.Duration) {
	w.pass(d)
	w.Read, w.StatusSeen = w.clock, w.clock
}

// stranded is a replica of b whose WAL is gone, where the policy is to make it anew.
func stranded(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	w.Session = "sa"
	w.Dynamic.Rebuild = cluster.RebuildAuto
	w.always["Postgres.WALGone"] = func(c *call) { c.answer(true, nil) }
	stopped(w, 200*mib)
	w.Step()
	w.later(w.Dynamic.LoopWait)
	w.Step()
	w.settle()
	if w.Stranded == "" {
		t.Fatal("it can go on")
	}
	return w
}

// turn has Consul show whose turn it is; empty: nobody's.
func (w *world) turn(member, session string) {
	w.Snapshot.Rebuild = cluster.Entry[string]{}
	if member != "" {
		w.Snapshot.Rebuild = cluster.Entry[string]{Value: member, Session: session, ModifyIndex: 200}
	}
	w.later(time.Millisecond)
}

// its is a replica that is stranded, and whose turn it is.
func its(t *testing.T) *world {
	t.Helper()
	w := stranded(t)
	w.later(turnRests)
	w.Step()
	w.answer("Consul.BeginRebuild")
	w.turn("a", "sa")
	return w
}

// The turn of the shard and of the host is asked for when it was seen free for a while, again after
// a refusal; it is used, and given up when the replica streams again.
func TestRebuild(t *testing.T) {
	w := stranded(t)
	w.agree("Postgres.Stop", "Postgres.RemoveForReinit", "Postgres.MakeReplica", "Postgres.Start", "Guard.Awake")
	w.turn("c", "sc")
	w.later(time.Hour)
	w.Step()
	w.none("Consul.BeginRebuild")
	if waits := w.Value().Lictor.Rebuild; waits != "it is the turn of c" {
		t.Fatalf("waits for: %q", waits)
	}
	w.turn("", "")
	w.Snapshot.Members[2].Value.State = cluster.StateCreating
	w.Step()
	if waits := w.Value().Lictor.Rebuild; waits != "c is just being made" {
		t.Fatalf("waits for: %q", waits)
	}
	w.Snapshot.Members[2].Value.State = cluster.StateRunning
	w.Step()
	w.later(turnRests - time.Second)
	w.Step()
	w.none("Consul.BeginRebuild")
	w.later(time.Second)
	w.Step()
	w.Step()
	w.wantTask(ha.TaskNone)
	w.deny("Consul.BeginRebuild", fmt.Errorf("%w: on the host a it is the turn of orders/db1", cluster.ErrConflict))
	w.Step()
	w.none("Consul.BeginRebuild") // not at once
	if waits := w.Value().Lictor.Rebuild; !strings.Contains(waits, "orders/db1") {
		t.Fatalf("waits for: %q", waits)
	}
	w.later(turnAgain)
	w.Step()
	c := w.take("Consul.BeginRebuild")
	if c.args[1] != "sa" || c.args[2] != "a" || c.args[3] != "a" {
		t.Fatalf("%v", c.args)
	}
	c.answer()
	w.wantTask(ha.TaskNone)
	w.turn("a", "sa")
	w.Step()
	w.wantTask(ha.TaskReinit)
	w.none("Postgres.Stop")
	w.answer("Postgres.Answers")
	w.none("Postgres.RemoveForReinit")
	w.answer("Postgres.Answers")
	w.looked()
	if i := slices.Index(w.asked, "Postgres.RemoveForReinit"); i < 0 || slices.Index(w.asked, "Postgres.Stop") > i {
		t.Fatalf("asked: %v", w.asked)
	}
	if w.Stranded != "" || w.Upstream != "b" {
		t.Fatalf("stranded %q, follows %q", w.Stranded, w.Upstream)
	}
	w.running, w.PG.Running = true, true
	w.Step()
	w.none("Consul.EndRebuild")
	w.sawReplica(300*mib, "b")
	w.Step()
	if c := w.take("Consul.EndRebuild"); c.args[1] != "sa" || c.args[2] != "a" || c.args[3] != false {
		t.Fatalf("%v", c.args)
	} else {
		c.fail(errBoom)
	}
	w.Step()
	w.answer("Consul.EndRebuild")
	w.Step() // what was read before says that it has its turn
	w.none("Consul.EndRebuild")
}

// What must hold is asked for before PostgreSQL is stopped, and again before anything is removed.
// Where it does not, PostgreSQL goes on, or is started again, and the next one gets the turn.
func TestRebuildAsksAgain(t *testing.T) {
	for name, meanwhile := range map[string]func(w *world){
		"a pause":               func(w *world) { w.Dynamic.Pause = true },
		"the policy is ask":     func(w *world) { w.Dynamic.Rebuild = cluster.RebuildAsk },
		"it streams again":      func(w *world) { w.PG.Observed.ReplicationState = pg.Streaming },
		"the session is lost":   func(w *world) { w.Session = "" },
		"the session is new":    func(w *world) { w.Session = "new" },
		"it is another's turn":  func(w *world) { w.turn("c", "sc") },
		"nobody leads":          func(w *world) { turn := w.Snapshot.Rebuild; w.Snapshot = w.shard(""); w.Snapshot.Rebuild = turn },
		"another leads":         func(w *world) { turn := w.Snapshot.Rebuild; w.Snapshot = w.shard("c"); w.Snapshot.Rebuild = turn },
		"b on another timeline": func(w *world) { w.Snapshot.Members[1].Value.Timeline = 4 },
		"a candidate counts on it": func(w *world) {
			w.Detached = 7
		},
		"the key sync names it": func(w *world) { w.Snapshot.Sync.Value = cluster.NewSync("b", []string{"a"}) },
		"another is being made": func(w *world) { w.Snapshot.Members[2].Value.State = cluster.StateCreating },
		"the agent is to stop":  func(w *world) { w.Stopping = true },
		"no answer":             nil,
	} {
		t.Run("before the stop: "+name, func(t *testing.T) {
			w := its(t)
			w.Step()
			w.wantTask(ha.TaskReinit)
			if meanwhile != nil {
				meanwhile(w)
			}
			w.take("Postgres.Answers").fail(silent(meanwhile != nil))
			w.none("Postgres.Stop", "Postgres.RemoveForReinit")
			w.looked()
			w.wantTask(ha.TaskNone)
		})
		t.Run("after the stop: "+name, func(t *testing.T) {
			w := its(t)
			w.agree("Guard.Awake")
			w.Step()
			w.answer("Postgres.Answers")
			stop := w.take("Postgres.Stop")
			w.running = false
			if name != "it streams again" {
				w.pass(time.Millisecond)
				w.Saw(Look{Began: w.clock, State: pg.State{Running: true, Stopping: true}})
			}
			if meanwhile != nil {
				meanwhile(w)
			}
			stop.answer()
			w.settle()
			if w.find("Postgres.Answers") != nil {
				w.take("Postgres.Answers").fail(errBoom)
			}
			w.none("Postgres.RemoveForReinit")
			if c := w.take("Postgres.Start"); c.args[1].(StartAs).Upstream.Name != "b" {
				t.Fatalf("started as %+v", c.args)
			} else {
				w.running = true
				c.answer()
			}
			w.looked()
			w.wantTask(ha.TaskNone)
			if w.Session != "" {
				if c := w.take("Consul.EndRebuild"); c.args[3] != false {
					t.Fatalf("%v", c.args)
				}
			}
		})
	}
}

// Nothing is begun, and no turn is asked for, where it could not be used.
func TestRebuildThatIsNotWanted(t *testing.T) {
	for name, so := range map[string]func(w *world){
		"the policy is ask":        func(w *world) { w.Dynamic.Rebuild = cluster.RebuildAsk },
		"a pause":                  func(w *world) { w.Dynamic.Pause = true },
		"no session":               func(w *world) { w.Session = "" },
		"a candidate counts on it": func(w *world) { w.Detached = 7 },
		"another is being made":    func(w *world) { w.Snapshot.Members[2].Value.State = cluster.StateCreating },
	} {
		t.Run(name, func(t *testing.T) {
			w := stranded(t)
			so(w)
			for range 10 {
				w.later(turnRests)
				w.Step()
			}
			w.none("Consul.BeginRebuild")
			if w.TaskKind() == ha.TaskReinit {
				t.Fatal("it is made anew")
			}
		})
	}
}

// A turn is given up when there is no use for it any more: the replica can go on, or must not be
// made anew; also one whose answer was lost.
func TestRebuildGivesItsTurnUp(t *testing.T) {
	for name, so := range map[string]func(w *world){
		"the archive has it":  func(w *world) { stopped(w, 201*mib) },
		"the policy is ask":   func(w *world) { w.Dynamic.Rebuild = cluster.RebuildAsk },
		"a pause":             func(w *world) { w.Dynamic.Pause = true },
		"the answer was lost": func(w *world) { stopped(w, 201*mib) },
	} {
		t.Run(name, func(t *testing.T) {
			w := stranded(t)
			w.later(turnRests)
			w.Step()
			if name == "the answer was lost" {
				w.deny("Consul.BeginRebuild", cluster.ErrUncertain)
			} else {
				w.answer("Consul.BeginRebuild")
			}
			w.turn("a", "sa")
			so(w)
			w.Step()
			w.answer("Consul.EndRebuild")
			w.wantTask(ha.TaskNone)
		})
	}
}

// removed is a replica whose data were just removed by policy, and of which a copy is being made.
func removed(t *testing.T) *world {
	t.Helper()
	w := its(t)
	w.agree("Postgres.Stop", "Postgres.RemoveForReinit", "Postgres.Start", "Guard.Awake")
	w.agree("Postgres.Answers")
	w.Step()
	w.settle()
	if w.find("Postgres.MakeReplica") == nil {
		t.Fatalf("no copy is made: %v", w.asked)
	}
	return w
}

// A session that is lost in the middle of a copy takes the turn with it: it is taken again at once,
// though the host's may be another's by now. So it is where the copy has failed, which gives the
// host's turn to others.
func TestRebuildKeepsItsTurn(t *testing.T) {
	w := removed(t)
	if v := w.Value().Lictor; v.Stranded != "" || v.Rebuild != "it is its turn" {
		t.Errorf("its key says %+v", v)
	}
	w.later(turnAgain)
	w.Session = "new"
	w.turn("", "")
	w.Step()
	if c := w.take("Consul.BeginRebuild"); c.args[1] != "new" || c.args[3] != "" {
		t.Fatalf("%v", c.args)
	} else {
		c.answer()
	}
	w.turn("a", "new")
	w.later(time.Minute)
	w.Step()
	w.none("Consul.BeginRebuild")

	w.take("Postgres.MakeReplica").fail(errBoom)
	w.running = false
	w.answer("Postgres.Look", Found{Data: Data{State: ha.DataEmpty}}, true)
	if c := w.take("Consul.EndRebuild"); c.args[3] != true {
		t.Fatalf("%v", c.args)
	} else {
		c.answer()
	}
	w.later(time.Minute)
	w.Step()
	w.none("Consul.EndRebuild", "Consul.BeginRebuild")
	w.wantTask(ha.TaskClone)
}

// An agent that is restarted in the middle of a copy finds its turn in Consul, and keeps it until the
// replica streams.
func TestRebuildOutlivesItsAgent(t *testing.T) {
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	w.Dynamic.Rebuild = cluster.RebuildAuto
	w.running, w.PG, w.Data = false, PG{}, Data{State: ha.DataEmpty}
	w.turn("a", "sa")
	w.Step()
	w.wantTask(ha.TaskClone)
	w.none("Consul.EndRebuild")
	w.agree("Postgres.MakeReplica", "Postgres.Start", "Guard.Awake")
	w.running = true
	w.settle()
	w.looked()
	w.Step()
	w.none("Consul.EndRebuild")
	w.sawReplica(300*mib, "b")
	w.Step()
	w.take("Consul.EndRebuild")
}

// A replica tagged nostream never streams: its turn is over when it is up.
func TestRebuildOfOneThatNeverStreams(t *testing.T) {
	w := removed(t)
	w.Tags = map[string]any{"nostream": true}
	w.answer("Postgres.MakeReplica")
	w.looked()
	w.sawReplica(300*mib, "")
	w.Step()
	w.take("Consul.EndRebuild")
}

// What is copied from a replica that cannot go on cannot either: it is no source. A copy that cannot
// go on comes from the leader the next time; then not before an hour is over, then two; and the
// turn is another's meanwhile.
func TestRebuildIsNoLoop(t *testing.T) {
	w := stranded(t)
	c := &w.Snapshot.Members[2].Value
	c.Tags = map[string]any{"clonefrom": true}
	c.Lictor = &cluster.MemberLictor{Stranded: "the WAL that it needs is gone from b"}
	if from := w.rebuilder.source("b"); from != "b" {
		t.Errorf("copied from %s, which cannot go on", from)
	}
	c.Lictor.Stranded = ""
	if from := w.rebuilder.source("b"); from != "c" {
		t.Errorf("copied from %s", from)
	}

	w = removed(t)
	w.Snapshot.Members[2].Value.Tags = map[string]any{"clonefrom": true}
	w.always["Consul.EndRebuild"] = func(c *call) { w.turn("", ""); c.answer() }
	w.always["Consul.BeginRebuild"] = func(c *call) { w.turn("a", "sa"); c.answer() }
	w.answer("Postgres.MakeReplica")
	w.looked()
	var begun []time.Duration
	at := w.clock
	for w.clock.Sub(at) < 8*time.Hour {
		stopped(w, 200*mib)
		w.Step()
		w.settle()
		if copying := w.find("Postgres.MakeReplica"); copying != nil {
			if from := copying.args[0].(*pg.Upstream).Name; from != "b" {
				t.Errorf("the next copy comes from %s", from)
			}
			begun = append(begun, w.clock.Sub(at).Round(time.Hour))
			w.answer("Postgres.MakeReplica")
			w.looked()
			w.Step()
			if free := !w.Snapshot.Rebuild.Exists(); free && len(begun) == 1 {
				t.Error("its turn is over before it is known that it streams")
			}
		}
		w.later(time.Minute)
	}
	if !slices.Equal(begun, []time.Duration{0, time.Hour, 3 * time.Hour, 7 * time.Hour}) {
		t.Errorf("made anew after %v", begun)
	}
	if w.Snapshot.Rebuild.Exists() {
		t.Error("it keeps its turn while it waits")
	}
}
