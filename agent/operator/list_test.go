package operator

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/events"
)

// shardOf makes a shard led by a with replicas b and c, changed by edit.
func shardOf(edit func(*cluster.Snapshot)) cluster.Snapshot {
	member := func(name, role string) cluster.Entry[cluster.Member] {
		m := cluster.Member{
			Name: name, ConnURL: "postgres://10.0.0." + map[string]string{"a": "1", "b": "2", "c": "3"}[name] + ":5432/postgres",
			APIURL: "http://" + name + ":8008/patroni", State: cluster.StateRunning, Role: role, Timeline: 2, XLogLocation: 64 << 20,
		}
		if role == cluster.RoleReplica {
			m.ReplicationState, m.ReceiveLSN, m.ReplayLSN = "streaming", 64<<20, 64<<20
		}
		return cluster.Entry[cluster.Member]{Value: m, Session: name, ModifyIndex: 1}
	}
	s := cluster.Snapshot{
		Initialize: cluster.Entry[string]{Value: "77", ModifyIndex: 1},
		Leader:     cluster.Entry[string]{Value: "a", Session: "a", ModifyIndex: 1},
		Status: cluster.Entry[cluster.Status]{
			Value: cluster.Status{OpTime: 64 << 20, Lictor: &cluster.Beat{LeaseMS: 8000, Number: 3, Owner: "a"}}, ModifyIndex: 1,
		},
		Config: cluster.Entry[[]byte]{Value: []byte(`{"ttl":8}`), ModifyIndex: 1},
		Route: cluster.Entry[cluster.Route]{ModifyIndex: 1, Value: cluster.Route{
			Version: 1, SystemIdentifier: "77", State: cluster.RouteOpen, Timeline: 2, Leader: cluster.RouteMember{Name: "a", Host: "10.0.0.1", Port: 5432},
		}},
		Members: []cluster.Entry[cluster.Member]{member("a", cluster.RolePrimary), member("b", cluster.RoleReplica), member("c", cluster.RoleReplica)},
	}
	if edit != nil {
		edit(&s)
	}
	return s
}

