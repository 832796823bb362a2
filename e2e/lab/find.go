package lab

import (
	"bytes"
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

// ProcessInfo is a process of a host, whoever started it.
type ProcessInfo struct {
	PID, PPID int
	Comm      string // the kernel's name for it
	// Args is its command line. PostgreSQL's says what the process does.
	Args []string

	start uint64
}

// Find lists the host's processes for which match is true, in order of their
// pids: children of what the lab started, too, and orphans.
func (h *Host) Find(match func(ProcessInfo) bool) ([]ProcessInfo, error) {
	procs, err := scanProcs()
	if err != nil {
		return nil, err
	}
	var found []ProcessInfo
	for _, p := range h.selector().choose(procs) {
		cmdline, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "cmdline"))
		if err != nil {
			continue // it ended meanwhile
		}
		args := strings.Split(string(bytes.TrimRight(cmdline, "\x00")), "\x00")
		info := ProcessInfo{PID: p.pid, PPID: p.ppid, Comm: p.comm, Args: args, start: p.start}
		if match(info) {
			found = append(found, info)
		}
	}
	slices.SortFunc(found, func(a, b ProcessInfo) int { return a.PID - b.PID })
	return found, nil
}

// Signal sends a signal to the process, and to no later one that got its pid.
// A process that has ended is os.ErrProcessDone.
func (i ProcessInfo) Signal(sig syscall.Signal) error {
	held, err := openProc(proc{pid: i.PID, start: i.start, comm: i.Comm})
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending %v to process %d (%s): %w", sig, i.PID, i.Comm, os.ErrProcessDone)
	}
	if err != nil {
		return fmt.Errorf("sending %v to process %d (%s): %w", sig, i.PID, i.Comm, err)
	}
	return errors.Join(held.signal(sig), unix.Close(held.fd))
}

// Postmaster finds the member's running postmaster.
func (m *Member) Postmaster() (ProcessInfo, error) {
	pid, err := m.PostmasterPID()
	if err != nil {
		return ProcessInfo{}, err
	}
	found, err := m.Find(func(i ProcessInfo) bool { return i.PID == pid })
	if err != nil {
		return ProcessInfo{}, err
	}
	if len(found) != 1 {
		return ProcessInfo{}, fmt.Errorf("postmaster of %s: process %d, which its lock file names, does not run", m.Name, pid)
	}
	return found[0], nil
}
