package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
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
	output := runPgBouncer(t, dir)
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
	} else if !strings.Contains(err.Error(), "systemctl reload pgbouncer") {
		t.Errorf("%s: %v does not say what helps", method, err)
	}
}

// runPgBouncer runs PgBouncer with the pgbouncer.ini of a directory until the test has ended,
// and returns what it says.
func runPgBouncer(t *testing.T, dir string) *bouncertest.Log {
	t.Helper()
	cmd := bouncertest.Unprivileged(exec.Command("pgbouncer", filepath.Join(dir, "pgbouncer.ini")))
	output := &bouncertest.Log{}
	cmd.Stdout, cmd.Stderr, cmd.Dir = output, output, dir
	testkit.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return output
}

// With authorities of its own the console's certificate is checked, host and all, before it gets
// a password.
func TestConsoleCertificate(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skip(err)
	}
	dir, port := bouncertest.Dir(t), bouncertest.FreePort(t)
	right, wrong := bouncertest.Certificate(t, dir, "right"), bouncertest.Certificate(t, dir, "wrong")
	testkit.Must(t, bouncertest.GiveAway(right))
	for name, text := range map[string]string{
		"userlist.txt": `"pooler" "secret"` + "\n",
		"pgbouncer.ini": fmt.Sprintf("[pgbouncer]\nlisten_addr = 127.0.0.1,127.0.0.2\nlisten_port = %d\nunix_socket_dir =\nadmin_users = pooler\nauth_type = plain\nauth_file = %s\n"+
			"client_tls_sslmode = require\nclient_tls_cert_file = %[3]s\nclient_tls_key_file = %[3]s\n", port, filepath.Join(dir, "userlist.txt"), right),
	} {
		testkit.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	output := runPgBouncer(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !strings.Contains(output.String(), "process up") {
		if ctx.Err() != nil {
			t.Fatal(output.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, c := range []struct{ host, mode, roots, want string }{
		{"127.0.0.1", "", right, ""},
		{"127.0.0.1", "require", right, ""},
		{"127.0.0.1", "", wrong, "certificate"},
		{"127.0.0.1", "require", wrong, "certificate"},
		{"127.0.0.2", "", right, "certificate is valid for 127.0.0.1, not 127.0.0.2"},
		{"127.0.0.2", "verify-ca", right, ""},
		{"127.0.0.1", "", filepath.Join(dir, "none"), "no such file"},
	} {
		conn, err := pgbouncer.Connect(ctx, pgbouncer.Options{
			Address: pgbouncer.Address{Host: c.host, Port: port}, User: "pooler", Password: "secret", SSLMode: c.mode, SSLRootCert: c.roots,
		})
		if err == nil {
			conn.Close()
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// While PgBouncer is down another user of the host listens at its port: it is not told the password.
func TestImpostorOfTheConsoleIsToldNoPassword(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	told := make(chan pgproto3.FrontendMessage, 1)
	go func() { // ends with the listener
		defer close(told)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if backend, err := bouncertest.FakeStartup(conn); err == nil {
				backend.Send(&pgproto3.AuthenticationCleartextPassword{})
				_ = backend.Flush()
				_ = backend.SetAuthType(pgproto3.AuthTypeCleartextPassword)
				if said, err := backend.Receive(); err == nil {
					told <- said
				}
			}
			_ = conn.Close()
		}
	}()
	c := config.Config{PgBouncer: config.PgBouncer{Config: filepath.Join(t.TempDir(), "pgbouncer.ini"), Admin: l.Addr().String(), User: "pooler", Password: "secret"}}
	options, err := c.Admin()
	testkit.Must(t, err)
	if conn, err := pgbouncer.Connect(t.Context(), options); err == nil {
		conn.Close()
		t.Error("connected")
	}
	testkit.Must(t, l.Close())
	if said := <-told; said != nil {
		t.Errorf("it was told %#v", said)
	}
}
