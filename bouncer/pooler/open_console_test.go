package pooler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// PgBouncer makes the user pgbouncer with an empty password where auth_file does not have it, and
// SCRAM takes that before 1.26.1, and before what distributions have mended in theirs: found out, and told until
// a password stands there. Whether this PgBouncer does is tried.
func TestOpenConsole(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skip(err)
	}
	for _, test := range []struct {
		name, users, admins string
		user, open          string // whom it lets in
	}{
		{"no line for pgbouncer", `"app" "app"`, "pgbouncer", "pgbouncer", "pgbouncer"},
		{"beside another one", `"pooler" "secret"`, "pooler, pgbouncer", "pooler", "pgbouncer"},
		{"a password", `"pgbouncer" "secret"`, "pgbouncer", "pgbouncer", ""},
		{"beside another one, with a password", `"pooler" "secret"` + "\n" + `"pgbouncer" "x"`, "pooler, pgbouncer", "pooler", ""},
		{"another one alone", `"pooler" "secret"`, "pooler", "pooler", ""},
		{"another one, empty", `"pooler" "secret"` + "\n" + `"ops" ""`, "pooler, ops", "pooler", "ops"},
		{"another one, unknown", `"pooler" "secret"`, "pooler, ops", "pooler", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir, port := bouncertest.Dir(t), bouncertest.FreePort(t)
			address, list := "127.0.0.1:"+strconv.Itoa(port), filepath.Join(dir, "userlist.txt")
			testkit.Must(t, os.WriteFile(list, []byte(test.users+"\n"), 0o644))
			testkit.Must(t, os.WriteFile(filepath.Join(dir, "pgbouncer.ini"), []byte(fmt.Sprintf(
				"[pgbouncer]\nlisten_addr = *\nlisten_port = %d\nunix_socket_dir =\nadmin_users = %s\nauth_type = scram-sha-256\nauth_file = %s\n", port, test.admins, list)), 0o644))
			said := runPgBouncer(t, dir)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			testkit.Await(ctx, t, "PgBouncer", func() error {
				if !strings.Contains(said.String(), "process up") {
					return errors.New(said.String())
				}
				return nil
			})
			c := config.Config{PgBouncer: config.PgBouncer{Admin: address, User: test.user, Config: filepath.Join(dir, "pgbouncer.ini")}}
			conn, err := dialAdmin(ctx, c)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			open := false
			if test.open != "" {
				client, err := pgconn.Connect(ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=%s password='' dbname=pgbouncer sslmode=disable", port, test.open))
				if open = err == nil; open {
					testkit.Must(t, client.Close(ctx))
				} else {
					t.Logf("this PgBouncer refuses: %v", err)
				}
			}
			link := NewLink(c, zerolog.Nop(), func() {})
			link.lookAtConsole(ctx, conn)
			if found := link.Now().Open; found != "" && found != address || (found != "") != open {
				t.Errorf("open at %q, want %v\n%s", found, open, said)
			}
			if !open {
				return
			}
			testkit.Must(t, os.WriteFile(list, []byte(strings.Replace(test.users, `""`, `"secret"`, 1)+"\n"+`"pgbouncer" "secret"`+"\n"), 0o644))
			testkit.Must(t, conn.Reload(ctx))
			if link.lookAtConsole(ctx, conn); link.Now().Open != "" {
				t.Errorf("still open\n%s", said)
			}
			if conn, err := pgbouncer.Connect(ctx, pgbouncer.Options{Address: pgbouncer.Address{Host: "127.0.0.1", Port: port}, User: "pgbouncer"}); err == nil {
				conn.Close()
				t.Error("PgBouncer lets pgbouncer in without a password")
			}
		})
	}
}
