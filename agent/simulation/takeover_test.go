package simulation

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// byStandbys is a shard whose standbys may stand in for the lease.
func byStandbys(mode any, ttl int) map[string]any {
	return map[string]any{"ttl": ttl, "synchronous_mode": mode, "takeover": "quorum"}
}

// modes are both synchronous modes, by name.
func modes() map[string]any { return map[string]any{"on": true, "quorum": "quorum"} }

// A host that is lost costs seconds, not the lease of 30 s: the first attempt succeeds.
func TestTakeoverByQuorum(t *testing.T) {
	for name, mode := range modes() {
		for _, members := range []int{3, 5} {
			t.Run(fmt.Sprint(name, members), func(t *testing.T) {
				t.Parallel()
				for seed := uint64(1); seed <= timings(); seed++ {
					s := directed(members, byStandbys(mode, 30), during(60, 50, HostLoss, a))
					s.Seed, s.Calm = seed, true
					var took time.Duration
					r := Run(s, Options{Trace: func(at time.Duration, line string) {
						if took == 0 && at > sec(60) && strings.Contains(line, "accepts commits") {
							took = at - sec(60)
						}
					}})
					if r.Violation != nil {
						report(t, s, Options{})
						return
					}
					if r.Tally.ByQuorum != 1 || took > sec(3) {
						t.Errorf("seed %d: %d takeovers by quorum; commits are accepted again after %s", seed, r.Tally.ByQuorum, took)
					}
				}
			})
		}
	}
}

// Of two members one takes over, as a bouncer misses the other, too; not when that one has lost it alone.
func TestTakeoverByQuorumOfTwo(t *testing.T) {
	for name, mode := range modes() {
		for what, fault := range map[string]struct {
			event Event
			want  int
		}{
			"lost":               {during(60, 50, HostLoss, a), 1},
			"cut off":            {during(60, 50, Isolate, a), 1},
			"for the other only": {during(60, 20, CutBoth, a).to(b), 0},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				for seed := uint64(1); seed <= *simTimings; seed++ {
					s := directed(2, byStandbys(mode, 30), fault.event)
					s.Seed, s.Calm = seed, true
					var took time.Duration
					r := Run(s, Options{Trace: func(at time.Duration, line string) {
						if took == 0 && at > sec(60) && strings.Contains(line, "accepts commits") {
							took = at - sec(60)
						}
					}})
					if r.Violation != nil {
						report(t, s, Options{})
						return
					}
					if r.Tally.ByQuorum != fault.want || took > sec(3.5) {
						t.Errorf("seed %d: %d takeovers by quorum; commits are accepted again after %s", seed, r.Tally.ByQuorum, took)
					}
				}
			})
		}
	}
}

// quorumOf is such a shard of three, in quorum mode, of which b alone can take over; it lags from the moment given on.
func quorumOf(lags float64, events ...Event) Schedule {
	s := directed(3, byStandbys("quorum", 30), append([]Event{during(lags, 90-lags, LagReplica, b)}, events...)...)
	s.NoFailover = []int{c}
	return s
}

// b has nothing of what c has acknowledged last.
func TestMutantQuorumShort(t *testing.T) {
	killed(t, Mutant{QuorumShort: true}, quorumOf(55, during(60, 40, HostLoss, a)), "I2")
}

func TestMutantReplayCountedByQuorum(t *testing.T) {
	killed(t, Mutant{ReplayCounted: true}, quorumOf(55, ev(59.85, KillPostmaster, c), during(59.9, 40, HostLoss, a)), "I2")
}

// c, which is looked at every three seconds, has acknowledged since what b has not.
func TestMutantLookedBefore(t *testing.T) {
	s := quorumOf(59.9, during(60, 40, HostLoss, a))
	s.Config["loop_wait"] = 10
	killed(t, Mutant{LookedBefore: true}, s, "I2")
}

// a is started with commits that nobody has acknowledged, and is lost while its standbys catch up slowly.
func TestMutantOpenedEarly(t *testing.T) {
	killed(t, Mutant{OpenedEarly: true}, directed(3, byStandbys("quorum", 30), during(58, 60, LagReplica, b), during(58, 60, LagReplica, c),
		ev(60, KillPostmaster, a), during(66, 40, HostLoss, a)), "I2")
}

