package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/agent/testkit/sysv"
)

// patience bounds every wait; it says nothing about how fast things are.
const patience = 3 * time.Minute

// secret is in every password of these tests, and nowhere else: not in those of another run of
// them on this machine either. The processes that a run starts of itself have the same.
var secret = func() string { //nolint:gochecknoglobals // it never changes
	const env = "LICTOR_TEST_RUN"
	if os.Getenv(env) == "" {
		_ = os.Setenv(env, strconv.Itoa(os.Getpid())) // else a child has another secret, and its test fails
	}
	return `s3cr:et` + os.Getenv(env) + `\'`
}()

func within(t *testing.T) context.Context { t.Helper(); return testkit.Within(t, patience) }

func must(t *testing.T, err error) { t.Helper(); testkit.Must(t, err) }

// binDir is where PostgreSQL's programs are: POSTGRES_BIN, when set.
func binDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("POSTGRES_BIN"); dir != "" {
		return dir
	}
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(dirs) == 0 {
		t.Skip("no PostgreSQL programs in /usr/lib/postgresql")
	}
	return dirs[len(dirs)-1]
}

// directLauncher makes the postmaster a child in a session of its own, so that
// it outlives the agent.
type directLauncher struct {
	reapers sync.WaitGroup
	extra   []string // arguments
}

// Wait waits until every postmaster that it started has ended and was reaped.
func (l *directLauncher) Wait() { l.reapers.Wait() }

// Start starts the postmaster.
func (l *directLauncher) Start(_ context.Context, c Command) (int, error) {
	out, err := osuser.As(c.Credential).AppendTo(c.LogFile, 0o640)
	if err != nil {
		return 0, fmt.Errorf("PostgreSQL's log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(c.Path, slices.Concat(c.Args, l.extra)...) //nolint:noctx // the postmaster outlives its start
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = c.Env, c.Dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: c.Credential}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("starting %s: %w", c.Path, err)
	}
	l.reapers.Go(func() { _ = cmd.Wait() }) // how it ended is in its log
	return cmd.Process.Pid, nil
}

// Held is nothing: it remembers nothing.
func (*directLauncher) Held(context.Context) int { return 0 }

// Parent is nobody.
func (*directLauncher) Parent() int { return 0 }

// newDir is a directory that PostgreSQL's user can reach.
func newDir(t *testing.T) string { t.Helper(); return newDirIn(t, "") }

func newDirIn(t *testing.T, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "lictor-pg-")
	must(t, err)
	t.Cleanup(func() {
		sysv.Remove(filepath.Join(dir, "*"))
		os.RemoveAll(dir)
	})
	must(t, os.Chmod(dir, 0o777))
	return dir
}

// give gives PostgreSQL's user what a test has made for it.
func give(t *testing.T, p *Instance, path string) {
	t.Helper()
	if p.credential == nil {
		return
	}
	must(t, filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, int(p.credential.Uid), int(p.credential.Gid)))
	}))
}

func freePort(t *testing.T) int {
	t.Helper()
	ports, err := testkit.FreePorts(1)
	must(t, err)
	return ports[0]
}

func settings(t *testing.T, dir, name string) Settings {
	t.Helper()
	launcher := &directLauncher{}
	yes := true
	s := Settings{
		Scope: "shard", Name: name, Launcher: launcher, Log: zerolog.New(zerolog.NewTestWriter(t)),
		Postgres: config.Postgres{
			Listen: fmt.Sprintf("127.0.0.1:%d", freePort(t)), DataDir: filepath.Join(dir, name), BinDir: binDir(t),
			Parameters:  map[string]any{"fsync": "off", "unix_socket_directories": dir, "pg_stat_statements.max": 77},
			UsePgRewind: &yes,
		},
	}
	s.Postgres.Authentication.Superuser = config.PgUser{Username: "postgres", Password: secret + "super"}
	s.Postgres.Authentication.Replication = config.PgUser{Username: "replicator", Password: secret + "repl"}
	s.Postgres.Authentication.Rewind = config.PgUser{Username: "Rewinder", Password: secret + "rewind"}
	return s
}

func newInstance(t *testing.T, s Settings) *Instance {
	t.Helper()
	p, err := New(s)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := p.Kill(ctx); err != nil {
			t.Error(err)
		}
		s.Launcher.(*directLauncher).reapers.Wait()
	})
	return p
}

// serving is a primary that lets clients in.
func serving(ctx context.Context, t *testing.T) *Instance {
	t.Helper()
	a := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, a, "answers", func(s State) bool { return s.Accepting })
	return a
}

func bootstrapped(ctx context.Context, t *testing.T, p *Instance) string {
	t.Helper()
	id, err := p.Bootstrap(ctx, config.Bootstrap{InitDB: []any{"data-checksums", map[string]any{"encoding": "UTF8"}}})
	must(t, err)
	must(t, p.FinishBootstrap())
	return id
}

