package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// This file is about data directories that a method makes itself.

// absent reports whether there is no data directory.
func (p *dataDirectory) absent() bool {
	_, err := p.disk.Lstat(p.dataDir)
	return errors.Is(err, fs.ErrNotExist)
}

// removeEmpty removes the empty data directory, so that a method can make it, and marks
// that. A link or a mount point stays, and a directory that PostgreSQL's user could not
// make again.
func (p *dataDirectory) removeEmpty(m marker) (removed bool, err error) {
	info, err := p.disk.Lstat(p.dataDir)
	if err != nil {
		return false, fmt.Errorf("data directory: %w", err)
	}
	if !info.IsDir() || !p.makesFilesIn(filepath.Dir(p.dataDir)) {
		return false, nil
	}
	if err := p.disk.Do(func() error { return syscall.Rmdir(p.dataDir) }); err != nil {
		return false, nil //nolint:nilerr // a mount point, or lost+found is in it: it stays
	}
	return true, p.keepMarker(m)
}

// makesFilesIn reports whether PostgreSQL's user may make a file in a directory.
func (p *dataDirectory) makesFilesIn(dir string) bool {
	const write, search = 2, 1
	if p.credential == nil {
		return syscall.Access(dir, write|search) == nil
	}
	info, err := p.disk.Stat(dir)
	if err != nil {
		return false
	}
	owner, known := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	switch {
	case !known:
		return false
	case owner.Uid == p.credential.Uid:
		mode >>= 6
	case owner.Gid == p.credential.Gid:
		mode >>= 3
	}
	return mode&(write|search) == write|search
}

// recogniseEvery is how often a method is looked at that has still to make the data
// directory.
const recogniseEvery = 50 * time.Millisecond

// recognise notes in the marker which directory a method makes, as soon as it does. The
// function that it returns ends that and says whether one was made.
func (p *dataDirectory) recognise(m marker) (stop func() (made bool, err error)) {
	known := ""
	look := func() error {
		id, err := identity(p.dataDir)
		if errors.Is(err, fs.ErrNotExist) || err == nil && id == known {
			return nil
		}
		if err == nil {
			if err = p.keepMarker(m); err == nil {
				known = id
			}
		}
		return err
	}
	end := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(recogniseEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = look() // stop looks again, and says
			case <-end:
				return
			}
		}
	})
	return func() (bool, error) {
		close(end)
		watching.Wait()
		err := look()
		return known != "", err
	}
}

// closeToOthers takes rights from the data directory with which PostgreSQL would not
// start: a method may have made it with any.
func (p *dataDirectory) closeToOthers() error {
	info, err := p.disk.Stat(p.dataDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	const most = 0o750
	if info.Mode().Perm()&^most == 0 {
		return nil
	}
	if err := p.disk.Do(func() error { return os.Chmod(p.dataDir, info.Mode().Perm()&most) }); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}
