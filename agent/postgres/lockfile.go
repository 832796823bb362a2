package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/agent/fence"
)

// namedPostmaster is the process that postmaster.pid names, zero when there is no such
// file or it makes no sense. It may be anybody's by now.
func (p *processes) namedPostmaster() (int, error) {
	content, err := p.disk.ReadFile(p.inData("postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("postmaster.pid: %w", err)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 0 {
		return 0, nil //nolint:nilerr // a leftover
	}
	return pid, nil
}

// A postmaster that was killed between making a lock file and writing it, or whose
// host lost power, leaves it empty. PostgreSQL refuses to start as long as there is
// one (CreateLockFile in its miscinit.c), since it might belong to a server that is
// starting.

// emptyLockAge is how old the empty lock file of a socket must be to be taken for
// a leftover: the directory of sockets is shared with other instances, one of
// which might be starting just now.
const emptyLockAge = 10 * time.Second

// clearLocks clears lock files away that would keep PostgreSQL from starting although
// no process of the instance is left, which must be known when it is called.
func (p *processes) clearLocks(ctx context.Context) error {
	if err := p.removeEmptyLock(p.inData("postmaster.pid"), 0); err != nil {
		return err
	}
	if err := p.disbelieve(ctx, p.inData("postmaster.pid")); err != nil {
		return err
	}
	for _, dir := range p.socketDirs() {
		if !filepath.IsAbs(dir) {
			continue
		}
		socket := filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(p.port)+".lock")
		if err := p.removeEmptyLock(socket, emptyLockAge); err != nil {
			return err
		}
		if err := p.disbelieve(ctx, socket); err != nil {
			return err
		}
	}
	return nil
}

// nobody is a pid that no process has: the kernel's limit is lower (PID_MAX_LIMIT).
const nobody = 1 << 30

// disbelieve makes a lock file of this instance, or of nobody, name nobody when it names a living
// process: none is ours, so the pid was given again, after a crash of the host most
// often. PostgreSQL believes such a file as long as a process of its own user has that
// pid. The rest of the file stays: by it PostgreSQL looks for shared memory in use.
func (p *processes) disbelieve(ctx context.Context, path string) error {
	content, err := p.disk.ReadFile(path)
	if err != nil {
		return nil //nolint:nilerr // PostgreSQL itself tells what is wrong with it
	}
	lines := strings.Split(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 0 || len(lines) < 2 {
		return nil //nolint:nilerr // of no use
	}
	if filepath.Clean(lines[1]) != p.dataDir && filepath.Dir(path) != p.dataDir && !isAbandoned(ctx, path, pid) {
		return nil // not ours
	}
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return nil // PostgreSQL sees that itself
	}
	p.log.Warn().Int("pid", pid).Str("file", path).Msg("lock file names a process that is not PostgreSQL's; ignored")
	lines[0] = strconv.Itoa(nobody)
	if err := p.writeFile(path, strings.Join(lines, "\n")); err != nil {
		return fmt.Errorf("correcting a lock file that names a process of somebody else: %w", err)
	}
	return nil
}

// isAbandoned reports whether the lock of a socket, which names another data directory, is a leftover: one that was
// renamed since, perhaps. A PostgreSQL makes it and listens at once, so the process that it names is none, and nobody
// listens there.
func isAbandoned(ctx context.Context, lock string, pid int) bool {
	if fence.IsPostgres(pid) {
		return false
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", strings.TrimSuffix(lock, ".lock"))
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist)
}

// removeEmptyLock removes a file without content that is at least that old.
func (p *processes) removeEmptyLock(path string, age time.Duration) error {
	info, err := p.disk.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 0 || time.Since(info.ModTime()) < age {
		return nil //nolint:nilerr // PostgreSQL itself tells what is wrong with it
	}
	if err := p.disk.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the empty lock file that a killed PostgreSQL has left: %w", err)
	}
	return nil
}