func pretty(t *testing.T, table Table) string {
	t.Helper()
	var out strings.Builder
	if err := table.Write(&out, Pretty, false); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestListTable(t *testing.T) {
	at := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name string
		edit func(*cluster.Snapshot)
		o    ListOptions
		want string
	}{
		{"as usual", nil, ListOptions{}, `
+ Cluster: x (77) ---+---------+-----------+----+-----------+
| Member | Host     | Role    | State     | TL | Lag in MB |
+--------+----------+---------+-----------+----+-----------+
| a      | 10.0.0.1 | Leader  | running   |  2 |           |
| b      | 10.0.0.2 | Replica | streaming |  2 |         0 |
| c      | 10.0.0.3 | Replica | streaming |  2 |         0 |
+--------+----------+---------+-----------+----+-----------+
`},
		{"all that can stand there", func(s *cluster.Snapshot) {
			s.Config.Value = []byte(`{"synchronous_mode":"quorum","pause":true}`)
			names := "c"
			s.Sync = cluster.Entry[cluster.Sync]{Value: cluster.Sync{Leader: "a", SyncStandby: &names}, ModifyIndex: 1}
			s.Failover = cluster.Entry[cluster.Failover]{Value: cluster.Failover{Leader: "a", Candidate: "b", ScheduledAt: &at}, ModifyIndex: 1}
			s.Members[1].Value.XLogLocation = 24 << 20
			s.Members[1].Value.Tags = map[string]any{"clonefrom": true, "rack": "3"}
			s.Members[1].Value.ScheduledRestart = map[string]any{"schedule": "2099-01-01T00:00:00+00:00", "postgres_version": "15.4"}
			s.Members[2].Value.PendingRestart = true
			s.Members[2].Value.ConnURL = "postgres://10.0.0.3:5433/postgres"
		}, ListOptions{}, `
+ Cluster: x (77) --------+----------------+-----------+----+-----------+-----------------+----------------------------------------------+-----------------+
| Member | Host          | Role           | State     | TL | Lag in MB | Pending restart | Scheduled restart                            | Tags            |
+--------+---------------+----------------+-----------+----+-----------+-----------------+----------------------------------------------+-----------------+
| a      | 10.0.0.1:5432 | Leader         | running   |  2 |           |                 |                                              |                 |
+--------+---------------+----------------+-----------+----+-----------+-----------------+----------------------------------------------+-----------------+
| b      | 10.0.0.2:5432 | Replica        | streaming |  2 |        40 |                 | 2099-01-01T00:00:00+00:00 if version < 15.4  | clonefrom: true |
|        |               |                |           |    |           |                 |                                              | rack: "3"       |
+--------+---------------+----------------+-----------+----+-----------+-----------------+----------------------------------------------+-----------------+
| c      | 10.0.0.3:5433 | Quorum Standby | streaming |  2 |         0 | *               |                                              |                 |
+--------+---------------+----------------+-----------+----+-----------+-----------------+----------------------------------------------+-----------------+
 Maintenance mode: on
 Switchover scheduled at: 2099-01-01T00:00:00+00:00
                    from: a
                      to: b
`},
		{"a problem", func(s *cluster.Snapshot) {
			s.Members[1].Value.Lictor = &cluster.MemberLictor{LeaderLSN: 1 << 40, Problems: 2, Copying: "pgbackrest, 45 %", Stranded: "its WAL is gone"}
			s.Members[2].Value.Lictor = &cluster.MemberLictor{LeaderLSN: 1 << 40, Stranded: "its WAL is gone", Rebuild: "it is the turn of b"}
		}, ListOptions{}, `
+ Cluster: x (77) ---+---------+-----------+----+-----------+
| Member | Host     | Role    | State     | TL | Lag in MB |
+--------+----------+---------+-----------+----+-----------+
| a      | 10.0.0.1 | Leader  | running   |  2 |           |
| b      | 10.0.0.2 | Replica | streaming |  2 |         0 |
| c      | 10.0.0.3 | Replica | streaming |  2 |         0 |
+--------+----------+---------+-----------+----+-----------+
 b reports 2 problems: see lictor doctor
 b cannot go on: its WAL is gone
 b is being copied by pgbackrest, 45 %
 c cannot go on: its WAL is gone; rebuild: it is the turn of b
`},
		{"made anew by policy", func(s *cluster.Snapshot) {
			s.Members[1].Value.Lictor = &cluster.MemberLictor{LeaderLSN: 1 << 40, Rebuild: "it is its turn"}
		}, ListOptions{}, `
+ Cluster: x (77) ---+---------+-----------+----+-----------+
| Member | Host     | Role    | State     | TL | Lag in MB |
+--------+----------+---------+-----------+----+-----------+
| a      | 10.0.0.1 | Leader  | running   |  2 |           |
| b      | 10.0.0.2 | Replica | streaming |  2 |         0 |
| c      | 10.0.0.3 | Replica | streaming |  2 |         0 |
+--------+----------+---------+-----------+----+-----------+
 b is made anew by policy
`},
		{"replay stands still", func(s *cluster.Snapshot) {
			s.Members[2].Value.ReplayStandsStill = "paused by pg_wal_replay_pause()"
		}, ListOptions{}, `
+ Cluster: x (77) ---+---------+-----------+----+-----------+--------------------------------+
| Member | Host     | Role    | State     | TL | Lag in MB | Replay stands still            |
+--------+----------+---------+-----------+----+-----------+--------------------------------+
| a      | 10.0.0.1 | Leader  | running   |  2 |           |                                |
| b      | 10.0.0.2 | Replica | streaming |  2 |         0 |                                |
| c      | 10.0.0.3 | Replica | streaming |  2 |         0 | paused by pg_wal_replay_pause() |
+--------+----------+---------+-----------+----+-----------+--------------------------------+
`},
		{"cascade", func(s *cluster.Snapshot) {
			s.Members[1].Value.Tags = map[string]any{"replicatefrom": "c"}
		}, ListOptions{Topology: true}, `
+ Cluster: x (77) ----+---------+-----------+----+-----------+------------------+
| Member  | Host     | Role    | State     | TL | Lag in MB | Tags             |
+---------+----------+---------+-----------+----+-----------+------------------+
| a       | 10.0.0.1 | Leader  | running   |  2 |           |                  |
| + c     | 10.0.0.3 | Replica | streaming |  2 |         0 |                  |
|   + b   | 10.0.0.2 | Replica | streaming |  2 |         0 | replicatefrom: c |
+---------+----------+---------+-----------+----+-----------+------------------+
`},
		{"nobody leads, members in a ring", func(s *cluster.Snapshot) {
			s.Leader = cluster.Entry[string]{}
			s.Members = s.Members[1:]
			s.Members[0].Value.Tags = map[string]any{"replicatefrom": "c"}
			s.Members[1].Value.Tags = map[string]any{"replicatefrom": "b"}
			s.Members[1].Value.State, s.Members[1].Value.ReplicationState, s.Members[1].Value.XLogLocation = cluster.StateStopped, "", 0
		}, ListOptions{Topology: true}, `
+ Cluster: x (77) --+---------+-----------+----+-----------+------------------+
| Member | Host     | Role    | State     | TL | Lag in MB | Tags             |
+--------+----------+---------+-----------+----+-----------+------------------+
| + b    | 10.0.0.2 | Replica | streaming |  2 |         0 | replicatefrom: c |
| + c    | 10.0.0.3 | Replica | stopped   |  2 |   unknown | replicatefrom: b |
+--------+----------+---------+-----------+----+-----------+------------------+
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := pretty(t, listTable("x", shardOf(c.edit), c.o))
			if diff := cmp.Diff(squeeze(c.want), squeeze(got)); diff != "" {
				t.Errorf("%s\n%s", diff, got)
			}
		})
	}
}

// squeeze makes tables comparable whose columns are wider or narrower: how wide they
// are is TestTable's business.
func squeeze(s string) []string {
	var lines []string
	for line := range strings.Lines(strings.TrimSpace(s)) {
		line = strings.Join(strings.Fields(line), " ")
		for strings.Contains(line, "--") {
			line = strings.ReplaceAll(line, "--", "-")
		}
		lines = append(lines, line)
	}
	return lines
}

func TestTopologyKeepsEverybody(t *testing.T) {
	members := []api.MemberView{{Name: "a", Role: "leader"}, {Name: "b", Tags: map[string]any{"replicatefrom": "b"}}, {Name: "c", Tags: map[string]any{"replicatefrom": "gone"}}}
	ordered, names := topology(members)
	if len(ordered) != 3 || names["b"] != "+ b" || names["c"] != "+ c" {
		t.Errorf("%v %v", ordered, names)
	}
}

func TestEventsAndHistory(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.Local)
	log := events.Log{Events: []events.Event{
		{At: at, Kind: events.Failover, By: "b", Outcome: events.Done, From: "a", To: "b", Timeline: 2, Cause: "no sign of life from a", TookMS: 8750, Phases: []events.Phase{
			{Name: events.Noticed, AtMS: 8100}, {Name: events.Elected, AtMS: 8300}, {Name: events.Promoted, AtMS: 8700}, {Name: events.Routed, AtMS: 8750}, {Name: events.FirstWrite, AtMS: 8790},
		}},
		{At: at.Add(time.Minute), Kind: events.Switchover, By: "b", Outcome: events.RolledBack, From: "b", To: "c", Cause: "c hangs", TookMS: 1000},
		{At: at.Add(2 * time.Minute), Kind: events.MemberLost, By: "b", To: "c"},
	}}
	want := `
Time                     What         Who     Outcome      Timeline   Took  Noticed  Elected  Promoted  Routed  First write  Why
2026-11-21 12:00:00.000  failover     a -> b  done                2  8.8 s   +8.1 s  +200 ms   +400 ms  +50 ms       +40 ms  no sign of life from a
2026-11-21 12:01:00.000  switchover   b -> c  rolled back            1.0 s                                                   c hangs
2026-11-21 12:02:00.000  member lost  c
`
	got := pretty(t, eventsTable(log))
	if diff := cmp.Diff(squeeze(want), squeeze(got)[:4]); diff != "" {
		t.Errorf("%s\n%s", diff, got)
	}
	history := cluster.History{
		{Timeline: 1, LSN: 100, Reason: "no recovery target specified", Time: "2026-11-21T12:00:09+00:00", NewLeader: "b"},
		{Timeline: 2, LSN: 200, Reason: "by hand"},
	}
	want = `
+----+-----+------------------------------+---------------------------+------------+----------+-------+------------------------+
| TL | LSN | Reason | Timestamp | New Leader | Change | Took | Cause |
+----+-----+------------------------------+---------------------------+------------+----------+-------+------------------------+
| 1 | 100 | no recovery target specified | 2026-11-21T12:00:09+00:00 | b | failover | 8.8 s | no sign of life from a |
| 2 | 200 | by hand | | | | | |
+----+-----+------------------------------+---------------------------+------------+----------+-------+------------------------+
`
	if diff := cmp.Diff(squeeze(want), squeeze(pretty(t, historyTable(history, log)))); diff != "" {
		t.Error(diff)
	}
}
