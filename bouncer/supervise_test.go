package bouncer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// supervised makes a world whose bouncer runs PgBouncer itself, by way of a script
// that writes its process id down.
func supervised(t *testing.T) (w *world, pid func() int) {
	var script, pidFile string
	w = newWorld(t, func(c *config.Config) {
		dir := filepath.Dir(c.PgBouncer.Config)
		script, pidFile = filepath.Join(dir, "run"), filepath.Join(dir, "pid")
		c.PgBouncer.Command = []string{script, c.PgBouncer.Config}
	})
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		t.Fatal(err)
	}
	// PgBouncer does not run as root.
	as := ""
	if _, _, ok := bouncertest.PostgresUser(); ok {
		as = "setpriv --reuid=postgres --regid=postgres --clear-groups "
	}
	// The file is never seen half written.
	text := fmt.Sprintf("#!/bin/sh\necho $$ > %[1]s.new\nmv %[1]s.new %[1]s\nexec %[2]s%[3]s \"$1\"\n", pidFile, as, program)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // also when the test fails
		if text, err := os.ReadFile(pidFile); err == nil {
			if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n > 1 {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
	})
	return w, func() int {
		t.Helper()
		text, err := os.ReadFile(pidFile)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
}

func TestSupervisesPgBouncer(t *testing.T) {
	w, pid := supervised(t)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.awaitLeader(0)
	if got := w.where(w.connect("s1")); got != 0 {
		t.Fatalf("query went to member %d", got)
	}
	// It dies: another one takes its place, with the clients held if need be.
	first := pid()
	w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
	w.awaitPaused(true)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.await("another process", func() error {
		s, err := w.status()
		if err != nil || pid() == first || !s.PgBouncer.Answers || !s.Shards["service/s1"].Paused {
			return fmt.Errorf("%+v %w", s, err)
		}
		return nil
	})
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	// It goes with the bouncer, after the transactions that run.
	busy := w.connect("s1")
	w.exec(busy, "BEGIN; SELECT 1")
	second := pid()
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	w.await("the safe end having begun", func() error {
		if !strings.Contains(w.log.String(), "got SIGINT") {
			return errors.New("PgBouncer does not say so")
		}
		return nil
	})
	w.exec(busy, "COMMIT")
	<-stopped
	if log := w.log.String(); !strings.Contains(log, `"signal":"interrupt"`) {
		t.Errorf("it did not end by SIGINT alone:\n%s", log)
	}
	if err := syscall.Kill(second, 0); !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("PgBouncer is still there: %v", err)
	}
}

// A bouncer that was killed has left its PgBouncer with all clients.
func TestSupervisorLeavesRunningOneAlone(t *testing.T) {
	w, _ := supervised(t)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	command := w.config.PgBouncer.Command
	w.config.PgBouncer.Command = nil
	stop := w.bouncer()
	kill := w.pgbouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	w.exec(client, "SELECT 1")
	stop()
	w.config.PgBouncer.Command = command
	w.bouncer()
	w.awaitLeader(0)
	w.exec(client, "SELECT 2")
	if _, err := os.Stat(filepath.Join(w.dir, "pid")); err == nil {
		t.Fatal("a second one was started")
	}
	kill()
	w.await("one of its own", func() error {
		_, err := os.Stat(filepath.Join(w.dir, "pid"))
		return err
	})
	w.awaitHealthy()
}

// A shard more in the file, and the signal to read it again: neither PgBouncer nor
// its clients notice.
func TestConfigChangesWithoutRestart(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Shards = []config.Shard{{Scope: "s1"}} })
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	s2 := cluster.NewKeys("", "s2", w.config.RoutesPrefix)
	w.put(s2.Route(), w.route(1, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	if err := Drain(w.ctx, w.config, true); err != nil {
		t.Fatal(err)
	}
	count, stop := w.load(4)
	w.await("load", func() error {
		if count(0) < 20 {
			return errors.New("too few queries yet")
		}
		return nil
	})
	changed := w.config
	changed.Shards = append(changed.Shards[:1:1], config.Shard{Scope: "s2", Namespace: "service", Databases: []string{"other=s1"}, PoolSize: 7})
	select {
	case w.changes <- changed:
	case <-w.ctx.Done():
		t.Fatal("nobody takes the new configuration")
	}
	w.await("the new shard", func() error {
		s, err := w.status()
		if err == nil && s.Shards["service/s2"].VerifiedAt == nil {
			err = fmt.Errorf("%+v", s.Shards)
		}
		return err
	})
	if got := w.where(w.connect("other")); got != 1 {
		t.Fatalf("query went to member %d", got)
	}
	all, err := w.admin().Databases(w.ctx)
	if err != nil || all["other"].PoolSize != 7 {
		t.Fatalf("%+v %v", all["other"], err)
	}
	if err := stop(); err != nil {
		t.Fatalf("clients saw an error: %v", err)
	}
	// What an operator has begun, he ends.
	if s, err := w.status(); err != nil || !s.Draining {
		t.Fatalf("draining is over: %v", err)
	}
}
