package postgres

import (
	"crypto/tls"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/config"
)

// hostile is a server that asks whoever connects for a password, and keeps what it gets. With
// a certificate it speaks TLS.
func hostile(t *testing.T, ask pgproto3.BackendMessage, certificates ...tls.Certificate) (u Upstream, got func() []string) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	var (
		mu    sync.Mutex
		heard []string
		conns sync.WaitGroup
	)
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				server := pgproto3.NewBackend(conn, conn)
				for {
					first, err := server.ReceiveStartupMessage()
					if err != nil {
						return
					}
					if _, plain := first.(*pgproto3.StartupMessage); plain {
						break
					}
					_, wantsTLS := first.(*pgproto3.SSLRequest)
					answer := "N"
					if wantsTLS && len(certificates) > 0 {
						answer = "S"
					}
					if _, err := conn.Write([]byte(answer)); err != nil {
						return
					}
					if answer == "S" {
						conn = tls.Server(conn, &tls.Config{Certificates: certificates}) //nolint:gosec // a client's minimum is its own
						server = pgproto3.NewBackend(conn, conn)
					}
				}
				server.Send(ask)
				kind := uint32(pgproto3.AuthTypeCleartextPassword)
				if _, scram := ask.(*pgproto3.AuthenticationSASL); scram {
					kind = pgproto3.AuthTypeSASL
				}
				if server.Flush() != nil || server.SetAuthType(kind) != nil {
					return
				}
				var told string
				said, err := server.Receive()
				switch p := said.(type) {
				case *pgproto3.PasswordMessage:
					told = p.Password
				case *pgproto3.SASLInitialResponse:
					told = p.AuthMechanism
				}
				if err == nil && told != "" {
					mu.Lock()
					heard = append(heard, told)
					mu.Unlock()
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); conns.Wait() })
	return Upstream{Name: "hostile", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return heard
	}
}

