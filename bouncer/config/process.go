package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Process is one of several processes of PgBouncer that share a port.
type Process struct {
	// Admin is the directory of this process's own unix socket and the port, /run/pgbouncer/1:6432.
	Admin string `mapstructure:"admin"`
	// Config is the path of the pgbouncer.ini that is written for this process.
	Config string `mapstructure:"config"`
	// Settings go over pgbouncer.settings for this process alone: pidfile, logfile.
	Settings map[string]any `mapstructure:"settings"`
}

// Each is the configuration for every process of PgBouncer by itself: that process is the
// only one in it.
func (c Config) Each() []Config {
	processes := c.PgBouncer.Processes
	if len(processes) == 0 {
		return []Config{c}
	}
	peers, first := c.PgBouncer.Peers, c.PgBouncer.PeerID
	if len(peers) == 0 && len(processes) > 1 {
		peers, first = make([]string, len(processes)), 1
	}
	peers = slices.Clone(peers)
	for i, p := range processes {
		if at := first + i; at >= 1 && at <= len(peers) { // validated
			peers[at-1] = p.Admin // the port leads to any of them
		}
	}
	each := make([]Config, len(processes))
	for i, p := range processes {
		one := c
		one.listed = true
		one.PgBouncer.Processes, one.PgBouncer.Admin, one.PgBouncer.Config, one.PgBouncer.Peers = nil, p.Admin, p.Config, peers
		one.PgBouncer.Settings = map[string]any{"so_reuseport": 1}
		maps.Copy(one.PgBouncer.Settings, c.PgBouncer.Settings)
		maps.Copy(one.PgBouncer.Settings, p.Settings)
		if len(peers) > 0 {
			one.PgBouncer.PeerID = first + i
		}
		each[i] = one
	}
	return each
}

// Listed reports whether PgBouncer is one of those that pgbouncer.processes lists, so that
// whoever else has its port is known.
func (c Config) Listed() bool { return c.listed }

// validateProcesses checks what several processes must not share.
func (p PgBouncer) validateProcesses(bad *problems) {
	for _, one := range []struct {
		name string
		set  bool
	}{{"config", p.Config != ""}, {"admin", p.Admin != ""}, {"command", len(p.Command) > 0}} {
		if one.set {
			bad.add("pgbouncer."+one.name, nil, "must not be set together with pgbouncer.processes: it is about one process")
		}
	}
	for _, name := range ownSettings() {
		if _, set := p.Settings[name]; set {
			bad.add("pgbouncer.settings."+name, nil, "must not be set: the bouncer sets it, for each process by itself")
		}
	}
	if _, set := p.Settings["pidfile"]; set && len(p.Processes) > 1 {
		bad.add("pgbouncer.settings.pidfile", nil, "must be set in the settings of each of pgbouncer.processes instead: none starts with the file of another")
	}
	var port int
	taken := map[string]int{}
	for i, one := range p.Processes {
		at := fmt.Sprintf("pgbouncer.processes[%d].", i)
		address, err := pgbouncer.ParseAddress(one.Admin)
		switch {
		case err != nil || !address.IsUnix():
			bad.add(at+"admin", one.Admin, "must be the directory of the process's unix socket and the port, /run/pgbouncer/%d:6432: behind an address of the port any of them may answer", i+1)
		case port != 0 && address.Port != port:
			bad.add(at+"admin", one.Admin, "must have the port of the others, %d", port)
		default:
			port = address.Port
		}
		if !filepath.IsAbs(one.Config) {
			bad.add(at+"config", one.Config, "must be an absolute path: that of the pgbouncer.ini to write")
		}
		for _, own := range [][2]string{{"admin", address.Host}, {"config", one.Config}} {
			field, value := own[0], own[1]
			if first, twice := taken[field+value]; twice && value != "" {
				bad.add(at+field, value, "is already that of pgbouncer.processes[%d]: each process has its own", first)
			}
			taken[field+value] = i
		}
		checkSettings(at+"settings.", one.Settings, bad)
		for _, name := range ownSettings() {
			if _, set := one.Settings[name]; set {
				bad.add(at+"settings."+name, nil, "must not be set: the bouncer sets it")
			}
		}
		if !isOn(one.Settings["so_reuseport"], true) {
			bad.add(at+"settings.so_reuseport", nil, "must be on, as the processes share the port")
		}
	}
	if !isOn(p.Settings["so_reuseport"], true) {
		bad.add("pgbouncer.settings.so_reuseport", nil, "must be on, as the processes share the port")
	}
}

// ownSettings are those by which the bouncer tells processes apart.
func ownSettings() []string { return []string{"listen_port", "peer_id", "unix_socket_dir"} }

// isOn reports whether a setting is on; unset is what it is when it is not there.
func isOn(value any, unset bool) bool {
	if value == nil {
		return unset
	}
	return IsOn(settingValue(value))
}
