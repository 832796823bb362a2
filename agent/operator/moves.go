package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/placement"
)

// This file carries a plan out: many switchovers, some at a time, until the first that does
// not go well. What is about to be done is written down in Consul before it is begun, so
// that it can be undone whatever ends the command.

// MoveOptions say how the leaders of many shards are handed over.
type MoveOptions struct {
	// Parallel is how many are handed over at the same time.
	Parallel int
	// NoWait goes on without waiting until the old leaders follow their successors.
	NoWait bool
	// OnBusy is what to do with transactions that still run, as a switchover's.
	OnBusy string
	// ZoneTag is the tag that names a member's zone.
	ZoneTag string
	// OutsideWindow hands shards over, too, whose maintenance windows leave this time out.
	OutsideWindow bool
	// DryRun shows the plan and changes nothing; Check does the same, and leaders that
	// would move are an error.
	DryRun, Check bool
	// Force asks nothing.
	Force bool
}

// validate checks what flags say.
func (o MoveOptions) validate() error {
	switch {
	case o.Parallel < 1:
		return usagef("--parallel: %d, must be 1 or more", o.Parallel)
	case o.ZoneTag == "":
		return usagef("--zone-tag: must be the name of a tag")
	}
	return checkOnBusy(o.OnBusy)
}

// backLimit bounds the wait until an old leader follows its successor.
const backLimit = 2 * time.Minute

// States of a move.
const (
	movePlanned    = "planned"
	moveDone       = "moved"
	moveFailed     = "failed"
	moveRefused    = "refused"
	moveRolledBack = "rolled back"
	moveUnknown    = "unknown"
	moveNotBegun   = "not begun"
	moveStays      = "stays"
)

// moveResult is what has become of a move.
type moveResult struct {
	placement.Move
	state string
	took  time.Duration
	err   error
	note  string
}

// movedState is the state of a move that has ended with err.
func movedState(err error) string {
	if err == nil {
		return moveDone
	}
	switch ExitCode(err) {
	case ExitRefused:
		return moveRefused
	case ExitRolledBack:
		return moveRolledBack
	case ExitUnknown:
		return moveUnknown
	}
	return moveFailed
}

// planned are the results of a plan that nothing was done of.
func planned(plan placement.Plan) []moveResult {
	results := make([]moveResult, len(plan.Moves))
	for i, m := range plan.Moves {
		results[i] = moveResult{Move: m, state: movePlanned}
	}
	return results
}

// mover carries moves out.
type mover struct {
	o MoveOptions
	// move hands one shard over. What is to be noted before and after that is.
	move   func(ctx context.Context, m placement.Move) error
	before func(ctx context.Context, m placement.Move) error
	after  func(ctx context.Context, m placement.Move, moved error) error
	say    func(format string, args ...any)
}

// run carries moves out, so many at a time. After the first that does not go well, and when ctx
// ends, no other is begun; those under way are waited for, as each knows itself when to give up.
func (r mover) run(ctx context.Context, moves []placement.Move) []moveResult {
	results := planned(placement.Plan{Moves: moves})
	var (
		mu      sync.Mutex
		next    int
		stopped bool
		working sync.WaitGroup
	)
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		if stopped || ctx.Err() != nil || next == len(moves) {
			return 0, false
		}
		next++
		return next - 1, true
	}
	for range min(r.o.Parallel, len(moves)) {
		working.Go(func() {
			for {
				i, more := take()
				if !more {
					return
				}
				result := r.one(context.WithoutCancel(ctx), moves[i])
				mu.Lock()
				results[i] = result
				stopped = stopped || result.err != nil
				mu.Unlock()
			}
		})
	}
	working.Wait()
	for i := next; i < len(results); i++ {
		results[i].state = moveNotBegun
	}
	return results
}

// one carries one move out.
func (r mover) one(ctx context.Context, m placement.Move) moveResult {
	began := time.Now()
	err := r.before(ctx, m)
	if err == nil {
		err = r.move(ctx, m)
		err = errors.Join(err, r.after(ctx, m, err))
	}
	result := moveResult{Move: m, state: movedState(err), took: time.Since(began), err: err}
	if err == nil {
		r.say("%s: %s hands over to %s: done in %s", m.Shard, m.From.Name, m.To.Name, Duration(result.took))
	} else {
		r.say("%s: %s hands over to %s: %s", m.Shard, m.From.Name, m.To.Name, Explain(err))
	}
	return result
}

