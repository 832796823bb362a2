package postgres

import (
	"os"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
)

// What Lictor writes asks for passwords, keeps them as SCRAM verifiers, and lets
// nobody read them.
func TestSecureByDefault(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	hba, err := os.ReadFile(a.inData("pg_hba.conf"))
	must(t, err)
	for line := range strings.Lines(string(hba)) {
		if fields := hbaWords(line); len(fields) > 0 && fields[len(fields)-1] != "scram-sha-256" {
			t.Errorf("pg_hba.conf: %s", line)
		}
	}
	conn, err := a.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	var weak, encryption string
	must(t, conn.QueryRow(ctx, `SELECT COALESCE(string_agg(rolname, ' '), ''), current_setting('password_encryption')
		FROM pg_authid WHERE rolpassword !~ '^SCRAM-SHA-256' OR rolcanlogin AND rolpassword IS NULL`).Scan(&weak, &encryption))
	if weak != "" || encryption != "scram-sha-256" {
		t.Errorf("roles without a SCRAM verifier: %q; password_encryption %s", weak, encryption)
	}
	for _, p := range []*Instance{a, b} {
		for path, most := range map[string]os.FileMode{
			p.pgpassPath(): 0o600, p.dataDir: 0o700, p.inData("postgresql.conf"): 0o600, p.inData("pg_hba.conf"): 0o600, p.stateFile("postgres.log"): 0o640,
		} {
			info, err := os.Stat(path)
			if os.IsNotExist(err) && p == a && path == a.pgpassPath() {
				continue // it has followed nobody
			}
			must(t, err)
			if mode := info.Mode().Perm(); mode&^most != 0 {
				t.Errorf("%s has mode %v, want at most %v", path, mode, most)
			}
		}
	}
}

func hbaWords(line string) []string {
	line, _, _ = strings.Cut(line, "#")
	return strings.Fields(line)
}

// A superuser without a password comes through the unix socket as himself, never
// by trust.
func TestNoPasswordIsNoTrust(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.Authentication.Superuser.Password = ""
	p := newInstance(t, s)
	_, err := p.Bootstrap(ctx, config.Bootstrap{})
	must(t, err)
	hba, err := os.ReadFile(p.inData("pg_hba.conf"))
	must(t, err)
	for line := range strings.Lines(string(hba)) {
		if fields := hbaWords(line); len(fields) > 0 && fields[len(fields)-1] == "trust" {
			t.Errorf("pg_hba.conf: %s", line)
		}
	}
}

// A password that was changed in the agent's file is used from then on.
func TestRotatedPassword(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	sql(ctx, t, a, "ALTER ROLE postgres PASSWORD "+literal(secret+"newsuper")+"; ALTER ROLE replicator PASSWORD "+literal(secret+"newrepl"))
	caughtUp(ctx, t, a, b)
	for _, p := range []*Instance{a, b} {
		p.hangUp()
		if conn, err := p.dedicated(ctx); err == nil {
			hangUpOn(conn)
			t.Fatal("the old password is still good")
		}
		local := *p.local.Load()
		local.Authentication.Superuser.Password, local.Authentication.Replication.Password = secret+"newsuper", secret+"newrepl"
		p.Reconfigure(local)
		rewrite(ctx, t, p)
	}
	must(t, b.Stop(ctx, Fast))
	follow(ctx, t, b, a) // as the replication role, by its pgpass file
}
