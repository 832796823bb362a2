package ha

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

const remote = "remote primary db9:5432"

// isStandby makes the shard the standby of another one.
func isStandby(v *View) { v.Config.StandbyCluster = cluster.StandbyCluster{Host: "db9", Port: 5432} }

// follows sets a up as a replica of upstream.
func follows(upstream string) func(*View) {
	return func(v *View) { v.Postgres.Primary, v.Postgres.Upstream, v.Postgres.Streaming = false, upstream, true }
}

// standbyLeads makes name the leader of a standby shard, its last beat seen ago before now.
func standbyLeads(name string, ago time.Duration) func(*View) {
	return func(v *View) {
		isStandby(v)
		leads(name, ago)(v)
		v.Cluster.Status.Value.Lictor.Standby = true
		for i := range v.Cluster.Members {
			if v.Cluster.Members[i].Value.Name == name {
				v.Cluster.Members[i].Value.Role = cluster.RoleStandbyLeader
			}
		}
	}
}

// leadsStandby gives a the lease of a standby shard; it follows the remote primary.
func leadsStandby(v *View) {
	holdsLease(7 * time.Second)(v)
	standbyLeads("a", 0)(v)
	follows(remote)(v)
}

func TestStandbyLeader(t *testing.T) {
	crashing := func(v *View) { v.Postgres.Crashes = crashLoop }
	timedOut := func(v *View) { v.Postgres.DownSince = now.Add(-v.Config.PrimaryStartTimeout) }
	const rejoin = "rejoin as replica of " + remote
	runSituations(t, []situationTest{
		{"follows the remote primary", view(leadsStandby), "", "following the " + remote},
		{"receives nothing", view(leadsStandby, func(v *View) { v.Postgres.Streaming = false }), "", "from which nothing is received"},
		{"beats", view(leadsStandby, func(v *View) { v.Lease.BeatSent = now.Add(-2 * time.Second) }), "beat", "standby leader"},
		{"has just taken the lock, and follows nobody", view(leadsStandby, follows("")), "follow " + remote, "standby leader"},
		{"followed the last leader", view(leadsStandby, follows("b")), "follow " + remote, "standby leader"},
		{"standby_cluster names another host", view(leadsStandby, follows("remote primary db8:5432")), "follow " + remote, "standby leader"},
		{"its WAL is none of the remote primary's", view(leadsStandby, func(v *View) { v.Postgres.Strayed = true }), rejoin, "none of"},
		{"replay stands still", view(leadsStandby, undersized), "restart as replica of " + remote, "stands still"},
		{"is down", view(leadsStandby, down), rejoin, ""},
		{"is down, was a primary", view(leadsStandby, down, primary), rejoin, ""},
		{"is down, nothing may be started yet", view(leadsStandby, down, func(v *View) { v.Attempt = Attempt{Kind: TaskRejoin, Failures: 1, NotUntil: now.Add(time.Second)} }), "", "waiting to try again"},
		{"runs as a primary", view(leadsStandby, primary), rejoin, ""},
		{"crashes again and again", view(leadsStandby, down, crashing, asked(peer("b", 1, 5000))), "give the lease up to b", "fails again"},
		{"crashes again and again, nobody else can lead", view(leadsStandby, down, crashing, asked()), rejoin, ""},
		{"did not come up", view(leadsStandby, down, timedOut, asked(peer("b", 1, 5000))), "give the lease up to b", "primary_start_timeout"},
		{"starts", view(leadsStandby, func(v *View) { v.Postgres.Accepting = false }), "", "is starting"},
		{"starts, and was to get the WAL that it needs from nobody", view(leadsStandby, follows(""), func(v *View) { v.Postgres.Accepting = false }), "follow " + remote, "standby leader"},
		{"starts as a primary", view(leadsStandby, follows(""), primary, func(v *View) { v.Postgres.Accepting = false }), "", "is starting"},
		{"starts for too long", view(leadsStandby, timedOut, func(v *View) { v.Postgres.Accepting = false }, asked(peer("b", 1, 5000))), "give the lease up to b", "did not come up"},
		{"the key sync is left of a primary", view(leadsStandby, syncKey("a", "b")), "delete the sync key", "promises no commits"},
		{"the key sync is being written", view(leadsStandby, syncKey("a", "b"), func(v *View) { v.SyncWriting = true }), "", "following"},
		{"synchronous mode is on", view(leadsStandby, func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }), "", "following"},
		{"the watchdog does not work", view(leadsStandby, func(v *View) { v.WatchdogOK, v.Attempt.Failures = false, 1 }), "", "following"},
		{"is asked to switch over", view(leadsStandby, request(cluster.Failover{Leader: "a", Candidate: "b"}), asked(peer("b", 1, 5000))), "hand over to b", "switching over"},
		{"the lease is over", view(leadsStandby, func(v *View) { v.Lease.Until = now }), "kill PostgreSQL", "over"},
		{"paused", view(leadsStandby, paused_), "", "following"},
		{"paused, follows another", view(leadsStandby, paused_, follows("b")), "follow " + remote, ""},
		{"paused, its WAL is none of the remote primary's", view(leadsStandby, paused_, func(v *View) { v.Postgres.Strayed = true }), "", "following"},
		{"paused, down", view(leadsStandby, paused_, down), "", "paused"},
		{"paused, a primary", view(leadsStandby, paused_, primary), "", "paused"},
		{"standby_cluster is removed", view(leadsStandby, func(v *View) { v.Config.StandbyCluster = cluster.StandbyCluster{} }), "promote", "the leader"},
		{"standby_cluster is removed, and the next timeline is not told", view(leadsStandby, func(v *View) {
			v.Config.StandbyCluster, v.Cluster.Status.Value.Lictor.Timeline = cluster.StandbyCluster{}, 1
		}), "", "must be told"},
		{"standby_cluster is removed, and the next timeline is told", view(leadsStandby, func(v *View) {
			v.Config.StandbyCluster, v.Cluster.Status.Value.Lictor.Timeline = cluster.StandbyCluster{}, 2
		}), "promote", "the leader"},
		{"standby_cluster is removed, and it is down", view(leadsStandby, down, func(v *View) { v.Config.StandbyCluster = cluster.StandbyCluster{} }), "start as replica of nobody", "before its promotion"},
		{"standby_cluster is removed in synchronous mode", view(leadsStandby, func(v *View) {
			v.Config.StandbyCluster, v.Config.SynchronousMode = cluster.StandbyCluster{}, cluster.SyncOn
		}), "promote", "the leader"},
		{"standby_cluster is removed in pause", view(leadsStandby, paused_, func(v *View) { v.Config.StandbyCluster = cluster.StandbyCluster{} }), "", ""},
		{"standby_cluster is not understood", view(leadsStandby, func(v *View) {
			v.Config.StandbyCluster = cluster.HeedStandbyCluster(map[string]any{"standby_cluster": map[string]any{"host": 1}})
		}), "", "not understood"},
	})
}

