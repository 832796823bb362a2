package operator

import (
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func TestOverrides(t *testing.T) {
	leaderless := func(edit func(*cluster.Snapshot)) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) {
			s.Leader = cluster.Entry[string]{}
			edit(s)
		}
	}
	listed := cluster.Entry[map[string]string]{Value: map[string]string{"a": "", "c": ""}, ModifyIndex: 1}
	for _, c := range []struct {
		name        string
		edit        func(*cluster.Snapshot)
		list, lease bool
	}{
		{"somebody leads: he is asked", func(s *cluster.Snapshot) { s.Failsafe = listed }, false, false},
		{"the last leader's lease may run", leaderless(func(*cluster.Snapshot) {}), false, true},
		{"it was released", leaderless(func(s *cluster.Snapshot) { s.Status.Value.Lictor.Released = true }), false, false},
		{"it was given to the candidate", leaderless(func(s *cluster.Snapshot) {
			s.Status.Value.Lictor.Released, s.Status.Value.Lictor.Successor = true, "b"
		}), false, false},
		{"it was given to another", leaderless(func(s *cluster.Snapshot) {
			s.Status.Value.Lictor.Released, s.Status.Value.Lictor.Successor = true, "c"
		}), false, true},
		{"it was released, and a restore has discarded what the candidate has", leaderless(func(s *cluster.Snapshot) {
			s.Status.Value.Lictor.Released, s.Status.Value.Lictor.Discarded = true, 100
		}), false, true},
		{"it is the candidate's own, and a restore has discarded what it has", leaderless(func(s *cluster.Snapshot) {
			s.Status.Value.Lictor.Owner, s.Status.Value.Lictor.Discarded = "b", 100
		}), false, true},
		{"it is the candidate's own", leaderless(func(s *cluster.Snapshot) { s.Status.Value.Lictor.Owner = "b" }), false, false},
		{"Patroni led: there is no lease", leaderless(func(s *cluster.Snapshot) { s.Status.Value.Lictor = nil }), false, false},
		{"the status makes no sense", leaderless(func(s *cluster.Snapshot) { s.Status = cluster.Entry[cluster.Status]{} }), false, false},
		{"not in the failsafe list", leaderless(func(s *cluster.Snapshot) { s.Failsafe = listed }), true, true},
	} {
		list, lease := overrides(shardOf(c.edit), "b")
		if list != c.list || lease != c.lease {
			t.Errorf("%s: list %v, lease %v, want %v and %v", c.name, list, lease, c.list, c.lease)
		}
	}
}

// All that a leader needs from the status stays; its own value is left alone.
func TestReleasedTo(t *testing.T) {
	before := cluster.Status{
		OpTime: 7, Slots: map[string]int64{"x": 1}, RetainSlots: []string{"x"},
		Lictor: &cluster.Beat{LeaseMS: 8000, Number: 5, Owner: "a", Timeline: 3, Complete: true, Paused: true},
	}
	after := releasedTo(before, "b", false)
	b := after.Lictor
	if !b.Released || b.Complete || b.Successor != "b" || b.Owner != "a" || b.Timeline != 3 || b.LeaseMS != 8000 || b.Number != 5 || after.OpTime != 7 || after.Slots["x"] != 1 {
		t.Errorf("%+v of %+v", b, after)
	}
	before.Lictor.Discarded, before.Lictor.DiscardedBefore = 3, 2
	if b := releasedTo(before, "b", true).Lictor; b.Discarded != 2 || b.DiscardedBefore != 0 {
		t.Errorf("a restore is not undone: %+v", b)
	}
	if b := releasedTo(before, "b", false).Lictor; b.Discarded != 3 || b.DiscardedBefore != 2 {
		t.Errorf("a restore is undone: %+v", b)
	}
	if before.Lictor.Released {
		t.Error("the argument was changed")
	}
}

func TestListSaysWhoIsUnheard(t *testing.T) {
	table := listTable("x", shardOf(func(s *cluster.Snapshot) {
		s.Members[1].Value.Role = cluster.RolePrimary
		s.Leader.ModifyIndex = s.Members[1].ModifyIndex + 1
	}), ListOptions{})
	if got := pretty(t, table); !strings.Contains(got, " b led before and has not been heard of since a took over\n") {
		t.Errorf("list:\n%s", got)
	}
}
