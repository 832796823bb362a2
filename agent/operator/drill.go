package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/drill"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/placement"
)

// The kinds of a drill.
const (
	DrillSwitchover = "switchover"
	DrillRestart    = "restart"
	DrillKillAgent  = "kill-agent"
	DrillHost       = "host"
)

// DrillKinds are all kinds.
func DrillKinds() []string {
	return []string{DrillSwitchover, DrillRestart, DrillKillAgent, DrillHost}
}

// DrillOptions say what is tried, on which shards, and how it is measured.
type DrillOptions struct {
	Scopes []string // none, neither Count nor All: the configured one, or the only one
	Count  int      // so many of all, by chance
	All    bool
	Kind   string
	// Probe is where a client connects, as drill.Options has it; empty: none does.
	Probe string
	// ProbeTimeout bounds one attempt of that client.
	ProbeTimeout time.Duration
	// MaxWait is the longest wait of the client that is no surprise; 0: any.
	MaxWait time.Duration
	// Cut and Restore are commands that take a host or an agent away, and bring it back. Without one a
	// person is asked to.
	Cut, Restore string
	// Hosts are those that Cut may take away; empty: any, once somebody has said yes to it. Which host a
	// leader runs on stands in keys that its shard's token may write.
	Hosts []string
	// Limit bounds each wait: until the leader is gone, until another one leads, until the shard is
	// well again.
	Limit time.Duration
	// Schedule is when it begins, as ParseWhen reads it; empty: now.
	Schedule      string
	OutsideWindow bool
	// Report is the file that gets the report as a page; empty: none does.
	Report string
	Force  bool
}

// cuts reports whether a host or an agent is taken away.
func (o DrillOptions) cuts() bool { return o.Kind == DrillHost || o.Kind == DrillKillAgent }

// validate checks what flags say, and returns the commands and the time.
func (o DrillOptions) validate(now time.Time) (cut, restore drill.Command, when *time.Time, err error) {
	ways := 0
	for _, said := range []bool{len(o.Scopes) > 0, o.Count != 0, o.All} {
		if said {
			ways++
		}
	}
	switch {
	case ways > 1:
		err = usagef("name shards, or say --shards or --all: one of them")
	case o.Count < 0:
		err = usagef("--shards: %d, must be 1 or more", o.Count)
	case !slices.Contains(DrillKinds(), o.Kind):
		err = usagef("--kind: %q, must be one of %s", o.Kind, strings.Join(DrillKinds(), ", "))
	case !o.cuts() && (o.Cut != "" || o.Restore != "" || len(o.Hosts) > 0):
		err = usagef("--cut, --restore and --hosts are for --kind host and kill-agent")
	case o.ProbeTimeout <= 0 || o.Limit <= 0:
		err = usagef("--probe-timeout and --limit: must be more than 0")
	case o.MaxWait < 0:
		err = usagef("--max-wait: %s, must be 0 (any) or more", o.MaxWait)
	case o.MaxWait > 0 && o.Probe == "":
		err = usagef("--max-wait: nothing is measured without --probe")
	}
	if err != nil {
		return cut, restore, nil, err
	}
	if cut, err = drill.ParseCommand(o.Cut); err != nil {
		return cut, restore, nil, usagef("--cut: %w", err)
	}
	if restore, err = drill.ParseCommand(o.Restore); err != nil {
		return cut, restore, nil, usagef("--restore: %w", err)
	}
	if when, err = ParseWhen(o.Schedule, now); err != nil {
		return cut, restore, nil, usagef("--schedule: %w", err)
	}
	if when != nil && o.cuts() && cut.Exists() && !o.Force {
		return cut, restore, nil, usagef("--schedule: --cut asks before each host, and nobody may be there: say --yes, too")
	}
	if cut.Exists() && !restore.Exists() && o.Kind == DrillHost && o.Force {
		return cut, restore, nil, usagef("--cut without --restore: somebody must bring the host back, so --yes is not enough: give --restore, or leave --yes out")
	}
	if cut.Exists() && o.Force && len(o.Hosts) == 0 {
		return cut, restore, nil, usagef("--cut with --yes: which host is cut stands in Consul, where a shard's own token may write it: name those that may be, with --hosts")
	}
	return cut, restore, when, nil
}

