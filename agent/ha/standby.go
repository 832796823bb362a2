package ha

import (
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is design 5.27: the leader of a shard that is the standby of another one, at
// another site. It is no primary, and no other member is: it holds the lease and streams
// from the remote primary, the others from it.

// standbyLeader: this member leads a standby shard.
//
//	PostgreSQL                       decision
//	primary, and the remote one is   rejoin the remote primary, rewinding where needed; it
//	  not understood                 runs on as it is
//	down                             rejoin the remote primary; start without it, if it does
//	                                 not answer
//	down, primary_start_timeout over,
//	  or in a crash loop, and another
//	  member can lead                give the lease up
//	replica of anybody else          follow the remote primary, which may have the WAL for which a
//	                                 start waits
//	running, not accepting           wait for it, up to primary_start_timeout
//	its WAL is none of the remote
//	  primary's                      rejoin
//	replay waits for a restart       restart
//	replica of the remote primary    handover if asked for; the key sync goes, as it promises
//	                                 nothing here; the failsafe list
//
// In pause nothing is stopped or started.
func standbyLeader(v View) Decision {
	pg, remote := v.Postgres, v.Config.StandbyCluster.Upstream()
	rejoin := v.unlessFailing(do("the standby leader", Rejoin{Upstream: remote}))
	switch {
	case remote == "":
		return wait("the leader; standby_cluster is not understood, so nobody is promoted and nobody new is followed")
	case v.Config.Pause && (!pg.Accepting || pg.Primary):
		return wait("the standby leader; the shard is paused")
	case !pg.Running && mustMoveOn(v):
		return giveUpOr(v, "PostgreSQL fails again and again, or did not come up within primary_start_timeout", rejoin)
	case !pg.Running, pg.Accepting && pg.Primary:
		return rejoin
	case !pg.ShutDown.IsZero():
		d, _ := shutDown(v)
		return d
	case !pg.Accepting && v.startTimedOut():
		return giveUpOr(v, "PostgreSQL did not come up within primary_start_timeout", Decision{})
	case !pg.Accepting && !pg.Primary && pg.Upstream != remote:
		return v.unlessFailing(do("the standby leader", Follow{Upstream: remote}))
	case !pg.Accepting:
		return wait("the standby leader; PostgreSQL is starting")
	case v.Read.IsZero():
		return Decision{} // what is to be done besides is in Consul
	case pg.Upstream != remote:
		return v.unlessFailing(do("the standby leader", Follow{Upstream: remote}))
	case pg.Strayed && !v.Config.Pause:
		return v.unlessFailing(do("our WAL is none of the remote primary's", Rejoin{Upstream: remote}))
	case pg.Undersized != "" && !v.Config.Pause:
		return v.unlessFailing(do("replay stands still: "+pg.Undersized, RestartReplica{Upstream: remote}))
	}
	for _, chore := range []func(View) Decision{handover, promisesNothing, failsafeList} {
		if d := chore(v); d.Reason != "" || len(d.Actions) > 0 {
			return d
		}
	}
	if !pg.Streaming && v.Config.StandbyCluster.Host != "" {
		return wait(fmt.Sprintf("the standby leader, set up to follow the %s, from which nothing is received", remote))
	}
	return wait("the standby leader, following the " + remote)
}

// promisesNothing removes the key sync: a shard without a primary acknowledges no commits,
// and whoever was named for those of before would be the only one that may lead.
func promisesNothing(v View) Decision {
	if key := v.Cluster.Sync; key.Exists() && !v.SyncWriting {
		return do("the standby leader; a standby shard promises no commits", WriteSync{Index: key.ModifyIndex})
	}
	return Decision{}
}

// mustMoveOn reports whether this leader's PostgreSQL, which is down, should not be waited for
// any longer where another member can lead.
func mustMoveOn(v View) bool {
	return v.Config.PrimaryStartTimeout == 0 || v.startTimedOut() || v.Postgres.Crashes >= crashLoop ||
		(v.Attempt.Kind == TaskStart || v.Attempt.Kind == TaskRejoin) && v.Attempt.Failures >= crashLoop
}

// fillFromRemote: there are no data, nobody leads, and the shard is to be the standby of
// another one. Whoever is first copies the remote primary: the key initialize keeps the others
// waiting, as they copy the first one then. A shard that has made its start may have lost
// all data of its last member: those are copied anew.
func fillFromRemote(v View, what string) (Decision, bool) {
	remote := v.Config.StandbyCluster.Upstream()
	init := v.Cluster.Initialize
	switch {
	case !v.Config.StandbyCluster.On():
		return Decision{}, false
	case remote == "":
		return wait(what + ", and standby_cluster is not understood"), true
	case init.Exists() && init.Value != "" && v.soleMember():
		return do(what+", and there is no other member: copying the "+remote, Clone{From: remote}), true
	case init.Exists(), cluster.NoFailover(v.Tags): // as in any shard
		return Decision{}, false
	case cluster.NoStream(v.Tags):
		return wait(what + ": waiting for a leader, as nostream members do not follow the " + remote), true
	}
	return do("the standby shard does not exist yet: copying the "+remote, Bootstrap{From: remote}), true
}

// firstUpstream is whom a member follows before anybody has led the shard: of a standby shard the remote
// primary, as a copy may lack the WAL that it begins with; empty: nobody.
func firstUpstream(v View) string {
	if v.beat() != nil || cluster.NoStream(v.Tags) {
		return ""
	}
	return v.Config.StandbyCluster.Upstream()
}

// soleMember reports whether Consul shows no other member.
func (v Shard) soleMember() bool {
	for _, m := range v.Cluster.Members {
		if m.Value.Name != v.Name {
			return false
		}
	}
	return true
}
