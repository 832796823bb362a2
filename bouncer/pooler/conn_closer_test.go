package pooler

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"testing"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Names are looked up all at once, and nobody waits for a resolver that is silent: what it
// says later is used then.
func TestCutterWaitsForNoResolver(t *testing.T) {
	speak, notified := make(chan struct{}), make(chan struct{}, 100)
	asked := make(chan string, 100)
	c := NewConnCloser(config.Config{}, zerolog.Nop(), func() { notified <- struct{}{} })
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
	list := []Deposed{{"a", "10.1.1.1", 5432}, {"u", "unknown", 5432}}
	for i := range 20 {
		list = append(list, Deposed{"d" + strconv.Itoa(i), strconv.Itoa(i), 5432})
	}
	c.Depose(list)
	first := c.places(t.Context())
	if !first.addresses[netip.MustParseAddrPort("10.1.1.1:5432")] || len(first.addresses) != 1 {
		t.Errorf("at first %v", first.addresses)
	}
	for range 21 {
		<-asked // together
	}
	close(speak)
	for range 20 { // all but the one that there is not
		<-notified
	}
	if !c.isLate() {
		t.Error("addresses that came late are not used")
	}
	if all := c.places(t.Context()); len(all.addresses) != 21 || !all.databases[place{"d7", netip.MustParseAddrPort("10.0.0.7:5432")}] {
		t.Errorf("then %v", all)
	}
	c.lookups.Wait()
}

// Of the sockets of this host those are picked that PgBouncer has to a deposed primary.
func TestLostSockets(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.1:5432")
	gone := places{map[place]bool{{"s1", at}: true}, map[netip.AddrPort]bool{at: true}}
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
	is := lostSockets(lost, gone)
	for _, c := range []struct {
		local, remote string
		state         byte
		want          bool
	}{
		{"10.0.0.9:1001", "10.0.0.1:5432", tcpEstablished, true},
		{"10.0.0.9:1002", "[::ffff:10.0.0.1]:5432", tcpEstablished, true},
		{"10.0.0.9:1004", "10.0.0.1:5432", tcpEstablished, false},
		{"10.0.0.9:1001", "10.0.0.2:5432", tcpEstablished, false},
		{"10.0.0.9:1003", "10.0.0.1:5433", tcpEstablished, false},
		{"10.0.0.9:1009", "10.0.0.1:5432", tcpSynSent, true},
		{"10.0.0.9:1009", "10.0.0.1:5433", tcpSynSent, false},
	} {
		s := tcpSocket{state: c.state, local: netip.MustParseAddrPort(c.local), remote: netip.MustParseAddrPort(c.remote)}
		if is(s) != c.want {
			t.Errorf("%s -> %s: %v", c.local, c.remote, !c.want)
		}
	}
}
