package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// onlyAgent makes sure that no other agent looks after the same data directory: two would
// stop, rewind and remove each other's PostgreSQL; or the same postgresql.config_dir: each would
// write its own postgresql.conf over the other's. The locks end with the process, however
// that ends, and are not inherited by what it starts.
func onlyAgent(cfg config.Config, files osuser.User) (release func(), err error) {
	release, err = onlyAgentOfData(cfg, files)
	if err != nil || cfg.Postgres.ConfigDir == "" {
		return release, err
	}
	dir, err := files.OpenFile(cfg.Postgres.ConfigDir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return release, nil // what needs it tells of it
	}
	if err == nil {
		err = lock(dir, fmt.Sprintf("postgresql.config_dir %s", cfg.Postgres.ConfigDir),
			"stop it, or give each member a postgresql.config_dir of its own")
	}
	if err != nil {
		release()
		return nil, err
	}
	ofData := release
	return func() { ofData(); _ = dir.Close() }, nil
}

func onlyAgentOfData(cfg config.Config, files osuser.User) (release func(), err error) {
	path := statePrefix(cfg) + "-agent"
	if err := files.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the agent's own files (set lictor.state_dir to one that can be written): %w", err)
	}
	f, err := files.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the agent's lock (set lictor.state_dir to a directory that can be written): %w", err)
	}
	release = func() { _ = f.Close() }
	if err := lockData(f, cfg); err != nil {
		release()
		return nil, err
	}
	// Another agent may know the directory by another name, or have its files elsewhere.
	beside := besideData(cfg.Postgres.DataDir, files)
	if beside == path {
		return release, nil
	}
	second, err := files.OpenFile(beside, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return release, nil //nolint:nilerr // no agent of this user's can have its files there
	}
	release = func() { _, _ = f.Close(), second.Close() }
	if err := lockData(second, cfg); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// besideData is the lock beside the place where the data directory really is.
func besideData(dataDir string, files osuser.User) string {
	real, err := files.EvalSymlinks(dataDir)
	if err != nil { // it is not there yet
		real = filepath.Clean(dataDir)
		if parent, err := files.EvalSymlinks(filepath.Dir(real)); err == nil {
			real = filepath.Join(parent, filepath.Base(real))
		}
	}
	return filepath.Join(filepath.Dir(real), "."+filepath.Base(real)+".lictor-agent")
}

func lockData(f *os.File, cfg config.Config) error {
	return lock(f, "data directory "+cfg.Postgres.DataDir,
		"stop it, or give each member a postgresql.data_dir of its own, and, where their last parts are alike, a lictor.state_dir")
}

// lock takes the lock on an open file, for what an agent must have to itself. An error says what to do.
func lock(f *os.File, what, advice string) error {
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("another agent runs for the %s (it holds the lock on %s): %s", what, f.Name(), advice)
	case err != nil:
		return fmt.Errorf("the agent's lock %s: %w", f.Name(), err)
	}
	return nil
}
