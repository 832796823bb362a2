package postgres

import (
	"errors"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// What another site's hosts answer: a standby that follows, a primary that has left the own timeline, one that
// was left behind; another cluster, and nobody.
func TestAskSite(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	site := func(of *Instance, host string) Upstream {
		return Upstream{Name: "other site", Host: host, Port: of.port, Remote: true}
	}
	asked := func(by, of *Instance, timeline int) cluster.Site {
		t.Helper()
		s, err := by.AskSite(ctx, site(of, "127.0.0.3,127.0.0.1"), timeline) // nobody listens at the first
		must(t, err)
		return s
	}
	at := observe(ctx, t, a, "the primary", func(s State) bool { return s.Accepting }).WriteLSN
	observe(ctx, t, b, "it has all WAL", func(s State) bool { return s.ReplayedLSN >= at })
	if s := asked(a, b, 1); s.Primary || s.Timeline != 1 || s.LSN < at || s.CanTakeOver(1, at, 0) != nil {
		t.Errorf("the standby: %+v", s)
	}
	if s := asked(b, a, 1); !s.Primary || s.Common != 1 || s.Left || s.Address != cluster.SiteAddress("127.0.0.1", a.port) {
		t.Errorf("its primary: %+v", s)
	}
	must(t, b.Unfollow(ctx))
	must(t, b.Promote(ctx, 2)) // a number is passed over
	if s := asked(a, b, 1); !s.Primary || s.Timeline != 3 || s.Common != 1 || !s.Left || !s.Succeeds(0) {
		t.Errorf("the one that was promoted: %+v", s)
	}
	if s := asked(b, a, 3); !s.Primary || s.Timeline != 1 || s.Common != 1 || s.Left || s.Succeeds(0) {
		t.Errorf("the one that was left: %+v", s)
	}

	c := newInstance(t, settings(t, newDir(t), "c"))
	bootstrapped(ctx, t, c)
	must(t, c.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, c, "another cluster", func(s State) bool { return s.Accepting })
	if s, err := a.AskSite(ctx, site(c, "127.0.0.1"), 1); err == nil || !strings.Contains(err.Error(), "not of one cluster") {
		t.Errorf("another cluster: %+v %v", s, err)
	}
	if s, err := a.AskSite(ctx, site(newInstance(t, settings(t, newDir(t), "d")), "127.0.0.1"), 1); err == nil || !strings.Contains(err.Error(), "none of the other site's hosts") {
		t.Errorf("nobody: %+v %v", s, err)
	}
}

// A member of the shard is no other site, whatever it is called: by its own address, by one that its host has
// besides, or by a name that leads there. A standby at another site streams from the same primary and has the
// same system identifier.
func TestOwnMember(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	dir := newDir(t)
	onTwo := func(name string) *Instance {
		s := settings(t, dir, name)
		s.Postgres.Listen = "127.0.0.2," + s.Postgres.Listen
		s.Postgres.PgHBA = []string{"local all all trust", "host all all 127.0.0.0/8 scram-sha-256", "host all all ::1/128 scram-sha-256", "host replication all 127.0.0.0/8 scram-sha-256"}
		return newInstance(t, s)
	}
	a, b := onTwo("a"), onTwo("b")
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	keepSlots(ctx, t, a, "b")
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	geneva := newInstance(t, settings(t, newDir(t), "geneva"))
	keepSlots(ctx, t, a, "b", "geneva")
	must(t, geneva.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, geneva, a)
	members := []Upstream{upstream(a), upstream(b)}
	for _, test := range []struct {
		name, host string
		at         *Instance
		want       string // the member
	}{
		{"the leader", "127.0.0.1", a, "a"},
		{"a replica", "127.0.0.1", b, "b"},
		{"by another address", "127.0.0.2", b, "b"},
		{"the leader by another address", "127.0.0.2", a, "a"},
		{"by a name", "localhost", b, "b"},
		{"one of several", "127.0.0.3,127.0.0.2", b, "b"},
		{"another site's standby", "127.0.0.1,127.0.0.2", geneva, ""},
		{"nobody", "127.0.0.1", newInstance(t, settings(t, newDir(t), "d")), ""},
	} {
		err := a.OwnMember(ctx, Upstream{Name: "other site", Host: test.host, Port: test.at.port, Remote: true}, members)
		var own cluster.OwnMemberError
		if errors.As(err, &own); own.Member != test.want || (err == nil) != (test.want == "") {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	if s, err := a.Observe(ctx); err != nil || len(s.Standbys) != 2 {
		t.Errorf("a connection to ask counts as a standby: %+v %v", s.Standbys, err)
	}
}
