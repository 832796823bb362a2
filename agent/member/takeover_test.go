package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// The mark comes before the takeover is sent: a restarted agent must know that there may
// be a lease.
func TestAMarkBeforeTheTakeOver(t *testing.T) {
	w := newWorld(t)
	w.Snapshot = w.shard("")
	w.takeOver(ha.TakeOver{Status: 90}, false)
	w.none("Consul.TakeOver")
	c := w.take("Guard.Mark")
	if want := w.clock.Add(27 * time.Second); c.args[0] != want || c.args[1] != false {
		t.Fatalf("marked with %v, want %v", c.args, want)
	}
	w.takeOver(ha.TakeOver{Status: 90}, false) // one at a time
	w.none("Guard.Mark")
	c.fail(errBoom)
	w.none("Consul.TakeOver")
	if w.LeaseState.Writing() || w.LeaseState.Lease().Uncertain {
		t.Fatalf("%+v", w.LeaseState.Lease())
	}
	w.Session = ""
	w.takeOver(ha.TakeOver{Status: 90}, false)
	w.none("Guard.Mark")
}

func TestTakeOver(t *testing.T) {
	w := newWorld(t)
	w.agree("Guard.Mark")
	w.Snapshot = w.shard("")
	w.Snapshot.Status.Value.Lictor.Owner = "b" // whose lease ran out
	w.Snapshot.Initialize = cluster.Entry[string]{}
	w.Snapshot.Config.ModifyIndex = 0
	w.SyncUncertain = true
	sync := cluster.NewSync("a", nil)
	w.history.written = 3
	w.takeOver(ha.TakeOver{Status: 90, Failsafe: 8, Leader: 9, Sync: &sync, SyncIndex: 44}, false)
	c := w.take("Consul.TakeOver")
	r := c.args[1].(cluster.TakeOver)
	if r.Session != "sa" || r.Name != "a" || r.StatusIndex != 90 || r.FailsafeIndex != 8 || r.LeaderIndex != 9 || r.Sync != &sync || r.SyncIndex != 44 {
		t.Fatalf("%+v", r)
	}
	if r.Initialize != systemA || r.Bootstrapped || string(r.Config) != `{"ttl":30}` {
		t.Fatalf("initialize %q, bootstrapped %t, config %s", r.Initialize, r.Bootstrapped, r.Config)
	}
	if r.Route == nil || r.RouteIndex != 60 || r.Route.State != cluster.RoutePromoting || r.Route.Leader.Name != "a" {
		t.Fatalf("route %+v", r.Route)
	}
	if r.Status.Lictor.Timeline != 4 {
		t.Fatalf("a replica that is to be promoted reserves timeline %d", r.Status.Lictor.Timeline)
	}
	t0 := w.clock
	w.pass(time.Second)
	k := w.Keys
	c.answer(cluster.Indexes{k.Status(): 120, k.Leader(): 121, k.Sync(): 122, k.Route(): 123, k.Initialize(): 124}, nil)
	if w.LeaseState.Until() != t0.Add(30*time.Second) || !w.Leads() {
		t.Fatalf("the lease lasts for %v", w.LeaseState.Until().Sub(t0))
	}
	s := w.Snapshot
	if s.Status.ModifyIndex != 120 || s.Leader.ModifyIndex != 121 || s.Sync.ModifyIndex != 122 || s.Route.ModifyIndex != 123 || s.Initialize.ModifyIndex != 124 ||
		s.Initialize.Value != systemA || w.SyncUncertain || w.history.written != 0 || len(w.poked) != 1 {
		t.Fatalf("%+v", s)
	}
	if arm := w.take("Guard.Arm"); arm.args[1] != true {
		t.Fatal("the guard is not told that it is a new lease")
	}
	w.take("Consul.Read")

	// The old leader may not know: it is told until it has heard it.
	w.deny("Peers.Depose", errBoom)
	w.none("Peers.Depose")
	w.pass(time.Second)
	if d := w.take("Peers.Depose"); d.args[1] != "b" || d.args[2] != uint64(120) {
		t.Fatalf("deposed %v", d.args)
	} else {
		d.fail(errBoom)
	}
	w.Snapshot.Leader = cluster.Entry[string]{Value: "c", Session: "sc", ModifyIndex: 130}
	w.pass(time.Minute)
	w.none("Peers.Depose")
}

