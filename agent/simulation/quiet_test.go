package simulation

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/ha"
)

// TestWithoutAFaultNothingChangesHands: whatever an operator sets, and whatever
// hiccup Consul has, the primary goes on accepting commits.
func TestWithoutAFaultNothingChangesHands(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		config map[string]any
		events []Event
	}{
		{"asynchronous", map[string]any{"ttl": 8}, nil},
		{"synchronous", map[string]any{"ttl": 8, "synchronous_mode": true}, nil},
		{"quorum", map[string]any{"ttl": 8, "synchronous_mode": "quorum"}, nil},
		{"strict", map[string]any{"ttl": 8, "synchronous_mode": true, "synchronous_mode_strict": true}, nil},
		{"ttl lowered", map[string]any{"ttl": 30}, []Event{ev(30, SetTTL, a).with(3)}},
		{"ttl raised", map[string]any{"ttl": 3}, []Event{ev(30, SetTTL, a).with(30)}},
		{"ttl raised a little", map[string]any{"ttl": 8}, []Event{ev(30, SetTTL, a).with(30)}},
		{"pause", map[string]any{"ttl": 8}, []Event{during(30, 30, Pause, a)}},
		{"pause without Consul", map[string]any{"ttl": 8}, []Event{during(30, 60, Pause, a), during(40, 30, ConsulDown, a)}},
		{"pause without Consul, and the agent is killed", map[string]any{"ttl": 8}, []Event{
			during(30, 60, Pause, a), during(40, 30, ConsulDown, a), during(45, 1, KillAgent, a), during(60, 3, KillAgent, a),
		}},
		{"pause, and the agent is killed as it begins", map[string]any{"ttl": 8}, []Event{
			during(30, 60, Pause, a), during(33, 30, ConsulDown, a), during(33.5, 1, KillAgent, a),
		}},
		{"synchronous mode changes", map[string]any{"ttl": 8}, []Event{
			ev(30, SetSyncMode, a).text("on"), ev(50, SetSyncMode, a).text("quorum"), ev(70, SetSyncMode, a).text("off"),
		}},
		{"failsafe off and on", map[string]any{"ttl": 8}, []Event{ev(30, SetFailsafe, a).with(0), ev(50, SetFailsafe, a).with(1)}},
		{"every session lost", map[string]any{"ttl": 8}, []Event{ev(30, SessionLoss, a), ev(50, SessionLoss, b), ev(60, SessionLoss, a)}},
		{"Consul elects", map[string]any{"ttl": 8, "failsafe_mode": false}, []Event{during(30, 3, ConsulLeaderLoss, a)}},
		{"the agent is killed", map[string]any{"ttl": 8, "failsafe_mode": false}, []Event{during(30, 1, KillAgent, a)}},
		{"Consul hangs", map[string]any{"ttl": 8}, []Event{during(30, 60, ConsulHang, a)}},
		{"Consul is down", map[string]any{"ttl": 8}, []Event{during(30, 60, ConsulDown, a)}},
		{"the leader alone cannot reach Consul", map[string]any{"ttl": 8}, []Event{during(30, 60, CutBoth, a).to(3)}},
		{"Consul is down, and the agent is killed", map[string]any{"ttl": 8}, []Event{during(30, 60, ConsulDown, a), during(45, 1, KillAgent, a)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := directed(3, test.config, test.events...)
			for seed := uint64(1); seed <= 10; seed++ {
				s.Seed = seed
				if r := Run(s, Options{}); r.Violation != nil || r.Tally.Interruptions > 0 || r.Tally.Commits < 600 {
					t.Errorf("%v, %+v", r.Violation, r.Tally)
					tell(t, s, Options{})
					return
				}
			}
		})
	}
}

// TestConsulComesBackBehind: what Consul's new leader shows before it has applied its
// log, another leader of the shard too, ends no lease, not even to an agent that was
// started meanwhile and knows nothing else.
func TestConsulComesBackBehind(t *testing.T) {
	t.Parallel()
	s := directed(3, map[string]any{"ttl": 8, "synchronous_mode": true, "synchronous_node_count": 2}, during(10, 2, ConsulDown, a), ev(20, Switchover, b),
		during(40, 40, ConsulDown, a), during(50, 1, KillAgent, b))
	s.Calm = true
	for seed := uint64(1); seed <= 20; seed++ {
		s.Seed = seed
		if r := Run(s, Options{}); r.Violation != nil || r.Tally.Promotions != 1 || r.Tally.Interruptions != 1 {
			t.Errorf("%v, %+v", r.Violation, r.Tally)
			tell(t, s, Options{})
			return
		}
	}
}

// TestSwitchover: one promotion, one short gap, nothing lost.
func TestSwitchover(t *testing.T) {
	t.Parallel()
	for _, mode := range []any{false, true, "quorum"} {
		s := directed(3, map[string]any{"ttl": 8, "synchronous_mode": mode, "synchronous_node_count": 2}, ev(30, Switchover, b))
		s.Calm = true
		for seed := uint64(1); seed <= 20; seed++ {
			s.Seed = seed
			if r := Run(s, Options{}); r.Violation != nil || r.Tally.Interruptions != 1 || r.Tally.Promotions != 1 {
				t.Errorf("synchronous_mode %v: %v, %+v", mode, r.Violation, r.Tally)
				tell(t, s, Options{})
				return
			}
		}
	}
}

