package install

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A failover waits for no fsync, which flushes the disk's cache and has the file system's
// journal committed: some milliseconds where nothing else is written, seconds where much is.
// It is enough that the new file's content is on its way to the disk before the name is.

// writeOut sees to it that a file which takes another's place next is whole after a power cut,
// or the other one is still there.
func writeOut(file *os.File) error {
	if !keepsOrder(file) {
		return file.Sync()
	}
	// When this returns the content was written to the disk, perhaps to its cache, and the
	// file's size and blocks are in the journal. So will be the new name, later: a journal
	// keeps the order of changes, and flushes the disk's cache before it commits them.
	if err := unix.SyncFileRange(int(file.Fd()), 0, 0,
		unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER); err != nil {
		return fmt.Errorf("writing %s out: %w", file.Name(), err)
	}
	return nil
}

// keepsOrder reports whether a file lies on a file system for which writeOut was tried with
// power cuts (e2e/vm), or which no power cut survives.
func keepsOrder(file *os.File) bool {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &stat); err != nil {
		return false
	}
	switch uint32(stat.Type) {
	case unix.XFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	case unix.EXT4_SUPER_MAGIC:
		return hasJournal(file)
	}
	return false
}

// hasJournal reports whether the ext4 that a file lies on has a journal, as far as that is known.
func hasJournal(file *os.File) bool {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return false
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev)))
	if err != nil {
		return false
	}
	task, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "journal_task"))
	return err == nil && !strings.HasPrefix(string(task), "<none>")
}
