package postgres

import (
	"path/filepath"
	"strconv"
	"strings"
)

// address is where the agent reaches its PostgreSQL: a directory of sockets or a host.
func (p *session) address() string {
	if dir := p.private.Load(); dir != nil {
		return *dir
	}
	if p.local.Load().UseUnixSocket {
		dirs := []string{p.runningSocketDir()}
		if dirs[0] == "" { // only then: this is asked with every look at PostgreSQL
			dirs = p.socketDirs()
		}
		for _, dir := range dirs {
			// A comma would be taken for the end of a host's name, as by libpq.
			if filepath.IsAbs(dir) && !strings.Contains(dir, ",") {
				return dir
			}
		}
	}
	return localHost(p.listenHosts)
}

// localHost is where this host reaches an instance that listens on hosts.
func localHost(hosts string) string {
	for host := range strings.SplitSeq(hosts, ",") {
		switch host = strings.TrimSpace(host); host {
		case "*", "0.0.0.0", "", "localhost", "127.0.0.1":
			return "127.0.0.1"
		case "::", "::1":
			return "::1"
		}
	}
	first, _, _ := strings.Cut(hosts, ",")
	return strings.TrimSpace(first)
}

// runningSocketDir is the first directory in which the running postmaster has a
// socket, as it says itself in the fifth line of postmaster.pid: what is configured
// may be in force only after the next restart. Empty: it has not said yet.
func (p *session) runningSocketDir() string {
	content, err := p.disk.ReadFile(p.inData("postmaster.pid"))
	if err != nil {
		return ""
	}
	lines := strings.Split(string(content), "\n")
	if len(lines) < 6 || strings.TrimSpace(lines[0]) != strconv.Itoa(p.process.pid()) {
		return ""
	}
	return strings.TrimSpace(lines[4])
}

// defaultSocketDir is where Debian's and Red Hat's builds have their sockets.
const defaultSocketDir = "/var/run/postgresql"

// socketDirs are the directories of unix_socket_directories, whichever file or layer
// they come from.
func (p *session) socketDirs() []string {
	dirs := []string{defaultSocketDir}
	for _, file := range p.ownConfs() {
		lines, err := p.readConf(file)
		if err != nil {
			continue // PostgreSQL itself tells what is wrong with it
		}
		if line, set := lastOf(lines, "unix_socket_directories"); set {
			dirs = splitDirectories(line.Value)
		}
	}
	return dirs
}

// splitDirectories takes a list of directories apart as PostgreSQL does
// (SplitDirectoriesString in src/backend/utils/adt/varlena.c): at commas, blanks
// around a name being left out, a name in double quotes as it is.
func splitDirectories(list string) []string {
	var dirs []string
	for list = strings.TrimLeft(list, " \t\n\r\f\v"); list != ""; {
		var dir string
		if rest, quoted := strings.CutPrefix(list, `"`); quoted {
			var b strings.Builder
			for {
				before, after, found := strings.Cut(rest, `"`)
				b.WriteString(before)
				if rest = after; !found || !strings.HasPrefix(rest, `"`) {
					break
				}
				b.WriteByte('"')
				rest = rest[1:]
			}
			dir = b.String()
			_, list, _ = strings.Cut(rest, ",")
		} else {
			dir, list, _ = strings.Cut(list, ",")
			dir = strings.TrimRight(dir, " \t\n\r\f\v")
		}
		if dir != "" {
			dirs = append(dirs, dir)
		}
		list = strings.TrimLeft(list, " \t\n\r\f\v")
	}
	return dirs
}
