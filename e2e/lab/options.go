package lab

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// Substrate is what the hosts of a lab are made of.
type Substrate string

const (
	// Loopback hosts are ports of 127.0.0.1; no privileges are needed.
	Loopback Substrate = "loopback"
	// Netns hosts are network namespaces; only root can make them.
	Netns Substrate = "netns"
)

// Options say what to build. The zero value of a field means its default.
type Options struct {
	// Dir holds everything that the lab writes. It is made if need be; it must
	// be empty or hold the leftovers of an earlier lab, which are removed.
	Dir       string
	Substrate Substrate // Loopback

	Shards  int // 1
	Members int // members of each shard, 3
	// Hosts is how many database hosts there are: all shards have members on them, each
	// beginning one host further. 0: each member has a host of its own.
	Hosts         int
	Bouncers      int // PgBouncer hosts, 2; negative: none, and no load balancer
	ConsulServers int // 3
	// ConsulOnMembers puts the Consul servers on the hosts of the first members
	// instead of on hosts of their own; a member asks the server on its own
	// host first. It needs Netns and at least as many members as servers.
	ConsulOnMembers bool
	// Sites gives each shard a Consul server of its own, instead of ConsulServers that all share: each is a
	// site that knows nothing of the others.
	Sites bool
	// VolumeMB, when set, gives each member's data directory a file system of
	// its own of that many megabytes. It needs root.
	VolumeMB int

	// TTL, LoopWait and RetryTimeout, in seconds, become the shards' dynamic
	// configuration; zero: the agents' own default.
	TTL, LoopWait, RetryTimeout int
	// Async switches synchronous mode off, which is on otherwise.
	Async bool
	// Dynamic is merged over the dynamic configuration that the fields above
	// make, map by map; a nil value removes a key.
	Dynamic map[string]any
	// Parameters are added to PostgreSQL's.
	Parameters map[string]any

	Programs Programs

	// Database is what runs on the database hosts; nil: Lictor's agent.
	Database DatabaseSoftware
	// Pooler is what runs on the PgBouncer hosts; nil: PgBouncer with Lictor's
	// bouncer.
	Pooler PoolerSoftware

	// Progress, when set, is told what is being done, one line at a time. It
	// may be called from several goroutines at once.
	Progress func(line string)
}

// Programs are the paths of the programs that a lab runs; empty ones are looked
// up by Find.
type Programs struct {
	Lictor      string // bin/lictor
	Consul      string
	PostgresBin string // the directory that holds postgres, initdb, ...
	PgBouncer   string
	HAProxy     string
}

func (o Options) withDefaults() Options {
	set := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	set(&o.Shards, 1)
	set(&o.Members, 3)
	set(&o.Bouncers, 2)
	set(&o.ConsulServers, 3)
	if o.Sites {
		o.ConsulServers = o.Shards
	}
	o.Bouncers = max(o.Bouncers, 0)
	if o.Substrate == "" {
		o.Substrate = Loopback
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("dir: must be set"))
	}
	switch o.Substrate {
	case Loopback:
	case Netns:
		if os.Geteuid() != 0 {
			errs = append(errs, errors.New("substrate: netns needs root; use loopback"))
		}
	default:
		errs = append(errs, fmt.Errorf("substrate: %q, must be loopback or netns", o.Substrate))
	}
	if o.ConsulOnMembers && (o.Substrate != Netns || o.ConsulServers > o.Shards*o.Members) {
		errs = append(errs, fmt.Errorf("consul_on_members: needs substrate netns and %d members", o.ConsulServers))
	}
	if o.VolumeMB != 0 && (os.Geteuid() != 0 || o.VolumeMB < 300) {
		errs = append(errs, fmt.Errorf("volume_mb: %d; volumes need root and at least 300 MB", o.VolumeMB))
	}
	if o.Hosts != 0 && (o.Hosts < o.Members || o.VolumeMB != 0 || o.ConsulOnMembers) {
		errs = append(errs, fmt.Errorf("hosts: %d; a shard has %d members, each on another host, with neither volumes nor Consul there", o.Hosts, o.Members))
	}
	for name, value := range map[string]int{"shards": o.Shards, "members": o.Members, "consul_servers": o.ConsulServers} {
		if value < 1 || value > 50 {
			errs = append(errs, fmt.Errorf("%s: %d, must be from 1 to 50", name, value))
		}
	}
	return errors.Join(errs...)
}

// dynamic is the dynamic configuration that a new shard gets.
func (o Options) dynamic() map[string]any {
	d := map[string]any{
		"synchronous_mode": !o.Async,
		"postgresql": map[string]any{
			"use_pg_rewind": true,
			"parameters": map[string]any{
				"max_connections":    100,
				"shared_buffers":     "32MB",
				"wal_log_hints":      "on",
				"wal_keep_size":      "128MB",
				"max_wal_size":       "512MB",
				"log_line_prefix":    "%m [%p] %q%u@%d ",
				"log_connections":    "off",
				"wal_sender_timeout": "5s",
			},
		},
	}
	for key, seconds := range map[string]int{"ttl": o.TTL, "loop_wait": o.LoopWait, "retry_timeout": o.RetryTimeout} {
		if seconds != 0 {
			d[key] = seconds
		}
	}
	if len(o.Parameters) > 0 {
		merge(d, map[string]any{"postgresql": map[string]any{"parameters": o.Parameters}})
	}
	merge(d, o.Dynamic)
	return d
}

// merge lays over upon base, map by map; a nil value removes a key.
func merge(base, over map[string]any) {
	for key, value := range over {
		switch v := value.(type) {
		case nil:
			delete(base, key)
		case map[string]any:
			inner, ok := base[key].(map[string]any)
			if !ok {
				inner = map[string]any{}
			} else {
				inner = maps.Clone(inner)
			}
			merge(inner, v)
			base[key] = inner
		default:
			base[key] = value
		}
	}
}

// traversable checks that another user can reach dir: PostgreSQL must not run
// as root, so a lab of root's runs it as somebody who needs the way down.
func traversable(dir string) error {
	for d := dir; ; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil {
			return fmt.Errorf("lab directory %s: %w", dir, err)
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("lab directory %s: PostgreSQL, which runs as another user than root, cannot pass %s (mode %v); choose another place or chmod o+x it",
				dir, d, info.Mode().Perm())
		}
		if d == "/" {
			return nil
		}
	}
}

// checkSocketPath refuses directories in which PostgreSQL could not make its
// socket: a unix socket's path has at most 107 bytes.
func checkSocketPath(dir string) error {
	const longest = 107 - len("/.s.PGSQL.65535.lock")
	if len(dir) > longest {
		return fmt.Errorf("lab directory is too deep: %s has %d bytes, a socket directory may have %d", dir, len(dir), longest)
	}
	if strings.ContainsAny(dir, " ,'\"\\\n") {
		return fmt.Errorf("lab directory %q must not contain spaces, commas, quotes or backslashes", dir)
	}
	return nil
}
