package simulation

import "testing"

// Consul is put back to a time at which a led, while b, which leads, cannot reach it: a finds
// its session in the lock and its name in the last beat, as if an answer had been lost.
func TestRestoredSnapshotOfAnotherLeader(t *testing.T) {
	survived(t, directed(3, alone(30), during(30, 30, RestoreSnapshot, a), ev(35, Switchover, b), during(59.5, 60, CutBoth, b).to(3)))
}
