package pooler

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// A PostgreSQL that takes TLS only tells a probe that it is a primary, when the probe
// comes as PgBouncer does; nothing of a probe stands in its log.
func TestProbeUsesTLSOfPgBouncer(t *testing.T) {
	bouncertest.NeedInHotStandby(t)
	bin := bouncertest.PostgresBin()
	if _, err := exec.LookPath(filepath.Join(bin, "initdb")); err != nil {
		t.Skip(err)
	}
	t.Parallel()
	dir := bouncertest.Dir(t)
	data := filepath.Join(dir, "data")
	testkit.Must(t, bouncertest.InitDB(bin, data))
	ours, theirs := bouncertest.Certificate(t, dir, "db1"), bouncertest.Certificate(t, dir, "elsewhere")
	pem, err := os.ReadFile(ours)
	testkit.Must(t, err)
	key := filepath.Join(data, "server.pem")
	testkit.Must(t, os.WriteFile(key, pem, 0o600))
	testkit.Must(t, bouncertest.GiveAway(key))
	testkit.Must(t, os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("hostssl all all 127.0.0.1/32 trust\n"), 0o644))
	conf, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	testkit.Must(t, err)
	_, err = conf.WriteString("\nssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.pem'\nlogging_collector = on\nlog_directory = '" + dir + "'\nlog_filename = 'postgres.log'\n")
	testkit.Must(t, err)
	testkit.Must(t, conf.Close())
	port := bouncertest.FreePort(t)
	stop, err := bouncertest.RunPostgres(data, port)
	testkit.Must(t, err)
	defer stop(9)
	at := cluster.RouteMember{Name: "db1", Host: "127.0.0.1", Port: port}
	v := &Primary{ID: "service/s1", Leader: at, DBName: "postgres"}
	probe := func(settings map[string]any) *prober {
		c := config.Config{PgBouncer: config.PgBouncer{Admin: "127.0.0.1:6432", User: "app", Settings: settings}}
		return newProber(NewHealthProber(c, zerolog.Nop(), nil))
	}
	for limit := time.Now().Add(time.Minute); probe(nil).greet(t.Context(), v) != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("PostgreSQL does not come up")
		}
	}
	log := filepath.Join(dir, "postgres.log")
	testkit.Must(t, os.Truncate(log, 0))
	for name, test := range map[string]struct {
		settings map[string]any
		primary  bool
	}{
		"nothing said":       {nil, true},
		"required":           {map[string]any{"server_tls_sslmode": "require", "server_tls_ca_file": theirs}, true},
		"verified":           {map[string]any{"server_tls_sslmode": "verify-full", "server_tls_ca_file": ours}, true},
		"another authority":  {map[string]any{"server_tls_sslmode": "verify-full", "server_tls_ca_file": theirs}, false},
		"unreadable setting": {map[string]any{"server_tls_sslmode": "verify-full", "server_tls_ca_file": filepath.Join(dir, "none")}, true},
	} {
		p := probe(test.settings)
		if err := p.greet(t.Context(), v); err != nil {
			t.Errorf("%s: greeting: %v", name, err)
		}
		if primary, err := p.ask(t.Context(), v); primary != test.primary || err != nil {
			t.Errorf("%s: primary: %v, %v", name, primary, err)
		}
	}
	text, err := os.ReadFile(log)
	testkit.Must(t, err)
	for line := range strings.Lines(string(text)) {
		// The handshake that we break off because of the certificate is told.
		if strings.Contains(line, "FATAL") {
			t.Errorf("its log says %q", line)
		}
	}
	p := probe(map[string]any{"server_tls_sslmode": "disable"})
	if primary, err := p.ask(t.Context(), v); primary || err != nil {
		t.Errorf("without TLS it only says that it is there: %v, %v", primary, err)
	}
}

