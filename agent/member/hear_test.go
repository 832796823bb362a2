package member

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

func TestHearFailsafe(t *testing.T) {
	w := newWorld(t)
	if err := w.HearFailsafe(ha.FailsafeRequest{Leader: "c", Lease: 30 * time.Second, Index: 90}); !errors.Is(err, ha.ErrDisagree) {
		t.Fatalf("promised to one that does not lead: %v", err)
	}
	if w.LeaseState.Promise() != nil || w.FailsafeInForce() {
		t.Fatal("a promise")
	}
	for range 2 {
		if err := w.HearFailsafe(ha.FailsafeRequest{Leader: "b", Lease: 30 * time.Second, Index: 90}); err != nil {
			t.Fatal(err)
		}
		if p := w.LeaseState.Promise(); p == nil || p.Leader != "b" || p.Until.Before(w.clock.Add(30*time.Second)) {
			t.Fatalf("%+v", p)
		}
		w.pass(time.Second)
		if !w.FailsafeInForce() {
			t.Fatal("it does not say that it has promised")
		}
	}
	w.pass(31 * time.Second)
	if w.FailsafeInForce() {
		t.Fatal("its promise is over")
	}
}

// Where readers are a member says only when beats are missing, and only of slots that Consul has told of: a copy that
// was moved on cannot be moved back.
func TestHearFailsafeSlots(t *testing.T) {
	const told = 60 * mib
	late := func(w *world) { w.pass(w.Dynamic.BeatInterval() + w.Dynamic.RetryTimeout) }
	for name, test := range map[string]struct {
		before func(*world)
		slots  map[string]int64
		want   map[string]int64
		refuse bool
	}{
		"a status was seen a moment ago": {func(*world) {}, map[string]int64{"feed": 1 << 50}, map[string]int64{"feed": told}, false},
		"the next one is not overdue":    {func(w *world) { w.pass(w.Dynamic.BeatInterval()) }, map[string]int64{"feed": 1 << 50}, map[string]int64{"feed": told}, false},
		"it is":                          {late, map[string]int64{"feed": 70 * mib}, map[string]int64{"feed": 70 * mib}, false},
		"nothing was read": {func(w *world) {
			c := w.Snapshot.Config
			w.ClusterView = ha.ClusterView{}
			w.Snapshot.Config = c
		}, map[string]int64{"feed": 70 * mib, "c": 1}, map[string]int64{"feed": 70 * mib}, false},
		"of a member's slot": {func(w *world) { late(w); w.Snapshot.Status.Value.Slots["c"] = 5 }, map[string]int64{"c": 6}, map[string]int64{"c": 6}, false},
		"of others, too":     {late, map[string]int64{"feed": 70 * mib, "other": 7}, map[string]int64{"feed": 70 * mib}, false},
		"before the first":   {late, map[string]int64{"feed": -1}, map[string]int64{"feed": told}, true},
		"it says nothing":    {late, nil, map[string]int64{"feed": told}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := feedWorld(t)
			test.before(w)
			err := w.HearFailsafe(ha.FailsafeRequest{Leader: "b", Lease: 30 * time.Second, Index: 90, Slots: test.slots})
			if got := w.Snapshot.Status.Value.Slots; (err != nil) != test.refuse || (w.LeaseState.Promise() != nil) == test.refuse && !w.Read.IsZero() || !maps.Equal(got, test.want) {
				t.Errorf("%v, %v, want %v", got, err, test.want)
			}
		})
	}
}

// heard is what a done was told.
type heard struct {
	told bool
	err  error
}

func (h *heard) done(err error) { h.told, h.err = true, err }

// A member detaches from the old leader for a status that Consul shows, or when Consul cannot
// be asked.
func TestHearDetach(t *testing.T) {
	for _, tt := range []struct {
		name      string
		candidate string
		index     uint64
		read      bool // Consul is asked
		shown     uint64
		silent    bool
		parts     bool
	}{
		{"known", "c", 90, false, 0, false, true},
		{"known by now", "c", 95, true, 95, false, true},
		{"Consul shows less", "c", 95, true, 90, false, false},
		{"Consul shows more", "c", 95, true, 96, false, false},
		{"Consul is silent", "c", 95, true, 0, true, true},
		{"itself", "a", 90, false, 0, false, false},
		{"a stranger", "x", 90, false, 0, false, false},
		{"a stranger, Consul is silent", "x", 95, true, 0, true, false},
		{"an older status", "c", 89, false, 0, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			var h heard
			w.HearDetach(tt.candidate, tt.index, h.done)
			if tt.read {
				if h.told {
					t.Fatal("answered before Consul was asked")
				}
				c := w.take("Consul.Read")
				if c.args[0] != confirmLimit {
					t.Fatalf("limit %v", c.args[0])
				}
				s := w.shard("b")
				s.Index, s.Status.ModifyIndex = 120, tt.shown
				if tt.silent {
					c.fail(errBoom)
				} else {
					c.answer(s, nil)
				}
			}
			w.none("Consul.Read")
			if !h.told || (h.err == nil) != tt.parts || (w.Detached == tt.index) != tt.parts {
				t.Fatalf("told %t: %v; detached %d", h.told, h.err, w.Detached)
			}
		})
	}
}