// outOfTouch are the events by which a leader is cut off from Consul for long, and from the members for a moment, while b's
// requests to Consul are slow: b's takeover is on its way for seconds.
func outOfTouch(slow float64, more ...Event) []Event {
	return append([]Event{during(60, 35, CutBoth, a).to(3), during(slow, 12, SlowOneWay, b).to(3).with(9000)}, more...)
}

// c's agent begins anew and follows the old leader again, while b's takeover is under way.
func TestMutantNoteLost(t *testing.T) {
	s := directed(3, byStandbys("quorum", 30), outOfTouch(61, during(60, 1.7, CutBoth, a).to(c), during(60, 35, CutBoth, a).to(b), during(61.4, 0.2, KillAgent, c))...)
	s.NoFailover = []int{c}
	killed(t, Mutant{NoteLost: true, DetachForgotten: true}, s, "I1", "I2")
}

// c has promised, b has not, and its takeover is under way.
func TestMutantDetachedShort(t *testing.T) {
	s := directed(3, byStandbys("quorum", 8), outOfTouch(61, during(60, 1.7, CutBoth, a).to(c), during(60, 35, CutBoth, a).to(b))...)
	s.NoFailover = []int{c}
	killed(t, Mutant{DetachedShort: true}, s, "I1", "I2")
}

// b promises while its takeover is under way, which it is in one run of ten.
func TestMutantInFlightAgreedByQuorum(t *testing.T) {
	s := directed(3, byStandbys("quorum", 8), outOfTouch(61, during(60, 3, CutFromMembers, a))...)
	s.NoFailover = []int{c}
	killed(t, Mutant{InFlightAgreed: true}, s, "I1", "I2")
}

// Commits are to wait for nobody, while a status stands that consents.
func TestMutantConsentKept(t *testing.T) {
	killed(t, Mutant{ConsentKept: true}, directed(3, byStandbys(true, 30), during(59.9, 40, CutOneWay, a).to(3),
		ev(60, SetCommit, a).text("off"), during(60.2, 40, CutFromMembers, a)), "I2")
}

// The agent is killed when commits are to wait for nobody, before the beat that withdraws the consent has come to Consul.
func TestMutantConsentForgotten(t *testing.T) {
	killed(t, Mutant{ConsentForgotten: true}, directed(3, byStandbys(true, 30), during(59.9, 15, SlowOneWay, a).to(3).with(20000),
		ev(60, SetCommit, a).text("off"), during(60.2, 40, CutFromMembers, a), during(60.3, 0.3, KillAgent, a)), "I2")
}

// Without Consul a primary that has crashed is led to again by the members' word, and what clients see of it then is not lost
// when it is lost later.
func TestOpenedWithoutConsul(t *testing.T) {
	for how, away := range map[string]Event{"down": during(55, 40, ConsulDown, a), "cut off": during(55, 40, CutBoth, a).to(3)} {
		for name, mode := range modes() {
			t.Run(how+" "+name, func(t *testing.T) {
				t.Parallel()
				for seed := uint64(1); seed <= *simTimings; seed++ {
					s := directed(3, byStandbys(mode, 8), away, ev(70, KillPostmaster, a), during(96, 30, HostLoss, a))
					s.Seed, s.Calm = seed, true
					opened, crashed := false, false
					r := Run(s, Options{Trace: func(at time.Duration, line string) {
						crashed = crashed || at > sec(70) && strings.Contains(line, "accepts commits")
						opened = opened || crashed && at < sec(95) && strings.Contains(line, "is led to")
					}})
					if r.Violation != nil {
						report(t, s, Options{})
						return
					}
					if !opened {
						t.Errorf("seed %d: it stays closed until Consul is back", seed)
					}
				}
			})
		}
	}
}

