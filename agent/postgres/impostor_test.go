package postgres

import (
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/config"
)

// impostor listens at an address as PostgreSQL does, lets everybody in and says what does most harm: that it is a primary
// of the shard's system identifier, has taken over, and has no WAL any more.
func impostor(t *testing.T, systemIdentifier string) Upstream {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				lie(conn, systemIdentifier)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); conns.Wait() })
	return Upstream{Name: "impostor", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Remote: true}
}

const (
	typeBool, typeInt8, typeText = 16, 20, 25
)

// column is one of an answer.
type column struct {
	kind  uint32
	value []byte
}

func words(values ...string) (row []column) {
	for _, v := range values {
		row = append(row, column{typeText, []byte(v)})
	}
	return row
}

// lie speaks with one client.
func lie(conn net.Conn, systemIdentifier string) {
	server := pgproto3.NewBackend(conn, conn)
	for {
		first, err := server.ReceiveStartupMessage()
		if err != nil {
			return
		}
		if _, plain := first.(*pgproto3.StartupMessage); plain {
			break
		}
		if _, err := conn.Write([]byte("N")); err != nil {
			return
		}
	}
	server.Send(&pgproto3.AuthenticationOk{})
	server.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: "15.1"})
	server.Send(&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"})
	server.Send(&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"})
	server.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})
	server.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	answers := func(query string) []column {
		switch {
		case strings.HasPrefix(query, "IDENTIFY_SYSTEM"):
			return words(systemIdentifier, "2", "0/5000000", "")
		case strings.HasPrefix(query, "SHOW in_hot_standby"):
			return words("off")
		case strings.HasPrefix(query, "TIMELINE_HISTORY"):
			return words("00000002.history", "1\t0/1000000\tno reason\n")
		case strings.HasPrefix(query, "SELECT pg_is_in_recovery()"):
			return append([]column{{typeBool, []byte{0}}}, words(systemIdentifier)...)
		case strings.Contains(query, "pg_ls_waldir"):
			return []column{words(systemIdentifier)[0], {typeInt8, binary.BigEndian.AppendUint64(nil, 16<<20)}, words("000000FF00000000")[0]}
		}
		return nil
	}
	describe := func(query string) {
		var fields []pgproto3.FieldDescription
		for _, c := range answers(query) {
			fields = append(fields, pgproto3.FieldDescription{Name: []byte("c"), DataTypeOID: c.kind, DataTypeSize: -1, TypeModifier: -1, Format: 1})
		}
		server.Send(&pgproto3.RowDescription{Fields: fields})
	}
	row := func(query string) {
		var values [][]byte
		for _, c := range answers(query) {
			values = append(values, c.value)
		}
		server.Send(&pgproto3.DataRow{Values: values})
		server.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
	}
	prepared := ""
	for server.Flush() == nil {
		said, err := server.Receive()
		if err != nil {
			return
		}
		switch m := said.(type) {
		case *pgproto3.Query:
			if strings.HasPrefix(m.String, "START_REPLICATION") {
				server.Send(&pgproto3.ErrorResponse{Severity: "ERROR", Code: undefinedFile, Message: "it has already been removed"})
			} else {
				describe(m.String)
				row(m.String)
			}
			server.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Parse:
			prepared = m.Query
			server.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Describe:
			if m.ObjectType == 'S' {
				server.Send(&pgproto3.ParameterDescription{})
			}
			describe(prepared)
		case *pgproto3.Bind:
			server.Send(&pgproto3.BindComplete{})
		case *pgproto3.Execute:
			row(prepared)
		case *pgproto3.Sync:
			server.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		}
	}
}

