package agent

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// A look at PostgreSQL is compared with what the leader had told before it began.
func TestPositionsOfOneMoment(t *testing.T) {
	const before, switched = int64(0x44242d8), int64(0x5000000)
	var m member
	status := func(lsn int64, seen cluster.Instant) {
		m.Snapshot.Status = cluster.Entry[cluster.Status]{ModifyIndex: uint64(seen), Value: cluster.Status{OpTime: lsn}}
		m.StatusSeen = seen
	}
	m.sawPostgresAt(5)
	if got := m.leaderLSN(); got != 0 {
		t.Errorf("before anything was read: %X", got)
	}
	status(before, 10)
	m.sawPostgresAt(9) // it began before
	if got := m.leaderLSN(); got != 0 {
		t.Errorf("known after the look only: %X", got)
	}
	m.sawPostgresAt(10)
	if got := m.leaderLSN(); got != before {
		t.Errorf("known by then: %X, want %X", got, before)
	}
	status(switched, 20)
	if got := m.leaderLSN(); got != before {
		t.Errorf("the leader has switched segments since the look: %X, want %X", got, before)
	}
	m.sawPostgresAt(21)
	if got := m.leaderLSN(); got != switched {
		t.Errorf("after the next look: %X, want %X", got, switched)
	}
	status(before, 30) // a failover that has lost something
	if got := m.leaderLSN(); got != before {
		t.Errorf("the shard has less by now: %X, want %X", got, before)
	}
}

// A beat of a leader whose PostgreSQL could not be looked at tells the last position:
// by 0 nobody would lag.
func TestPositionNeverGoesBackToNothing(t *testing.T) {
	var a Agent
	a.m.Snapshot.Status = cluster.Entry[cluster.Status]{ModifyIndex: 7, Value: cluster.Status{OpTime: 4711}}
	if got := a.nextStatus().OpTime; got != 4711 {
		t.Errorf("not looked at: %d", got)
	}
	a.m.pg.observed = postgres.State{Running: true, Accepting: true, WriteLSN: 4000}
	if got := a.nextStatus().OpTime; got != 4000 {
		t.Errorf("a leader that has less: %d", got)
	}
}
