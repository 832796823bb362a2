package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// shard reads a shard as the tests write it: "s1 h1 h2 h3" is led on h1 and has members
// on h2 and h3. A member's name is its host's. After a host may stand its zone (h2/a), its
// priority (h2:5), and ! where it cannot take over; ! after the shard's name: it is stuck.
func shard(t *testing.T, text string) Shard {
	t.Helper()
	words := strings.Fields(text)
	name, stuck := strings.CutSuffix(words[0], "!")
	s := Shard{Name: name}
	if stuck {
		s.Stuck = Problem{"it is paused", "lictor resume " + name}
	}
	for i, word := range words[1:] {
		m := Member{Priority: 1}
		word, unfit := strings.CutSuffix(word, "!")
		if word, priority, found := strings.Cut(word, ":"); found {
			if _, err := fmt.Sscan(priority, &m.Priority); err != nil {
				t.Fatal(err)
			}
			m.Host = word
		} else {
			m.Host = word
		}
		m.Host, m.Zone, _ = strings.Cut(m.Host, "/")
		m.Name = m.Host
		if unfit {
			m.Unfit = Problem{m.Name + " lags 20 MB", "wait until it has caught up"}
		}
		switch {
		case i > 0:
			s.Others = append(s.Others, m)
		case m.Host != "-": // nobody leads
			s.Leader = m
		}
	}
	return s
}

func shards(t *testing.T, lines ...string) []Shard {
	t.Helper()
	var all []Shard
	for _, line := range lines {
		all = append(all, shard(t, line))
	}
	return all
}

// words is a plan as the tests write it: "s1>h2" moves, "s2=why" stays.
func words(p Plan) string {
	var all []string
	for _, m := range p.Moves {
		all = append(all, m.Shard+">"+m.To.Name)
	}
	for _, s := range p.Stays {
		all = append(all, s.Shard+"="+s.Why.String())
	}
	return strings.Join(all, " ")
}

