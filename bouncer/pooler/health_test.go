package pooler

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// A primary that takes connections and serves nobody, because it recovers from the
// crash of a backend, is as good as none; one that wants a password is there.
func TestGreeting(t *testing.T) {
	recovering := &pgproto3.ErrorResponse{Severity: "FATAL", Code: cannotConnectNow, Message: "the database system is in recovery mode"}
	full := &pgproto3.ErrorResponse{Severity: "FATAL", Code: "53300", Message: "sorry, too many clients already"}
	free := cluster.RouteMember{Name: "db1", Host: "127.0.0.1", Port: bouncertest.FreePort(t)}
	for name, test := range map[string]struct {
		at     cluster.RouteMember
		serves bool
	}{
		"password": {bouncertest.FakePostgres(t, &pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}}), true},
		"full":     {bouncertest.FakePostgres(t, full), true},
		"recovers": {bouncertest.FakePostgres(t, recovering), false},
		"refused":  {free, false},
	} {
		v := &Primary{ID: "service/s1", Leader: test.at, DBName: "s1"}
		p := newProber(NewHealthProber(config.Config{PgBouncer: config.PgBouncer{User: "pooler"}}, zerolog.Nop(), nil))
		knock := func(working bool) (err error) {
			late := net.Error(nil)
			for again := true; again; again = errors.As(err, &late) && late.Timeout() { // a busy machine says nothing
				_, err = p.knock(t.Context(), suspect{v, working})
			}
			return err
		}
		if err := knock(false); (err == nil) != test.serves {
			t.Errorf("%s: %v", name, err)
		}
		if err := knock(true); (err == nil) != (name != "refused") {
			t.Errorf("%s, with connections: %v", name, err)
		}
	}
}

// A host that takes no new connections in time, though its kernel has answered
// everything on those that there are, is busy: its clients are not held.
func TestBusyHostIsNotSilent(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	loopback := [4]byte{127, 0, 0, 1}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := cluster.RouteMember{Name: "db1", Host: "127.0.0.1", Port: name.(*unix.SockaddrInet4).Port}
	v := &Primary{ID: "service/s1", Leader: at, DBName: "s1"}
	for full := false; !full; { // nobody accepts, until the kernel takes no more
		conn, err := net.DialTimeout("tcp", v.address(), 100*time.Millisecond)
		if full = err != nil; !full {
			defer conn.Close()
		}
	}
	p := newProber(NewHealthProber(config.Config{PgBouncer: config.PgBouncer{User: "pooler"}}, zerolog.Nop(), nil))
	if _, err := p.knock(t.Context(), suspect{v, true}); err != nil {
		t.Errorf("with connections: %v", err)
	}
	if _, err := p.knock(t.Context(), suspect{v, false}); err == nil {
		t.Error("without connections it serves nobody")
	}
}

// A name that cannot be looked up says nothing of the host: while connections to it work its clients are not held. Where
// there are none it cannot be used.
func TestNoResolverIsNoSilence(t *testing.T) {
	p := newProber(NewHealthProber(config.Config{PgBouncer: config.PgBouncer{User: "pooler"}}, zerolog.Nop(), nil))
	v := &Primary{ID: "service/s1", Leader: cluster.RouteMember{Name: "db1", Host: "db1.invalid", Port: bouncertest.FreePort(t)}, DBName: "s1"}
	for _, lookup := range []error{
		&net.DNSError{Err: "no such host", Name: "db1.invalid", IsNotFound: true},
		&net.DNSError{Err: "i/o timeout", Name: "db1.invalid", IsTimeout: true},
	} {
		p.resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, lookup }
		if _, err := p.knock(t.Context(), suspect{v, true}); err != nil {
			t.Errorf("with connections: %v", err)
		}
		if _, err := p.knock(t.Context(), suspect{v, false}); err == nil {
			t.Error("without connections it serves nobody")
		}
	}
}

