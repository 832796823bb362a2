package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// emptyLockAge is how old the empty lock file of a socket must be to be taken for
// a leftover: the directory of sockets is shared with other instances, one of
// which might be starting just now.
const emptyLockAge = 10 * time.Second

// removeEmptyLocks removes lock files that a postmaster has made and not yet
// written when it was killed, or its host lost power. PostgreSQL refuses to start
// as long as there is one (CreateLockFile in its miscinit.c), since it might
// belong to a server that is starting; it has to be called when no process of the
// instance is left.
func (p *Instance) removeEmptyLocks() error {
	if err := removeEmpty(p.inData("postmaster.pid"), 0); err != nil {
		return err
	}
	for _, dir := range p.socketDirs() {
		if !filepath.IsAbs(dir) {
			continue
		}
		if err := removeEmpty(filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(p.port)+".lock"), emptyLockAge); err != nil {
			return err
		}
	}
	return nil
}

// removeEmpty removes a file without content that is at least that old.
func removeEmpty(path string, age time.Duration) error {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 0 || time.Since(info.ModTime()) < age {
		return nil //nolint:nilerr // PostgreSQL itself tells what is wrong with it
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the empty lock file that a killed PostgreSQL has left: %w", err)
	}
	return nil
}
