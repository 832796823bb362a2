package fence

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
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

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/agent/testkit/sysv"
)

// asGuard makes the test binary run as a guard.
const asGuard = "LICTOR_TEST_GUARD"

func TestMain(m *testing.M) {
	if os.Getenv(asFuse) != "" {
		serveFuse()
		os.Exit(0)
	}
	if os.Getenv(asGuard) != "" {
		o := GuardOptions{}
		flags := flag.NewFlagSet("guard", flag.ExitOnError)
		flags.StringVar(&o.Socket, "socket", "", "")
		flags.StringVar(&o.DataDir, "data-dir", "", "")
		flags.BoolVar(&o.Watch, "watch", false, "")
		_ = flags.Parse(os.Args[1:]) // it exits
		if err := RunGuard(context.Background(), o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	status := m.Run()
	_ = os.RemoveAll(seed.dir)
	os.Exit(status)
}

// instance is a real PostgreSQL, with a guard for it.
type instance struct {
	dir, data, bin string
	port           int
	credential     *syscall.Credential
	client         *GuardClient
}

func newInstance(t *testing.T) *instance {
	t.Helper()
	if testing.Short() {
		t.Skip("PostgreSQL and guards: make test-e2e")
	}
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if dir := os.Getenv("POSTGRES_BIN"); dir != "" {
		bins = []string{dir}
	}
	if len(bins) == 0 {
		t.Skip("no PostgreSQL programs in /usr/lib/postgresql")
	}
	dir, err := os.MkdirTemp("", "lictor-g-")
	must(t, err)
	must(t, os.Chmod(dir, 0o777))
	p := &instance{dir: dir, data: filepath.Join(dir, "data"), bin: bins[len(bins)-1]}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		must(t, err)
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		must(t, err)
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		must(t, err)
		p.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	ports, err := testkit.FreePorts(1)
	must(t, err)
	p.port = ports[0]
	p.client = p.newClient()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := KillProcesses(ctx, p.data); err != nil {
			t.Error(err)
		}
		if err := p.client.Quit(ctx); err != nil {
			t.Error(err)
		}
		sysv.Remove(p.data)
		os.RemoveAll(dir)
	})
	p.initdb(t)
	return p
}

// seed is a data directory as initdb makes it, of which every instance gets a copy.
var seed struct {
	once sync.Once
	dir  string
}

func (p *instance) initdb(t *testing.T) {
	t.Helper()
	seed.once.Do(func() {
		dir, err := os.MkdirTemp("", "lictor-g-")
		must(t, err)
		seed.dir = dir
		must(t, os.Chmod(dir, 0o777))
		p.run(t, "initdb", "-D", filepath.Join(dir, "data"), "-A", "trust", "-U", "postgres", "-N")
	})
	if out, err := exec.Command("cp", "-a", filepath.Join(seed.dir, "data"), p.data).CombinedOutput(); err != nil {
		t.Fatalf("a copy of a data directory: %v: %s", err, out)
	}
}

func (p *instance) newClient() *GuardClient {
	c := NewGuardClient([]string{"env", asGuard + "=1", os.Args[0]}, GuardOptions{Socket: filepath.Join(p.dir, "guard.sock"), DataDir: p.data}, filepath.Join(p.dir, "guard.log"))
	return c
}

func (p *instance) run(t *testing.T, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
}

