package ha

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// siteSays makes the other site's answer what is known of it.
func siteSays(s cluster.Site) func(*View) {
	return func(v *View) {
		v.Config.OtherSite = cluster.OtherSite{Host: "db9", Port: 5432}
		v.Site = SiteView{Known: true, Asked: true, Answered: true, Site: s}
	}
}

// siteSilent has asked it in vain, siteUnasked not yet.
func siteSilent(v *View) {
	siteSays(cluster.Site{})(v)
	v.Site.Answered = false
}

func siteUnasked(v *View) {
	siteSays(cluster.Site{})(v)
	v.Site = SiteView{Known: true}
}

// Guards of two sites: who accepts commits where the other site has a primary, or has taken over.
func TestOtherSite(t *testing.T) {
	leader := func(more ...func(*View)) View {
		return view(append([]func(*View){holdsLease(7 * time.Second)}, more...)...)
	}
	replica := func(v *View) { v.Postgres.Primary, v.Postgres.Streaming = false, false }
	since := func(timeline int) func(*View) {
		return func(v *View) { v.Cluster.Status.Value.Lictor.Site = timeline }
	}
	noted := func(v *View) { v.Cluster.Status.Value.Lictor.Succeeded = 5 }
	// The standby shard is to have a primary.
	promoted := func(v *View) {
		leadsStandby(v)
		v.Config.StandbyCluster = cluster.StandbyCluster{}
		v.Cluster.Status.Value.Lictor.Timeline = 3
	}
	successor := siteSays(cluster.Site{Address: "db9:5432", Primary: true, Timeline: 5, Common: 1, Left: true})
	unproved := siteSays(cluster.Site{Address: "db9:5432", Primary: true, Timeline: 5, Common: 1, Left: true, Unproved: true})
	behind := siteSays(cluster.Site{Address: "db9:5432", Primary: true, Timeline: 1, Common: 1})
	standbyAt := func(timeline int, lsn int64) func(*View) {
		return siteSays(cluster.Site{Address: "db9:5432", Timeline: timeline, LSN: lsn, Common: timeline})
	}
	const standDown = "stand down, as a replica of nobody"
	runSituations(t, []situationTest{
		{"the other site is a standby", leader(standbyAt(1, 5000)), "", "the leader"},
		{"it does not answer", leader(siteSilent), "", "the leader"},
		{"it was not asked yet, and the primary runs", leader(siteUnasked), "", "the leader"},
		{"it was not asked yet, and the primary is down", leader(siteUnasked, down), "", "asking the other site"},
		{"it does not answer, and the primary is down", leader(siteSilent, down), "start as primary", "down"},
		{"it was not asked yet, after a takeover", leader(siteUnasked, replica), "", "asking the other site"},
		{"it does not answer, after a takeover", leader(siteSilent, replica), "promote", "the leader"},

		{"it has succeeded this one", leader(successor), standDown, "on timeline 5"},
		{"the primary is down", leader(successor, down), "start as replica of nobody", "on timeline 5"},
		{"after a takeover", leader(successor, replica), "", "nobody accepts commits"},
		{"it says so, and nothing proves that it is the other site", leader(unproved), "", "the leader"},
		{"the same, and the primary is down", leader(unproved, down), "start as replica of nobody", "nothing proves"},
		{"the same, after a takeover", leader(unproved, replica), "", "nothing proves"},
		{"the same, and the operator ignores it", leader(unproved, replica, func(v *View) { v.Config.OtherSite.Ignore, v.Site = true, SiteView{} }), "promote", "the leader"},
		{"it was succeeded by this one", leader(successor, since(2)), "", "the leader"},
		{"it has a primary of this site's timeline", leader(behind), "", "the leader"},
		{"paused", leader(successor, paused_), "", "the leader"},
		{"paused, and down", leader(successor, paused_, down), "", "paused"},
		{"it was seen to succeed, and does not answer now", leader(siteSilent, noted), standDown, "on timeline 5"},
		{"the same, by an agent that has not asked", leader(siteUnasked, noted, replica), "", "on timeline 5"},
		{"the operator ignores it", leader(successor, noted, func(v *View) { v.Config.OtherSite.Ignore, v.Site = true, SiteView{} }), "", "the leader"},
		{"the operator has removed it", leader(successor, noted, func(v *View) { v.Config.OtherSite, v.Site = cluster.OtherSite{}, SiteView{} }), "", "the leader"},
		{"a standby shard by now", leader(successor, noted, isStandby), "rejoin as replica of " + remote, "standby leader"},
		{"asked to switch over", leader(successor, replica, request(cluster.Failover{Leader: "a", Candidate: "b"}), asked(peer("b", 1, 5000))), "hand over to b", "switching over"},

		{"promotion of the site: it was not asked", view(promoted, siteUnasked), "", "asking the other site"},
		{"it does not answer", view(promoted, siteSilent), "promote", "the leader"},
		{"its primary lives", view(promoted, behind), "", "db9:5432, accepts commits"},
		{"its primary lives, and has failed over", view(promoted, successor), "", "db9:5432, accepts commits"},
		{"its primary lives, unproved", view(promoted, unproved), "", "db9:5432, accepts commits"},
		{"its standbys have no more", view(promoted, standbyAt(1, 5000)), "promote", "the leader"},
		{"its standbys have more", view(promoted, standbyAt(1, 5001)), "", "1 bytes more"},
		{"its standbys are on a later timeline", view(promoted, standbyAt(2, 4000)), "", "timeline 2"},
		{"its standbys have more, and this one is down", view(promoted, standbyAt(1, 5001), down), "start as replica of nobody", "before its promotion"},
		{"its primary lives, and this one is down", view(promoted, behind, down), "", "db9:5432, accepts commits"},
		{"another member takes the lock meanwhile", view(promoted, func(v *View) { standbyAt(2, 4000)(v); v.Postgres.Upstream = "b" }), "", "timeline 2"},
	})
}
