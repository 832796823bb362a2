// Package sysv frees what postmasters that were killed leave of System V's shared memory: each a
// segment of 56 bytes, of which the kernel has 4,096 (shmmni of proc_sys_kernel(5)). The next start
// in the same directory would free it; a test's directory is thrown away.
package sysv

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Remove removes the segments of the data directories that the patterns (filepath.Match) match,
// as far as their postmasters have ended. It is best effort.
func Remove(patterns ...string) {
	for _, pattern := range patterns {
		pidFiles, err := filepath.Glob(filepath.Join(pattern, "postmaster.pid"))
		if err != nil {
			continue
		}
		for _, path := range pidFiles {
			content, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			pid, id, ok := parse(string(content))
			if !ok {
				continue
			}
			var desc unix.SysvShmDesc
			if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &desc); err != nil {
				continue
			}
			if desc.Nattch == 0 && int(desc.Cpid) == pid {
				_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
			}
		}
	}
}

// parse reads the postmaster's pid (line 1 of postmaster.pid) and the id of its shared memory
// segment (line 7: key and id).
func parse(content string) (pid, shmID int, ok bool) {
	lines := strings.Split(content, "\n")
	if len(lines) < 7 {
		return 0, 0, false
	}
	keyAndID := strings.Fields(lines[6])
	if len(keyAndID) != 2 {
		return 0, 0, false
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(lines[0]))
	shmID, err2 := strconv.Atoi(keyAndID[1])
	return pid, shmID, err1 == nil && err2 == nil
}
