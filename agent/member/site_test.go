package member

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// twoSites is a world whose leader is a primary with another site.
func twoSites(t *testing.T) *world {
	t.Helper()
	w := newWorld(t).leading()
	w.Dynamic.OtherSite = cluster.OtherSite{Host: "db9", Port: 5432}
	w.Snapshot.Config.ModifyIndex = 40
	return w
}

// The other site is asked at once and then every few seconds, one question at a time; an answer that is
// out of date counts for nothing.
func TestAskTheOtherSite(t *testing.T) {
	w := twoSites(t)
	w.otherSite.mind()
	w.otherSite.mind()
	c := w.take("Postgres.AskSite")
	w.none("Postgres.AskSite")
	if up := c.args[1].(pg.Upstream); up.Host != "db9" || up.Port != 5432 || !up.Remote || c.args[2] != 3 {
		t.Fatalf("%+v", c.args)
	}
	if v := w.View().Site; !v.Known || v.Asked {
		t.Fatalf("%+v", v)
	}
	c.answer(cluster.Site{Address: "db9:5432", Timeline: 3, LSN: 7}, nil)
	if v := w.View().Site; !v.Asked || !v.Answered || v.LSN != 7 {
		t.Fatalf("%+v", v)
	}
	w.otherSite.mind()
	w.none("Postgres.AskSite")
	w.pass(max(siteEvery, w.Dynamic.LoopWait))
	w.otherSite.mind()
	c = w.take("Postgres.AskSite")
	w.Dynamic.OtherSite.Port = 5433
	w.otherSite.mind()
	c.answer(cluster.Site{Address: "db9:5432", Primary: true}, nil)
	if v := w.View().Site; !v.Known || v.Asked {
		t.Fatalf("the answer of another address: %+v", v)
	}
	w.otherSite.mind()
	w.answer("Postgres.AskSite", cluster.Site{}, errBoom)
	if v := w.View().Site; !v.Asked || v.Answered {
		t.Fatalf("%+v", v)
	}
	for name, off := range map[string]func(){
		"ignored":       func() { w.Dynamic.OtherSite.Ignore = true },
		"nofailover":    func() { w.Tags = map[string]any{"nofailover": true} },
		"standby shard": func() { w.Dynamic.StandbyCluster = cluster.StandbyCluster{Host: "db9", Port: 5432} },
	} {
		w = twoSites(t)
		off()
		if w.otherSite.mind(); w.View().Site.Known || w.find("Postgres.AskSite") != nil {
			t.Errorf("%s: it is asked", name)
		}
	}
}

