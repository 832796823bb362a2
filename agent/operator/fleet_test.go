package operator

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/events"
)

func TestAlarms(t *testing.T) {
	verified := time.Now()
	bouncer := func(b cluster.BouncerShard) []cluster.Bouncer {
		return []cluster.Bouncer{{Name: "p", All: true, Applied: map[string]cluster.BouncerShard{"service/x": b}}}
	}
	right := cluster.BouncerShard{Leader: "a", Timeline: 2, State: cluster.RouteOpen, VerifiedAt: &verified}
	for _, c := range []struct {
		name     string
		edit     func(*cluster.Snapshot)
		shard    func(*fleetShard)
		bouncers []cluster.Bouncer
		want     string // all alarms, joined
		replicas string // empty: not looked at
	}{
		{name: "all is well", bouncers: bouncer(right)},
		{name: "another shard's bouncer", bouncers: []cluster.Bouncer{{Name: "p", Shards: []string{"service/y"}}}},
		{name: "no leader", edit: func(s *cluster.Snapshot) { s.Leader = cluster.Entry[string]{} }, want: "no leader"},
		{name: "stopped", edit: func(s *cluster.Snapshot) { s.Members[1].Value.State = cluster.StateStopped }, want: "b is stopped"},
		{name: "another primary", edit: func(s *cluster.Snapshot) {
			s.Members[1].Value.Role, s.Members[1].ModifyIndex = cluster.RolePrimary, s.Leader.ModifyIndex+1
		}, want: "b says that it is a primary, too"},
		{name: "the former leader's host has died, and its key remains", edit: func(s *cluster.Snapshot) {
			s.Members[1].Value.Role, s.Members[1].Value.Timeline, s.Members[1].Value.ReplicationState = cluster.RoleMaster, 1, ""
			s.Leader.ModifyIndex = s.Members[1].ModifyIndex + 1
		}, want: "b has not been heard of since a took over", replicas: "1/2"},
		{name: "another timeline", edit: func(s *cluster.Snapshot) { s.Members[2].Value.Timeline = 1 }, want: "c is on timeline 1"},
		{name: "no replication", edit: func(s *cluster.Snapshot) { s.Members[2].Value.ReplicationState = "" }, want: "c does not replicate"},
		{name: "lag", edit: func(s *cluster.Snapshot) { s.Members[2].Value.XLogLocation -= 3 << 20 }, want: "c lags 3 MB"},
		{name: "the leader has switched to another segment since the replica looked", edit: func(s *cluster.Snapshot) {
			s.Members[2].Value.Lictor = &cluster.MemberLictor{LeaderLSN: s.Status.Value.OpTime}
			s.Status.Value.OpTime += 15 << 20
			s.Members[1].Value.XLogLocation += 15 << 20
		}},
		{name: "a lag when the replica looked", edit: func(s *cluster.Snapshot) {
			s.Members[2].Value.Lictor = &cluster.MemberLictor{LeaderLSN: s.Status.Value.OpTime}
			s.Members[2].Value.XLogLocation -= 3 << 20
		}, want: "c lags 3 MB"},
		{
			name: "the WAL is gone", edit: func(s *cluster.Snapshot) {
				s.Members[2].Value.ReplicationState = ""
				s.Members[2].Value.Lictor = &cluster.MemberLictor{Stranded: "the WAL that it needs is gone from a"}
			},
			want: "c cannot go on: the WAL that it needs is gone from a",
		},
		{
			name: "replay stands still", edit: func(s *cluster.Snapshot) {
				s.Members[2].Value.ReplayStandsStill = "delayed by recovery_min_apply_delay, 1h"
			},
			want: "replay of c stands still: delayed by recovery_min_apply_delay, 1h",
		},
		{
			name: "the archive fails", shard: func(s *fleetShard) {
				s.archiver = &api.PeerArchiver{Failing: true, Waiting: 3, WaitingFor: time.Second, LastFailed: "000000010000000000000007"}
			},
			want: "a cannot archive 000000010000000000000007, and 2 files behind it",
		},
		{
			name:  "the archive hangs",
			shard: func(s *fleetShard) { s.archiver = &api.PeerArchiver{Waiting: 3, WaitingFor: time.Hour} }, want: "WAL of a has waited for the archive for 60 min",
		},
		{name: "backups", shard: func(s *fleetShard) { s.backups = "there is no good backup of this cluster" }, want: "there is no good backup of this cluster"},
		{name: "no verification", shard: func(s *fleetShard) { s.unverified = "none of the backups was restored and checked" }, want: "none of the backups was restored and checked"},
		{name: "the archive is at work", shard: func(s *fleetShard) { s.archiver = &api.PeerArchiver{Waiting: 3, WaitingFor: time.Minute} }},
		{name: "a standby shard", edit: standbyShard("streaming"), shard: follows("10.9.0.1")},
		{name: "a standby shard by the archive", edit: standbyShard("in archive recovery"), shard: func(s *fleetShard) { s.dynamic.StandbyCluster.RestoreCommand = "cp" }},
		{name: "a standby shard that gets nothing", edit: standbyShard(""), shard: follows("10.9.0.1"), want: "a gets nothing from the remote primary 10.9.0.1:5432"},
		{name: "a shard that follows itself", edit: standbyShard("streaming"), shard: follows("10.0.0.2"), want: "the shard follows itself, 10.0.0.2:5432 is b, a member of this shard"},
		{name: "a standby shard whose promotion was refused", edit: standbyShard("streaming"), want: "no primary: a is a standby leader"},
		{name: "a site that was succeeded", edit: func(s *cluster.Snapshot) {
			standbyShard("")(s)
			s.Status.Value.Lictor.Succeeded = 5
		}, want: "no primary: the other site has taken over, on timeline 5"},
		{name: "a member that is lost", edit: func(s *cluster.Snapshot) { s.Status.Value.RetainSlots = []string{"db_4"} }, want: "a member is missing: nobody is here who uses the slot db_4"},
		{name: "one that is back", edit: func(s *cluster.Snapshot) { s.Status.Value.RetainSlots = []string{"c"} }},
		{name: "alone", edit: func(s *cluster.Snapshot) { s.Members = s.Members[:1] }, want: "no replica"},
		{name: "restart", edit: func(s *cluster.Snapshot) { s.Members[0].Value.PendingRestart = true }, want: "a waits for a restart"},
		{name: "pause", shard: func(s *fleetShard) { s.dynamic.Pause = true }, want: "paused"},
		{name: "configuration", shard: func(s *fleetShard) { s.problem = errors.New("ttl") }, want: "the dynamic configuration is not valid: ttl"},
		{name: "synchronous", shard: func(s *fleetShard) { s.dynamic.SynchronousMode = cluster.SyncOn }, want: "no synchronous standby"},
		{name: "no route", edit: func(s *cluster.Snapshot) { s.Route = cluster.Entry[cluster.Route]{} }, want: "no route"},
		{name: "no route of Patroni", edit: func(s *cluster.Snapshot) {
			s.Route, s.Status.Value.Lictor = cluster.Entry[cluster.Route]{}, nil
			s.Members[1].Value.ReplicationState = ""
		}},
		{name: "another cluster's route", edit: func(s *cluster.Snapshot) { s.Route.Value.SystemIdentifier = "1" }, want: "the route belongs to another cluster"},
		{name: "old route", edit: func(s *cluster.Snapshot) { s.Route.Value.Leader.Name = "b" }, want: "the route leads to b"},
		{name: "closed route", edit: func(s *cluster.Snapshot) { s.Route.Value.State = cluster.RoutePromoting }, want: "the route is promoting"},
		{name: "bouncer behind", bouncers: bouncer(cluster.BouncerShard{Leader: "b", Timeline: 1}), want: "bouncer p leads to b on timeline 1"},
		{name: "bouncer holds", bouncers: bouncer(cluster.BouncerShard{Leader: "a", Timeline: 2, Held: true}), want: "bouncer p holds the clients"},
		{name: "bouncer unsure", bouncers: bouncer(cluster.BouncerShard{Leader: "a", Timeline: 2}), want: "bouncer p has not verified it"},
		{
			name: "a forgotten pause", bouncers: bouncer(cluster.BouncerShard{Leader: "a", Timeline: 2, VerifiedAt: &verified, Paused: &cluster.BouncerPause{By: "eve@p", Since: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}}),
			want: "bouncer p has clients wait since 2026-05-04T03:02:01Z, paused by eve@p",
		},
		{name: "all bouncers drain", bouncers: []cluster.Bouncer{{Name: "p", All: true, Draining: true, Applied: map[string]cluster.BouncerShard{"service/x": right}}}, want: "all bouncers are draining"},
		{name: "one of two bouncers drains", bouncers: append(bouncer(right), cluster.Bouncer{Name: "q", All: true, Draining: true, Applied: map[string]cluster.BouncerShard{"service/x": right}})},
		{name: "bouncer without it", bouncers: []cluster.Bouncer{{Name: "p", All: true, Applied: map[string]cluster.BouncerShard{}}}, want: "bouncer p does not have it"},
		{name: "bouncer that does not tell", bouncers: []cluster.Bouncer{{Name: "p", All: true}}, want: "bouncer p does not tell what it leads to, or lictor/bouncers-applied/ may not be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fleetShard{scope: "x", snapshot: shardOf(c.edit), dynamic: cluster.Dynamic{MaximumLagOnFailover: 1 << 20}}
			if c.shard != nil {
				c.shard(&s)
			}
			s.servedBy("service", c.bouncers)
			var all []string
			for _, a := range s.alarms() {
				all = append(all, a.what)
				if a.do == "" || a.kind == "" {
					t.Errorf("nothing to do about %q (of the kind %q)", a.what, a.kind)
				}
				if _, err := os.Stat("../../docs/runbooks/" + a.runbook + ".md"); a.runbook != "" && err != nil {
					t.Errorf("%q: %v", a.what, err)
				}
			}
			got := strings.Join(all, "; ")
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) || strings.Contains(got, ";") {
				t.Errorf("got %q, want %q", got, c.want)
			}
			row := s.row(nil)
			if len(row) != len(fleetTable().Columns) {
				t.Errorf("%d cells", len(row))
			}
			if c.replicas != "" && row[2].Text != c.replicas {
				t.Errorf("replicas: %s, want %s", row[2].Text, c.replicas)
			}
			findings := map[string]int{}
			for _, f := range examineShard(s) {
				if findings[strings.SplitN(f.What, ":", 2)[0]]++; findings["the dynamic configuration is not valid"] > 1 {
					t.Errorf("told twice: %q", f.What)
				}
				if s.problem != nil && strings.Contains(f.What, "asynchronous") {
					t.Errorf("%q, although what is in force is not known", f.What)
				}
				if f.Level == Wrong && f.Do == "" {
					t.Errorf("nothing to do about %q", f.What)
				}
			}
		})
	}
}