func (p *instance) postgres() GuardStart {
	return GuardStart{
		Path: filepath.Join(p.bin, "postgres"), Dir: p.data, Credential: p.credential, LogFile: filepath.Join(p.dir, "log"),
		Args: []string{"-D", p.data, "-p", strconv.Itoa(p.port), "-k", p.dir, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"},
	}
}

func (p *instance) start(ctx context.Context, t *testing.T) int {
	t.Helper()
	pid, err := p.client.Start(ctx, p.postgres())
	must(t, err)
	p.ready(ctx, t)
	return pid
}

func (p *instance) ready(ctx context.Context, t *testing.T) {
	t.Helper()
	await(ctx, t, "PostgreSQL does not start", func() bool {
		return exec.Command(filepath.Join(p.bin, "pg_isready"), "-q", "-h", "127.0.0.1", "-p", strconv.Itoa(p.port)).Run() == nil
	})
}

func (p *instance) sql(t *testing.T, statement string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(p.bin, "psql"), "-h", "127.0.0.1", "-p", strconv.Itoa(p.port), "-U", "postgres", "-c", statement).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// busy runs a statement without an end, and waits until its backend is at it. One
// that sleeps would notice the end of its postmaster; this one does not.
func (p *instance) busy(ctx context.Context, t *testing.T) {
	t.Helper()
	p.busyAmong(ctx, t, func() ([]int, error) { return Processes(p.data) })
}

// busyOf does so where the data directory does not tell.
func (p *instance) busyOf(ctx context.Context, t *testing.T, postmaster int) {
	t.Helper()
	p.busyAmong(ctx, t, func() ([]int, error) { return processes(t, postmaster), nil })
}

func (p *instance) busyAmong(ctx context.Context, t *testing.T, processes func() ([]int, error)) {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "psql"), "-h", "127.0.0.1", "-p", strconv.Itoa(p.port), "-U", "postgres", "-c", "DO 'BEGIN LOOP NULL; END LOOP; END'")
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	await(ctx, t, "no backend is busy", func() bool {
		pids, err := processes()
		must(t, err)
		for _, pid := range pids {
			title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if strings.Contains(string(title), ") DO") {
				return true
			}
		}
		return false
	})
}

func (p *instance) gone(t *testing.T) bool {
	t.Helper()
	pids, err := Processes(p.data)
	must(t, err)
	return len(pids) == 0
}

func must(t *testing.T, err error) { t.Helper(); testkit.Must(t, err) }

func await(ctx context.Context, t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(what)
		}
	}
}

func within(t *testing.T) context.Context { t.Helper(); return testkit.Within(t, 3*time.Minute) }

const soon = 300 * time.Millisecond

func TestGuardKillsAtTheDeadline(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	p.start(ctx, t)
	p.busy(ctx, t)
	far := Now().Add(time.Hour)
	must(t, p.client.Grant(ctx, far, nil))
	must(t, p.client.Arm(ctx, far.Add(time.Minute), nil))
	must(t, p.client.Arm(ctx, Now().Add(soon), nil)) // a shorter lease
	p.client.Close()                                 // the agent is gone; the deadline stays
	await(ctx, t, "PostgreSQL outlives its lease", func() bool { return p.gone(t) })

	again := p.newClient()
	defer again.Close()
	s, err := again.Status(ctx)
	must(t, err)
	if !s.Fired || !s.Until.IsZero() {
		t.Errorf("after it has fired: %+v", s)
	}
	if err := again.Arm(ctx, Now().Add(time.Hour), nil); err == nil {
		t.Error("a lease that is over was extended")
	}
	must(t, again.Grant(ctx, Now().Add(time.Hour), nil))
	must(t, again.Disarm(ctx))
}

// A start that was under way while the lease ran out.
func TestGuardStartsNoPrimaryAfterTheDeadline(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	must(t, p.client.Grant(ctx, Now().Add(time.Millisecond), nil))
	await(ctx, t, "the guard does not fire", func() bool {
		s, err := p.client.Status(ctx)
		must(t, err)
		return s.Fired
	})
	primary := p.postgres()
	primary.Primary = true
	if _, err := p.client.Start(ctx, primary); err == nil || !strings.Contains(err.Error(), ErrDeadlinePassed.Error()) {
		t.Errorf("started without a lease: %v", err)
	}
	if !p.gone(t) {
		t.Error("PostgreSQL runs")
	}
	p.start(ctx, t) // a replica may run
	must(t, p.client.Disarm(ctx))
}

// A guard that was stopped reads what was asked on two connections in any order.
func TestGuardHeedsTheLatestRequest(t *testing.T) {
	ctx, asked := within(t), Now()
	far := asked.Add(time.Hour)
	g := &guard{target: NewTarget(t.TempDir()), moved: make(chan struct{}, 1)}
	for _, r := range []guardRequest{
		{Op: "grant", Until: far, Asked: asked},
		{Op: "arm", Until: far.Add(-time.Minute), Asked: asked + 2},
	} {
		if a := g.answer(ctx, r); a.Error != "" {
			t.Fatal(a.Error)
		}
	}
	if a := g.answer(ctx, guardRequest{Op: "arm", Until: far.Add(time.Minute), Asked: asked + 1}); a.Error == "" || a.Until != far.Add(-time.Minute) {
		t.Errorf("an earlier request was heeded after a later one: %+v", a)
	}
}

