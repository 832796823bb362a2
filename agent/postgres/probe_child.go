package postgres

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// probeName begins with PostgreSQL's prefix of temporary files, which
// pg_basebackup leaves out wherever it is, and pg_rewind below the data
// directory's top level. One that was left behind is written over by the next
// probe.
const probeName = "pgsql_tmp.lictor-probe"

// probeSize is one page of PostgreSQL.
const probeSize = 8192

// RunDiskProbe is the child's part of DiskProbe: it reports to out that it begins,
// writes into the data directory and, if that is on another filesystem, into the
// directory of the WAL, and those of tablespaces, and reports what became of it.
// An error says that it could not report.
func RunDiskProbe(dataDir string, out io.Writer) error {
	report := json.NewEncoder(out)
	if err := report.Encode(probeReport{Begins: true}); err != nil {
		return fmt.Errorf("reporting: %w", err)
	}
	found := probeReport{}
	if err := probeDisk(dataDir); err != nil {
		found = probeReport{Trouble: troubleOf(err), Problem: err.Error()}
	}
	if err := report.Encode(found); err != nil {
		return fmt.Errorf("reporting: %w", err)
	}
	return nil
}

func probeDisk(dataDir string) error {
	// Into base, where the name keeps it out of pg_rewind. A directory that is
	// empty, or not PostgreSQL's, has none and stays as it is.
	base, wal := filepath.Join(dataDir, "base"), filepath.Join(dataDir, "pg_wal")
	if err := probeWrite(base); err != nil {
		return err
	}
	var here, there syscall.Stat_t
	if err := syscall.Stat(base, &here); err != nil {
		return fmt.Errorf("looking at %s: %w", base, err)
	}
	if err := syscall.Stat(wal, &there); err != nil {
		return fmt.Errorf("looking at %s: %w", wal, err)
	}
	if here.Dev != there.Dev {
		if err := probeWrite(wal); err != nil {
			return err
		}
	}
	return probeTablespaces(dataDir, here.Dev, there.Dev)
}

// probeTablespaces writes to the disks of tablespaces that are not those, too. One that fails or hangs
// keeps checkpoints from ending. One that is full does not, nor would it be less so on another
// member: what only who writes there finds out is no trouble.
func probeTablespaces(dataDir string, known ...uint64) error {
	spaces, err := filepath.Glob(filepath.Join(dataDir, "pg_tblspc", "*"))
	if err != nil {
		return fmt.Errorf("looking for tablespaces: %w", err)
	}
	for _, space := range spaces {
		var at syscall.Stat_t
		err := syscall.Stat(space, &at)
		if err == nil && slices.Contains(known, at.Dev) {
			continue
		}
		known = append(known, at.Dev)
		if err == nil {
			err = probeUnnamed(space)
		}
		if trouble := troubleOf(err); trouble == DiskIOError || trouble == DiskReadOnly {
			return fmt.Errorf("tablespace %s: %w", space, err)
		}
	}
	return nil
}

// probeUnnamed writes a file without a name, where the file system has such files: one that were left
// behind would keep a clone from using the directory, and one that is there DROP TABLESPACE from
// removing it.
func probeUnnamed(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	return writePage(f)
}

// makeProbe makes the file with the mode that PostgreSQL's own files have beside it: a backup by the
// directory's group may meet it.
func makeProbe(path string) (*os.File, error) {
	mode := os.FileMode(0o600)
	if info, err := os.Stat(filepath.Dir(path)); err == nil && info.Mode().Perm()&groupAccess == groupAccess {
		mode = 0o640
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return nil, err
	}
	_ = f.Chmod(mode) // whatever the umask; one that somebody else has left has another owner
	return f, nil
}

func probeWrite(dir string) (err error) {
	path := filepath.Join(dir, probeName)
	f, err := makeProbe(path)
	if err != nil {
		return fmt.Errorf("making a file: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close(), os.Remove(path))
	}()
	return writePage(f)
}

func writePage(f *os.File) error {
	page := make([]byte, probeSize)
	// Not zeros: a filesystem that compresses would make a hole of them.
	if _, err := rand.Read(page); err != nil {
		return fmt.Errorf("making a page: %w", err)
	}
	if _, err := f.Write(page); err != nil {
		return fmt.Errorf("writing a page: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing a page: %w", err)
	}
	return nil
}

func troubleOf(err error) DiskTrouble {
	is := func(any ...syscall.Errno) bool {
		return slices.ContainsFunc(any, func(e syscall.Errno) bool { return errors.Is(err, e) })
	}
	switch {
	case is(syscall.EIO, syscall.ENXIO, syscall.ENODEV, syscall.EUCLEAN, syscall.ETIMEDOUT, syscall.ESHUTDOWN, syscall.ESTALE):
		return DiskIOError
	case is(syscall.EROFS):
		return DiskReadOnly
	case is(syscall.ENOSPC, syscall.EDQUOT):
		return DiskFull
	}
	return DiskUnusable
}
