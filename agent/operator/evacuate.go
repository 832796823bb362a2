package operator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/placement"
	"github.com/lictor-ha/lictor/agent/printable"
)

// EvacuateOptions say what is done with a host.
type EvacuateOptions struct {
	MoveOptions
	// Host is what the person calls it.
	Host string
	// Undo hands the leaders back; Forget forgets that they were handed over.
	Undo, Forget bool
	// Partial goes on though some leader cannot be moved.
	Partial bool
}

// Evacuate hands over all leaders that are on a host to members on other hosts, or back
// again.
func Evacuate(ctx context.Context, c *Console, site *Site, o EvacuateOptions) error {
	switch err := o.validate(); {
	case err != nil:
		return err
	case !isHost(o.Host):
		return usagef("%s: must be the name or the address of a host", printable.Quote(o.Host))
	case o.Undo && o.Forget:
		return usagef("say either --undo or --forget")
	case o.Forget && (o.DryRun || o.Check):
		return usagef("--forget hands nothing over: there is no plan to be shown")
	}
	f, err := site.readFleet(ctx)
	if err != nil {
		return err
	}
	f.warnUnread(c)
	host, err := f.host(o.Host)
	if err != nil && (o.Undo || o.Forget) { // its members may be gone
		host, err = strings.ToLower(o.Host), nil
	}
	if err != nil {
		return err
	}
	journal, err := site.openJournal(ctx, site.keys("x").Evacuation(host))
	if err != nil {
		return err
	}
	if (o.Undo || o.Forget) && !journal.exists() {
		return refusedf("%s was not evacuated, or was put back: there is no key %s", host, journal.key)
	}
	e := evacuation{c: c, site: site, o: o, host: host, journal: journal, survey: newSurvey(site, f, o.MoveOptions)}
	switch {
	case o.Forget:
		return e.forget(ctx)
	case o.Undo:
		return e.undo(ctx)
	}
	return e.away(ctx)
}

// stays says what leaders mean that cannot be moved.
func (o EvacuateOptions) stays() staysPolicy {
	if o.Partial {
		return tellStays
	}
	return refuseStays
}

// evacuation is one run of Evacuate.
type evacuation struct {
	c       *Console
	site    *Site
	o       EvacuateOptions
	host    string
	journal *moveJournal
	survey  *survey
}

// away hands the leaders over to other hosts.
func (e evacuation) away(ctx context.Context) error {
	closed, err := e.site.evacuated(ctx)
	if err != nil {
		return err
	}
	plan, err := e.survey.plan(ctx, func(shards []placement.Shard) placement.Plan { return placement.Evacuate(shards, e.host, closed) })
	if err != nil {
		return err
	}
	r := moveRun{
		c: e.c, o: e.o.MoveOptions, plan: plan, stays: e.o.stays(), results: planned(plan), remedy: "run it again to go on, or with --undo to go back",
		title:    fmt.Sprintf("Leaders on %s", e.host),
		nothing:  fmt.Sprintf("No shard is led on %s", e.host),
		question: fmt.Sprintf("The leaders of %s hand over, %d at a time, while the poolers hold their clients; replicas stay. No other leader is handed over to %s before lictor evacuate %s --undo", count(len(plan.Moves), "shard"), e.o.Parallel, e.host, e.host),
		check: func() error {
			return Findings(fmt.Errorf("%s leads %s", e.host, count(len(plan.Moves)+len(plan.Stays), "shard")))
		},
	}
	if warning := e.survey.fleet.undoNeeds(plan.Moves); warning != "" {
		e.c.Warn("warning: %s", warning)
	}
	goOn, err := r.confirm()
	if err != nil || !goOn {
		return err
	}
	if !e.journal.exists() { // also where nobody leads: nobody is to lead there from now on
		if err := e.journal.change(ctx, func(*movedRecord) {}); err != nil {
			return err
		}
	}
	return r.carryOut(ctx, mover{
		move:   func(ctx context.Context, m placement.Move) error { return e.site.handOver(ctx, m, e.o.MoveOptions) },
		before: e.journal.begin,
		after:  e.journal.dropUnlessMoved,
	})
}