func upstream(p *Instance) Upstream { return Upstream{Name: p.name, Host: "127.0.0.1", Port: p.port} }

func observe(ctx context.Context, t *testing.T, p *Instance, what string, holds func(State) bool) State {
	t.Helper()
	for {
		s, err := p.Observe(ctx)
		if err == nil && holds(s) {
			return s
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %+v %v", what, s, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func sql(ctx context.Context, t *testing.T, p *Instance, statement string) {
	t.Helper()
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	must(t, err)
}

// The life of a shard's two members: bootstrap, clone, stream, promote, diverge,
// rewind, crash.
func TestTwoMembers(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	a, b := newInstance(t, settings(t, dir, "a")), newInstance(t, settings(t, dir, "b-1"))

	if d, err := a.DataDir(ctx); err != nil || d.State != Empty {
		t.Fatalf("before: %+v %v", d, err)
	}
	id := bootstrapped(ctx, t, a)
	if a.Running() {
		t.Error("runs after the bootstrap")
	}
	d, err := a.DataDir(ctx)
	must(t, err)
	if d.State != Valid || d.Control.SystemIdentifier != id || d.Standby {
		t.Errorf("after the bootstrap: %+v, want system identifier %s", d, id)
	}
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	s := observe(ctx, t, a, "primary", func(s State) bool { return s.Accepting })
	if s.InRecovery || s.Timeline != 1 || s.WriteLSN == 0 || s.SystemIdentifier != id || s.StartTime.IsZero() || s.ServerVersion < 120000 {
		t.Errorf("primary: %+v", s)
	}
	keepSlots(ctx, t, a, "b-1", "gone")
	keepSlots(ctx, t, a, "b-1")

	var lastDone int64
	must(t, b.BaseBackup(ctx, upstream(a), func(done, _ int64) { lastDone = done }))
	if lastDone == 0 {
		t.Error("no progress was told")
	}
	up := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	observe(ctx, t, b, "replica streams", func(s State) bool { return s.InRecovery && s.ReplicationState == Streaming })
	s = observe(ctx, t, a, "one standby", func(s State) bool { return len(s.Standbys) == 1 && s.Standbys[0].State == Streaming })
	if s.Standbys[0].ApplicationName != "b-1" {
		t.Errorf("standby: %+v", s.Standbys[0])
	}

	set, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"b-1"}})
	must(t, err)
	s = observe(ctx, t, a, "synchronous", func(s State) bool {
		return len(s.Standbys) == 1 && s.Standbys[0].SyncState == "sync" && s.Standbys[0].FlushLSN >= set.Since
	})
	if s.SyncNames != `"b-1"` {
		t.Errorf("synchronous_standby_names: %s", s.SyncNames)
	}
	t.Run("a restarted agent goes on waiting", func(t *testing.T) {
		again, err := New(Settings{Scope: "shard", Name: "a", Postgres: *a.local.Load(), Launcher: &directLauncher{}, Log: zerolog.Nop()})
		must(t, err)
		if adopted, err := again.Adopt(ctx); err != nil || !adopted {
			t.Fatalf("adopted: %v %v", adopted, err)
		}
		rewrite(ctx, t, again)
		if got := again.syncNames; got != `"b-1"` {
			t.Errorf("synchronous standbys: %s", got)
		}
		again.hangUp()
	})
	noSecrets(t, dir, a, b)

	// a crashes with a backend that goes on, b is promoted, a's WAL goes on.
	must(t, func() error { _, err := a.SetSynchronous(ctx, SyncSetting{}); return err }())
	must(t, b.Promote(ctx, 0))
	observe(ctx, t, b, "promoted", func(s State) bool { return !s.InRecovery && s.Timeline == 2 })
	must(t, b.Checkpoint(ctx))
	history, err := b.TimelineHistory(2)
	must(t, err)
	if len(history) != 1 || history[0].Timeline != 1 || history[0].LSN == 0 || history[0].Reason == "" {
		t.Errorf("history: %+v", history)
	}
	sql(ctx, t, a, "CREATE TABLE public.only_here AS SELECT generate_series(1, 1000)")
	busy, err := a.dedicated(ctx)
	must(t, err)
	defer hangUpOn(busy)
	ended := make(chan error, 1)
	go func() { _, err := busy.Exec(ctx, "DO 'BEGIN LOOP NULL; END LOOP; END'"); ended <- err }()
	awaitBackends(ctx, t, a.dataDir)
	for n := 0; n != 1; {
		n, err = a.LongTransactions(ctx, 0)
		must(t, err)
	}
	if n, err := a.LongTransactions(ctx, time.Hour); err != nil || n != 0 {
		t.Errorf("%d transactions have run for an hour: %v", n, err)
	}
	must(t, a.signal(syscall.SIGKILL))
	<-a.Exited()
	if s, err := a.Observe(ctx); err != nil || s.Running {
		t.Errorf("after the crash: %+v %v", s, err)
	}
	upB := upstream(b)
	if _, err := a.Rewind(ctx, upB, false); err == nil || !strings.Contains(err.Error(), "use_pg_rewind") {
		t.Errorf("rewound without permission: %v", err)
	}
	outcome, err := a.Rewind(ctx, upB, true)
	must(t, err)
	if outcome != Rewound {
		t.Errorf("outcome: %s", outcome)
	}
	keepSlots(ctx, t, b, "a")
	must(t, a.Start(ctx, StartAs{Role: Replica, Upstream: &upB}))
	observe(ctx, t, a, "the old primary streams", func(s State) bool {
		return s.InRecovery && s.ReplicationState == Streaming && s.Timeline == 2
	})
	if err := <-ended; err == nil || ctx.Err() != nil {
		t.Errorf("a statement outlived its postmaster: %v", err)
	}

	// Stopped and started: nothing to rewind. Then followed back.
	must(t, a.Stop(ctx, Fast))
	if outcome, err := a.Rewind(ctx, upB, true); err != nil || outcome != NotNeeded {
		t.Errorf("after a clean stop: %s %v", outcome, err)
	}
	must(t, a.Start(ctx, StartAs{Role: Replica, Upstream: &upB}))
	observe(ctx, t, a, "streams again", func(s State) bool { return s.ReplicationState == Streaming })
	noSecrets(t, dir, a, b)
}

