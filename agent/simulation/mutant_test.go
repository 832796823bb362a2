package simulation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// directed is a schedule that leads straight to where a rule counts.
func directed(members int, config map[string]any, events ...Event) Schedule {
	return Schedule{Members: members, Config: config, Events: events, Length: 2 * time.Minute, Rest: time.Minute}
}

// sec is a moment or a duration in seconds.
func sec(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func ev(at float64, kind Kind, member int) Event {
	return Event{At: sec(at), Kind: kind, Member: member}
}

func during(at, length float64, kind Kind, member int) Event {
	return Event{At: sec(at), For: sec(length), Kind: kind, Member: member}
}

func (e Event) to(other int) Event     { e.Other = other; return e }
func (e Event) with(value int) Event   { e.Value = value; return e }
func (e Event) text(text string) Event { e.Text = text; return e }

// killed checks that a schedule is survived, however its details fall, and that with
// the rule switched off some way of falling is not. A rule may take more than -sim.timings
// of them to be missed.
func killed(t *testing.T, m Mutant, s Schedule, invariants ...string) {
	t.Helper()
	if *simSeed != 0 {
		s.Seed = *simSeed
		tell(t, s, Options{Mutant: m})
		return
	}
	t.Parallel()
	survives(t, s)
	const enough = 5
	seeds, noticed, tried := max(60, timings()), 0, uint64(0)
	for seed := uint64(1); seed <= seeds && noticed < enough && (seed <= timings() || noticed == 0) && !t.Failed(); seed++ {
		s.Seed = seed
		tried++
		v := Run(s, Options{Mutant: m}).Violation
		switch {
		case v == nil:
		case slices.Contains(invariants, v.Invariant):
			noticed++
		default:
			t.Errorf("seed %d: noticed, but as %v, not %v", seed, v, invariants)
		}
	}
	if noticed == 0 {
		t.Errorf("the rule can be left out without any of %d runs noticing:\n%s", seeds, s)
	}
	t.Logf("noticed in %d of %d runs", noticed, tried)
}

const (
	a = iota
	b
	c
	d
)

// alone is a shard whose leader does without failsafe.
func alone(ttl int) map[string]any { return map[string]any{"ttl": ttl, "failsafe_mode": false} }

func TestMutantGuardOff(t *testing.T) {
	killed(t, Mutant{GuardOff: true}, directed(3, alone(8), during(29, 40, StopWatcher, a), during(30, 20, StopAgent, a)), "I1")
}

// What the guard does not do as it stands still, its watcher does.
func TestMutantWatcherOff(t *testing.T) {
	killed(t, Mutant{WatcherOff: true}, directed(3, alone(8), during(29, 40, StopGuard, a), during(30, 20, StopAgent, a)), "I1")
}

// The guard stands still when its agent is starved beyond the end of the lease: the agent's
// own kill comes late.
func TestMutantWatcherOffStarved(t *testing.T) {
	killed(t, Mutant{WatcherOff: true}, directed(3, map[string]any{"ttl": 3, "synchronous_mode": true},
		during(30, 40, StopGuard, a), during(57, 2.8, StarveAgent, a)), "I1")
}

// A guard is killed whose postmaster stands still: the kernel's signal does not end it.
func TestMutantWatcherOffOrphans(t *testing.T) {
	killed(t, Mutant{WatcherOff: true}, directed(3, alone(8), during(29, 1, HangPostmaster, a), during(30, 30, KillAgentAndGuard, a)), "I1")
}

func TestMutantSessionLossIsLeaseLoss(t *testing.T) {
	killed(t, Mutant{SessionIsLease: true}, directed(3, alone(8), during(30, 20, Isolate, a), ev(30.5, SessionLoss, a)), "I1")
}

func TestMutantNoWaitAfterARestart(t *testing.T) {
	killed(t, Mutant{NoWait: true}, directed(3, alone(8), during(30, 1, KillAgent, b), during(30.5, 20, Isolate, a)), "I1")
}

func TestMutantNoDriftMargin(t *testing.T) {
	s := directed(3, alone(30), during(40, 60, StopAgent, a))
	s.Drift, s.KillBefore = []float64{-0.01, 0.01, 0.01}, sec(0.05)
	killed(t, Mutant{NoDriftMargin: true}, s, "I1")
}

func TestMutantLeaseFromReply(t *testing.T) {
	s := directed(3, alone(8), during(30, 15, SlowOneWay, 3).to(a).with(3000), during(44, 30, Isolate, a), during(44, 30, StopAgent, a))
	s.KillBefore = sec(0.05)
	killed(t, Mutant{LeaseFromReply: true}, s, "I1")
}

func TestMutantExpiredLeaseExtended(t *testing.T) {
	killed(t, Mutant{ExpiredExtended: true}, directed(3, alone(8),
		during(29, 5, SlowNetwork, a).with(2000), during(31, 15, StopAgent, a), during(36, 30, Isolate, a)), "I1")
}

// The late beat lands between what b reads and b's takeover.
func TestMutantTakeOverUnchecked(t *testing.T) {
	s := directed(3, alone(8), during(31, 30, LateWatch, b), during(30, 5, CutOneWay, a).to(3), during(32, 30, CutFromMembers, a),
		ev(34.5, KillPostmaster, c), ev(35.5, KillPostmaster, c), ev(36.5, KillPostmaster, c))
	s.KillBefore = sec(0.05)
	killed(t, Mutant{TakeOverUnchecked: true}, s, "I1")
}

// A beat that was sent under the shorter ttl lands after its sender has taken the
// lock anew, with the longer one.
func TestMutantBeatUnchecked(t *testing.T) {
	s := directed(3, alone(3), during(28, 6.5, StopAgent, b), during(29, 2.8, SlowOneWay, a).to(3).with(4000), ev(31, SetTTL, a).with(30),
		during(32.9, 40, Isolate, a))
	s.NoFailover = []int{c}
	killed(t, Mutant{BeatUnchecked: true}, s, "I1")
}

// A release that was given up for lost lands when its sender leads again.
func TestMutantReleaseUnchecked(t *testing.T) {
	s := directed(3, alone(8), ev(30, Switchover, b), during(30, 1.2, SlowOneWay, a).to(3).with(20000), during(31.2, 12, StopAgent, b),
		during(41, 30, Isolate, a))
	s.NoFailover = []int{c}
	killed(t, Mutant{ReleaseUnchecked: true}, s, "I1", "I3")
}

func TestMutantOwnTTL(t *testing.T) {
	killed(t, Mutant{OwnTTL: true}, directed(3, alone(30), during(40, 50, Isolate, a), ev(41, SetTTL, a).with(3)), "I1")
}

func TestMutantGuardNotShortened(t *testing.T) {
	killed(t, Mutant{GuardNotShortened: true}, directed(3, alone(30),
		during(39, 30, SlowNetwork, a).with(1500), ev(40, SetTTL, a).with(3), during(42.5, 40, StopAgent, a)), "I1")
}

// hangs gives leaders a short time to serve nobody.
func hangs(config map[string]any) map[string]any {
	config["primary_start_timeout"] = 10
	return config
}

// A leader whose postmaster hangs gives up; where nobody else can lead, it is killed and
// started in place.
func TestMutantHangEndures(t *testing.T) {
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d members", members), func(t *testing.T) {
			killed(t, Mutant{HangEndures: true}, directed(members, hangs(alone(8)), ev(100, HangPostmaster, a)), "I4")
		})
	}
}

