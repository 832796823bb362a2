package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/drill"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/placement"
)

// fakeDrill is a shard that does what a test says, and notes what is done with it.
type fakeDrill struct {
	scope string
	did   *[]string
	// What each step returns; begun is strike's.
	wellErr, probeErr, strikeErr, restoreErr, againErr error
	begun                                              bool
	leader                                             string // after it
	result                                             *drill.Result
	onStrike                                           func()
	restoredWith                                       error // of the context
}

func (f *fakeDrill) note(what string) { *f.did = append(*f.did, f.scope+" "+what) }

func (f *fakeDrill) well(context.Context) (drillTarget, error) {
	f.note("well")
	return drillTarget{Target: drill.Target{Shard: f.scope, Member: "a", Host: "db1"}}, f.wellErr
}

func (f *fakeDrill) probe(context.Context, drillTarget) (drillProbe, error) {
	if f.probeErr != nil || f.result == nil {
		return nil, f.probeErr
	}
	f.note("probe")
	return fakeProbe{f}, nil
}

func (f *fakeDrill) strike(context.Context, drillTarget) (bool, error) {
	f.note("strike")
	if f.onStrike != nil {
		f.onStrike()
	}
	return f.begun, f.strikeErr
}

func (f *fakeDrill) restore(ctx context.Context, _ drillTarget) error {
	f.note("restore")
	f.restoredWith = ctx.Err()
	return f.restoreErr
}

func (f *fakeDrill) again(ctx context.Context, _ drillTarget) (string, error) {
	f.note("again")
	return f.leader, errors.Join(f.againErr, ctx.Err())
}

func (f *fakeDrill) recorded(context.Context, drillTarget, string) ([]events.Event, string, error) {
	return nil, "", nil
}
func (f *fakeDrill) close() {}

type fakeProbe struct{ f *fakeDrill }

func (p fakeProbe) Answers(context.Context, int64) error { return nil }
func (p fakeProbe) Mode() drill.Mode                     { return drill.Writes }
func (p fakeProbe) Stop(context.Context) drill.Result {
	p.f.note("stop")
	return *p.f.result
}

