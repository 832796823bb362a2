package postgres

import (
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/config"
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
			dirs = config.SplitDirectories(line.Value)
		}
	}
	return dirs
}
