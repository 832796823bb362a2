package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// The guard knows of a failsafe list before Consul can.
func TestRememberBeforeTheList(t *testing.T) {
	list := map[string]string{"a": "http://a:8008/patroni", "b": "http://b:8008/patroni"}
	w := newWorld(t).leading()
	w.Snapshot.Failsafe.ModifyIndex = 0
	w.failsafe.writeList(ha.WriteFailsafe{List: list})
	w.none("Consul.WriteAsLeader")
	c := w.take("Guard.Remember")
	if m := c.persisted(); len(m.Lists) != 1 || len(m.Lists[0]) != 2 || m.Listed {
		t.Fatalf("the guard remembers %+v", m.PersistedState)
	}
	w.failsafe.writeList(ha.WriteFailsafe{List: list})
	w.none("Guard.Remember") // one at a time
	c.answer()
	write := w.take("Consul.WriteAsLeader")
	if write.args[2] != w.Keys.Failsafe() || write.args[3] != uint64(0) {
		t.Fatalf("%v", write.args)
	}
	write.answer(uint64(140), nil)
	if w.Snapshot.Failsafe.ModifyIndex != 140 || !w.LeaseState.Lease().Failsafe || w.Writing(w.Keys.Failsafe()) {
		t.Fatal("the list is not noted")
	}
	if m := w.take("Guard.Arm").persisted(); !m.Listed || m.ListedAt != 140 {
		t.Fatalf("the guard is told %+v", m.PersistedState)
	}

	// Without the guard nothing is listed.
	w = newWorld(t).leading()
	w.failsafe.writeList(ha.WriteFailsafe{List: list})
	w.deny("Guard.Remember", errBoom)
	w.none("Consul.WriteAsLeader")
	if !w.Writing(w.Keys.Failsafe()) {
		t.Fatal("tried again at once")
	}
	w.pass(200 * time.Millisecond)
	if w.Writing(w.Keys.Failsafe()) {
		t.Fatal("never tried again")
	}

	// A deletion is one that the key may have gone by from the moment on when it is sent.
	w.LeaseState.ListKnown(140, list)
	w.failsafe.writeList(ha.WriteFailsafe{Index: 140})
	if w.LeaseState.Lease().Failsafe {
		t.Fatal("the leader relies on a list that it deletes")
	}
	if m := w.take("Guard.Remember"); !m.persisted().Leaving {
		t.Fatal("the guard does not know of the deletion")
	} else {
		m.answer()
	}
	if c := w.take("Consul.WriteAsLeader"); c.args[4] != nil {
		t.Fatalf("written: %v", c.args[4])
	}
	w.Session = ""
	w.writing = map[string]bool{}
	w.failsafe.writeList(ha.WriteFailsafe{Index: 140})
	w.none("Guard.Remember")
}

// A write of a key is one at a time, and one of unknown outcome is tried again after a
// reading.
func TestWriteAsLeader(t *testing.T) {
	w := newWorld(t).leading()
	sync := cluster.NewSync("a", []string{"b"})
	w.syncBefore = &cluster.Entry[cluster.Sync]{}
	w.writeSync(ha.WriteSync{Index: 4, Value: &sync})
	w.writeSync(ha.WriteSync{Index: 4, Value: &sync})
	c := w.take("Consul.WriteAsLeader")
	w.none("Consul.WriteAsLeader")
	if c.args[1] != "sa" || c.args[2] != w.Keys.Sync() || c.args[3] != uint64(4) {
		t.Fatalf("%v", c.args)
	}
	if !w.View().SyncWriting {
		t.Fatal("the decision does not know of the write")
	}
	c.fail(cluster.ErrUncertain)
	if !w.SyncUncertain || w.Snapshot.Sync.Exists() {
		t.Fatal("a write of unknown outcome")
	}
	w.take("Consul.Read")
	w.writeSync(ha.WriteSync{Index: 4, Value: &sync})
	w.none("Consul.WriteAsLeader")
	w.pass(200 * time.Millisecond)
	w.writeSync(ha.WriteSync{Index: 5, Value: &sync})
	w.answer("Consul.WriteAsLeader", uint64(150), nil)
	if w.SyncUncertain || w.Snapshot.Sync.ModifyIndex != 150 || w.syncBefore != nil {
		t.Fatalf("%+v", w.Snapshot.Sync)
	}
	if w.ClusterView.Accept(w.clock, cluster.Snapshot{Index: 149}, true) != ha.Stale {
		t.Fatal("a reading of before the write is taken")
	}
	w.writeSync(ha.WriteSync{Index: 150})
	w.answer("Consul.WriteAsLeader", uint64(160), nil)
	if w.Snapshot.Sync.Exists() {
		t.Fatal("a deleted key is still there")
	}
	w.writeSync(ha.WriteSync{Value: &sync})
	w.deny("Consul.WriteAsLeader", errBoom)
	if w.SyncUncertain {
		t.Fatal("a write without effect is no uncertain one")
	}
}

func TestClearFailover(t *testing.T) {
	w := newWorld(t).leading()
	w.Snapshot.Failover = cluster.Entry[cluster.Failover]{Value: cluster.Failover{Candidate: "b"}, ModifyIndex: 33}
	w.Reason = "b does not answer"
	w.perform(ha.ClearFailover{Index: 33})
	c := w.take("Consul.WriteAsLeader")
	if c.args[2] != w.Keys.Failover() || c.args[3] != uint64(33) || !c.args[4].(cluster.Failover).Empty() {
		t.Fatalf("%v", c.args)
	}
	if w.Refused != "b does not answer" {
		t.Fatalf("refused: %q", w.Refused)
	}
	c.answer(uint64(150), nil)
	if f := w.Snapshot.Failover; !f.Value.Empty() || f.ModifyIndex != 150 {
		t.Fatalf("%+v", f)
	}
	w.Session = ""
	w.ClearFailover(150)
	w.none("Consul.WriteAsLeader")
}

// The route has its own index: it lies outside of the shard's keys.
func TestTheRoutesIndexIsNoneOfTheShards(t *testing.T) {
	w := newWorld(t).leading()
	w.WriteAsLeader("route", w.Keys.Route(), 103, cluster.Route{}, func(uint64) {})
	w.answer("Consul.WriteAsLeader", uint64(999), nil)
	s := w.Snapshot
	s.Index = 120
	if w.ClusterView.Accept(w.clock, s, true) != ha.Taken {
		t.Fatal("a reading of after the write counts as older")
	}
}
