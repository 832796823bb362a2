package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/placement"
)

// Who can take over from a, by what Consul tells: b or c, or why not.
func TestPlaced(t *testing.T) {
	later := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	failover := func(f cluster.Failover) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) {
			s.Failover = cluster.Entry[cluster.Failover]{Value: f, ModifyIndex: 1}
		}
	}
	tags := func(name string, value any) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) { s.Members[1].Value.Tags = map[string]any{name: value} }
	}
	for _, c := range []struct {
		name    string
		edit    func(*cluster.Snapshot)
		dynamic cluster.Dynamic
		problem error
		stuck   string
		b       string // why b cannot; c can
	}{
		{name: "all is well"},
		{name: "nofailover", edit: tags("nofailover", true), b: "tagged nofailover"},
		{name: "priority 0", edit: tags("failover_priority", 0), b: "tagged nofailover"},
		{name: "nostream", edit: tags("nostream", true), b: "tagged nostream"},
		{name: "no key that can be read", edit: func(s *cluster.Snapshot) { s.Members[1].Err = errors.New("no JSON") }, b: "no readable member key"},
		{name: "nowhere", edit: func(s *cluster.Snapshot) { s.Members[1].Value.ConnURL = "" }, b: "has no address"},
		{name: "down", edit: func(s *cluster.Snapshot) { s.Members[1].Value.State = cluster.StateStopped }, b: "is stopped"},
		{name: "another primary", edit: func(s *cluster.Snapshot) { s.Members[1].Value.Role = cluster.RolePrimary }, b: "says that it is a primary"},
		{name: "another timeline", edit: func(s *cluster.Snapshot) { s.Members[1].Value.Timeline = 1 }, b: "is on timeline 1, the leader on 2"},
		{name: "does not replicate", edit: func(s *cluster.Snapshot) { s.Members[1].Value.ReplicationState = "" }, b: "does not replicate"},
		{name: "lags", edit: func(s *cluster.Snapshot) { s.Members[1].Value.XLogLocation -= 20 << 20 }, b: "lags 20 MB"},
		{name: "not in the failsafe list", edit: func(s *cluster.Snapshot) {
			s.Failsafe = cluster.Entry[map[string]string]{Value: map[string]string{"a": "", "c": ""}, ModifyIndex: 1}
		}, b: "is not in the failsafe list"},
		{name: "WAL that was discarded", edit: func(s *cluster.Snapshot) {
			s.Status.Value.Lictor.Discarded = 1
			s.Members[1].Value.Timeline, s.Members[0].Value.Timeline = 1, 0
		}, b: "restore has discarded"},
		{name: "no synchronous standby", edit: func(s *cluster.Snapshot) {
			s.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync("a", []string{"c"}), ModifyIndex: 1}
		}, dynamic: cluster.Dynamic{SynchronousMode: cluster.SyncOn}, b: "is no synchronous standby"},
		{name: "nobody leads", edit: func(s *cluster.Snapshot) { s.Leader = cluster.Entry[string]{} }, stuck: "it has no leader"},
		{name: "a leader that is no member", edit: func(s *cluster.Snapshot) { s.Leader.Value = "x" }, stuck: "x has no readable member key"},
		{name: "paused", dynamic: cluster.Dynamic{Pause: true}, stuck: "it is paused: lictor resume x"},
		{name: "configuration", problem: errors.New("ttl"), stuck: "its dynamic configuration is not valid: ttl"},
		{
			name: "a standby shard", edit: func(s *cluster.Snapshot) { s.Members[0].Value.Role = cluster.RoleStandbyLeader },
			dynamic: cluster.Dynamic{StandbyCluster: cluster.StandbyCluster{Host: "x"}, SynchronousMode: cluster.SyncOn},
		},
		{name: "a primary that is to follow another site", dynamic: cluster.Dynamic{StandbyCluster: cluster.StandbyCluster{Host: "x"}}, stuck: "as a primary"},
		{name: "scheduled", edit: failover(cluster.Failover{Leader: "a", ScheduledAt: &later}), stuck: "a switchover is scheduled for 2099"},
		{name: "under way", edit: failover(cluster.Failover{Leader: "a", Candidate: "b"}), stuck: "asked for already"},
		{name: "an empty request", edit: failover(cluster.Failover{})},
		{name: "the leader is down", edit: func(s *cluster.Snapshot) { s.Members[0].Value.State = cluster.StateStarting }, stuck: "its leader a is starting"},
		{name: "the leader is not promoted", edit: func(s *cluster.Snapshot) { s.Members[0].Value.Role = cluster.RoleReplica }, stuck: "as a replica"},
		{name: "another one's beat", edit: func(s *cluster.Snapshot) { s.Status.Value.Lictor.Owner = "b" }, stuck: "has just taken the lock"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.dynamic.MaximumLagOnFailover = 1 << 20
			s := fleetShard{scope: "x", snapshot: shardOf(c.edit), dynamic: c.dynamic, problem: c.problem}
			p := s.placed(DefaultZoneTag)
			if got := p.Stuck.String(); (got == "") != (c.stuck == "") || !strings.Contains(got, c.stuck) {
				t.Errorf("stuck: %q, want %q", got, c.stuck)
			}
			if c.stuck != "" {
				return
			}
			if p.Leader.Name != "a" || p.Leader.Host != "10.0.0.1" || len(p.Others) != 2 {
				t.Fatalf("%+v", p)
			}
			if got := p.Others[0].Unfit; got.Exists() != (c.b != "") || !strings.Contains(got.What, c.b) || got.Exists() && got.Do == "" {
				t.Errorf("b: %q, want %q", got, c.b)
			}
			if got := p.Others[1].Unfit; got.Exists() {
				t.Errorf("c: %q", got)
			}
			err := s.stillFit(placement.Move{Shard: "x", From: p.Leader, To: p.Others[0]})
			if (err == nil) != (c.b == "") || err != nil && ExitCode(err) != ExitRefused {
				t.Errorf("before the move: %v", err)
			}
		})
	}
	s := fleetShard{scope: "x", snapshot: shardOf(nil)}
	if err := s.stillFit(placement.Move{From: placement.Member{Name: "b"}, To: placement.Member{Name: "c"}}); ExitCode(err) != ExitRefused || !strings.Contains(err.Error(), "led by a by now") {
		t.Errorf("another leader: %v", err)
	}
	if err := s.stillFit(placement.Move{From: placement.Member{Name: "a"}, To: placement.Member{Name: "z"}}); ExitCode(err) != ExitRefused {
		t.Errorf("no member any more: %v", err)
	}
}

