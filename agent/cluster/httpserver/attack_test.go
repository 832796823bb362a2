package httpserver

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// patience bounds every wait; it says nothing about how fast things are.
const patience = 2 * time.Minute

// unhurried are the limits of agents and bouncers, but that time alone ends no
// connection: whether one is cut off then depends on who else comes, not on how fast.
func unhurried() Limits {
	l := DefaultLimits()
	l.Header, l.Request, l.Answer, l.Idle = patience, patience, patience, patience
	return l
}

// served is a server with one health check, and an operation that waits.
func served(t *testing.T, limits Limits, operation http.HandlerFunc) *Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "well") })
	mux.HandleFunc("POST /read", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.ReadAll(r.Body) })
	if operation != nil {
		mux.HandleFunc("POST /operation", operation)
	}
	s := &Server{
		Name: "test", Setting: "listen", Address: "127.0.0.1:0", Limits: limits, Handler: mux, Log: zerolog.Nop(),
		IsCheck: func(r *http.Request) bool { return r.URL.Path == "/health" },
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// from dials from another address of this host.
func from(ctx context.Context, host string, s *Server) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
	return d.DialContext(ctx, "tcp", s.Addr().String())
}

// balancer checks the server's health again and again, as load balancers do: each time
// on a connection of its own.
func balancer(ctx context.Context, t *testing.T, s *Server, host string) (checks int) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return from(ctx, host, s) },
	}}
	for checks == 0 || ctx.Err() == nil {
		r, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, "http://"+s.Addr().String()+"/health", nil)
		if err != nil {
			t.Error(err)
			return checks
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Errorf("health check %d: %v", checks+1, err)
			return checks
		}
		resp.Body.Close()
		checks++
	}
	return checks
}

// during runs an attack, and tells how many checks of a balancer were answered.
func during(t *testing.T, s *Server, attack func()) int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	checks := make(chan int, 1)
	go func() { checks <- balancer(ctx, t, s, "127.0.0.1") }()
	attack()
	cancel()
	// The attack stands: one more look.
	return <-checks + balancer(ctx, t, s, "127.0.0.1")
}

// One host that opens connections, however many and whatever it does on them, costs
// another one no health check.
func TestOneHostsConnectionsCostNoHealthCheck(t *testing.T) {
	for name, c := range map[string]struct {
		conns int
		sent  string
	}{
		"1010 idle":         {1010, ""},
		"2000 idle":         {2000, ""},
		"2000 slow headers": {2000, "GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "},
		"2000 slow bodies":  {2000, "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"},
		"2000 kept":         {2000, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := served(t, unhurried(), nil)
			var conns []net.Conn
			checks := during(t, s, func() {
				for range c.conns {
					conn, err := from(t.Context(), "127.0.0.2", s)
					if err != nil {
						t.Fatal(err)
					}
					conns = append(conns, conn)
					_, _ = io.WriteString(conn, c.sent) // the server may have closed it already
				}
			})
			if checks == 0 {
				t.Error("no check was made")
			}
			s.listener.mu.Lock()
			if n := len(s.listener.open[sourceOfIP(net.ParseIP("127.0.0.2"))]); n > s.Limits.PerSource {
				t.Errorf("%d connections of one host", n)
			}
			s.listener.mu.Unlock()
			for _, conn := range conns {
				conn.Close()
			}
		})
	}
}

// Four thousand connects a second, for a second, from many addresses, cost a balancer that
// has asked before no health check. (One that never has is a stranger among strangers.)
func TestConnectsCostNoHealthCheck(t *testing.T) {
	s := served(t, unhurried(), nil)
	known, cancel := context.WithCancel(t.Context())
	cancel()
	balancer(known, t, s, "127.0.0.1") // once
	checks := during(t, s, func() {
		var attacking sync.WaitGroup
		for i := range 8 {
			attacking.Go(func() {
				tick := time.NewTicker(2 * time.Millisecond)
				defer tick.Stop()
				var conns []net.Conn
				for n := range 500 {
					<-tick.C
					conn, err := from(t.Context(), fmt.Sprintf("127.0.%d.%d", i+1, n%200+1), s)
					if err == nil {
						conns = append(conns, conn)
					}
				}
				for _, conn := range conns {
					conn.Close()
				}
			})
		}
		attacking.Wait()
	})
	t.Logf("%d health checks beside it", checks)
	if checks == 0 {
		t.Error("no check was made")
	}
}

