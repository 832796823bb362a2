package pooler

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// What PgBouncer is about to close is left behind where its database leads elsewhere; and only if it is
// silent where there may be other reasons.
func TestLeftBehind(t *testing.T) {
	names := map[string]string{"db2": "10.0.0.2"}
	for name, test := range map[string]struct {
		database, leads string
		leader          string
		want            string // of a connection to 10.0.0.1
	}{
		"a primary's":                         {"s1", "10.0.0.2", "10.0.0.2", "lost"},
		"led there":                           {"s1", "10.0.0.1", "10.0.0.1", ""},
		"RELOAD is to come":                   {"s1", "10.0.0.3", "10.0.0.2", ""},
		"by a name":                           {"s1", "db2", "db2", "if silent"},
		"by a name that is not known":         {"s1", "gone", "gone", "unknown"},
		"readers'":                            {"s1_ro", "10.0.0.3,10.0.0.4", "10.0.0.2", "if silent"},
		"readers' host that stays":            {"s1_ro", "10.0.0.1,10.0.0.4", "10.0.0.2", ""},
		"readers' that lead to the primary":   {"s1_ro", "10.0.0.2", "10.0.0.2", "if silent"},
		"a template's own of a primary":       {"alias", "10.0.0.2", "10.0.0.2", "if silent"},
		"of pgbouncer.fallback":               {"any", "10.0.0.5", "10.0.0.2", "lost"},
		"a template's own that is no shard's": {"alias", "10.0.0.9", "10.0.0.2", ""},
		"no database":                         {"", "10.0.0.2", "10.0.0.2", ""},
	} {
		c := NewConnCloser(config.Config{}, zerolog.Nop())
		c.resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
			if names[host] == "" {
				return nil, errors.New("no such host")
			}
			return []netip.Addr{netip.MustParseAddr(names[host])}, nil
		}
		c.Primaries = func() []Primary {
			return []Primary{{
				ID: "service/s1", Leader: cluster.RouteMember{Host: test.leader, Port: 5432},
				Offered: []string{"s1", "s1_ro"}, Writers: []config.Database{{Name: "s1"}},
			}, {ID: "service/fallback", Leader: cluster.RouteMember{Host: "10.0.0.5", Port: 5432}, Fallback: true}}
		}
		databases := map[string]pgbouncer.Database{test.database: {Host: test.leads, Port: 5432}}
		if test.database == "" {
			databases = nil
		}
		list, unknown := c.leftBehind(t.Context(), databases, []pgbouncer.Server{
			{Database: test.database, Addr: "10.0.0.1", Port: 5432, CloseNeeded: true}, {Database: test.database, Addr: "unix", CloseNeeded: true},
		})
		got := map[bool]string{true: "unknown"}[unknown]
		for _, b := range list {
			got = map[bool]string{true: "if silent", false: "lost"}[b.silent]
		}
		if got != test.want || len(list) > 1 {
			t.Errorf("%s: %q of %v, want %q", name, got, list, test.want)
		}
	}
}

// What was found of names is of no use once nothing is left behind: they may lead elsewhere by the time of the next look.
func TestNamesOfThoseLeftBehindAreForgotten(t *testing.T) {
	c := NewConnCloser(config.Config{}, zerolog.Nop())
	leads := "10.0.0.2"
	c.resolve = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr(leads)}, nil
	}
	c.Primaries = func() []Primary {
		return []Primary{{ID: "service/s1", Leader: cluster.RouteMember{Host: "db2", Port: 5432}, Offered: []string{"s1"}, Writers: []config.Database{{Name: "s1"}}}}
	}
	databases := map[string]pgbouncer.Database{"s1": {Host: "db2", Port: 5432}}
	look := func(to string) int {
		list, _ := c.leftBehind(t.Context(), databases, []pgbouncer.Server{{Database: "s1", Addr: to, Port: 5432, CloseNeeded: true}})
		return len(list)
	}
	if n := look("10.0.0.1"); n != 1 {
		t.Fatalf("%d are left behind", n)
	}
	c.nothingBehind()
	leads = "10.0.0.3"
	// The primary is called db2 by now, and was 10.0.0.3 before: the same host.
	c.Depose([]Deposed{{"s1", pgbouncer.Address{Host: "10.0.0.3", Port: 5432}, pgbouncer.Address{Host: "db2", Port: 5432}}})
	if lost := c.places(t.Context()).servers([]pgbouncer.Server{{Database: "s1", Addr: "10.0.0.3", Port: 5432}}); len(lost) > 0 {
		t.Errorf("closed are connections to the primary: %v", lost)
	}
	if n := look("10.0.0.3"); n != 0 {
		t.Errorf("%d that lead to the primary are left behind", n)
	}
}

// What PgBouncer has and the kernel here has not is not taken for closed.
func TestFreeElsewhere(t *testing.T) {
	c := NewConnCloser(config.Config{}.WithClosing(true), zerolog.Nop())
	var asked []string
	c.close = func(_ context.Context, is func(tcpSocket) bool) (closed int, err error) {
		for _, s := range []tcpSocket{{state: tcpEstablished, local: netip.MustParseAddrPort("10.0.0.9:1001"), remote: netip.MustParseAddrPort("10.0.0.1:5432")}} {
			if is(s) {
				closed++
				asked = append(asked, s.local.String())
			}
		}
		return closed, nil
	}
	lost := []pgbouncer.Server{{Database: "s1", Addr: "10.0.0.1", Port: 5432, LocalPort: 1001}}
	yes := func() bool { return true }
	// There is no console to ask: it is not needed where all was found.
	if err := c.free(t.Context(), nil, lost, lostSockets(slices.Values(lost), places{}, nil), yes); err != nil || !slices.Equal(asked, []string{"10.0.0.9:1001"}) {
		t.Errorf("%v, closed were %v", err, asked)
	}
}
