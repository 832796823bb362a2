package e2e

import (
	"errors"
	"net/http"
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