// A leader's start waits for its disk; it gives up all the same.
func diskHangs(more ...Event) Schedule {
	return directed(3, hangs(alone(8)), append([]Event{during(29, 60, HangDisk, a), ev(30, KillPostmaster, a)}, more...)...)
}

// The start does not come up when the disk goes on, however late its agent would see that.
func TestMutantLateStart(t *testing.T) {
	killed(t, Mutant{LateStart: true}, diskHangs(during(80, 30, StarveAgent, a)), "I1")
}

// It does so before it would beat no more.
func TestMutantStopWaits(t *testing.T) {
	t.Parallel()
	s := diskHangs()
	served := func(m Mutant) (n int) {
		for seed := uint64(1); seed <= 30; seed++ {
			s.Seed = seed
			found := 0
			r := Run(s, Options{Mutant: m, Trace: func(at time.Duration, line string) {
				if at > 31*time.Second && at < 52*time.Second && strings.Contains(line, ": accepts commits") {
					found = 1
				}
			}})
			if r.Violation != nil {
				report(t, s, Options{Mutant: m})
			}
			n += found
		}
		return n
	}
	if n := served(Mutant{}); n < 30 {
		t.Errorf("another member has led in %d of 30 runs", n)
	}
	if n := served(Mutant{StopWaits: true}); n > 0 {
		t.Errorf("with the rule left out another member has led in %d of 30 runs", n)
	}
}

