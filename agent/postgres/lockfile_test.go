package postgres

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
	must(t, p.clearLocks(ctx))
	if _, err := os.Stat(p.inData("postmaster.pid")); err != nil {
		t.Error(err)
	}
}

// The lock of a socket may name a data directory that was renamed since, and a process that has got its
// number from the kernel again. It is believed while somebody listens there.
func TestSocketLockOfAnotherDirectory(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	must(t, os.Mkdir(p.dataDir, 0o700))
	put(t, p.inData("postgresql.conf"), "unix_socket_directories = '"+dir+"'\n")
	socket := filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(p.port))
	other := exec.Command("sleep", "600")
	must(t, other.Start())
	t.Cleanup(func() {
		must(t, other.Process.Kill())
		_ = other.Wait() // it was killed
	})
	lock := strconv.Itoa(other.Process.Pid) + "\n/var/lib/renamed\n1\n5432\n" + dir + "\n"
	names := func(want int, when string) {
		t.Helper()
		give(t, p, dir)
		must(t, p.clearLocks(ctx))
		content, err := os.ReadFile(socket + ".lock")
		must(t, err)
		if first, _, _ := strings.Cut(string(content), "\n"); first != strconv.Itoa(want) {
			t.Errorf("%s: it names %s, not %d", when, first, want)
		}
	}
	put(t, socket+".lock", lock)
	listener, err := net.Listen("unix", socket)
	must(t, err)
	names(other.Process.Pid, "somebody listens")
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, listener.Close())
	names(nobody, "nobody listens")
	put(t, socket+".lock", lock)
	must(t, os.Remove(socket))
	names(nobody, "there is no socket")
}
