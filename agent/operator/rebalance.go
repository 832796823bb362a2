package operator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/placement"
)

// RebalanceOptions say how leaders are spread.
type RebalanceOptions struct {
	MoveOptions
	Scopes []string // only leaders of these shards move; none: of all
	// Undo hands back what the last rebalance has handed over.
	Undo bool
}

// Rebalance spreads the leaders of all shards evenly over hosts and zones, or takes the last
// time back.
func Rebalance(ctx context.Context, c *Console, site *Site, o RebalanceOptions) error {
	if err := o.validate(); err != nil {
		return err
	}
	if o.Undo && len(o.Scopes) > 0 {
		return usagef("--undo takes back the whole of the last rebalance: name no shards")
	}
	f, err := site.readFleet(ctx)
	if err != nil {
		return err
	}
	f.warnUnread(c)
	for _, scope := range o.Scopes {
		if !slices.ContainsFunc(f.shards, func(s fleetShard) bool { return s.scope == scope }) {
			return noShard(scope, site.Namespace+"/"+scope+"/")
		}
	}
	closed, err := site.evacuated(ctx)
	if err != nil {
		return err
	}
	journal, err := site.openJournal(ctx, site.keys("x").Rebalance())
	if err != nil {
		return err
	}
	if o.Undo && !journal.exists() {
		return refusedf("there was no rebalance, or it was taken back: there is no key %s", journal.key)
	}
	v := newSurvey(site, f, o.MoveOptions)
	// A leader that was handed over elsewhere since is not where the rebalance has put it.
	since := slices.DeleteFunc(slices.Clone(journal.record.Moves), func(l movedLeader) bool {
		return !slices.ContainsFunc(v.shards, func(s placement.Shard) bool { return s.Name == l.Shard && s.Leader.Name == l.To })
	})
	before := leadersOn(v.shards)
	plan, err := v.plan(ctx, func(shards []placement.Shard) placement.Plan {
		if o.Undo {
			return back(shards, since)
		}
		return placement.Rebalance(o.only(shards), closed)
	})
	if err != nil {
		return err
	}
	r := moveRun{
		c: c, o: o.MoveOptions, plan: plan, stays: leaveStays, results: planned(plan),
		title:    fmt.Sprintf("Leaders on hosts: %s; then: %s", spreadWords(before), spreadWords(after(before, plan.Moves))),
		nothing:  fmt.Sprintf("Nothing to do. Leaders on hosts: %s", spreadWords(before)),
		question: fmt.Sprintf("%s hand over, %d at a time, while the poolers hold their clients", count(len(plan.Moves), "leader"), o.Parallel),
		remedy:   "run it again to go on, or with --undo to go back",
		check:    func() error { return Findings(fmt.Errorf("%s would move", count(len(plan.Moves), "leader"))) },
	}
	if o.Undo {
		r.stays, r.nothing, r.remedy = tellStays, "All leaders are where they were before the rebalance", "run it again to go on"
	} else if len(plan.Moves) == 0 { // those that stay have nothing to move to
		r.plan.Stays = nil
	}
	goOn, err := r.confirm()
	if err != nil || !goOn {
		return err
	}
	m := mover{
		move:   func(ctx context.Context, m placement.Move) error { return site.handOver(ctx, m, o.MoveOptions) },
		before: journal.begin,
		after:  journal.dropUnlessMoved,
	}
	if o.Undo {
		m.before, m.after = nothingNoted, journal.dropIfMoved
	} else if len(plan.Moves) == 0 { // what the last one has done can still be taken back
		return r.carryOut(ctx, m)
	} else if err := journal.change(ctx, func(r *movedRecord) { *r = newMovedRecord() }); err != nil {
		return err
	}
	if err := r.carryOut(ctx, m); err != nil || !o.Undo {
		return err
	}
	return journal.forget(ctx)
}

// only has all leaders but those of the named shards stay where they are.
func (o RebalanceOptions) only(shards []placement.Shard) []placement.Shard {
	if len(o.Scopes) == 0 {
		return shards
	}
	shards = slices.Clone(shards)
	for i := range shards {
		if !slices.Contains(o.Scopes, shards[i].Name) {
			shards[i].Others = nil
			shards[i].Stuck = placement.Problem{}
		}
	}
	return shards
}

// leadersOn counts the leaders of each host, also of those that have none.
func leadersOn(shards []placement.Shard) map[string]int {
	load := map[string]int{}
	for _, s := range shards {
		if s.Leader.Name != "" {
			load[s.Leader.Host]++
		}
		for _, m := range s.Others {
			load[m.Host] += 0
		}
	}
	return load
}

// after is how many leaders each host has when moves are done.
func after(load map[string]int, moves []placement.Move) map[string]int {
	next := map[string]int{}
	for host, n := range load {
		next[host] = n
	}
	for _, m := range moves {
		next[m.From.Host]--
		next[m.To.Host]++
	}
	return next
}

// spreadWords says how many hosts have how many leaders: "4 on 6 hosts, 5 on h7".
func spreadWords(load map[string]int) string {
	hosts := map[int][]string{}
	for _, host := range sortedKeys(load) {
		hosts[load[host]] = append(hosts[load[host]], host)
	}
	counts := make([]int, 0, len(hosts))
	for n := range hosts {
		counts = append(counts, n)
	}
	slices.Sort(counts)
	var words []string
	for _, n := range counts {
		words = append(words, fmt.Sprintf("%d on %s", n, abridged(hosts[n], 4)))
	}
	return strings.Join(words, "; ")
}
