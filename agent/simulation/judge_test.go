package simulation

import "testing"

// What excuses a member for a moment must not excuse the shard for the rest of a run: these rules
// are left out after such a moment, and are noticed all the same.

// In an asynchronous shard no key sync says that Consul is up to date again after a snapshot.
func TestJudgesAfterASnapshot(t *testing.T) {
	snapshot := during(20, 5, RestoreSnapshot, a)
	t.Run("I4", func(t *testing.T) {
		killed(t, Mutant{HangEndures: true}, directed(3, hangs(alone(8)), snapshot, ev(100, HangPostmaster, a)), "I4")
	})
	t.Run("I5", func(t *testing.T) {
		killed(t, Mutant{PauseIgnored: true}, directed(3, map[string]any{"ttl": 8}, snapshot, during(40, 50, Pause, a), ev(55, ByHand, b).text("kill")), "I5")
	})
}

// b's virtual machine is paused for a moment while it waits for a's lease to end.
func TestJudgesAPausedCandidate(t *testing.T) {
	killed(t, Mutant{QuorumUnasked: true}, directed(3, map[string]any{"ttl": 8, "synchronous_mode": "quorum"},
		during(30, 60, LagReplica, b), during(32.5, 40, StopAgent, c), during(33, 60, HostLoss, a), during(36, 0.5, PauseVM, b)), "I2")
}

// That an operator has asked one member for something excuses none of the others, nor that one
// when it is done.
func TestJudgesAPauseInWhichOneWasAsked(t *testing.T) {
	for name, asked := range map[string]Event{"restart": ev(40, Restart, c), "reinitialize": ev(40, Reinit, c), "switchover": ev(40, Switchover, c)} {
		t.Run(name, func(t *testing.T) {
			killed(t, Mutant{PauseIgnored: true}, directed(3, map[string]any{"ttl": 8}, during(30, 50, Pause, a), asked, ev(60, ByHand, b).text("kill")), "I5")
		})
	}
	t.Run("when it is done", func(t *testing.T) {
		killed(t, Mutant{PauseIgnored: true}, directed(3, map[string]any{"ttl": 8}, during(30, 50, Pause, a), ev(40, Restart, c), ev(60, ByHand, c).text("kill")), "I5")
	})
}
