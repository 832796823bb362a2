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

// KillProcesses kills every process of the PostgreSQL in a data directory and
// waits until none is left. All are signalled before the first one is waited
// for: a backend must not have time to finish a commit. Programs that are named
// are killed with it.
func KillProcesses(ctx context.Context, dataDir string, programs ...string) error {
	for {
		pids, err := Processes(dataDir, programs...)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		var (
			held []int
			errs []error
		)
		for _, pid := range pids {
			fd, err := Signal(pid, dataDir, unix.SIGKILL, programs...)
			if fd >= 0 {
				held = append(held, fd)
			}
			errs = append(errs, err) // the others are killed all the same
		}
		errs = append(errs, awaitEnd(ctx, held), closeAll(held))
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("PostgreSQL in %s does not end after SIGKILL (a hung disk?): %w", dataDir, err)
		}
	}
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
		return -1, closeAll([]int{fd})
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

func awaitEnd(ctx context.Context, pidfds []int) error {
	for _, fd := range pidfds {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, pollMS)
			if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

func closeAll(fds []int) error {
	var errs []error
	for _, fd := range fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}
