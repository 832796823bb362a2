package logging

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// FileName is the log's name in log.dir.
const FileName = "lictor.log"

// Rotation says when a log file is put aside, and how many of these are kept.
type Rotation struct {
	Size int // bytes, which count by whole MiB
	Keep int
	Mode fs.FileMode
}

// file is a log file that is rotated. It is written with the rights of whoever can change what
// its path leads to: PostgreSQL's user may have put a link there for root to follow.
type file struct {
	owner  osuser.User
	out    *lumberjack.Logger
	failed io.Writer
}

// OpenFile opens the log file in a directory, which must be there. A line that cannot be written
// goes to failed.
func OpenFile(dir string, r Rotation, failed io.Writer) (io.WriteCloser, error) {
	path := filepath.Join(dir, FileName)
	f := &file{
		owner: osuser.Keeper(path), failed: failed,
		out: &lumberjack.Logger{Filename: path, MaxSize: max(1, (r.Size+1<<20-1)>>20), MaxBackups: r.Keep, LocalTime: true},
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("log.dir: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("log.dir: %s is no directory", dir)
	}
	// The one that is there lends the next ones its mode.
	err := f.owner.Do(func() error {
		first, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, r.Mode)
		if err != nil {
			return err
		}
		return errors.Join(first.Chmod(r.Mode), first.Close())
	})
	if err != nil {
		return nil, fmt.Errorf("log.dir: %w", err)
	}
	return f, nil
}

// Write implements io.Writer.
func (f *file) Write(line []byte) (int, error) {
	err := f.owner.Do(func() error {
		_, err := f.out.Write(line)
		return err
	})
	if err != nil {
		_, failed := f.failed.Write(line)
		return 0, errors.Join(err, failed)
	}
	return len(line), nil
}

// Close implements io.Closer.
func (f *file) Close() error { return f.out.Close() }