// Who went away and has not come back is known by the leaders' records when its slot is kept no more.
func TestLost(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 1, 2, 3, minute, 0, 0, time.UTC) }
	log := events.Log{Events: []events.Event{
		{Kind: events.MemberLost, To: "b", At: at(1)},
		{Kind: events.MemberLost, To: "d", At: at(2)},
		{Kind: events.MemberBack, To: "d", At: at(3)},
		{Kind: events.MemberLost, To: "db-4", At: at(4)},
		{Kind: events.MemberLost, To: "e", At: at(5)},
		{Kind: events.MemberLost, To: "e", At: at(6)},
	}}
	kept := shardOf(func(s *cluster.Snapshot) { s.Status.Value.RetainSlots = []string{"db_4"} })
	if got := lost(kept, log); len(got) != 1 || !got["e"].Equal(at(6)) {
		t.Errorf("%v", got)
	}
	if got := lost(shardOf(nil), log); len(got) != 2 || !got["db-4"].Equal(at(4)) {
		t.Errorf("%v", got)
	}
}

// People see which shards have a standby leader, programs its name.
func TestFleetMarksAStandbyLeader(t *testing.T) {
	s := fleetShard{scope: "x", snapshot: shardOf(standbyShard("streaming"))}
	if cell := s.row(nil)[1]; cell.Text != "a (standby leader)" || cell.Value != "a" {
		t.Errorf("%+v", cell)
	}
}

