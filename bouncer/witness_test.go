package bouncer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

func TestKnock(t *testing.T) {
	t.Parallel()
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	fails := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	for name, test := range map[string]struct {
		knocks []func(context.Context) error // the last one again and again
		want   string                        // empty: silent
	}{
		"nobody is there":                  {[]func(context.Context) error{hang}, ""},
		"no way there":                     {[]func(context.Context) error{fails(&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH})}, ""},
		"it answers":                       {[]func(context.Context) error{fails(nil)}, "it answers"},
		"it answers at last":               {[]func(context.Context) error{hang, hang, hang, fails(nil)}, "it answers"},
		"refused: the host lives":          {[]func(context.Context) error{hang, fails(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})}, "it answers"},
		"its name is not known":            {[]func(context.Context) error{fails(&net.DNSError{Err: "no such host", IsNotFound: true})}, "it cannot be tried"},
		"nobody says where its name leads": {[]func(context.Context) error{hang, fails(&net.OpError{Op: "dial", Err: &net.DNSError{Err: "i/o timeout", IsTimeout: true}})}, "it cannot be tried"},
		"this host has no descriptors":     {[]func(context.Context) error{fails(syscall.EMFILE)}, "it cannot be tried"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const silent = 200 * time.Millisecond
			n, began := 0, time.Now()
			w := witness{dial: func(ctx context.Context, address string) error {
				if address != "db1:5432" {
					t.Errorf("%s was tried", address)
				}
				n++
				return test.knocks[min(n, len(test.knocks))-1](ctx)
			}}
			err := w.knock(t.Context(), "db1:5432", silent)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v, want %q", err, test.want)
			}
			if took := time.Since(began); err == nil && (took < silent || n != knocksIn) {
				t.Errorf("it was tried %d times, for %s", n, took)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := witness{dial: func(ctx context.Context, _ string) error { cancel(); return hang(ctx) }}
	if err := w.knock(ctx, "db1:5432", time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits for the answer any more: %v", err)
	}
}

// silentPort is a port of this host on which nobody answers, refuses nothing either.
func silentPort(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := name.(*syscall.SockaddrInet4).Port
	for range 8 { // its queue takes no more than one or two
		conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), 300*time.Millisecond)
		if err != nil {
			return port
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("the port answers")
	return 0
}

// A candidate hears that this host misses the leader, too: by the route as Consul has it, and when nobody has answered there for as long as
// it says.
func TestWitness(t *testing.T) {
	w := newWorld(t, nil)
	first := w.route(0, cluster.RouteOpen)
	w.put(w.keys.Route(), first)
	t.Cleanup(w.bouncer()) // before Consul's end
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	ask := func(q cluster.Missing, want int) string {
		t.Helper()
		var body map[string]any
		code, err := w.post("/misses", q, &body)
		if err != nil || code != want {
			t.Errorf("%+v: %d %v %v, want %d", q, code, body, err, want)
		}
		said, _ := body["error"].(string)
		return said
	}
	question := func(leader string) cluster.Missing {
		return cluster.Missing{Namespace: "service", Scope: "s1", Leader: leader, SilentMS: 1000}
	}
	at := func(name string, port int) {
		route := w.route(1, cluster.RouteOpen)
		route.Leader.Name, route.Leader.Host, route.Leader.Port = name, "127.0.0.1", port
		w.put(w.keys.Route(), route)
	}
	if said := ask(question(first.Leader.Name), http.StatusConflict); !strings.Contains(said, "it answers") {
		t.Errorf("a leader that answers: %s", said)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := listener.Addr().(*net.TCPAddr).Port
	_ = listener.Close()
	at("refuses", closed) // the bouncer reads it when it is asked
	if said := ask(question("refuses"), http.StatusConflict); !strings.Contains(said, "it answers") {
		t.Errorf("a host that refuses: %s", said)
	}
	at("silent", silentPort(t))
	if said := ask(question(first.Leader.Name), http.StatusConflict); !strings.Contains(said, "names another leader") {
		t.Errorf("one that does not lead any more: %s", said)
	}
	began, answered := time.Now(), make(chan int, 2)
	for range 2 {
		go func() {
			var body map[string]any
			code, _ := w.post("/misses", question("silent"), &body)
			answered <- code
		}()
	}
	codes := []int{<-answered, <-answered}
	if codes[0] != http.StatusTooManyRequests || codes[1] != http.StatusOK {
		t.Errorf("two that ask at once hear %v", codes)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("it is missed after %s", took)
	}
	other := question("silent")
	other.Scope = "other"
	ask(other, http.StatusNotFound)
	for _, ms := range []int64{0, -1, silentMost.Milliseconds() + 1} {
		other = question("silent")
		other.SilentMS = ms
		ask(other, http.StatusBadRequest)
	}
	ask(question(""), http.StatusBadRequest)
}

// Who asks for a witness against leaders that do not lead keeps no connections: those that are kept are for what
// waits with a reason.
func TestForgedMissesKeepNoConnections(t *testing.T) {
	t.Parallel()
	const conns, forged = 8, 6
	var asked sync.WaitGroup
	asked.Add(forged)
	silent := make(chan struct{})
	consulServer := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked.Done()
		select {
		case <-silent:
		case <-r.Context().Done():
		}
	}))
	defer consulServer.Close()
	defer close(silent)
	c := config.Config{Name: "b1", RoutesPrefix: "p", Consul: settings.Consul{Hosts: []string{consulServer.URL}}}
	clients, err := consul.NewClients(c)
	testkit.Must(t, err)
	pool, err := consul.NewPool(clients)
	testkit.Must(t, err)
	defer pool.Close()
	table := routes.NewTable(c)
	var known []routes.Pair
	for i := range forged {
		known = append(known, somePair(t, fmt.Sprintf("p/routes/service/s%d", i), 7, someRoute("db1")))
	}
	table.Merge(routes.Answer{KnownLeader: true, Pairs: known})
	ctx, end := context.WithTimeout(t.Context(), 30*time.Second)
	api := &listenerAPI{
		config: c, log: zerolog.Nop(), table: table, routeReads: routes.NewSharedReads(ctx),
		watcher: routes.NewWatcher(zerolog.Nop(), pool, table, routes.NewHandovers(c.Keys(), table.Serves), func() {}),
	}
	limits := httpserver.DefaultLimits()
	limits.Conns, limits.PerSource = conns, conns
	server := &httpserver.Server{Name: "test", Address: "127.0.0.1:0", Limits: limits, Log: zerolog.Nop(), Handler: http.HandlerFunc(api.misses)}
	testkit.Must(t, server.Listen(ctx))
	var serving sync.WaitGroup
	defer serving.Wait()
	defer api.routeReads.Wait()
	defer end()
	serving.Go(func() { _ = server.Serve(ctx, nil) })
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", server.Addr().String())
		testkit.Must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	var all []net.Conn
	for i := range forged {
		body := fmt.Sprintf(`{"namespace":"service","scope":"s%d","leader":"nobody","silent_ms":10000}`, i)
		conn := dial()
		_, err := fmt.Fprintf(conn, "POST /misses HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		testkit.Must(t, err)
		all = append(all, conn)
	}
	asked.Wait() // they are at it
	for range conns {
		dial()
	}
	for i, conn := range all {
		testkit.Must(t, conn.SetReadDeadline(time.Now().Add(2*time.Second)))
		if n, err := conn.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d is kept: %v", i, err)
		}
	}
}
