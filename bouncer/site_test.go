package bouncer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
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
	bin := bouncertest.PostgresBin()
	ports, err := testkit.FreePorts(2)
	if err != nil {
		return err
	}
	for i, port := range ports {
		data := filepath.Join(s.dir, "pg"+strconv.Itoa(i))
		if i == 0 {
			if err := bouncertest.InitDB(bin, filepath.Join(s.dir, "seed")); err != nil {
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

// runPostgres runs an instance, with a copy of the seed as its data when it has
// none yet; stop is runPostgres's.
func (s *site) runPostgres(data string, port int) (stop func(syscall.Signal), err error) {
	if _, err := os.Stat(data); err != nil {
		if out, err := exec.Command("cp", "-a", filepath.Join(s.dir, "seed"), data).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("copying: %w: %s", err, out)
		}
	}
	return bouncertest.RunPostgres(data, port)
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
