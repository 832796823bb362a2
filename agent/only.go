package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// onlyAgent makes sure that no other agent looks after the same data directory: two would
// stop, rewind and remove each other's PostgreSQL. The lock ends with the process, however
// that ends, and is not inherited by what it starts.
func onlyAgent(cfg config.Config, files osuser.User) (release func(), err error) {
	path := statePrefix(cfg) + "-agent"
	if err := files.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the agent's own files (set lictor.state_dir to one that can be written): %w", err)
	}
	f, err := files.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the agent's lock (set lictor.state_dir to a directory that can be written): %w", err)
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		_ = f.Close()
		return nil, fmt.Errorf("another agent runs for the data directory %s (it holds the lock on %s): "+
			"stop it, or give each member a postgresql.data_dir of its own, and, where their last parts are alike, a lictor.state_dir", cfg.Postgres.DataDir, path)
	case err != nil:
		_ = f.Close()
		return nil, fmt.Errorf("the agent's lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