// Whoever takes the port of a member, or of the other site, and lets everybody in, is not believed where a primary is
// stopped, a member counts or data are removed by the answer; unless the operator has said so.
func TestImpostor(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	id := bootstrapped(ctx, t, p)
	u := impostor(t, id)
	as := func(edit func(role *config.PgUser), verifiers ...string) {
		given := p.given
		a := &given.Authentication
		for _, role := range []*config.PgUser{&a.Superuser, &a.Replication, &a.Rewind} {
			edit(role)
		}
		p.roles.Lock()
		p.verifiers.Scram = verifiers
		p.roles.Unlock()
		was := p.given
		p.useLocal(given)
		p.given = was
	}
	own := agentsRoles(p.local.Load().Authentication)
	asked := map[string]func() error{
		"AskSite": func() error {
			s, err := p.AskSite(ctx, u, 1)
			if err == nil && !s.Succeeds(0) && s.CanTakeOver(1, 0, 1<<40) != nil {
				err = ErrUnproved
				if !s.Unproved || !s.MaySucceed(0) {
					t.Errorf("%+v", s)
				}
			}
			return err
		},
		"WALGone": func() error {
			gone, err := p.WALGone(ctx, u, id, 1, 0x1000000)
			if err == nil && !gone {
				err = errors.New("it is not gone")
			}
			return err
		},
		"Answers":     func() error { return p.Answers(ctx, u, true, id) },
		"PositionOf":  func() error { _, _, err := p.PositionOf(ctx, u); return err },
		"CheckRemote": func() error { _, err := p.CheckRemote(ctx, u, true); return err },
	}
	for _, test := range []struct {
		name      string
		edit      func(role *config.PgUser)
		verifiers []string
		unasked   []string
		believed  []string
	}{
		{name: "a password, of which PostgreSQL keeps a verifier", verifiers: own},
		// Else no member that was rewound would ever count again.
		{name: "a password", believed: []string{"PositionOf"}},
		{name: "no password", edit: func(r *config.PgUser) { r.Password = "" }, verifiers: own, believed: []string{"PositionOf"}},
		{name: "pg_hba lets the role in by trust", verifiers: own, unasked: []string{forReplication, forSQL}, believed: []string{"PositionOf"}},
		{name: "TLS with anybody", edit: func(r *config.PgUser) { r.SSLMode = "prefer" }, verifiers: own},
		{name: "a list that asks for nothing", edit: func(r *config.PgUser) { r.RequireAuth = "!password" }, believed: []string{"PositionOf"}},
		{name: "the operator wants SCRAM", edit: func(r *config.PgUser) { r.RequireAuth = "scram-sha-256" }},
		{name: "the operator wants anything", edit: func(r *config.PgUser) { r.RequireAuth = "!none" }},
		{
			name: "the operator wants nothing", edit: func(r *config.PgUser) { r.RequireAuth = "none,scram-sha-256" }, verifiers: own,
			believed: []string{"AskSite", "WALGone", "Answers", "PositionOf", "CheckRemote"},
		},
	} {
		as(func(r *config.PgUser) {
			if test.edit != nil {
				test.edit(r)
			}
		}, test.verifiers...)
		p.roles.Lock()
		p.verifiers.Unasked = test.unasked
		p.roles.Unlock()
		for what, ask := range asked {
			err := ask()
			believed := false
			for _, b := range test.believed {
				believed = believed || b == what
			}
			switch refused := err != nil && strings.Contains(err.Error(), "require_auth"); {
			case believed && err != nil:
				t.Errorf("%s: %s: %v", test.name, what, err)
			case !believed && !errors.Is(err, ErrUnproved) && !refused:
				t.Errorf("%s: %s is believed, or not for the reason: %v", test.name, what, err)
			}
		}
	}
}