// undoNeeds says what --undo will need in shards whose commits do not wait for all standbys: the old leader is to be one of
// those that they wait for, and another one that streams keeps that place.
func (f fleet) undoNeeds(moves []placement.Move) string {
	var shards []string
	do := ""
	for _, m := range moves {
		i := slices.IndexFunc(f.shards, func(s fleetShard) bool { return s.scope == m.Shard })
		s := f.shards[i]
		if s.dynamic.Synchronous() && s.dynamic.SynchronousMode != cluster.SyncQuorum && s.dynamic.SynchronousNodeCount < len(s.snapshot.Members)-1 {
			shards = append(shards, s.scope)
			do = cmp.Or(do, s.raiseSynchronous())
		}
	}
	if len(shards) == 0 {
		return ""
	}
	return fmt.Sprintf("--undo hands back only to a synchronous standby, and commits of %s wait for fewer standbys than there are: "+
		"if another member is one by then, --undo is refused until synchronous_node_count is raised (%s)", abridged(shards, 10), do)
}

// undo hands the leaders back that were handed over.
func (e evacuation) undo(ctx context.Context) error {
	plan, err := e.survey.plan(ctx, func(shards []placement.Shard) placement.Plan { return back(shards, e.journal.record.Moves) })
	if err != nil {
		return err
	}
	r := moveRun{
		c: e.c, o: e.o.MoveOptions, plan: plan, stays: e.o.stays(), results: planned(plan), remedy: "run it again to go on",
		title:    fmt.Sprintf("Leaders that belong on %s", e.host),
		nothing:  fmt.Sprintf("All leaders that belong on %s are there", e.host),
		question: fmt.Sprintf("The leaders of %s hand over to the members on %s that led before, %d at a time, while the poolers hold their clients", count(len(plan.Moves), "shard"), e.host, e.o.Parallel),
		check: func() error {
			return Findings(fmt.Errorf("%s that belong on %s are led elsewhere", count(len(plan.Moves)+len(plan.Stays), "shard"), e.host))
		},
	}
	for i, m := range r.results {
		if noted := e.journal.record.Moves[e.journal.record.of(m.Shard)]; noted.To != m.From.Name {
			r.results[i].note = "was handed over to " + noted.To + ", and has had another change of leader since"
		}
	}
	goOn, err := r.confirm()
	if err != nil || !goOn {
		return err
	}
	err = r.carryOut(ctx, mover{
		move:   func(ctx context.Context, m placement.Move) error { return e.site.handOver(ctx, m, e.o.MoveOptions) },
		before: nothingNoted,
		after:  e.journal.dropIfMoved,
	})
	if err != nil {
		return err
	}
	return e.journal.forget(ctx)
}

// back plans that those lead again who led before the moves.
func back(shards []placement.Shard, moves []movedLeader) placement.Plan {
	var plan placement.Plan
	for _, noted := range slices.SortedFunc(slices.Values(moves), func(a, b movedLeader) int { return strings.Compare(a.Shard, b.Shard) }) {
		stays := func(s placement.Shard, why placement.Problem) {
			plan.Stays = append(plan.Stays, placement.Stay{Shard: noted.Shard, Leader: s.Leader, Why: why})
		}
		i := slices.IndexFunc(shards, func(s placement.Shard) bool { return s.Name == noted.Shard })
		if i < 0 {
			stays(placement.Shard{}, placement.Problem{What: "there is no such shard any more", Do: "--partial puts the others back, --forget then ends the evacuation"})
			continue
		}
		s := shards[i]
		to := slices.IndexFunc(s.Others, func(m placement.Member) bool { return m.Name == noted.From })
		switch {
		case s.Leader.Name == noted.From:
		case s.Stuck.Exists():
			stays(s, s.Stuck)
		case to < 0:
			stays(s, placement.Problem{What: noted.From + " is not a member any more", Do: "--partial puts the others back, --forget then ends the evacuation"})
		case s.Others[to].Unfit.Exists():
			stays(s, s.Others[to].Unfit)
		default:
			plan.Moves = append(plan.Moves, placement.Move{Shard: s.Name, From: s.Leader, To: s.Others[to]})
		}
	}
	return plan
}

// forget forgets that the host was evacuated; the leaders stay where they are.
func (e evacuation) forget(ctx context.Context) error {
	if !e.o.Force {
		question := fmt.Sprintf("%s may get leaders again; those of %s that were handed over stay where they are. Go on?", e.host, count(len(e.journal.record.Moves), "shard"))
		if err := e.c.Confirm(question); err != nil {
			return err
		}
	}
	if err := e.journal.forget(ctx); err != nil {
		return err
	}
	if e.c.Format != Pretty { // no leader was handed over
		return e.c.Show(moveTable("", nil, nil))
	}
	e.c.Say("%s is not noted as evacuated any more", e.host)
	return nil
}