// A primary may be seen to accept before its start is known to have ended: nobody is led to it for that.
func TestStartSeenBeforeItsAnswer(t *testing.T) {
	s := directed(3, byStandbys("quorum", 30), during(58, 60, LagReplica, b), during(58, 60, LagReplica, c),
		ev(60, KillPostmaster, a), during(63, 40, HostLoss, a))
	survived(t, s)
}

// Consul goes away when the standbys have detached: the leader goes on by the members' word, and they by its.
func TestMutantDetachedForever(t *testing.T) {
	t.Parallel()
	noticed := 0
	for seed := uint64(1); seed <= 10; seed++ { // in some, nobody has tried to take over
		s := directed(3, byStandbys(true, 8), during(59.9, 59, ConsulDown, a), during(60, 2.5, CutFromMembers, a))
		s.Seed, s.Length, s.Rest = seed, 110*time.Second, 0
		commits := func(m Mutant) int { return Run(s, Options{Mutant: m}).Tally.Commits }
		switch with, without := commits(Mutant{}), commits(Mutant{DetachedForever: true}); {
		case with < without:
			t.Errorf("seed %d: %d commits, and %d if nobody follows again", seed, with, without)
		case with > without*5/4:
			noticed++
		}
	}
	if noticed == 0 {
		t.Error("commits go on just as well if nobody follows again")
	}
}

// Wrong witnesses cost takeovers, and nothing else.
func TestWrongWitnesses(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= timings(); seed++ {
		s := directed(4, byStandbys("quorum", 8), during(40, 3, CutBoth, a).to(b), during(60, 3, CutBoth, a).to(c), during(90, 2, CutFromMembers, a))
		s.Seed = seed
		if v := Run(s, Options{Mutant: Mutant{WitnessLies: true}}).Violation; v != nil {
			report(t, s, Options{Mutant: Mutant{WitnessLies: true}})
			return
		}
	}
}

// Attacks on the takeover by quorum as it is.
func TestTakeoversByQuorum(t *testing.T) {
	drift := []float64{0.01, -0.01, 0.01, -0.01, 0.01}
	for name, attack := range map[string]Schedule{
		"two candidates":     directed(5, byStandbys("quorum", 8), during(60, 20, Isolate, a)),
		"the leader is back": directed(3, byStandbys(true, 8), during(40, 1.3, Isolate, a), during(80, 1.3, CutFromMembers, a)),
		"a Consul election":  directed(3, byStandbys("quorum", 8), during(60, 20, HostLoss, a), during(61, 3, ConsulLeaderLoss, a)),
		"Consul hangs":       directed(3, byStandbys("quorum", 8), during(60, 3, CutFromMembers, a), during(61, 10, ConsulHang, a)),
		"failsafe":           directed(4, byStandbys("quorum", 8), during(58, 30, ConsulDown, a), during(62, 2, CutFromMembers, a), during(75, 5, CutBoth, a).to(b)),
		"agents begin anew":  directed(3, byStandbys("quorum", 8), during(60, 20, Isolate, a), during(61.1, 0.3, KillAgent, b), during(61.15, 0.3, KillAgent, c)),
		"PostgreSQL, too":    directed(3, byStandbys("quorum", 8), during(60, 4, Isolate, a), ev(61.15, KillPostmaster, c), ev(61.3, KillPostmaster, b)),
		"it stands still":    directed(3, byStandbys(true, 8), during(60, 12, PauseVM, a)),
		"the mode changes": directed(5, byStandbys("quorum", 8), ev(50, SetSyncMode, a).text("on"), during(50.5, 10, Isolate, a), ev(75, SetSyncMode, a).text("off"),
			during(75.2, 10, Isolate, b)),
		"a switchover": directed(3, byStandbys(true, 8), ev(60, Switchover, b), during(60.2, 5, Isolate, a)),
		"a pause":      directed(3, byStandbys(true, 8), during(60, 20, Pause, a), during(60.1, 6, Isolate, a)),
		"slow network": directed(4, byStandbys("quorum", 8), during(55, 30, SlowNetwork, b).with(800), during(60, 10, Isolate, a)),
	} {
		t.Run(name, func(t *testing.T) {
			attack.Drift = drift[:attack.Members]
			survived(t, attack)
		})
	}
}
