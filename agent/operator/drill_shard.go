package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/drill"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/placement"
	"github.com/lictor-ha/lictor/agent/printable"
)

// This file handles one real shard of a drill: the checks of evacuate before, the commands' own
// steps, and until it is well again.

// shardDrill is a shard in a drill.
type shardDrill struct {
	c          *Console
	site       *Site
	shard      *Shard
	o          DrillOptions
	cut, bring drill.Command
	move       placement.Move // what a switchover does
	// started is when the leader\'s agent was, before it was killed.
	started string
}

func (s *Site) openDrill(_ context.Context, c *Console, scope string, o DrillOptions, cut, restore drill.Command) (drillShard, error) {
	shard, err := s.open(scope)
	if err != nil {
		return nil, err
	}
	return &shardDrill{c: c, site: s, shard: shard, o: o, cut: cut, bring: restore}, nil
}

func (d *shardDrill) close() { d.shard.Close() }

const ofTheUnwell = "mend that first: a drill begins with shards that are well (lictor doctor)"

// well reads the fleet, and finds the shard and all others that the drill is about well, with
// somebody to take over.
func (d *shardDrill) well(ctx context.Context) (drillTarget, error) {
	t := drillTarget{Target: drill.Target{Kind: d.o.Kind, Shard: d.shard.Scope}, members: map[string][]string{}}
	f, err := d.site.readFleet(ctx)
	if err != nil {
		return t, err
	}
	i := slices.IndexFunc(f.shards, func(s fleetShard) bool { return s.scope == d.shard.Scope })
	if i < 0 {
		return t, surprise(ofTheUnwell, "there is no such shard any more")
	}
	leader, _ := f.shards[i].snapshot.Member(f.shards[i].snapshot.LeaderName())
	t.Member, t.Host, t.system = leader.Value.Name, hostOf(leader.Value), f.shards[i].snapshot.Initialize.Value
	if t.Member == "" || t.Host == "" || cluster.CheckName(t.Member) != nil || !isHost(t.Host) {
		return t, surprise(ofTheUnwell, "nobody leads it on a host that can be named")
	}
	if !d.o.mayCut(t.Host) {
		return t, refusedf("%s: its leader %s runs on %s, as its key says, and --hosts does not name that host", d.shard.Scope, t.Member, t.Host)
	}
	f.shards = slices.DeleteFunc(f.shards, func(s fleetShard) bool { return !d.concerned(s, t) })
	for _, s := range f.shards {
		if why := d.o.closed(s, time.Now()); why != "" {
			return t, refusedf("%s: that is %s (--outside-window does it all the same)", s.scope, why)
		}
		t.members[s.scope] = memberNames(s.snapshot)
		if s.scope != d.shard.Scope && onHost(s.snapshot, s.snapshot.LeaderName()) == t.Host {
			t.led = append(t.led, s.scope)
		}
	}
	client, err := d.site.memberClient()
	if err != nil {
		return t, err
	}
	defer client.Close()
	f.learnSecrets(ctx, d.site)
	f.askLeaders(ctx, client, askLimit)
	for _, s := range f.shards {
		for _, a := range s.alarms() {
			if a.level == Wrong {
				return t, surprise(ofTheUnwell, "%s is not well before: %s", s.scope, a.what)
			}
			t.notes = append(t.notes, fmt.Sprintf("before: %s: %s", s.scope, a.what))
		}
	}
	if err := d.replaceable(ctx, f, t); err != nil {
		return t, err
	}
	log, err := d.shard.events(ctx)
	if err != nil {
		return t, err
	}
	t.known = map[eventID]bool{}
	for _, e := range log.Events {
		t.known[idOf(e)] = true
	}
	return t, nil
}

// concerned reports whether a shard is one that the drill is about.
func (d *shardDrill) concerned(s fleetShard, t drillTarget) bool {
	if s.scope == d.shard.Scope {
		return true
	}
	return d.o.Kind == DrillHost && slices.ContainsFunc(s.snapshot.Members, func(m cluster.Entry[cluster.Member]) bool { return hostOf(m.Value) == t.Host })
}

