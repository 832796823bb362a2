package placement

import (
	"cmp"
	"slices"
	"strings"
)

// Problem says why something cannot be, and what helps. The zero value is none.
type Problem struct{ What, Do string }

// Exists reports whether there is a problem.
func (p Problem) Exists() bool { return p.What != "" }

// String is the whole of it in one line.
func (p Problem) String() string {
	if p.Do == "" {
		return p.What
	}
	return p.What + ": " + p.Do
}

// Member is a member of a shard.
type Member struct {
	Name, Host, Zone string
	// Priority is its failover_priority.
	Priority int
	// Unfit says why it cannot take over now.
	Unfit Problem
}

// Shard is a shard with its leader and the other members.
type Shard struct {
	Name   string
	Leader Member // the zero value: nobody leads
	Others []Member
	// Stuck says why its leader cannot be handed over now, whoever might take over.
	Stuck Problem
}

// Move hands one shard over.
type Move struct {
	Shard    string
	From, To Member
}

// Stay is a leader that stays though the plan would have it elsewhere.
type Stay struct {
	Shard  string
	Leader Member
	Why    Problem
}

// Plan is what is to be done. Both lists are in order of the shards' names.
type Plan struct {
	Moves []Move
	Stays []Stay
}

// Evacuate plans that nobody leads on a host. Each leader there is handed over to a
// member that can take over, so that the leaders of all shards are spread as evenly
// over the other hosts, and then over zones, as these moves allow for. No leader of
// another host moves. Closed hosts get no leader.
func Evacuate(shards []Shard, host string, closed map[string]bool) Plan {
	var plan Plan
	w := newWorld(shards)
	for _, s := range sorted(shards) {
		switch {
		case s.Leader.Name == "":
		case s.Leader.Host != host:
			w.load[w.hosts[s.Leader.Host]]++
		default:
			able, why := s.successors(func(m Member) bool { return closed[m.Host] })
			if why.Exists() {
				plan.Stays = append(plan.Stays, Stay{s.Name, s.Leader, why})
				w.load[w.hosts[s.Leader.Host]]++
				continue
			}
			w.add(s, able, false)
		}
	}
	plan.Moves = w.spread()
	return plan
}

// Rebalance plans that the leaders of all shards are spread as evenly over hosts, and
// then over zones, as the members that can take over allow for, by as few moves as
// that takes. A leader is never handed over to a member with a lower
// failover_priority than its own. Closed hosts get no leader.
func Rebalance(shards []Shard, closed map[string]bool) Plan {
	var plan Plan
	w := newWorld(shards)
	for _, s := range sorted(shards) {
		if s.Leader.Name == "" {
			continue
		}
		if s.Stuck.Exists() {
			plan.Stays = append(plan.Stays, Stay{s.Name, s.Leader, s.Stuck})
			w.load[w.hosts[s.Leader.Host]]++
			continue
		}
		able, _ := s.successors(func(m Member) bool {
			return closed[m.Host] || m.Priority < s.Leader.Priority
		})
		w.add(s, able, true)
	}
	plan.Moves = w.spread()
	return plan
}

// successors are the members that can take over, of those with the highest
// failover_priority among them, or why there are none. Those on the leader's host, or on one that gets no leader,
// do not count.
func (s Shard) successors(excluded func(Member) bool) ([]Member, Problem) {
	if s.Stuck.Exists() {
		return nil, s.Stuck
	}
	if len(s.Others) == 0 {
		return nil, Problem{"it has no other member", "add one on another host, or stop it for the time that this takes"}
	}
	var able []Member
	var unfit []Problem
	near, closed := 0, 0
	for _, m := range s.Others {
		switch {
		case m.Unfit.Exists():
			unfit = append(unfit, m.Unfit)
		case m.Host == s.Leader.Host:
			near++
		case excluded(m):
			closed++
		default:
			able = append(able, m)
		}
	}
	if len(able) > 0 {
		best := slices.MaxFunc(able, func(a, b Member) int { return cmp.Compare(a.Priority, b.Priority) }).Priority
		return slices.DeleteFunc(able, func(m Member) bool { return m.Priority < best }), Problem{}
	}
	if near > 0 && closed == 0 {
		unfit = append(unfit, Problem{"no candidate is on another host", "add a member on another host; where members of several hosts have one address, give each the tag host"})
	}
	if closed > 0 {
		unfit = append(unfit, Problem{"whoever else can take over is on a host that is or was evacuated", "add a member on another host, or end the other host's evacuation (--undo, --forget)"})
	}
	var whats, dos []string
	for _, p := range unfit {
		whats = append(whats, p.What)
		if p.Do != "" && !slices.Contains(dos, p.Do) {
			dos = append(dos, p.Do)
		}
	}
	return nil, Problem{"nobody can take over: " + strings.Join(whats, ", "), strings.Join(dos, "; ")}
}

func sorted(shards []Shard) []Shard {
	return slices.SortedFunc(slices.Values(shards), func(a, b Shard) int { return strings.Compare(a.Name, b.Name) })
}