// A drill goes from one shard to the next until the first surprise, always brings back what it has
// taken away, and ends with the exit code of what it met with.
func TestDrillStopsAtTheFirstSurprise(t *testing.T) {
	wrote := func(edit func(*drill.Result)) func(*fakeDrill) {
		return func(f *fakeDrill) {
			f.result = &drill.Result{Mode: drill.Writes, Run: "R", Attempts: 50, Acked: 50, GapMS: 900}
			if edit != nil {
				edit(f.result)
			}
		}
	}
	failed := wrote(func(r *drill.Result) { r.Errors, r.Failures = 2, []drill.Failure{{Text: "server closed"}} })
	for _, c := range []struct {
		name    string
		kind    string
		maxWait time.Duration
		second  func(*fakeDrill) // of three shards
		cancel  bool             // while the second is struck
		code    int
		says    string
		states  []drill.State
		did     string // with the second one
	}{
		{name: "all is well", second: wrote(nil), did: "well probe strike again stop"},
		{name: "no client", did: "well strike again"},
		{
			name: "not well before", second: func(f *fakeDrill) { f.wellErr = surprise("mend it", "not well before: no leader") },
			code: ExitSurprise, says: "s2: not well before: no leader; 1 of 3 shards went well, 1 were not begun; what to do: mend it", did: "well",
		},
		{name: "Consul is gone", second: func(f *fakeDrill) { f.wellErr = errors.New("no answer") }, code: ExitSurprise, says: "s2: no answer", did: "well"},
		{
			name: "no client gets in", second: func(f *fakeDrill) { f.probeErr = surprise("see --probe", "password") },
			code: ExitSurprise, says: "password", did: "well",
		},
		{
			name: "refused when it came to it", second: func(f *fakeDrill) { wrote(nil)(f); f.strikeErr = surprise("", "refused") },
			code: ExitSurprise, says: "refused", did: "well probe strike stop",
		},
		{
			name: "rolled back", second: func(f *fakeDrill) { wrote(nil)(f); f.begun, f.strikeErr = true, surprise("", "rolled back") },
			code: ExitSurprise, says: "rolled back", did: "well probe strike again stop",
		},
		{
			name: "an error in a switchover", second: failed,
			code: ExitSurprise, says: "clients saw 2 errors, where there must be none; the first: server closed", did: "well probe strike again stop",
		},
		{name: "an error in a restart", kind: DrillRestart, second: failed, code: ExitSurprise, says: "clients saw 2 errors", did: "well probe strike again stop"},
		{name: "an error where the leader is lost", kind: DrillHost, second: failed, did: "well probe strike restore again stop"},
		{
			name: "an agent that came back", kind: DrillKillAgent, second: func(f *fakeDrill) { failed(f); f.leader = "a" },
			code: ExitSurprise, says: "clients saw 2 errors", did: "well probe strike restore again stop",
		},
		{name: "an agent that came too late", kind: DrillKillAgent, second: failed, did: "well probe strike restore again stop"},
		{
			name: "a lost row", kind: DrillHost, second: wrote(func(r *drill.Result) { r.Lost, r.LostIDs = 1, []int64{7} }),
			code: ExitSurprise, says: "acknowledged rows are missing: 1", did: "well probe strike restore again stop",
		},
		{
			name: "a lost row says more than a late replica", kind: DrillHost,
			second: func(f *fakeDrill) {
				wrote(func(r *drill.Result) { r.Lost = 1 })(f)
				f.againErr = surprise("", "not well again")
			},
			code: ExitSurprise, says: "acknowledged rows are missing", did: "well probe strike restore again stop",
		},
		{
			name: "rows that cannot be read", kind: DrillHost, second: wrote(func(r *drill.Result) { r.Unchecked = "no answer in time" }),
			code: ExitSurprise, says: "whether rows are lost is not known: no answer in time", did: "well probe strike restore again stop",
		},
		{
			name: "a long wait", kind: DrillHost, maxWait: 800 * time.Millisecond, second: wrote(nil),
			code: ExitSurprise, says: "a client waited 900 ms, more than --max-wait 800ms", did: "well probe strike restore again stop",
		},
		{
			name: "nobody takes over", kind: DrillHost, second: func(f *fakeDrill) { wrote(nil)(f); f.begun, f.strikeErr = true, surprise("", "nobody leads") },
			code: ExitSurprise, says: "nobody leads", did: "well probe strike restore again stop",
		},
		{
			name: "it does not come back", kind: DrillHost, second: func(f *fakeDrill) { f.restoreErr = surprise("by hand", "--restore has failed") },
			code: ExitSurprise, says: "--restore has failed", did: "well strike restore",
		},
		{
			name: "the answer was no", kind: DrillHost, second: func(f *fakeDrill) { f.strikeErr = refusedf("the answer was no") },
			code: ExitFailed, says: "the answer was no", did: "well strike",
			states: []drill.State{drill.Passed, drill.Interrupted, drill.NotBegun},
		},
		{
			name: "interrupted", kind: DrillHost, cancel: true, second: func(f *fakeDrill) { f.begun, f.strikeErr = true, errors.New("interrupted") },
			code: ExitFailed, says: "interrupted", did: "well strike restore again",
			states: []drill.State{drill.Passed, drill.Interrupted, drill.NotBegun},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var did []string
			second := &fakeDrill{scope: "s2", did: &did, begun: true, leader: "b"}
			if c.second != nil {
				second.begun = false
				c.second(second)
				second.begun = second.begun || second.strikeErr == nil
			}
			if c.cancel {
				second.onStrike = cancel
			}
			var out, progress bytes.Buffer
			d := drillRun{
				c: &Console{Out: &out, Err: &progress, Format: JSON}, o: DrillOptions{Kind: DrillSwitchover, Limit: time.Minute, MaxWait: c.maxWait},
				open: func(_ context.Context, scope string) (drillShard, error) {
					if scope == "s2" {
						return second, nil
					}
					return &fakeDrill{scope: scope, did: &did, begun: true, leader: "b"}, nil
				},
				report: drill.Report{Shards: []drill.Shard{{Name: "s1", State: drill.NotBegun}, {Name: "s2", State: drill.NotBegun}, {Name: "s3", State: drill.NotBegun}}},
			}
			if c.kind != "" {
				d.o.Kind = c.kind
			}
			err := d.run(ctx)
			if ExitCode(err) != c.code || err != nil && !strings.Contains(err.Error(), c.says) || err != nil && c.says == "" {
				t.Errorf("exit code %d: %v; want %d: %s", ExitCode(err), err, c.code, c.says)
			}
			want := c.states
			switch {
			case want != nil:
			case c.code == 0:
				want = []drill.State{drill.Passed, drill.Passed, drill.Passed}
			default:
				want = []drill.State{drill.Passed, drill.Surprised, drill.NotBegun}
			}
			var states []drill.State
			var rows []map[string]any
			if err := json.Unmarshal(out.Bytes(), &rows); err != nil {
				t.Fatalf("%v: %s", err, out.Bytes())
			}
			for _, row := range rows {
				states = append(states, drill.State(row["state"].(string)))
			}
			if !slices.Equal(states, want) {
				t.Errorf("states: %q, want %q; %s", states, want, progress.String())
			}
			var mine []string
			for _, what := range did {
				if name, step, _ := strings.Cut(what, " "); name == "s2" {
					mine = append(mine, step)
				} else if name == "s3" && c.code != 0 {
					t.Errorf("after the surprise: %s", what)
				}
			}
			if got := strings.Join(mine, " "); got != c.did {
				t.Errorf("done: %s; want %s", got, c.did)
			}
			if second.restoredWith != nil {
				t.Errorf("it is brought back within a context that has ended: %v", second.restoredWith)
			}
		})
	}
}

