package member

import (
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// stopped is a replica of b that receives nothing and stands at a position.
func stopped(w *world, lsn int64) ha.Postgres {
	w.sawReplica(lsn, "b")
	seen := w.View().Postgres
	seen.Streaming = false
	return seen
}

// A replica that stands still has its upstream asked, once at a time and not at once; it is
// stranded by that word alone, until it moves, streams or leads.
func TestRebuildIsCalledFor(t *testing.T) {
	for name, tt := range map[string]struct {
		gone  bool
		err   error
		after func(w *world, seen *ha.Postgres)
		want  bool
	}{
		"its WAL is gone":                  {gone: true, want: true},
		"its WAL is there":                 {},
		"its upstream does not answer":     {err: errBoom},
		"it moved before the answer":       {gone: true, after: func(_ *world, seen *ha.Postgres) { seen.LSN++ }},
		"it follows somebody else":         {gone: true, after: func(_ *world, seen *ha.Postgres) { seen.Upstream = "c" }},
		"it streams again":                 {gone: true, after: func(_ *world, seen *ha.Postgres) { seen.Streaming = true }},
		"it is a primary":                  {gone: true, after: func(_ *world, seen *ha.Postgres) { seen.Primary = true }},
		"PostgreSQL is down: it stays so":  {gone: true, after: func(_ *world, seen *ha.Postgres) { seen.Running, seen.Accepting = false, false }, want: true},
		"it replays what came from nobody": {gone: true, after: func(_ *world, seen *ha.Postgres) { seen.Replaying = true }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Snapshot = w.shard("b")
			seen := stopped(w, 200*mib)
			w.rebuilder.mind(seen)
			w.none("Postgres.WALGone")
			w.pass(w.Dynamic.LoopWait)
			w.rebuilder.mind(seen)
			w.rebuilder.mind(seen)
			c := w.take("Postgres.WALGone")
			w.none("Postgres.WALGone")
			if up := c.args[1].(pg.Upstream); up.Name != "b" || c.args[2] != 3 || c.args[3] != 200*mib {
				t.Fatalf("asked %v", c.args)
			}
			if name == "it moved before the answer" {
				tt.after(w, &seen)
				w.rebuilder.mind(seen)
			}
			c.answer(tt.gone, tt.err)
			if tt.after != nil {
				tt.after(w, &seen)
			}
			w.rebuilder.mind(seen)
			stranded := w.View().Postgres.Stranded
			if (stranded != "") != tt.want {
				t.Fatalf("stranded: %q", stranded)
			}
			if told := slices.ContainsFunc(w.Logged(), func(p string) bool { return strings.Contains(p, "must be made anew") }); told != tt.want {
				t.Fatalf("told: %v", w.Logged())
			}
		})
	}
}

// Where there is an archive, it is given time; a replica of another site's primary, one of nobody
// and one that replays are not asked about.
func TestRebuildIsNotCalledForYet(t *testing.T) {
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	seen := stopped(w, 200*mib)
	ask := func(seen ha.Postgres) {
		w.rebuilder.mind(seen)
		w.pass(2 * w.Dynamic.LoopWait)
		w.rebuilder.mind(seen)
	}
	for _, change := range []func(*ha.Postgres){
		func(p *ha.Postgres) { p.Upstream = "" },
		func(p *ha.Postgres) { p.Upstream = remotePrimary },
		func(p *ha.Postgres) { p.Replaying = true },
		func(p *ha.Postgres) { p.Accepting = false },
		func(p *ha.Postgres) { p.Streaming = true },
		func(p *ha.Postgres) { p.Primary = true },
	} {
		other := seen
		change(&other)
		ask(other)
		w.none("Postgres.WALGone")
	}
	w.restoreCommand = true
	ask(seen)
	w.none("Postgres.WALGone")
	w.pass(archiveGets)
	w.rebuilder.mind(seen)
	w.take("Postgres.WALGone")
}

// stranded is a replica of b whose WAL is gone.
func stranded(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	w.Session = "sa"
	w.sawReplica(200*mib, "b")
	w.Stranded = "its WAL is gone"
	return w
}

