package lab

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// Bouncer is a host that runs PgBouncer and what keeps its routes right.
type Bouncer struct {
	*Host
	PgBouncer string // host:port
	// API is where Lictor's bouncer answers GET /health and /status.
	API string // host:port
	// ConfigPath is pgbouncer.ini, AuthFile the list of users.
	ConfigPath, AuthFile string
}

// PoolerSoftware is what runs on a PgBouncer host.
type PoolerSoftware interface {
	// Install writes the configuration below the host's directory and returns
	// the processes to run there, in order of start.
	Install(l *Lab, b *Bouncer) ([]Spec, error)
	// Health is the host:port whose GET /health tells the load balancer
	// whether this pooler may have clients; empty: PgBouncer's own port is
	// tried instead.
	Health(b *Bouncer) string
}

func (l *Lab) addBouncer(ctx context.Context, number int) error {
	host, err := l.addHost(ctx, "pooler"+strconv.Itoa(number+1))
	if err != nil {
		return err
	}
	b := &Bouncer{
		Host: host, ConfigPath: filepath.Join(host.Dir, "pgbouncer.ini"), AuthFile: filepath.Join(host.Dir, "userlist.txt"),
	}
	if b.PgBouncer, err = host.ListenAddress(pgbouncerPort); err != nil {
		return err
	}
	if b.API, err = host.ListenAddress(bouncerPort); err != nil {
		return err
	}
	l.bouncers = append(l.bouncers, b)
	return nil
}

// PgBouncerSpec writes a first configuration of PgBouncer, in which no database
// has a host yet, and returns the process. Software that keeps the routes
// replaces the file.
func (b *Bouncer) PgBouncerSpec(databases ...string) (Spec, error) {
	host, port, err := net.SplitHostPort(b.PgBouncer)
	if err != nil {
		return Spec{}, fmt.Errorf("address of PgBouncer: %w", err)
	}
	config := fmt.Sprintf(`[databases]
%s

[pgbouncer]
listen_addr = %s
listen_port = %s
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
admin_users = %s
pool_mode = transaction
server_connect_timeout = 2
server_login_retry = 0.2
`, strings.Join(databases, "\n"), host, port, b.AuthFile, PoolerRole)
	if err := b.lab.owner.write(b.ConfigPath, []byte(config), 0o640); err != nil {
		return Spec{}, err
	}
	// Plain passwords serve both sides: clients are checked against them and
	// PgBouncer logs in to PostgreSQL with them.
	users := fmt.Sprintf("%q %q\n%q %q\n", AppRole, b.lab.Secrets.App, PoolerRole, b.lab.Secrets.Pooler)
	if err := b.lab.owner.write(b.AuthFile, []byte(users), 0o600); err != nil {
		return Spec{}, err
	}
	return Spec{
		Name: "pgbouncer", Path: b.lab.Options.Programs.PgBouncer, Args: []string{b.ConfigPath}, Unprivileged: true,
		Ready: func(ctx context.Context) error {
			conn, err := b.lab.Dial(ctx, "tcp", b.PgBouncer)
			if err != nil {
				return err
			}
			return conn.Close()
		},
	}, nil
}

// PlainPgBouncer runs PgBouncer alone, with routes that never change.
type PlainPgBouncer struct {
	// Route gives the host:port for a shard's database.
	Route func(s *Shard) string
}

// Install writes pgbouncer.ini.
func (p PlainPgBouncer) Install(l *Lab, b *Bouncer) ([]Spec, error) {
	var databases []string
	for _, s := range l.shards {
		host, port, err := net.SplitHostPort(p.Route(s))
		if err != nil {
			return nil, fmt.Errorf("route of %s: %w", s.Name, err)
		}
		databases = append(databases, fmt.Sprintf("%s = host=%s port=%s", s.Name, host, port))
	}
	spec, err := b.PgBouncerSpec(databases...)
	return []Spec{spec}, err
}

// Health is empty: nothing but PgBouncer itself can be asked.
func (PlainPgBouncer) Health(*Bouncer) string { return "" }

// LictorBouncer runs PgBouncer with Lictor's bouncer.
type LictorBouncer struct {
	// Edit, when set, may change the configuration before it is written.
	Edit func(b *Bouncer, config map[string]any)
}

// Install writes bouncer.yml.
func (s LictorBouncer) Install(l *Lab, b *Bouncer) ([]Spec, error) {
	program, err := l.Options.Programs.lictor()
	if err != nil {
		return nil, err
	}
	pgbouncer, err := b.PgBouncerSpec()
	if err != nil {
		return nil, err
	}
	var shards []any
	for _, shard := range l.shards {
		shards = append(shards, map[string]any{"scope": shard.Name, "databases": []any{shard.Name}})
	}
	config := map[string]any{
		"name":   b.Name,
		"consul": map[string]any{"hosts": l.ConsulHosts()},
		"listen": b.API,
		"pgbouncer": map[string]any{
			"config": b.ConfigPath,
			"admin":  b.PgBouncer,
			"user":   PoolerRole,
		},
		"shards": shards,
	}
	if s.Edit != nil {
		s.Edit(b, config)
	}
	path := filepath.Join(b.Dir, "bouncer.yml")
	if err := writeYAML(l, path, config); err != nil {
		return nil, err
	}
	bouncer := Spec{Name: "bouncer", Path: program, Args: []string{"bouncer", path}}
	return []Spec{pgbouncer, bouncer}, nil
}

// Health is the bouncer's own.
func (LictorBouncer) Health(b *Bouncer) string { return b.API }
