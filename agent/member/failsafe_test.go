package member

import (
	"errors"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
)

// listed is a leader whose failsafe list names all three members.
func listed(t *testing.T) *world {
	w := newWorld(t).leading()
	w.Tenure.ListKnown(140, map[string]string{"a": "http://a:8008/patroni", "b": "http://b:8008/patroni", "c": "http://c:8008/patroni"})
	w.agree("Guard.Arm")
	w.pass(10 * time.Second)
	return w
}

// The lease goes on when all have agreed, counted from before the first was asked.
func TestAskFailsafe(t *testing.T) {
	w := listed(t)
	w.Snapshot.Members[2].Value.Lictor = nil // Patroni
	until := w.Tenure.Until()
	w.failsafe.ask()
	t0 := w.clock
	b, c := w.take("Peers.Failsafe"), w.take("Peers.Failsafe")
	w.none("Peers.Failsafe")
	if b.args[1].(ha.FailsafeMember).Name != "b" || b.args[2] != false || c.args[1].(ha.FailsafeMember).Name != "c" || c.args[2] != true {
		t.Fatalf("%v, %v", b.args, c.args)
	}
	if b.args[0] != 7500*time.Millisecond || b.args[3] != 30*time.Second || b.args[4] != uint64(101) {
		t.Fatalf("limit %v, lease %v, index %v", b.args[0], b.args[3], b.args[4])
	}
	w.pass(time.Second)
	b.answer()
	if w.Tenure.Until() != until {
		t.Fatal("one of two is enough")
	}
	c.answer()
	if w.Tenure.Until() != t0.Add(30*time.Second) || !w.Tenure.OnFailsafe() {
		t.Fatalf("until %v", w.Tenure.Until().Sub(t0))
	}
	w.settle()
	if w.Guardian.known != w.KillAt() {
		t.Fatal("the guard does not know")
	}
}

// The first refusal ends the round; what the others say then is void.
func TestAFailsafeRoundThatIsRefused(t *testing.T) {
	w := listed(t)
	until := w.Tenure.Until()
	w.failsafe.ask()
	b, c := w.take("Peers.Failsafe"), w.take("Peers.Failsafe")
	b.fail(errBoom)
	if w.Tenure.Lease().Asking {
		t.Fatal("the round goes on")
	}
	w.pass(time.Second)
	w.failsafe.ask() // the next one
	c.answer()
	if w.Tenure.Until() != until || !w.Tenure.Lease().Asking {
		t.Fatal("an answer of the earlier round counts")
	}
}

// All have agreed when it is too late.
func TestAFailsafeRoundThatIsTooLate(t *testing.T) {
	w := listed(t)
	w.failsafe.ask()
	b, c := w.take("Peers.Failsafe"), w.take("Peers.Failsafe")
	b.answer()
	w.pass(time.Minute)
	c.answer()
	if w.Tenure.Held(w.clock) || w.Tenure.OnFailsafe() {
		t.Fatal("a lease that is over is prolonged")
	}
	w = listed(t)
	w.failsafe.ask()
	b, c = w.take("Peers.Failsafe"), w.take("Peers.Failsafe")
	w.fenceNow()
	b.answer()
	c.answer()
	if w.Tenure.Held(w.clock) {
		t.Fatal("a fenced member leads again")
	}
}

// A leader whose list names nobody else asks nobody.
func TestAFailsafeRoundOfOne(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Arm")
	w.Tenure.ListKnown(140, map[string]string{"a": "http://a:8008/patroni"})
	w.pass(time.Second)
	t0 := w.clock
	w.failsafe.ask()
	w.pass(0)
	if w.Tenure.Until() != t0.Add(30*time.Second) {
		t.Fatal("not prolonged")
	}
	w.none("Peers.Failsafe")
}

func TestHearFailsafe(t *testing.T) {
	w := newWorld(t)
	if err := w.HearFailsafe(ha.FailsafeRequest{Leader: "c", Lease: 30 * time.Second, Index: 90}); !errors.Is(err, ha.ErrDisagree) {
		t.Fatalf("promised to one that does not lead: %v", err)
	}
	if w.Tenure.Promise() != nil {
		t.Fatal("a promise")
	}
	for range 2 {
		if err := w.HearFailsafe(ha.FailsafeRequest{Leader: "b", Lease: 30 * time.Second, Index: 90}); err != nil {
			t.Fatal(err)
		}
		if p := w.Tenure.Promise(); p == nil || p.Leader != "b" || p.Until.Before(w.clock.Add(30*time.Second)) {
			t.Fatalf("%+v", p)
		}
		w.pass(time.Second)
	}
}