// mayCut reports whether a host may be taken away.
func (o DrillOptions) mayCut(host string) bool {
	return !o.cuts() || len(o.Hosts) == 0 || slices.ContainsFunc(o.Hosts, func(one string) bool { return strings.EqualFold(one, host) })
}

// Drill tries on the real fleet what is promised: on one shard after another it has the leader hand
// over, PostgreSQL restarted, the leader's agent killed or its host lost, while a client measures
// what clients notice. It stops at the first surprise.
func Drill(ctx context.Context, c *Console, site *Site, o DrillOptions) error {
	cut, restore, when, err := o.validate(time.Now())
	if err != nil {
		return err
	}
	f, err := site.readFleet(ctx)
	if err != nil {
		return err
	}
	scopes, err := o.choose(f, site)
	if err != nil {
		return err
	}
	if o.Probe != "" {
		if err := (drill.Options{Connection: o.Probe}).Check(len(scopes) > 1); err != nil {
			return usagef("--probe: %w", err)
		}
	}
	d := drillRun{c: c, o: o, scopes: scopes, open: func(ctx context.Context, scope string) (drillShard, error) {
		return site.openDrill(ctx, c, scope, o, cut, restore)
	}}
	if err := d.prepare(ctx, f, site, when); err != nil {
		return err
	}
	return d.run(ctx)
}

// choose are the shards that are meant, in their order.
func (o DrillOptions) choose(f fleet, site *Site) ([]string, error) {
	scopes := make([]string, len(f.shards))
	for i, s := range f.shards {
		scopes[i] = s.scope
	}
	switch {
	case o.All:
		return scopes, nil
	case o.Count > len(scopes):
		return nil, usagef("--shards: %d, there are %d", o.Count, len(scopes))
	case o.Count > 0:
		rand.Shuffle(len(scopes), func(i, j int) { scopes[i], scopes[j] = scopes[j], scopes[i] })
		scopes = scopes[:o.Count]
		slices.Sort(scopes)
		return scopes, nil
	case len(o.Scopes) == 0 && site.Scope != "":
		o.Scopes = []string{site.Scope}
	case len(o.Scopes) == 0 && len(scopes) > 1:
		return nil, usagef("which shards? Name some, or say --shards or --all: there are %s", abridged(scopes, 10))
	case len(o.Scopes) == 0:
		return scopes, nil
	}
	if missing := f.only(o.Scopes); len(missing) > 0 {
		return nil, noShard(missing[0], site.Namespace+"/"+missing[0]+"/")
	}
	var named []string
	for _, scope := range o.Scopes { // in the order in which they were named, each once
		if !slices.Contains(named, scope) {
			named = append(named, scope)
		}
	}
	return named, nil
}

// maintenance are the kinds of work that a drill of a kind is.
func (o DrillOptions) maintenance() []cluster.Maintenance {
	if o.Kind == DrillSwitchover {
		return []cluster.Maintenance{cluster.MaintenanceHandover}
	}
	return []cluster.Maintenance{cluster.MaintenanceHandover, cluster.MaintenanceRestart}
}

// closed says why a shard's windows do not allow for a drill at a time; empty: they do.
func (o DrillOptions) closed(s fleetShard, at time.Time) string {
	if o.OutsideWindow {
		return ""
	}
	for _, what := range o.maintenance() {
		if why := s.dynamic.MaintenanceWindows.Refusal(what, at); why != "" {
			return why
		}
	}
	return ""
}

// drillRun is one run of Drill.
type drillRun struct {
	c      *Console
	o      DrillOptions
	scopes []string
	open   func(ctx context.Context, scope string) (drillShard, error)
	report drill.Report
	// settle is how many answers the probe gets before and after what is done.
	settle int64
}

// drillShard is a shard as a drill handles it.
type drillShard interface {
	// well says what a drill would be about, or what keeps it from being done: a drillProblem.
	well(ctx context.Context) (drillTarget, error)
	// probe has a client begin to ask; nil: none does.
	probe(ctx context.Context, t drillTarget) (drillProbe, error)
	// strike does what the drill is about, and waits until it shows: another member leads, or the agent
	// is gone. begun says that something may be left to bring back.
	strike(ctx context.Context, t drillTarget) (begun bool, err error)
	// restore brings back what strike has taken away, or asks for it.
	restore(ctx context.Context, t drillTarget) error
	// again waits until the shard is as well as it was, with all its members, and returns who leads.
	again(ctx context.Context, t drillTarget) (leader string, err error)
	// recorded are the events of the shard that are new, and what is slow of its changes of leader.
	recorded(ctx context.Context, t drillTarget, leader string) (all []events.Event, slow string, err error)
	close()
}

