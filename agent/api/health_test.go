package api

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/pg"
)

// now is when the states of these tests are looked at.
func now() time.Time { return time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC) }

// checks are all health checks with a body.
func checks() []string {
	return []string{
		"/", "/primary", "/master", "/read-write", "/leader", "/standby-leader", "/standby_leader",
		"/replica", "/read-only", "/sync", "/synchronous", "/async", "/asynchronous",
		"/quorum", "/read-only-sync", "/read-only-quorum", "/health", "/nonsense", "/metrics-of-nothing",
	}
}

func TestHealthChecks(t *testing.T) {
	primaryPaths := "/ /primary /master /read-write /leader /read-only /read-only-sync /read-only-quorum /health"
	asyncReplica := "/replica /read-only /async /asynchronous /health"
	standbyCluster := map[string]any{"standby_cluster": map[string]any{"host": "10.1.0.1", "port": 5432}}
	tests := []struct {
		name  string
		state State
		edit  func(*State)
		well  string // the paths that answer 200
	}{
		{"primary", primaryState(now()), nil, primaryPaths},
		{"primary that was started, and nobody is led to yet", primaryState(now()), func(s *State) { s.Opening = true }, "/leader /health"},
		{"primary, at the end of freshness", primaryState(now()), func(s *State) {
			s.LoopAt, s.LeaseLeft = now().Add(-8*time.Second), time.Hour
		}, primaryPaths},
		{"primary whose loop has not come round for a ttl", primaryState(now()), func(s *State) {
			s.LoopAt, s.LeaseLeft = now().Add(-8*time.Second-time.Millisecond), time.Hour
		}, ""},
		{"primary whose loop never came round", primaryState(now()), func(s *State) { s.LoopAt = time.Time{} }, ""},
		{"primary whose lease ran out since", primaryState(now()), func(s *State) {
			s.At, s.LeaseLeft = now().Add(-3*time.Second), 3*time.Second
		}, "/health"},
		{"PostgreSQL is a primary, but the lease is not held", primaryState(now()), func(s *State) { s.Leader = false }, "/health"},
		{"paused, and Consul does not renew the lease", primaryState(now()), func(s *State) { s.Leader, s.LeaseLeft, s.Dynamic.Pause = false, 0, true }, primaryPaths},
		{"paused, and another member leads", primaryState(now()), func(s *State) {
			s.Leader, s.Dynamic.Pause, s.Cluster.Leader.Value = false, true, "node2"
		}, "/health"},
		{"paused, and nobody leads", primaryState(now()), func(s *State) {
			s.Leader, s.Dynamic.Pause, s.Cluster.Leader.Value = false, true, ""
		}, "/health"},
		{"the lease is held, promotion is not over", primaryState(now()), func(s *State) { s.Postgres.InRecovery = true }, "/leader /health"},
		{"the lease is held, PostgreSQL does not answer", primaryState(now()), func(s *State) { s.Postgres.Accepting = false }, "/leader"},
		{"the lease is held, PostgreSQL is starting", primaryState(now()), func(s *State) { s.Postgres.State = "starting" }, "/leader"},
		{"replica", replicaState(now()), nil, asyncReplica},
		{"replica whose loop has not come round for a ttl", replicaState(now()), func(s *State) { s.LoopAt = now().Add(-9 * time.Second) }, ""},
		{"replica that does not answer", replicaState(now()), func(s *State) { s.Postgres.Accepting = false }, ""},
		{"replica that is starting", replicaState(now()), func(s *State) { s.Postgres.State = "starting" }, ""},
		{"replica whose replay stands still", replicaState(now()), func(s *State) { s.Postgres.Standstill = "paused by pg_wal_replay_pause()" }, "/health"},
		{"replica with noloadbalance", replicaState(now()), func(s *State) { s.Tags = map[string]any{"noloadbalance": true} }, "/health"},
		{"replica that never saw Consul", replicaState(now()), func(s *State) { s.ConsulSeen = time.Time{} }, "/replica /read-only /health"},
		{"synchronous standby", replicaState(now()), func(s *State) {
			s.Dynamic.SynchronousMode = cluster.SyncOn
			s.Cluster = synced(s.Cluster, "NODE2")
		}, "/replica /read-only /sync /synchronous /read-only-sync /health"},
		{"named in sync while the mode is off", replicaState(now()), func(s *State) { s.Cluster = synced(s.Cluster, "node2") }, asyncReplica},
		{"not the synchronous one", replicaState(now()), func(s *State) {
			s.Dynamic.SynchronousMode = cluster.SyncOn
			s.Cluster = synced(s.Cluster, "node3")
		}, asyncReplica},
		{"quorum standby", replicaState(now()), func(s *State) {
			s.Dynamic.SynchronousMode = cluster.SyncQuorum
			s.Cluster = synced(s.Cluster, "node2", "node3")
		}, "/replica /read-only /quorum /read-only-quorum /health"},
		{"leader of a standby cluster", primaryState(now()), func(s *State) {
			s.Postgres.InRecovery, s.Dynamic.Raw = true, standbyCluster
		}, "/leader /standby-leader /standby_leader /read-only /read-only-sync /read-only-quorum /health"},
		{"a primary that is not demoted to the leader of a standby cluster yet", primaryState(now()), func(s *State) {
			s.Dynamic.Raw = standbyCluster
		}, primaryPaths},
		{"nothing known", State{}, nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.edit != nil {
				tt.edit(&tt.state)
			}
			s := stopped(t, tt.state)
			well := strings.Fields(tt.well)
			for _, path := range checks() {
				want := http.StatusServiceUnavailable
				if slices.Contains(well, path) {
					want = http.StatusOK
				}
				if got := s.health(tt.state, &url.URL{Path: path}); got != want {
					t.Errorf("%s: %d, want %d", path, got, want)
				}
			}
		})
	}
}