func TestEvacuate(t *testing.T) {
	for _, c := range []struct {
		name   string
		shards []string
		closed map[string]bool
		want   string
	}{
		{"nobody leads there", []string{"s1 h2 h1 h3"}, nil, ""},
		{"a host in no group", []string{"s1 h2 h3"}, nil, ""},
		{"one leader", []string{"s1 h1 h2"}, nil, "s1>h2"},
		{"a leaderless shard is nobody's", []string{"s1 - h1 h2"}, nil, ""},
		{"to whom leads least", []string{"s1 h1 h2 h3", "s2 h2 h1 h3"}, nil, "s1>h3"},
		{"spread", []string{"s1 h1 h2 h3", "s2 h1 h2 h3", "s3 h1 h2 h3", "s4 h1 h2 h3"}, nil, "s1>h3 s2>h3 s3>h2 s4>h2"},
		{"the one with a choice gives way", []string{"s1 h1 h2 h3", "s2 h1 h2"}, nil, "s1>h3 s2>h2"},
		{"a chain of those that give way", []string{"s1 h1 h2", "s2 h1 h2 h3", "s3 h1 h3 h4"}, nil, "s1>h2 s2>h3 s3>h4"},
		{"other hosts' leaders stay, however uneven", []string{"s1 h1 h2", "s2 h2 h3", "s3 h2 h3"}, nil, "s1>h2"},
		{"zones, where hosts are even", []string{"s1 h1/a h2/a h3/b", "s2 h4/a h1/a"}, nil, "s1>h3"},
		{"hosts before zones", []string{"s1 h1/a h2/a h3/b", "s2 h3/b h1/a", "s3 h4/a h1/a"}, nil, "s1>h2"},
		{"a lagging candidate", []string{"s1 h1 h2! h3"}, nil, "s1>h3"},
		{"none but a lagging candidate", []string{"s1 h1 h2!"}, nil, "s1=nobody can take over: h2 lags 20 MB: wait until it has caught up"},
		{"the last member", []string{"s1 h1"}, nil, "s1=it has no other member: add one on another host, or stop it for the time that this takes"},
		{"a paused shard", []string{"s1! h1 h2", "s2 h1 h2"}, nil, "s2>h2 s1=it is paused: lictor resume s1"},
		{"two members on the host", []string{"s1 h1 h1"}, nil, "s1=nobody can take over: no candidate is on another host: add a member on another host; where members of several hosts have one address, give each the tag host"},
		{"a closed host", []string{"s1 h1 h2 h3", "s2 h3 h1 h2"}, map[string]bool{"h2": true}, "s1>h3"},
		{"the highest priority", []string{"s1 h1 h2:1 h3:5", "s2 h3 h1"}, nil, "s1>h3"},
		{"the highest of those that can", []string{"s1 h1 h2:1 h3:5!"}, nil, "s1>h2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := words(Evacuate(shards(t, c.shards...), "h1", c.closed)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestRebalance(t *testing.T) {
	for _, c := range []struct {
		name   string
		shards []string
		closed map[string]bool
		want   string
	}{
		{"even already", []string{"s1 h1 h2", "s2 h2 h1"}, nil, ""},
		{"as even as it can be", []string{"s1 h1 h2", "s2 h1 h2", "s3 h2 h1"}, nil, ""},
		{"one too many", []string{"s1 h1 h2", "s2 h1 h2"}, nil, "s1>h2"},
		{"fewest moves", []string{"s1 h1 h2 h3", "s2 h1 h2 h3", "s3 h1 h2 h3", "s4 h2 h1 h3"}, nil, "s1>h3"},
		{"by way of another host", []string{"s1 h1 h2", "s2 h1 h2", "s3 h2 h3"}, nil, "s1>h2 s3>h3"},
		{"a host that cannot be relieved", []string{"s1 h1 h2!", "s2 h1 h2!", "s3 h1 h2!"}, nil, ""},
		{"stuck shards count, and stay", []string{"s1! h1 h2", "s2 h1 h2", "s3 h2 h1", "s4 h3 h1 h2"}, nil, "s1=it is paused: lictor resume s1"},
		{"a host that is led by stuck ones", []string{"s1! h1 h2", "s2! h1 h2", "s3 h1 h2"}, nil, "s3>h2 s1=it is paused: lictor resume s1 s2=it is paused: lictor resume s2"},
		{"zones, where hosts are even", []string{"s1 h1/a h2/a h3/b", "s2 h2/a h1/a h3/b"}, nil, "s1>h3"},
		{"hosts alone, without zones", []string{"s1 h1 h2 h3", "s2 h2 h1 h3"}, nil, ""},
		{"no move that only changes places", []string{"s1 h1/a h2/b", "s2 h2/b h1/a"}, nil, ""},
		{"nobody of a lower priority", []string{"s1 h1:5 h2:1", "s2 h1:5 h2:1"}, nil, ""},
		{"a closed host", []string{"s1 h1 h2 h3", "s2 h1 h2 h3", "s3 h1 h2 h3"}, map[string]bool{"h2": true}, "s1>h3"},
		{"nobody leads", []string{"s1 - h1 h2", "s2 h1 h2"}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := words(Rebalance(shards(t, c.shards...), c.closed)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// Whatever the fleet is, no assignment is better than the plan's: all are tried.
func TestNothingIsBetter(t *testing.T) {
	const fleets = 400
	for seed := range uint64(fleets) {
		random := rand.New(rand.NewPCG(seed, 1))
		hosts := 2 + random.IntN(4)
		zones := 1 + random.IntN(3)
		zoneOf := make([]string, hosts)
		for i := range zoneOf {
			zoneOf[i] = string(rune('a' + random.IntN(zones)))
		}
		var all []Shard
		for i := range 1 + random.IntN(6) {
			s := Shard{Name: fmt.Sprintf("s%d", i)}
			for j, host := range random.Perm(hosts)[:1+random.IntN(min(hosts, 3))] {
				m := Member{Name: fmt.Sprintf("h%d", host), Host: fmt.Sprintf("h%d", host), Zone: zoneOf[host], Priority: 1}
				if j == 0 {
					s.Leader = m
					continue
				}
				if random.IntN(5) == 0 {
					m.Unfit = Problem{What: "it lags"}
				}
				s.Others = append(s.Others, m)
			}
			all = append(all, s)
		}
		if got, best := price(all, Rebalance(all, nil)), cheapest(all, "", nil); got != best {
			t.Errorf("seed %d: rebalance costs %v, the best %v: %+v", seed, got, best, all)
		}
		evacuation := Evacuate(all, "h0", nil)
		if got, best := price(all, evacuation), cheapest(all, "h0", nil); got != best {
			t.Errorf("seed %d: evacuation costs %v, the best %v: %+v", seed, got, best, all)
		}
		for _, m := range evacuation.Moves {
			if m.From.Host != "h0" || m.To.Host == "h0" || m.To.Unfit.Exists() {
				t.Errorf("seed %d: %+v", seed, m)
			}
		}
	}
}

// price is what the spread after a plan costs.
func price(all []Shard, p Plan) cost {
	hosts, zones := map[string]int{}, map[string]int{}
	for _, s := range all {
		at := s.Leader
		if i := slices.IndexFunc(p.Moves, func(m Move) bool { return m.Shard == s.Name }); i >= 0 {
			at = p.Moves[i].To
		}
		hosts[at.Host]++
		zones[at.Zone]++
	}
	c := cost{2: len(p.Moves)}
	for _, n := range hosts {
		c[0] += n * n
	}
	for _, n := range zones {
		c[1] += n * n
	}
	return c
}

// cheapest tries every plan: for an evacuation (of a host) those that move whoever can
// leave it, else all.
func cheapest(all []Shard, evacuated string, moves []Move) cost {
	best := cost{1 << 30}
	var try func(i int, moves []Move)
	try = func(i int, moves []Move) {
		if i == len(all) {
			if c := price(all, Plan{Moves: moves}); c.less(best) {
				best = c
			}
			return
		}
		s := all[i]
		leaves := false
		for _, m := range s.Others {
			if !m.Unfit.Exists() && (evacuated == "" || s.Leader.Host == evacuated) {
				leaves = evacuated != ""
				try(i+1, append(slices.Clone(moves), Move{s.Name, s.Leader, m}))
			}
		}
		if !leaves {
			try(i+1, moves)
		}
	}
	try(0, moves)
	return best
}

// A large fleet is planned at once.
func TestLargeFleet(t *testing.T) {
	var all []Shard
	const count, hosts = 1000, 60
	for i := range count {
		s := Shard{Name: fmt.Sprintf("s%04d", i)}
		for j := range 3 {
			host := (i*7/5 + j*(1+i%11)) % hosts
			m := Member{Name: fmt.Sprintf("h%02d", host), Host: fmt.Sprintf("h%02d", host), Zone: string(rune('a' + host%3)), Priority: 1}
			if j == 0 {
				s.Leader = m
			} else if m.Host != s.Leader.Host {
				s.Others = append(s.Others, m)
			}
		}
		all = append(all, s)
	}
	p := Rebalance(all, nil)
	load := map[string]int{}
	for _, s := range all {
		load[s.Leader.Host]++
	}
	for _, m := range p.Moves {
		load[m.From.Host]--
		load[m.To.Host]++
	}
	for host, n := range load {
		if n < count/hosts || n > count/hosts+1 {
			t.Errorf("%s leads %d of %d shards", host, n, count)
		}
	}
}