// The data are made anew when it is this member's turn, which lasts until it streams again.
func TestRebuild(t *testing.T) {
	w := stranded(t)
	w.agree("Postgres.Stop", "Postgres.RemoveForReinit", "Postgres.MakeReplica", "Postgres.Start", "Guard.Awake")
	w.begin(ha.Rebuild{})
	w.begin(ha.Rebuild{})
	c := w.take("Consul.BeginRebuild")
	if c.args[1] != "sa" || c.args[2] != "a" || w.turns != 1 {
		t.Fatalf("%v, turns %d", c.args, w.turns)
	}
	w.none("Consul.BeginRebuild")
	w.wantTask(ha.TaskNone)
	c.answer()
	w.begin(ha.Rebuild{})
	w.wantTask(ha.TaskReinit)
	w.pass(2 * w.Dynamic.LoopWait)
	remove := w.take("Postgres.Answers")
	w.none("Postgres.Stop", "Postgres.RemoveForReinit")
	remove.answer(true)
	w.settle()
	if i := slices.Index(w.asked, "Postgres.RemoveForReinit"); i < 0 || slices.Index(w.asked, "Postgres.Stop") > i {
		t.Fatalf("asked: %v", w.asked)
	}
	w.looked()
	if w.Stranded != "" || w.Upstream != "b" || w.turns != 1 {
		t.Fatalf("stranded %q, follows %q, turns %d", w.Stranded, w.Upstream, w.turns)
	}
	w.none("Consul.EndRebuild")
	w.sawReplica(300*mib, "b")
	w.rebuilder.mind(w.View().Postgres)
	if c := w.take("Consul.EndRebuild"); c.args[1] != "sa" || w.turns != 0 {
		t.Fatalf("%v, turns %d", c.args, w.turns)
	} else {
		c.fail(errBoom)
	}
	w.rebuilder.mind(w.View().Postgres)
	w.answer("Consul.EndRebuild")
	w.rebuilder.mind(w.View().Postgres)
	w.none("Consul.EndRebuild")
}

// Nothing is touched when it is another's turn, the leader does not answer, or Consul does not.
func TestRebuildThatIsNotBegun(t *testing.T) {
	for name, tt := range map[string]struct {
		play  func(w *world)
		turns int
	}{
		"another agent of the host": {play: func(w *world) { w.turnTaken = true; w.begin(ha.Rebuild{}) }},
		"another member of the shard": {play: func(w *world) {
			w.begin(ha.Rebuild{})
			w.deny("Consul.BeginRebuild", cluster.ErrConflict)
			w.begin(ha.Rebuild{})
			w.none("Consul.BeginRebuild") // not at once
		}},
		"Consul does not answer": {play: func(w *world) { w.begin(ha.Rebuild{}); w.deny("Consul.BeginRebuild", errBoom); w.begin(ha.Rebuild{}) }},
		"the session is another one": {play: func(w *world) {
			w.begin(ha.Rebuild{})
			w.answer("Consul.BeginRebuild")
			w.Session = "new"
			w.begin(ha.Rebuild{})
		}, turns: 1},
		"the leader does not answer": {play: func(w *world) {
			w.begin(ha.Rebuild{})
			w.answer("Consul.BeginRebuild")
			w.begin(ha.Rebuild{})
			w.pass(2 * w.Dynamic.LoopWait)
			w.answer("Postgres.Answers", false)
		}, turns: 1},
		"a candidate counts on it": {play: func(w *world) { w.Detached = 7; w.begin(ha.Rebuild{}) }},
		"there is no session":      {play: func(w *world) { w.Session = ""; w.begin(ha.Rebuild{}) }},
		"nobody leads":             {play: func(w *world) { w.Snapshot = w.shard(""); w.begin(ha.Rebuild{}) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := stranded(t)
			tt.play(w)
			w.settle()
			w.none("Postgres.Stop", "Postgres.RemoveForReinit", "Postgres.MakeReplica")
			if w.turns != tt.turns || w.Stranded == "" {
				t.Fatalf("turns %d, stranded %q", w.turns, w.Stranded)
			}
		})
	}
}

// What has diverged and cannot be rewound is stranded until a rejoin works.
func TestRebuildOfWhatCannotBeRewound(t *testing.T) {
	w := newWorld(t)
	w.Snapshot = w.shard("b")
	w.agree("Postgres.Stop", "Postgres.Start", "Guard.Awake")
	w.sawReplica(200*mib, "b")
	w.begin(ha.Rejoin{Upstream: "b"})
	w.deny("Postgres.Rewind", ErrDiverged)
	w.running, w.PG.Running = false, false
	w.looked()
	if w.Stranded != ErrDiverged.Error() {
		t.Fatalf("stranded %q", w.Stranded)
	}
	w.Attempt = ha.Attempt{}
	w.begin(ha.Rejoin{Upstream: "b"})
	w.answer("Postgres.Rewind")
	w.looked()
	if w.Stranded != "" {
		t.Fatalf("stranded %q", w.Stranded)
	}
}
