package operator

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		answer api.Answer
		code   int
		say    string
	}{
		{api.Answer{Status: 200, Text: `Successfully switched over to "b"`, Took: 1400 * time.Millisecond}, ExitDone, `Successfully switched over to "b" in 1.4 s`},
		{api.Answer{Status: 202, Text: "Switchover scheduled"}, ExitDone, "Switchover scheduled"},
		{api.Answer{Status: 412, Text: "candidate does not exists"}, ExitRefused, "candidate does not exists"},
		{api.Answer{Status: 400, Text: "Can't schedule switchover in the paused state"}, ExitRefused, "paused"},
		{api.Answer{Status: 503, Text: "failed to write switchover key into DCS"}, ExitRefused, "failed to write"},
		{api.Answer{Status: 503, Text: "Switchover failed", Reason: "the switchover is refused: b lags"}, ExitRefused, "b lags"},
		{api.Answer{Status: 503, Text: "Switchover failed", Reason: "rolled back: b hangs"}, ExitRolledBack, "b hangs"},
		{api.Answer{Status: 503, Text: "Switchover failed", Reason: "the switchover has failed: the successor did not take the lock"}, ExitRolledBack, "did not take the lock"},
		{api.Answer{Status: 503, Text: "Switchover status unknown"}, ExitUnknown, "unknown"},
		{api.Answer{Status: 503, Text: "Switchover failed", Reason: "Consul is away"}, ExitFailed, "Consul is away"},
		{api.Answer{Status: 401, Text: "no auth header received"}, ExitFailed, "no auth header received; restapi.authentication"},
	} {
		said, err := verdict(c.answer, (&Shard{}).words(c.answer), switchover(false))
		if err != nil {
			said = err.Error()
		}
		if ExitCode(err) != c.code || !strings.Contains(said, c.say) {
			t.Errorf("%+v: %d %q, want %d %q", c.answer, ExitCode(err), said, c.code, c.say)
		}
	}
}

func TestExitCodesSurviveWrapping(t *testing.T) {
	if _, err := Load(Flags{Config: "/no/such/file.yml"}, nil); ExitCode(err) != ExitUsage || strings.Contains(err.Error(), "\n") {
		t.Errorf("a file that is not there: %d, %v", ExitCode(err), err)
	}
	if code := ExitCode(fmt.Errorf("more: %w", &settings.Refused{Source: "x", Err: errors.New("y")})); code != ExitUsage {
		t.Errorf("an agent's file that is not valid: %d", code)
	}
	for code, err := range map[int]error{
		ExitDone: nil, ExitFailed: errors.New("x"), ExitUsage: Usage(errors.New("x")), ExitRefused: refusedf("x"),
		ExitRolledBack: rolledBack(errors.New("x")), ExitUnknown: unknownf("x"),
	} {
		if got := ExitCode(err); got != code {
			t.Errorf("%v: %d, want %d", err, got, code)
		}
		if err != nil && ExitCode(fmt.Errorf("more: %w", errors.Join(err, errors.New("y")))) != code {
			t.Errorf("%v, wrapped: not %d", err, code)
		}
	}
}