// Refused before anything was done, a drill has changed nothing.
func TestDrillThatIsRefused(t *testing.T) {
	var did []string
	d := drillRun{
		c: &Console{Out: t.Output(), Err: t.Output()}, o: DrillOptions{Kind: DrillSwitchover},
		open: func(_ context.Context, scope string) (drillShard, error) {
			return &fakeDrill{scope: scope, did: &did, wellErr: refusedf("outside the windows")}, nil
		},
		report: drill.Report{Shards: []drill.Shard{{Name: "s1", State: drill.NotBegun}}},
	}
	if err := d.run(t.Context()); ExitCode(err) != ExitRefused {
		t.Errorf("%v", err)
	}
}

func TestDrillOptions(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		edit func(*DrillOptions)
		want string // empty: nothing is wrong
	}{
		{edit: func(*DrillOptions) {}},
		{edit: func(o *DrillOptions) { o.All, o.Count = true, 2 }, want: "one of them"},
		{edit: func(o *DrillOptions) { o.Scopes, o.All = []string{"x"}, true }, want: "one of them"},
		{edit: func(o *DrillOptions) { o.Count = -1 }, want: "--shards: -1"},
		{edit: func(o *DrillOptions) { o.Kind = "meteor" }, want: `--kind: "meteor"`},
		{edit: func(o *DrillOptions) { o.Cut = "ssh %h" }, want: "--cut, --restore and --hosts are for"},
		{edit: func(o *DrillOptions) { o.Kind, o.Cut = DrillHost, "ssh '%h" }, want: "--cut: "},
		{edit: func(o *DrillOptions) { o.Kind, o.Cut = DrillHost, "%h" }, want: "the program itself"},
		{edit: func(o *DrillOptions) { o.Kind, o.Cut, o.Force = DrillHost, "ssh %h", true }, want: "--cut without --restore"},
		{edit: func(o *DrillOptions) { o.Kind, o.Cut, o.Force = DrillKillAgent, "ssh %h", true }, want: "--hosts"},
		{edit: func(o *DrillOptions) {
			o.Kind, o.Cut, o.Force, o.Hosts = DrillKillAgent, "ssh %h", true, []string{"db1"}
		}},
		{edit: func(o *DrillOptions) { o.Hosts = []string{"db1"} }, want: "--hosts are for"},
		{edit: func(o *DrillOptions) { o.Kind, o.Cut, o.Schedule = DrillKillAgent, "ssh %h", "+1h" }, want: "nobody may be there"},
		{edit: func(o *DrillOptions) { o.Kind, o.Cut, o.Restore = DrillHost, "off %h", "on %h" }},
		{edit: func(o *DrillOptions) { o.Schedule = "2026-11-30T11:00Z" }, want: "in the past"},
		{edit: func(o *DrillOptions) { o.Schedule = "2026-11-30T13:00Z" }},
		{edit: func(o *DrillOptions) { o.MaxWait = time.Second }, want: "nothing is measured"},
		{edit: func(o *DrillOptions) { o.Limit = 0 }, want: "--limit"},
	} {
		o := DrillOptions{Kind: DrillSwitchover, ProbeTimeout: time.Second, Limit: time.Minute}
		c.edit(&o)
		_, _, _, err := o.validate(now)
		if c.want == "" && err != nil || c.want != "" && (ExitCode(err) != ExitUsage || !strings.Contains(fmt.Sprint(err), c.want)) {
			t.Errorf("%+v: %v, want %q", o, err, c.want)
		}
	}
}