// Who answers at the address of a primary, or of a PgBouncer that is down, costs the bouncer no memory: one shard's
// host would end it for all shards, by the five bytes with which a message of a gigabyte begins.
func TestAnswersTakeNoMemory(t *testing.T) {
	for name, talk := range map[string]func(net.Conn){
		"a message of a gigabyte": func(conn net.Conn) { _, _ = conn.Write([]byte{'E', 0x3f, 0xff, 0xff, 0xf0}) },
		"settings without end": func(conn net.Conn) {
			backend := pgproto3.NewBackend(conn, conn)
			backend.Send(&pgproto3.AuthenticationOk{})
			for i, long := 0, strings.Repeat("x", 32<<10); i < 4096 && backend.Flush() == nil; i++ {
				backend.Send(&pgproto3.ParameterStatus{Name: strconv.Itoa(i), Value: long})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			testkit.Must(t, err)
			var talking sync.WaitGroup
			talking.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					talking.Go(func() {
						defer conn.Close()
						if _, err := bouncertest.FakeStartup(conn); err == nil {
							talk(conn)
							_, _ = io.Copy(io.Discard, conn) // until it is hung up on
						}
					})
				}
			})
			defer talking.Wait()
			defer l.Close()
			at := cluster.RouteMember{Name: "db1", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
			v := &Primary{ID: "service/s1", Leader: at, DBName: "s1"}
			p := newProber(NewHealthProber(config.Config{PgBouncer: config.PgBouncer{Admin: "127.0.0.1:6432", User: "pooler"}}, zerolog.Nop(), nil))
			for what, ask := range map[string]func(context.Context) error{
				"greet": func(ctx context.Context) error { return p.greet(ctx, v) },
				"ask":   func(ctx context.Context) error { _, err := p.ask(ctx, v); return err },
				"knock": func(ctx context.Context) error {
					return knock(ctx, frontAddress{"tcp", l.Addr().String()}, "s1")
				},
				"console": func(ctx context.Context) error {
					_, err := pgbouncer.Connect(ctx, pgbouncer.Options{Address: pgbouncer.Address{Host: at.Host, Port: at.Port}, User: "pooler"})
					return err
				},
			} {
				if what == "console" && name == "settings without end" {
					continue // it is on this host, and may say a lot
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				err := ask(ctx)
				runtime.ReadMemStats(&after)
				cancel()
				if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 32 {
					t.Errorf("%s took %d MiB: %v", what, took, err)
				}
			}
		})
	}
}

// A server says how often a password is to be hashed for it: ten million times are seconds of a processor for each
// probe. One that wants so much serves, though not us.
func TestProbeHashesNoPasswordForLong(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	for iterations, answered := range map[int]bool{4096: true, 10_000_000: false} {
		done := make(chan bool, 1)
		go func() {
			for told := false; ; {
				conn, err := l.Accept()
				if err != nil {
					done <- told
					return
				}
				server, err := bouncertest.FakeStartup(conn)
				if err == nil {
					server.Send(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}})
					err = errors.Join(server.Flush(), server.SetAuthType(pgproto3.AuthTypeSASL))
				}
				if err == nil {
					if first, err := server.Receive(); err == nil {
						_, nonce, _ := strings.Cut(string(first.(*pgproto3.SASLInitialResponse).Data), "r=")
						server.Send(&pgproto3.AuthenticationSASLContinue{Data: []byte(fmt.Sprintf("r=%sx,s=c2FsdA==,i=%d", nonce, iterations))})
						if errors.Join(server.Flush(), server.SetAuthType(pgproto3.AuthTypeSASLContinue)) == nil {
							_, err := server.Receive()
							told = told || err == nil
						}
					}
				}
				_ = conn.Close()
				if err == nil {
					done <- told
					return
				}
			}
		}()
		at := cluster.RouteMember{Name: "db1", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
		p := newProber(NewHealthProber(config.Config{PgBouncer: config.PgBouncer{Admin: "127.0.0.1:6432", ProbeUser: "probe", ProbePassword: "secret"}}, zerolog.Nop(), nil))
		begun := time.Now()
		_, err := p.ask(t.Context(), &Primary{ID: "service/s1", Leader: at, DBName: "s1"})
		if told := <-done; told != answered || !answered && (err != nil || time.Since(begun) > time.Second) {
			t.Errorf("%d: it was answered: %v, after %s, %v", iterations, told, time.Since(begun), err)
		}
	}
	_ = l.Close()
}

