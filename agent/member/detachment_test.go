package member

import (
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// The note that this replica has detached keeps its archive from it: what could not be removed is removed again, until there
// is another note.
func TestNoteOfADetachmentIsDropped(t *testing.T) {
	w := newWorld(t)
	old := pg.Detachment{Status: 80, Attempt: "one", Candidate: "c"}
	w.quorum.noted = old
	w.quorum.mind()
	for range 3 {
		if c := w.take("Postgres.DropDetachment"); c.args[0] != old {
			t.Fatal(c.args)
		} else {
			c.fail(errBoom)
		}
		if len(w.Logged()) != 1 {
			t.Fatalf("%q", w.Logged())
		}
		w.quorum.mind()
		w.none("Postgres.DropDetachment")
		w.pass(400 * time.Millisecond)
	}
	w.quorum.noted = pg.Detachment{Status: 90, Attempt: "two", Candidate: "c"}
	w.take("Postgres.DropDetachment").answer()
	if len(w.Logged()) != 0 {
		t.Fatalf("%q", w.Logged())
	}

	w = newWorld(t)
	w.quorum.noted = old
	w.quorum.mind()
	w.take("Postgres.DropDetachment").fail(errBoom)
	w.quorum.noted = old // noted anew
	w.pass(400 * time.Millisecond)
	w.none("Postgres.DropDetachment")
}

// Who may be on the silent leader's host is no witness: its address was known, or nobody is.
func TestWitnessesAreElsewhere(t *testing.T) {
	asked := func(w *world) (names []string) {
		w.quorum.mind()
		w.quorum.begin(90)
		for w.find("Peers.Misses") != nil {
			names = append(names, w.take("Peers.Misses").args[1].(string))
		}
		slices.Sort(names)
		return names
	}
	shard := func(change func(*world)) *world {
		w := newWorld(t)
		w.Dynamic.Takeover = cluster.TakeoverQuorum
		w.Snapshot.Members = append(w.Snapshot.Members, cluster.Entry[cluster.Member]{ModifyIndex: 1, Value: cluster.Member{Name: "d", ConnURL: "postgres://b:5433/postgres"}})
		change(w)
		return w
	}
	gone := func(w *world) {
		w.Snapshot.Members = slices.DeleteFunc(w.Snapshot.Members, func(m cluster.Entry[cluster.Member]) bool { return m.Value.Name == "b" })
	}
	for name, c := range map[string]struct {
		w    *world
		want []string
	}{
		"one is on its host": {shard(func(*world) {}), []string{"c"}},
		"its key has gone": {shard(func(w *world) {
			w.quorum.mind()
			gone(w)
		}), []string{"c"}},
		"its key was never seen": {shard(gone), nil},
		"one says nowhere to be": {shard(func(w *world) { w.Snapshot.Members[2].Value.ConnURL = "postgres://" }), nil},
		"another one leads meanwhile": {shard(func(w *world) {
			w.quorum.mind()
			gone(w)
			w.Snapshot.Status.Value.Lictor.Owner = "e"
		}), nil},
	} {
		if got := asked(c.w); !slices.Equal(got, c.want) {
			t.Errorf("%s: asked %v, want %v", name, got, c.want)
		}
	}
}

// Where a member is free again before it has noted that it detached, the note does not stay: it would keep the archive from this
// replica until its agent begins anew.
func TestNoteOfADetachmentThatIsOver(t *testing.T) {
	d := pg.Detachment{Status: 90, Attempt: "one", Candidate: "c"}
	for name, noted := range map[string]func(*call){"noted": yes, "half noted": no} {
		w := newWorld(t)
		w.Dynamic.Takeover = cluster.TakeoverQuorum
		var told error
		over := false
		w.quorum.detachFor(d, func(err error) { told, over = err, true })
		w.answer("Postgres.Unfollow")
		w.Reattach() // there is a newer status
		w.quorum.mind()
		w.none("Postgres.DropDetachment") // it would come before the note
		noted(w.take("Postgres.KeepDetachment"))
		w.answer("Postgres.Look", Found{}, false)
		if !over || name == "half noted" && told == nil {
			t.Fatalf("%s: %t, %v", name, over, told)
		}
		if c := w.take("Postgres.DropDetachment"); c.args[0] != d {
			t.Errorf("%s: dropped %v", name, c.args)
		}
	}
}

// A note is not dropped while this member detaches for another attempt under the same status.
func TestNoteOfADetachmentThatIsMadeAgain(t *testing.T) {
	w := newWorld(t)
	w.Dynamic.Takeover = cluster.TakeoverQuorum
	w.quorum.noted = pg.Detachment{Status: 90, Attempt: "one", Candidate: "c"}
	w.quorum.mind()
	w.deny("Postgres.DropDetachment", errBoom)
	w.quorum.detachFor(pg.Detachment{Status: 90, Attempt: "two", Candidate: "c"}, func(error) {})
	w.pass(400 * time.Millisecond)
	w.none("Postgres.DropDetachment")
}