// What a voter says of its detaching holds only while it follows nobody and does nothing.
func TestDetaching(t *testing.T) {
	w := newWorld(t)
	w.HearDetach("c", 90, func(error) {})
	if detached, _ := w.Detaching(); detached != 0 {
		t.Fatal("it still follows the old leader")
	}
	w.follow("")
	w.answer("Postgres.Unfollow")
	if detached, _ := w.Detaching(); detached != 0 {
		t.Fatal("the task is not over")
	}
	w.answer("Postgres.Look", Found{Data: w.Data}, true)
	if detached, observed := w.Detaching(); detached != 90 || observed != 0 {
		t.Fatalf("detached %d, observed %d before it was looked at", detached, observed)
	}
	w.sawReplica(100*mib, "")
	if detached, observed := w.Detaching(); detached != 90 || observed != 90 {
		t.Fatalf("detached %d, observed %d", detached, observed)
	}
	w.sawPrimary(100 * mib)
	if detached, _ := w.Detaching(); detached != 0 {
		t.Fatal("a primary has parted")
	}
}

// A leader that hears that it is deposed asks Consul, and believes what that shows; the word
// of a member does only when Consul is silent. It is no other with an operator's force: the
// command leaves its request in Consul first, and gives nothing away that somebody holds.
func TestHearDeposed(t *testing.T) {
	overridden := func(edit func(*cluster.Snapshot)) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) {
			s.Leader = cluster.Entry[string]{}
			s.Failover = cluster.Entry[cluster.Failover]{Value: cluster.Failover{Candidate: "b"}, ModifyIndex: 140}
			if edit != nil {
				edit(s)
			}
		}
	}
	for _, tt := range []struct {
		name    string
		by      string
		index   uint64
		forced  bool
		read    bool
		shown   uint64
		shows   func(*cluster.Snapshot)
		silent  bool
		refused bool
		deposed bool
	}{
		{name: "Consul shows it", by: "b", index: 120, read: true, shown: 120},
		{name: "Consul shows nothing of it", by: "b", index: 120, read: true, shown: 101, refused: true},
		{name: "Consul is silent", by: "b", index: 120, read: true, silent: true, deposed: true},
		{name: "by force", by: "b", index: 120, forced: true, read: true, shown: 101, shows: overridden(nil), deposed: true},
		{name: "by force, and Consul is silent", by: "b", index: 120, forced: true, read: true, silent: true, deposed: true},
		{name: "by force, and Consul shows more", by: "b", index: 120, forced: true, read: true, shown: 120, shows: overridden(nil)},
		{name: "by force that Consul knows nothing of", by: "b", index: 120, forced: true, read: true, shown: 101, refused: true},
		{
			name: "by force, of a request to another", by: "b", index: 120, forced: true, read: true, shown: 101, refused: true,
			shows: overridden(func(s *cluster.Snapshot) { s.Failover.Value.Candidate = "c" }),
		},
		{
			name: "by force, of a request to hand over", by: "b", index: 120, forced: true, read: true, shown: 101, refused: true,
			shows: overridden(func(s *cluster.Snapshot) {
				s.Leader = cluster.Entry[string]{Value: "a", Session: "sa", ModifyIndex: 102}
			}),
		},
		{
			name: "by force, of a request for later", by: "b", index: 120, forced: true, read: true, shown: 101, refused: true,
			shows: overridden(func(s *cluster.Snapshot) { s.Failover.Value.ScheduledAt = new(time.Time) }),
		},
		{
			name: "by force, of a request that makes no sense", by: "b", index: 120, forced: true, read: true, shown: 101, refused: true,
			shows: overridden(func(s *cluster.Snapshot) { s.Failover.Err = errBoom }),
		},
		{name: "an old story", by: "b", index: 101},
		{name: "an old story by force", by: "b", index: 101, forced: true},
		{name: "itself", by: "a", index: 120, refused: true},
		{name: "nobody", by: "", index: 120, refused: true},
		{name: "a stranger", by: "x", index: 120, read: true, silent: true, refused: true},
		{name: "a stranger by force", by: "x", index: 120, forced: true, read: true, silent: true, refused: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t).leading()
			var h heard
			w.HearDeposed(tt.by, tt.index, tt.forced, h.done)
			if tt.read {
				c := w.take("Consul.Read")
				s := w.shard("b")
				s.Index, s.Status.ModifyIndex = 150, tt.shown
				if tt.shows != nil {
					tt.shows(&s)
				}
				if tt.silent {
					c.fail(errBoom)
				} else {
					c.answer(s, nil)
				}
			}
			if !h.told || (h.err != nil) != tt.refused || (w.LeaseState.Lease().Deposed != 0) != tt.deposed {
				t.Fatalf("told %t: %v; deposed %d", h.told, h.err, w.LeaseState.Lease().Deposed)
			}
			if tt.refused {
				w.none("Consul.Read")
				return
			}
			w.take("Consul.Read") // to know more
			if !tt.deposed {
				return
			}
			w.Step()
			w.wantTask(ha.TaskDemote)
			w.take("Postgres.Kill")
		})
	}
	// Before anything was read, nobody is known.
	w := newWorld(t).leading()
	w.ClusterView = ha.ClusterView{}
	var h heard
	w.HearDeposed("x", 120, true, h.done)
	w.take("Consul.Read").fail(errBoom)
	if h.err != nil || w.LeaseState.Lease().Deposed != 120 {
		t.Fatal(h.err)
	}
	w = newWorld(t) // no leader
	w.HearDeposed("c", 80, false, h.done)
	if h.err != nil || w.LeaseState.Lease().Deposed != 0 {
		t.Fatal(h.err)
	}
	if !errors.As(refused("no"), &Refused{}) || refused("no %d", 1).Error() != "no 1" {
		t.Fatal("a refusal says why")
	}
}
