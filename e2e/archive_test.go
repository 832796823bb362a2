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

	"github.com/lictor-ha/lictor/e2e/lab"
)

// An archive_command that hangs keeps PostgreSQL's processes alive at every stop: a
// bootstrap, a restart, a switchover, a stop by hand and the end of an agent are none
// the worse for it.
func TestArchiveThatHangs(t *testing.T) {
	l := start(t, lab.Options{
		Bouncers: -1, Members: 2, ConsulServers: 1,
		Dynamic: map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"archive_mode": "on", "archive_command": "exec sleep 1234"}}},
	})
	s := l.Shard(0)
	ctx := within(t)
	must(t, s.Prepare(ctx))
	hangs := func(m *lab.Member) {
		t.Helper()
		must(t, s.AwaitSync(ctx))
		conn := got(m.Connect(ctx, "postgres"))(t)
		defer conn.Close(ctx)
		for _, statement := range []string{"DROP TABLE IF EXISTS public.t", "CREATE TABLE public.t ()", "SELECT pg_switch_wal()"} {
			_, err := conn.Exec(ctx, statement)
			must(t, err)
		}
		await(ctx, t, "the archiver is at work on "+m.Name, func() error {
			found, err := m.Find(func(i lab.ProcessInfo) bool { return slices.Equal(i.Args, []string{"sleep", "1234"}) })
			if err == nil && len(found) == 0 {
				err = errors.New("archive_command does not run")
			}
			return err
		})
	}
	a := got(s.Leader(ctx))(t)
	hangs(a)
	if status, answer, err := a.Post(ctx, "/restart", map[string]any{}); err != nil || status != http.StatusOK {
		t.Fatalf("restart: %d %s %v", status, answer, err)
	}
	if leader := got(s.AwaitHealthy(ctx))(t); leader != a {
		t.Fatalf("the restart made %s lead", leader.Name)
	}

	hangs(a)
	pid := got(a.PostmasterPID())(t)
	postmaster := got(a.Postmaster())(t)
	must(t, postmaster.Signal(syscall.SIGINT))
	await(ctx, t, "PostgreSQL is started again after a stop by hand", func() error {
		if now, err := a.PostmasterPID(); err != nil || now == pid {
			return errors.Join(err, errors.New("it was not"))
		}
		return nil
	})
	got(s.AwaitHealthy(ctx))(t)

	hangs(a)
	b := got(s.Replicas(ctx))(t)[0]
	if status, answer, err := a.Post(ctx, "/switchover", map[string]string{"leader": a.Name, "candidate": b.Name}); err != nil || status != http.StatusOK {
		t.Fatalf("switchover: %d %s %v", status, answer, err)
	}
	if leader := got(s.AwaitHealthy(ctx))(t); leader != b {
		t.Fatalf("the switchover made %s lead", leader.Name)
	}

	hangs(b)
	must(t, b.Process("agent").Stop(ctx))
	if log := agentLog(t, b); strings.Contains(log, "could not stop in an orderly way in time") {
		t.Error("the leader's agent could not stop in an orderly way")
	}
	await(ctx, t, "the other member leads", func() error {
		leader, err := s.Leader(ctx)
		if err == nil && leader != a {
			err = errors.New(leader.Name + " leads")
		}
		return err
	})
}

// An archive that does not take WAL is told of by metrics, `lictor fleet`, `lictor doctor`
// and `lictor events`, and so is its end. It holds up no switchover: the new primary fails
// in its place.
func TestArchiveThatFails(t *testing.T) {
	dir := t.TempDir()
	letIn(t, dir)
	full := filepath.Join(dir, "full")
	l := start(t, lab.Options{
		Bouncers: -1, Members: 2, ConsulServers: 1,
		Dynamic: map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"archive_mode": "on", "archive_command": "test ! -e " + full}}},
	})
	s := l.Shard(0)
	ctx := within(t)
	must(t, s.Prepare(ctx))
	must(t, s.AwaitSync(ctx))
	a := got(s.Leader(ctx))(t)
	switchWAL := func(m *lab.Member) {
		t.Helper()
		conn := got(m.Connect(ctx, "postgres"))(t)
		defer conn.Close(ctx)
		for _, statement := range []string{"DROP TABLE IF EXISTS public.t", "CREATE TABLE public.t ()", "SELECT pg_switch_wal()"} {
			_, err := conn.Exec(ctx, statement)
			must(t, err)
		}
	}
	lictor := func(command string) string { return lictorSays(ctx, l, s, command) }
	says := func(command, what string) { t.Helper(); awaitSaid(ctx, t, l, s, command, what) }
	measures := func(m *lab.Member, line string) {
		t.Helper()
		await(ctx, t, "metrics of "+m.Name, func() error {
			_, body, err := m.Get(ctx, "/metrics")
			if err == nil && !strings.Contains(string(body), fmt.Sprintf(line+"\n", m.Name, s.Name)) {
				err = fmt.Errorf("they lack "+line, m.Name, s.Name)
			}
			return err
		})
	}
	const (
		mode    = `lictor_archive_mode{name="%s",scope="%s"} `
		failing = `lictor_archive_failing{name="%s",scope="%s"} `
	)
	switchWAL(a)
	measures(a, failing+"0")
	b := got(s.Replicas(ctx))(t)[0]
	measures(b, mode+"0")

	must(t, os.WriteFile(full, nil, 0o600))
	switchWAL(a)
	measures(a, failing+"1")
	says("fleet", a.Name+" cannot archive 0000000")
	says("doctor", "WAL cannot be archived: the archive does not take 0000000")
	says("events", "archive fails "+a.Name+" under way")

	if status, answer, err := a.Post(ctx, "/switchover", map[string]string{"leader": a.Name, "candidate": b.Name}); err != nil || status != http.StatusOK {
		t.Fatalf("switchover: %d %s %v", status, answer, err)
	}
	if leader := got(s.AwaitHealthy(ctx))(t); leader != b {
		t.Fatalf("the switchover made %s lead", leader.Name)
	}
	measures(a, mode+"0")
	measures(b, failing+"1")
	says("fleet", b.Name+" cannot archive 0000000")

	must(t, os.Remove(full))
	switchWAL(b) // wakes its archiver, which else tries again in a minute
	measures(b, failing+"0")
	says("events", "archive fails "+b.Name+" done")
	if out := lictor("fleet") + lictor("doctor"); strings.Contains(out, "archive") {
		t.Errorf("it is over, and told of: %s", out)
	}
}

// lictorSays is what a command says of a shard, its blanks as one.
func lictorSays(ctx context.Context, l *lab.Lab, s *lab.Shard, command string) string {
	out, _ := l.Command(ctx, os.Getenv("LICTOR_BIN"), command, s.Name, "--consul", l.ConsulServers()[0].HTTP).CombinedOutput() // findings are an error
	return strings.Join(strings.Fields(string(out)), " ")
}

// awaitSaid waits until a command says something of a shard.
func awaitSaid(ctx context.Context, t *testing.T, l *lab.Lab, s *lab.Shard, command, what string) {
	t.Helper()
	await(ctx, t, "lictor "+command, func() error {
		if out := lictorSays(ctx, l, s, command); !strings.Contains(out, what) {
			return fmt.Errorf("does not say %q: %s", what, out)
		}
		return nil
	})
}
