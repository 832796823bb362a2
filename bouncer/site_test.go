package bouncer

import (
	"context"
	"errors"
	"fmt"
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

	"github.com/hashicorp/consul/api"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// site is the software that all real tests share: one Consul and two
// PostgreSQL, which stand for the primaries of shards. It is started by the
// first test that needs it and ended by TestMain.
type site struct {
	once    sync.Once
	err     error
	dir     string
	consul  string // host:port
	client  *api.Client
	members [2]cluster.RouteMember
	stop    []func()
}

var shared site

func TestMain(m *testing.M) {
	code := m.Run()
	for i := len(shared.stop) - 1; i >= 0; i-- {
		shared.stop[i]()
	}
	os.Exit(code)
}

func (s *site) start(consul string) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "lictor-bouncer"); err != nil {
		return err
	}
	s.stop = append(s.stop, func() { _ = os.RemoveAll(s.dir) })
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	if err := s.startConsul(consul); err != nil {
		return err
	}
	if err := s.startPostgres(); err != nil {
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := s.client.KV().Put(&api.KVPair{Key: "ready"}, nil)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("consul takes no write: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *site) startConsul(consul string) error {
	ports, err := testkit.FreePorts(3)
	if err != nil {
		return err
	}
	s.consul = "127.0.0.1:" + strconv.Itoa(ports[0])
	cmd := exec.Command(consul, "agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1",
		"-http-port="+strconv.Itoa(ports[0]), "-server-port="+strconv.Itoa(ports[1]), "-serf-lan-port="+strconv.Itoa(ports[2]),
		"-serf-wan-port=-1", "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1", "-disable-host-node-id",
		"-hcl=limits { http_max_conns_per_client = 1000 }", "-hcl=performance { raft_multiplier = 1 }")
	cmd.Env = append(os.Environ(), "CONSUL_HTTP_ADDR=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.stop = append(s.stop, func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	s.client, err = api.NewClient(&api.Config{Address: s.consul})
	return err
}

func (s *site) startPostgres() error {
	bin := postgresBin()
	ports, err := testkit.FreePorts(2)
	if err != nil {
		return err
	}
	for i, port := range ports {
		data := filepath.Join(s.dir, "pg"+strconv.Itoa(i))
		if i == 0 {
			if err := makeSeed(bin, filepath.Join(s.dir, "seed")); err != nil {
				return err
			}
		}
		stop, err := s.runPostgres(data, port)
		if err != nil {
			return err
		}
		s.stop = append(s.stop, func() { stop(syscall.SIGQUIT) })
		s.members[i] = cluster.RouteMember{Name: "db" + strconv.Itoa(i+1), Host: "127.0.0.1", Port: port}
	}
	for _, m := range s.members {
		if err := execute(m, "CREATE DATABASE s1"); err != nil {
			return err
		}
	}
	return nil
}

// makeSeed makes the data directory that all instances are copies of.
func makeSeed(bin, data string) error {
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := giveAway(data); err != nil {
		return err
	}
	init := unprivileged(exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "app", "-A", "trust", "--no-sync"))
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", init.Args, err, out)
	}
	return nil
}

// runPostgres runs an instance, with a copy of the seed as its data when it has
// none yet. stop ends all its processes by a signal to the postmaster; after
// SIGKILL the backends find out by themselves.
func (s *site) runPostgres(data string, port int) (stop func(syscall.Signal), err error) {
	if _, err := os.Stat(data); err != nil {
		if out, err := exec.Command("cp", "-a", filepath.Join(s.dir, "seed"), data).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("copying: %w: %s", err, out)
		}
	}
	cmd := unprivileged(exec.Command(filepath.Join(postgresBin(), "postgres"), "-D", data, "-p", strconv.Itoa(port),
		"-c", "listen_addresses=127.0.0.1,127.0.0.2", "-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=1MB",
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

// execute runs a statement on a member, once that is up.
func execute(m cluster.RouteMember, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		conn, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%d user=app dbname=postgres sslmode=disable", m.Host, m.Port))
		if err == nil {
			_, err = conn.Exec(ctx, sql).ReadAll()
			return errors.Join(err, conn.Close(ctx))
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// postgresBin is where PostgreSQL's programs are: POSTGRES_BIN, when set.
func postgresBin() string {
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

// needInHotStandby skips a test with a PostgreSQL that does not say of itself
// whether it is a primary: those before 14.
func needInHotStandby(t *testing.T) {
	t.Helper()
	out, err := exec.Command(filepath.Join(postgresBin(), "postgres"), "--version").Output() // postgres (PostgreSQL) 15.20 (Debian ...)
	if err != nil {
		t.Skipf("PostgreSQL is needed: %v", err)
	}
	_, version, _ := strings.Cut(string(out), "(PostgreSQL) ")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err == nil && n < 14 {
		t.Skipf("PostgreSQL %d has no in_hot_standby", n)
	}
}

// unprivileged makes a command run as postgres when the tests run as root:
// neither PostgreSQL nor PgBouncer runs as root.
func unprivileged(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uid, gid, ok := postgresUser(); ok {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

func postgresUser() (uid, gid uint32, ok bool) {
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

func giveAway(path string) error {
	if uid, gid, ok := postgresUser(); ok {
		return os.Chown(path, int(uid), int(gid))
	}
	return nil
}

// ownDir is a directory that PgBouncer can read; t.TempDir is root's alone.
func ownDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lictor-bouncer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := giveAway(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func freePort(t *testing.T) int {
	t.Helper()
	ports, err := testkit.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}
