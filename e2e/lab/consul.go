package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// ConsulServer is a host that runs one Consul server.
type ConsulServer struct {
	*Host
	HTTP string // host:port

	serf, rpc int
	client    *api.Client
}

// consulProcess is the name of Consul's process on its host.
const consulProcess = "consul"

// The usual ports of Consul.
const (
	consulHTTP = 8500
	consulSerf = 8301
	consulRPC  = 8300
)

// ConsulPorts are all ports of a Consul server on a host that has an address of
// its own, for CutPorts.
func ConsulPorts() []int { return []int{consulHTTP, consulSerf, consulRPC} }

// addConsulHosts makes a host for each Consul server.
func (l *Lab) addConsulHosts(ctx context.Context) error {
	for i := range l.Options.ConsulServers {
		host, err := l.addHost(ctx, "consul"+strconv.Itoa(i+1))
		if err != nil {
			return err
		}
		if err := l.addConsul(host); err != nil {
			return err
		}
	}
	return nil
}

// addConsul defines a Consul server on a host.
func (l *Lab) addConsul(host *Host) error {
	s := &ConsulServer{Host: host}
	var port int
	var err error
	for _, p := range []struct {
		field *int
		usual int
	}{{&port, consulHTTP}, {&s.serf, consulSerf}, {&s.rpc, consulRPC}} {
		if *p.field, err = host.port(p.usual); err != nil {
			return err
		}
	}
	s.HTTP = net.JoinHostPort(host.Address, strconv.Itoa(port))
	s.client, err = api.NewClient(&api.Config{Address: s.HTTP, Scheme: "http", HttpClient: l.http})
	if err != nil {
		return fmt.Errorf("client of %s: %w", s.Name, err)
	}
	l.consul = append(l.consul, s)
	return nil
}

// Client is a client of this server.
func (s *ConsulServer) Client() *api.Client { return s.client }

// Consul is the server's process: the host may have others.
func (s *ConsulServer) Consul() *Process { return s.Process(consulProcess) }

// Wipe removes all that a Consul server which does not run knows.
func (s *ConsulServer) Wipe() error { return os.RemoveAll(s.dataDir()) }

func (s *ConsulServer) dataDir() string { return filepath.Join(s.Dir, "consul") }

// specs writes the configuration of the server.
func (s *ConsulServer) specs() ([]Spec, error) {
	_, port, err := net.SplitHostPort(s.HTTP)
	if err != nil {
		return nil, fmt.Errorf("address of %s: %w", s.Name, err)
	}
	httpPort, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("address of %s: %w", s.Name, err)
	}
	together := s.lab.consul
	if s.lab.Options.Sites {
		together = []*ConsulServer{s}
	}
	var join []string
	for _, other := range together {
		join = append(join, net.JoinHostPort(other.Address, strconv.Itoa(other.serf)))
	}
	config, err := json.MarshalIndent(map[string]any{
		"server":           true,
		"bootstrap_expect": len(together),
		"node_name":        s.Name,
		"data_dir":         s.dataDir(),
		"bind_addr":        s.Address,
		"client_addr":      s.Address,
		"ports": map[string]int{
			"http": httpPort, "serf_lan": s.serf, "server": s.rpc,
			"https": -1, "dns": -1, "grpc": -1, "grpc_tls": -1, "serf_wan": -1,
		},
		"retry_join":     join,
		"retry_interval": "1s",
		// The production value; the default of 5 makes elections five times
		// as long, longer than a short lease.
		"performance": map[string]any{"raft_multiplier": 1},
		// On Loopback all hosts share one address.
		"limits":  map[string]any{"http_max_conns_per_client": 2000, "rpc_max_conns_per_client": 2000},
		"connect": map[string]any{"enabled": false},
		// As the Ansible role has it: without, there are no metrics for Prometheus.
		"telemetry":            map[string]any{"prometheus_retention_time": "24h", "disable_hostname": true},
		"disable_update_check": true,
		"log_level":            "info",
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", s.Name, err)
	}
	path := filepath.Join(s.Dir, "consul.json")
	if err := s.lab.owner.write(path, config, 0o644); err != nil {
		return nil, err
	}
	return []Spec{{
		// As the lab's own user: root's cache, where Consul was built, is closed
		// to others.
		Name: consulProcess, Path: s.lab.Options.Programs.Consul, Args: []string{"agent", "-config-file=" + path},
		// The servers elect a leader together; one alone is ready when its
		// API answers.
		Ready: func(ctx context.Context) error {
			_, err := s.lab.get(ctx, "http://"+s.HTTP+"/v1/agent/self", time.Second)
			return err
		},
	}}, nil
}

