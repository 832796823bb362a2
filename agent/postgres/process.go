package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/fence"
)

// processes are those of PostgreSQL: the postmaster, its children, and what has outlived it.
type processes struct {
	*installation
	*confFiles
	*dataDirectory
	*session
	launcher Launcher
	// target is what is killed: all of PostgreSQL's processes.
	target *fence.Target
}

// Command is how the postmaster is started.
type Command struct {
	Path       string
	Args       []string // without the program's name
	Env        []string
	Dir        string
	Credential *syscall.Credential
	// LogFile gets what PostgreSQL writes to stderr, appended.
	LogFile string
	// Primary says that it will accept writes under a lease: a guard whose deadline
	// has passed does not start it. A bootstrap does not, it has no lease yet.
	Primary bool
}

// Launcher starts the postmaster, which need not become a child of this
// process: its end is seen through a pidfd.
type Launcher interface {
	Start(ctx context.Context, cmd Command) (pid int, err error)
	// Held is the postmaster that lives and that it has started, also for an earlier
	// run of this process; zero: none is known.
	Held(ctx context.Context) (pid int)
	// Parent is the process all of whose descendants are PostgreSQL's; zero: none.
	Parent() (pid int)
}

// process is a process of PostgreSQL's that is watched, if any.
type process struct {
	mu   sync.Mutex
	id   int
	gone chan struct{} // closed when it has ended
}

func (m *process) pid() int {
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

// done is closed when the process has ended; nil when there was none.
func (m *process) done() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.id == 0 {
		return nil
	}
	return m.gone
}

// watch follows a process through a pidfd, so that a pid that is used again
// cannot be taken for it.
func (m *process) watch(pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watching process %d: %w", pid, err)
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
func (p *processes) Exited() <-chan struct{} { return p.process.done() }

// PID is that of the postmaster, zero when none lives.
func (p *processes) PID() int { return p.process.pid() }

// Running tells whether a postmaster lives.
func (p *processes) Running() bool { return p.process.pid() != 0 }

// Adopt takes charge of a postmaster that runs already: the one that the launcher
// holds, or the one that the data directory names.
func (p *processes) Adopt(ctx context.Context) (bool, error) {
	if pid := p.launcher.Held(ctx); pid != 0 {
		// Whatever has become of the name of its directory.
		a, err := p.adoptedAs()
		if err != nil {
			return false, err
		}
		if err := p.hold(pid); err != nil && !errors.Is(err, unix.ESRCH) {
			return false, err
		}
		if p.Running() {
			p.setRuns(a)
			return true, nil
		}
	}
	pid, err := p.namedPostmaster()
	if err != nil || pid == 0 || !fence.Belongs(pid, p.dataDir) || p.ofPgUpgrade() {
		return false, err
	}
	a, err := p.adoptedAs()
	if err != nil {
		return false, err
	}
	if err := p.process.watch(pid); errors.Is(err, unix.ESRCH) {
		return false, nil // it has ended meanwhile
	} else if err != nil {
		return false, err
	}
	if !fence.Belongs(pid, p.dataDir) {
		return false, nil // the pid was used again meanwhile
	}
	if err := p.target.Hold(pid); err != nil {
		return false, err
	}
	p.setRuns(a)
	return p.Running(), nil
}

// ofPgUpgrade reports whether a postmaster that was found is one that pg_upgrade has started: the way back ends it, and
// nobody takes charge of it.
func (p *processes) ofPgUpgrade() bool {
	note, err := p.UpgradeNote()
	return err == nil && note != nil && note.Stopped
}

// Stray reports whether a postmaster works in the data directory that nobody has taken
// charge of: somebody has started it by hand.
func (p *processes) Stray() bool {
	if p.Running() {
		return false
	}
	pid, err := p.namedPostmaster()
	return err == nil && pid != 0 && fence.Belongs(pid, p.dataDir) && !p.ofPgUpgrade()
}

// hold follows a postmaster of ours, and keeps it in hand to signal and to kill it.
func (p *processes) hold(pid int) error {
	if err := p.process.watch(pid); err != nil {
		return err
	}
	return p.target.Hold(pid)
}

// adoptedAs is the role and upstream of a PostgreSQL that was running before
// this agent, as its files have it: rewriting them must not make a replica
// forget whom it follows.
func (p *processes) adoptedAs() (as, error) {
	switch standby, err := p.hasSignalFile(); {
	case err != nil:
		return as{}, err
	case !standby:
		return as{role: Primary}, nil
	}
	a := as{role: Replica}
	var lines []confSetting
	for _, file := range p.ownConfs() { // pg_basebackup -R writes into the latter
		more, err := p.readConf(file)
		if err != nil {
			return a, nil //nolint:nilerr // whom it follows is found out anew
		}
		lines = append(lines, more...)
	}
	line, set := lastOf(lines, "primary_conninfo")
	if !set {
		return a, nil
	}
	host, port, err := conninfoAddress(line.Value)
	if err != nil {
		return a, nil //nolint:nilerr // the same
	}
	a.upstream = &Upstream{Name: net.JoinHostPort(host, strconv.Itoa(port)), Host: host, Port: port}
	return a, nil
}

// killLeftovers kills every process of the instance, also backends whose
// postmaster is gone and which may still commit, and waits until none is left.
func (p *processes) killLeftovers(ctx context.Context) error {
	if err := p.target.Kill(ctx); err != nil {
		return err
	}
	return p.clearLocks(ctx)
}

// killWriters kills, besides the instance's own processes, the programs that an
// agent which was killed may have left at work on the data directory
// (runOnData).
func (p *processes) killWriters(ctx context.Context) error {
	if err := p.target.Kill(ctx, p.writers()...); err != nil {
		return err
	}
	return p.clearLocks(ctx)
}

// writers are the programs that runOnData runs, besides postgres, under all the names that
// they have here.
func (p *installation) writers() []string {
	names := []string{"initdb", "pg_basebackup", "pg_rewind", "pg_receivewal"}
	for _, name := range names {
		if alias := p.local.Load().BinName[name]; alias != "" {
			names = append(names, filepath.Base(alias))
		}
	}
	return names
}

// Kill ends every process of the instance at once. It does not touch the data directory,
// whose disk may hang: lock files are cleared by the next start.
func (p *processes) Kill(ctx context.Context) error {
	defer p.hangUp()
	if err := p.target.Kill(ctx); err != nil {
		return err
	}
	return p.awaitExit(ctx)
}

func (p *processes) awaitExit(ctx context.Context) error {
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
func (p *processes) signal(sig syscall.Signal) error { return p.target.Signal(sig) }

// pollEvery is how often a state of PostgreSQL that cannot be awaited is asked
// for.
const pollEvery = 10 * time.Millisecond

// isStopping reports whether the postmaster says in its own file that it is shutting
// down: to a client the refusal looks as it does during a start (cannot_connect_now).
func (p *processes) isStopping() bool {
	content, err := p.disk.ReadFile(p.inData("postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(content), "\n")
	// LOCK_FILE_LINE_PM_STATUS in src/include/utils/pidfile.h
	return len(lines) >= 8 && strings.TrimSpace(lines[7]) == "stopping"
}