func TestStandbyShardElects(t *testing.T) {
	just := ttl + ttl/40 // its lease is just over
	far := func(v *View) { v.Cluster.Status.Value.OpTime = 5000 + 2<<20 }
	const take = "take over (status at 45)"
	runSituations(t, []situationTest{
		{"the best leads", view(standbyLeads("b", just), asked()), take, "best"},
		{"its lease is not over", view(standbyLeads("b", time.Second), lockGone), "", "following b"},
		{"another is ahead", view(standbyLeads("b", just), asked(peer("c", 1, 6000))), "", "c is ahead"},
		{"lags too far", view(standbyLeads("b", just), asked(), far), "", "lags"},
		{"lags behind what was written before there was a standby shard", view(standbyLeads("b", just), asked(), far, func(v *View) {
			v.Cluster.Status.Value.Lictor.Standby = false
		}), take, "best"},
		{"the watchdog does not work", view(standbyLeads("b", just), asked(), func(v *View) { v.WatchdogOK = false }), take, "best"},
		{"nofailover", view(standbyLeads("b", just), asked(), func(v *View) { v.Tags = map[string]any{"nofailover": true} }), "", "nofailover"},
		{"nostream", view(standbyLeads("b", just), asked(), func(v *View) { v.Tags = map[string]any{"nostream": true} }), "", "nostream"},
		{"a better one is tagged nostream", view(standbyLeads("b", just), asked(archived("c", 6000))), take, "best"},
		{"data of a standby, a new shard", view(newShard, isStandby, asked(), func(v *View) { v.StatusSeen = now.Add(-time.Minute) }), "take over (status at 0)", "best"},
		{"the same, down", view(newShard, isStandby, down), "start as replica of " + remote, "how far"},
		{"data of a primary, a new shard", view(newShard, isStandby, down, primary, asked()), "take over (status at 0)", "our own lock"},
		{"another member copies the remote primary", view(newShard, isStandby, asked(), func(v *View) {
			v.StatusSeen = now.Add(-time.Minute)
			v.Cluster.Initialize = cluster.Entry[string]{Session: "sb", ModifyIndex: 3}
		}), "", "another member makes the shard"},
		{"this one has copied it", view(newShard, isStandby, asked(), func(v *View) {
			v.StatusSeen = now.Add(-time.Minute)
			v.Cluster.Initialize = cluster.Entry[string]{Session: "sa", ModifyIndex: 3}
		}), "register the shard: take over (status at 0)", "best"},
	})
}

func TestStandbyShardBegins(t *testing.T) {
	alone := func(v *View) { v.Cluster.Members = v.Cluster.Members[:1] }
	runSituations(t, []situationTest{
		{"nobody has", view(newShard, isStandby, empty), "bootstrap from the " + remote, "does not exist yet"},
		{"nofailover", view(newShard, isStandby, empty, func(v *View) { v.Tags = map[string]any{"nofailover": true} }), "", "waiting for a leader"},
		{"nostream", view(newShard, isStandby, empty, func(v *View) { v.Tags = map[string]any{"nostream": true} }), "", "waiting for a leader"},
		{"another member does", view(newShard, isStandby, empty, func(v *View) {
			v.Cluster.Initialize = cluster.Entry[string]{Session: "sb", ModifyIndex: 3}
		}), "", "waiting for the member that bootstraps"},
		{"a standby leader runs", view(standbyLeads("b", time.Second), empty), "clone from b", "b leads"},
		{"nobody leads for now", view(isStandby, empty), "", "waiting for a leader"},
		{"the only member has lost its data", view(isStandby, empty, alone), "clone from " + remote, "no other member"},
		{"standby_cluster is not understood", view(newShard, empty, func(v *View) {
			v.Config.StandbyCluster = cluster.HeedStandbyCluster(map[string]any{"standby_cluster": map[string]any{"port": 1}})
		}), "", "not understood"},
	})
}

// The other members follow the standby leader as they follow a primary.
func TestStandbyLeaderIsFollowed(t *testing.T) {
	runSituations(t, []situationTest{
		{"down", view(standbyLeads("b", time.Second), down), "rejoin as replica of b", "b leads"},
		{"followed the remote primary as the last leader", view(standbyLeads("b", time.Second), follows(remote)), "follow b", "b leads"},
		{"a replica", view(standbyLeads("b", time.Second)), "", "following b"},
		{"its lease was lost, and it runs as a primary", view(standbyLeads("b", time.Second), primary), "kill PostgreSQL", "while b leads"},
	})
}