// b promotes and is lost before d, which is cut off, has seen anything of the new
// timeline; c has, and must not lead.
func TestMutantTimelineUntold(t *testing.T) {
	s := directed(4, alone(8), during(30, 300, HostLoss, a), during(29, 31, CutFromMembers, d), during(45, 300, HostLoss, b))
	s.NoFailover, s.NoArchive = []int{c}, true
	killed(t, Mutant{TimelineUntold: true}, s, "I4")
}

func TestMutantSuccessorIgnored(t *testing.T) {
	killed(t, Mutant{SuccessorIgnored: true}, directed(3, alone(8),
		during(27, 60, LagReplica, c), during(29, 20, StarveAgent, b), ev(30, Switchover, b)), "I3")
}

// newcomer: d is away when the leader writes the failsafe list, and comes back when
// the leader cannot reach Consul.
func newcomer(more ...Event) Schedule {
	return directed(4, map[string]any{"ttl": 8}, slices.Concat([]Event{
		during(10, 50, EndAgent, d), during(45, 60, CutBoth, a).to(4),
	}, more)...)
}

func TestMutantFailsafeListIgnored(t *testing.T) {
	killed(t, Mutant{ListIgnored: true}, newcomer(), "I1")
}

func TestMutantFailsafeFlagInsteadOfKey(t *testing.T) {
	killed(t, Mutant{FlagObeyed: true}, newcomer(ev(50, SetFailsafe, a).with(0)), "I1")
}

func TestMutantPromiseIgnored(t *testing.T) {
	killed(t, Mutant{PromiseIgnored: true}, directed(3, map[string]any{"ttl": 8}, during(45, 60, CutBoth, a).to(3)), "I1")
}

// The list with d in it is written, and the answer lost.
func TestMutantUncertainListForgotten(t *testing.T) {
	killed(t, Mutant{ListForgotten: true}, directed(4, map[string]any{"ttl": 8},
		during(10, 50, EndAgent, d), during(58, 10, SlowNetwork, a).with(2000), during(61.5, 50, CutOneWay, 4).to(a)), "I1")
}

func TestMutantSyncKeyTooEarly(t *testing.T) {
	killed(t, Mutant{SyncTooEarly: true}, directed(3, map[string]any{"ttl": 8, "synchronous_mode": true},
		during(20, 2, EndAgent, b), during(20, 2, EndAgent, c), during(21.5, 60, LagReplica, b), during(21.5, 60, LagReplica, c),
		during(27, 60, HostLoss, a)), "I2")
}

