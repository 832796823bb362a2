package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is how the postmaster is started.
type Command struct {
	Path       string
	Args       []string // without the program's name
	Env        []string
	Dir        string
	Credential *syscall.Credential
	// LogFile gets what PostgreSQL writes to stderr, appended.
	LogFile string
}

// Launcher starts the postmaster, which need not become a child of this
// process: its end is seen through a pidfd.
type Launcher interface {
	Start(ctx context.Context, cmd Command) (pid int, err error)
}

// DirectLauncher makes the postmaster a child in a session of its own, so that
// it outlives the agent. Close waits for the children that have ended.
type DirectLauncher struct{ reapers sync.WaitGroup }

// Start starts the postmaster.
func (l *DirectLauncher) Start(_ context.Context, c Command) (int, error) {
	out, err := os.OpenFile(c.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return 0, fmt.Errorf("PostgreSQL's log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(c.Path, c.Args...) //nolint:noctx // the postmaster outlives its start
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = c.Env, c.Dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: c.Credential}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("starting %s: %w", c.Path, err)
	}
	l.reapers.Go(func() { _ = cmd.Wait() }) // how it ended is in its log
	return cmd.Process.Pid, nil
}

// postmaster is the running postmaster, if any.
type postmaster struct {
	mu      sync.Mutex
	id      int
	gone    chan struct{} // closed when it has ended
	changed chan struct{} // closed when another postmaster is watched
}

func (m *postmaster) pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.id != 0 {
		select {
		case <-m.gone:
			return 0
		default:
		}
	}
	return m.id
}

// done is closed when the postmaster that runs now has ended; nil when none
// runs.
func (m *postmaster) done() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.id == 0 {
		return nil
	}
	return m.gone
}

// watch follows a postmaster through a pidfd, so that a pid that is used again
// cannot be taken for it.
func (m *postmaster) watch(pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watching the postmaster (pid %d): %w", pid, err)
	}
	// The runtime's poller waits for the pidfd, which becomes readable at the
	// end of the process (pidfd_open(2)).
	file := os.NewFile(uintptr(fd), "pidfd")
	gone := make(chan struct{})
	m.mu.Lock()
	m.id, m.gone = pid, gone
	m.mu.Unlock()
	go func() { // ends with the process that it watches, or with ours
		defer close(gone)
		defer file.Close()
		waitReadable(file)
	}()
	return nil
}

func waitReadable(file *os.File) {
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// Exited fires when the postmaster that runs now ends; nil when none runs.
func (p *Instance) Exited() <-chan struct{} { return p.process.done() }

// Running tells whether a postmaster lives.
func (p *Instance) Running() bool { return p.process.pid() != 0 }

// Adopt takes charge of a postmaster that runs in the data directory already.
func (p *Instance) Adopt() (bool, error) {
	content, err := os.ReadFile(filepath.Join(p.dataDir, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("postmaster.pid: %w", err)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 0 {
		return false, nil // a leftover that PostgreSQL itself will complain about
	}
	if !belongs(pid, p.dataDir) {
		return false, nil
	}
	if err := p.process.watch(pid); err != nil {
		return false, nil // it has ended meanwhile
	}
	return p.Running(), nil
}

// belongs tells whether a process is PostgreSQL's and works in the data
// directory: every process of an instance has it as its working directory.
func belongs(pid int, dataDir string) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || !strings.HasPrefix(filepath.Base(strings.TrimSuffix(exe, " (deleted)")), "postgres") {
		return false
	}
	var work, data syscall.Stat_t
	return syscall.Stat(fmt.Sprintf("/proc/%d/cwd", pid), &work) == nil && syscall.Stat(dataDir, &data) == nil &&
		work.Dev == data.Dev && work.Ino == data.Ino
}

// processes lists all processes of the instance.
func processes(dataDir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && belongs(pid, dataDir) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// killLeftovers kills every process of the instance, also backends whose
// postmaster is gone and which may still commit, and waits until none is left.
func (p *Instance) killLeftovers(ctx context.Context) error {
	for {
		pids, err := processes(p.dataDir)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := killAndWait(ctx, pid, p.dataDir); err != nil {
				return err
			}
		}
	}
}

// killAndWait kills one process. The pidfd is opened before the last check, so
// that a pid that is used again is never hit.
func killAndWait(ctx context.Context, pid int, dataDir string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("killing process %d of PostgreSQL: %w", pid, err)
	}
	defer unix.Close(fd)
	if !belongs(pid, dataDir) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d of PostgreSQL: %w", pid, err)
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return nil
		}
	}
	return fmt.Errorf("process %d of PostgreSQL does not end after SIGKILL (a hung disk?): %w", pid, ctx.Err())
}

// Kill ends every process of the instance at once.
func (p *Instance) Kill(ctx context.Context) error {
	p.hangUp()
	if pid := p.process.pid(); pid != 0 {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			if belongs(pid, p.dataDir) {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
			_ = unix.Close(fd)
		}
	}
	if err := p.killLeftovers(ctx); err != nil {
		return err
	}
	return p.awaitExit(ctx)
}

func (p *Instance) awaitExit(ctx context.Context) error {
	gone := p.process.done()
	if gone == nil {
		return nil
	}
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the postmaster has not ended: %w", ctx.Err())
	}
}

// signal sends the running postmaster a signal.
func (p *Instance) signal(sig syscall.Signal) error {
	pid := p.process.pid()
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("postmaster (pid %d): %w", pid, err)
	}
	defer unix.Close(fd)
	if !belongs(pid, p.dataDir) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %s to the postmaster (pid %d): %w", sig, pid, err)
	}
	return nil
}

// pollEvery is how often a state of PostgreSQL that cannot be awaited is asked
// for.
const pollEvery = 10 * time.Millisecond
