package logging

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// FileName is the log's name in log.dir.
const FileName = "lictor.log"

// Rotation says when a log file is put aside, and how many of these are kept.
type Rotation struct {
	Size int // bytes
	Keep int
	Mode fs.FileMode
}

// file is a log file that is rotated. All that is done to it and its directory is done in Write,
// with the rights of whoever can change what its path leads to: PostgreSQL's user may have put
// a link there for root to follow.
type file struct {
	dir      string
	owner    osuser.User
	rotation Rotation
	failed   io.Writer

	out  *os.File // nil after a failure
	size int64
}

// OpenFile opens the log file in a directory, which must be there. A line that cannot be written
// goes to failed. Of its methods one runs at a time.
func OpenFile(dir string, r Rotation, failed io.Writer) (io.WriteCloser, error) {
	f := &file{dir: dir, owner: osuser.Keeper(filepath.Join(dir, FileName)), rotation: r, failed: failed}
	err := f.owner.Do(func() error {
		if info, err := os.Stat(dir); err != nil {
			return err
		} else if !info.IsDir() {
			return fmt.Errorf("%s is no directory", dir)
		}
		return f.open()
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("log.dir: %w", err), f.Close())
	}
	return f, nil
}

// Write implements io.Writer.
func (f *file) Write(line []byte) (int, error) {
	err := f.owner.Do(func() error { return f.write(line) })
	if err != nil {
		_, failed := f.failed.Write(line)
		return 0, errors.Join(err, failed)
	}
	return len(line), nil
}

// Close implements io.Closer.
func (f *file) Close() error {
	if f.out == nil {
		return nil
	}
	err := f.out.Close()
	f.out = nil
	return err
}

func (f *file) write(line []byte) error {
	if f.out == nil {
		if err := f.open(); err != nil {
			return err
		}
	}
	if f.size > 0 && f.size+int64(len(line)) > int64(f.rotation.Size) {
		if err := f.rotate(); err != nil {
			return err
		}
	}
	n, err := f.out.Write(line)
	f.size += int64(n)
	return err
}

// open opens the file, or makes it.
func (f *file) open() error {
	out, err := os.OpenFile(filepath.Join(f.dir, FileName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, f.rotation.Mode)
	if err != nil {
		return err
	}
	info, err := out.Stat()
	if err == nil && info.Mode().Perm() != f.rotation.Mode {
		err = out.Chmod(f.rotation.Mode)
	}
	if err != nil {
		return errors.Join(err, out.Close())
	}
	f.out, f.size = out, info.Size()
	return nil
}

// asideFormat is the local time in the name of a file that was put aside.
const asideFormat = "lictor-2006-01-02T15-04-05.000.log"

// rotate puts the file aside, begins the next one, and removes the oldest of those that were put
// aside, but for as many as are kept.
func (f *file) rotate() error {
	if err := f.Close(); err != nil {
		return err
	}
	// What is removed is in the directory that was read, whatever has taken its place.
	dir, err := os.OpenRoot(f.dir)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // nothing is written by it
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return err
	}
	// The names tell their order, though the clock may have been put back.
	var aside []time.Time
	for _, e := range entries {
		if at, err := time.Parse(asideFormat, e.Name()); err == nil && at.Format(asideFormat) == e.Name() && e.Type().IsRegular() {
			aside = append(aside, at)
		}
	}
	slices.SortFunc(aside, time.Time.Compare)
	name := time.Now().Format(asideFormat)
	if last := len(aside) - 1; last >= 0 && name <= aside[last].Format(asideFormat) {
		name = aside[last].Add(time.Millisecond).Format(asideFormat)
	}
	if err := dir.Rename(FileName, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := f.open(); err != nil {
		return err
	}
	if kept := max(1, f.rotation.Keep) - 1; kept < len(aside) { // beside the one that was just put there
		for _, at := range aside[:len(aside)-kept] {
			err = errors.Join(err, dir.Remove(at.Format(asideFormat)))
		}
	}
	if err != nil { // which keeps no line out of the log
		fmt.Fprintf(f.failed, "log.dir: removing what is no longer kept: %v\n", err)
	}
	return nil
}