func TestMutantQuorumUnasked(t *testing.T) {
	killed(t, Mutant{QuorumUnasked: true}, directed(3, map[string]any{"ttl": 8, "synchronous_mode": "quorum"},
		during(30, 60, LagReplica, b), during(32.5, 40, StopAgent, c), during(33, 60, HostLoss, a)), "I2")
}

// c, which alone has acknowledged the last commits, is started anew just before the
// election.
func TestMutantReplayCounted(t *testing.T) {
	killed(t, Mutant{ReplayCounted: true}, directed(3, map[string]any{"ttl": 8, "synchronous_mode": "quorum", "failsafe_mode": false},
		during(30, 60, LagReplica, b), during(33, 60, HostLoss, a), ev(40.5, KillPostmaster, c)), "I2")
}

// b, which alone has acknowledged the last commits, is cloned anew from c, which lags; its
// leader cannot let it go before, as it does not reach Consul.
func TestMutantRestoringCounted(t *testing.T) {
	killed(t, Mutant{RestoringCounted: true}, directed(3, map[string]any{"ttl": 8, "synchronous_mode": "quorum", "failsafe_mode": false},
		during(27, 60, LagReplica, c), during(29.5, 60, CutBoth, a).to(3), ev(30, Reinit, b), during(30.1, 60, LagReplica, b), during(41, 60, HostLoss, a)), "I2")
}

// b is promoted, hears nothing from Consul from then on, and acknowledges commits alone.
func TestMutantPromoteUnbound(t *testing.T) {
	killed(t, Mutant{PromoteUnbound: true}, directed(3, map[string]any{"ttl": 8, "synchronous_mode": true, "synchronous_node_count": 2, "failsafe_mode": false},
		during(30, 60, HostLoss, a), during(35, 8, SlowPostgres, b).with(4), during(37.5, 40, Isolate, b)), "I2")
}

// a breaks off a start as a replica when it has lost its lease, takes its own lock again
// when it hears of Consul for a moment, and cannot change the key sync before its first
// commits: it must not have forgotten that they wait for b.
func TestMutantStartUnfit(t *testing.T) {
	killed(t, Mutant{StartUnfit: true}, directed(3, map[string]any{"ttl": 8, "synchronous_mode": true, "failsafe_mode": false},
		during(29, 36, StopAgent, b), during(29, 36, StopAgent, c), during(30, 14, CutBoth, a).to(3), during(30, 14, FailPostgres, a),
		during(44, 5, SlowPostgres, a).with(4), during(43.9, 60, LagReplica, b), during(43.9, 60, LagReplica, c), during(46, 60, CutBoth, a).to(3)), "I2")
}

// A leader's write of the key sync is under way while it loses its lease and takes its
// own lock again, with the key as it was: the write must not land after that.
func TestMutantSyncIndexKept(t *testing.T) {
	killed(t, Mutant{SyncIndexKept: true}, directed(3, map[string]any{"failsafe_mode": false, "synchronous_mode": true, "ttl": 3},
		during(30, 3, EndAgent, b), during(30, 3, EndAgent, c), during(34.5, 7, CutOneWay, a).to(3), during(42.5, 60, StopAgent, a)), "I2")
}

// b has the longer clock, and promises a lease that the leader's guard counts from a slow one.
func TestMutantPromiseDriftless(t *testing.T) {
	s := directed(3, map[string]any{"ttl": 30}, during(40, 80, CutBoth, a).to(3), during(75, 60, StopAgent, a))
	s.Drift, s.KillBefore = []float64{-0.01, 0.01, 0.01}, sec(0.05)
	killed(t, Mutant{PromiseDriftless: true}, s, "I1")
}

// a reads of a longer ttl and cannot say so to Consul; those who promised it a lease of that
// length begin anew, and count what its last beat says.
func TestMutantLongestAsked(t *testing.T) {
	killed(t, Mutant{LongestAsked: true}, directed(3, map[string]any{"ttl": 3}, during(29.9, 60, CutOneWay, a).to(3), ev(30, SetTTL, a).with(30),
		during(36, 0.4, KillAgent, b), during(36, 0.4, KillAgent, c), during(36.1, 60, CutFromMembers, a)), "I1")
}