// onHost is the host of a member.
func onHost(s cluster.Snapshot, name string) string {
	m, _ := s.Member(name)
	return hostOf(m.Value)
}

// replaceable asks leaders and candidates, and finds somebody to take over from each leader that
// goes: of a host on another one.
func (d *shardDrill) replaceable(ctx context.Context, f fleet, t drillTarget) error {
	v := newSurvey(d.site, f, MoveOptions{ZoneTag: DefaultZoneTag, OutsideWindow: true}) // the windows were looked at
	plan, err := v.plan(ctx, func(shards []placement.Shard) placement.Plan {
		if d.o.Kind == DrillHost {
			return placement.Evacuate(shards, t.Host, nil)
		}
		return anySuccessor(shards)
	})
	if err != nil {
		return err
	}
	if len(plan.Stays) > 0 {
		stays := plan.Stays[0]
		return surprise(stays.Why.Do, "%s: nobody can take over from %s: %s", stays.Shard, orNobody(stays.Leader.Name), stays.Why.What)
	}
	for _, m := range plan.Moves {
		if m.Shard == d.shard.Scope {
			d.move = m
		}
	}
	if d.move.Shard == "" {
		return surprise(ofTheUnwell, "it is led elsewhere by now")
	}
	return nil
}

// anySuccessor plans that each leader hands over to the first member that can take over.
func anySuccessor(shards []placement.Shard) (plan placement.Plan) {
	for _, s := range shards {
		i := slices.IndexFunc(s.Others, func(m placement.Member) bool { return !m.Unfit.Exists() })
		switch {
		case s.Stuck.Exists():
			plan.Stays = append(plan.Stays, placement.Stay{Shard: s.Name, Leader: s.Leader, Why: s.Stuck})
		case i >= 0:
			plan.Moves = append(plan.Moves, placement.Move{Shard: s.Name, From: s.Leader, To: s.Others[i]})
		case len(s.Others) == 0:
			plan.Stays = append(plan.Stays, placement.Stay{Shard: s.Name, Leader: s.Leader, Why: placement.Problem{What: "it has no other member", Do: "add one"}})
		default:
			plan.Stays = append(plan.Stays, placement.Stay{Shard: s.Name, Leader: s.Leader, Why: s.Others[0].Unfit})
		}
	}
	return plan
}

// probe has a client ask, which must have come to this very shard.
func (d *shardDrill) probe(ctx context.Context, t drillTarget) (drillProbe, error) {
	if d.o.Probe == "" {
		return nil, nil //nolint:nilnil // no client is what was asked for
	}
	p, err := drill.Start(ctx, drill.Options{Connection: d.o.Probe, Limit: d.o.ProbeTimeout}, d.shard.Scope)
	if err != nil {
		return nil, surprise("see that --probe leads to the shard, and that its role may log in (lictor routes)", "%w", err)
	}
	if p.System() != "" && t.system != "" && p.System() != t.system {
		p.Stop(ctx)
		return nil, surprise("see that --probe leads to the shard's own database", "the client is led to another cluster, with the system identifier %s", p.System())
	}
	return p, nil
}

// strike does what the drill is about.
func (d *shardDrill) strike(ctx context.Context, t drillTarget) (begun bool, err error) {
	switch d.o.Kind {
	case DrillSwitchover:
		err := d.site.handOver(context.WithoutCancel(ctx), d.move, MoveOptions{OutsideWindow: d.o.OutsideWindow})
		return !unchanged(err), asSurprise(err, "the switchover", t.Shard)
	case DrillRestart:
		quiet := *d.c
		quiet.Out = quiet.Err
		err := Restart(context.WithoutCancel(ctx), &quiet, d.shard, RestartOptions{OutsideWindow: d.o.OutsideWindow, Force: true})
		return !unchanged(err), asSurprise(err, "the restart", t.Shard)
	}
	return d.take(ctx, t)
}