// worse is the state of two of which less is known to be as it was before.
func worse(a, b string) string {
	order := []string{moveDone, moveRefused, moveRolledBack, moveFailed, moveUnknown}
	if slices.Index(order, a) > slices.Index(order, b) {
		return a
	}
	return b
}

// conclude is the error of a run; nil: all was done. remedy says how to go on.
func conclude(ctx context.Context, results []moveResult, remedy string) error {
	done, left, worst := 0, 0, moveDone
	var first error
	for _, r := range results {
		switch r.state {
		case moveDone:
			done++
		case moveNotBegun:
			left++
		default:
			if err := fmt.Errorf("%s: %w", r.Shard, r.err); first == nil {
				first = err
			} else {
				first = fmt.Errorf("%w; %w", first, err)
			}
			worst = worse(worst, r.state)
		}
	}
	code := ExitFailed
	switch {
	case first == nil && left == 0:
		return nil
	case first == nil:
		first = fmt.Errorf("interrupted: %w", context.Cause(ctx))
	case worst == moveUnknown:
		code = ExitUnknown
	case worst == moveRefused && done == 0: // nothing has changed
		code = ExitRefused
	case worst == moveRolledBack && done == 0:
		code = ExitRolledBack
	}
	return &failure{code, fmt.Errorf("%w; %d of %d leaders were handed over, %d were not begun; %s", first, done, len(results), left, remedy)}
}

// handOver hands one shard over as planned, if it still is as it was then, and waits until the
// old leader follows.
func (s *Site) handOver(ctx context.Context, m placement.Move, o MoveOptions) error {
	shard, err := s.open(m.Shard)
	if err != nil {
		return err
	}
	defer shard.Close()
	snapshot, err := shard.Read(ctx)
	if err != nil {
		return err
	}
	now := fleetShard{scope: m.Shard, snapshot: snapshot}
	if snapshot.Config.Exists() {
		now.dynamic, now.warnings, now.problem = s.rules().ParseJSON(snapshot.Config.Value)
	}
	if err := now.stillFit(m); err != nil {
		return err
	}
	request := cluster.Failover{Leader: m.From.Name, Candidate: m.To.Name, OnBusy: o.OnBusy}
	if _, err := shard.ask(ctx, snapshot, now.dynamic, switchover(o.OutsideWindow), request); err != nil {
		return err
	}
	if snapshot, err = shard.Read(ctx); err != nil {
		return fmt.Errorf("it was handed over, and cannot be read: %w", err)
	}
	if leader := snapshot.LeaderName(); leader != m.To.Name {
		return fmt.Errorf("it was handed over and is led by %s, not by %s; see lictor events %s", orNobody(leader), m.To.Name, m.Shard)
	}
	if o.NoWait {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, backLimit)
	defer cancel()
	err = shard.awaitMember(ctx, m.From.Name)
	if err == nil {
		err = shard.awaitKey(ctx, m.From.Name)
	}
	if err != nil {
		return fmt.Errorf("%s leads, and %s is not back as a replica: %w; see its log (--no-wait does not wait for it)", m.To.Name, m.From.Name, err)
	}
	return nil
}

// awaitKey waits until Consul, too, tells that a member is a replica that runs: the next plan begins
// with that.
func (s *Shard) awaitKey(ctx context.Context, name string) error {
	return await(ctx, func(ctx context.Context) error {
		snapshot, err := s.Read(ctx)
		if err != nil {
			return err
		}
		m, _ := snapshot.Member(name)
		leader, _ := snapshot.Member(snapshot.LeaderName())
		if v := m.Value; v.State != cluster.StateRunning || cluster.IsPrimary(v.Role) || v.Role == cluster.RoleStandbyLeader || v.Timeline != leader.Value.Timeline {
			return fmt.Errorf("the key of %s says that it is %s, as a %s on timeline %d", name, v.State, v.Role, v.Timeline)
		}
		return nil
	})
}

// stillFit returns an error if a move cannot be done any more.
func (s fleetShard) stillFit(m placement.Move) error {
	if leader := s.snapshot.LeaderName(); leader != m.From.Name {
		return refusedf("it is led by %s by now, not by %s", orNobody(leader), m.From.Name)
	}
	if stuck := s.stuck(); stuck.Exists() {
		return refusedf("%s", stuck)
	}
	to, found := s.snapshot.Member(m.To.Name)
	if !found {
		return refusedf("%s is not a member any more", m.To.Name)
	}
	if unfit := s.unfit(to); unfit.Exists() {
		return refusedf("%s", unfit)
	}
	return nil
}

