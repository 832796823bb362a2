package placement

import (
	"cmp"
	"slices"
	"strings"
)

// world is hosts and zones by their numbers, and the leaders that may be elsewhere.
//
// The best assignment is a flow of least cost: each leader flows from its shard to a
// host, from there to the host's zone, and from there out. What a host or zone costs
// grows with each leader that it has (as the square of their number), so the least
// cost is the most even spread. An assignment can be made better exactly when there is
// a cycle of negative cost among the changes of it that are possible; these are taken,
// one after another, until there is none.
type world struct {
	hosts map[string]int // numbers by name
	zone  []int          // of each host
	zones int
	load  []int // leaders of each host, those that stay included
	items []item
}

// item is a leader that may be on one of several hosts.
type item struct {
	shard   Shard
	at      int // the host that it has in the assignment
	home    int // the host that it has now; -1: it must not stay there
	members map[int]Member
}

// newWorld numbers the hosts of all members, in order of their names.
func newWorld(shards []Shard) *world {
	zoneOf := map[string]string{}
	for _, s := range sorted(shards) {
		for _, m := range append([]Member{s.Leader}, s.Others...) {
			if m.Name != "" {
				zoneOf[m.Host] = cmp.Or(zoneOf[m.Host], m.Zone)
			}
		}
	}
	w := &world{hosts: map[string]int{}}
	zones := map[string]int{}
	names := make([]string, 0, len(zoneOf))
	for name := range zoneOf {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		w.hosts[name] = i
		zone := zoneOf[name]
		if _, known := zones[zone]; !known {
			zones[zone] = len(zones)
		}
		w.zone = append(w.zone, zones[zone])
	}
	w.zones, w.load = len(zones), make([]int, len(names))
	return w
}

// add takes in a leader that one of the able members may replace; stays: it may stay
// where it is, too. Of several on one host the first counts.
func (w *world) add(s Shard, able []Member, stays bool) {
	it := item{shard: s, home: -1, members: map[int]Member{}}
	for _, m := range slices.SortedFunc(slices.Values(able), func(a, b Member) int { return strings.Compare(a.Name, b.Name) }) {
		if _, taken := it.members[w.hosts[m.Host]]; !taken {
			it.members[w.hosts[m.Host]] = m
		}
	}
	if stays {
		it.home = w.hosts[s.Leader.Host]
		it.members[it.home] = s.Leader
		it.at = it.home
	} else {
		it.at = len(w.load)
		for host := range it.members {
			it.at = min(it.at, host)
		}
	}
	w.load[it.at]++
	w.items = append(w.items, it)
}

// spread makes the assignment the best, and returns the moves that lead to it.
func (w *world) spread() []Move {
	for w.improve() {
	}
	var moves []Move
	for _, it := range w.items {
		if it.at != it.home {
			moves = append(moves, Move{it.shard.Name, it.shard.Leader, it.members[it.at]})
		}
	}
	return moves
}

// cost is what a change of the assignment costs: how uneven hosts become, then zones,
// then how many leaders move. What comes first counts first.
type cost [3]int

func (c cost) plus(d cost) cost { return cost{c[0] + d[0], c[1] + d[1], c[2] + d[2]} }

func (c cost) less(d cost) bool { return slices.Compare(c[:], d[:]) < 0 }

// change is a step from one node to another: hosts have the first numbers, then come
// zones, then the way out.
type change struct {
	from, to int
	cost     cost
	item     int // the leader that goes from one host to another; -1: a host or a zone has one more or less
}

// improve makes one change for the better, and reports whether there was one.
func (w *world) improve() bool {
	cycle := negativeCycle(w.changes(), len(w.load)+w.zones+1)
	for _, c := range cycle {
		if c.item >= 0 {
			w.items[c.item].at = c.to
			w.load[c.from]--
			w.load[c.to]++
		}
	}
	return cycle != nil
}

// changes are all single changes of the assignment: a leader goes to another host, the
// cheapest of those that can; a host has one leader more or less, a zone has.
func (w *world) changes() []change {
	hosts := len(w.load)
	best := make([]change, hosts*hosts)
	movable, zoneLoad, zoneMovable := make([]int, hosts), make([]int, w.zones), make([]int, w.zones)
	for i := range best {
		best[i].item = -1
	}
	for i, it := range w.items {
		movable[it.at]++
		zoneMovable[w.zone[it.at]]++
		for host := range it.members {
			c := change{it.at, host, cost{2: it.moved(host) - it.moved(it.at)}, i}
			if b := &best[it.at*hosts+host]; host != it.at && (b.item < 0 || c.cost.less(b.cost)) {
				*b = c
			}
		}
	}
	list := slices.DeleteFunc(best, func(c change) bool { return c.item < 0 })
	out := hosts + w.zones
	for h, n := range w.load {
		z := hosts + w.zone[h]
		zoneLoad[w.zone[h]] += n
		list = append(list, change{h, z, cost{0: 2*n + 1}, -1})
		if movable[h] > 0 {
			list = append(list, change{z, h, cost{0: 1 - 2*n}, -1})
		}
	}
	for z, n := range zoneLoad {
		list = append(list, change{hosts + z, out, cost{1: 2*n + 1}, -1})
		if zoneMovable[z] > 0 {
			list = append(list, change{out, hosts + z, cost{1: 1 - 2*n}, -1})
		}
	}
	return list
}

// moved is 1 when a leader on that host would have moved.
func (it item) moved(host int) int {
	if host == it.home {
		return 0
	}
	return 1
}

// negativeCycle finds changes that lead back to where they began and cost less than
// nothing, or nil (Bellman and Ford's algorithm, from all nodes at once).
func negativeCycle(changes []change, nodes int) []change {
	dist := make([]cost, nodes)
	via := make([]int, nodes) // the change that leads to a node; -1: none yet
	for i := range via {
		via[i] = -1
	}
	for range nodes {
		relaxed := false
		for i, c := range changes {
			if d := dist[c.from].plus(c.cost); d.less(dist[c.to]) {
				dist[c.to], via[c.to], relaxed = d, i, true
			}
		}
		if !relaxed {
			return nil
		}
		if cycle := cycleOf(changes, via); cycle != nil {
			return cycle
		}
	}
	return nil
}

// cycleOf is a cycle among the changes that lead to the nodes, which is one of negative
// cost.
func cycleOf(changes []change, via []int) []change {
	seen := make([]int, len(via)) // in which walk a node was met
	for start := range via {
		at := start
		for seen[at] == 0 {
			seen[at] = start + 1
			if via[at] < 0 {
				break
			}
			at = changes[via[at]].from
		}
		if via[at] < 0 || seen[at] != start+1 {
			continue
		}
		var cycle []change
		for first := at; len(cycle) == 0 || at != first; {
			c := changes[via[at]]
			cycle = append(cycle, c)
			at = c.from
		}
		return cycle
	}
	return nil
}