// drillProbe is a client that measures.
type drillProbe interface {
	Answers(ctx context.Context, n int64) error
	Stop(ctx context.Context) drill.Result
	Mode() drill.Mode
}

// drillTarget is what a drill is about.
type drillTarget struct {
	drill.Target
	system string
	// led are the shards that are led on the host besides this one, members their members and this
	// one's, by shard: when the host is lost all of them are concerned.
	led     []string
	members map[string][]string
	known   map[eventID]bool
	notes   []string
}

// drillProblem is a surprise.
type drillProblem struct {
	placement.Problem
	cause error
}

func (p *drillProblem) Error() string { return p.String() }
func (p *drillProblem) Unwrap() error { return p.cause }

func surprise(do, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &drillProblem{placement.Problem{What: Explain(err), Do: do}, errors.Unwrap(err)}
}

// prepare checks windows, asks, waits until it is time, and begins the report.
func (d *drillRun) prepare(ctx context.Context, f fleet, site *Site, when *time.Time) error {
	at := time.Now()
	if when != nil {
		at = *when
	}
	for _, s := range f.shards {
		if !slices.Contains(d.scopes, s.scope) {
			continue
		}
		if s.unread != nil {
			return refusedf("nothing was done: shard %s: %w", s.scope, s.unread)
		}
		if why := d.o.closed(s, at); why != "" {
			return refusedf("nothing was done: %s: that is %s (--outside-window does it all the same)", s.scope, why)
		}
	}
	if d.o.Probe == "" {
		d.c.Warn("warning: without --probe nothing measures what clients notice, nor whether rows are lost")
	}
	if !d.o.Force {
		if err := d.c.Confirm(d.question(when)); err != nil {
			return err
		}
	}
	d.report = drill.Report{Kind: d.o.Kind, Namespace: site.Namespace, Verdict: drill.UnderWay}
	for _, scope := range d.scopes {
		d.report.Shards = append(d.report.Shards, drill.Shard{Name: scope, State: drill.NotBegun})
	}
	d.settle = drillSettle
	d.report.Began = at
	if err := d.write(); err != nil {
		return Usage(err)
	}
	if when == nil {
		return nil
	}
	d.tell("The drill begins at %s", when.Local().Format(time.RFC3339))
	timer := time.NewTimer(time.Until(*when))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		d.report.Verdict = drill.Interrupted
		return errors.Join(refusedf("nothing was done: interrupted before it was time: %w", context.Cause(ctx)), d.write())
	}
}

// drillSettle is how many answers a probe gets before and after: a second, with its pace.
const drillSettle = 20

// question says what will be done.
func (d *drillRun) question(when *time.Time) string {
	what := map[string]string{
		DrillSwitchover: "hand over to another member, while the poolers hold the clients",
		DrillRestart:    "have PostgreSQL restarted on every member: replicas one after another (their readers lose their connections), then the leader hands over while the poolers hold the clients",
		DrillKillAgent:  "have the agent of their leader killed: clients notice nothing if it is back within its lease, else the leader is lost",
		DrillHost:       "lose the host of their leader: its clients lose their connections, and wait until another member leads; all other shards with members on that host are concerned, too",
	}[d.o.Kind]
	question := fmt.Sprintf("A drill on the real fleet: %s (%s), one after another, %s. Go on?", count(len(d.scopes), "shard"), abridged(d.scopes, 10), what)
	if when != nil {
		question = fmt.Sprintf("At %s: %s", when.Local().Format(time.RFC3339), question)
	}
	return question
}

// tell says how the drill goes on: beside the result, where that is for programs.
func (d *drillRun) tell(format string, args ...any) {
	if d.c.Format == Pretty {
		d.c.Say(format, args...)
		return
	}
	d.c.Warn(format, args...)
}

