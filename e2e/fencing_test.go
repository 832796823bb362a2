package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/testkit"
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
	host, port, _ := strings.Cut(m.Postgres, ":")
	byHand(ctx, t, l, m, "initdb", "-D", m.DataDir, "-A", "trust", "-U", lab.SuperuserRole)
	byHand(ctx, t, l, m, "pg_ctl", "start", "-w", "-D", m.DataDir, "-l", "/dev/null",
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

// byHand runs one of PostgreSQL's programs on a member's host, as an operator would.
func byHand(ctx context.Context, t *testing.T, l *lab.Lab, m *lab.Member, program string, args ...string) {
	t.Helper()
	args = append([]string{filepath.Join(l.Options.Programs.PostgresBin, program)}, args...)
	if os.Geteuid() == 0 {
		args = append([]string{"runuser", "-u", "postgres", "--"}, args...)
	}
	cmd := m.Command(ctx, args[0], args[1:]...)
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// In pause a switchover is carried out to its end. Then the operator restarts PostgreSQL by
// hand: the agent sees it, leads with it, and goes on with it when the pause is over; and its
// guard ends it with the lease.
func TestStartedByHandInPause(t *testing.T) {
	l := start(t, lab.Options{Bouncers: -1, Members: 2, ConsulServers: 1, TTL: int(outageTTL / time.Second)})
	s := l.Shard(0)
	ctx := within(t)
	leader := got(s.Leader(ctx))(t)
	pause := func(on any) {
		t.Helper()
		if status, text, err := leader.Patch(ctx, "/config", map[string]any{"pause": on}); err != nil || status != http.StatusOK {
			t.Fatalf("pause %v: %d %s %v", on, status, text, err)
		}
	}
	serves := func(pause bool) {
		t.Helper()
		await(ctx, t, "the leader does not serve", func() error {
			_, body, err := leader.Get(ctx, "/patroni")
			if text := string(body); err == nil && (!strings.Contains(text, `"state":"running","postmaster_start_time"`) ||
				!strings.Contains(text, `"role":"primary"`) || strings.Contains(text, `"pause":true`) != pause) {
				err = errors.New(text)
			}
			return err
		})
	}
	pause(true)
	serves(true)
	old, next := leader, s.Members()[0]
	if next == old {
		next = s.Members()[1]
	}
	must(t, s.Switchover(ctx, old, next))
	leader = next
	serves(true)
	await(ctx, t, "the old leader does not follow the new one", func() error {
		_, body, err := old.Get(ctx, "/patroni")
		if err == nil && !strings.Contains(string(body), `"replication_state":"streaming"`) {
			err = errors.New(string(body))
		}
		return err
	})
	byHand(ctx, t, l, leader, "pg_ctl", "stop", "-m", "fast", "-D", leader.DataDir)
	host, port, _ := strings.Cut(leader.Postgres, ":")
	// By another name, too: the lock file has that.
	link := leader.DataDir + ".link"
	must(t, os.Symlink(leader.DataDir, link))
	byHand(ctx, t, l, leader, "pg_ctl", "start", "-w", "-D", link, "-l", "/dev/null",
		"-o", fmt.Sprintf("-p %s -c listen_addresses=%s", port, host))
	before := got(leader.Postmaster())(t)
	serves(true)
	pause(nil)
	serves(false)
	// Nobody takes over from a leader whose last beat was a paused one (design 5.14).
	await(ctx, t, "the last beat is a paused one", func() error {
		if beat := got(s.Snapshot(ctx))(t).Status.Value.Lictor; beat == nil || beat.Paused {
			return fmt.Errorf("%+v", beat)
		}
		return nil
	})
	must(t, s.AwaitSync(ctx))
	if now, err := leader.Postmaster(); err != nil || now.PID != before.PID {
		t.Fatalf("PostgreSQL was restarted: %+v, %v", now, err)
	}
	must(t, leader.Processes()[0].Signal(syscall.SIGSTOP))
	other := got(s.AwaitLeader(ctx, leader))(t)
	if found := got(leader.Find(func(i lab.ProcessInfo) bool { return i.PID == before.PID }))(t); len(found) > 0 {
		t.Errorf("%s leads while PostgreSQL of %s lives", other.Name, leader.Name)
	}
	must(t, leader.Processes()[0].Signal(syscall.SIGCONT))
	got(s.AwaitHealthy(ctx))(t)
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

// A log that nobody reads costs no beat. (That lines are lost and counted when much is
// to be said is agent/logging's test.)
func TestLogThatNobodyReads(t *testing.T) {
	l := start(t, lab.Options{Bouncers: -1, Members: 2, Async: true, TTL: int(outageTTL / time.Second)})
	s := l.Shard(0)
	ctx := within(t)
	leader := got(s.Leader(ctx))(t)
	agent := leader.Process("agent")
	must(t, agent.Kill(ctx))
	must(t, os.Rename(agent.LogPath(), agent.LogPath()+".before"))
	must(t, syscall.Mkfifo(agent.LogPath(), 0o622))
	must(t, os.Chmod(agent.LogPath(), 0o622)) //nolint:gosec // the agent may be another user
	t.Cleanup(func() { _ = os.Remove(agent.LogPath()) })
	pipe := got(unix.Open(agent.LogPath(), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0))(t)
	defer unix.Close(pipe)
	filled := 0
	for {
		n, err := unix.Write(pipe, make([]byte, 1<<12))
		if n <= 0 || err != nil {
			break
		}
		filled += n
	}
	t.Logf("a pipe with %d bytes", filled)
	must(t, agent.Start())
	awaitLease(ctx, t, leader, false)
	postmaster := got(leader.Postmaster())(t)
	holdFor(ctx, t, 2*outageTTL)
	if now := got(s.Leader(ctx))(t); now != leader {
		t.Errorf("%s leads", now.Name)
	}
	if now := got(leader.Postmaster())(t); now.PID != postmaster.PID {
		t.Error("PostgreSQL was restarted")
	}
	// What it had to say is there for whoever comes to read it.
	var said strings.Builder
	await(ctx, t, "the log does not go on", func() error {
		b := make([]byte, 1<<16)
		if n, err := unix.Read(pipe, b); err == nil && n > 0 {
			said.Write(b[:n])
		}
		if !strings.Contains(said.String(), "\"message\"") {
			return os.ErrNotExist
		}
		return nil
	})
}

// Two agents with one data directory would stop and replace each other's PostgreSQL.
func TestTwoAgentsWithOneDataDirectory(t *testing.T) {
	l := start(t, lab.Options{Bouncers: -1, Members: 1, Async: true, TTL: int(outageTTL / time.Second)})
	s := l.Shard(0)
	ctx := within(t)
	m := got(s.Leader(ctx))(t)
	postmaster := got(m.Postmaster())(t)
	agent := m.Process("agent")
	ports := got(testkit.FreePorts(1))(t)
	for _, scope := range []string{s.Name, "another"} {
		args := append(slices.Clone(agent.Args), "--set", "name=second", "--set", "scope="+scope, "--set", fmt.Sprintf("restapi.listen=127.0.0.1:%d", ports[0]))
		out, err := m.Command(ctx, agent.Path, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "another agent runs for the data directory") {
			t.Fatalf("a second agent: %v: %s", err, out)
		}
	}
	if now := got(m.Postmaster())(t); now.PID != postmaster.PID {
		t.Error("PostgreSQL was restarted")
	}
	// An agent that was killed leaves no lock behind.
	must(t, agent.Kill(ctx))
	must(t, agent.Start())
	awaitLease(ctx, t, m, false)
}