// A start that hangs with the disk of PostgreSQL's log does not come up once the agent
// has given it up and killed PostgreSQL.
func TestGuardRefusesAStartThatIsSuperseded(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	hangs := p.postgres()
	hangs.LogFile = filepath.Join(p.dir, "pipe")
	must(t, unix.Mkfifo(hangs.LogFile, 0o600))
	if c := hangs.Credential; c != nil {
		must(t, os.Chown(hangs.LogFile, int(c.Uid), int(c.Gid))) // another's would be put aside
	}
	limit, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	if pid, err := p.client.Start(limit, hangs); err == nil {
		t.Fatalf("started as process %d, though its log cannot be opened", pid)
	}
	if pid, err := p.client.CancelStarts(ctx); pid != 0 || err != nil {
		t.Fatalf("process %d runs, %v", pid, err)
	}
	reader, err := os.OpenFile(hangs.LogFile, os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	defer reader.Close()
	next := p.postgres()
	next.Path = "/nowhere"
	if _, err := p.client.Start(ctx, next); err == nil || !strings.Contains(err.Error(), next.Path) { // one start after another
		t.Fatal(err)
	}
	if !p.gone(t) {
		t.Error("a start that was given up has come up")
	}
	p.start(ctx, t)
}

// Who was interrupted asks the guard for nothing any more.
func TestGuardHearsNothingFromWhoWasInterrupted(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	until := Now().Add(time.Hour)
	must(t, p.client.Grant(ctx, until, nil))
	interrupted, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.client.Disarm(interrupted); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if pid, err := p.client.Start(interrupted, p.postgres()); pid != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("process %d, %v", pid, err)
	}
	if s, err := p.client.Status(ctx); err != nil || s.Until != until || s.Postmaster != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	must(t, p.client.Disarm(ctx))
}

// A backend whose postmaster was killed may still commit.
func TestGuardKillsOrphans(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	pid := p.start(ctx, t)
	p.busy(ctx, t)
	must(t, p.client.Grant(ctx, Now().Add(time.Hour), nil))
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	await(ctx, t, "more than the busy backend is left", func() bool {
		pids, err := Processes(p.data)
		must(t, err)
		return len(pids) <= 1
	})
	if p.gone(t) {
		t.Fatal("this test should see an orphan")
	}
	must(t, p.client.Arm(ctx, Now().Add(soon), nil))
	await(ctx, t, "an orphan outlives the lease", func() bool { return p.gone(t) })
}

// The parent-death signal: no primary outlives its guard.
func TestPostmasterDiesWithItsGuard(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	pid := p.start(ctx, t)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	fields := strings.Fields(string(stat)[strings.LastIndexByte(string(stat), ')')+1:])
	parent, err := strconv.Atoi(fields[1])
	must(t, err)
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", parent))
	must(t, err)
	if self, _ := os.Executable(); exe != self {
		t.Fatalf("the postmaster's parent is %s, not the guard", exe)
	}
	must(t, syscall.Kill(parent, syscall.SIGKILL))
	await(ctx, t, "PostgreSQL outlives its guard", func() bool { return p.gone(t) })
	// The next request starts another guard.
	s, err := p.client.Status(ctx)
	must(t, err)
	if !s.Until.IsZero() || s.Fired {
		t.Errorf("a new guard: %+v", s)
	}
}

// PostgreSQL shares neither the guard's priority nor, but for the postmaster, its
// protection from the out-of-memory killer.
func TestPostgresHasTheUsualPriority(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	postmaster := p.start(ctx, t)
	pids, err := Processes(p.data)
	must(t, err)
	if len(pids) < 2 {
		t.Errorf("only processes %v", pids)
	}
	for _, pid := range pids {
		// getpriority(2): the system call gives 20 - nice.
		nice, err := unix.Getpriority(unix.PRIO_PROCESS, pid)
		if errors.Is(err, unix.ESRCH) {
			continue // the backend that pg_isready spoke to
		}
		must(t, err)
		if nice != 20 {
			t.Errorf("process %d runs at nice %d", pid, 20-nice)
		}
		// A process that was forked just now has yet to set it.
		file := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
		await(ctx, t, fmt.Sprintf("process %d keeps the guard's oom_score_adj", pid), func() bool {
			adj, err := os.ReadFile(file)
			return pid == postmaster || err != nil || strings.TrimSpace(string(adj)) == "0"
		})
	}
}

