package api

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// ending makes a node whose switchovers end so, and which checks what was asked.
func ending(t *testing.T, want cluster.Failover, o Outcome, err error) func(*fakeNode) {
	return func(n *fakeNode) {
		n.switchover = func(_ context.Context, got cluster.Failover) (Outcome, error) {
			same := got.Leader == want.Leader && got.Candidate == want.Candidate &&
				(got.ScheduledAt == nil) == (want.ScheduledAt == nil) &&
				(got.ScheduledAt == nil || got.ScheduledAt.Equal(*want.ScheduledAt))
			if !same {
				t.Errorf("the node was asked for %+v, want %+v", got, want)
			}
			return o, err
		}
	}
}

func TestSwitchover(t *testing.T) {
	at := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	from := func(leader, candidate string) cluster.Failover {
		return cluster.Failover{Leader: leader, Candidate: candidate}
	}
	done := func(leader string) Outcome { return Outcome{Leader: leader, Known: true, Done: true} }
	synchronous := func(standbys ...string) func(*State) {
		return func(s *State) {
			s.Dynamic.SynchronousMode = cluster.SyncOn
			s.Cluster = synced(s.Cluster, standbys...)
		}
	}
	paused := func(s *State) { s.Dynamic.Pause = true }
	alone := func(s *State) { s.Cluster.Members = s.Cluster.Members[:1] }
	nofailover := func(names ...int) func(*State) {
		return func(s *State) {
			for _, i := range names {
				s.Cluster.Members[i].Value.Tags = map[string]any{"nofailover": true}
			}
		}
	}
	for _, e := range []exchange{
		{name: "to anybody", path: "/switchover", body: `{"leader":"node1"}`, node: ending(t, from("node1", ""), done("node3"), nil), status: 200, want: `Successfully switched over to "node3"`},
		{name: "to one", path: "/switchover", body: `{"leader":"node1","candidate":"node2"}`, node: ending(t, from("node1", "node2"), done("node2"), nil), status: 200, want: `Successfully switched over to "node2"`},
		{name: "to another", path: "/switchover", body: `{"leader":"node1","candidate":"node2"}`, node: ending(t, from("node1", "node2"), done("node3"), nil), status: 200, want: `Switched over to "node3" instead of "node2"`},
		{name: "failed", path: "/switchover", body: `{"leader":"node1"}`, node: ending(t, from("node1", ""), Outcome{Known: true, Reason: "node2 lags"}, nil), status: 503, want: "Switchover failed", reason: "node2 lags"},
		{name: "outcome unknown", path: "/switchover", body: `{"leader":"node1"}`, node: ending(t, from("node1", ""), Outcome{}, nil), status: 503, want: "Switchover status unknown"},
		{name: "no answer in time", path: "/switchover", body: `{"leader":"node1"}`, node: ending(t, from("node1", ""), Outcome{}, context.DeadlineExceeded), status: 503, want: "Switchover status unknown"},
		{name: "refused", path: "/switchover", body: `{"leader":"node1"}`, node: ending(t, from("node1", ""), Outcome{}, fmt.Errorf("switchover is not possible: no good candidates have been found: %w", ErrRefused)), status: 412, want: "switchover is not possible: no good candidates have been found"},
		{name: "lost race", path: "/switchover", body: `{"leader":"node1"}`, node: ending(t, from("node1", ""), Outcome{}, ErrConflict), status: 503, want: "failed to write switchover key into DCS"},
		{name: "error", path: "/switchover", body: `{"leader":"node1"}`, node: ending(t, from("node1", ""), Outcome{}, errors.New("no Consul")), status: 503, want: "Switchover failed", reason: "no Consul"},
		{
			name: "scheduled", path: "/switchover", body: `{"leader":"node1","candidate":"node2","scheduled_at":"2099-01-01T01:00+01:00"}`,
			node: ending(t, cluster.Failover{Leader: "node1", Candidate: "node2", ScheduledAt: &at}, Outcome{}, nil), status: 202, want: "Switchover scheduled",
		},
		{name: "scheduled, paused", path: "/switchover", state: paused, body: `{"leader":"node1","scheduled_at":"2099-01-01T01:00+01:00"}`, status: 400, want: "Can't schedule switchover in the paused state"},
		{name: "scheduled from another leader", path: "/switchover", body: `{"leader":"node2","scheduled_at":"2099-01-01T01:00+01:00"}`, status: 412, want: "leader name does not match"},
		{name: "scheduled, nobody leads", path: "/switchover", state: func(s *State) { s.Cluster.Leader = cluster.Entry[string]{} }, body: `{"leader":"node1","scheduled_at":"2099-01-01T01:00+01:00"}`, status: 412, want: "leader name does not match"},
		{name: "failover scheduled from another leader", path: "/failover", body: `{"leader":"node2","candidate":"node3","scheduled_at":"2099-01-01T01:00+01:00"}`, status: 412, want: "leader name does not match"},
		{name: "a leader that is no name", path: "/switchover", body: `{"leader":"../node1"}`, status: 400, want: "leader " + cluster.NameRule},
		{name: "a candidate that is no name", path: "/failover", body: `{"candidate":"--x"}`, status: 400, want: "candidate " + cluster.NameRule},
		{name: "a candidate with control characters", path: "/failover", body: `{"member":"x\u001b[2J"}`, status: 400, want: "member " + cluster.NameRule},
		{name: "scheduled without zone", path: "/switchover", body: `{"leader":"node1","scheduled_at":"2099-01-01T01:00"}`, status: 400, want: "Timezone information is mandatory for the scheduled switchover"},
		{name: "scheduled in the past", path: "/switchover", body: `{"leader":"node1","scheduled_at":"2019-01-01T01:00Z"}`, status: 422, want: "Cannot schedule switchover in the past"},
		{name: "scheduled some time", path: "/switchover", body: `{"leader":"node1","scheduled_at":"tomorrow"}`, status: 422, want: "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601"},
		{name: "no leader said", path: "/switchover", body: `{"candidate":"node2"}`, status: 400, want: "Switchover could be performed only from a specific leader"},
		{name: "odd leader", path: "/switchover", body: `{"leader":1}`, status: 400, want: "leader should be a string"},
		{name: "another leader", path: "/switchover", body: `{"leader":"node2"}`, status: 412, want: "leader name does not match"},
		{name: "nobody leads", path: "/switchover", state: func(s *State) { s.Cluster.Leader = cluster.Entry[string]{} }, body: `{"leader":"node1"}`, status: 412, want: "leader name does not match"},
		{name: "unknown candidate", path: "/switchover", body: `{"leader":"node1","candidate":"node9"}`, status: 412, want: "candidate does not exists"},
		{name: "to the leader", path: "/switchover", body: `{"leader":"node1","candidate":"node1"}`, status: 412, want: "switchover is not possible: no good candidates have been found"},
		{name: "candidate may not lead", path: "/switchover", state: nofailover(1), body: `{"leader":"node1","candidate":"node2"}`, status: 412, want: "switchover is not possible: no good candidates have been found"},
		{name: "nobody may lead", path: "/switchover", state: nofailover(1, 2), body: `{"leader":"node1"}`, status: 412, want: "switchover is not possible: no good candidates have been found"},
		{name: "alone", path: "/switchover", state: alone, body: `{"leader":"node1"}`, status: 412, want: "switchover is not possible: cluster does not have members except leader"},
		{name: "candidate is not synchronous", path: "/switchover", state: synchronous("node2"), body: `{"leader":"node1","candidate":"node3"}`, status: 412, want: "candidate name does not match with sync_standby"},
		{name: "candidate is synchronous", path: "/switchover", state: synchronous("node2"), body: `{"leader":"node1","candidate":"node2"}`, node: ending(t, from("node1", "node2"), done("node2"), nil), status: 200},
		{name: "nobody is synchronous in a standby shard", path: "/switchover", state: func(s *State) {
			synchronous()(s)
			s.Dynamic.StandbyCluster.Host = "db9"
		}, body: `{"leader":"node1","candidate":"nobody"}`, status: 412, want: "candidate does not exists"},
		{name: "no synchronous standby", path: "/switchover", state: synchronous(), body: `{"leader":"node1"}`, status: 412, want: "switchover is not possible: can not find sync_standby"},
		{name: "paused, to anybody", path: "/switchover", state: paused, body: `{"leader":"node1"}`, status: 400, want: "Switchover is possible only to a specific candidate in a paused state"},
		{name: "paused, to one", path: "/switchover", state: paused, body: `{"leader":"node1","candidate":"node2"}`, node: ending(t, from("node1", "node2"), done("node2"), nil), status: 200},

		{name: "failover", path: "/failover", body: `{"candidate":"node2"}`, node: ending(t, from("", "node2"), done("node2"), nil), status: 200, want: `Successfully failed over to "node2"`},
		{name: "failover, old key", path: "/failover", body: `{"member":"node2"}`, node: ending(t, from("", "node2"), done("node2"), nil), status: 200, want: `Successfully failed over to "node2"`},
		{name: "failover to another", path: "/failover", body: `{"candidate":"node2"}`, node: ending(t, from("", "node2"), done("node3"), nil), status: 200, want: `Failed over to "node3" instead of "node2"`},
		{name: "failover without leader", path: "/failover", state: func(s *State) { s.Cluster.Leader = cluster.Entry[string]{} }, body: `{"candidate":"node2"}`, node: ending(t, from("", "node2"), done("node2"), nil), status: 200},
		{name: "failover to one that is not synchronous", path: "/failover", state: synchronous("node2"), body: `{"candidate":"node3"}`, node: ending(t, from("", "node3"), done("node3"), nil), status: 200},
		{name: "failover failed", path: "/failover", body: `{"candidate":"node2"}`, node: ending(t, from("", "node2"), Outcome{Known: true}, nil), status: 503, want: "Failover failed"},
		{name: "failover unknown", path: "/failover", body: `{"candidate":"node2"}`, node: ending(t, from("", "node2"), Outcome{}, nil), status: 503, want: "Failover status unknown"},
		{name: "failover to nobody", path: "/failover", body: `{"leader":"node1"}`, status: 400, want: "Failover could be performed only to a specific candidate"},
		{name: "failover to an unknown one", path: "/failover", body: `{"candidate":"node9"}`, status: 412, want: "candidate does not exists"},
		{name: "failover scheduled", path: "/failover", body: `{"candidate":"node2","scheduled_at":"2099-01-01T01:00Z"}`, status: 400, want: "Scheduled failover is possible only from a specific leader"},
	} {
		e.method = "POST"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestCancelSwitchover(t *testing.T) {
	cancelling := func(err error) func(*fakeNode) {
		return func(n *fakeNode) { n.cancelSwitchover = func(context.Context) error { return err } }
	}
	for _, e := range []exchange{
		{name: "done", node: cancelling(nil), status: 200, want: "scheduled switchover deleted"},
		{name: "none", node: cancelling(fmt.Errorf("switchover: %w", ErrNone)), status: 404, want: "no switchover is scheduled"},
		{name: "lost race", node: cancelling(ErrConflict), status: 409},
		{name: "failed", node: cancelling(errors.New("no Consul")), status: 503, reason: "no Consul"},
	} {
		e.method, e.path = "DELETE", "/switchover"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestParseTime(t *testing.T) {
	want := time.Date(2026, 11, 21, 10, 30, 0, 0, time.UTC)
	for _, in := range []string{
		"2026-11-21T10:30:00Z", "2026-11-21T10:30:00+00:00", "2026-11-21 10:30:00+00", "2026-11-21 12:30 +0200",
		"2026-11-21T10:30:00.000000+00:00", "2026-11-21 10:30 UTC", " 2026-11-21T11:30+01:00 ", "20261121T103000Z",
	} {
		if at, zoned, ok := parseTime(in); !ok || !zoned || !at.Equal(want) {
			t.Errorf("%q: %v, zoned %v, ok %v", in, at, zoned, ok)
		}
	}
	for _, in := range []string{"2026-11-21T10:30:00", "2026-11-21 10:30", "2026-11-21", "2026-11-21 10:30:00.5"} {
		if _, zoned, ok := parseTime(in); !ok || zoned {
			t.Errorf("%q: zoned %v, ok %v, want a time without a zone", in, zoned, ok)
		}
	}
	for _, in := range []string{"", "now", "2026-13-01T00:00Z", "10:30", "2026-11-21T10:30+99:00x"} {
		if at, _, ok := parseTime(in); ok {
			t.Errorf("%q: %v, want an error", in, at)
		}
	}
}