// TestSwitchoverInPause: the candidate leads and the old leader follows it, while the pause
// goes on.
func TestSwitchoverInPause(t *testing.T) {
	t.Parallel()
	for _, mode := range []any{false, true, "quorum"} {
		s := directed(3, map[string]any{"ttl": 8, "synchronous_mode": mode, "synchronous_node_count": 2}, during(29, 100, Pause, a), ev(32, Switchover, b), ev(50, Switchover, c))
		s.Calm = true
		ends := func(m Mutant, seed uint64) string {
			s.Seed = seed
			w := newWorld(s, Options{Mutant: m})
			for _, e := range s.Events {
				w.at(e.At, func() { w.inject(e) })
			}
			w.run(65 * time.Second)
			if why := w.judge.whole(); w.judge.violation != nil || !w.judge.paused || why != "" || w.consul.leaderNamed() != memberName(c) {
				return fmt.Sprintf("paused: %v; %v; %s leads; %s", w.judge.paused, w.judge.violation, w.consul.leaderNamed(), why)
			}
			return ""
		}
		for seed := uint64(1); seed <= 20; seed++ {
			if why := ends(Mutant{}, seed); why != "" {
				t.Errorf("seed %d: %s", seed, why)
				return
			}
		}
		if ends(Mutant{SwitchoverUnasked: true}, 1) == "" || ends(Mutant{HandoverForgotten: true}, 1) == "" {
			t.Error("a rule can be left out without anything noticing")
		}
	}
}

// TestLedInPauseAndIsGone: a leader's agent ends in pause, and its PostgreSQL stays. When the pause
// is over a standby leads without which it can acknowledge nothing; without one nobody does.
func TestLedInPauseAndIsGone(t *testing.T) {
	t.Parallel()
	for _, mode := range []any{false, true, "quorum"} {
		s := directed(3, map[string]any{"ttl": 8, "synchronous_mode": mode})
		s.Calm = true
		for seed := uint64(1); seed <= 20; seed++ {
			s.Seed = seed
			w := newWorld(s, Options{})
			led := ""
			w.at(31*time.Second, func() { led = w.consul.leaderNamed() })
			w.at(32*time.Second, func() {
				w.inject(Event{At: w.now, For: 100 * time.Second, Kind: EndAgent, Member: w.hostNamed(led).id})
			})
			w.at(29*time.Second, func() { w.inject(Event{At: w.now, For: 10 * time.Second, Kind: Pause}) })
			w.run(70 * time.Second)
			serves := w.consul.leaderNamed() != "" && w.consul.leaderNamed() != led
			if w.judge.violation != nil || led != "" && serves != (mode != false) {
				t.Errorf("synchronous_mode %v, seed %d: %s led, now %q: %v; %s", mode, seed, led, w.consul.leaderNamed(), w.judge.violation, w.judge.reasons())
				return
			}
		}
	}
}

// TestGuardThatHangs: PostgreSQL is killed at the deadline of a guard that stands still;
// the leader then does without that guard.
func TestGuardThatHangs(t *testing.T) {
	t.Parallel()
	for _, members := range []int{1, 3} {
		s := directed(members, map[string]any{"ttl": 8}, during(30, 85, StopGuard, a))
		s.Calm = true
		for seed := uint64(1); seed <= 20; seed++ {
			s.Seed = seed
			served := false
			r := Run(s, Options{Trace: func(at time.Duration, line string) {
				served = served || at > 31*time.Second && at < 60*time.Second && strings.Contains(line, ": accepts commits")
			}})
			if r.Violation != nil || !served || r.Tally.Interruptions != 1 {
				t.Errorf("a member serves again: %v; %v, %+v", served, r.Violation, r.Tally)
				tell(t, s, Options{})
				return
			}
		}
	}
}

// TestFailover: how soon after a host was lost another member accepts commits: after a lease, the drift of
// two clocks, two loop_waits and a promotion.
func TestFailover(t *testing.T) {
	t.Parallel()
	const promotion = 2 * time.Second
	for _, ttl := range []int{3, 8, 30} {
		for _, mode := range []any{false, true, "quorum"} {
			s := directed(3, map[string]any{"ttl": ttl, "synchronous_mode": mode}, during(30, 90, HostLoss, a))
			s.Length = 80 * time.Second
			s.Calm = true
			lease, loop := sec(float64(ttl)), s.bootConfig().LoopWait
			bound := time.Duration(float64(lease)*(1+ha.DriftMargin)) + 2*loop + promotion
			longest := time.Duration(0)
			for seed := uint64(1); seed <= 10; seed++ {
				s.Seed = seed
				took := time.Hour
				r := Run(s, Options{Trace: func(at time.Duration, line string) {
					if at > 30*time.Second && took == time.Hour && strings.Contains(line, ": accepts commits") {
						took = at - 30*time.Second
					}
				}})
				longest = max(longest, took)
				if r.Violation != nil || r.Tally.Promotions != 1 || took > bound {
					t.Errorf("ttl %d, synchronous_mode %v: after %s, at the most %s: %v, %+v", ttl, mode, took, bound, r.Violation, r.Tally)
					tell(t, s, Options{})
					return
				}
			}
			t.Logf("ttl %d, synchronous_mode %v: after %s at the latest, bound %s", ttl, mode, longest, bound)
		}
	}
}
