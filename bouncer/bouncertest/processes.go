// Package bouncertest runs real programs for the tests of the bouncer's packages: processes.go
// starts PgBouncer and PostgreSQL as a user that is not root, and makes what they need.
package bouncertest

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// PostgresBin is where PostgreSQL's programs are: POSTGRES_BIN, when set.
func PostgresBin() string {
	if dir := os.Getenv("POSTGRES_BIN"); dir != "" {
		return dir
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		if path, err := exec.LookPath("postgres"); err == nil {
			return filepath.Dir(path)
		}
		return ""
	}
	return found[0]
}

// NeedInHotStandby skips a test with a PostgreSQL that does not say of itself
// whether it is a primary: those before 14.
func NeedInHotStandby(t *testing.T) {
	t.Helper()
	out, err := exec.Command(filepath.Join(PostgresBin(), "postgres"), "--version").Output() // postgres (PostgreSQL) 15.20 (Debian ...)
	if err != nil {
		t.Skipf("PostgreSQL is needed: %v", err)
	}
	_, version, _ := strings.Cut(string(out), "(PostgreSQL) ")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err == nil && n < 14 {
		t.Skipf("PostgreSQL %d has no in_hot_standby", n)
	}
}

// Unprivileged makes a command run as postgres when the tests run as root:
// neither PostgreSQL nor PgBouncer runs as root.
func Unprivileged(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uid, gid, ok := PostgresUser(); ok {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

func PostgresUser() (uid, gid uint32, ok bool) {
	if os.Geteuid() != 0 {
		return 0, 0, false
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return 0, 0, false
	}
	n, errU := strconv.ParseUint(u.Uid, 10, 32)
	g, errG := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(n), uint32(g), errU == nil && errG == nil
}

func GiveAway(path string) error {
	if uid, gid, ok := PostgresUser(); ok {
		return os.Chown(path, int(uid), int(gid))
	}
	return nil
}

// Dir is a directory that PgBouncer can read; t.TempDir is root's alone.
func Dir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lictor-bouncer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := GiveAway(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func FreePort(t *testing.T) int {
	t.Helper()
	ports, err := testkit.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

// InitDB makes the data directory that all instances are copies of.
func InitDB(bin, data string) error {
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := GiveAway(data); err != nil {
		return err
	}
	init := Unprivileged(exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "app", "-A", "trust", "--no-sync"))
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", init.Args, err, out)
	}
	return nil
}

// Certificate writes a self-signed certificate for 127.0.0.1 with its key.
func Certificate(t *testing.T, dir, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name+".pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// StartsWith starts a PgBouncer of its own with some settings, and returns why it did not.
func StartsWith(t *testing.T, settings string) (output string, err error) {
	t.Helper()
	dir := Dir(t)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(settings, "auth_type") {
		settings += "auth_type = trust\n"
	}
	write("pgbouncer.ini", fmt.Sprintf("[databases]\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_file = %s\n%s",
		FreePort(t), filepath.Join(dir, "userlist.txt"), settings))
	write("userlist.txt", "")
	cmd := Unprivileged(exec.Command("pgbouncer", filepath.Join(dir, "pgbouncer.ini")))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		output += lines.Text() + "\n"
		if strings.Contains(lines.Text(), "process up") {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return output, nil
		}
	}
	return output, cmd.Wait()
}

// RunPostgres runs an instance. stop ends all its processes by a signal to the
// postmaster; after SIGKILL the backends find out by themselves.
func RunPostgres(data string, port int) (stop func(syscall.Signal), err error) {
	cmd := Unprivileged(exec.Command(filepath.Join(PostgresBin(), "postgres"), "-D", data, "-p", strconv.Itoa(port),
		"-c", "listen_addresses=127.0.0.1,127.0.0.2,::1", "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=1MB",
		"-c", "max_connections=50"))
	cmd.Dir = data
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var once sync.Once
	return func(sig syscall.Signal) {
		once.Do(func() {
			_ = cmd.Process.Signal(sig)
			_ = cmd.Wait()
		})
	}, nil
}
