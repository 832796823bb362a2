package agent

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/member"
)

// A look at PostgreSQL is compared with what the leader had told before it began.
func TestPositionsOfOneMoment(t *testing.T) {
	const before, switched = int64(0x44242d8), int64(0x5000000)
	m := loopState{Member: &member.Member{}}
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