// unchanged reports whether an error says that nothing has changed.
func unchanged(err error) bool {
	code := ExitCode(err)
	return code == ExitRefused || code == ExitUsage
}

// asSurprise makes a surprise of what went wrong after the checks had found everything well.
func asSurprise(err error, what, scope string) error {
	if err == nil {
		return nil
	}
	return surprise("see lictor events "+scope+" and the members' logs", "%s did not go well: %w", what, err)
}

// take has a host or an agent taken away, by the operator's command or the operator, and waits until
// it shows.
func (d *shardDrill) take(ctx context.Context, t drillTarget) (begun bool, err error) {
	what, limit := fmt.Sprintf("the agent of %s on %s", t.Member, t.Host), d.o.Limit
	if d.o.Kind == DrillHost {
		what = "the host " + t.Host
	}
	if d.started, err = d.askStart(ctx, t); err != nil && d.o.Kind == DrillKillAgent {
		return false, surprise(ofTheUnwell, "whether the agent of %s is gone could not be told: %w", t.Member, err)
	}
	if d.cut.Exists() {
		if !d.o.Force {
			if err := d.c.Confirm(d.aboutToBeCut(t, what)); err != nil {
				return false, err
			}
		}
		run, done := context.WithTimeout(ctx, limit)
		defer done()
		if err := d.cut.Run(run, t.Target, d.c.Err); err != nil {
			return true, surprise("see what the command has done: it may have cut "+what, "--cut has failed: %w", err)
		}
	} else {
		d.c.Warn("%s: now cut %s%s. Waiting %s at most until that shows; Ctrl-C ends the drill.", t.Shard, what, alsoLed(t), limit)
	}
	waiting, done := context.WithTimeout(ctx, limit)
	defer done()
	if d.o.Kind == DrillKillAgent {
		err = await(waiting, func(ctx context.Context) error { return d.agentGone(ctx, t) })
	} else {
		err = await(waiting, func(ctx context.Context) error { return d.anotherLeads(ctx, t) })
	}
	switch {
	case err != nil && ctx.Err() != nil: // interrupted
		return true, fmt.Errorf("waiting until %s is gone: %w", what, err)
	case err != nil:
		return true, surprise("see lictor list "+t.Shard+" and docs/runbooks/no-leader.md", "after %s was to be gone: %w", what, err)
	}
	return true, nil
}

func (d *shardDrill) aboutToBeCut(t drillTarget, what string) string {
	return fmt.Sprintf("%s is about to be taken away%s: %s. Go on?", strings.ToUpper(what[:1])+what[1:], alsoLed(t), strings.Join(d.cut.Line(t.Target), " "))
}

// alsoLed says what else the host leads.
func alsoLed(t drillTarget) string {
	others := slices.Sorted(maps.Keys(t.members))
	others = slices.DeleteFunc(others, func(scope string) bool { return scope == t.Shard || slices.Contains(t.led, scope) })
	text := ""
	if len(t.led) > 0 {
		text += ", which leads " + abridged(t.led, 10) + ", too"
	}
	if len(others) > 0 {
		text += ", and has replicas of " + abridged(others, 10)
	}
	return text
}

// anotherLeads returns an error unless another member leads, as a primary, and so in all shards that
// were led on the host.
func (d *shardDrill) anotherLeads(ctx context.Context, t drillTarget) error {
	for _, scope := range append([]string{t.Shard}, t.led...) {
		s, err := d.look(ctx, scope, nil)
		if err != nil {
			return err
		}
		name := s.snapshot.LeaderName()
		m, _ := s.snapshot.Member(name)
		if name == "" || hostOf(m.Value) == t.Host || !s.leads(m.Value) || m.Value.State != cluster.StateRunning {
			return fmt.Errorf("%s is led by %s", scope, orNobody(name))
		}
	}
	return nil
}

// startMetric is by which an agent's metrics tell when it was started.
const startMetric = "process_start_time_seconds"

