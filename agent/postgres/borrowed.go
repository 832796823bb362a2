package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file is about links that a method has copied. A program that copies a data
// directory (cp -a, a snapshot) copies its links, too: PostgreSQL would write into the
// original's WAL and tablespaces, and a reinit would empty them.

// refuseBorrowed refuses what a method has left, if it leads to what was there before the
// method began. What was restored anew is younger, whatever time of change it was given.
func (p *dataDirectory) refuseBorrowed() error {
	m, err := p.marked()
	if err != nil {
		return err
	}
	if m == nil {
		return fmt.Errorf("the marker of unfinished work %s has gone, or the data directory is another one now", p.markerPath())
	}
	began := m.Began
	if began.IsZero() { // by an earlier version
		began = m.Made
	}
	if err := p.refuseHardLinks(); err != nil {
		return err
	}
	links, err := p.linksOut()
	if err != nil {
		return err
	}
	data, err := filepath.EvalSymlinks(p.dataDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, link := range links {
		path, err := filepath.EvalSymlinks(link)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // PostgreSQL says so itself
		case err != nil:
			return fmt.Errorf("what %s leads to: %w", link, err)
		case slices.Contains(m.Own, path), beneath(path, data) && path != data:
			continue
		}
		why, err := p.olderThan(link, path, began)
		if err == nil && why == "" {
			why = p.usedByOthers(path)
		}
		if err != nil {
			return fmt.Errorf("what %s leads to: %w", link, err)
		}
		if why != "" {
			return fmt.Errorf("the command has left the link %s to %s, which may be another data directory's: %s; "+
				"let the command copy what is there into a directory of this member's own, empty before, and change the link", link, path, why)
		}
	}
	return nil
}

// refuseHardLinks refuses a copy that shares its files with the original (cp -l, rsync
// --link-dest): PostgreSQL writes into the control file and its like in place.
func (p *dataDirectory) refuseHardLinks() error {
	for _, pattern := range []string{"global/*", "base/1/*", "pg_xact/*"} {
		files, _ := p.disk.Glob(p.inData(pattern)) // the pattern is a valid one
		for _, file := range files {
			var st unix.Stat_t
			if err := unix.Lstat(file, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 {
				return fmt.Errorf("the command has left %s as a hard link: PostgreSQL would write into another data directory's file, or into a backup; let the command copy the files", file)
			}
		}
	}
	return nil
}

// linksOut are the links of the data directory behind which PostgreSQL keeps data.
func (p *dataDirectory) linksOut() ([]string, error) {
	entries, err := p.disk.ReadDir(p.dataDir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	links, err := p.tablespaceLinks()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == "pg_stat_tmp": // nothing in it outlives PostgreSQL
		case name == "base", name == "global", strings.HasPrefix(name, "pg_") && filepath.Ext(name) == "":
			links = append(links, p.inData(name))
		}
	}
	return slices.DeleteFunc(links, func(path string) bool { return !isLink(path) }), nil
}

// olderThan says what of a directory to which a link leads is older than that time;
// nothing: empty.
func (p *dataDirectory) olderThan(link, path string, began time.Time) (string, error) {
	entries, err := p.disk.ReadDir(path)
	if err != nil {
		return "", err
	}
	tablespace := filepath.Dir(link) == p.inData("pg_tblspc")
	for _, e := range entries {
		if e.Name() == "lost+found" || tablespace && !p.inTablespace(e.Name()) {
			continue
		}
		made, err := madeAt(filepath.Join(path, e.Name()))
		if err != nil {
			return "", err
		}
		if made.Before(began.Add(-clocksDiffer)) {
			return fmt.Sprintf("%s in it was made %s, the command began %s", e.Name(), made.UTC().Format(time.RFC3339), began.Format(time.RFC3339)), nil
		}
	}
	return "", nil
}

// madeAt is when a file was made or, where the file system does not know, changed last:
// no program can set either.
func madeAt(path string) (time.Time, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME|unix.STATX_CTIME, &st); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", path, err)
	}
	at := st.Ctime
	if st.Mask&unix.STATX_BTIME != 0 {
		at = st.Btime
	}
	return time.Unix(at.Sec, int64(at.Nsec)), nil
}
