package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
)

// listed is a leader whose failsafe list names all three members.
func listed(t *testing.T) *world {
	w := newWorld(t).leading()
	w.LeaseState.ListKnown(140, map[string]string{"a": "http://a:8008/patroni", "b": "http://b:8008/patroni", "c": "http://c:8008/patroni"})
	w.agree("Guard.Arm")
	w.pass(10 * time.Second)
	return w
}

// The lease goes on when all have agreed, counted from before the first was asked.
func TestAskFailsafe(t *testing.T) {
	w := listed(t)
	w.Snapshot.Members[2].Value.Lictor = nil // Patroni
	until := w.LeaseState.Until()
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
	if w.LeaseState.Until() != until {
		t.Fatal("one of two is enough")
	}
	c.answer()
	if w.LeaseState.Until() != t0.Add(30*time.Second) || !w.LeaseState.OnFailsafe() || !w.FailsafeInForce() {
		t.Fatalf("until %v", w.LeaseState.Until().Sub(t0))
	}
	w.settle()
	if w.GuardSupervisor.known != w.KillAt() {
		t.Fatal("the guard does not know")
	}
}

// The first refusal ends the round; what the others say then is void.
func TestAFailsafeRoundThatIsRefused(t *testing.T) {
	w := listed(t)
	until := w.LeaseState.Until()
	w.failsafe.ask()
	b, c := w.take("Peers.Failsafe"), w.take("Peers.Failsafe")
	b.fail(errBoom)
	if w.LeaseState.Lease().Asking {
		t.Fatal("the round goes on")
	}
	w.pass(time.Second)
	w.failsafe.ask() // the next one
	c.answer()
	if w.LeaseState.Until() != until || !w.LeaseState.Lease().Asking {
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
	if w.LeaseState.Held(w.clock) || w.LeaseState.OnFailsafe() {
		t.Fatal("a lease that is over is prolonged")
	}
	w = listed(t)
	w.failsafe.ask()
	b, c = w.take("Peers.Failsafe"), w.take("Peers.Failsafe")
	w.fenceNow()
	b.answer()
	c.answer()
	if w.LeaseState.Held(w.clock) {
		t.Fatal("a fenced member leads again")
	}
}

// A leader whose list names nobody else asks nobody.
func TestAFailsafeRoundOfOne(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Arm")
	w.LeaseState.ListKnown(140, map[string]string{"a": "http://a:8008/patroni"})
	w.pass(time.Second)
	t0 := w.clock
	w.failsafe.ask()
	w.pass(0)
	if w.LeaseState.Until() != t0.Add(30*time.Second) {
		t.Fatal("not prolonged")
	}
	w.none("Peers.Failsafe")
}