// In pause the guard is to remember the pause, and to kill nothing.
func TestTakeOverInPause(t *testing.T) {
	w := newWorld(t)
	w.agree("Guard.Mark", "Guard.Arm", "Guard.StandDown", "Guard.Remember")
	w.Snapshot = w.shard("")
	w.Dynamic.Pause = true
	w.sawPrimary(200 * mib)
	w.takeOver(ha.TakeOver{Status: 90}, false)
	c := w.take("Consul.TakeOver")
	if r := c.args[1].(cluster.TakeOver); !r.Status.Lictor.Paused || r.Status.Lictor.Timeline != 3 {
		t.Fatalf("%+v", r.Status.Lictor)
	}
	c.answer(cluster.Indexes{w.Keys.Status(): 120, w.Keys.Leader(): 121}, nil)
	w.settle()
	if !w.GuardSupervisor.known.IsZero() || w.GuardSupervisor.marked != markedPaused {
		t.Fatalf("known %v, marked %v", w.GuardSupervisor.known, w.GuardSupervisor.marked)
	}
}

func TestUnreleasedOwner(t *testing.T) {
	for _, tt := range []struct {
		name string
		beat *cluster.Beat
		want string
	}{
		{"of Patroni", nil, ""},
		{"another's", &cluster.Beat{Owner: "b"}, "b"},
		{"our own", &cluster.Beat{Owner: "a"}, ""},
		{"released", &cluster.Beat{Owner: "b", Released: true}, ""},
	} {
		w := newWorld(t)
		w.Snapshot.Status.Value.Lictor = tt.beat
		if got := w.unreleasedOwner(); got != tt.want {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
	w := newWorld(t)
	w.deposer.depose("gone", 7)
	w.none("Peers.Depose")
}

// The closing transaction of a bootstrap, of which nobody knows whether it took effect, is
// repeated as it was when Consul shows that it did not.
func TestTheClosingTransactionOfABootstrapIsRepeated(t *testing.T) {
	for _, landed := range []bool{false, true} {
		w := newWorld(t)
		w.agree("Guard.Mark", "Guard.Arm", "Consul.Touch")
		empty := cluster.Snapshot{Index: 100, Members: w.shard("").Members[:1], Initialize: cluster.Entry[string]{Session: "sa", ModifyIndex: 80}}
		w.Snapshot = empty
		w.Data = Data{State: ha.DataBootstrapped, SystemIdentifier: systemA, Timeline: 1, WasPrimary: true}
		w.running = false
		w.Saw(Look{State: pg.State{}})
		w.Step()
		first := w.take("Consul.TakeOver")
		r := first.args[1].(cluster.TakeOver)
		if !r.Bootstrapped || r.Initialize != systemA || r.Sync != nil {
			t.Fatalf("%+v", r)
		}
		w.Step()
		w.none("Consul.TakeOver", "Consul.EndBootstrap")
		w.Accept(empty, true)
		w.none("Consul.EndBootstrap")
		first.fail(cluster.ErrUncertain)
		w.Step()
		w.none("Consul.TakeOver", "Consul.EndBootstrap")
		w.pass(time.Second)
		w.Step()
		shown := empty
		if landed {
			shown = w.shard("a")
			shown.Index = 200
		}
		w.answer("Consul.Read", shown, nil)
		w.none("Consul.EndBootstrap")
		w.Step()
		if landed {
			w.none("Consul.TakeOver")
			w.answer("Postgres.FinishBootstrap")
			continue
		}
		again := w.take("Consul.TakeOver").args[1].(cluster.TakeOver)
		if !again.Bootstrapped || again.Initialize != systemA || again.StatusIndex != r.StatusIndex {
			t.Fatalf("repeated as %+v", again)
		}
	}
}
