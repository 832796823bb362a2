package member

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

var logicalSlot = cluster.Slot{Name: "feed", Type: cluster.SlotLogical, Database: "app", Plugin: "test_decoding"} //nolint:gochecknoglobals // a value that nothing changes

// feedWorld is a replica of b, which has the logical slot feed.
func feedWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.useSlots = true
	w.Dynamic.Slots = map[string]any{"feed": map[string]any{"type": "logical", "database": "app", "plugin": "test_decoding"}}
	w.Snapshot.Status.Value.Slots = map[string]int64{"feed": 60 * mib}
	return w
}

// A replica that may lead lacks the slots that the leader has, as the leader's status says.
func TestLackingSlots(t *testing.T) {
	lacks := []cluster.Slot{logicalSlot}
	for name, test := range map[string]struct {
		change func(*world)
		want   []cluster.Slot
	}{
		"lacks it":           {func(*world) {}, lacks},
		"has it":             {func(w *world) { w.PG.Observed.Slots = []pg.Slot{{Slot: logicalSlot, ConfirmedLSN: 1}} }, nil},
		"has another":        {func(w *world) { w.PG.Observed.Slots = []pg.Slot{{Slot: cluster.Slot{Name: "feeds"}}} }, lacks},
		"the leader has not": {func(w *world) { w.Snapshot.Status.Value.Slots = map[string]int64{"feeds": 1} }, nil},
		"not configured":     {func(w *world) { w.Dynamic.Slots = nil }, nil},
		"without slots":      {func(w *world) { w.useSlots = false }, nil},
		"nofailover":         {func(w *world) { w.Tags = map[string]any{"nofailover": true} }, nil},
		"nostream":           {func(w *world) { w.Tags = map[string]any{"nostream": true} }, nil},
		"PostgreSQL keeps it": {func(w *world) {
			w.syncsSlots = true
			w.Snapshot.Status.Value.Lictor.FailoverSlots = []string{"feed"}
		}, nil},
		"PostgreSQL keeps others":    {func(w *world) { w.syncsSlots = true }, lacks},
		"PostgreSQL keeps none here": {func(w *world) { w.Snapshot.Status.Value.Lictor.FailoverSlots = []string{"feed"} }, lacks},
		"in a standby shard":         {func(w *world) { w.Dynamic.StandbyCluster.Host = "remote" }, nil},
		"streams from one that gets its WAL from the archive": {func(w *world) {
			w.Tags = map[string]any{"replicatefrom": "c"}
			w.Snapshot.Members[2].Value.Tags = map[string]any{"nostream": true}
		}, nil},
		"streams from another replica": {func(w *world) { w.Tags = map[string]any{"replicatefrom": "c"} }, lacks},
		"a member's name":              {func(w *world) { w.Snapshot.Members[2].Value.Name = "feed" }, nil},
		"streams nothing":              {func(w *world) { w.PG.Observed.ReplicationState = "" }, nil},
		"still replaying":              {func(w *world) { w.PG.Observed.Replaying = true }, nil},
		"another timeline":             {func(w *world) { w.PG.Observed.Timeline++ }, nil},
		"nobody leads":                 {func(w *world) { w.Snapshot.Leader = cluster.Entry[string]{} }, nil},
		"an old leader says":           {func(w *world) { w.Snapshot.Status.Value.Lictor.Owner = "c" }, nil},
		"another one is restarted":     {func(w *world) { w.Snapshot.Members[2].Value.State = cluster.StateRestarting }, nil},
		"another one comes first": {func(w *world) {
			w.Snapshot.Members[2].Value.Name = "A"
			w.slots.advance()
			w.pass(turnEvery - 1)
		}, nil},
		"another one came first": {func(w *world) {
			w.Snapshot.Members[2].Value.Name = "A"
			w.slots.advance()
			w.pass(turnEvery)
		}, lacks},
		"a primary": {func(w *world) {
			w.leading()
			w.Snapshot.Status.Value.Slots = map[string]int64{"feed": 1}
		}, nil},
		"tried a moment ago": {func(w *world) {
			w.slots.tried([]cluster.Slot{logicalSlot}, true)
			w.pass(copyAgainAfter - 1)
		}, nil},
		"tried before": {func(w *world) {
			w.slots.tried([]cluster.Slot{logicalSlot}, true)
			w.pass(copyAgainAfter)
		}, lacks},
	} {
		t.Run(name, func(t *testing.T) {
			w := feedWorld(t)
			test.change(w)
			if got := w.View().Postgres.LacksSlots; !slices.Equal(got, test.want) {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

// Nothing is stopped before the copies are here, and nothing is started without them.
func TestCopySlots(t *testing.T) {
	w := feedWorld(t)
	w.agree("Guard.Awake", "Postgres.BeforeStop")
	action := ha.CopySlots{Upstream: "c", From: "b", Slots: w.slots.lacking()}
	files := []pg.SlotFile{{Slot: logicalSlot, State: []byte("state")}}
	w.begin(action)
	w.wantTask(ha.TaskRestart)
	if from := w.take("Postgres.FetchSlots"); from.args[0].(pg.Upstream).Name != "b" || !slices.Equal(from.args[1].([]cluster.Slot), action.Slots) {
		t.Fatalf("%v", from.args)
	} else {
		from.answer(nil, errBoom)
	}
	w.none("Postgres.TryStart", "Postgres.Stop")
	w.looked()
	if w.Attempt.Failures != 0 || len(w.Logged()) != 1 || !strings.Contains(w.Logged()[0], "boom") { // told once, and PostgreSQL was not touched
		t.Fatalf("%+v %q", w.Attempt, w.Logged())
	}
	if w.slots.lacking() != nil {
		t.Fatal("it is copied again at once")
	}
	w.pass(fetchAgainAfter)
	if w.slots.lacking() == nil {
		t.Fatal("nothing was stopped for it, and it is not fetched again")
	}

	w.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync("b", []string{"a"}), ModifyIndex: 44}
	w.begin(action)
	w.answer("Postgres.FetchSlots", files, nil)
	w.answer("Postgres.TryStart", "", nil)
	w.none("Postgres.Stop")
	w.Snapshot.Sync.Value = cluster.NewSync("b", []string{"c"})
	w.waiters.tell()
	w.none("Postgres.PlaceSlots")
	w.answer("Postgres.Stop")
	w.none("Postgres.Start")
	if place := w.take("Postgres.PlaceSlots"); !slices.EqualFunc(place.args[0].([]pg.SlotFile), files, func(a, b pg.SlotFile) bool { return a.Slot == b.Slot && string(a.State) == string(b.State) }) {
		t.Fatalf("%v", place.args)
	} else {
		place.answer()
	}
	if start := w.take("Postgres.Start"); start.args[1].(StartAs).Upstream.Name != "c" || start.args[1].(StartAs).Primary {
		t.Fatalf("%v", start.args)
	} else {
		start.answer()
	}
	w.looked()
	if w.pass(fetchAgainAfter); w.slots.lacking() != nil {
		t.Error("a restart follows a restart")
	}
	if len(w.Logged()) != 0 || w.LeavingSync {
		t.Errorf("%q %v", w.Logged(), w.LeavingSync)
	}
}

// copies plays one attempt at copies: fetched is how fetching ends, placed how placing does. It reports whether
// PostgreSQL was stopped, and the start that followed was asked for.
func (w *world) copies(fetched, placed error) (stopped, started bool) {
	w.t.Helper()
	action := ha.CopySlots{Upstream: "b", From: "b", Slots: w.slots.lacking()}
	if action.Slots == nil {
		w.t.Fatal("nothing is lacking")
	}
	w.begin(action)
	w.take("Postgres.FetchSlots").answer([]pg.SlotFile{{Slot: logicalSlot}}, fetched)
	if fetched == nil {
		w.answer("Postgres.TryStart", "", nil)
		w.answer("Postgres.Stop")
		stopped = true
		w.take("Postgres.PlaceSlots").answer(placed)
		w.settle()
		if started = w.find("Postgres.Start") != nil; started {
			w.answer("Postgres.Start")
		}
	}
	w.looked()
	w.wantTask(ha.TaskNone)
	return stopped, started
}

// A replica in which a copy cannot be placed is started again all the same, and is not restarted every minute for
// it: the time doubles, and so does that between two attempts for which nothing is stopped. It is told once.
func TestCopiesThatCannotBePlaced(t *testing.T) {
	w := feedWorld(t)
	w.agree("Guard.Awake", "Postgres.BeforeStop")
	wait := func() (d time.Duration) {
		t.Helper()
		for ; w.slots.lacking() == nil; d += time.Second {
			if w.pass(time.Second); d > 2*time.Hour {
				t.Fatal("it is never tried again")
			}
		}
		return d
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		if stopped, started := w.copies(nil, errBoom); !stopped || !started {
			t.Fatalf("stopped %v, started %v", stopped, started)
		}
		if w.Upstream != "b" || len(w.Logged()) != 1 || !strings.Contains(w.Logged()[0], "boom") || w.Attempt.Failures != 0 {
			t.Fatalf("%q %q %+v", w.Upstream, w.Logged(), w.Attempt)
		}
		if got := wait(); got != want*time.Minute {
			t.Errorf("tried again after %v, want %v", got, want*time.Minute)
		}
	}
	for _, want := range []time.Duration{10, 20, 40, 60, 60} {
		if stopped, _ := w.copies(errBoom, nil); stopped {
			t.Fatal("stopped for what is not there")
		}
		if got := wait(); got != want*time.Second {
			t.Errorf("fetched again after %v, want %v", got, want*time.Second)
		}
	}
	// One that was there for as long as it would have been waited for is forgotten.
	w.copies(nil, nil)
	at := func(slots ...pg.Slot) {
		w.PG.Observed.Slots = slots
		w.slots.advance()
	}
	at(pg.Slot{Slot: logicalSlot, ConfirmedLSN: 60 * mib})
	at()
	if got := wait(); got != copyAgainMost {
		t.Errorf("it has gone at once, and is tried again after %v", got)
	}
	w.pass(copyAgainMost)
	at(pg.Slot{Slot: logicalSlot, ConfirmedLSN: 60 * mib})
	at()
	if got := wait(); got != 0 {
		t.Errorf("it was there, and is tried again after %v", got)
	}
	w.copies(nil, errBoom)
	if got := wait(); got != copyAgainAfter {
		t.Errorf("it was there, and is tried again the second time after %v", got)
	}
}

// A replica's copy gives way to PostgreSQL's own when the leader's slot is one that PostgreSQL keeps, and no
// sooner: the reader of a slot that is not marked would find nothing with the next leader.
func TestCopiesGiveWayToFailoverSlots(t *testing.T) {
	w := feedWorld(t)
	native := func() bool {
		t.Helper()
		wanted, err := w.slots.wanted(false)
		i := slices.IndexFunc(wanted, func(s pg.WantedSlot) bool { return s.Slot == logicalSlot })
		if err != nil || i < 0 {
			t.Fatalf("%+v, %v", wanted, err)
		}
		return wanted[i].Native
	}
	if w.syncsSlots = true; native() {
		t.Error("the leader's is not marked")
	}
	w.PG.Observed.Slots = []pg.Slot{{Slot: logicalSlot, ConfirmedLSN: 50 * mib}}
	w.slots.advance()
	w.take("Postgres.AdvanceLogical").answer()
	w.Snapshot.Status.Value.Lictor.FailoverSlots = []string{"feed"}
	if !native() {
		t.Error("the leader's is marked")
	}
	w.pass(w.Dynamic.LoopWait)
	w.slots.advance()
	w.none("Postgres.AdvanceLogical")
	if w.Snapshot.Status.Value.Lictor.Owner = "c"; native() {
		t.Error("an old leader says so")
	}
}

// When a slot is marked, the replicas' own copies make room one after another: until those before it have
// PostgreSQL's, this one keeps and moves on what it has.
func TestCopiesGiveWayOneAfterAnother(t *testing.T) {
	before := func(m cluster.Member) cluster.Entry[cluster.Member] {
		m.Name, m.Timeline = "0", 3
		return cluster.Entry[cluster.Member]{Value: m, ModifyIndex: 1}
	}
	running := cluster.Member{State: cluster.StateRunning, Lictor: &cluster.MemberLictor{}}
	synced := running
	synced.Lictor = &cluster.MemberLictor{SyncedSlots: "feed"}
	for name, c := range map[string]struct {
		first  cluster.Member
		yields bool
	}{
		"the first has none yet":      {running, false},
		"the first has it":            {synced, true},
		"the first is down":           {cluster.Member{State: cluster.StateStopped, Lictor: &cluster.MemberLictor{}}, true},
		"the first is Patroni's":      {cluster.Member{State: cluster.StateRunning}, true},
		"the first may not lead":      {cluster.Member{State: cluster.StateRunning, Lictor: &cluster.MemberLictor{}, Tags: map[string]any{"nofailover": true}}, true},
		"the first keeps another one": {cluster.Member{State: cluster.StateRunning, Lictor: &cluster.MemberLictor{SyncedSlots: "another,feed2"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := feedWorld(t)
			w.syncsSlots = true
			w.Snapshot.Status.Value.Lictor.FailoverSlots = []string{"feed"}
			w.Snapshot.Members = append(w.Snapshot.Members, before(c.first))
			wanted, err := w.slots.wanted(false)
			i := slices.IndexFunc(wanted, func(s pg.WantedSlot) bool { return s.Slot == logicalSlot })
			if err != nil || i < 0 || !wanted[i].Native || wanted[i].Yields != c.yields {
				t.Fatalf("%+v, %v", wanted, err)
			}
			if lacking := w.slots.lacking(); len(lacking) != 0 {
				t.Errorf("copies %v, which PostgreSQL keeps", lacking)
			}
			w.PG.Observed.Slots = []pg.Slot{{Slot: logicalSlot, ConfirmedLSN: 50 * mib}}
			w.slots.advance()
			if moved := w.find("Postgres.AdvanceLogical") != nil; moved == c.yields {
				t.Errorf("the copy is moved on: %v", moved)
			}
			w.PG.Observed.Slots[0].Synced = true
			if own := w.Value().Lictor.SyncedSlots; own != "feed" {
				t.Errorf("it says that PostgreSQL keeps %s", own)
			}
		})
	}
}

// While a replica has none of this primary's failover slots yet, the primary helps those on that are read: often at
// first, and ever more seldom, as it may be in vain.
func TestAwaitedFailoverSlots(t *testing.T) {
	waits := func(w *world) *world {
		w.leading()
		w.syncsSlots = true
		w.PG.Observed.Slots = []pg.Slot{{Slot: logicalSlot, ConfirmedLSN: 5, Failover: true, Active: true}}
		for i := range w.Snapshot.Members {
			w.Snapshot.Members[i].Value.State = cluster.StateRunning
			w.Snapshot.Members[i].Value.Lictor = &cluster.MemberLictor{}
		}
		return w
	}
	ordered := func(w *world) (awaited, ordered bool) {
		t.Helper()
		w.slots.keep()
		c := w.find("Postgres.SyncSlots")
		if c == nil {
			return false, false
		}
		o := w.take("Postgres.SyncSlots")
		o.answer()
		return slices.ContainsFunc(o.args[1].(pg.SlotOrders).Wanted, func(s pg.WantedSlot) bool { return s.Name == "feed" && s.Awaited }), true
	}
	for name, c := range map[string]struct {
		change func(*world)
		want   bool
	}{
		"a replica has none": {func(*world) {}, true},
		"all have it": {func(w *world) {
			for i := range w.Snapshot.Members {
				w.Snapshot.Members[i].Value.Lictor = &cluster.MemberLictor{SyncedSlots: "feed"}
			}
		}, false},
		"nobody reads it":       {func(w *world) { w.PG.Observed.Slots[0].Active = false }, false},
		"it is no failover one": {func(w *world) { w.PG.Observed.Slots[0].Failover = false }, false},
		"PostgreSQL keeps none": {func(w *world) { w.syncsSlots = false }, false},
		"they may not lead": {func(w *world) {
			for i := range w.Snapshot.Members {
				w.Snapshot.Members[i].Value.Tags = map[string]any{"nofailover": true}
			}
		}, false},
		"they are down": {func(w *world) {
			for i := range w.Snapshot.Members {
				w.Snapshot.Members[i].Value.State = cluster.StateStopped
			}
		}, false},
	} {
		w := waits(feedWorld(t))
		c.change(w)
		if awaited, _ := ordered(w); awaited != c.want {
			t.Errorf("%s: helped on: %v", name, awaited)
		}
	}

	w := waits(feedWorld(t))
	if awaited, _ := ordered(w); !awaited {
		t.Fatal("not helped on")
	}
	times := 0
	for range 600 {
		w.pass(time.Second)
		if awaited, _ := ordered(w); awaited {
			times++
		}
	}
	if times < 10 || times > 30 {
		t.Errorf("helped on %d times in ten minutes", times)
	}
	for i := range w.Snapshot.Members {
		w.Snapshot.Members[i].Value.Lictor = &cluster.MemberLictor{SyncedSlots: "feed"}
	}
	w.pass(time.Second)
	w.slots.awaited()
	if !w.slots.awaitedSince.IsZero() {
		t.Error("the next one that waits is helped on as seldom")
	}
}

// A copy is moved once a loop_wait to where its reader has come, and not beyond what is
// replayed here.
func TestAdvanceSlots(t *testing.T) {
	w := feedWorld(t)
	w.Dynamic.LoopWait = time.Second
	at := func(lsn int64, active bool) {
		w.PG.Observed.Slots = []pg.Slot{{Slot: logicalSlot, ConfirmedLSN: lsn, Active: active}}
	}
	at(60*mib, false)
	w.slots.advance()
	at(50*mib, true)
	w.slots.advance()
	at(50*mib, false)
	w.PG.Observed.ReplayedLSN = 50 * mib
	w.slots.advance()
	w.none("Postgres.AdvanceLogical")
	w.PG.Observed.ReplayedLSN = 51 * mib
	w.slots.advance()
	w.slots.advance()
	c := w.take("Postgres.AdvanceLogical")
	if s := c.args[2].([]pg.WantedSlot); c.args[1] != 3 || len(s) != 1 || s[0].Slot != logicalSlot || s[0].To != 60*mib {
		t.Fatalf("%v", c.args)
	}
	w.none("Postgres.AdvanceLogical")
	c.fail(errBoom)
	if len(w.Logged()) != 1 {
		t.Fatal("not told of")
	}
	w.slots.advance()
	w.none("Postgres.AdvanceLogical")
	w.pass(time.Second)
	w.slots.advance()
	w.take("Postgres.AdvanceLogical").answer()
	if len(w.Logged()) != 0 {
		t.Fatal("told of for ever")
	}
}

// A leader without Consul says to those whom it asks where its slots' readers are.
func TestSlotsWithoutConsul(t *testing.T) {
	w := feedWorld(t)
	w.Snapshot.Status.Value.Slots = nil
	w.pass(w.Dynamic.BeatInterval() + w.Dynamic.RetryTimeout)
	if err := w.HearFailsafe(ha.FailsafeRequest{Leader: "b", Lease: 30 * time.Second, Index: 90, Slots: map[string]int64{"feed": 70 * mib}}); err != nil {
		t.Fatal(err)
	}
	if got := w.slots.lacking(); !slices.Equal(got, []cluster.Slot{logicalSlot}) {
		t.Errorf("%v", got)
	}
	if err := w.HearFailsafe(ha.FailsafeRequest{Leader: "c", Lease: 30 * time.Second, Index: 90, Slots: map[string]int64{"feed": 99 * mib}}); err == nil {
		t.Fatal("somebody else is promised something")
	}
	if w.Snapshot.Status.Value.Slots["feed"] != 70*mib {
		t.Error("a member that does not lead is believed")
	}

	w = feedWorld(t).leading()
	w.PG.Observed.Slots = []pg.Slot{{Slot: logicalSlot, ConfirmedLSN: 5}, {Slot: cluster.Slot{Name: "own", Type: cluster.SlotLogical}, ConfirmedLSN: 6, Failover: true}}
	if got := w.nextStatus(); len(got.Slots) != 1 || got.Slots["feed"] != 5 || len(got.Lictor.FailoverSlots) != 0 {
		t.Errorf("the status: %+v", got)
	}
	w.PG.Observed.Slots[0].Failover = true
	if got := w.nextStatus().Lictor.FailoverSlots; !slices.Equal(got, []string{"feed"}) {
		t.Errorf("failover slots: %v", got)
	}
}