// drillFleet is a fleet of shards of these names, all alike.
func drillFleet(edit func(*fleetShard), scopes ...string) fleet {
	var f fleet
	for _, scope := range scopes {
		s := fleetShard{scope: scope, snapshot: shardOf(nil)}
		if edit != nil {
			edit(&s)
		}
		f.shards = append(f.shards, s)
	}
	return f
}

func TestDrillChooses(t *testing.T) {
	f := drillFleet(nil, "a", "b", "c")
	site := &Site{}
	for _, c := range []struct {
		o    DrillOptions
		want string
		code int
	}{
		{o: DrillOptions{All: true}, want: "a b c"},
		{o: DrillOptions{Scopes: []string{"c", "a", "c"}}, want: "c a"},
		{o: DrillOptions{Scopes: []string{"c", "x"}}, code: ExitFailed},
		{o: DrillOptions{Count: 4}, code: ExitUsage},
		{o: DrillOptions{}, code: ExitUsage},
	} {
		got, err := c.o.choose(drillFleet(nil, "a", "b", "c"), site)
		if ExitCode(err) != c.code || strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v, %v", c.o, got, err)
		}
	}
	got, err := DrillOptions{Count: 2}.choose(f, site)
	if err != nil || len(got) != 2 || got[0] >= got[1] {
		t.Errorf("two by chance: %v, %v", got, err)
	}
	configured := &Site{}
	configured.Scope = "b"
	if got, err := (DrillOptions{}).choose(drillFleet(nil, "a", "b"), configured); err != nil || !slices.Equal(got, []string{"b"}) {
		t.Errorf("the configured one: %v, %v", got, err)
	}
}

// Outside the windows nothing is asked, and nothing is done; a time that is scheduled counts instead
// of now.
func TestDrillKeepsToWindows(t *testing.T) {
	now := time.Now().UTC()
	in := now.Add(2 * time.Hour)
	var windows cluster.Windows
	for what, around := range map[string]time.Time{"handover": in, "restart": in.Add(6 * time.Hour)} {
		w, err := cluster.ParseWindow(around.Add(-time.Hour).Format("15:04") + "-" + around.Add(time.Hour).Format("15:04") + " for " + what)
		if err != nil {
			t.Fatal(err)
		}
		windows = append(windows, w)
	}
	page := filepath.Join(t.TempDir(), "drill.html")
	for _, c := range []struct {
		name, kind string
		when       *time.Time
		outside    bool
		want       string
	}{
		{name: "now", kind: DrillSwitchover, want: "outside the maintenance windows of the shard for a handover"},
		{name: "now, all the same", kind: DrillSwitchover, outside: true, want: "the answer was"},
		{name: "within", kind: DrillSwitchover, when: &in, want: "the answer was"},
		{name: "within, for another kind", kind: DrillRestart, when: &in, want: "for a restart"},
		{name: "a host restarts what is on it", kind: DrillHost, when: &in, want: "for a restart"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var said bytes.Buffer
			d := drillRun{
				c: &Console{In: strings.NewReader("n\n"), Out: &said, Err: &said}, o: DrillOptions{Kind: c.kind, OutsideWindow: c.outside, Report: page},
				scopes: []string{"x"},
			}
			f := drillFleet(func(s *fleetShard) { s.dynamic.MaintenanceWindows = windows }, "x")
			if err := d.prepare(t.Context(), f, &Site{}, c.when); ExitCode(err) != ExitRefused || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if asked := strings.Contains(said.String(), "A drill on the real fleet"); asked != (c.want == "the answer was") {
				t.Errorf("asked: %s", said.String())
			}
			if _, err := os.Stat(page); err == nil {
				t.Error("a report of nothing")
			}
		})
	}
}