// Of hosts that are known, connections stay, whoever else comes: a balancer's kept one,
// a friend's, and one that an operation waits on.
func TestWhoKeepsAConnection(t *testing.T) {
	waiting, finish := make(chan struct{}), make(chan struct{})
	limits := unhurried()
	limits.Conns, limits.PerSource = 40, 10
	s := served(t, limits, func(w http.ResponseWriter, r *http.Request) {
		defer Hold(r.Context())()
		close(waiting)
		<-finish
		_, _ = io.WriteString(w, "done")
	})
	s.listener.slots.befriend([]net.IP{net.ParseIP("127.0.0.9")})
	ask := func(conn net.Conn, request string) string {
		if _, err := io.WriteString(conn, request); err != nil {
			return err.Error()
		}
		answer := make([]byte, 4096)
		n, err := conn.Read(answer)
		if err != nil {
			return err.Error()
		}
		return string(answer[:n])
	}
	const check = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
	open := func(host string) net.Conn {
		conn, err := from(t.Context(), host, s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	kept, friend, operator := open("127.0.0.1"), open("127.0.0.9"), open("127.0.0.8")
	if got := ask(kept, check); !strings.Contains(got, "200 OK") {
		t.Fatal(got)
	}
	if _, err := io.WriteString(operator, "POST /operation HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-waiting
	for i := range 300 { // each from an address of its own
		open(fmt.Sprintf("127.1.%d.%d", i/200, i%200+1))
	}
	last := open("127.2.0.1")
	for name, conn := range map[string]net.Conn{"a balancer": kept, "a friend": friend, "the newest": last} {
		if got := ask(conn, check); !strings.Contains(got, "200 OK") {
			t.Errorf("%s was cut off: %s", name, got)
		}
	}
	close(finish)
	answer := make([]byte, 4096)
	if n, err := operator.Read(answer); err != nil || !strings.Contains(string(answer[:n]), "done") {
		t.Errorf("the operator was cut off: %q, %v", answer[:n], err)
	}
}

// Operations that wait on every connection that there is keep nobody out: neither a balancer, known
// or not, nor one that comes from an address of theirs.
func TestHeldConnectionsKeepNobodyOut(t *testing.T) {
	limits := unhurried()
	limits.Conns, limits.PerSource = 40, 10
	for name, c := range map[string]struct {
		known bool
		host  string
	}{
		"a balancer": {true, "127.0.0.1"}, "one that has never asked": {false, "127.0.0.1"}, "one of their own address": {false, "127.0.0.2"},
	} {
		t.Run(name, func(t *testing.T) {
			waiting, finish := make(chan struct{}, limits.Conns), make(chan struct{})
			s := served(t, limits, func(_ http.ResponseWriter, r *http.Request) {
				defer Hold(r.Context())()
				waiting <- struct{}{}
				<-finish
			})
			defer close(finish)
			check := func() {
				once, cancel := context.WithCancel(t.Context())
				cancel()
				balancer(once, t, s, c.host)
			}
			if c.known {
				check()
			}
			for i := range limits.Conns {
				conn, err := from(t.Context(), fmt.Sprintf("127.0.0.%d", 2+i%4), s)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := io.WriteString(conn, "POST /operation HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				<-waiting
			}
			check()
			s.listener.mu.Lock()
			defer s.listener.mu.Unlock()
			if s.listener.held == 0 || s.listener.held > limits.Conns/4 {
				t.Errorf("%d connections are kept for operations", s.listener.held)
			}
		})
	}
}

// However connections end, those that are kept are counted right: else after a while none would be.
func TestHeldConnectionsAreCounted(t *testing.T) {
	l := newConnLimit(nil, 40, 10)
	var conns []*limitedConn
	for range 4 {
		server, client := net.Pipe()
		defer client.Close()
		c := &limitedConn{Conn: server, limit: l, source: sourceOf(server)}
		l.admit(c)
		conns = append(conns, c)
	}
	released, twice, closed := conns[0].hold(), conns[1].hold(), conns[2].hold()
	again := conns[1].hold()
	if l.held != 3 {
		t.Errorf("%d are kept, of three", l.held)
	}
	released()
	twice()
	_ = conns[2].Close()
	closed()
	_ = conns[3].Close()
	conns[3].hold()()
	if l.held != 1 {
		t.Errorf("%d are kept, of one that another operation waits on", l.held)
	}
	again()
	conns[0].hold()()
	if l.held != 0 {
		t.Errorf("%d are kept, of none", l.held)
	}
}

// Friends are whom the routes in Consul name: whoever may write one shard's names as many as it
// likes, and keeps nobody else out by that.
func TestFriendsKeepNobodyOut(t *testing.T) {
	limits := unhurried()
	limits.Conns, limits.PerSource = 40, 10
	for name, known := range map[string]bool{"a balancer": true, "one that has never asked": false} {
		t.Run(name, func(t *testing.T) {
			s := served(t, limits, nil)
			if known {
				once, cancel := context.WithCancel(t.Context())
				cancel()
				balancer(once, t, s, "127.0.0.1")
			}
			var friends []net.IP
			for i := range 10 {
				friends = append(friends, net.IPv4(127, 3, 0, byte(i+1)))
			}
			s.listener.slots.befriend(friends)
			for n := range 8 {
				for _, friend := range friends {
					conn, err := from(t.Context(), friend.String(), s)
					if err != nil {
						t.Fatal(n, err)
					}
					defer conn.Close()
				}
			}
			once, cancel := context.WithCancel(t.Context())
			cancel()
			balancer(once, t, s, "127.0.0.1")
		})
	}
}

// Slots are not for everybody who has once asked like a balancer.
func TestBalancersAreFewAndRegular(t *testing.T) {
	s, now := newSlots(512), time.Now()
	addr := func(i int) source { return sourceOfIP(net.IPv4(10, 0, byte(i/256), byte(i%256))) }
	for i := range 100 {
		s.checked(addr(i), now)
	}
	if s.of(addr(0)) != slotsKept || s.of(addr(balancersKept-1)) != slotsKept || s.of(addr(balancersKept)) != 0 {
		t.Error("the first that came are not those that are kept")
	}
	s.checked(addr(0), now.Add(balancerMemory))
	s.checked(addr(99), now.Add(2*balancerMemory))
	if s.of(addr(0)) != slotsKept || s.of(addr(1)) != 0 || s.of(addr(99)) != slotsKept {
		t.Error("who does not ask any more is still kept")
	}
	if a, b := sourceOfIP(net.ParseIP("2001:db8::1")), sourceOfIP(net.ParseIP("2001:db8::ffff:2")); a != b {
		t.Error("one /64 counts as many hosts")
	}
	if a, b := sourceOfIP(net.ParseIP("10.0.0.1")), sourceOfIP(net.ParseIP("::ffff:10.0.0.1")); a != b {
		t.Error("one address counts as two")
	}
}

// Clients never get the descriptors that the program needs itself.
func TestDescriptorsAreKept(t *testing.T) {
	for descriptors, want := range map[uint64]int{64: leastConns, 256: leastConns, 512: 256, 1024: 512, 1 << 20: 512} {
		l, changed := DefaultLimits().fit(descriptors)
		if l.Conns != want || changed != (want < 512) || l.PerSource > l.Conns {
			t.Errorf("%d descriptors: %d connections, %d of one address, told: %v", descriptors, l.Conns, l.PerSource, changed)
		}
	}
}
