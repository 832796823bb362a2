package fence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Belongs tells whether a process is PostgreSQL's and works in the data
// directory: every process of an instance has it as its working directory, also
// a backend whose postmaster is gone. Other programs count when they are named.
func Belongs(pid int, dataDir string, programs ...string) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	name := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	if !strings.HasPrefix(name, "postgres") && !slices.Contains(programs, name) {
		return false
	}
	var work, data syscall.Stat_t
	return syscall.Stat(fmt.Sprintf("/proc/%d/cwd", pid), &work) == nil && syscall.Stat(dataDir, &data) == nil &&
		work.Dev == data.Dev && work.Ino == data.Ino
}

// Processes lists all processes of the PostgreSQL in a data directory, and of
// the programs that are named.
func Processes(dataDir string, programs ...string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && Belongs(pid, dataDir, programs...) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// ErrLingering: every process has been sent SIGKILL, but not all have ended, as
// the disk they wait for hangs. They are harmless: the kernel ends them before
// they could run, and so answer a client, again (signal(7)).
var ErrLingering = errors.New("killed, but some of its processes still wait for a disk that hangs")

// KillProcesses kills every process of the PostgreSQL in a data directory and
// waits until none is left, or until ctx ends (ErrLingering). All are signalled
// before the first one is waited for: a backend must not have time to finish a
// commit. Programs that are named are killed with it.
func KillProcesses(ctx context.Context, dataDir string, programs ...string) error {
	held := map[int]int{} // pid to pidfd, of those that were signalled
	defer func() {
		for _, fd := range held {
			_ = unix.Close(fd)
		}
	}()
	for {
		// A process may have been forked while the others were signalled, so
		// look again until there is no new one.
		more, err := killMore(held, dataDir, programs)
		if err != nil {
			return fmt.Errorf("killing PostgreSQL in %s: %w", dataDir, err)
		}
		if more {
			continue
		}
		if len(held) == 0 {
			return nil
		}
		if err := awaitEnd(ctx, held); err != nil {
			return fmt.Errorf("PostgreSQL in %s: %w: %w", dataDir, ErrLingering, err)
		}
	}
}

// killMore kills the processes that are not among held yet and tells whether
// there were any. It forgets those that have ended.
func killMore(held map[int]int, dataDir string, programs []string) (more bool, err error) {
	for pid, fd := range held {
		if ended(fd, 0) {
			_ = unix.Close(fd)
			delete(held, pid)
		}
	}
	pids, err := Processes(dataDir, programs...)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, pid := range pids {
		if _, signalled := held[pid]; signalled {
			continue
		}
		fd, err := Signal(pid, dataDir, unix.SIGKILL, programs...)
		if fd >= 0 {
			held[pid], more = fd, true
		}
		errs = append(errs, err) // the others are killed all the same
	}
	return more, errors.Join(errs...)
}

// Signal signals one process of the PostgreSQL in a data directory and returns
// its pidfd, -1 when it is gone. The pidfd is opened before the process is
// verified, so that a pid that is used again is never hit.
func Signal(pid int, dataDir string, sig unix.Signal, programs ...string) (pidfd int, err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("process %d of PostgreSQL: %w", pid, err)
	}
	if !Belongs(pid, dataDir, programs...) {
		return -1, unix.Close(fd)
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.ESRCH) {
			return -1, nil
		}
		return -1, fmt.Errorf("signalling process %d of PostgreSQL: %w", pid, err)
	}
	return fd, nil
}

// pollMS bounds one wait for the end of a process, so that ctx is looked at.
const pollMS = 50

// ended tells whether the process of a pidfd has ended, waiting for it that long.
func ended(pidfd, ms int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, ms)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// awaitEnd waits until all have ended.
func awaitEnd(ctx context.Context, pidfds map[int]int) error {
	for _, fd := range pidfds {
		for !ended(fd, pollMS) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}
