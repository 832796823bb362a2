package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/agent/printable"
)

// Level is how bad a finding is.
type Level int

// The levels.
const (
	Fine Level = iota
	Worth
	Wrong
)

func (l Level) String() string { return [...]string{"ok", "warning", "problem"}[l] }

// Finding is one thing that the doctor has looked at.
type Finding struct {
	Level   Level
	Area    string // config, consul, clock, shard, ...
	Subject string // which server, shard or member
	What    string
	Do      string // what helps; empty when nothing is wrong
}

// diagnosis collects the findings of one area.
type diagnosis struct {
	area     string
	findings []Finding
}

func (d *diagnosis) add(l Level, subject, do, format string, args ...any) {
	d.findings = append(d.findings, Finding{Level: l, Area: d.area, Subject: subject, What: fmt.Sprintf(format, args...), Do: do})
}

func (d *diagnosis) fine(subject, format string, args ...any) {
	d.add(Fine, subject, "", format, args...)
}

// DoctorOptions say what is looked at.
type DoctorOptions struct {
	Scopes []string // none: the configured one, else all
	// All shows also what is fine.
	All     bool
	Environ []string
}

// doctorsAtOnce is how many members are looked at at the same time.
const doctorsAtOnce = 16

// Doctor looks at everything that must be right for failovers to work, and says
// what to do about what is not. It changes nothing.
func Doctor(ctx context.Context, c *Console, site *Site, o DoctorOptions) error {
	findings := examineConfig(ctx, site.Settings, o.Environ)
	f, err := site.readFleet(ctx)
	switch {
	case errors.Is(err, errNoShards):
		d := diagnosis{area: "shard"}
		d.add(Worth, site.Namespace+"/", "start the agents, or name another --namespace", "%v", err)
		findings = append(findings, d.findings...)
	case err != nil:
		d := diagnosis{area: "consul"}
		d.add(Wrong, strings.Join(site.addresses(), ", "), "see that Consul runs and has a leader (consul operator raft list-peers), and that the token may read",
			"the shards cannot be read: %s", Explain(err))
		return report(c, append(findings, d.findings...), o)
	}
	if len(o.Scopes) == 0 && site.Scope != "" {
		o.Scopes = []string{site.Scope}
	}
	for _, scope := range f.only(o.Scopes) {
		d := diagnosis{area: "shard"}
		d.add(Wrong, scope, "start its agents, or check scope and namespace", "there is no such shard below %s/ in Consul", site.Namespace)
		findings = append(findings, d.findings...)
	}
	findings = append(findings, examineConsul(site.lookAtConsul(ctx), shortestLease(f), databaseHosts(f))...)
	for _, s := range f.shards {
		findings = append(findings, examineShard(s)...)
	}
	findings = append(findings, site.lookForLost(ctx, f)...)
	findings = append(findings, site.lookAtMembers(ctx, f)...)
	findings = append(findings, site.lookAtBouncers(ctx, f)...)
	return report(c, findings, o)
}

// lookForLost tells of members that went away and have not come back: their keys are gone, and only the leaders'
// records know them. Where these may not be read, or do not reach so far back, nothing is told.
func (s *Site) lookForLost(ctx context.Context, f fleet) []Finding {
	logs := make([]events.Log, len(f.shards))
	reading, until := errgroup.WithContext(ctx)
	reading.SetLimit(doctorsAtOnce)
	for i, shard := range f.shards {
		reading.Go(func() error {
			_ = s.query(until, func(ctx context.Context, c *consulapi.Client) error {
				pair, _, err := c.KV().Get(s.keys(shard.scope).Events(), (&consulapi.QueryOptions{}).WithContext(ctx))
				if err == nil && pair != nil {
					logs[i], err = events.Parse(pair.Value)
				}
				return err
			})
			return nil
		})
	}
	_ = reading.Wait() // nobody fails
	d := diagnosis{area: "shard"}
	for i, shard := range f.shards {
		away := lost(shard.snapshot, logs[i])
		for _, name := range slices.Sorted(maps.Keys(away)) {
			d.add(Worth, shard.scope, ofTheMissing, "%s went away at %s and has not come back", printable.Text(name), away[name].UTC().Format(time.RFC3339))
		}
	}
	return d.findings
}

// lookAtMembers asks all members of all shards, some at a time.
func (s *Site) lookAtMembers(ctx context.Context, f fleet) []Finding {
	f.learnSecrets(ctx, s)
	var all []memberFacts
	for _, shard := range f.shards {
		for _, m := range shard.snapshot.Members {
			if m.OK() {
				all = append(all, memberFacts{scope: shard.scope, member: m.Value, leads: m.Value.Name == shard.snapshot.LeaderName(), shard: shard})
			}
		}
	}
	client, err := s.memberClient()
	if err != nil {
		d := diagnosis{area: "config"}
		d.add(Wrong, s.Path, "correct the sections ctl and restapi", "the members' REST API cannot be asked: %v", err)
		return d.findings
	}
	defer client.Close()
	turns := make(chan struct{}, doctorsAtOnce)
	var looking sync.WaitGroup
	for i := range all {
		looking.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			all[i].look(ctx, s, client)
		})
	}
	looking.Wait()
	findings := examineProofs(f)
	for _, m := range all {
		findings = append(findings, examineMember(m)...)
		findings = append(findings, examinePostgres(m)...)
	}
	return findings
}