func TestParseWhen(t *testing.T) {
	zone := time.FixedZone("here", 3600)
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, zone)
	for in, want := range map[string]time.Time{
		"+90s": now.Add(90 * time.Second), "2026-11-21T13:00": now.Add(time.Hour), "2026-11-21 13:00": now.Add(time.Hour),
		"2026-11-21T12:00:00Z": now.Add(time.Hour), "2026-11-21T14:30+02:00": now.Add(90 * time.Minute), "2026-11-21 14:30:00 +0200": now.Add(90 * time.Minute),
	} {
		if got, err := ParseWhen(in, now); err != nil || got == nil || !got.Equal(want) {
			t.Errorf("%q: %v %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "now", " NOW "} {
		if got, err := ParseWhen(in, now); got != nil || err != nil {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	for _, in := range []string{"tomorrow", "+1", "+-1h", "2020-01-01T00:00Z", "13:00"} {
		if got, err := ParseWhen(in, now); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestWhatAFailoverMayCost(t *testing.T) {
	sync := cluster.Dynamic{SynchronousMode: cluster.SyncOn}
	leaderless := func(more func(*cluster.Snapshot)) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) {
			s.Leader = cluster.Entry[string]{}
			s.Status.Value.Lictor.Released = true
			if more != nil {
				more(s)
			}
		}
	}
	standby := "c"
	for _, c := range []struct {
		name string
		edit func(*cluster.Snapshot)
		d    cluster.Dynamic
		want []string
	}{
		{"released, and has everything", leaderless(nil), cluster.Dynamic{}, nil},
		{"behind", leaderless(func(s *cluster.Snapshot) { s.Members[1].Value.XLogLocation -= 100 }), cluster.Dynamic{}, []string{"100 bytes of WAL behind"}},
		{"the lease was not released", leaderless(func(s *cluster.Snapshot) { s.Status.Value.Lictor.Released = false }), cluster.Dynamic{}, []string{"may still run as a primary"}},
		{"no synchronous standby", func(s *cluster.Snapshot) {
			s.Sync = cluster.Entry[cluster.Sync]{Value: cluster.Sync{Leader: "a", SyncStandby: &standby}, ModifyIndex: 1}
		}, sync, []string{"is no synchronous standby"}},
		{"not in the failsafe list", leaderless(func(s *cluster.Snapshot) {
			s.Failsafe = cluster.Entry[map[string]string]{Value: map[string]string{"a": "", "c": ""}, ModifyIndex: 1}
		}), cluster.Dynamic{}, []string{"not in the failsafe list"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := mayCost(shardOf(c.edit), c.d, act{name: "failover"}, "b")
			if len(got) != len(c.want) || len(got) == 1 && !strings.Contains(got[0], c.want[0]) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	if got := mayCost(shardOf(nil), sync, switchover(false), "b"); got != nil {
		t.Errorf("a switchover costs nothing: %q", got)
	}
}

func TestRestartPlan(t *testing.T) {
	when := time.Now()
	all := func(s cluster.Snapshot) []cluster.Member {
		var members []cluster.Member
		for _, m := range s.Members {
			members = append(members, m.Value)
		}
		return members
	}
	for _, c := range []struct {
		name     string
		o        RestartOptions
		edit     func(*cluster.Snapshot)
		when     *time.Time
		order    string
		handover string
	}{
		{"the whole shard", RestartOptions{}, nil, nil, "b c", "a"},
		{"pending", RestartOptions{Pending: true}, nil, nil, "b c", "a"},
		{"named", RestartOptions{Members: []string{"a", "b", "c"}}, nil, nil, "b c a", ""},
		{"in place", RestartOptions{InPlace: true}, nil, nil, "b c a", ""},
		{"scheduled", RestartOptions{Scheduled: "+1h"}, nil, &when, "b c a", ""},
		{"nobody can take over", RestartOptions{}, func(s *cluster.Snapshot) {
			s.Members[1].Value.Tags = map[string]any{"nofailover": true}
			s.Members[2].Value.State = cluster.StateStopped
		}, nil, "b c a", ""},
		{"no leader", RestartOptions{}, func(s *cluster.Snapshot) { s.Leader = cluster.Entry[string]{} }, nil, "a b c", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := shardOf(c.edit)
			plan := c.o.plan(s, all(s), c.when)
			var order []string
			for _, m := range plan.inPlace {
				order = append(order, m.Name)
			}
			if strings.Join(order, " ") != c.order || plan.handover != c.handover {
				t.Errorf("%v, handover from %q", order, plan.handover)
			}
			question := plan.question(c.when)
			if c.handover != "" && !strings.Contains(question, "a hands over") {
				t.Errorf("the question says nothing of the handover: %s", question)
			}
		})
	}
}

// A lowered setting takes effect only when the primary is restarted first, and in place.
func TestLoweredSettings(t *testing.T) {
	reason := func(name, before, after string) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) {
			s.Members[0].Value.PendingRestartReason = map[string]cluster.PendingChange{name: {OldValue: before, NewValue: after}}
		}
	}
	for _, c := range []struct {
		name string
		edit func(*cluster.Snapshot)
		o    RestartOptions
		want string
	}{
		{"lowered", reason("max_connections", "200", "100"), RestartOptions{}, "max_connections is to be lowered from 200 to 100"},
		{"raised", reason("max_connections", "100", "200"), RestartOptions{}, ""},
		{"replicas may have less of it", reason("shared_buffers", "200", "100"), RestartOptions{}, ""},
		{"the primary first", reason("max_connections", "200", "100"), RestartOptions{Members: []string{"a"}}, ""},
		{"a replica first", reason("max_connections", "200", "100"), RestartOptions{Members: []string{"b"}}, "max_connections is to be lowered from 200 to 100"},
		{"nothing waits", nil, RestartOptions{}, ""},
	} {
		s := shardOf(c.edit)
		members, err := (&Shard{Scope: "x"}).members(s, c.o.Members, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := c.o.plan(s, members, nil).lowered(s); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestQuestions(t *testing.T) {
	for in, code := range map[string]int{"y\n": ExitDone, "YES": ExitDone, "n\n": ExitRefused, "\n": ExitRefused, "": ExitRefused} {
		var out strings.Builder
		c := &Console{In: strings.NewReader(in), Out: &out, Err: &out}
		if err := c.Confirm("Do it?"); ExitCode(err) != code {
			t.Errorf("%q: %v", in, err)
		}
	}
	c := &Console{In: strings.NewReader("one\ntwo\n"), Err: t.Output()}
	for _, want := range []string{"one", "two"} {
		if got, err := c.Ask("?"); got != want || err != nil {
			t.Errorf("%q %v", got, err)
		}
	}
}
