package postgres

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// This file is about what lies in a data directory and is not its own: another file system
// that is mounted there, and another cluster's data directory. A removal would go into
// both.

// mayRemove says why a directory must not be removed or emptied with all that is in it.
func mayRemove(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := mountedIn(real); err != nil {
		return err
	}
	other, err := clusterInside(real)
	if err != nil {
		return err
	}
	if other != "" {
		return fmt.Errorf("%s in %s is the data directory of another cluster, and would be removed: move it elsewhere", other, dir)
	}
	return nil
}

// mountedIn says what is mounted in a directory, which may be a mount point itself.
func mountedIn(dir string) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if beneath(m, dir) && m != dir {
			return fmt.Errorf("%s is a mount point in %s, and what is mounted there would go with it: unmount it", m, dir)
		}
	}
	return nil
}

// mountPoints are the paths at which file systems are mounted (proc_pid_mountinfo(5)).
func mountPoints() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount points: %w", err)
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		const at = 4 // the field of the mount point
		if fields := strings.Fields(lines.Text()); len(fields) > at {
			points = append(points, unescape.Replace(fields[at]))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("mount points: %w", err)
	}
	return points, nil
}

// postgresDirectories are PostgreSQL's own in a data directory.
func postgresDirectories() []string {
	return []string{
		"base", "global", "pg_commit_ts", "pg_dynshmem", "pg_logical", "pg_multixact", "pg_notify", "pg_replslot", "pg_serial",
		"pg_snapshots", "pg_stat", "pg_stat_tmp", "pg_subtrans", "pg_tblspc", "pg_twophase", "pg_wal", "pg_xact",
	}
}

// insideDepth is how deep another data directory is looked for.
const insideDepth = 4

// clusterInside finds another data directory in one, where PostgreSQL itself puts none.
func clusterInside(dir string) (found string, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		below, _ := filepath.Rel(dir, path)
		parts := strings.Split(below, string(filepath.Separator))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission) && path != dir:
			return fs.SkipDir // it has gone, or it is not PostgreSQL's
		case err != nil:
			return err
		case !e.IsDir(), path == dir:
			return nil
		case slices.Contains(postgresDirectories(), parts[0]), parts[0] == "lost+found":
			return fs.SkipDir
		}
		switch cluster, err := there(os.Lstat, filepath.Join(path, "global", "pg_control")); {
		case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOTDIR):
			// Not PostgreSQL's, or global is a file.
		case err != nil:
			return err
		case cluster:
			found = path
			return fs.SkipAll
		}
		if len(parts) >= insideDepth {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("looking for another data directory in %s: %w", dir, err)
	}
	return found, nil
}
