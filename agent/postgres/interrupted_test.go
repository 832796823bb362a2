package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
)

// The environment of the process that is killed in the middle of its work.
const (
	victimDir  = "LICTOR_TEST_VICTIM_DIR"
	victimPort = "LICTOR_TEST_VICTIM_UPSTREAM_PORT" // of a clone's source
)

// victim copies so slowly that a clone is found at work also on a busy machine.
func victim(t *testing.T, dir string) Settings {
	s := settings(t, dir, "victim")
	s.Postgres.BaseBackup = []any{map[string]any{"max-rate": "8192"}} // kB/s; a cluster has some 20 MB
	return s
}

func bootstrapOptions() config.Bootstrap {
	return config.Bootstrap{InitDB: []any{"data-checksums", map[string]any{"encoding": "UTF8"}}}
}

// TestVictim is not a test: it is the agent that other tests kill.
func TestVictim(t *testing.T) {
	dir := os.Getenv(victimDir)
	if dir == "" {
		t.Skip("run by other tests")
	}
	p, err := New(victim(t, dir))
	must(t, err)
	if port, err := strconv.Atoi(os.Getenv(victimPort)); err == nil {
		must(t, p.BaseBackup(t.Context(), Upstream{Name: "a", Host: "127.0.0.1", Port: port}, nil))
		return
	}
	b := bootstrapOptions()
	b.PostBootstrap = "/bin/sh -c 'echo $$ > " + filepath.Join(dir, "hook") + "; exec sleep 1000'"
	_, err = p.Bootstrap(t.Context(), b)
	must(t, err)
}

// killVictim runs TestVictim and kills it once reached says so.
func killVictim(ctx context.Context, t *testing.T, dir string, reached func() bool, env ...string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestVictim$")
	// What it leaves when it is killed is removed with dir.
	cmd.Env = append(append(os.Environ(), victimDir+"="+dir, "TMPDIR="+dir), env...)
	out, err := os.Create(filepath.Join(dir, "victim.log"))
	must(t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	for !reached() {
		select {
		case <-time.After(time.Millisecond):
		case <-ended:
			log, _ := os.ReadFile(out.Name())
			t.Fatalf("it ended before it was killed: %s", log)
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			<-ended
			t.Fatal("it did not come that far")
		}
	}
	must(t, cmd.Process.Kill())
	<-ended
}

// stopped freezes the first process of that name which works on the data
// directory, and tells whether there was one.
func stopped(t *testing.T, dataDir, name string, when func() bool) func() bool {
	return func() bool {
		pids, err := fence.Processes(dataDir, name)
		must(t, err)
		for _, pid := range pids {
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(exe) == name && when() {
				return syscall.Kill(pid, syscall.SIGSTOP) == nil
			}
		}
		return false
	}
}

// afterKill is what must hold after a SIGKILL in the middle of making a data
// directory: the next agent finds it unfinished, starts nothing in it, clears it
// away with all that still works on it, and can begin again.
func afterKill(ctx context.Context, t *testing.T, p *Instance) {
	t.Helper()
	if d, err := p.DataDir(ctx); err != nil || d.State != Incomplete {
		t.Fatalf("after the kill: %+v %v", d, err)
	}
	if err := p.Start(ctx, StartAs{Role: Primary}); err == nil || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("started: %v", err)
	}
	must(t, p.DiscardIncomplete(ctx))
	if pids, err := fence.Processes(p.dataDir, p.writers()...); err != nil || len(pids) != 0 {
		t.Errorf("still at work: %v %v", pids, err)
	}
	if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
		t.Errorf("discarded: %+v %v", d, err)
	}
}

