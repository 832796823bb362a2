package ha

import (
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is what keeps two sites from being primaries beside each other (design 5.27): the members of
// a site that may lead ask the other one's.
//
//	this member, the leader       the other site                       decision
//	a primary that runs           has succeeded this site              stop it, and start it as a
//	                                                                   replica of nobody
//	a replica, or down            has succeeded this site              no primary is started
//	a replica, or down            was not asked yet                    wait for its answer
//	the standby leader, and the
//	  shard is one no more        has a primary, or received more      it is not promoted
//	a replica, or down            nothing proves that it has           no primary is started; one that
//	                                answered, and it may have           runs goes on
//	                                succeeded this site
//	any                           does not answer, or is behind        as if there were none
//
// In pause nobody is stopped.

// SiteView is what a member knows of the other site.
type SiteView struct {
	// Known: there is one to be asked; Asked: it was, and has answered or failed to.
	Known, Asked bool
	// Answered: the rest is what it has said.
	Answered bool
	cluster.Site
}

// PromotesSite reports whether the last leader of this shard was a standby leader, and the next one is to be
// a primary.
func (v Shard) PromotesSite() bool {
	b := v.beat()
	return b != nil && b.Standby && !v.Config.StandbyCluster.On()
}

// Succeeded is the timeline of the other site's primary that has taken over from this one; 0: none has.
// What was once seen lasts until the operator has decided what becomes of this site.
func (v Shard) Succeeded(seen SiteView) int {
	b := v.beat()
	switch {
	case v.Config.StandbyCluster.On() || !v.Config.OtherSite.Known() || b == nil:
		return 0
	case b.Succeeded > 0:
		return b.Succeeded
	case v.maySucceed(seen) && seen.Succeeds(b.Site):
		return seen.Timeline
	}
	return 0
}

// maySucceed reports whether the other site's primary has taken over if its answer is true, proved or not.
func (v Shard) maySucceed(seen SiteView) bool {
	b := v.beat()
	return b != nil && !v.Config.StandbyCluster.On() && v.Config.OtherSite.Known() && seen.Answered && !b.Standby && seen.MaySucceed(b.Site)
}

// Refusal says why a standby shard must not have a primary of its own, by what the other site has
// answered; empty: it may. lsn is how far this site is on timeline; 0: that is not known.
func (s SiteView) Refusal(timeline int, lsn int64) string {
	const instead = "; see lictor promote-cluster --help"
	switch {
	case !s.Answered:
		return ""
	case s.Primary:
		return fmt.Sprintf("the primary of the other site, %s, accepts commits: demote that site first (lictor demote-cluster there), or stop it%s", s.Address, instead)
	case timeline == 0:
		return ""
	case s.Timeline > timeline, s.Timeline == timeline && s.LSN > lsn:
		return fmt.Sprintf("the other site's standby %s has WAL that was not received here (timeline %d, %d bytes more): promote that site, or let this one receive it%s",
			s.Address, s.Timeline, s.LSN-lsn, instead)
	}
	return ""
}

// otherSite: what the other site has said decides, before a primary is made or goes on.
func otherSite(v View) (Decision, bool) {
	pg := v.Postgres
	runs := pg.Running && pg.Primary
	if v.Config.Pause && runs {
		return Decision{}, false
	}
	if timeline := v.Succeeded(v.Site); timeline > 0 {
		return succeeded(v, fmt.Sprintf("the leader; the other site has taken over, on timeline %d: nobody accepts commits here before lictor demote-cluster, or promote-cluster --ignore-other-site", timeline)), true
	}
	switch {
	case runs || !v.Site.Known:
		return Decision{}, false
	case !v.Site.Asked:
		return wait("the leader; asking the other site whether it has a primary"), true
	case v.maySucceed(v.Site):
		return succeeded(v, fmt.Sprintf("the leader; nobody accepts commits here, as %s says that it has taken over, though nothing proves that it is the other site: "+
			"lictor demote-cluster, or promote-cluster --ignore-other-site", v.Site.Address)), true
	case !v.PromotesSite():
		return Decision{}, false
	}
	timeline := pg.Timeline
	if !pg.Accepting { // it is started first, as a replica
		timeline = 0
	}
	if why := v.Site.Refusal(timeline, pg.LSN); why != "" {
		return wait("the leader; nobody is promoted: " + why), true
	}
	return Decision{}, false
}

// succeeded: the other site has taken over.
func succeeded(v View, why string) Decision {
	pg := v.Postgres
	switch {
	case v.Config.Pause && !pg.Running:
		return wait(why + "; the shard is paused")
	case pg.Running && pg.Primary:
		return v.unlessFailing(do(why, StandDown{}))
	case !pg.Running:
		return v.unlessFailing(do(why, StartReplica{}))
	case !pg.ShutDown.IsZero():
		d, _ := shutDown(v)
		return d
	case !pg.Accepting:
		return wait(why)
	}
	for _, chore := range []func(View) Decision{handover, failsafeList} {
		if d := chore(v); d.Reason != "" || len(d.Actions) > 0 {
			return d
		}
	}
	return wait(why)
}
