package postgres

import (
	"crypto/tls"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/config"
)

// channel_binding: require keeps a password from a server whose TLS is not bound to it, as
// whoever sits in between must leave it out: the agent's driver and PostgreSQL's own programs
// refuse such a server, and tell it nothing. One of PostgreSQL's that binds is logged in to.
func TestChannelBinding(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	ca := newAuthority(t, filepath.Join(dir, "ca"))
	cert, key := ca.issue(t, "server", 2, "")
	s := settings(t, dir, "a")
	s.Postgres.Parameters["ssl"], s.Postgres.Parameters["ssl_cert_file"], s.Postgres.Parameters["ssl_key_file"] = true, cert, key
	auth := &s.Postgres.Authentication
	for _, role := range []*config.PgUser{&auth.Superuser, &auth.Replication} {
		role.SSLMode, role.ChannelBinding = "require", "require"
	}
	asked := auth.Superuser
	asked.RequireAuth = "scram-sha-256,password" // nothing but the binding keeps it from answering
	p := newInstance(t, s)
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	identify := func(u Upstream, role config.PgUser) (string, error) {
		args := []string{"-X", "-A", "-t", "-c", "SELECT 'logged in'", p.conninfo(u, role, "postgres", "test")}
		cmd := exec.CommandContext(ctx, filepath.Join(s.Postgres.BinDir, "psql"), args...)
		cmd.Env = append(os.Environ(), "PGPASSWORD="+role.Password)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	login := func(u Upstream, role config.PgUser) error {
		conn, err := p.connect(ctx, u.Host, u.Port, role, "postgres", "test")
		if err == nil {
			err = conn.Close(ctx)
		}
		return err
	}
	if err := login(upstream(p), asked); err != nil {
		t.Errorf("the agent, at a server that binds: %v", err)
	}
	if out, err := identify(upstream(p), asked); err != nil || !strings.Contains(out, "logged in") {
		t.Errorf("libpq, at a server that binds: %s %v", out, err)
	}
	if conn, err := p.replicationConn(ctx, upstream(p)); err != nil {
		t.Errorf("replication, at a server that binds: %v", err)
	} else {
		must(t, conn.Close(ctx))
	}

	clone := settings(t, dir, "b")
	clone.Postgres.Authentication = *auth
	other := newInstance(t, clone)
	pair, err := tls.LoadX509KeyPair(cert, key)
	must(t, err)
	scram := []string{"SCRAM-SHA-256"}
	for name, c := range map[string]struct {
		ask  pgproto3.BackendMessage
		cert []tls.Certificate
		told string // where binding is not required, so that the server would learn something
	}{
		"no binding":          {&pgproto3.AuthenticationSASL{AuthMechanisms: scram}, []tls.Certificate{pair}, scram[0]},
		"the password itself": {&pgproto3.AuthenticationCleartextPassword{}, []tls.Certificate{pair}, auth.Superuser.Password},
		"no TLS":              {&pgproto3.AuthenticationSASL{AuthMechanisms: scram}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			u, told := hostile(t, c.ask, c.cert...)
			for what, try := range map[string]func() error{
				"the agent":   func() error { return login(u, asked) },
				"replication": func() error { _, err := p.replicationConn(ctx, u); return err },
				"base backup": func() error { return other.BaseBackup(ctx, u, nil) },
				"libpq":       func() error { _, err := identify(u, asked); return err },
			} {
				if err := try(); err == nil {
					t.Errorf("%s has logged in", what)
				}
			}
			if got := told(); len(got) > 0 {
				t.Errorf("the server was told %q", got)
			}
			open := asked
			open.ChannelBinding = "prefer"
			_ = login(u, open)
			_, _ = identify(u, open) // neither gets in
			if got := told(); c.told != "" && !slices.Equal(got, []string{c.told, c.told}) {
				t.Errorf("without the setting the server was told %q, want %q twice", got, c.told)
			}
		})
	}
}