// askStart asks when the agent was started that led before.
func (d *shardDrill) askStart(ctx context.Context, t drillTarget) (string, error) {
	snapshot, err := d.shard.Read(ctx)
	if err != nil {
		return "", err
	}
	m, found := snapshot.Member(t.Member)
	if !found {
		return "", errNoKey
	}
	ctx, done := context.WithTimeout(ctx, surveyLimit)
	defer done()
	peer := api.PeerOf(m.Value)
	peer.Name = "" // metrics are for everybody: nobody proves them, nor is anything decided by them
	answer, err := d.shard.client.Ask(ctx, peer, "/metrics")
	if err != nil {
		return "", errors.Join(errSilent, err)
	}
	return startedBy(answer.Text)
}

// startedBy finds in an agent's metrics when it was started, in the words that they say it with.
func startedBy(metrics string) (string, error) {
	for line := range strings.Lines(metrics) {
		fields := strings.Fields(line)
		name, _, _ := strings.Cut(line, "{") // the labels name member and shard
		if len(fields) < 2 || name != startMetric {
			continue
		}
		said := fields[len(fields)-1]
		if at, err := strconv.ParseFloat(said, 64); err != nil || !(at > 0) || math.IsInf(at, 0) {
			return "", fmt.Errorf("its metrics say that it was started at %s, which is no time", printable.Quote(said))
		}
		return said, nil
	}
	return "", errors.New("its metrics do not say when it was started")
}

var (
	errNoKey  = errors.New("it has no key any more")
	errSilent = errors.New("its agent does not answer")
)

// agentGone returns an error unless the agent is gone, or is another one by now.
func (d *shardDrill) agentGone(ctx context.Context, t drillTarget) error {
	now, err := d.askStart(ctx, t)
	switch {
	case errors.Is(err, errSilent), errors.Is(err, errNoKey):
		return nil //nolint:nilerr // that is what is waited for
	case err != nil:
		return err
	case now != d.started:
		return nil
	}
	return fmt.Errorf("the agent of %s runs as before", t.Member)
}

// restore brings back what was taken away.
func (d *shardDrill) restore(ctx context.Context, t drillTarget) error {
	switch {
	case d.bring.Exists():
		ctx, done := context.WithTimeout(ctx, d.o.Limit)
		defer done()
		if err := d.bring.Run(ctx, t.Target, d.c.Err); err != nil {
			return surprise("bring the host back by hand", "--restore has failed: %w", err)
		}
	case d.o.Kind == DrillHost:
		d.c.Warn("%s: now bring the host %s back. Waiting %s at most until its members are well again.", t.Shard, t.Host, d.o.Limit)
	default: // its service manager starts it
	}
	return nil
}