// d comes back to a key that is gone: anybody may take an expired lease. The deletion was
// on its way for long; before it arrived, failsafe mode was on again.
func TestMutantDeletionIgnored(t *testing.T) {
	killed(t, Mutant{DeletionIgnored: true}, directed(4, map[string]any{"ttl": 8}, during(10, 50, EndAgent, d), ev(40, SetFailsafe, a).with(0),
		during(40, 0.1, SlowOneWay, a).to(4).with(6000), ev(40.3, SetFailsafe, a).with(1), during(42.8, 60, CutBoth, a).to(4)), "I1")
}

// The operator stops and starts PostgreSQL by hand, and lets it be down for a while.
func TestMutantPauseIgnored(t *testing.T) {
	killed(t, Mutant{PauseIgnored: true}, directed(3, map[string]any{"ttl": 8}, during(30, 50, Pause, a), ev(45, ByHand, a).text("stop"), ev(60, ByHand, a).text("start"),
		ev(50, ByHand, b).text("restart"), ev(65, ByHand, c).text("kill")), "I5")
}

// An operator promotes by hand what its agent has not asked for: it takes the lock.
func TestPromotedByHand(t *testing.T) {
	survived(t, directed(3, map[string]any{"ttl": 8}, during(30, 60, Pause, a), ev(45, ByHand, a).text("stop"), ev(50, ByHand, b).text("promote"),
		ev(60, ByHand, a).text("start")))
}

func TestMutantPauseUntold(t *testing.T) {
	killed(t, Mutant{PauseUntold: true}, directed(3, alone(8), during(30, 40, CutOneWay, a).to(3), during(31, 3, Pause, a)), "I1")
}

// A leader is cut off in pause, and does not hear that it ends.
func TestMutantPausedTaken(t *testing.T) {
	killed(t, Mutant{PausedTaken: true}, directed(3, alone(8), during(30, 10, Pause, a), during(36, 40, Isolate, a)), "I1")
}

// c has detached for b, whose takeover is under way for long, and its agent begins anew.
func TestMutantDetachForgotten(t *testing.T) {
	s := unfenced()
	s.Events = []Event{during(30, 60, StopAgent, a), during(30, 60, StopBoth, a), during(36, 30, SlowOneWay, b).to(3).with(4000), during(36, 30, SlowOneWay, 3).to(b).with(10)}
	for _, at := range []float64{38.6, 39.0, 39.4, 39.8, 40.2} {
		s.Events = append(s.Events, during(at, 0.2, KillAgent, c))
	}
	killed(t, Mutant{DetachForgotten: true}, s, "I1", "I2")
}

// b was asked to promote, and that failed; before the next attempt pre_promote fails, and the
// lock is given up.
func TestMutantUnpromoted(t *testing.T) {
	killed(t, Mutant{Unpromoted: true}, directed(3, alone(8), during(29, 60, FailPostgres, b), during(29, 60, SlowPostgres, b).with(15), ev(30, Switchover, b)), "I1", "I3")
}

func TestMutantBackBelieved(t *testing.T) {
	killed(t, Mutant{BackBelieved: true}, directed(3, alone(30), during(30, 30, RestoreSnapshot, a), ev(35, Switchover, b), during(59.5, 60, CutBoth, b).to(3)), "I1")
}

// c is cut off from the leader for longer than WAL is kept without a slot.
func TestMutantSlotsDropped(t *testing.T) {
	s := directed(3, map[string]any{"ttl": 8}, during(30, 40, CutBoth, a).to(c))
	s.Keeps = 100 << 10
	killed(t, Mutant{SlotsDropped: true}, s, "I4")
}

