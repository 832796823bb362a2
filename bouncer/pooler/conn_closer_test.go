package pooler

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Names are looked up all at once, and nobody waits for a resolver that is silent: what it
// says later is used then.
func TestConnCloserWaitsForNoResolver(t *testing.T) {
	speak := make(chan struct{})
	asked := make(chan string, 100)
	c := NewConnCloser(config.Config{}, zerolog.Nop())
	c.resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
		asked <- host
		if host == "unknown" {
			return nil, errors.New("no such host")
		}
		select {
		case <-speak:
			return []netip.Addr{netip.MustParseAddr("10.0.0." + host)}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	from := func(database, host string) Deposed {
		return Deposed{Database: database, From: pgbouncer.Address{Host: host, Port: 5432}}
	}
	list := []Deposed{from("a", "10.1.1.1"), from("u", "unknown")}
	for i := range 20 {
		list = append(list, from("d"+strconv.Itoa(i), strconv.Itoa(i)))
	}
	c.Depose(list)
	<-c.wake
	first := c.places(t.Context())
	if !first.addresses[netip.MustParseAddrPort("10.1.1.1:5432")] || len(first.addresses) != 1 {
		t.Errorf("at first %v", first.addresses)
	}
	for range 21 {
		<-asked // together
	}
	close(speak)
	c.lookups.Wait()
	select {
	case <-c.wake:
	default:
		t.Error("addresses that came late are not used")
	}
	if all := c.places(t.Context()); len(all.addresses) != 21 || !all.databases[place{"d7", netip.MustParseAddrPort("10.0.0.7:5432")}] {
		t.Errorf("then %v", all)
	}
}

// While it is looked up whether a database leads to the same host by another name, nothing is closed; but not
// for long.
func TestRenamedWhileLookedUp(t *testing.T) {
	for _, to := range []string{"10.0.0.1", "10.0.0.2", "silent"} {
		speak := make(chan struct{})
		c := NewConnCloser(config.Config{}, zerolog.Nop())
		c.resolve = func(ctx context.Context, _ string) ([]netip.Addr, error) {
			select {
			case <-speak:
				return []netip.Addr{netip.MustParseAddr(to)}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c.Depose([]Deposed{{"s1", pgbouncer.Address{Host: "10.0.0.1", Port: 5432}, pgbouncer.Address{Host: "renamed", Port: 5432}}})
		servers := []pgbouncer.Server{{Database: "s1", Addr: "10.0.0.1", Port: 5432}}
		if lost := c.places(ctx).servers(servers); len(lost) > 0 {
			t.Errorf("%s: closed before it is known where the name leads: %v", to, lost)
		}
		if to == "silent" {
			c.mu.Lock()
			for one := range c.targets {
				c.targets[one] = time.Now().Add(lingerFor - lingerPace - time.Millisecond)
			}
			c.mu.Unlock()
		} else {
			close(speak)
			c.lookups.Wait()
		}
		if lost := c.places(ctx).servers(servers); (len(lost) > 0) != (to != "10.0.0.1") {
			t.Errorf("%s: then closed are %v", to, lost)
		}
		cancel()
		c.lookups.Wait()
	}
}

// Of the sockets of this host those are picked that PgBouncer has to a deposed primary.
func TestLostSockets(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.1:5432")
	gone := places{databases: map[place]bool{{"s1", at}: true}, addresses: map[netip.AddrPort]bool{at: true}}
	lost := gone.servers([]pgbouncer.Server{
		{Database: "s1", Addr: "10.0.0.1", Port: 5432, LocalPort: 1001},
		{Database: "s1", Addr: "::ffff:10.0.0.1", Port: 5432, LocalPort: 1002},
		{Database: "s1", Addr: "10.0.0.1", Port: 5433, LocalPort: 1003},
		{Database: "other", Addr: "10.0.0.1", Port: 5432, LocalPort: 1004},
		{Database: "s1", Addr: "unix", Port: 5432},
	})
	if len(lost) != 2 {
		t.Fatalf("lost are %+v", lost)
	}
	const pgbouncers, anothers = 7, 8 // inodes
	is := lostSockets(slices.Values(lost), gone, func(inode uint32) bool { return inode == pgbouncers })
	for _, c := range []struct {
		local, remote string
		state         byte
		inode         uint32
		want          bool
	}{
		{"10.0.0.9:1001", "10.0.0.1:5432", tcpEstablished, pgbouncers, true},
		{"10.0.0.9:1002", "[::ffff:10.0.0.1]:5432", tcpEstablished, pgbouncers, true},
		{"10.0.0.9:1004", "10.0.0.1:5432", tcpEstablished, pgbouncers, false},
		{"10.0.0.9:1001", "10.0.0.2:5432", tcpEstablished, pgbouncers, false},
		{"10.0.0.9:1003", "10.0.0.1:5433", tcpEstablished, pgbouncers, false},
		{"10.0.0.9:1009", "10.0.0.1:5432", tcpSynSent, pgbouncers, true},
		{"10.0.0.9:1009", "10.0.0.1:5433", tcpSynSent, pgbouncers, false},
		{"10.0.0.9:1009", "10.0.0.1:5432", tcpSynSent, anothers, false},
	} {
		s := tcpSocket{state: c.state, inode: c.inode, local: netip.MustParseAddrPort(c.local), remote: netip.MustParseAddrPort(c.remote)}
		if is(s) != c.want {
			t.Errorf("%s -> %s of %d: %v", c.local, c.remote, c.inode, !c.want)
		}
	}
}

// What is to be closed of a thousand lost primaries is found by looking at each connection of PgBouncer's once, however
// many sockets there are.
func TestManyLostPrimaries(t *testing.T) {
	const n = 2000
	c := NewConnCloser(config.Config{}, zerolog.Nop())
	var deposed []Deposed
	var servers []pgbouncer.Server
	var sockets []tcpSocket
	for i := range n {
		database, host, port := fmt.Sprintf("s%d", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), 1024+i
		deposed = append(deposed, Deposed{database, pgbouncer.Address{Host: host, Port: 5432}, pgbouncer.Address{Host: "10.9.9.9", Port: 5432}})
		servers = append(servers, pgbouncer.Server{Database: database, Addr: host, Port: 5432, LocalPort: port})
		sockets = append(sockets, tcpSocket{
			state: tcpEstablished, local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.254"), uint16(port)), remote: netip.AddrPortFrom(netip.MustParseAddr(host), 5432),
		})
	}
	c.Depose(deposed)
	gone := c.places(t.Context())
	steps, found := 0, 0
	lost := gone.servers(servers)
	is := lostSockets(func(yield func(pgbouncer.Server) bool) {
		for _, s := range lost {
			if steps++; !yield(s) {
				return
			}
		}
	}, gone, func(uint32) bool { return false })
	for _, s := range sockets {
		if is(s) {
			found++
		}
	}
	if found != n || steps != n {
		t.Errorf("%d of %d were found, in %d steps", found, n, steps)
	}
}

// PgBouncer's connections that are closed are those to where a database led, and to nowhere that
// it leads now.
func TestLostServers(t *testing.T) {
	at := func(host string) pgbouncer.Address { return pgbouncer.Address{Host: host, Port: 5432} }
	names := map[string]string{"db1": "10.0.0.1", "db2": "10.0.0.2", "db1.new": "10.0.0.1"}
	for name, test := range map[string]struct {
		from, to string
		lost     []string // addresses of s1's connections; ! before one that PgBouncer is about to close
	}{
		"moved":                  {"10.0.0.1", "10.0.0.2", []string{"10.0.0.1", "!10.0.0.1"}},
		"moved, by names":        {"db1", "db2", []string{"10.0.0.1", "!10.0.0.1", "!10.0.0.9"}},
		"renamed":                {"10.0.0.1", "db1", nil},
		"renamed, by names":      {"db1", "db1.new", []string{"!10.0.0.2", "!10.0.0.9"}}, // from before the name led here
		"lost with its name":     {"gone", "10.0.0.2", []string{"!10.0.0.1", "!10.0.0.9"}},
		"to nowhere":             {"10.0.0.1", "", []string{"10.0.0.1", "!10.0.0.1"}},
		"to several":             {"10.0.0.1", "10.0.0.2,db1", nil},
		"an address, all others": {"10.0.0.9", "10.0.0.2", []string{"!10.0.0.9"}},
	} {
		c := NewConnCloser(config.Config{}, zerolog.Nop())
		c.resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
			if names[host] == "" {
				return nil, errors.New("no such host")
			}
			return []netip.Addr{netip.MustParseAddr(names[host])}, nil
		}
		c.Depose([]Deposed{{"s1", at(test.from), at(test.to)}})
		var servers []pgbouncer.Server
		for _, where := range []string{"10.0.0.1", "!10.0.0.1", "10.0.0.2", "!10.0.0.2", "!10.0.0.9"} {
			address, closing := strings.CutPrefix(where, "!")
			servers = append(servers, pgbouncer.Server{Database: "s1", User: where, Addr: address, Port: 5432, CloseNeeded: closing},
				pgbouncer.Server{Database: "s2", User: "another database", Addr: address, Port: 5432, CloseNeeded: closing},
				pgbouncer.Server{Database: "s1", User: "another port", Addr: address, Port: 5433, CloseNeeded: closing})
		}
		var got []string
		for _, s := range c.places(t.Context()).servers(servers) {
			got = append(got, s.User)
		}
		if !slices.Equal(got, test.lost) {
			t.Errorf("%s: lost are %q, want %q", name, got, test.lost)
		}
	}
}

// Where a database leads again nothing is closed any more, also of what has been found already.
func TestSparedTargets(t *testing.T) {
	at := func(host string) pgbouncer.Address { return pgbouncer.Address{Host: host, Port: 5432} }
	c := NewConnCloser(config.Config{}, zerolog.Nop())
	c.Depose([]Deposed{{"s1", at("10.0.0.1"), at("10.0.0.2")}, {"s2", at("10.0.0.1"), at("10.0.0.2")}})
	found := c.places(t.Context())
	if len(found.databases) != 2 || !c.stands(found) {
		t.Fatalf("found are %v", found)
	}
	file := func(s1, rest string) pgbouncer.File {
		t.Helper()
		f, err := pgbouncer.ParseFile([]byte("[databases]\ns1 = host=" + s1 + "\n* = host=" + rest + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	c.Spare(file("10.0.0.2", "10.0.0.3"))
	if !c.stands(found) {
		t.Error("spared was what leads elsewhere")
	}
	c.Spare(file("10.0.0.1", "10.0.0.3"))
	if c.stands(found) {
		t.Error("what was found before s1 led there again is closed")
	}
	if now := c.places(t.Context()); len(now.databases) != 1 || !now.databases[place{"s2", netip.MustParseAddrPort("10.0.0.1:5432")}] {
		t.Errorf("then %v", now)
	}
	c.Spare(file("10.0.0.2", "10.0.0.1"))
	if remain, _ := c.remain(); remain {
		t.Errorf("at last %v", c.targets)
	}
}
