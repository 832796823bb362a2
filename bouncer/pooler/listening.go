package pooler

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

func socketPath(a pgbouncer.Address) string {
	return filepath.Join(a.Host, ".s.PGSQL."+strconv.Itoa(a.Port))
}

// socketTable reads one of the kernel's tables of sockets.
func socketTable(name string) ([]byte, error) { return os.ReadFile("/proc/self/net/" + name) }

// isListening reports whether anything listens where the console is, false only when that
// is sure: a PgBouncer that was told to end when its clients have gone takes no more.
func isListening(c config.Config, table func(name string) ([]byte, error)) bool {
	options, err := c.Admin()
	if err != nil || !c.IsBeside() {
		return true
	}
	if options.Address.IsUnix() {
		return listensAt(socketPath(options.Address), table)
	}
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := table(name)
		if err != nil && name == "tcp" {
			return true
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", options.Address.Port)) {
				return true
			}
		}
	}
	return false
}

// listensAt reports whether anything listens at a unix socket of that path, false only when
// that is sure. The kernel keeps the path when the file is removed.
func listensAt(path string, table func(name string) ([]byte, error)) bool {
	text, err := table("unix")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 8 && f[7] == path && f[3] == "00010000" {
			return true
		}
	}
	return err != nil
}

// door are the sockets by which a PgBouncer takes clients at its port. Its console is no
// sign of that: from 1.25 on the unix socket stays until the process has ended.
type door struct {
	pid, port int
	inodes    map[uint32]bool
}

// doorOf is that of the PgBouncer behind a console, nil where it cannot be seen: that takes
// its unix socket, and this process being its user or root.
func doorOf(c config.Config, conn *pgbouncer.Conn) *door {
	options, err := c.Admin()
	pid, known := conn.PID()
	if err != nil || !known {
		return nil
	}
	d := &door{pid, options.Address.Port, map[uint32]bool{}}
	listening, err := d.listening()
	if err != nil {
		return nil
	}
	own, err := socketsOf(pid)
	if err != nil {
		return nil
	}
	for _, l := range listening {
		if own[l.inode] {
			d.inodes[l.inode] = true
		}
	}
	if len(d.inodes) == 0 {
		return nil
	}
	return d
}

func (d *door) proc() string { return filepath.Join("/proc", strconv.Itoa(d.pid)) }

// listener is a socket that listens, as the kernel writes it.
type listener struct {
	address string
	inode   uint32
}

// overlaps reports whether clients who come to one of them may come to the other.
func (l listener) overlaps(o listener) bool {
	all := func(address string) bool { return strings.Trim(address, "0") == "" }
	return l.address == o.address || all(l.address) || all(o.address)
}

// listening are all sockets that listen at the port where the process is.
func (d *door) listening() (list []listener, err error) {
	port := fmt.Sprintf(":%04X", d.port)
	for _, name := range []string{"tcp", "tcp6"} {
		table, err := os.Open(filepath.Join(d.proc(), "net", name))
		if errors.Is(err, fs.ErrNotExist) && name == "tcp6" {
			continue // no IPv6 here
		} else if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(table)
		lines.Scan() // the heading
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			if len(f) < 10 || f[3] != "0A" {
				break // those that listen come first
			}
			address, at := strings.CutSuffix(f[1], port)
			if inode, err := strconv.ParseUint(f[9], 10, 32); at && err == nil {
				list = append(list, listener{address, uint32(inode)})
			}
		}
		if err := errors.Join(lines.Err(), table.Close()); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// closed reports whether no socket listens any more that did, for sure.
func (d *door) closed() bool {
	if d == nil {
		return false
	}
	listening, err := d.listening()
	return err == nil && !slices.ContainsFunc(listening, func(l listener) bool { return d.inodes[l.inode] })
}

// Strangers counts the sockets at the port of several PgBouncers that are of none of them:
// clients may come there, too. Zero, where that cannot be seen.
func Strangers(links []*Link) (n int) {
	ours := map[uint32]bool{}
	var of *door
	for _, l := range links {
		l.mu.Lock()
		up, d := l.state.Up, l.door
		l.mu.Unlock()
		switch {
		case !up:
			continue
		case d == nil:
			return 0
		}
		of = d
		maps.Copy(ours, d.inodes)
	}
	if of == nil {
		return 0
	}
	listening, err := of.listening()
	if err != nil {
		return 0
	}
	for _, l := range listening {
		if !ours[l.inode] && slices.ContainsFunc(listening, func(o listener) bool { return ours[o.inode] && l.overlaps(o) }) {
			n++
		}
	}
	return n
}
