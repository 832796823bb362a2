package fence

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// processes are all of a PostgreSQL's, by its postmaster and not by its directory.
func processes(t *testing.T, postmaster int) []int {
	t.Helper()
	target := NewTarget("/nonexistent")
	must(t, target.Hold(postmaster))
	pids, err := target.Processes()
	must(t, err)
	return pids
}

func live(pids []int) (left []int) {
	for _, pid := range pids {
		if _, alive := parentOf(pid); alive {
			left = append(left, pid)
		}
	}
	return left
}

// A list of all processes takes a while to make: who has lost its parent meanwhile has another.
func TestOrphansWhileProcessesAreListed(t *testing.T) {
	const guard, postmaster, backend, helper, other = 10, 20, 21, 22, 30
	all := map[int]int{1: 0, guard: 1, backend: postmaster, helper: backend, other: 1} // the postmaster was looked at last
	mendParents(all, func(pid int) (int, bool) {
		return map[int]int{guard: 1, backend: guard, helper: backend, other: 1}[pid], true
	})
	s := scan{roots: map[int]bool{guard: false}}
	for pid, want := range map[int]bool{backend: true, helper: true, other: false} {
		if got := s.descends(all, pid); got != want {
			t.Errorf("process %d descends from the guard: %v", pid, got)
		}
	}
	all = map[int]int{1: 0, backend: postmaster}
	mendParents(all, func(int) (int, bool) { return 0, false })
	if len(all) != 1 {
		t.Errorf("a process that has ended is left: %v", all)
	}
}