// report shows the findings, worst first, and makes problems an error.
func report(c *Console, findings []Finding, o DoctorOptions) error {
	if c.Format == Pretty {
		findings = together(findings)
	}
	findings = slices.Clone(findings)
	slices.SortStableFunc(findings, func(a, b Finding) int { return int(b.Level) - int(a.Level) })
	found := map[Level]int{}
	t := Table{Columns: []Column{
		{Name: "Level", Key: "level"},
		{Name: "Area", Key: "area"},
		{Name: "Subject", Key: "subject"},
		{Name: "What", Key: "what", Prose: true},
		{Name: "What to do", Key: "do", Programs: true},
	}}
	style := map[Level]Style{Fine: Good, Worth: Warning, Wrong: Bad}
	for _, f := range findings {
		found[f.Level]++
		if f.Level == Fine && !o.All {
			continue
		}
		what := printable.Text(strings.Join(strings.Fields(f.What), " ")) // some errors have several lines
		if f.Do != "" && c.Format == Pretty {
			what += "\n-> " + f.Do
		}
		t.Rows = append(t.Rows, []Cell{styled(f.Level.String(), style[f.Level]), text(f.Area), lines(f.Subject), lines(what), text(f.Do)})
	}
	t.Notes = []string{"", fmt.Sprintf("%s, %s, %s fine", count(found[Wrong], "problem"), count(found[Worth], "warning"), count(found[Fine], "check"))}
	if len(t.Rows) == 0 && c.Format == Pretty {
		t = Table{Notes: t.Notes[1:]}
		c.Say("%s", t.Notes[0])
		return nil
	}
	if err := c.Show(t); err != nil {
		return err
	}
	if found[Wrong] > 0 {
		return &failure{ExitFindings, fmt.Errorf("%s found", count(found[Wrong], "problem"))}
	}
	return nil
}

// together tells what was found of several members once: each shard's members, or other subjects, have a line of
// their own.
func together(findings []Finding) []Finding {
	type same struct {
		level          Level
		area, what, do string
	}
	var all []Finding
	at, subjects := map[same]int{}, map[same][]string{}
	for _, f := range findings {
		k := same{f.Level, f.Area, f.What, f.Do}
		if _, told := at[k]; !told {
			at[k] = len(all)
			all = append(all, f)
		}
		shard, _, _ := strings.Cut(f.Subject, "/")
		last := len(subjects[k]) - 1
		name, isMember := strings.CutPrefix(f.Subject, shard+"/")
		if last >= 0 && isMember && strings.HasPrefix(subjects[k][last], shard+"/") {
			subjects[k][last] += ", " + name
			continue
		}
		if !slices.Contains(subjects[k], f.Subject) {
			subjects[k] = append(subjects[k], f.Subject)
		}
	}
	for k, i := range at {
		all[i].Subject = strings.Join(subjects[k], "\n")
	}
	return all
}

// examineConfig checks the configuration file as the agent would, if it is one.
func examineConfig(ctx context.Context, s Settings, environ []string) []Finding {
	d := diagnosis{area: "config"}
	_, isAgents := s.Other["name"]
	if s.Path == "" || !isAgents {
		return nil
	}
	cfg, warnings, err := config.Load(config.Source{Path: s.Path, Environ: environ})
	if err == nil {
		var more []config.Warning
		more, err, _ = postgres.CheckFile(ctx, cfg.Postgres, cfg.Bootstrap.DCS) // where PostgreSQL is not installed it cannot be asked
		warnings = append(warnings, more...)
	}
	for _, w := range warnings {
		d.add(Worth, s.Path, "see lictor validate", "%s", w)
	}
	if err != nil {
		d.add(Wrong, s.Path, "correct it; lictor validate checks it again", "%v", err)
	}
	if len(d.findings) == 0 {
		d.fine(s.Path, "the configuration is valid")
	}
	return d.findings
}

// shortestLease is the shortest ttl of all shards, zero when there are none.
func shortestLease(f fleet) time.Duration {
	var shortest time.Duration
	for _, s := range f.shards {
		if s.dynamic.TTL > 0 && (shortest == 0 || s.dynamic.TTL < shortest) {
			shortest = s.dynamic.TTL
		}
	}
	return shortest
}

// databaseHosts are the hosts that members' PostgreSQL is reached at.
func databaseHosts(f fleet) []string {
	var hosts []string
	for _, s := range f.shards {
		for _, m := range s.snapshot.Members {
			if host, _, err := m.Value.Address(); err == nil && !slices.Contains(hosts, host) {
				hosts = append(hosts, host)
			}
		}
	}
	return hosts
}