func TestGuardStaysWhilePostgresRuns(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	p.start(ctx, t)
	if err := p.client.Quit(ctx); err == nil {
		t.Error("the guard left a running PostgreSQL alone")
	}
	if p.gone(t) {
		t.Error("PostgreSQL is gone")
	}
	must(t, p.client.Disarm(ctx))
}

func TestKillProcessesSparesOthers(t *testing.T) {
	ctx, p, other := within(t), newInstance(t), newInstance(t)
	p.start(ctx, t)
	other.start(ctx, t)
	bystander := exec.Command("sleep", "1000")
	bystander.Dir = p.data
	must(t, bystander.Start())
	t.Cleanup(func() { _ = bystander.Process.Kill(); _ = bystander.Wait() })
	must(t, KillProcesses(ctx, p.data))
	if !p.gone(t) {
		t.Error("something is left")
	}
	if other.gone(t) {
		t.Error("another PostgreSQL was killed")
	}
	if err := bystander.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a program that is not PostgreSQL's was killed: %v", err)
	}
	if err := NewTarget(p.data).Hold(bystander.Process.Pid); !errors.Is(err, ErrNotPostgres) {
		t.Errorf("holds a program that is not PostgreSQL's: %v", err)
	}
}

func TestBootTimer(t *testing.T) {
	// Also before the machine was booted, and at that very moment.
	for _, at := range []cluster.Instant{-cluster.Instant(time.Hour), 0, Now() / 2, Now().Add(10 * time.Millisecond)} {
		timer, err := newBootTimer(at)
		must(t, err)
		var b [8]byte
		if _, err := timer.Read(b[:]); err != nil {
			t.Error(err)
		}
		if Now().Before(at) {
			t.Error("fired too early")
		}
		must(t, timer.Close())
	}
}

// What the agent wants to find again after a restart outlives it, and nothing
// outlives PostgreSQL.
// The guard is told to end while its kill at the deadline is under way: a process that dies is there until its
// memory is given back.
func TestGuardEndsAfterItsKill(t *testing.T) {
	ctx := within(t)
	dying := exec.Command("sleep", "60")
	must(t, dying.Start())
	fd, err := unix.PidfdOpen(dying.Process.Pid, 0)
	must(t, err)
	g := &guard{target: NewTarget(t.TempDir()), killing: make(chan struct{})}
	g.target.hold(dying.Process.Pid, fd)
	var killing sync.WaitGroup
	killing.Go(func() {
		time.Sleep(100 * time.Millisecond) // the kernel's
		_ = dying.Process.Kill()
		_ = dying.Wait()
		close(g.killing)
	})
	defer killing.Wait()
	if a := g.answer(ctx, guardRequest{Op: "quit"}); a.Error != "" {
		t.Error(a.Error)
	}
}

func TestGuardRemembers(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	if _, err := p.client.Recall(ctx); err == nil {
		t.Error("recalled from a guard that does not run")
	}
	p.start(ctx, t)
	recalled := func(want string) {
		t.Helper()
		again := p.newClient()
		defer again.Close()
		s, err := again.Recall(ctx)
		must(t, err)
		if string(s.PersistedState) != want {
			t.Errorf("remembers %q, want %q", s.PersistedState, want)
		}
	}
	recalled("")
	must(t, p.client.Grant(ctx, Now().Add(time.Hour), json.RawMessage(`{"lists":1}`)))
	recalled(`{"lists":1}`)
	must(t, p.client.Arm(ctx, Now().Add(2*time.Hour), nil))
	recalled(`{"lists":1}`)
	must(t, p.client.Remember(ctx, json.RawMessage(`{"lists":2}`)))
	p.client.Close() // the agent is gone
	recalled(`{"lists":2}`)
	must(t, p.client.Disarm(ctx))
	recalled("")
	must(t, p.client.Grant(ctx, Now().Add(soon), json.RawMessage(`{"lists":3}`)))
	await(ctx, t, "PostgreSQL outlives its lease", func() bool { return p.gone(t) })
	recalled("")
}