// Whatever becomes of the data directory's name, PostgreSQL does not outlive its
// lease, and nobody says that it is dead while it lives.
func TestKillWhereverTheDirectoryWent(t *testing.T) {
	ctx := within(t)
	mount := func(t *testing.T, source, at, kind string, flags uintptr) {
		t.Helper()
		if err := unix.Mount(source, at, kind, flags, ""); err != nil {
			t.Skip("mounting: " + err.Error())
		}
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	for name, test := range map[string]struct {
		before func(t *testing.T, p *instance)
		lost   func(t *testing.T, p *instance)
	}{
		"renamed": {lost: func(t *testing.T, p *instance) { must(t, os.Rename(p.data, p.data+".old")) }},
		"another in its place": {lost: func(t *testing.T, p *instance) {
			must(t, os.Rename(p.data, p.data+".old"))
			must(t, os.Mkdir(p.data, 0o700))
		}},
		"a link that leads elsewhere": {
			before: func(t *testing.T, p *instance) {
				must(t, os.Rename(p.data, p.data+".old"))
				must(t, os.Symlink(p.data+".old", p.data))
			},
			lost: func(t *testing.T, p *instance) {
				must(t, os.Remove(p.data))
				must(t, os.Symlink("/", p.data))
			},
		},
		"mounted over": {lost: func(t *testing.T, p *instance) { mount(t, "none", p.data, "tmpfs", 0) }},
		"unmounted lazily": {
			before: func(t *testing.T, p *instance) { mount(t, p.data, p.data, "", unix.MS_BIND) },
			lost: func(t *testing.T, p *instance) {
				must(t, unix.Unmount(p.data, unix.MNT_DETACH))
				must(t, os.Rename(p.data, p.data+".old"))
			},
		},
		"over it a file system that hangs": {lost: func(t *testing.T, p *instance) { mountFuse(t, p.data).becomes(hangs) }},
		"over it a file system that fails": {lost: func(t *testing.T, p *instance) { mountFuse(t, p.data).becomes(fails) }},
		"data_directory": {before: func(t *testing.T, p *instance) {
			must(t, os.Rename(p.data, p.data+".old"))
			p.initdb(t)
			conf, err := os.OpenFile(filepath.Join(p.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			_, err = conf.WriteString("data_directory = '" + p.data + ".old'\n")
			must(t, err)
			must(t, conf.Close())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newInstance(t)
			if test.before != nil {
				test.before(t, p)
			}
			pid := p.start(ctx, t)
			p.busyOf(ctx, t, pid)
			pids := processes(t, pid)
			t.Cleanup(func() {
				for _, pid := range live(pids) {
					t.Errorf("process %d is left", pid)
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			})
			if test.lost != nil {
				test.lost(t, p)
			}
			if err := p.client.Quit(ctx); err == nil {
				t.Error("the guard left a running PostgreSQL alone")
			}
			agent := NewTarget(p.data) // of an agent that was restarted
			agent.Parent = p.client.PID
			if seen, err := agent.Processes(); err == nil {
				for _, pid := range live(pids) {
					if !slices.Contains(seen, pid) {
						t.Errorf("an agent does not see process %d", pid)
					}
				}
			}
			must(t, p.client.Grant(ctx, Now().Add(soon), nil))
			await(ctx, t, "PostgreSQL outlives its lease", func() bool { return len(live(pids)) == 0 })
		})
	}
}

// A data directory's name that leads to the root finds no PostgreSQL: every one stands there
// before it goes to its own (initdb's, and other shards').
func TestNobodyWorksInTheRoot(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	must(t, err)
	dir := t.TempDir()
	program, data := filepath.Join(dir, "postgres"), filepath.Join(dir, "data")
	content, err := os.ReadFile(sleep)
	must(t, err)
	must(t, os.WriteFile(program, content, 0o700))
	must(t, os.Symlink("/", data))
	bystander := exec.Command(program, "1004")
	bystander.Dir = "/"
	must(t, bystander.Start())
	defer func() { _ = bystander.Process.Kill(); _ = bystander.Wait() }()
	if pids, err := Processes(data); err != nil || len(pids) > 0 {
		t.Errorf("processes %v, %v", pids, err)
	}
	if Belongs(bystander.Process.Pid, data) {
		t.Error("a program in the root belongs to a data directory")
	}
}

// The agent's own kill, with the guard stopped.
func TestKillByTheAgentAlone(t *testing.T) {
	ctx, p, other := within(t), newInstance(t), newInstance(t)
	pid := p.start(ctx, t)
	otherPIDs := processes(t, other.start(ctx, t))
	p.busyOf(ctx, t, pid)
	pids := processes(t, pid)
	guard := p.client.PID()
	must(t, os.Rename(p.data, p.data+".old"))
	must(t, syscall.Kill(guard, syscall.SIGSTOP))
	defer func() { _ = syscall.Kill(guard, syscall.SIGCONT) }()
	agent := NewTarget(p.data)
	agent.Parent = p.client.PID
	must(t, agent.Kill(ctx))
	if left := live(pids); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if left := live(otherPIDs); other.gone(t) || len(left) == 0 {
		t.Error("another PostgreSQL was killed")
	}
}

// What PostgreSQL runs is killed with it, also what has left its session and lost
// its parent.
func TestKillReachesOrphans(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	pid := p.start(ctx, t)
	p.sql(t, `COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; setsid sleep 4321 < /dev/null > /dev/null 2>&1 & echo $! > `+p.dir+`/orphan'`)
	content, err := os.ReadFile(filepath.Join(p.dir, "orphan"))
	must(t, err)
	orphan, err := strconv.Atoi(strings.TrimSpace(string(content)))
	must(t, err)
	pids := append(processes(t, pid), orphan)
	guard := p.client.PID()
	await(ctx, t, "the orphan has another parent than the guard", func() bool {
		parent, alive := parentOf(orphan)
		return alive && parent == guard
	})
	must(t, p.client.Grant(ctx, Now().Add(soon), nil))
	await(ctx, t, "processes outlive the lease", func() bool { return len(live(pids)) == 0 })
}

// A data directory whose file system hangs, or fails, hides nothing and holds nobody
// up. The program is not PostgreSQL but has its name: such a file system runs none.
func TestKillOnABrokenFileSystem(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	must(t, err)
	for _, how := range []string{hangs, fails} {
		t.Run(how, func(t *testing.T) {
			ctx, dir := within(t), t.TempDir()
			program := filepath.Join(dir, "postgres")
			content, err := os.ReadFile(sleep)
			must(t, err)
			must(t, os.WriteFile(program, content, 0o700))
			at := filepath.Join(dir, "mount")
			must(t, os.Mkdir(at, 0o700))
			disk := mountFuse(t, at)
			data := filepath.Join(at, "data")
			t.Setenv(asGuard, "1")
			client := NewGuardClient([]string{os.Args[0]}, GuardOptions{Socket: filepath.Join(dir, "s"), DataDir: data}, filepath.Join(dir, "log"))
			client.Pass = []string{asGuard}
			// Another one works elsewhere on the same disk, and one on a sound disk.
			bystanders := []*exec.Cmd{exec.Command(program, "1001"), exec.Command(program, "1002")}
			for i, work := range []string{at, dir} {
				bystanders[i].Dir = work
				must(t, bystanders[i].Start())
				t.Cleanup(func() { _ = bystanders[i].Process.Kill(); _ = bystanders[i].Wait() })
			}
			start := func() int {
				pid, err := client.Start(ctx, GuardStart{Path: program, Args: []string{"1003"}, Dir: data, LogFile: filepath.Join(dir, "pg.log")})
				must(t, err)
				return pid
			}
			spared := func() {
				t.Helper()
				for _, b := range bystanders {
					if _, alive := parentOf(b.Process.Pid); !alive {
						t.Error("another program was killed")
					}
				}
			}
			pid := start()
			disk.becomes(how)
			began := time.Now()
			limit, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			must(t, client.Grant(limit, Now().Add(soon), nil))
			await(limit, t, "the guard does not kill in time", func() bool { return len(live([]int{pid})) == 0 })
			t.Logf("killed after %s", time.Since(began))
			spared()

			// An agent that holds nothing, and has no guard to ask.
			disk.becomes("")
			must(t, client.Grant(ctx, Now().Add(time.Hour), nil))
			pid = start()
			disk.becomes(how)
			err = KillProcesses(limit, data)
			if len(live([]int{pid})) > 0 {
				t.Errorf("not killed: %v", err)
			}
			spared()

			// Who watches a guard that stands still does not wait for the disk either.
			disk.becomes("")
			must(t, client.Grant(ctx, Now().Add(time.Hour), nil))
			pid = start()
			disk.becomes(how)
			deadline := Now().Add(soon)
			must(t, client.Grant(ctx, deadline, nil))
			guard := client.PID()
			must(t, syscall.Kill(guard, syscall.SIGSTOP))
			await(limit, t, "who watches the guard does not kill in time", func() bool { return len(live([]int{pid})) == 0 })
			if late := Now().Sub(deadline); late >= lookLong {
				t.Errorf("killed %s after the deadline", late)
			}
			spared()
			must(t, syscall.Kill(guard, syscall.SIGKILL)) // it cannot tell whether it is needed
		})
	}
}

// The guard is armed only for a PostgreSQL that it can kill.
func TestArmingNeedsThePostmaster(t *testing.T) {
	ctx, p := within(t), newInstance(t)
	bystander := exec.Command("sleep", "1000")
	must(t, bystander.Start())
	t.Cleanup(func() { _ = bystander.Process.Kill(); _ = bystander.Wait() })
	told := 0
	p.client.Postmaster = func() int { return told }
	must(t, p.client.Grant(ctx, Now().Add(time.Hour), nil)) // none runs yet
	told = bystander.Process.Pid
	for name, arm := range map[string]func() error{
		"arm":   func() error { return p.client.Arm(ctx, Now().Add(time.Hour), nil) },
		"grant": func() error { return p.client.Grant(ctx, Now().Add(time.Hour), nil) },
	} {
		if err := arm(); err == nil || !strings.Contains(err.Error(), ErrNotPostgres.Error()) {
			t.Errorf("%s with a postmaster that it does not hold: %v", name, err)
		}
	}

	// One that was running before: the guard is not its parent, and its directory
	// goes away.
	start := p.postgres()
	postmaster := exec.Command(start.Path, start.Args...)
	postmaster.Dir, postmaster.SysProcAttr = start.Dir, &syscall.SysProcAttr{Credential: p.credential, Setsid: true}
	must(t, postmaster.Start())
	t.Cleanup(func() { _ = postmaster.Process.Kill(); _ = postmaster.Wait() })
	told = postmaster.Process.Pid
	p.ready(ctx, t)
	must(t, p.client.Grant(ctx, Now().Add(time.Hour), nil))
	s, err := p.client.Status(ctx)
	must(t, err)
	if s.Postmaster != told {
		t.Errorf("holds %d, not %d", s.Postmaster, told)
	}
	p.busyOf(ctx, t, told)
	pids := processes(t, told)
	must(t, os.Rename(p.data, p.data+".old"))
	must(t, p.client.Arm(ctx, Now().Add(soon), nil))
	await(ctx, t, "PostgreSQL outlives its lease", func() bool { return len(live(pids)) == 0 })
}
