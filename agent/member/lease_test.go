package member

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// A beat of a leader whose PostgreSQL could not be looked at tells the last position:
// by 0 nobody would lag.
func TestPositionNeverGoesBackToNothing(t *testing.T) {
	m := New(Settings{Name: "a"}, Ports{}, nil, cluster.Dynamic{})
	m.Snapshot.Status = cluster.Entry[cluster.Status]{ModifyIndex: 7, Value: cluster.Status{OpTime: 4711}}
	if got := m.nextStatus().OpTime; got != 4711 {
		t.Errorf("not looked at: %d", got)
	}
	m.PG.Observed = pg.State{Running: true, Accepting: true, WriteLSN: 4000}
	if got := m.nextStatus().OpTime; got != 4000 {
		t.Errorf("a leader that has less: %d", got)
	}
	m.PG.Observed.Replaying = true
	if got := m.nextStatus().OpTime; got != 4711 {
		t.Errorf("one that replays has more than it knows: %d", got)
	}
}
