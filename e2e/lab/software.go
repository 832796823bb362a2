package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"
)

// DatabaseSoftware is what runs on a database host.
type DatabaseSoftware interface {
	// Install writes the configuration of one member below its directory and
	// returns the processes to run there, in order of start. It is called
	// before anything is started, when all addresses are known.
	Install(l *Lab, m *Member) ([]Spec, error)
}

// Lictor runs Lictor's agent on the database hosts.
type Lictor struct {
	// Edit, when set, may change a member's configuration before it is
	// written.
	Edit func(m *Member, config map[string]any)
}

// Install writes agent.yml.
func (s Lictor) Install(l *Lab, m *Member) ([]Spec, error) {
	program, err := l.Options.Programs.lictor()
	if err != nil {
		return nil, err
	}
	config := memberConfig(l, m)
	config["consul"] = map[string]any{"hosts": l.consulHostsFor(m)}
	if l.owner.asRoot {
		config["lictor"] = map[string]any{"os_user": l.owner.name}
	}
	if s.Edit != nil {
		s.Edit(m, config)
	}
	path := filepath.Join(m.Dir, "agent.yml")
	if err := writeYAML(l, path, config); err != nil {
		return nil, err
	}
	return []Spec{{Name: m.processName("agent"), Path: program, Args: []string{"agent", path}, Ready: m.answers}}, nil
}

// Patroni runs Debian's Patroni on the database hosts.
type Patroni struct {
	Path string // default /usr/bin/patroni
	// Edit, when set, may change a member's configuration before it is
	// written.
	Edit func(m *Member, config map[string]any)
}

// Install writes patroni.yml.
func (s Patroni) Install(l *Lab, m *Member) ([]Spec, error) {
	config := memberConfig(l, m)
	servers := l.ConsulHosts()
	for i, other := range m.Shard.members {
		if other == m { // Patroni knows one address: spread the members
			config["consul"] = map[string]any{"host": servers[i%len(servers)]}
		}
	}
	config["postgresql"].(map[string]any)["pgpass"] = filepath.Join(m.Dir, "pgpass")
	if s.Edit != nil {
		s.Edit(m, config)
	}
	path := filepath.Join(m.Dir, "patroni.yml")
	if err := writeYAML(l, path, config); err != nil {
		return nil, err
	}
	program := s.Path
	if program == "" {
		program = "/usr/bin/patroni"
	}
	return []Spec{{Name: m.processName("patroni"), Path: program, Args: []string{path}, Unprivileged: true, Ready: m.answers}}, nil
}

// answers tells whether the member's REST API does.
func (m *Member) answers(ctx context.Context) error {
	_, _, err := m.lab.request(ctx, "GET", "http://"+m.REST+"/liveness", nil, time.Second)
	return err
}

// memberConfig is the part of Patroni's schema in which all software agrees.
func memberConfig(l *Lab, m *Member) map[string]any {
	role := func(name, password string) map[string]any {
		return map[string]any{"username": name, "password": password}
	}
	restAPI := map[string]any{"listen": m.REST, "connect_address": m.REST}
	if l.network != nil {
		restAPI["allowlist"] = []any{networkPrefix} // who may change something must be said
	}
	return map[string]any{
		"scope":   m.Shard.Name,
		"name":    m.Name,
		"restapi": restAPI,
		"bootstrap": map[string]any{
			"dcs":    l.Options.dynamic(),
			"initdb": []any{map[string]any{"encoding": "UTF8"}, map[string]any{"locale": "C.UTF-8"}, "data-checksums"},
		},
		"postgresql": map[string]any{
			"listen":          m.Postgres,
			"connect_address": m.Postgres,
			"data_dir":        m.DataDir,
			"bin_dir":         l.Options.Programs.PostgresBin,
			"authentication": map[string]any{
				"superuser":   role(SuperuserRole, l.Secrets.Superuser),
				"replication": role(ReplicationRole, l.Secrets.Replication),
				"rewind":      role(RewindRole, l.Secrets.Rewind),
			},
			"pg_hba": []any{
				"local all all scram-sha-256",
				"host all all all scram-sha-256",
				fmt.Sprintf("host replication %s all scram-sha-256", ReplicationRole),
			},
			"use_unix_socket": true,
			"basebackup":      []any{map[string]any{"checkpoint": "fast"}},
			"parameters": map[string]any{
				"unix_socket_directories": m.SocketDir,
				"password_encryption":     "scram-sha-256",
				// In the data directory, so that a killed postmaster leaves
				// nothing of it elsewhere.
				"dynamic_shared_memory_type": "mmap",
			},
		},
		"log": map[string]any{"level": "INFO"},
	}
}

// WriteFile writes a file below a host's directory that belongs to the user of
// PostgreSQL, for software that brings its own configuration.
func (l *Lab) WriteFile(path string, content []byte, mode os.FileMode) error {
	return l.owner.write(path, content, mode)
}

// MakeDir makes a directory below a host's that belongs to the user of PostgreSQL.
func (l *Lab) MakeDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	return l.owner.own(path)
}

// writeYAML writes a configuration that holds passwords.
func writeYAML(l *Lab, path string, config map[string]any) error {
	content, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return l.owner.write(path, content, 0o600)
}

// portOf is the port of host:port, for formats that want the two apart.
func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return port
}