// run drills one shard after another, until a surprise or the end, and shows the report.
func (d *drillRun) run(ctx context.Context) error {
	d.report.Began = time.Now()
	var failed error
	for i := range d.report.Shards {
		s := &d.report.Shards[i]
		if ctx.Err() != nil {
			failed = context.Cause(ctx)
			break
		}
		s.Began, s.State = time.Now(), drill.UnderWay
		failed = d.shard(ctx, s)
		s.Took = time.Since(s.Began)
		s.State, s.What, s.Do = concluded(ctx, failed)
		if s.What != "" {
			d.tell("%s: %s: %s", s.Name, s.State, s.What)
		} else {
			d.tell("%s: %s in %s%s", s.Name, s.State, Duration(s.Took), measured(s.Probe))
		}
		if failed != nil {
			break
		}
		if err := d.write(); err != nil {
			d.c.Warn("warning: %v", err)
		}
	}
	d.report.Ended = time.Now()
	err := d.conclude(ctx, failed)
	if shown := d.c.Show(drillTable(d.report)); shown != nil {
		err = errors.Join(err, shown)
	}
	return errors.Join(err, d.write())
}

// concluded is the state of a shard whose drill has ended with err.
func concluded(ctx context.Context, err error) (state drill.State, what, do string) {
	var problem *drillProblem
	var code int
	if err != nil {
		code = ExitCode(err)
	}
	switch {
	case err == nil:
		return drill.Passed, "", ""
	case errors.As(err, &problem):
		return drill.Surprised, problem.What, problem.Do
	case ctx.Err() != nil && code != ExitUnknown:
		return drill.Interrupted, Explain(err), ""
	case code == ExitRefused:
		return drill.Interrupted, Explain(err), ""
	}
	return drill.Surprised, Explain(err), "see lictor fleet --alarms and lictor events"
}

// measured says in a few words what the client has noticed.
func measured(p *drill.Result) string {
	if p == nil {
		return ""
	}
	text := fmt.Sprintf(", longest wait %s, %s", Duration(p.Gap()), count(p.Errors, "error"))
	if p.Mode == drill.Writes && p.Unchecked == "" {
		text += fmt.Sprintf(", %s lost", count(int(p.Lost), "row"))
	}
	return text
}

// conclude is the error of the run; nil: all went as it should.
func (d *drillRun) conclude(ctx context.Context, failed error) error {
	passed, left, worst := 0, 0, drill.Shard{State: drill.Passed}
	for _, s := range d.report.Shards {
		switch s.State {
		case drill.Passed:
			passed++
		case drill.NotBegun:
			left++
		case drill.Surprised, drill.Interrupted, drill.UnderWay:
			worst = s
		}
	}
	d.report.Verdict, d.report.Do = worst.State, worst.Do
	if worst.What != "" {
		d.report.What = worst.Name + ": " + worst.What
	}
	if failed == nil {
		return nil
	}
	tail := fmt.Sprintf("%d of %s went well, %d were not begun", passed, count(len(d.report.Shards), "shard"), left)
	switch {
	case worst.State == drill.Surprised:
		do := ""
		if worst.Do != "" {
			do = "; what to do: " + worst.Do
		}
		return &failure{ExitSurprise, fmt.Errorf("%s: %s; %s%s", worst.Name, worst.What, tail, do)}
	case worst.Name == "": // between two shards
		d.report.Verdict, d.report.What = drill.Interrupted, "interrupted between two shards"
		return &failure{ExitFailed, fmt.Errorf("interrupted: %w; %s", context.Cause(ctx), tail)}
	case passed == 0 && ExitCode(failed) == ExitRefused:
		return refusedf("%s: %s; %s", worst.Name, worst.What, tail)
	}
	return &failure{ExitFailed, fmt.Errorf("%s: %s; %s", worst.Name, worst.What, tail)}
}

