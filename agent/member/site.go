package member

import (
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// siteEvery is how often the other site is asked, at the most.
const siteEvery = 5 * time.Second

// siteWatch asks the other site whether it has a primary, and how far it is (agent/ha/sites.go). Each
// member that may lead does, so that an election waits for no answer.
type siteWatch struct {
	*Shard
	local    *Local
	lead     *leadership
	postgres Postgres

	asking bool
	next   cluster.Instant
	of     pg.Upstream // whom the answer is of
	// config is the configuration by which this site was to be promoted when it was asked: one that
	// was refused is not asked for again by what has happened since.
	config uint64
	// unproved says why what was answered last is not believed.
	unproved string
}

// other is whom to ask, if there is anybody: by the configuration, or whom the standby leader follows that is
// to be promoted.
func (s *siteWatch) other() (pg.Upstream, bool) {
	c := s.Dynamic.OtherSite
	host, port := c.Host, c.Port
	if host == "" {
		host, port = cluster.RemoteAddress(s.local.Upstream)
	}
	host = s.Snapshot.Strangers(host, port) // a member of this shard answers for no other site
	if host == "" || c.Ignore || s.Dynamic.StandbyCluster.On() || cluster.NoFailover(s.Tags) {
		return pg.Upstream{}, false
	}
	return pg.Upstream{Name: "other site " + cluster.SiteAddress(host, port), Host: host, Port: port, Remote: true}, true
}

// mind asks when it is time.
func (s *siteWatch) mind() {
	up, ok := s.other()
	if !ok || up != s.of {
		s.site, s.of, s.next, s.unproved = ha.SiteView{Known: ok}, up, 0, ""
	}
	promotes := s.asRead().PromotesSite()
	if index := s.Snapshot.Config.ModifyIndex; promotes && s.config != index {
		s.site, s.config, s.next = ha.SiteView{Known: ok}, index, 0
	}
	s.tell()
	timeline := s.local.timeline()
	if !ok || s.asking || s.Now().Before(s.next) || promotes && s.site.Asked || s.local.Data.State != ha.DataValid || timeline == 0 {
		return
	}
	s.asking = true
	config := s.config
	s.postgres.AskSite(nil, s.Dynamic.RetryTimeout, up, timeline, func(site cluster.Site, err error) {
		s.asking = false
		if up != s.of || config != s.config {
			return // of somebody else, or to another question
		}
		s.next = s.Now().Add(max(s.Dynamic.LoopWait, siteEvery))
		s.site = ha.SiteView{Known: true, Asked: true, Answered: err == nil, Site: site}
		if err != nil {
			s.Log.Debug().Err(err).Msg("the other site does not answer")
		}
		s.unproved = ""
		switch {
		case errors.Is(err, ErrUnproved):
			s.unproved = err.Error()
		case err == nil && site.Unproved:
			s.unproved = site.Address + " lets the user that replicates in without SCRAM, and its certificate is not checked"
		}
		known := s.asRead()
		if b := s.Snapshot.Status.Value.Lictor; b != nil && b.Succeeded == 0 && known.Succeeded(s.site) > 0 {
			s.lead.LeaseState.BeatSoon() // the others, and operators, are to know
		}
		s.tell()
	})
}

// tell says what is wrong between the two sites.
func (s *siteWatch) tell() {
	known := s.asRead()
	detail := ""
	c := s.Dynamic.OtherSite
	own := s.Snapshot.CheckSite(c.Host, c.Port)
	switch {
	case c.Known() && own != nil:
		detail = own.Error() + ": other_site is to name the hosts of the other one (lictor edit-config)"
	case known.Succeeded(s.site) > 0:
		detail = "it has succeeded this one, whose members accept no commits before lictor demote-cluster"
	case known.PromotesSite() && s.LockIsOurs():
		detail = s.local.refusal()
	case s.site.Answered && s.site.Primary && s.local.PG.Running && s.local.PG.Primary():
		detail = s.site.Address + " is a primary, too: demote that site, what it has written on its own is lost"
	}
	s.Problem("other site", "the other site", detail)
	s.Problem("other site unproved", "the other site does not prove whose it is: no primary is stopped by what it answers (docs/security.md, require_auth)", s.unproved)
}

// timeline is the one that this member's data are on, as far as it is known.
func (l *Local) timeline() int {
	if l.PG.Running && l.PG.Observed.Timeline > 0 {
		return l.PG.Observed.Timeline
	}
	return l.Data.Timeline
}

// standsBy reports whether the leader's PostgreSQL is to be no primary: of a standby shard, of a
// site that was succeeded, or of one whose promotion was refused.
func (l *Local) standsBy() bool {
	known := l.asRead()
	return l.Dynamic.StandbyCluster.On() || known.Succeeded(l.site) > 0 || known.PromotesSite() && l.refusal() != ""
}

// refusal is why this site is not promoted.
func (l *Local) refusal() string {
	o := &l.PG.Observed
	if !o.Accepting {
		return l.site.Refusal(0, 0)
	}
	return l.site.Refusal(o.Timeline, o.LSN())
}

// standDown stops the primary and starts it as a replica of nobody: the other site has taken over.
func (m *Member) standDown() {
	m.commits.set = false
	scripts := m.beforeStopLimit()
	m.startTask(ha.TaskRejoin, inOrder(m.beforeStop(scripts), m.orderly(m.stopWithin(), false), m.start(StartAs{})), m.nowFollows(""))
}