// ConsulHosts are the HTTP addresses of all servers, for configuration files.
func (l *Lab) ConsulHosts() []string {
	var hosts []string
	for _, s := range l.consul {
		hosts = append(hosts, s.HTTP)
	}
	return hosts
}

// consul are the servers that know of a shard.
func (s *Shard) consul() []*ConsulServer {
	if !s.lab.Options.Sites {
		return s.lab.consul
	}
	i := slices.Index(s.lab.shards, s)
	return s.lab.consul[i : i+1]
}

// consulHostsFor is ConsulHosts with the server on the member's own host first; where shards are sites, that of
// its site.
func (l *Lab) consulHostsFor(m *Member) []string {
	if l.Options.Sites {
		return []string{m.Shard.consul()[0].HTTP}
	}
	hosts := l.ConsulHosts()
	for i, s := range l.consul {
		if s.Host == m.Host {
			hosts[0], hosts[i] = hosts[i], hosts[0]
		}
	}
	return hosts
}

// Consul runs f with a client of the first server that answers f without an
// error; when none does it returns all their errors. Each try has two seconds.
func (l *Lab) Consul(ctx context.Context, f func(ctx context.Context, client *api.Client) error) error {
	return askConsul(ctx, l.consul, f)
}

func askConsul(ctx context.Context, servers []*ConsulServer, f func(ctx context.Context, client *api.Client) error) error {
	var errs []error
	for _, s := range servers {
		if !s.Consul().Running() {
			errs = append(errs, fmt.Errorf("%s does not run", s.Name))
			continue
		}
		tryCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := f(tryCtx, s.client)
		cancel()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", s.Name, err))
	}
	return fmt.Errorf("consul: %w", errors.Join(errs...))
}

// AwaitConsul waits until Consul takes a write.
func (l *Lab) AwaitConsul(ctx context.Context) error {
	together := [][]*ConsulServer{l.consul}
	if l.Options.Sites {
		together = slices.Collect(slices.Chunk(l.consul, 1))
	}
	for _, servers := range together {
		err := poll(ctx, 50*time.Millisecond, func(ctx context.Context) error {
			return askConsul(ctx, servers, func(ctx context.Context, client *api.Client) error {
				_, err := client.KV().Put(&api.KVPair{Key: "lab/ready", Value: []byte("yes")}, new(api.WriteOptions).WithContext(ctx))
				return err
			})
		})
		if err != nil {
			return fmt.Errorf("consul takes no write: %w", err)
		}
	}
	return nil
}

// Snapshot reads everything that Consul knows of the shard, by consistent
// reads. Patroni's keys are the same.
func (s *Shard) Snapshot(ctx context.Context) (cluster.Snapshot, error) {
	var snapshot cluster.Snapshot
	err := askConsul(ctx, s.consul(), func(ctx context.Context, client *api.Client) error {
		options := (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
		pairs, meta, err := client.KV().List(s.Keys.Prefix(), options)
		if err != nil {
			return err
		}
		route, _, err := client.KV().Get(s.Keys.Route(), options)
		if err != nil {
			return err
		}
		if route != nil {
			pairs = append(pairs, route)
		}
		var kvs []cluster.KV
		for _, p := range pairs {
			kvs = append(kvs, cluster.KV{Key: p.Key, Value: p.Value, Session: p.Session, ModifyIndex: p.ModifyIndex})
		}
		snapshot = cluster.ParseSnapshot(s.Keys, kvs, meta.LastIndex)
		return nil
	})
	if err != nil {
		return cluster.Snapshot{}, fmt.Errorf("shard %s: %w", s.Name, err)
	}
	return snapshot, nil
}

// get fetches a URL. Its error carries the status and the beginning of the body
// when the answer is not 200.
func (l *Lab) get(ctx context.Context, url string, timeout time.Duration) ([]byte, error) {
	status, body, err := l.request(ctx, http.MethodGet, url, nil, timeout)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s answers %d: %.200s", url, status, body)
	}
	return body, err
}

// ConsulLeader is the server that leads the others.
func (l *Lab) ConsulLeader(ctx context.Context) (*ConsulServer, error) {
	var leader string
	err := l.Consul(ctx, func(ctx context.Context, client *api.Client) (err error) {
		leader, err = client.Status().LeaderWithQueryOptions(new(api.QueryOptions).WithContext(ctx))
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, s := range l.consul {
		if net.JoinHostPort(s.Address, strconv.Itoa(s.rpc)) == leader {
			return s, nil
		}
	}
	return nil, fmt.Errorf("consul's leader is %q, which is none of the lab's servers", leader)
}