// stopped is a server that does not listen, whose clock stands at now.
func stopped(t *testing.T, state State) *Server {
	t.Helper()
	s, err := NewServer(config.RestAPI{Listen: "127.0.0.1:0"}, fixed(state), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	s.now = now
	s.started = now()
	return s
}

func TestHealthCheckFilters(t *testing.T) {
	replica := replicaState(now()) // 1 MB behind
	replica.Tags = map[string]any{"zone": "eu-1", "weight": 3, "fast": true, "clonefrom": false, "none": nil}
	primary := primaryState(now())
	primary.Tags = replica.Tags
	older := replica // the leader has switched to another segment since this look
	older.Cluster.Status.Value.OpTime += 16 * mega
	unknownLeader := replica
	unknownLeader.Postgres.LeaderLSN = 0
	unknownPosition := replica
	unknownPosition.Postgres.ReplayedLSN = 0
	tests := []struct {
		state State
		url   string
		want  int
	}{
		{replica, "/replica?lag=1MB", 200},
		{older, "/replica?lag=1MB", 200},
		{older, "/replica?lag=1048575", 503},
		{unknownLeader, "/replica?lag=1kB", 200},
		{unknownPosition, "/replica?lag=1GB", 503},
		{unknownPosition, "/replica", 200},
		{replica, "/replica?lag=1048575", 503},
		{replica, "/replica?lag=1048576", 200},
		{replica, "/replica?lag=1023kB", 503},
		{replica, "/replica?lag=1024kB", 200},
		{replica, "/replica?lag=0.5MB", 503},
		{replica, "/replica?lag=1GB", 200},
		{replica, "/replica?lag=0", 503},
		{replica, "/replica?lag=", 200},
		{replica, "/replica?lag=much", 200},
		{replica, "/read-only?lag=1kB", 503},
		{replica, "/async?lag=1kB", 503},
		{replica, "/replica?replication_state=streaming", 200},
		{replica, "/replica?replication_state=in+archive+recovery", 503},
		{replica, "/read-only?replication_state=x", 503},
		{replica, "/replica?replication_state=", 200},
		{primary, "/primary?replication_state=x", 200},
		{primary, "/primary?lag=0", 200},
		{primary, "/read-only?lag=0", 200},
		{replica, "/replica?tag_zone=eu-1", 200},
		{replica, "/replica?tag_zone=eu-2", 503},
		{replica, "/replica?tag_zone=eu-1&tag_weight=3&tag_fast=true", 200},
		{replica, "/replica?tag_zone=eu-1&tag_weight=4", 503},
		{replica, "/replica?tag_absent=x", 503},
		{replica, "/replica?tag_none=x", 503},
		{replica, "/replica?tag_clonefrom=false", 503}, // a false boolean is not published
		{replica, "/health?tag_zone=eu-2", 503},
		{primary, "/read-only?tag_zone=eu-2", 503},
		{primary, "/primary?tag_zone=eu-2", 200}, // tags do not narrow the leader's checks
		{primary, "/leader?tag_zone=eu-2", 200},
	}
	for _, tt := range tests {
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		if got := stopped(t, tt.state).health(tt.state, u); got != tt.want {
			t.Errorf("%s on %s: %d, want %d", tt.url, tt.state.Name, got, tt.want)
		}
	}
}

func TestSuspendedHostIsNotFresh(t *testing.T) {
	// After a suspension the monotonic clock says that no time has passed and
	// the wall clock tells the truth; after the clock was set back it is the
	// other way round. Both must count.
	then := time.Now()
	asleep := then.Round(0).Add(time.Hour) // wall clock only
	if age(then, asleep) != time.Hour {
		t.Errorf("wall clock: age %v, want 1h", age(then, asleep))
	}
	later := then.Add(time.Hour)
	if age(then, later) < time.Hour {
		t.Errorf("monotonic clock: age %v, want 1h", age(then, later))
	}
}

func TestLivenessAndReadiness(t *testing.T) {
	edit := func(s State, f func(*State)) State {
		f(&s)
		return s
	}
	ago := func(s State, d time.Duration) State {
		s.LoopAt = now().Add(-d)
		return s
	}
	tests := []struct {
		name                string
		state               State
		liveness, readiness int
	}{
		{"primary", primaryState(now()), 200, 200},
		{"primary, stuck for a ttl", ago(primaryState(now()), 9*time.Second), 503, 503},
		{"a primary without the lease, stuck for a ttl", edit(ago(primaryState(now()), 9*time.Second), func(s *State) { s.Leader = false }), 503, 503},
		{"primary, stuck in pause mode", edit(ago(primaryState(now()), time.Hour), func(s *State) { s.Dynamic.Pause = true }), 200, 503},
		{"replica", replicaState(now()), 200, 200},
		{"replica, stuck for a ttl", ago(replicaState(now()), 9*time.Second), 200, 503},
		{"replica, stuck for twice the ttl", ago(replicaState(now()), 17*time.Second), 503, 503},
		{"replica that does not answer", edit(replicaState(now()), func(s *State) { s.Postgres.Accepting = false }), 200, 503},
		{"replica that never saw Consul", edit(replicaState(now()), func(s *State) { s.ConsulSeen = time.Time{} }), 200, 503},
		{"just started", State{}, 200, 503},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := stopped(t, tt.state)
			if got := s.liveness(tt.state); got != tt.liveness {
				t.Errorf("liveness %d, want %d", got, tt.liveness)
			}
			if got := s.readiness(tt.state, url.Values{}); got != tt.readiness {
				t.Errorf("readiness %d, want %d", got, tt.readiness)
			}
		})
	}
	for _, tt := range []struct {
		query  string
		change func(*State)
		want   int
	}{
		{"", func(s *State) { s.Postgres.ReplicationState = "" }, 503},
		{"", func(s *State) { s.Postgres.ReplicationState = "in archive recovery" }, 503},
		{"", func(s *State) { s.Dynamic.MaximumLagOnFailover = 1<<20 - 1 }, 503},
		{"lag=1MB", func(s *State) { s.Dynamic.MaximumLagOnFailover = 0 }, 200},
		{"lag=1023kB", nil, 503},
		{"lag=much", nil, 200},
		{"lag=1kB&mode=write", func(s *State) { s.Postgres.ReceivedLSN = s.Cluster.Status.Value.OpTime }, 200},
		{"lag=1kB&mode=apply", func(s *State) { s.Postgres.ReceivedLSN = s.Cluster.Status.Value.OpTime }, 503},
		{"lag=1GB", func(s *State) { s.Postgres.ReplayedLSN, s.Postgres.ReceivedLSN = 0, 0 }, 503},
	} {
		state := replicaState(now())
		if tt.change != nil {
			tt.change(&state)
		}
		query, err := url.ParseQuery(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		if got := stopped(t, state).readiness(state, query); got != tt.want {
			t.Errorf("readiness?%s: %d, want %d", tt.query, got, tt.want)
		}
	}
	s := stopped(t, State{})
	s.started = now().Add(-2*startLimit - time.Second)
	if got := s.liveness(State{}); got != 503 {
		t.Errorf("started long ago and never came round: liveness %d, want 503", got)
	}
}