// What proves itself is believed, also with the password that SASLprep changes, over a unix socket, and by a certificate.
func TestProving(t *testing.T) {
	for _, test := range []struct {
		name, host string
		role       config.PgUser
		want       string
	}{
		{"nothing is said", "10.0.0.1", config.PgUser{}, proof},
		{"SCRAM is known", "10.0.0.1", config.PgUser{RequireAuth: scramAlone}, proof},
		{"no password in clear text", "10.0.0.1", config.PgUser{RequireAuth: noCleartext}, proof},
		{"TLS with anybody", "10.0.0.1", config.PgUser{SSLMode: "require"}, proof},
		{"a unix socket", "/run/postgresql", config.PgUser{}, ""},
		{"a certificate", "10.0.0.1", config.PgUser{SSLMode: "verify-ca", RequireAuth: noCleartext}, noCleartext},
		{"a certificate by the authorities", "10.0.0.1", config.PgUser{SSLMode: "require", SSLRootCert: "/ca.pem"}, ""},
		{"md5 by the operator", "10.0.0.1", config.PgUser{RequireAuth: "md5"}, "md5"},
		{"nothing by the operator", "10.0.0.1", config.PgUser{RequireAuth: "none"}, "none"},
		{"anything by the operator", "10.0.0.1", config.PgUser{RequireAuth: "!md5, !none"}, "!md5, !none"},
	} {
		if got := proving(test.host, test.role).RequireAuth; got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// A primary that lets the agent in by trust is believed as before where nothing depends on it, and for the rest says what to set.
func TestTrustSaysWhatToSet(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	s := settings(t, newDir(t), "a")
	s.Postgres.PgHBA = []string{"local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"}
	a := newInstance(t, s)
	id := bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, a, "answers", func(s State) bool { return s.Accepting })
	same := settings(t, newDir(t), "b")
	same.Postgres.PgHBA, same.Postgres.ConnectAddress = s.Postgres.PgHBA, "127.0.0.1:1"
	b := newInstance(t, same)
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	// What must not end for good does without: a member that was copied counts again, and the other site keeps a primary from being made.
	observe(ctx, t, b, "knows what pg_hba asks for", func(State) bool {
		b.roles.Lock()
		defer b.roles.Unlock()
		return len(b.verifiers.Scram) > 0 && len(b.verifiers.Unasked) == 2
	})
	if _, _, err := b.PositionOf(ctx, upstream(a)); err != nil {
		t.Errorf("a copy would never count again: %v", err)
	}
	if site, err := b.AskSite(ctx, upstream(a), 1); err != nil || !site.Unproved || !site.Primary {
		t.Errorf("the other site's primary counts as none: %+v, %v", site, err)
	}
	answers := func(p *Instance) error { return p.Answers(ctx, upstream(a), true, id) }
	if err := answers(b); !errors.Is(err, ErrUnproved) || !strings.Contains(err.Error(), "set require_auth") {
		t.Error(err)
	}
	s.Postgres.Authentication.Superuser.RequireAuth = "none"
	if err := answers(newInstance(t, s)); err != nil {
		t.Error(err)
	}
}

// Of pg_hba's lines those count that let the role in from other hosts by something else than its password.
func TestLinesThatAskForNoProof(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	for lines, want := range map[string][2]bool{
		"host all all 10.0.0.0/8 scram-sha-256\nhost replication all 10.0.0.0/8 md5":         {},
		"local all all trust\nlocal replication all peer":                                    {},
		"host all all 127.0.0.1/32 trust\nhost replication all ::1/128 trust":                {},
		"host all all 10.0.0.0/8 trust":                                                      {false, true},
		"host replication all 10.0.0.0/8 ident":                                              {true, false},
		"host replication somebody 10.0.0.0/8 trust\nhost all somebody all trust":            {},
		"host replication replicator samenet trust\nhost app,replication postgres all ident": {true, true},
		"host replication +repl 10.0.0.0/8 trust\nhost all all all reject":                   {true, false},
	} {
		must(t, p.writeFile(p.inConf("pg_hba.conf"), "local all all trust\n"+lines+"\n"))
		var got [2]bool
		must(t, conn.QueryRow(ctx, unaskedSQL, "replicator", "postgres", false).Scan(&got[0], &got[1]))
		if got != want {
			t.Errorf("%s: replication and SQL %v, want %v", lines, got, want)
		}
	}
	var got [2]bool
	must(t, p.writeFile(p.inConf("pg_hba.conf"), "host all all 127.0.0.1/32 trust\n"))
	must(t, conn.QueryRow(ctx, unaskedSQL, "replicator", "postgres", true).Scan(&got[0], &got[1]))
	if got != [2]bool{false, true} || !onLoopback("127.0.0.1:5432") || !onLoopback("[::1]:5432") || onLoopback("10.0.0.1:5432") {
		t.Errorf("members that are all on one host: %v", got)
	}
}

// What makes answers unproved is said beforehand.
func TestUnprovedServersAreToldOf(t *testing.T) {
	for name, test := range map[string]struct {
		edit func(*config.Postgres)
		want string // in which setting
	}{
		"passwords":   {func(*config.Postgres) {}, ""},
		"no password": {func(p *config.Postgres) { p.Authentication.Superuser.Password = "" }, "superuser"},
		"a certificate": {func(p *config.Postgres) {
			p.Authentication.Replication = config.PgUser{Username: "r", SSLMode: "require", SSLCert: "/c"}
		}, "replication"},
		"a certificate, and the server's is checked": {func(p *config.Postgres) {
			p.Authentication.Replication = config.PgUser{Username: "r", SSLMode: "verify-full", SSLCert: "/c"}
		}, ""},
		"trust": {func(p *config.Postgres) {
			p.PgHBA = []string{"local all all trust", "host replication all 10.0.0.0/8 trust"}
		}, "replication"},
		"trust on the host": {func(p *config.Postgres) { p.PgHBA = []string{"local all all trust", "host all all 127.0.0.1/32 trust"} }, ""},
		"trust, and said so": {func(p *config.Postgres) {
			p.PgHBA, p.Authentication.Superuser.RequireAuth = []string{"host all all 0.0.0.0/0 trust"}, "none,scram-sha-256"
		}, ""},
		"trust for all": {func(p *config.Postgres) { p.PgHBA = []string{"hostssl all all 0.0.0.0/0 trust"} }, "superuser"},
	} {
		local := settings(t, t.TempDir(), "a").Postgres
		test.edit(&local)
		told := unprovedServers(local)
		if (test.want == "") != (len(told) == 0) || len(told) > 1 || len(told) == 1 && told[0].Path != "postgresql.authentication."+test.want+".require_auth" {
			t.Errorf("%s: %v", name, told)
		}
	}
}
