package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
)

// Roles without a password in the configuration log in with those of the agent's
// passfile, as they do with Patroni: clone, stream, replication connection, SQL.
func TestPasswordsFromThePassfile(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	sa, sb, no := settings(t, dir, "a"), settings(t, dir, "b"), false
	sa.Postgres.UseSlots, sb.Postgres.UseSlots = &no, &no
	hba := []string{"host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"}
	sa.Postgres.PgHBA, sb.Postgres.PgHBA = append([]string{"local all postgres trust"}, hba...), hba
	for _, role := range []*config.PgUser{
		&sb.Postgres.Authentication.Superuser, &sb.Postgres.Authentication.Replication, &sb.Postgres.Authentication.Rewind,
	} {
		role.Password = ""
	}
	passfile := filepath.Join(t.TempDir(), "pgpass")
	escaped := strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(secret)
	must(t, os.WriteFile(passfile, fmt.Appendf(nil, "*:*:replication:replicator:%[1]srepl\n*:*:*:postgres:%[1]ssuper\n*:*:*:Rewinder:%[1]srewind\n", escaped), 0o600))
	t.Setenv("PGPASSFILE", passfile)
	a := newInstance(t, sa)
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, a, "primary", func(s State) bool { return s.Accepting })
	b := newInstance(t, sb)
	u := upstream(a)
	must(t, b.BaseBackup(ctx, u, func(_, _ int64) {}))
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &u}))
	observe(ctx, t, b, "streams", func(s State) bool { return s.InRecovery && s.ReplicationState == Streaming })
	conn, err := b.replicationConn(ctx, u)
	must(t, err)
	hangUpOn(conn)

	// A file that the operator names holds what the operator wrote.
	own := filepath.Join(dir, "own")
	must(t, os.WriteFile(own, []byte("*:*:*:*:theirs\n"), 0o600))
	sb.Postgres.PgPass = own
	b.Reconfigure(sb.Postgres)
	must(t, b.writePgpass(u))
	if content, err := os.ReadFile(own); err != nil || string(content) != "*:*:*:*:theirs\n" {
		t.Errorf("%q, %v", content, err)
	}
}