// A drill that is scheduled waits for its time, and does nothing when it is interrupted before.
func TestDrillWaitsForItsTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	soon, later := time.Now().Add(50*time.Millisecond), time.Now().Add(time.Hour)
	page := filepath.Join(t.TempDir(), "drill.html")
	d := drillRun{c: &Console{Out: t.Output(), Err: t.Output()}, o: DrillOptions{Kind: DrillSwitchover, Force: true, Report: page}, scopes: []string{"x"}}
	if err := d.prepare(ctx, drillFleet(nil, "x"), &Site{}, &soon); err != nil || time.Now().Before(soon) {
		t.Errorf("%v", err)
	}
	if content, err := os.ReadFile(page); err != nil || !strings.Contains(string(content), "under way") {
		t.Errorf("the report: %v", err)
	}
	cancel()
	if err := d.prepare(ctx, drillFleet(nil, "x"), &Site{}, &later); ExitCode(err) != ExitRefused || !strings.Contains(err.Error(), "before it was time") {
		t.Errorf("%v", err)
	}
}

func TestAnySuccessor(t *testing.T) {
	unfit := placement.Problem{What: "b lags"}
	lead := placement.Member{Name: "a"}
	for _, c := range []struct {
		shard placement.Shard
		want  string
	}{
		{placement.Shard{Name: "x", Leader: lead, Others: []placement.Member{{Name: "b", Unfit: unfit}, {Name: "c"}}}, "c"},
		{placement.Shard{Name: "x", Leader: lead, Others: []placement.Member{{Name: "b", Unfit: unfit}}}, "b lags"},
		{placement.Shard{Name: "x", Leader: lead, Stuck: placement.Problem{What: "paused"}, Others: []placement.Member{{Name: "c"}}}, "paused"},
		{placement.Shard{Name: "x", Leader: lead}, "it has no other member"},
	} {
		plan := anySuccessor([]placement.Shard{c.shard})
		got := ""
		if len(plan.Moves) == 1 {
			got = plan.Moves[0].To.Name
		} else if len(plan.Stays) == 1 {
			got = plan.Stays[0].Why.What
		}
		if got != c.want || len(plan.Moves)+len(plan.Stays) != 1 {
			t.Errorf("%+v: %q, want %q", c.shard, got, c.want)
		}
	}
}

// A lost host concerns all shards with members there, everything else the shard alone.
func TestDrillConcerns(t *testing.T) {
	other := fleetShard{scope: "y", snapshot: shardOf(nil)}
	elsewhere := fleetShard{scope: "z", snapshot: shardOf(func(s *cluster.Snapshot) { s.Members = s.Members[1:] })}
	target := drillTarget{Target: drill.Target{Host: "10.0.0.1"}}
	for _, c := range []struct {
		kind string
		s    fleetShard
		want bool
	}{
		{DrillHost, other, true},
		{DrillHost, elsewhere, false},
		{DrillSwitchover, other, false},
		{DrillKillAgent, other, false},
		{DrillSwitchover, fleetShard{scope: "x"}, true},
	} {
		d := shardDrill{shard: &Shard{Scope: "x"}, o: DrillOptions{Kind: c.kind}}
		if got := d.concerned(c.s, target); got != c.want {
			t.Errorf("%s of %s: %t", c.kind, c.s.scope, got)
		}
	}
}

