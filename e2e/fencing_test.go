package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// An agent that meets an existing primary waits for Consul, however long, and leads
// with it as it is.
func TestExistingPrimaryWithoutConsul(t *testing.T) {
	l := labtest.New(t, lab.Options{Bouncers: -1, Members: 1, Async: true, TTL: int(outageTTL / time.Second)})
	s := l.Shard(0)
	ctx := within(t)
	m := s.Members()[0]
	as := func(args ...string) {
		t.Helper()
		if os.Geteuid() == 0 {
			args = append([]string{"runuser", "-u", "postgres", "--"}, args...)
		}
		cmd := m.Command(ctx, args[0], args[1:]...)
		cmd.Dir = "/"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	bin := l.Options.Programs.PostgresBin
	host, port, _ := strings.Cut(m.Postgres, ":")
	as(filepath.Join(bin, "initdb"), "-D", m.DataDir, "-A", "trust", "-U", lab.SuperuserRole)
	as(filepath.Join(bin, "pg_ctl"), "start", "-w", "-D", m.DataDir, "-l", "/dev/null",
		"-o", fmt.Sprintf("-p %s -c listen_addresses=%s -c unix_socket_directories=%s", port, host, m.SocketDir))
	before := got(m.Postmaster())(t)
	must(t, m.Start(ctx))
	await(ctx, t, "the agent does not say that it has no Consul", func() error {
		_, body, err := m.Get(ctx, "/patroni")
		if err == nil && !strings.Contains(string(body), "Consul has not answered yet") {
			err = os.ErrNotExist
		}
		return err
	})
	holdFor(ctx, t, 2*outageTTL)
	must(t, m.Processes()[0].Kill(ctx))
	must(t, m.Start(ctx))
	holdFor(ctx, t, 2*outageTTL)
	if now, err := m.Postmaster(); err != nil || now.PID != before.PID {
		t.Fatalf("the primary did not live on: %+v, %v", now, err)
	}
	must(t, l.StartConsul(ctx))
	awaitLease(ctx, t, m, false)
	if now, err := m.Postmaster(); err != nil || now.PID != before.PID {
		t.Errorf("the primary did not live on: %+v, %v", now, err)
	}
}

// A data directory that was renamed hides no PostgreSQL from its guard.
func TestLeaseEndsThoughTheDataDirectoryIsElsewhere(t *testing.T) {
	l := start(t, lab.Options{Bouncers: -1, Members: 2, Async: true, TTL: int(outageTTL / time.Second)})
	s := l.Shard(0)
	ctx := within(t)
	leader := got(s.Leader(ctx))(t)
	postmaster := got(leader.Postmaster())(t)
	elsewhere := leader.DataDir + ".elsewhere"
	must(t, os.Rename(leader.DataDir, elsewhere))
	must(t, leader.Processes()[0].Signal(syscall.SIGSTOP))
	other := got(s.AwaitLeader(ctx, leader))(t)
	found := got(leader.Find(func(i lab.ProcessInfo) bool { return i.PID == postmaster.PID }))(t)
	if len(found) > 0 {
		t.Errorf("%s leads while PostgreSQL of %s lives", other.Name, leader.Name)
	}
	must(t, os.Rename(elsewhere, leader.DataDir))
	must(t, leader.Processes()[0].Signal(syscall.SIGCONT))
	got(s.AwaitHealthy(ctx))(t)
}
