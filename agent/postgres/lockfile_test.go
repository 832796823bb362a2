package postgres

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// A postmaster that is killed between making its lock files and writing them must
// not keep the next one from starting, for ever.
func TestStartAfterKillWhileLocking(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	socket := filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(p.port)+".lock")
	for _, path := range []string{p.inData("postmaster.pid"), socket} {
		must(t, os.WriteFile(path, nil, 0o600))
		if p.credential != nil {
			must(t, os.Chown(path, int(p.credential.Uid), int(p.credential.Gid)))
		}
	}
	// Somebody else's server may be starting: its lock is left alone at first.
	must(t, p.killLeftovers(ctx))
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("a fresh lock of a socket is gone: %v", err)
	}
	old := time.Now().Add(-emptyLockAge)
	must(t, os.Chtimes(socket, old, old))
	must(t, os.WriteFile(p.inData("postmaster.pid"), nil, 0o600))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	// What has content is PostgreSQL's own business.
	if text, err := os.ReadFile(socket); err != nil || len(text) == 0 {
		t.Errorf("the lock of the socket: %q, %v", text, err)
	}
	must(t, p.clearLocks())
	if _, err := os.Stat(p.inData("postmaster.pid")); err != nil {
		t.Error(err)
	}
}