func TestBootstrapKilled(t *testing.T) {
	t.Parallel()
	t.Run("in post_bootstrap", func(t *testing.T) {
		ctx, dir := within(t), newDir(t)
		p := newInstance(t, victim(t, dir))
		hook := filepath.Join(dir, "hook")
		killVictim(ctx, t, dir, func() bool {
			content, err := os.ReadFile(hook)
			return err == nil && strings.HasSuffix(string(content), "\n")
		})
		content, err := os.ReadFile(hook)
		must(t, err)
		pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
		must(t, err)
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		if running, err := p.Adopt(ctx); err != nil || !running {
			t.Errorf("the orphan is not seen: %v %v", running, err)
		}
		must(t, p.Kill(ctx))
		afterKill(ctx, t, p)
		if found, _ := filepath.Glob(p.dataDir + ".failed.*/PG_VERSION"); len(found) != 1 {
			t.Error("not moved aside")
		}
		id := bootstrapped(ctx, t, p)
		if d, err := p.DataDir(ctx); err != nil || d.State != Valid || d.Control.SystemIdentifier != id {
			t.Errorf("the second time: %+v %v", d, err)
		}
	})
	t.Run("in initdb", func(t *testing.T) {
		ctx, dir := within(t), newDir(t)
		p := newInstance(t, victim(t, dir))
		for {
			// It goes on alone, as after any kill of an agent: frozen, it would be told of
			// its parent's end (setpgid(2), orphaned process groups) and clear up itself.
			killVictim(ctx, t, dir, func() bool {
				_, err := os.Stat(p.inData("PG_VERSION"))
				return err == nil
			})
			if _, err := os.Stat(p.stateFile("pwfile")); err == nil {
				break
			}
			// Killed too late, on a busy machine: once more.
			must(t, p.DiscardIncomplete(ctx))
		}
		afterKill(ctx, t, p)
		if _, err := os.Stat(p.stateFile("pwfile")); err == nil {
			t.Error("the password file is still there")
		}
	})
}

func TestBaseBackupInterrupted(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	p := newInstance(t, victim(t, dir))
	begun := func() bool {
		_, err := os.Stat(p.inData("PG_VERSION"))
		return err == nil
	}
	t.Run("killed", func(t *testing.T) {
		killVictim(ctx, t, dir, stopped(t, p.dataDir, "pg_basebackup", begun), victimPort+"="+strconv.Itoa(a.port))
		afterKill(ctx, t, p)
		if found, _ := filepath.Glob(p.dataDir + ".failed.*"); len(found) != 0 {
			t.Errorf("a clone was kept: %v", found)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		canceled, cancel := context.WithCancel(ctx)
		defer cancel()
		made := make(chan error, 1)
		go func() { made <- p.BaseBackup(canceled, upstream(a), nil) }()
		frozen := stopped(t, p.dataDir, "pg_basebackup", begun)
		for !frozen() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		// Its connections must not pass for the synchronous standby of this name.
		s := observe(ctx, t, a, "the backup is seen", func(s State) bool { return len(s.Standbys) > 0 })
		for _, standby := range s.Standbys {
			if standby.ApplicationName == p.name {
				t.Errorf("the backup has the name of the member: %+v", standby)
			}
		}
		cancel()
		if err := <-made; err == nil {
			t.Fatal("it succeeded")
		}
		if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
			t.Errorf("after: %+v %v", d, err)
		}
		if m, err := p.marked(); err != nil || m != nil {
			t.Errorf("still marked: %v %v", m, err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		sql(ctx, t, a, "ALTER ROLE replicator NOREPLICATION")
		if err := p.BaseBackup(ctx, upstream(a), nil); err == nil || !strings.Contains(err.Error(), "replicator") {
			t.Errorf("without the right: %v", err)
		}
		sql(ctx, t, a, "ALTER ROLE replicator REPLICATION PASSWORD 'other'")
		if err := p.BaseBackup(ctx, upstream(a), nil); err == nil || !strings.Contains(err.Error(), "password authentication failed") || strings.Contains(err.Error(), "s3cr") {
			t.Errorf("with another password: %v", err)
		}
		if _, err := os.Stat(p.dataDir); err == nil {
			if d, err := p.DataDir(ctx); err != nil || d.State != Empty {
				t.Errorf("after: %+v %v", d, err)
			}
		}
	})
}