func TestAsBefore(t *testing.T) {
	members := []string{"a", "b", "c"}
	for _, c := range []struct {
		name string
		edit func(*cluster.Snapshot)
		want string
	}{
		{name: "as before"},
		{name: "another leads", edit: func(s *cluster.Snapshot) {
			s.Leader.Value, s.Route.Value.Leader.Name = "b", "b"
			s.Members[0].Value.Role, s.Members[1].Value.Role = cluster.RoleReplica, cluster.RolePrimary
			s.Members[0].Value.ReplicationState, s.Status.Value.Lictor.Owner = "streaming", "b"
		}},
		{name: "gone", edit: func(s *cluster.Snapshot) { s.Members = s.Members[:2] }, want: "c is not back"},
		{name: "stopped", edit: func(s *cluster.Snapshot) { s.Members[2].Value.State = cluster.StateStopped }, want: "c is not back: it is stopped"},
		{name: "no stream", edit: func(s *cluster.Snapshot) { s.Members[2].Value.ReplicationState = "" }, want: "c does not replicate"},
		{name: "nobody leads", edit: func(s *cluster.Snapshot) { s.Leader = cluster.Entry[string]{} }, want: "no leader"},
		{name: "its old key", edit: func(s *cluster.Snapshot) {
			s.Leader.Value, s.Route.Value.Leader.Name, s.Leader.ModifyIndex = "b", "b", 9
			s.Members[1].Value.Role, s.Members[1].ModifyIndex = cluster.RolePrimary, 10
		}, want: "a is not back"},
	} {
		s := fleetShard{scope: "x", snapshot: shardOf(c.edit)}
		err := s.asBefore(members)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestSlowest(t *testing.T) {
	phases := func(ms ...int64) (all []events.Phase) {
		for i, at := range ms {
			all = append(all, events.Phase{Name: phaseColumns()[i], AtMS: at})
		}
		return all
	}
	for _, c := range []struct {
		e    events.Event
		want string
	}{
		{events.Event{Kind: events.Failover, TookMS: 8500, Phases: phases(8100, 8150, 8400, 8500)}, `of the failover of 8.5 s, to the phase "noticed" took longest, 8.1 s: the lease`},
		{events.Event{Kind: events.Switchover, TookMS: 900, Phases: phases(500, 510, 800, 900)}, `"noticed" took longest, 500 ms: the poolers held the clients`},
		{events.Event{Kind: events.Failover, TookMS: 9000, Phases: phases(1000, 1100, 8000, 9000)}, `"promoted" took longest, 6.9 s`},
		{events.Event{Kind: events.Failover}, ""},
		{events.Event{Kind: events.Crash, Phases: phases(1)}, ""},
	} {
		if got := slowest(c.e); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%+v: %q, want %q", c.e, got, c.want)
		}
	}
}

// Programs get the same names in all formats.
func TestDrillTable(t *testing.T) {
	at := time.Date(2026, 11, 30, 2, 0, 0, 0, time.UTC)
	table := drillTable(drill.Report{Kind: DrillHost, Shards: []drill.Shard{
		{
			Name: "orders", State: drill.Surprised, From: "a", To: "b", Host: "db1", What: "1 row is missing", Do: "look", Began: at, Took: 9 * time.Second,
			Steps: []drill.Step{{Name: "checks", TookMS: 12}}, Notes: []string{"a note"}, Events: []events.Event{{At: at, Kind: events.Failover, To: "b"}},
			Probe: &drill.Result{Mode: drill.Writes, Attempts: 9, Acked: 8, Errors: 1, Failures: []drill.Failure{{At: at, Text: "closed"}}, GapMS: 8123, GapAt: at, Lost: 1, LostIDs: []int64{4}},
		},
		{Name: "users", State: drill.NotBegun},
	}})
	var rows [2][]map[string]any
	for i, format := range []Format{JSON, YAML} {
		var out bytes.Buffer
		if err := table.Write(&out, format, false); err != nil {
			t.Fatal(err)
		}
		read := json.Unmarshal
		if format == YAML {
			read = yaml.Unmarshal
		}
		if err := read(out.Bytes(), &rows[i]); err != nil {
			t.Fatalf("%s: %v\n%s", format, err, out.Bytes())
		}
		first := rows[i][0]
		probe, _ := first["probe"].(map[string]any)
		if fmt.Sprintln(first["gap_ms"], first["errors"], first["lost"], probe["gap_ms"], probe["lost_ids"], first["kind"]) != "8123 1 1 8123 [4] host\n" || first["steps"] == nil || first["events"] == nil {
			t.Errorf("%s: %v", format, first)
		}
		if len(rows[i][1]) != 3 { // shard, kind, state
			t.Errorf("%s: of one that was not begun: %v", format, rows[i][1])
		}
	}
	shown := pretty(t, table)
	for _, want := range []string{"orders", "8.1 s", "1 row is missing", "checks 12 ms", "what to do: look", "a note", "its first error: closed"} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %q in:\n%s", want, shown)
		}
	}
}