func TestHealthChecksOverHTTP(t *testing.T) {
	primary := start(t, config.RestAPI{}, fixed(primaryState(time.Now())))
	for path, want := range map[string]int{
		"/": 200, "/primary": 200, "/primary/": 200, "/replica": 503, "/nonsense": 503,
		"/liveness": 200, "/readiness": 200, "/health": 200, "//primary": 200,
	} {
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			got := ask(t, method, primary.url+path, "")
			if got.status != want {
				t.Errorf("%s %s: %d, want %d", method, path, got.status, want)
			}
			bodyless := method != "GET" || path == "/liveness" || path == "/readiness"
			if bodyless != (got.body == "") {
				t.Errorf("%s %s: body %q", method, path, got.body)
			}
			if !bodyless && (!strings.Contains(got.body, `"role":"primary"`) || got.header.Get("Content-Type") != "application/json") {
				t.Errorf("%s %s: %v %s", method, path, got.header, got.body)
			}
		}
	}
}

func TestStatus(t *testing.T) {
	at := now().Add(-time.Second)
	tests := []struct {
		name   string
		compat string
		state  State
		edit   func(*State)
		want   string
	}{
		{"primary", "", primaryState(at), func(s *State) {
			s.Tags = map[string]any{"new_tag": "new_value", "nofailover": false}
			s.Postgres.Standbys = []Standby{
				{User: "replicator", ApplicationName: "node2", ClientAddr: "10.0.0.2", State: "streaming", SyncState: "async"},
				{User: "replicator", ApplicationName: "node3", State: "streaming", SyncState: "sync", SyncPriority: 1},
			}
			s.Postgres.PendingRestart = map[string]cluster.PendingChange{"max_connections": {OldValue: "100", NewValue: "101"}}
		}, `{"state":"running","postmaster_start_time":"2026-11-21 02:49:57.598387+00:00","role":"primary","server_version":150020,
			"xlog":{"location":104857600},"timeline":2,
			"replication":[
			 {"usename":"replicator","application_name":"node2","client_addr":"10.0.0.2","state":"streaming","sync_state":"async","sync_priority":0},
			 {"usename":"replicator","application_name":"node3","client_addr":null,"state":"streaming","sync_state":"sync","sync_priority":1}],
			"dcs_last_seen":1795230000,"tags":{"new_tag":"new_value"},"database_system_identifier":"7277694203142172922",
			"pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"101"}},
			"patroni":{"version":"1.2.3","scope":"batman","name":"node1"},
			"lictor":{"lease_left_ms":6000,"guard":{"running":true,"armed_for_ms":5000},"reason":"leading",
			 "beat":{"lease_ms":8000,"beat":42,"owner":"node1"},"loop_age_ms":1000}}`},
		{"primary in Patroni 3's words, paused, on failsafe", "patroni-3", primaryState(at), func(s *State) {
			s.Dynamic.Pause, s.FailsafeActive = true, true
		}, `{"state":"running","postmaster_start_time":"2026-11-21 02:49:57.598387+00:00","role":"master","server_version":150020,
			"xlog":{"location":104857600},"timeline":2,"pause":true,"failsafe_mode_is_active":true,
			"dcs_last_seen":1795230000,"database_system_identifier":"7277694203142172922",
			"patroni":{"version":"1.2.3","scope":"batman","name":"node1"},
			"lictor":{"lease_left_ms":6000,"guard":{"running":true,"armed_for_ms":5000},"reason":"leading",
			 "beat":{"lease_ms":8000,"beat":42,"owner":"node1"},"loop_age_ms":1000}}`},
		{"synchronous replica", "", replicaState(at), func(s *State) {
			s.Dynamic.SynchronousMode = cluster.SyncOn
			s.Cluster = synced(s.Cluster, "node2")
			s.Postgres.ReplayedAt = time.Date(2026, 11, 21, 2, 59, 0, 0, time.FixedZone("", 3600))
			s.Postgres.ReceivedLSN = 0
			s.GuardRunning = false
		}, `{"state":"running","postmaster_start_time":"2026-11-21 02:49:57.598387+00:00","role":"replica","server_version":150020,
			"xlog":{"received_location":103809024,"replayed_location":103809024,"replayed_timestamp":"2026-11-21 01:59:00+00:00","paused":false},
			"timeline":2,"sync_standby":true,"replication_state":"streaming",
			"dcs_last_seen":1795230000,"database_system_identifier":"7277694203142172922",
			"patroni":{"version":"1.2.3","scope":"batman","name":"node2"},
			"lictor":{"guard":{"running":false,"armed_for_ms":0},"reason":"following node1",
			 "beat":{"lease_ms":8000,"beat":42,"owner":"node1"},"loop_age_ms":1000,"replaying":false}}`},
		{"PostgreSQL does not answer, nobody leads", "", replicaState(at), func(s *State) {
			s.Postgres.Accepting = false
			s.Cluster.Leader = cluster.Entry[string]{}
			s.Cluster.Status = cluster.Entry[cluster.Status]{}
			s.ConsulSeen = time.Time{}
			s.Member.ScheduledRestart = map[string]any{"schedule": "2099-01-01T00:00:00+00:00", "postmaster_start_time": "x"}
		}, `{"state":"unknown","role":"replica","cluster_unlocked":true,"dcs_last_seen":0,
			"database_system_identifier":"7277694203142172922","patroni":{"version":"1.2.3","scope":"batman","name":"node2"},
			"scheduled_restart":{"schedule":"2099-01-01T00:00:00+00:00"},
			"lictor":{"guard":{"running":true,"armed_for_ms":0},"reason":"following node1","loop_age_ms":1000}}`},
		{"being cloned anew", "", replicaState(at), func(s *State) {
			s.Postgres = Postgres{State: "creating replica"}
			s.Member.Role = "uninitialized"
			s.Task = Progress{
				Kind: "reinitialize", Since: at.Add(-5 * time.Second), From: "node1",
				Copying: pg.Copying{Method: "basebackup", Done: 1000, Total: 4000, Failed: "method pgbackrest: gone"},
			}
		}, `{"state":"creating replica","role":"uninitialized","dcs_last_seen":1795230000,
			"patroni":{"version":"1.2.3","scope":"batman","name":"node2"},
			"lictor":{"guard":{"running":true,"armed_for_ms":0},"reason":"following node1",
			 "task":{"kind":"reinitialize","for_ms":6000,"from":"node1","method":"basebackup","bytes":1000,"total_bytes":4000,"failed":"method pgbackrest: gone"},
			 "beat":{"lease_ms":8000,"beat":42,"owner":"node1"},"loop_age_ms":1000}}`},
		{"crashed primary", "", primaryState(at), func(s *State) {
			s.Postgres = Postgres{State: "crashed"}
			s.Member.Role = "master"
		}, `{"state":"crashed","role":"primary","dcs_last_seen":1795230000,
			"patroni":{"version":"1.2.3","scope":"batman","name":"node1"},
			"lictor":{"lease_left_ms":6000,"guard":{"running":true,"armed_for_ms":5000},"reason":"leading",
			 "beat":{"lease_ms":8000,"beat":42,"owner":"node1"},"loop_age_ms":1000}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.edit(&tt.state)
			server := start(t, config.RestAPI{}, fixed(tt.state), func(s *Server) {
				s.Compat = tt.compat
				s.now = now
			})
			got := ask(t, "GET", server.url+"/patroni", "")
			if got.status != 200 || !sameJSON(t, got.body, strings.ReplaceAll(tt.want, "1795230000", strconv.FormatInt(at.Unix(), 10))) {
				t.Errorf("%d\n%s\nwant\n%s", got.status, got.body, tt.want)
			}
		})
	}
}

func TestParseBytes(t *testing.T) {
	good := map[string]int64{"0": 0, "10": 10, "10B": 10, "1kB": 1024, " 1 MB ": mega, "1mb": mega, "2GB": 2 << 30, "1TB": 1 << 40, "1.5kB": 1536}
	for _, in := range slices.Sorted(maps.Keys(good)) {
		if got, err := parseBytes(in); err != nil || got != good[in] {
			t.Errorf("%q: %d, %v, want %d", in, got, err, good[in])
		}
	}
	for _, in := range []string{"", "MB", "-1", "1XB", "1PB", "ten", "1e30TB", "NaN", "Inf"} {
		if got, err := parseBytes(in); err == nil {
			t.Errorf("%q: %d, want an error", in, got)
		}
	}
}
