package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// proc is one process as /proc shows it. Its pid and start time together name
// it for as long as the machine runs; a pid alone may be somebody else's soon.
type proc struct {
	pid   int
	ppid  int
	start uint64 // clock ticks since boot
	comm  string
	dead  bool // a zombie, or already gone
}

// readProc reads /proc/PID/stat. The command name stands in parentheses and may
// itself contain any byte, so the fields count from the last ')'.
func readProc(pid int) (proc, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return proc{}, err
	}
	return parseStat(pid, stat)
}

func parseStat(pid int, stat []byte) (proc, error) {
	open, shut := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || shut < open {
		return proc{}, fmt.Errorf("/proc/%d/stat is not of the expected form", pid)
	}
	fields := strings.Fields(string(stat[shut+1:]))
	const ppid, start = 1, 19 // fields 4 and 22 of proc(5); state is field 3
	if len(fields) <= start {
		return proc{}, fmt.Errorf("/proc/%d/stat has too few fields", pid)
	}
	p := proc{pid: pid, comm: string(stat[open+1 : shut])}
	var err1, err2 error
	p.ppid, err1 = strconv.Atoi(fields[ppid])
	p.start, err2 = strconv.ParseUint(fields[start], 10, 64)
	p.dead = fields[0] == "Z" || fields[0] == "X"
	return p, errors.Join(err1, err2)
}

// scanProcs lists every living process.
func scanProcs() (map[int]proc, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	procs := make(map[int]proc, len(entries))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, err := readProc(pid); err == nil && !p.dead { // an error: it ended meanwhile
			procs[pid] = p
		}
	}
	return procs, nil
}

// hostMarker is set in the environment of everything that a lab starts on a
// host; its value is the host's directory.
const hostMarker = "LAB_HOST"

// selector says which processes belong to a host, or to a whole lab.
type selector struct {
	// dir is the directory of the host or lab.
	dir string
	// roots are processes known to have been started there: pid and start time.
	roots map[int]uint64
	// netns are inodes of network namespaces, all of whose processes belong.
	netns map[string]bool
	// exact: the marker must name dir itself, not a directory below it.
	exact bool
}

// choose picks the processes that belong, and all their descendants. A process
// belongs when it is a known one, when its environment carries the marker, when
// it lives in one of the namespaces, or when it is PostgreSQL at work in a data
// directory below dir, or its guard: PostgreSQL overwrites its environment, and its backends
// are orphans in sessions of their own once the postmaster was killed.
// Somebody's shell that merely stands in the directory does not belong.
func (s selector) choose(procs map[int]proc) []proc {
	self := os.Getpid()
	chosen := map[int]bool{}
	for pid, p := range procs {
		if pid != self && pid > 1 && s.belongs(p) {
			chosen[pid] = true
		}
	}
	for again := true; again; {
		again = false
		for pid, p := range procs {
			if !chosen[pid] && chosen[p.ppid] && pid != self {
				chosen[pid], again = true, true
			}
		}
	}
	list := make([]proc, 0, len(chosen))
	for pid := range chosen {
		list = append(list, procs[pid])
	}
	return list
}

func (s selector) belongs(p proc) bool {
	if start, known := s.roots[p.pid]; known && start == p.start {
		return true
	}
	dir := filepath.Join("/proc", strconv.Itoa(p.pid))
	if len(s.netns) > 0 {
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil && s.netns[ns] {
			return true
		}
	}
	if environ, err := os.ReadFile(filepath.Join(dir, "environ")); err == nil {
		if value, found := environValue(environ, hostMarker); found && s.contains(value) {
			return true
		}
	}
	if p.comm == "lictor" { // a guard has nothing of the agent's environment
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		args := strings.Split(string(cmdline), "\x00")
		i := slices.Index(args, "--data-dir")
		return err == nil && i >= 0 && i+1 < len(args) && within(s.dir, args[i+1])
	}
	if p.comm != "postgres" && p.comm != "postmaster" {
		return false
	}
	cwd, err := os.Readlink(filepath.Join(dir, "cwd"))
	return err == nil && within(s.dir, strings.TrimSuffix(cwd, " (deleted)"))
}

func (s selector) contains(host string) bool {
	if s.exact {
		return host == s.dir
	}
	return within(s.dir, host)
}

func environValue(environ []byte, name string) (string, bool) {
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if value, found := bytes.CutPrefix(entry, []byte(name+"=")); found {
			return string(value), true
		}
	}
	return "", false
}

func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// handle is a process that cannot be mistaken for a later one with its pid.
type handle struct {
	proc
	fd int // a pidfd
}

// openProc takes hold of p. It fails with unix.ESRCH when p has ended.
func openProc(p proc) (handle, error) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return handle{}, err
	}
	// The pidfd names whoever had the pid at that moment: only now is it
	// worth comparing.
	now, err := readProc(p.pid)
	if err != nil || now.start != p.start {
		_ = unix.Close(fd)
		return handle{}, unix.ESRCH
	}
	return handle{proc: p, fd: fd}, nil
}

func (h handle) signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(h.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending %v to process %d (%s): %w", sig, h.pid, h.comm, err)
	}
	return nil
}

// crowd is every process of a host, taken hold of one by one.
type crowd []handle

func (c crowd) close() {
	for _, h := range c {
		_ = unix.Close(h.fd)
	}
}

func (c crowd) signal(sig unix.Signal) error {
	var errs []error
	for _, h := range c {
		errs = append(errs, h.signal(sig))
	}
	return errors.Join(errs...)
}

// halt stops everything that s selects, also what is forked meanwhile: it looks
// again until it finds nobody new. The caller owns the crowd.
func halt(s selector) (crowd, error) {
	var c crowd
	seen := map[int]uint64{}
	for {
		procs, err := scanProcs()
		if err != nil {
			return c, err
		}
		found := false
		for _, p := range s.choose(procs) {
			if start, known := seen[p.pid]; known && start == p.start {
				continue
			}
			h, err := openProc(p)
			if errors.Is(err, unix.ESRCH) {
				continue
			}
			if err != nil {
				return c, fmt.Errorf("taking hold of process %d (%s): %w", p.pid, p.comm, err)
			}
			seen[p.pid], found = p.start, true
			c = append(c, h)
			if err := h.signal(unix.SIGSTOP); err != nil {
				return c, err
			}
		}
		if !found {
			return c, nil
		}
	}
}

// killAll ends everything that s selects, as a power cut would: all of it
// stands still before the first process dies, so that none can act upon the
// death of another.
func killAll(ctx context.Context, s selector) error {
	c, err := halt(s)
	defer c.close()
	return errors.Join(err, c.signal(unix.SIGKILL), c.await(ctx))
}

// await returns when every process of the crowd has ended.
func (c crowd) await(ctx context.Context) error {
	for _, h := range c {
		for {
			fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, int((100 * time.Millisecond).Milliseconds()))
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("waiting for process %d (%s) to end: %w", h.pid, h.comm, err)
			}
			if n > 0 {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("waiting for process %d (%s) to end: %w", h.pid, h.comm, context.Cause(ctx))
			}
		}
	}
	return nil
}