// shard drills one shard.
func (d *drillRun) shard(ctx context.Context, r *drill.Shard) (err error) {
	s, err := d.open(ctx, r.Name)
	if err != nil {
		return err
	}
	defer s.close()
	step := func(name string, do func() error) error {
		began := time.Now()
		err := do()
		r.Steps = append(r.Steps, drill.Step{Name: name, AtMS: began.Sub(r.Began).Milliseconds(), TookMS: time.Since(began).Milliseconds()})
		return err
	}
	var t drillTarget
	if err := step("checks", func() (err error) { t, err = s.well(ctx); return err }); err != nil {
		return err
	}
	r.From, r.Host, r.Notes = t.Member, t.Host, t.notes
	var p drillProbe
	if err := step("client settles", func() (err error) {
		if p, err = s.probe(ctx, t); err != nil || p == nil {
			return err
		}
		return d.settled(ctx, p)
	}); err != nil {
		return d.stopped(ctx, r, p, err)
	}
	d.tell("%s: %s leads on %s; %s", r.Name, t.Member, t.Host, d.o.Kind)
	var begun bool
	struck := step(d.o.Kind, func() (err error) { begun, err = s.strike(ctx, t); return err })
	if !begun && struck != nil {
		return d.stopped(ctx, r, p, struck)
	}
	// From here on it is brought to its end, whatever was met with: nothing stays cut.
	var restored error
	if d.o.cuts() {
		restored = step("brought back", func() error { return s.restore(context.WithoutCancel(ctx), t) })
	}
	var back error
	if restored == nil {
		back = step("well again", func() (err error) { r.To, err = s.again(ctx, t); return err })
	}
	if p != nil && struck == nil && restored == nil && back == nil {
		back = step("client settles", func() error { return d.settled(ctx, p) })
	}
	err = d.stopped(ctx, r, p, cmp.Or(struck, restored, back))
	var unread error
	if r.Events, r.Slow, unread = s.recorded(context.WithoutCancel(ctx), t, r.To); unread != nil {
		r.Notes = append(r.Notes, "the shard's events could not be read: "+Explain(unread))
	}
	return err
}

// settled waits until the client gets answers.
func (d *drillRun) settled(ctx context.Context, p drillProbe) error {
	limit, done := context.WithTimeout(ctx, d.o.Limit)
	defer done()
	if err := p.Answers(limit, d.settle); err != nil {
		return surprise("see that the pooler and the load balancer lead to the shard: lictor routes", "a client is not served: %w", err)
	}
	return nil
}

// stopped ends the client, and judges what it has seen. What was met with before comes first, but for
// rows that are lost.
func (d *drillRun) stopped(ctx context.Context, r *drill.Shard, p drillProbe, met error) error {
	if p == nil {
		return met
	}
	result := p.Stop(ctx)
	r.Probe = &result
	if result.Left != "" && result.Lost == 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("the rows of run %s were left in the table %s: %s", result.Run, drill.Table, result.Left))
	}
	judged := d.o.judge(*r)
	if met != nil && result.Lost == 0 {
		return met
	}
	return judged
}

// judge says what a shard's clients noticed that they should not have.
func (o DrillOptions) judge(r drill.Shard) error {
	p := r.Probe
	first := ""
	if len(p.Failures) > 0 {
		first = p.Failures[0].Text
	}
	// A leader that stays loses no connection, and one that hands over does not neither.
	quiet := o.Kind == DrillSwitchover || o.Kind == DrillRestart || o.Kind == DrillKillAgent && r.To == r.From
	switch {
	case p.Lost > 0:
		return surprise(fmt.Sprintf("keep the data directories as they are, and see lictor events %s: the rows of run %s are in the table %s", r.Name, p.Run, drill.Table),
			"acknowledged rows are missing: %d", p.Lost)
	case p.Unchecked != "":
		return surprise(fmt.Sprintf("compare the rows of run %s in the table %s with the report", p.Run, drill.Table), "whether rows are lost is not known: %s", p.Unchecked)
	case quiet && p.Errors > 0:
		return surprise("see the bouncers' and PgBouncer's logs, lictor routes and lictor events "+r.Name, "clients saw %s, where there must be none; the first: %s", count(p.Errors, "error"), first)
	case o.MaxWait > 0 && p.Gap() > o.MaxWait:
		return surprise("see what was slow in the report, and lictor events "+r.Name, "a client waited %s, more than --max-wait %s", Duration(p.Gap()), o.MaxWait)
	}
	return nil
}

// write writes the report's page, if there is to be one.
func (d *drillRun) write() error {
	if d.o.Report == "" {
		return nil
	}
	page, err := drill.Page(d.report)
	if err != nil {
		return err
	}
	const readable = 0o644
	if err := renameio.WriteFile(d.o.Report, page, readable); err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	return nil
}