// moveTable shows moves and leaders that stay.
func moveTable(title string, results []moveResult, stays []placement.Stay) Table {
	t := Table{Title: title, Columns: []Column{
		{Name: "Shard", Key: "shard"},
		{Name: "From", Key: "from"},
		{Name: "On host", Key: "from_host"},
		{Name: "To", Key: "to"},
		{Name: "On host", Key: "to_host"},
		{Name: "Zone", Key: "to_zone"},
		{Name: "State", Key: "state"},
		{Name: "Took", Key: "took_ms", Right: true},
		{Name: "Reason", Key: "reason", Prose: true},
	}}
	for _, r := range results {
		state := styled(r.state, Plain)
		switch r.state {
		case moveDone:
			state.Style = Good
		case movePlanned, moveNotBegun:
		default:
			state.Style = Bad
		}
		took, reason := Cell{}, text(r.note)
		if r.took > 0 {
			took = Cell{Text: Duration(r.took), Value: r.took.Milliseconds()}
		}
		if r.err != nil {
			reason = text(Explain(r.err))
		}
		t.Rows = append(t.Rows, []Cell{
			text(r.Shard), text(r.From.Name), text(r.From.Host), text(r.To.Name), text(r.To.Host), text(r.To.Zone), state, took, reason,
		})
	}
	for _, s := range stays {
		t.Rows = append(t.Rows, []Cell{
			text(s.Shard), text(s.Leader.Name), text(s.Leader.Host), {}, {}, {}, styled(moveStays, Warning), {}, text(s.Why.String()),
		})
	}
	return t
}

// staysPolicy is what leaders mean for a plan that cannot be moved though they should be.
type staysPolicy int

const (
	refuseStays staysPolicy = iota // nothing is done
	tellStays                      // the others move; it is an error in the end
	leaveStays                     // the others move
)

// moveRun is a plan that is shown, asked about and carried out.
type moveRun struct {
	c       *Console
	o       MoveOptions
	plan    placement.Plan
	stays   staysPolicy
	results []moveResult
	// title is the table's, nothing is said when there is nothing to do, question is what will
	// be done, and remedy how to go on after it has not.
	title, nothing, question, remedy string
	// check is the error of --check when something would be done.
	check func() error
}

// confirm shows the plan, refuses what cannot be done as a whole, and asks. It reports whether to
// go on.
func (r moveRun) confirm() (bool, error) {
	empty := len(r.plan.Moves) == 0 && len(r.plan.Stays) == 0
	refused := len(r.plan.Stays) > 0 && r.stays == refuseStays
	last := r.o.DryRun || r.o.Check || refused
	switch {
	case empty && r.c.Format == Pretty:
		r.c.Say("%s", r.nothing)
	case r.c.Format == Pretty || last:
		if err := r.c.Show(moveTable(r.title, r.results, r.plan.Stays)); err != nil {
			return false, err
		}
	}
	if refused {
		s := r.plan.Stays[0]
		return false, refusedf("nothing was done: %d of %d leaders cannot be handed over now, and --partial was not given: %s: %s",
			len(r.plan.Stays), len(r.plan.Stays)+len(r.plan.Moves), s.Shard, s.Why)
	}
	switch {
	case r.o.Check && !empty:
		return false, r.check()
	case last:
		return false, nil
	case r.o.Force || len(r.plan.Moves) == 0:
		return true, nil
	}
	return true, r.c.Confirm(r.question + ". Go on?")
}

// carryOut does what was planned and shows what has become of it.
func (r moveRun) carryOut(ctx context.Context, m mover) error {
	m.o, m.say = r.o, r.c.Say
	if r.c.Format != Pretty {
		m.say = r.c.Warn
	}
	notes := r.results
	r.results = m.run(ctx, r.plan.Moves)
	for i := range r.results {
		r.results[i].note = notes[i].note
	}
	err := conclude(ctx, r.results, r.remedy)
	if err == nil && len(r.plan.Stays) > 0 && r.stays == tellStays {
		err = fmt.Errorf("%d of %d leaders stay where they are: %s: %s", len(r.plan.Stays), len(r.plan.Stays)+len(r.plan.Moves), r.plan.Stays[0].Shard, r.plan.Stays[0].Why)
	}
	if r.c.Format != Pretty || err != nil {
		if shown := r.c.Show(moveTable(r.title, r.results, r.plan.Stays)); shown != nil {
			return errors.Join(err, shown)
		}
	}
	return err
}