// The end of a connection is heard of at once, from whatever process.
func TestEndingsAreHeard(t *testing.T) {
	switch probe, err := openEndings(); {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EPROTONOSUPPORT):
		t.Skipf("the kernel does not tell this user: %v", err) // Lictor does without then, too
	case err != nil:
		t.Fatal(err)
	default:
		defer probe.Close()
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan struct{})
	var listening sync.WaitGroup
	defer listening.Wait()
	defer cancel()
	want := netip.MustParseAddrPort(listener.Addr().String())
	var first sync.Once
	failed := &bouncertest.Log{}
	e := &endings{log: zerolog.New(failed), ended: func(remote netip.AddrPort) {
		if remote == want {
			first.Do(func() { close(heard) })
		}
	}}
	listening.Go(func() { e.run(ctx) })
	for {
		client, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		// As after the crash of a host whose kernel lives.
		if err := errors.Join(server.(*net.TCPConn).SetLinger(0), server.Close(), client.Close()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-heard:
			return
		case <-ctx.Done():
			t.Fatal("not heard")
		default:
		}
		if text := failed.String(); text != "" {
			t.Fatal(text)
		}
	}
}

// An end of a connection makes the pools be looked at if it may be a primary's.
func TestEndingsHurryTheLook(t *testing.T) {
	s := NewHealthProber(config.Config{}, zerolog.Nop(), nil)
	s.listensOn(ownersOf([]Primary{{Databases: []string{"s1"}, Leader: cluster.RouteMember{Host: "db1", Port: 5432}}}))
	for remote, hurries := range map[netip.AddrPort]bool{
		netip.MustParseAddrPort("10.0.0.1:5432"): true, netip.MustParseAddrPort("10.0.0.1:8500"): false, {}: true,
	} {
		s.ended(remote)
		s.ended(remote) // must not wait
		got := false
		select {
		case <-s.hurry:
			got = true
		default:
		}
		if got != hurries {
			t.Errorf("%s: %v", remote, got)
		}
	}
}

// A database that no shard has leads to the fallback's primary, a shard's readers do not.
func TestOwners(t *testing.T) {
	list := []Primary{
		{ID: "service/s1", Databases: []string{"s1"}, Offered: []string{"s1", "s1_ro"}, Fallback: true},
		{ID: "service/s2", Databases: []string{"s2", "s2_ro"}, Offered: []string{"s2", "s2_ro"}},
	}
	for name, want := range map[string]*Primary{"s1": &list[0], "s1_ro": nil, "s2": &list[1], "s2_ro": &list[1], "other": &list[0]} {
		if got := ownersOf(list).of(name); got != want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := ownersOf(list[1:]).of("other"); got != nil {
		t.Errorf("without a fallback: %+v", got)
	}
}

// The route names the host: one that asks for the password of PgBouncer's console gets
// none, and counts as one that serves.
func TestProbeTellsNoPassword(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan pgproto3.FrontendMessage, 1)
	go func() { // ends with the listener
		defer close(heard)
		for { // a client that asked for TLS in vain comes again without
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if backend, err := bouncertest.FakeStartup(conn); err == nil {
				backend.Send(&pgproto3.AuthenticationCleartextPassword{})
				_ = backend.Flush()
				_ = backend.SetAuthType(pgproto3.AuthTypeCleartextPassword)
				if said, err := backend.Receive(); err == nil {
					heard <- said
				}
			}
			_ = conn.Close()
		}
	}()
	defer l.Close()
	at := cluster.RouteMember{Name: "db1", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
	v := &Primary{ID: "service/s1", Leader: at, DBName: "s1"}
	p := newProber(NewHealthProber(config.Config{PgBouncer: config.PgBouncer{Admin: "127.0.0.1:6432", User: "pooler", Password: "secret"}}, zerolog.Nop(), nil))
	if _, err := p.ask(t.Context(), v); err != nil {
		t.Errorf("it serves: %v", err)
	}
	_ = l.Close()
	if said := <-heard; said != nil {
		t.Errorf("it was told %#v", said)
	}
}

// Where connections end all the time, the looks that this causes leave PgBouncer its time for
// clients: with thousands of pools one takes some milliseconds.
func TestLooksLeavePgBouncerItsTime(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0: suspectAtOnce, time.Millisecond: suspectAtOnce, 8 * time.Millisecond: 32 * time.Millisecond, time.Minute: suspectLeast,
	} {
		if got := atOnce(took); got != want {
			t.Errorf("after a look of %s: %s, want %s", took, got, want)
		}
	}
}