// Answers that are not proved are told of, once and as long as they come.
func TestTheOtherSiteIsUnproved(t *testing.T) {
	w := twoSites(t)
	for name, test := range map[string]struct {
		site cluster.Site
		err  error
		told bool
	}{
		"it could be proved, and is not": {err: fmt.Errorf("db9: %w", ErrUnproved), told: true},
		"it cannot be proved":            {site: cluster.Site{Address: "db9:5432", Timeline: 3, Unproved: true}, told: true},
		"it is proved":                   {site: cluster.Site{Address: "db9:5432", Timeline: 3}},
		"it does not answer":             {err: errBoom},
	} {
		w.pass(max(siteEvery, w.Dynamic.LoopWait))
		w.otherSite.mind()
		w.answer("Postgres.AskSite", test.site, test.err)
		if got := w.Logged(); (len(got) > 0) != test.told || test.told && !strings.Contains(got[0], "does not prove") {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A standby shard that is to have a primary asks whom it follows, once for each change of the
// configuration: what was refused is not done later because a question got no answer.
func TestAskBeforeTheSiteIsPromoted(t *testing.T) {
	w := leadingStandby(t)
	w.Snapshot.Config.ModifyIndex = 40
	w.Snapshot.Status.Value.Lictor.Standby = true
	w.otherSite.mind()
	w.none("Postgres.AskSite")
	w.Dynamic.StandbyCluster = cluster.StandbyCluster{}
	w.Snapshot.Config.ModifyIndex = 41
	w.otherSite.mind()
	c := w.take("Postgres.AskSite")
	if up := c.args[1].(pg.Upstream); up.Host != "db9" || up.Port != 5432 {
		t.Fatalf("%+v", up)
	}
	c.answer(cluster.Site{Address: "db9:5432", Primary: true, Timeline: 3}, nil)
	if w.noteService(true); len(w.Logged()) == 0 || !w.unservedSince.IsZero() {
		t.Errorf("logged: %v; unserved: %v", w.Logged(), w.unservedSince)
	}
	if r, ok := w.route.wanted(); !ok || r.State != cluster.RouteDown {
		t.Errorf("%+v", r)
	}
	if s := w.nextStatus(); !s.Lictor.Standby {
		t.Error("the next leader would not ask")
	}
	w.pass(time.Hour)
	w.otherSite.mind()
	w.none("Postgres.AskSite")
	w.Snapshot.Config.ModifyIndex = 42
	w.otherSite.mind()
	w.answer("Postgres.AskSite", cluster.Site{}, errBoom)
	if r, ok := w.route.wanted(); !ok || r.State != cluster.RoutePromoting {
		t.Errorf("%+v", r)
	}
	if s := w.nextStatus(); s.Lictor.Timeline != 5 {
		t.Errorf("it takes timeline %d, which the other site may take", s.Lictor.Timeline)
	}
	if w.otherSite.mind(); len(w.Logged()) != 0 {
		t.Errorf("the refusal is over, and still told: %v", w.Logged())
	}
	w.sawPrimary(300 * mib)
	w.PG.Observed.Timeline = 5
	if s := w.nextStatus(); s.Lictor.Standby || s.Lictor.Site != 5 {
		t.Errorf("%+v", s.Lictor)
	}
	w.Snapshot.Status.Value.Lictor.Standby, w.Snapshot.Status.Value.Lictor.Site = false, 5
	w.PG.Observed.Timeline = 6 // a failover
	if s := w.nextStatus(); s.Lictor.Site != 5 {
		t.Errorf("%+v", s.Lictor)
	}
}

// A site that was succeeded says so in each status, whatever the other site answers then, until the operator
// has decided.
func TestSucceeded(t *testing.T) {
	w := twoSites(t)
	w.agree("Guard.Awake", "Postgres.BeforeStop", "Postgres.Stop", "Postgres.Start")
	w.otherSite.mind()
	w.answer("Postgres.AskSite", cluster.Site{Address: "db9:5432", Primary: true, Timeline: 5, Common: 3, Left: true}, nil)
	if s := w.nextStatus(); s.Lictor.Succeeded != 5 {
		t.Fatalf("%+v", s.Lictor)
	}
	w.asked = nil
	w.begin(ha.StandDown{})
	w.settle()
	w.looked()
	w.wantAsked("Postgres", "Postgres.BeforeStop", "Postgres.Stop", "Postgres.Start", "Postgres.Look")
	w.Snapshot.Status.Value.Lictor.Succeeded = 5
	w.sawReplica(200*mib, "")
	if got := w.Value().Role; got != cluster.RoleStandbyLeader { // the others follow it
		t.Errorf("role %s", got)
	}
	if w.noteService(true); !w.unservedSince.IsZero() {
		t.Error("it serves nobody")
	}
	if r, ok := w.route.wanted(); !ok || r.State != cluster.RouteDown {
		t.Errorf("%+v", r)
	}
	w.site = ha.SiteView{Known: true, Asked: true}
	if s := w.nextStatus(); s.Lictor.Succeeded != 5 {
		t.Errorf("%+v", s.Lictor)
	}
	w.Dynamic.OtherSite.Ignore = true
	if s := w.nextStatus(); s.Lictor.Succeeded != 0 {
		t.Errorf("%+v", s.Lictor)
	}
}

// toStandbySite is a primary whose shard is made the standby of a site that has no primary yet.
func toStandbySite(t *testing.T) *world {
	t.Helper()
	w := newWorld(t).leading()
	w.Dynamic.StandbyCluster = cluster.StandbyCluster{Host: "db9", Port: 5432}
	w.agree("Guard.Awake", "Postgres.Checkpoint", "Postgres.BeforeStop")
	w.asked = nil
	w.begin(ha.Rejoin{Upstream: remotePrimary})
	w.answer("Postgres.CheckRemote", false, errBoom)
	return w
}

// A primary hands over to a site that has no primary yet: the clients are held, and PostgreSQL is started as a
// standby when the other site has all of its WAL.
func TestHandOverToTheOtherSite(t *testing.T) {
	w := toStandbySite(t)
	w.answer("Postgres.AskSite", cluster.Site{Address: "db9:5432", Timeline: 3, LSN: w.PG.Observed.LSN() - 1000}, nil)
	w.settle()
	w.answer("Bouncers.Hold")
	w.settle()
	stop := w.take("Postgres.StopFor")
	received := stop.args[0].(func(int64, func(error)))
	told := heard{}
	received(300*mib, told.done)
	w.answer("Postgres.AskSite", cluster.Site{Timeline: 3, LSN: 300 * mib}, nil)
	if told.told {
		t.Fatal("the checkpoint itself is missing")
	}
	w.pass(pollSite)
	w.answer("Postgres.AskSite", cluster.Site{Timeline: 3, LSN: 300*mib + 120}, nil)
	if !told.told || told.err != nil {
		t.Fatalf("%+v", told)
	}
	w.running, w.PG.Running = false, false
	stop.answer()
	left := w.left()
	left.Data.ShutDown, left.Data.CheckpointLSN = true, 300*mib
	w.answer("Postgres.Look", left, true)
	w.answer("Postgres.AskSite", cluster.Site{Timeline: 3, LSN: left.Data.CheckpointLSN + 120}, nil)
	start := w.take("Postgres.Start")
	if as := start.args[1].(StartAs); as.Primary || as.Upstream == nil || *as.Upstream != remoteUpstream() {
		t.Fatalf("%+v", as)
	}
	w.running = true
	start.answer()
	w.looked()
	if w.Attempt.Failures > 0 || w.Upstream != remotePrimary || w.handovers.announced.ID == "" {
		t.Errorf("%+v, follows %q, announced %+v", w.Attempt, w.Upstream, w.handovers.announced)
	}
}

// What cannot take over leaves the primary as it is.
func TestNoHandOverToTheOtherSite(t *testing.T) {
	for name, site := range map[string]cluster.Site{
		"it lags":                {Address: "db9:5432", Timeline: 3, LSN: 1},
		"it follows another":     {Address: "db9:5432", Timeline: 2, LSN: 400 * mib},
		"it has a primary again": {Address: "db9:5432", Timeline: 4, LSN: 400 * mib, Primary: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := toStandbySite(t)
			w.Dynamic.MaximumLagOnFailover = 1 << 20
			w.answer("Postgres.AskSite", site, nil)
			w.settle()
			w.looked()
			w.none("Bouncers.Hold", "Postgres.StopFor")
			if w.Attempt.Failures == 0 || !w.PG.Running {
				t.Errorf("%+v", w.Attempt)
			}
		})
	}
}

// A member of this shard is no other site: it is not asked, and its answers mean nothing.
func TestOtherSiteIsAMember(t *testing.T) {
	w := twoSites(t)
	host, port, err := w.Snapshot.Members[1].Value.Address()
	if err != nil {
		t.Fatal(err)
	}
	w.Dynamic.OtherSite = cluster.OtherSite{Host: host, Port: port}
	w.otherSite.mind()
	w.none("Postgres.AskSite")
	if logged := strings.Join(w.Logged(), ""); w.View().Site.Known || !strings.Contains(logged, "a member of this shard") {
		t.Errorf("known: %v, told: %q", w.View().Site.Known, logged)
	}
	w.Dynamic.OtherSite.Host += ",db9"
	w.otherSite.mind()
	if up := w.take("Postgres.AskSite").args[1].(pg.Upstream); up.Host != "db9" {
		t.Errorf("asked: %+v", up)
	}
}
