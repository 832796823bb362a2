package simulation

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Generate makes the random schedule of a seed.
func Generate(seed uint64) Schedule {
	r := rand.New(rand.NewPCG(seed, 1))
	pick := func(n int) int { return r.IntN(n) }
	s := Schedule{
		Seed: seed, Members: 3 + pick(3), Length: 10 * time.Minute, Rest: 2 * time.Minute,
		Config: map[string]any{
			"ttl": []int{3, 5, 8, 8, 15, 30}[pick(6)], "failsafe_mode": pick(3) > 0,
			"primary_start_timeout": []int{0, 5, 20, 60}[pick(4)],
		},
	}
	switch pick(5) {
	case 0, 1:
		s.Config["synchronous_mode"] = true
	case 2:
		s.Config["synchronous_mode"] = "quorum"
	}
	if _, on := s.Config["synchronous_mode"]; on {
		if pick(4) == 0 {
			s.Config["synchronous_mode_strict"] = true
		}
		if s.Members > 3 && pick(2) == 0 {
			s.Config["synchronous_node_count"] = 2
		}
	}
	for range s.Members {
		s.Drift = append(s.Drift, (r.Float64()*2-1)*0.01)
	}
	if pick(3) == 0 {
		s.NoFailover = []int{1 + pick(s.Members-1)}
	}
	if pick(4) == 0 {
		s.NoStream = []int{pick(s.Members)}
	}
	s.Adopted = pick(4) == 0
	s.Fresh = !s.Adopted && pick(4) == 0
	if pick(4) == 0 {
		s.Cascade = map[int]int{}
		from := pick(s.Members)
		// Behind a member that does not stream a strict shard may have no standby to wait for.
		if s.Config["synchronous_mode_strict"] == nil || !slices.Contains(s.NoStream, from) {
			s.Cascade[(from+1)%s.Members] = from
		}
	}
	if pick(4) == 0 {
		for range s.Members {
			s.Margins = append(s.Margins, 0.05+r.Float64()*0.2)
		}
	}
	s.ConsulDNS = pick(6) == 0
	s.generateLate(rand.New(rand.NewPCG(seed, 2)))
	mean := []float64{4, 8, 15, 30, 60}[pick(5)]
	at := 10.0
	if s.Fresh { // while it is made, too
		at = 0
	}
	for {
		at += r.ExpFloat64() * mean
		if at >= s.Length.Seconds() {
			s.addRestarts(rand.New(rand.NewPCG(seed, 3)))
			s.addRewinds(rand.New(rand.NewPCG(seed, 4)))
			return s
		}
		e := randomEvent(r, s.Members, time.Duration(at*float64(time.Second)))
		if len(s.Patroni) > 0 && slices.Contains([]Kind{Pause, SetSyncMode, RestoreSnapshot}, e.Kind) {
			continue
		}
		s.Events = append(s.Events, e)
		if e.Kind == Pause {
			s.Events = append(s.Events, byHandIn(r, s.Members, e)...)
		}
	}
}

// generateLate draws what was added later from numbers of its own, so that the rest of a
// seed's schedule stays what it was.
func (s *Schedule) generateLate(r *rand.Rand) {
	s.KeepsClones = r.IntN(3) == 0
	if r.IntN(3) == 0 {
		s.Keeps, s.Operator = []int64{100 << 10, 300 << 10, 1 << 20}[r.IntN(3)], true
		s.SlotKeeps = []int64{0, 0, 500 << 10, 2 << 20}[r.IntN(4)]
		if s.Keeps == 300<<10 || s.SlotKeeps > 0 {
			s.Config["rebuild"] = "auto"
		}
	}
	if s.Config["synchronous_mode"] == nil && !s.Fresh && r.IntN(3) == 0 {
		if one := 1 + r.IntN(s.Members-1); !slices.Contains(s.NoStream, one) {
			s.Patroni = []int{one}
		}
	}
	s.feedLate(r.IntN)
}

