package fence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// identity is which directory it is, whatever its name is by now.
type identity struct {
	major, minor uint32
	ino          uint64
	born         unix.StatxTimestamp // an inode's number is given again
	dated        bool
}

func (a identity) same(b identity) bool {
	return a.major == b.major && a.minor == b.minor && a.ino == b.ino && (!a.dated || !b.dated || a.born == b.born)
}

// root reports whether it is the root directory. That is nobody's data directory: PostgreSQL
// is there before it has gone to one, whosever it is.
func (a identity) root() bool {
	root, _, err := identify("/")
	return err == nil && a.same(root)
}

// identify asks for the identity of what a path leads to, and no more of the file
// system than what the kernel has in its memory already: of a directory that some
// process works in this is all there is to know, also when its disk hangs or fails
// (statx(2), AT_STATX_DONT_SYNC). path is its name without links.
func identify(of string) (id identity, path string, err error) {
	fd, err := unix.Open(of, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return identity{}, "", fmt.Errorf("%s: %w", of, err)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return identity{}, "", fmt.Errorf("%s: %w", of, err)
	}
	path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return identity{}, "", fmt.Errorf("%s: its path: %w", of, err)
	}
	return identity{
		major: st.Dev_major, minor: st.Dev_minor, ino: st.Ino, born: st.Btime, dated: st.Mask&unix.STATX_BTIME != 0,
	}, strings.TrimSuffix(path, deleted), nil
}

// deleted is what the kernel adds to the path of what was removed.
const deleted = " (deleted)"

// workDir is the path of a process's working directory as the kernel knows it.
func workDir(pid int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(path, deleted)
}

// PostgresName is a part of every name under which PostgreSQL's server runs, also where
// it is called otherwise, as edb-postgres is (postgresql.bin_name).
const PostgresName = "postgres"

// IsPostgres reports whether a process runs PostgreSQL.
func IsPostgres(pid int) bool { return isPostgres(pid) }

// isPostgres reports whether a process runs PostgreSQL, or one of the programs that
// are named.
func isPostgres(pid int, programs ...string) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false // it has ended, or it is the kernel's or another user's
	}
	name := filepath.Base(strings.TrimSuffix(exe, deleted))
	return strings.Contains(name, PostgresName) || slices.Contains(programs, name)
}

// parentOf is the parent of a process that has not ended.
func parentOf(pid int) (parent int, alive bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The program's name, in parentheses, may hold anything (proc_pid_stat(5)).
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return parent, err == nil
}

// parents lists all processes that have not ended, with the parent of each.
func parents() (map[int]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	all := map[int]int{}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if parent, alive := parentOf(pid); alive {
				all[pid] = parent
			}
		}
	}
	mendParents(all, parentOf)
	return all, nil
}

// mendParents asks again for the parents of processes whose parent has ended while the list
// was made: they have another one by now, and would descend from nobody.
func mendParents(all map[int]int, parentOf func(pid int) (parent int, alive bool)) {
	for range 8 { // reapers end, too
		mended := false
		for pid, parent := range all {
			if _, known := all[parent]; known || parent == 0 {
				continue
			}
			switch now, alive := parentOf(pid); {
			case !alive:
				delete(all, pid)
				mended = true
			case now != parent:
				all[pid] = now
				mended = true
			}
		}
		if !mended {
			return
		}
	}
}

// Belongs reports whether a process is PostgreSQL's and works in the data
// directory: every process of an instance has it as its working directory, also
// a backend whose postmaster is gone. Other programs count when they are named.
func Belongs(pid int, dataDir string, programs ...string) bool {
	t := NewTarget(dataDir)
	return t.judge(pid, t.homes(lookLong), programs) == ours
}

// Processes lists all processes of the PostgreSQL in a data directory, and of
// the programs that are named.
func Processes(dataDir string, programs ...string) ([]int, error) {
	return NewTarget(dataDir).Processes(programs...)
}

// KillIf kills a process if it is one to kill, and reports whether it did. The process is held before is looks at it,
// so that no other one that gets its number meanwhile is hit.
func KillIf(pid int, is func() bool) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false // it has ended
	}
	defer unix.Close(fd)
	return is() && !ended(fd, 0) && signalFD(fd, unix.SIGKILL) == nil
}

// SeesAs reports whether a path leads a process to where it leads us: in a container, the same path is mostly another
// file.
func SeesAs(pid int, path string) bool {
	if seesOurFiles(pid) {
		return true
	}
	here, err := os.Stat(path)
	if err != nil {
		return false
	}
	there, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), "root", path))
	return err == nil && os.SameFile(here, there)
}

// pidOf is the number of the process of a pidfd that has not been reaped (proc_pid_fdinfo(5)).
func pidOf(pidfd *os.File) (int, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd()))
	if err != nil {
		return 0, fmt.Errorf("pidfd: %w", err)
	}
	for line := range strings.Lines(string(info)) {
		if value, found := strings.CutPrefix(line, "Pid:"); found {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("pidfd: the kernel does not say of which process")
}

// pollMS bounds one wait for the end of a process, so that ctx is looked at.
const pollMS = 50

// ended reports whether the process of a pidfd has ended, waiting for it that long.
func ended(pidfd, ms int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, ms)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// signalFD signals the process of a pidfd, unless it has ended.
func signalFD(pidfd int, sig unix.Signal) error {
	if err := unix.PidfdSendSignal(pidfd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