// c is cut off for longer than its slot keeps WAL, and cloned anew.
func TestMutantLostKept(t *testing.T) {
	s := directed(3, map[string]any{"ttl": 8}, during(30, 60, CutBoth, a).to(c))
	s.Keeps, s.SlotKeeps, s.Operator = 100<<10, 200<<10, true
	killed(t, Mutant{LostKept: true}, s, "I4")
}

// feeding is a schedule with a logical slot.
func feeding(events ...Event) Schedule {
	s := directed(3, map[string]any{"ttl": 8}, events...)
	s.Keeps, s.Logical = 1<<20, true
	return s
}

// a's reader has more than b and c have received when a is lost. It is away until b, which
// leads then, has written as much, and is lost as well.
func TestMutantSlotsOfBefore(t *testing.T) {
	killed(t, Mutant{SlotsOfBefore: true}, feeding(during(25, 6, LagReplica, c), during(26, 5, LagReplica, b), during(30, 40, HostLoss, a),
		during(30, 60, ReaderAway, a), during(55, 40, HostLoss, b)), "I8")
}

// c is cloned anew and lags behind a's reader when it copies the slot. a is lost.
func TestMutantCopiedEarly(t *testing.T) {
	s := feeding(ev(70, VanishData, c), during(71, 30, LagReplica, c), during(81, 30, HostLoss, a))
	s.NoFailover = []int{b}
	killed(t, Mutant{CopiedEarly: true}, s, "I8")
}

// Each member that may lead gets a copy, also after its data were lost.
func TestCopiesOfLogicalSlots(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		s := feeding(ev(40, Switchover, b), ev(70, VanishData, c))
		s.Seed = seed
		if r := Run(s, Options{}); r.Violation != nil || r.Tally.Copies < 3 {
			t.Errorf("seed %d: %v, %+v", seed, r.Violation, r.Tally)
		}
	}
}

// b's data are lost, and its agent is killed while they are cloned.
func TestMutantKeptStarted(t *testing.T) {
	s := directed(3, map[string]any{"ttl": 8}, during(29, 20, SlowPostgres, b).with(8), ev(30, VanishData, b), during(32, 0.5, KillAgent, b), during(34, 0.5, KillAgent, b))
	s.KeepsClones = true
	killed(t, Mutant{KeptStarted: true}, s, "I4")
}

// a's agent begins anew as a pause ends, takes its lock again, does not hear so, and hears
// nothing from then on.
func TestMutantRetakeUnwatched(t *testing.T) {
	killed(t, Mutant{RetakeUnwatched: true}, directed(3, alone(3), during(20, 12, Pause, a), during(31.7, 0.5, KillAgent, a),
		during(32, 10, SlowOneWay, 3).to(a).with(3000), during(34.2, 20, CutBoth, a).to(3), during(34.2, 20, CutFromMembers, a)), "I1")
}

// c has heard that a pause is over, and cannot say so before the next one.
func TestMutantPauseOfBefore(t *testing.T) {
	killed(t, Mutant{PauseOfBefore: true}, directed(3, map[string]any{"ttl": 8}, during(30, 10, Pause, a), during(39.9, 8, CutOneWay, c).to(3), during(43, 30, Pause, a),
		ev(44.5, ByHand, c).text("kill"), ev(45.5, ByHand, c).text("kill"), ev(46.5, ByHand, c).text("kill")), "I5")
}

// unfenced is a leader that nobody fences, with a voter that does not hear of its
// successor: nothing but that voter's detaching keeps its commits from being acknowledged.
func unfenced() Schedule {
	return directed(3, map[string]any{"ttl": 8, "synchronous_mode": "quorum"},
		during(28, 60, CutBoth, c).to(3), during(30, 60, StopAgent, a), during(30, 60, StopBoth, a), during(120, 30, HostLoss, b))
}

func TestMutantVoterStays(t *testing.T) { killed(t, Mutant{VoterStays: true}, unfenced(), "I1", "I2") }