// A shard's host passes what a probe says on to PgBouncer's console, and its answers back: it is told nothing by
// which the console would let it in.
func TestProbeIsNoLoginElsewhere(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skip(err)
	}
	dir, port := bouncertest.Dir(t), bouncertest.FreePort(t)
	list := filepath.Join(dir, "userlist.txt")
	for name, text := range map[string]string{
		"userlist.txt":  "\"pooler\" \"a password that nobody else has\"\n\"probe\" \"another\"\n",
		"pgbouncer.ini": fmt.Sprintf("[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nadmin_users = pooler\nauth_type = scram-sha-256\nauth_file = %s\n", port, list),
	} {
		testkit.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	said := runPgBouncer(t, dir)
	testkit.Await(t.Context(), t, "PgBouncer", func() error {
		if !strings.Contains(said.String(), "process up") {
			return errors.New(said.String())
		}
		return nil
	})
	console := "127.0.0.1:" + strconv.Itoa(port)
	settings := map[string]any{"auth_type": "scram-sha-256", "auth_file": list}
	for name, c := range map[string]config.PgBouncer{
		"by the file of users":       {Admin: console, User: "pooler", Settings: settings},
		"a password":                 {Admin: console, User: "pooler", Password: "a password that nobody else has", Settings: settings},
		"a role of its own, relayed": {Admin: console, User: "pooler", ProbeUser: "probe", ProbePassword: "another", Settings: settings},
	} {
		for _, user := range []string{"pooler", "probe"} {
			in, probe := relayedProbe(t, c, console, user)
			if in {
				t.Errorf("%s: the console lets the host in as %s", name, user)
			}
			if probe != nil && user == "pooler" && c.ProbePassword == "" {
				t.Errorf("%s: whoever asks for a password serves: %v", name, probe)
			}
		}
	}
}

// relayedProbe is what the console says to a shard's host that logs in there as user by what a probe says to it.
func relayedProbe(t *testing.T, c config.PgBouncer, console, user string) (in bool, probe error) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	var relaying sync.WaitGroup
	let := make(chan struct{}, 1)
	relaying.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := bouncertest.FakeStartup(conn); err == nil && relay(conn, console, user) {
				let <- struct{}{}
			}
			_ = conn.Close()
		}
	})
	at := cluster.RouteMember{Name: "db1", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, probe = newProber(NewHealthProber(config.Config{PgBouncer: c}, zerolog.Nop(), nil)).ask(ctx, &Primary{ID: "service/s1", Leader: at, DBName: "s1"})
	_ = l.Close()
	relaying.Wait()
	return len(let) > 0, probe
}

// relay logs in at the console by the answers of whoever is connected, and reports whether it obeys.
func relay(victim net.Conn, console, user string) bool {
	conn, err := net.Dial("tcp", console)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = errors.Join(conn.SetDeadline(time.Now().Add(3*time.Second)), victim.SetDeadline(time.Now().Add(3*time.Second)))
	frontend := pgproto3.NewFrontend(conn, conn)
	frontend.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersionNumber, Parameters: map[string]string{"user": user, "database": "pgbouncer"}})
	if frontend.Flush() != nil {
		return false
	}
	for code := uint32(1); code != 0; {
		word, err := message(conn)
		if err != nil || word[0] != 'R' {
			return false
		}
		if code = binary.BigEndian.Uint32(word[5:9]); code == 0 {
			break
		}
		if _, err = victim.Write(word); err == nil && code != 12 { // the last word of SCRAM has no answer
			if word, err = message(victim); err == nil {
				_, err = conn.Write(word)
			}
		}
		if err != nil {
			return false
		}
	}
	frontend.Send(&pgproto3.Query{String: "SET server_lifetime = 1"})
	if frontend.Flush() != nil {
		return false
	}
	for {
		said, err := frontend.Receive()
		if err != nil {
			return false
		}
		switch said.(type) {
		case *pgproto3.CommandComplete:
			return true
		case *pgproto3.ErrorResponse:
			return false
		}
	}
}

// message is one message as it is.
func message(conn net.Conn) ([]byte, error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(conn, head); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
	_, err := io.ReadFull(conn, body)
	return append(head, body...), err
}
