package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
)

// Passwords that SASLprep changes, or does not allow.
var exotic = []string{
	"Straße½ﬁ²", "a\u00a0b\u00adc\u200bd", "e\u0301", "a\u2135", "\u0627a", "tab\there", "\u2168\U0001d7ca", "\ue000", "½'\"\\ :%", "\u00ad",
}

// What the agent takes for the password is what psql takes for it, whoever set it
// and however it is asked for.
func TestPasswordsAreLibpqs(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	s := settings(t, newDir(t), "a")
	s.Postgres.PgHBA = []string{
		"local all postgres trust",
		"host all cleartext 127.0.0.1/32 password", "host all digest 127.0.0.1/32 md5",
		"host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256",
	}
	s.Postgres.Parameters["log_statement"] = "all"
	p := newInstance(t, s)
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	admin, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(admin)
	for _, password := range exotic {
		must(t, createRole(ctx, admin, config.PgUser{Username: "ours", Password: password}, "LOGIN REPLICATION"))
		for _, statement := range []string{
			"SET client_min_messages = error", "DROP ROLE IF EXISTS theirs, cleartext, digest",
			"SET password_encryption = 'scram-sha-256'", "CREATE ROLE theirs LOGIN PASSWORD " + literal(password), "CREATE ROLE cleartext LOGIN PASSWORD " + literal(password),
			"SET password_encryption = 'md5'", "CREATE ROLE digest LOGIN PASSWORD " + literal(password),
		} {
			_, err := admin.Exec(ctx, statement)
			must(t, err)
		}
		for _, role := range []string{"ours", "theirs", "cleartext", "digest"} {
			user := config.PgUser{Username: role, Password: password}
			if role == "cleartext" {
				user.RequireAuth = "password" // without verified TLS it is told in clear text to nobody else
			}
			conn, err := p.connect(ctx, "127.0.0.1", p.port, user, "postgres", "test")
			if err != nil {
				t.Errorf("%q as %s: %v", password, role, err)
			} else {
				hangUpOn(conn)
			}
			if out, err := psql(ctx, p, user); err != nil {
				t.Errorf("%q as %s: psql: %v: %s", password, role, err, out)
			}
			user.Password += "x"
			if conn, err := p.connect(ctx, "127.0.0.1", p.port, user, "postgres", "test"); err == nil {
				hangUpOn(conn)
				t.Errorf("%q as %s: another password was taken", password, role)
			}
		}
		local := *p.local.Load()
		local.Authentication.Replication = config.PgUser{Username: "ours", Password: password}
		p.Reconfigure(local)
		if _, err := p.identify(ctx, upstream(p)); err != nil {
			t.Errorf("%q for replication: %v", password, err)
		}
	}
	if log, err := os.ReadFile(p.stateFile("postgres.log")); err != nil || strings.Contains(string(log), "ALTER ROLE \"ours\" PASSWORD '"+exotic[0]) {
		t.Errorf("a password is in PostgreSQL's log, or the log is not there: %v", err)
	}
}

func psql(ctx context.Context, p *Instance, user config.PgUser) (string, error) {
	cmd := exec.CommandContext(ctx, "psql", "-X", "-h", "127.0.0.1", "-p", fmt.Sprint(p.port), "-U", user.Username, "-d", "postgres", "-c", "SELECT 1")
	cmd.Env = append(os.Environ(), "PGPASSWORD="+user.Password, "PGCLIENTENCODING=UTF8")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
