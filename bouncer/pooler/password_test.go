package pooler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// PgBouncer prepares passwords for SCRAM as libpq does, and takes their very bytes
// otherwise.
func TestConsoleTakesAnyPassword(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skip(err)
	}
	for _, method := range []string{"scram-sha-256", "md5", "plain"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			for _, password := range []string{"Straße½ﬁ²", "pencil", "a\u00a0b\u00adc", "\u0627a"} {
				consoleTakes(t, method, password)
			}
		})
	}
}

func consoleTakes(t *testing.T, method, password string) {
	t.Helper()
	dir, port := bouncertest.Dir(t), bouncertest.FreePort(t)
	for name, text := range map[string]string{
		"userlist.txt": `"pooler" "` + password + `"` + "\n",
		"pgbouncer.ini": fmt.Sprintf("[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nadmin_users = pooler\nauth_type = %s\nauth_file = %s\n",
			port, method, filepath.Join(dir, "userlist.txt")),
	} {
		testkit.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	cmd := bouncertest.Unprivileged(exec.Command("pgbouncer", filepath.Join(dir, "pgbouncer.ini")))
	output := &bouncertest.Log{}
	cmd.Stdout, cmd.Stderr, cmd.Dir = output, output, dir
	testkit.Must(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	options := pgbouncer.Options{Address: pgbouncer.Address{Host: "127.0.0.1", Port: port}, User: "pooler", Password: password}
	for {
		conn, err := pgbouncer.Connect(ctx, options)
		if err == nil {
			conn.Close()
			break
		}
		if errors.Is(err, pgbouncer.ErrRefused) || ctx.Err() != nil {
			t.Errorf("%s: %q: %v\n%s", method, password, err, output.String())
			return
		}
	}
	options.Password += "x"
	if conn, err := pgbouncer.Connect(ctx, options); err == nil {
		conn.Close()
		t.Errorf("%s: %q: another password was taken", method, password)
	}
}