// again waits until everything is as well as it was.
func (d *shardDrill) again(ctx context.Context, t drillTarget) (leader string, err error) {
	client, err := d.site.memberClient()
	if err != nil {
		return "", err
	}
	defer client.Close()
	limit, done := context.WithTimeout(ctx, d.o.Limit)
	defer done()
	err = await(limit, func(ctx context.Context) error {
		for scope, members := range t.members {
			s, err := d.look(ctx, scope, client)
			if err != nil {
				return err
			}
			err = s.asBefore(members)
			if err == nil {
				err = d.answer(ctx, s, t)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", scope, err)
			}
			if scope == t.Shard {
				leader = s.snapshot.LeaderName()
			}
		}
		return nil
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return leader, fmt.Errorf("waiting until the shard is well again: %w", err)
	case err != nil:
		return leader, surprise("see lictor doctor "+t.Shard, "it is not well again within %s: %w", d.o.Limit, err)
	}
	return leader, nil
}

// answer returns an error unless those members answer that were taken away: their keys outlive them for
// a while.
func (d *shardDrill) answer(ctx context.Context, s fleetShard, t drillTarget) error {
	if d.o.Kind == DrillKillAgent && s.scope == t.Shard {
		switch now, err := d.askStart(ctx, t); {
		case err != nil:
			return fmt.Errorf("the agent of %s is not back: %w", t.Member, err)
		case now == d.started:
			return fmt.Errorf("the agent of %s runs as before", t.Member)
		}
	}
	if !d.o.cuts() {
		return nil
	}
	client, err := d.site.memberClient()
	if err != nil {
		return err
	}
	defer client.Close()
	for _, m := range s.snapshot.Members {
		if hostOf(m.Value) != t.Host {
			continue
		}
		status, err := askStatus(ctx, client.For(s.secret), api.PeerOf(m.Value))
		if problem := inspect(m.Value, status, err, m.Value.Name == s.snapshot.LeaderName()); problem.Exists() {
			return errors.New(problem.What)
		}
	}
	return nil
}

// asBefore returns an error unless a shard is well, with these members.
func (s fleetShard) asBefore(members []string) error {
	for _, name := range members {
		m, found := s.snapshot.Member(name)
		leads := name == s.snapshot.LeaderName()
		switch {
		case !found:
			return fmt.Errorf("%s is not back", name)
		case m.Value.State != cluster.StateRunning || unheard(s.snapshot, m):
			return fmt.Errorf("%s is not back: it is %s", name, m.Value.State)
		case leads && !s.leads(m.Value):
			return fmt.Errorf("%s leads and is a %s", name, m.Value.Role)
		}
	}
	for _, a := range s.alarms() {
		if a.level == Wrong {
			return errors.New(a.what)
		}
	}
	return nil
}

// look reads one shard, with its bouncers, and asks its leader if there is a client.
func (d *shardDrill) look(ctx context.Context, scope string, client *api.Client) (fleetShard, error) {
	shard := d.shard
	if scope != shard.Scope {
		var err error
		if shard, err = d.site.open(scope); err != nil {
			return fleetShard{}, err
		}
		defer shard.Close()
	}
	common := d.site.keys("x")
	var present, applied consulapi.KVPairs
	var snapshot cluster.Snapshot
	reading, until := errgroup.WithContext(ctx)
	reading.Go(func() (err error) { snapshot, err = shard.Read(until); return err })
	reading.Go(func() (err error) { present, err = d.site.list(until, common.Bouncers()); return err })
	reading.Go(func() (err error) { applied, err = d.site.list(until, common.BouncersApplied()); return err })
	if err := reading.Wait(); err != nil {
		return fleetShard{}, err
	}
	s := fleetShard{scope: scope, snapshot: snapshot, secret: shard.secret}
	s.servedBy(d.site.Namespace, d.site.parseBouncers(present, applied))
	if snapshot.Config.Exists() {
		s.dynamic, s.warnings, s.problem = d.site.rules().ParseJSON(snapshot.Config.Value)
	}
	if client != nil {
		f := fleet{shards: []fleetShard{s}}
		f.askLeaders(ctx, client, surveyLimit)
		s = f.shards[0]
	}
	return s, nil
}

// eventID tells events apart.
type eventID struct {
	by, kind string
	at       int64
}

func idOf(e events.Event) eventID { return eventID{e.By, string(e.Kind), e.At.UnixNano()} }

// recordLimit bounds the wait until the new leader has recorded how it came to lead.
const recordLimit = 15 * time.Second

// recorded waits until the change of leader, if there was one, is recorded.
func (d *shardDrill) recorded(ctx context.Context, t drillTarget, leader string) (fresh []events.Event, slow string, err error) {
	ctx, done := context.WithTimeout(ctx, recordLimit)
	defer done()
	err = await(ctx, func(ctx context.Context) error {
		log, err := d.shard.events(ctx)
		if err != nil {
			return err
		}
		fresh, slow = nil, ""
		changed := leader == "" || leader == t.Member
		for _, e := range log.Events {
			if t.known[idOf(e)] {
				continue
			}
			fresh = append(fresh, e)
			if leaderChange(e) && e.Outcome != events.UnderWay {
				changed = changed || e.To == leader
				slow = slowest(e)
			}
		}
		if !changed {
			return fmt.Errorf("%s has not recorded yet how it came to lead", leader)
		}
		return nil
	})
	return fresh, slow, err
}