// standbyShard makes the leader a standby leader, and follows says whom it is to follow.
func standbyShard(replication string) func(*cluster.Snapshot) {
	return func(s *cluster.Snapshot) {
		s.Members[0].Value.Role, s.Members[0].Value.ReplicationState = cluster.RoleStandbyLeader, replication
		s.Route.Value.State = cluster.RouteDown
	}
}

func follows(host string) func(*fleetShard) {
	return func(s *fleetShard) { s.dynamic.StandbyCluster = cluster.StandbyCluster{Host: host, Port: 5432} }
}

func TestRefusedHBA(t *testing.T) {
	s := fleetShard{scope: "x", snapshot: shardOf(nil), dynamic: cluster.Dynamic{
		SynchronousMode: cluster.SyncOn, MaximumLagOnFailover: 1 << 20,
		Postgres: cluster.DynamicPostgres{PgHBA: []string{"local all all peer", "hots all all 0.0.0.0/0 md5"}},
	}}
	var found []string
	for _, f := range examineShard(s) {
		if strings.Contains(f.What, "pg_hba") && f.Level == Wrong && f.Do != "" {
			found = append(found, f.What)
		}
	}
	if len(found) != 1 || !strings.Contains(found[0], "postgresql.pg_hba[1]") {
		t.Errorf("got %q", found)
	}
}

// A bouncer that writes another's name into its own key is not that one.
func TestBouncersNameIsItsKeys(t *testing.T) {
	site := &Site{Settings: Settings{Namespace: "service"}}
	value := []byte(`{"name":"pooler1","url":"http://10.0.0.1:8009","all":true}`)
	f := site.parseFleet(answer{}, nil, consulapi.KVPairs{
		{Key: "lictor/bouncers/evil", Session: "1", Value: value},
		{Key: "lictor/bouncers/evil/pooler1", Session: "1", Value: value},
		{Key: "lictor/bouncers/pooler1", Session: "2", Value: value},
	}, nil)
	if len(f.bouncers) != 1 {
		t.Errorf("bouncers: %+v", f.bouncers)
	}
}