// addRestarts draws restarts that an operator asks for, in every third schedule: at any time, and
// while a switchover or a stop that was asked for is under way.
func (s *Schedule) addRestarts(r *rand.Rand) {
	if r.IntN(3) > 0 {
		return
	}
	var events []Event
	for range 1 + r.IntN(5) {
		events = append(events, Event{At: time.Duration(r.Float64() * float64(s.Length)), Kind: Restart, Member: r.IntN(s.Members)})
	}
	for _, e := range s.Events {
		if (e.Kind == Switchover || e.Kind == EndAgent || e.Kind == Isolate) && r.IntN(2) == 0 {
			at := e.At + time.Duration(r.ExpFloat64()*float64(3*time.Second))
			events = append(events, Event{At: at, Kind: Restart, Member: r.IntN(s.Members)})
		}
	}
	s.Events = append(s.Events, events...)
	slices.SortStableFunc(s.Events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
}

// addRewinds draws who may rewind, and who replaces what cannot be rewound.
func (s *Schedule) addRewinds(r *rand.Rand) {
	for i := range s.Members {
		if s.runsPatroni(i) {
			continue
		}
		if r.IntN(6) == 0 {
			s.NoRewind = append(s.NoRewind, i)
		}
		if r.IntN(3) == 0 {
			s.Replaces = append(s.Replaces, i)
		}
	}
	if s.Config["rebuild"] == nil && r.IntN(4) == 0 {
		s.Config["rebuild"] = "auto"
	}
}

// byHandIn is what an operator does in a pause, which takes a while to be seen.
func byHandIn(r *rand.Rand, members int, pause Event) []Event {
	var events []Event
	for range r.IntN(4) {
		at := pause.At + time.Duration(r.Float64()*float64(pause.For))
		events = append(events, Event{At: at, Kind: ByHand, Member: r.IntN(members), Text: []string{"stop", "start", "restart", "kill", "promote", "start"}[r.IntN(6)]})
	}
	slices.SortFunc(events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	return events
}

// kinds are all kinds of event with how often each is drawn.
func kinds() []struct {
	kind  Kind
	share int
} {
	return []struct {
		kind  Kind
		share int
	}{
		{KillAgent, 8},
		{StopAgent, 8},
		{StarveAgent, 4},
		{EndAgent, 4},
		{KillGuard, 4},
		{StopGuard, 3},
		{KillAgentAndGuard, 3},
		{KillWatcher, 2},
		{StopWatcher, 3},
		{StopBoth, 2},
		{KillPostmaster, 6},
		{HangPostmaster, 4},
		{HangDisk, 4},
		{SlowPostgres, 4},
		{LagReplica, 5},
		{HostLoss, 6},
		{FreezeHost, 2},
		{CutOneWay, 8},
		{CutBoth, 8},
		{Isolate, 8},
		{CutFromMembers, 4},
		{SlowNetwork, 4},
		{LateWatch, 4},
		{ConsulHang, 5},
		{ConsulDown, 4},
		{ConsulLeaderLoss, 5},
		{SessionLoss, 6},
		{Switchover, 8},
		{Pause, 5},
		{SetTTL, 3},
		{SetSyncMode, 2},
		{SetFailsafe, 3},
		{Reinit, 4},
		{FailPostgres, 4},
		{LoseData, 2},
		{Restore, 3},
		{ConsulError, 4},
		{RestoreSnapshot, 1},
		{StopPostmaster, 4},
		{Orphans, 4},
		{KillFails, 4},
		{Linger, 3},
		{DiskFull, 3},
		{HangWork, 3},
		{VanishData, 2},
		{PauseVM, 2},
		{ByHand, 0},
		{ReplayTrails, 3},
	}
}

func randomEvent(r *rand.Rand, members int, at time.Duration) Event {
	all := kinds()
	total := 0
	for _, k := range all {
		total += k.share
	}
	n := r.IntN(total)
	i := 0
	for n >= all[i].share {
		n -= all[i].share
		i++
	}
	return eventOf(r, all[i].kind, members, at)
}

// Often is a schedule in which a kind of event happens six times more. What it draws comes from numbers of its own.
func Often(s Schedule, kind Kind) Schedule {
	r := rand.New(rand.NewPCG(s.Seed, 5))
	s.Events = slices.Clone(s.Events)
	for range 6 {
		e := eventOf(r, kind, s.Members, time.Duration(r.Float64()*float64(s.Length)))
		s.Events = append(s.Events, e)
		if kind == Pause {
			s.Events = append(s.Events, byHandIn(r, s.Members, e)...)
		}
	}
	slices.SortStableFunc(s.Events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	return s
}

// eventOf draws all of an event but its kind.
func eventOf(r *rand.Rand, kind Kind, members int, at time.Duration) Event {
	e := Event{At: at, Kind: kind, Member: r.IntN(members)}
	// Mostly seconds, sometimes a minute.
	e.For = time.Duration(math.Exp(r.Float64()*6.5-2) * float64(time.Second))
	switch e.Kind {
	case CutOneWay, CutBoth:
		e.Other = r.IntN(members) // another member, or Consul
		if e.Other >= e.Member {
			e.Other++
		}
		if r.IntN(2) == 0 {
			e.Other = members
		}
		if r.IntN(2) == 0 && e.Kind == CutOneWay {
			e.Member, e.Other = e.Other, e.Member
		}
	case KillAgent, KillAgentAndGuard:
		if r.IntN(2) == 0 {
			e.For = time.Duration(r.Int64N(int64(time.Second)))
		}
	case ConsulLeaderLoss:
		e.For = time.Duration(r.Int64N(int64(5 * time.Second)))
	case SlowPostgres:
		e.Value = 1 + r.IntN(20)
	case SlowNetwork:
		e.Value = 50 + r.IntN(2000)
	case SetTTL:
		e.Value = []int{3, 5, 8, 15, 30}[r.IntN(5)]
	case SetSyncMode:
		e.Text = []string{"off", "on", "quorum"}[r.IntN(3)]
	case SetFailsafe:
		e.Value = r.IntN(2)
	case LateWatch:
		e.Value = 3000 + r.IntN(9000)
	case ConsulError:
		e.Value = []int{403, 429, 500}[r.IntN(3)]
	case ReplayTrails:
		e.Value = 1 + r.IntN(1000)
	case Restore:
		e.Value = r.IntN(300)
	case Orphans:
		e.For = time.Duration(r.Int64N(int64(20 * time.Second)))
	case RestoreSnapshot, PauseVM:
		e.For = min(e.For, time.Minute)
	case Pause:
		e.For = min(e.For, time.Minute)
	}
	switch e.Kind {
	case KillGuard, KillWatcher, Reinit, Restart, Restore, VanishData, KillPostmaster, SessionLoss, Switchover, SetTTL, SetSyncMode, SetFailsafe:
		e.For = 0
	}
	return e
}