// What a member's own answer has against it.
func TestInspect(t *testing.T) {
	replica := memberStatus{State: cluster.StateRunning, Role: cluster.RoleReplica, ReplicationState: "streaming", Lictor: &lictorStatus{}}
	primary := memberStatus{State: cluster.StateRunning, Role: cluster.RolePrimary, Lictor: &lictorStatus{}}
	edited := func(s memberStatus, edit func(*memberStatus)) memberStatus {
		edit(&s)
		return s
	}
	noWatchdog := &lictorStatus{}
	noWatchdog.Watchdog = &struct {
		Mode      string `json:"mode"`
		Device    string `json:"device"`
		Working   bool   `json:"working"`
		LastError string `json:"last_error"`
		LastReset string `json:"last_reset"`
	}{Mode: "required"}
	for _, c := range []struct {
		name   string
		status memberStatus
		err    error
		leads  bool
		want   string
	}{
		{"a leader", primary, nil, true, ""},
		{"a replica", replica, nil, false, ""},
		{"one of Patroni's", memberStatus{State: cluster.StateRunning, Role: cluster.RoleReplica}, nil, false, ""},
		{"silent", memberStatus{}, context.DeadlineExceeded, false, "does not answer in time"},
		{"not there", memberStatus{}, errors.New("connection refused"), true, "connection refused"},
		{"starting", edited(replica, func(s *memberStatus) { s.State = cluster.StateStarting }), nil, false, "is starting"},
		{"without Consul", edited(primary, func(s *memberStatus) { s.Failsafe = true }), nil, true, "goes on without Consul"},
		{"a leader that is none", replica, nil, true, "is no primary"},
		{"a replica that is none", primary, nil, false, "is a primary"},
		{"does not stream", edited(replica, func(s *memberStatus) { s.ReplicationState = "" }), nil, false, "does not stream"},
		{"no watchdog", edited(replica, func(s *memberStatus) { s.Lictor = noWatchdog }), nil, false, "watchdog"},
	} {
		got := inspect(cluster.Member{Name: "b"}, c.status, c.err, c.leads)
		if got.Exists() != (c.want != "") || !strings.Contains(got.What, c.want) || got.Exists() && got.Do == "" {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestHostThatIsMeant(t *testing.T) {
	shard := func(scope string, members ...cluster.Member) fleetShard {
		s := fleetShard{scope: scope}
		for _, m := range members {
			s.snapshot.Members = append(s.snapshot.Members, cluster.Entry[cluster.Member]{Value: m, ModifyIndex: 1})
		}
		return s
	}
	at := func(name, host string, tag ...string) cluster.Member {
		m := cluster.Member{Name: name, ConnURL: "postgres://" + host + ":5432/postgres"}
		if len(tag) > 0 {
			m.Tags = map[string]any{"host": tag[0]}
		}
		return m
	}
	f := fleet{shards: []fleetShard{
		shard("s1", at("db1", "10.0.0.1"), at("db2", "10.0.0.2"), at("x", "10.0.1.3", "rack3")),
		shard("s2", at("db1", "10.0.0.1"), at("db2", "10.0.0.3"), at("y", "10.0.2.3", "rack3"), cluster.Member{Name: "nowhere"}, at("z", "10.0.0.9", "a/b")),
	}}
	for name, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "db1": "10.0.0.1", "DB1": "10.0.0.1", "rack3": "rack3", "10.0.1.3": "rack3", "y": "rack3", "z": "10.0.0.9",
		"db2": "refused: db2 may be any of the hosts 10.0.0.2, 10.0.0.3", "db9": "refused: no member of any shard runs on db9; hosts are 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.9, rack3",
		"nowhere": "refused: no member of any shard runs on nowhere",
	} {
		got, err := f.host(name)
		if err != nil {
			got = map[bool]string{true: "refused: "}[ExitCode(err) == ExitRefused] + err.Error()
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// Who led before a move leads again, unless that cannot be.
func TestBack(t *testing.T) {
	member := func(name string, unfit string) placement.Member {
		return placement.Member{Name: name, Host: name, Unfit: placement.Problem{What: unfit}}
	}
	shards := []placement.Shard{
		{Name: "s1", Leader: member("b", ""), Others: []placement.Member{member("a", ""), member("c", "")}},
		{Name: "s2", Leader: member("a", ""), Others: []placement.Member{member("b", "")}},
		{Name: "s3", Leader: member("b", ""), Others: []placement.Member{member("a", "a lags")}},
		{Name: "s4", Leader: member("b", ""), Others: []placement.Member{member("c", "")}},
		{Name: "s5", Leader: member("b", ""), Others: []placement.Member{member("a", "")}, Stuck: placement.Problem{What: "it is paused"}},
		{Name: "s6", Leader: member("c", ""), Others: []placement.Member{member("a", ""), member("b", "")}},
	}
	var noted []movedLeader
	for _, shard := range []string{"s6", "s5", "s4", "s3", "s2", "s1", "gone"} {
		noted = append(noted, movedLeader{Shard: shard, From: "a", To: "b"})
	}
	plan := back(shards, noted)
	var got []string
	for _, m := range plan.Moves {
		got = append(got, m.Shard+">"+m.To.Name)
	}
	for _, s := range plan.Stays {
		got = append(got, s.Shard+"="+s.Why.What)
	}
	want := "s1>a s6>a gone=there is no such shard any more s3=a lags s4=a is not a member any more s5=it is paused"
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Moves are carried out some at a time, each noted before it is begun, until one does not go well;
// those under way are waited for.
func TestMover(t *testing.T) {
	moves := make([]placement.Move, 6)
	for i := range moves {
		moves[i] = placement.Move{Shard: fmt.Sprintf("s%d", i), From: placement.Member{Name: "a"}, To: placement.Member{Name: "b"}}
	}
	for _, c := range []struct {
		name     string
		parallel int
		fails    map[string]error // by shard
		states   string
		code     int
		say      string
	}{
		{"all is well", 2, nil, "moved moved moved moved moved moved", ExitDone, ""},
		{"more at a time than there are", 20, nil, "moved moved moved moved moved moved", ExitDone, ""},
		{"the first is refused", 1, map[string]error{"s0": refusedf("b lags")}, "refused not begun not begun not begun not begun not begun", ExitRefused, "s0: b lags; 0 of 6 leaders were handed over, 5 were not begun; go on"},
		{"the first is rolled back", 1, map[string]error{"s0": rolledBack(errors.New("b hangs"))}, "rolled back not begun not begun not begun not begun not begun", ExitRolledBack, "b hangs"},
		{"a later one is refused: something has changed", 1, map[string]error{"s1": refusedf("b lags")}, "moved refused not begun not begun not begun not begun", ExitFailed, "1 of 6 leaders were handed over, 4 were not begun"},
		{"unknown", 1, map[string]error{"s1": unknownf("no answer")}, "moved unknown not begun not begun not begun not begun", ExitUnknown, "no answer"},
		{"two at once", 2, map[string]error{"s0": refusedf("b lags"), "s1": unknownf("no answer")}, "refused unknown not begun not begun not begun not begun", ExitUnknown, "s1: no answer"},
		{"refused and rolled back", 2, map[string]error{"s0": refusedf("b lags"), "s1": rolledBack(errors.New("b hangs"))}, "refused rolled back not begun not begun not begun not begun", ExitRolledBack, "b hangs"},
		{"refused and failed", 2, map[string]error{"s0": refusedf("b lags"), "s1": errors.New("a is not back")}, "refused failed not begun not begun not begun not begun", ExitFailed, "b lags"},
		{"not noted, so not begun", 1, map[string]error{"note s1": errors.New("Consul is away")}, "moved failed not begun not begun not begun not begun", ExitFailed, "Consul is away"},
		{"done, and not noted", 1, map[string]error{"after s1": errors.New("Consul is away")}, "moved failed not begun not begun not begun not begun", ExitFailed, "Consul is away"},
	} {
		t.Run(c.name, func(t *testing.T) {
			notes := make(chan string, 2*len(moves))
			var both sync.WaitGroup // two are under way
			both.Add(2)
			m := mover{
				o: MoveOptions{Parallel: c.parallel},
				before: func(_ context.Context, m placement.Move) error {
					notes <- m.Shard
					return c.fails["note "+m.Shard]
				},
				move: func(_ context.Context, m placement.Move) error {
					if len(c.fails) == 2 { // both fail before the first is heard of
						both.Done()
						both.Wait()
					}
					return c.fails[m.Shard]
				},
				after: func(_ context.Context, m placement.Move, _ error) error { return c.fails["after "+m.Shard] },
				say:   t.Logf,
			}
			results := m.run(t.Context(), moves)
			var states []string
			for _, r := range results {
				states = append(states, r.state)
			}
			if got := strings.Join(states, " "); got != c.states {
				t.Errorf("got %q, want %q", got, c.states)
			}
			begun := len(slices.DeleteFunc(states, func(s string) bool { return s == moveNotBegun }))
			if len(notes) != begun {
				t.Errorf("%d noted, %d begun", len(notes), begun)
			}
			err := conclude(t.Context(), results, "go on")
			if ExitCode(err) != c.code || err != nil && !strings.Contains(err.Error(), c.say) {
				t.Errorf("%d, %v, want %d, %q", ExitCode(err), err, c.code, c.say)
			}
		})
	}
}

// What is under way when a person interrupts is waited for; nothing else is begun.
func TestInterruptedMover(t *testing.T) {
	moves := []placement.Move{{Shard: "s1"}, {Shard: "s2"}}
	ctx, interrupt := context.WithCancel(t.Context())
	m := mover{
		o:      MoveOptions{Parallel: 1},
		before: nothingNoted,
		move: func(ctx context.Context, _ placement.Move) error {
			interrupt()
			return ctx.Err()
		},
		after: func(context.Context, placement.Move, error) error { return nil },
		say:   t.Logf,
	}
	results := m.run(ctx, moves)
	if results[0].state != moveDone || results[1].state != moveNotBegun {
		t.Errorf("%+v", results)
	}
	if err := conclude(ctx, results, "go on"); ExitCode(err) != ExitFailed || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("%v", err)
	}
}

func TestSpreadWords(t *testing.T) {
	shards := []placement.Shard{
		{Leader: placement.Member{Name: "a", Host: "h1"}, Others: []placement.Member{{Host: "h2"}, {Host: "h3"}}},
		{Leader: placement.Member{Name: "a", Host: "h1"}},
		{Others: []placement.Member{{Host: "h4"}}},
	}
	load := leadersOn(shards)
	if got, want := spreadWords(load), "0 on h2, h3, h4; 2 on h1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	moves := []placement.Move{{From: placement.Member{Host: "h1"}, To: placement.Member{Host: "h4"}}}
	if got, want := spreadWords(after(load, moves)), "0 on h2, h3; 1 on h1, h4"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if load["h4"] != 0 {
		t.Error("the count before was changed")
	}
}

// Where commits wait for fewer standbys than there are, evacuate says beforehand what --undo may need, and --undo
// how to get it.
func TestUndoNeedsASynchronousStandby(t *testing.T) {
	standby := "c"
	shard := func(count int, mode cluster.SyncMode) fleetShard {
		return fleetShard{scope: "orders", dynamic: cluster.Dynamic{SynchronousMode: mode, SynchronousNodeCount: count}, snapshot: shardOf(func(s *cluster.Snapshot) {
			s.Sync = cluster.Entry[cluster.Sync]{Value: cluster.Sync{Leader: "a", SyncStandby: &standby}, ModifyIndex: 1}
		})}
	}
	const raise = "lictor edit-config orders -s synchronous_node_count=2"
	for name, test := range map[string]struct {
		shard fleetShard
		warns bool
	}{
		"one of two": {shard(1, cluster.SyncOn), true}, "both": {shard(2, cluster.SyncOn), false},
		"quorum": {shard(1, cluster.SyncQuorum), false}, "asynchronous": {shard(1, cluster.SyncOff), false},
	} {
		said := fleet{shards: []fleetShard{test.shard}}.undoNeeds([]placement.Move{{Shard: "orders"}})
		if (said != "") != test.warns || test.warns && !strings.Contains(said, raise) {
			t.Errorf("%s: %q", name, said)
		}
	}
	s := shard(1, cluster.SyncOn)
	if why := s.unfit(s.snapshot.Members[1]); !strings.Contains(why.What, "no synchronous standby") || !strings.Contains(why.Do, raise) {
		t.Errorf("%s", why)
	}
	s.dynamic.SynchronousNodeCount = 2 // it is about to become one
	if why := s.unfit(s.snapshot.Members[1]); why.Do != "wait until it is" {
		t.Errorf("%s", why)
	}
}

// A shard outside its maintenance windows moves only when that is meant.
func TestPlacedOutsideWindows(t *testing.T) {
	now := time.Now().UTC()
	w, err := cluster.ParseWindow(now.Add(6*time.Hour).Format("15:04") + "-" + now.Add(8*time.Hour).Format("15:04"))
	if err != nil {
		t.Fatal(err)
	}
	s := fleetShard{scope: "x", snapshot: shardOf(nil), dynamic: cluster.Dynamic{MaintenanceWindows: cluster.Windows{w}}}
	for outside, want := range map[bool]string{
		true: "", false: "now is outside the maintenance windows of the shard for a handover",
	} {
		v := newSurvey(nil, fleet{shards: []fleetShard{s}}, MoveOptions{OutsideWindow: outside})
		if got := v.shards[0].Stuck.String(); (got == "") != outside || !strings.Contains(got, want) {
			t.Errorf("outside_window %v: %q, want %q", outside, got, want)
		}
	}
}

// Outside its windows a command does maintenance on a shard only where somebody can be asked.
func TestLeavingWindows(t *testing.T) {
	now := time.Now().UTC()
	w, err := cluster.ParseWindow(now.Add(6*time.Hour).Format("15:04") + "-" + now.Add(8*time.Hour).Format("15:04"))
	if err != nil {
		t.Fatal(err)
	}
	d := cluster.Dynamic{MaintenanceWindows: cluster.Windows{w}}
	inside := now.Add(7 * time.Hour)
	for _, c := range []struct {
		name    string
		d       cluster.Dynamic
		when    *time.Time
		force   bool
		said    string
		outside bool
		code    int
	}{
		{"no windows", cluster.Dynamic{}, nil, true, "", false, ExitDone},
		{"scheduled inside", d, &inside, true, "", false, ExitDone},
		{"forced", d, nil, true, "", false, ExitRefused},
		{"asked, and yes", d, nil, false, "y\n", true, ExitDone},
		{"asked, and no", d, nil, false, "n\n", true, ExitRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			console := &Console{In: strings.NewReader(c.said), Out: &out, Err: &out, Interactive: true}
			outside, err := (&Shard{Scope: "x"}).leaveWindow(console, c.d, cluster.MaintenanceHandover, c.when, c.force)
			if outside != c.outside || ExitCode(err) != c.code {
				t.Errorf("outside %v, %v (%d)", outside, err, ExitCode(err))
			}
			if c.force && err != nil && !strings.Contains(err.Error(), "x: that is outside the maintenance windows") {
				t.Errorf("%v", err)
			}
		})
	}
}