// noSecrets looks for the tests' passwords where they must not be. Nothing else runs
// meanwhile: other tests give passwords to programs of their own.
func noSecrets(t *testing.T, dir string, instances ...*Instance) {
	t.Helper()
	out, err := exec.Command("ps", "axww", "-o", "args", "e").CombinedOutput()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, strings.TrimSuffix(secret, `\'`)) {
			t.Errorf("a password is in the list of processes: %q", line)
		}
	}
	for _, p := range instances {
		for _, file := range []string{p.inData("postgresql.conf"), p.inData("postgresql.auto.conf"), p.inData("postmaster.opts"), p.stateFile("postgres.log")} {
			content, err := os.ReadFile(file)
			must(t, err)
			if strings.Contains(string(content), "s3cr") {
				t.Errorf("a password is in %s", file)
			}
		}
		if info, err := os.Stat(p.pgpassPath()); err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", p.pgpassPath(), info.Mode())
		}
	}
	_ = dir
}

func awaitBackends(ctx context.Context, t *testing.T, dataDir string) {
	t.Helper()
	for ctx.Err() == nil {
		pids, err := fence.Processes(dataDir)
		must(t, err)
		for _, pid := range pids {
			title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if strings.Contains(string(title), ") DO") {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no backend is busy")
}

func TestPendingRestartAndReload(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	p.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: map[string]any{"max_connections": 133, "work_mem": "5MB", "shared_buffers": "64MB"}}})
	rewrite(ctx, t, p)
	s := observe(ctx, t, p, "two parameters pend", func(s State) bool { return len(s.PendingRestart) == 2 })
	if got := s.PendingRestart["max_connections"]; got != (cluster.PendingChange{OldValue: "100", NewValue: "133"}) {
		t.Errorf("max_connections: %+v", got)
	}
	must(t, p.Stop(ctx, Fast))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, p, "nothing pends", func(s State) bool { return s.Accepting && len(s.PendingRestart) == 0 })

	// A parameter that is taken away goes back to what PostgreSQL's own file says.
	p.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: map[string]any{"max_connections": 133}}})
	rewrite(ctx, t, p)
	s = observe(ctx, t, p, "one parameter pends", func(s State) bool { return len(s.PendingRestart) == 1 })
	if got := s.PendingRestart["shared_buffers"]; got != (cluster.PendingChange{OldValue: "64MB", NewValue: "128MB"}) {
		t.Errorf("shared_buffers: %+v", got)
	}
}

func TestStartTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
	must(t, err)
	if err := p.Start(ctx, StartAs{Role: Primary}); err == nil || !strings.Contains(err.Error(), "could not bind") {
		t.Errorf("with its port taken: %v", err)
	}
	taken.Close()
	must(t, p.Start(ctx, StartAs{Role: Primary}))
}

// rewrite writes the configuration files anew and tells whether they have changed.
func rewrite(ctx context.Context, t *testing.T, p *Instance) bool {
	t.Helper()
	changed, err := p.Rewrite(ctx)
	must(t, err)
	return changed
}

// value is what a query gives.
func value(ctx context.Context, t *testing.T, p *Instance, query string) (text string) {
	t.Helper()
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer conn.Close(ctx)
	must(t, conn.QueryRow(ctx, query).Scan(&text))
	return text
}