// heard is what a done was told.
type heard struct {
	told bool
	err  error
}

func (h *heard) done(err error) { h.told, h.err = true, err }

// A member parts from the old leader for a status that Consul shows, or when Consul cannot
// be asked.
func TestHearPart(t *testing.T) {
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
			w.HearPart(tt.candidate, tt.index, h.done)
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
			if !h.told || (h.err == nil) != tt.parts || (w.Parted == tt.index) != tt.parts {
				t.Fatalf("told %t: %v; parted %d", h.told, h.err, w.Parted)
			}
		})
	}
}

// What a voter says of its parting holds only while it follows nobody and does nothing.
func TestParting(t *testing.T) {
	w := newWorld(t)
	w.HearPart("c", 90, func(error) {})
	if parted, _ := w.Parting(); parted != 0 {
		t.Fatal("it still follows the old leader")
	}
	w.follow("")
	w.answer("Postgres.Unfollow")
	if parted, _ := w.Parting(); parted != 0 {
		t.Fatal("the task is not over")
	}
	w.answer("Postgres.Look", Found{Data: w.Data}, true)
	if parted, observed := w.Parting(); parted != 90 || observed != 0 {
		t.Fatalf("parted %d, observed %d before it was looked at", parted, observed)
	}
	w.sawReplica(100*mib, "")
	if parted, observed := w.Parting(); parted != 90 || observed != 90 {
		t.Fatalf("parted %d, observed %d", parted, observed)
	}
	w.sawPrimary(100 * mib)
	if parted, _ := w.Parting(); parted != 0 {
		t.Fatal("a primary has parted")
	}
}

// A leader that hears that it is deposed asks Consul, believes its word, and that of a
// member when Consul is silent; an operator who forces it is believed at once.
func TestHearDeposed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		by      string
		index   uint64
		forced  bool
		read    bool
		shown   uint64
		silent  bool
		refused bool
		deposed bool
	}{
		{name: "Consul shows it", by: "b", index: 120, read: true, shown: 120},
		{name: "Consul shows nothing of it", by: "b", index: 120, read: true, shown: 101, refused: true},
		{name: "Consul is silent", by: "b", index: 120, read: true, silent: true, deposed: true},
		{name: "by force", by: "b", index: 120, forced: true, deposed: true},
		{name: "an old story", by: "b", index: 101},
		{name: "itself", by: "a", index: 120, refused: true},
		{name: "nobody", by: "", index: 120, refused: true},
		{name: "a stranger", by: "x", index: 120, read: true, silent: true, refused: true},
		{name: "a stranger by force", by: "x", index: 120, forced: true, refused: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t).leading()
			var h heard
			w.HearDeposed(tt.by, tt.index, tt.forced, h.done)
			if tt.read {
				c := w.take("Consul.Read")
				s := w.shard("b")
				s.Index, s.Status.ModifyIndex = 150, tt.shown
				if tt.silent {
					c.fail(errBoom)
				} else {
					c.answer(s, nil)
				}
			}
			if !h.told || (h.err != nil) != tt.refused || (w.Tenure.Lease().Deposed != 0) != tt.deposed {
				t.Fatalf("told %t: %v; deposed %d", h.told, h.err, w.Tenure.Lease().Deposed)
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
	w.Outlook = ha.Outlook{}
	var h heard
	w.HearDeposed("x", 120, true, h.done)
	if h.err != nil || w.Tenure.Lease().Deposed != 120 {
		t.Fatal(h.err)
	}
	w = newWorld(t) // no leader
	w.HearDeposed("c", 80, false, h.done)
	if h.err != nil || w.Tenure.Lease().Deposed != 0 {
		t.Fatal(h.err)
	}
	if !errors.As(refused("no"), &Refused{}) || refused("no %d", 1).Error() != "no 1" {
		t.Fatal("a refusal says why")
	}
}