// A host that Consul names asks for the password in clear text, or for its md5: it gets
// neither.
func TestHostileServer(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	p := newInstance(t, s)
	knock := func(u Upstream, p *Instance) {
		t.Helper()
		auth := p.local.Load().Authentication
		for what, try := range map[string]func() error{
			"superuser":   func() error { _, err := p.connect(ctx, u.Host, u.Port, auth.Superuser, "postgres", "test"); return err },
			"replication": func() error { _, err := p.replicationConn(ctx, u); return err },
			"base backup": func() error { return p.BaseBackup(ctx, u, nil) },
			"position":    func() error { _, _, err := p.PositionOf(ctx, u); return err },
		} {
			err := try()
			if err == nil || !strings.Contains(err.Error(), "require_auth of the role") {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	clear, gotClear := hostile(t, &pgproto3.AuthenticationCleartextPassword{})
	knock(clear, p)
	md5, gotMD5 := hostile(t, &pgproto3.AuthenticationMD5Password{Salt: [4]byte{1, 2, 3, 4}})
	// What PostgreSQL keeps of the roles says what a server of this shard may ask for; an
	// agent that begins anew knows it before PostgreSQL runs.
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	_, err := p.Observe(ctx)
	must(t, err)
	knock2 := func(p *Instance) {
		t.Helper()
		if _, err := p.replicationConn(ctx, md5); err == nil || !strings.Contains(err.Error(), "md5") {
			t.Errorf("%v", err)
		}
		if _, err := p.connect(ctx, md5.Host, md5.Port, p.local.Load().Authentication.Rewind, "postgres", "test"); err == nil {
			t.Error("logged in")
		}
	}
	knock2(p)
	knock2(newInstance(t, s))
	if got := append(gotClear(), gotMD5()...); len(got) > 0 {
		t.Errorf("the server was told %q", got)
	}
	// Who sets it gets it.
	role := p.local.Load().Authentication.Superuser
	role.RequireAuth = "password"
	_, _ = p.connect(ctx, clear.Host, clear.Port, role, "postgres", "test")
	if got := gotClear(); len(got) == 0 || got[0] != role.Password {
		t.Errorf("require_auth: password, and the server was told %q", got)
	}
}

// giant is the beginning of a message of a gigabyte.
type giant struct{ pgproto3.ErrorResponse }

func (giant) Encode(dst []byte) ([]byte, error) { return append(dst, 'E', 0x3f, 0xff, 0xff, 0xf0), nil }

// A host that Consul names has the agent take no gigabyte for what it says that it is about to send.
func TestHostileServerTakesNoMemory(t *testing.T) {
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	u, _ := hostile(t, &giant{})
	for what, try := range map[string]func() error{
		"superuser": func() error {
			_, err := p.connect(ctx, u.Host, u.Port, p.local.Load().Authentication.Superuser, "postgres", "test")
			return err
		},
		"replication": func() error { _, err := p.replicationConn(ctx, u); return err },
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := try()
		runtime.ReadMemStats(&after)
		if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 128 || err == nil {
			t.Errorf("%s took %d MiB: %v", what, took, err)
		}
	}
}

// libpq is told the same, from the version on that knows it.
func TestRequireAuthOfLibpq(t *testing.T) {
	p := newInstance(t, settings(t, newDir(t), "a"))
	u := Upstream{Name: "u", Host: "10.0.0.1", Port: 5432}
	for _, test := range []struct {
		major int
		role  config.PgUser
		want  string
	}{
		{15, config.PgUser{Username: "r"}, ""},
		{16, config.PgUser{Username: "r"}, " require_auth='!password'"},
		{16, config.PgUser{Username: "r", SSLMode: "verify-full"}, ""},
		{16, config.PgUser{Username: "r", SSLMode: "verify-full", RequireAuth: "scram-sha-256"}, " require_auth=scram-sha-256"},
	} {
		p.major = test.major
		got := p.conninfo(u, test.role, "", "a")
		if (test.want == "") != !strings.Contains(got, "require_auth") || !strings.Contains(got, test.want) {
			t.Errorf("%+v: %s", test, got)
		}
	}
}

// Where PostgreSQL's own programs cannot be told to keep a password from a server, that is
// said.
func TestOldProgramsAnswerAnyServer(t *testing.T) {
	role := func(edit func(*config.PgUser)) config.Postgres {
		u := config.PgUser{Username: "replicator", Password: secret}
		edit(&u)
		return config.Postgres{Authentication: config.Authentication{
			Superuser: config.PgUser{Username: "postgres"}, Replication: u, Rewind: config.PgUser{Username: "rewind"},
		}}
	}
	for _, c := range []struct {
		name  string
		major int
		edit  func(*config.PgUser)
		told  bool
	}{
		{"no TLS", 15, func(*config.PgUser) {}, true},
		{"require_auth is of 16", 15, func(u *config.PgUser) { u.RequireAuth = "scram-sha-256" }, true},
		{"TLS with anybody", 15, func(u *config.PgUser) { u.SSLMode = "require" }, true},
		{"channel binding, and nothing said of TLS", 15, func(u *config.PgUser) { u.ChannelBinding = "require" }, false},
		{"channel binding", 15, func(u *config.PgUser) { u.SSLMode, u.ChannelBinding = "require", "require" }, false},
		{"channel binding is of 13", 12, func(u *config.PgUser) { u.SSLMode, u.ChannelBinding = "require", "require" }, true},
		{"a certificate that is checked", 15, func(u *config.PgUser) { u.SSLMode = "verify-full" }, false},
		{"no password", 15, func(u *config.PgUser) { u.Password = "" }, false},
		{"16", 16, func(*config.PgUser) {}, false},
	} {
		told := openToServers(role(c.edit), c.major)
		if (len(told) > 0) != c.told || len(told) > 0 && (told[0].Path != "postgresql.authentication.replication.sslmode" || strings.Contains(told[0].Text, secret)) {
			t.Errorf("%s: %v", c.name, told)
		}
	}
}
