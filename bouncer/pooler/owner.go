package pooler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// errOwner says that the kernel does not show which process PgBouncer is.
var errOwner = errors.New("it cannot be seen which attempts to connect are PgBouncer's; run the bouncer as PgBouncer's user")

// ownSockets are the inodes of the sockets of the PgBouncer behind a console.
func ownSockets(ctx context.Context, conn *pgbouncer.Conn) (map[uint32]bool, error) {
	if pid, known := conn.PID(); known {
		own, err := socketsOf(pid)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errOwner, err)
		}
		return own, nil
	}
	local, remote, isTCP := conn.Ends()
	if !isTCP {
		return nil, errOwner
	}
	// PgBouncer has the other end of the connection.
	var end uint32
	found, err := anySocket(ctx, func(s tcpSocket) bool {
		end = s.inode
		return s.local == remote && s.remote == local
	})
	if err != nil || !found {
		return nil, errors.Join(errOwner, err)
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOwner, err)
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue // no process
		}
		if own, err := socketsOf(pid); err == nil && own[end] { // those of others are not to be seen
			return own, nil
		}
	}
	return nil, errOwner
}

// socketsOf are the inodes of the sockets that a process has. To see them takes being its user, or
// root.
func socketsOf(pid int) (map[uint32]bool, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("sockets of process %d: %w", pid, err)
	}
	inodes := map[uint32]bool{}
	for _, f := range files {
		to, err := os.Readlink(filepath.Join(dir, f.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		number, isSocket := strings.CutPrefix(to, "socket:[")
		if inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32); isSocket && err == nil {
			inodes[uint32(inode)] = true
		}
	}
	return inodes, nil
}
