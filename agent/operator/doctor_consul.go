package operator

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// consulFacts is what Consul says of itself. What could not be read is missing and
// named in blind.
type consulFacts struct {
	address string
	leader  string
	servers []string // host:port of each server's Raft
	// election is how long it takes at most, by its settings, until a dead leader
	// is replaced; zero: unknown (the agent that was asked is no server).
	election   time.Duration
	multiplier int
	autopilot  *consulapi.AutopilotConfiguration
	health     *consulapi.OperatorHealthReply
	latency    time.Duration // of a read with a quorum round trip
	open       bool          // it asks for no tokens
	plain      bool          // the token goes there without TLS
	blind      []string
}

func (s *Site) addresses() []string {
	addresses, err := s.Consul.Addresses()
	if err != nil {
		return nil
	}
	out := make([]string, len(addresses))
	for i, a := range addresses {
		out[i] = a.String()
	}
	return out
}

// lookAtConsul asks every configured address of Consul.
func (s *Site) lookAtConsul(ctx context.Context) []consulFacts {
	var all []consulFacts
	plain := s.Consul.PlainToken()
	for i, client := range s.clients {
		f := consulFacts{address: s.addresses()[i]}
		f.plain = slices.ContainsFunc(plain, func(a settings.Address) bool { return a.String() == f.address })
		f.look(ctx, client, s.Namespace)
		all = append(all, f)
	}
	return all
}

func (f *consulFacts) look(ctx context.Context, c *consulapi.Client, namespace string) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	q := (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	see := func(what string, err error) bool {
		if err != nil {
			f.blind = append(f.blind, fmt.Sprintf("%s (%v)", what, err))
		}
		return err == nil
	}
	began := time.Now()
	_, _, err := c.KV().Get(namespace+"/", q)
	f.latency = time.Since(began)
	if !see("the keys", err) {
		return
	}
	f.leader, err = c.Status().LeaderWithQueryOptions(q)
	see("the leader", err)
	f.servers, err = c.Status().PeersWithQueryOptions(q)
	see("the servers", err)
	var self struct {
		DebugConfig struct {
			ServerMode                 bool
			ACLsEnabled                *bool
			ConsulRaftElectionTimeout  string
			ConsulRaftHeartbeatTimeout string
		}
	}
	_, err = c.Raw().Query("/v1/agent/self", &self, q)
	acls := self.DebugConfig.ACLsEnabled
	f.open = acls != nil && !*acls
	if see("the agent's configuration (needs agent:read)", err) && self.DebugConfig.ServerMode {
		election, errE := time.ParseDuration(self.DebugConfig.ConsulRaftElectionTimeout)
		heartbeat, errH := time.ParseDuration(self.DebugConfig.ConsulRaftHeartbeatTimeout)
		if errE == nil && errH == nil {
			// Raft waits one to two heartbeat timeouts before it calls an election,
			// which is decided within the election timeout or begins anew
			// (hashicorp/raft, runFollower and runCandidate, randomTimeout).
			f.election, f.multiplier = 2*heartbeat+election, int(heartbeat/time.Second)
		}
	}
	f.autopilot, err = c.Operator().AutopilotGetConfiguration(q)
	see("autopilot's configuration (needs operator:read)", err)
	f.health, err = c.Operator().AutopilotServerHealth(q)
	if f.health == nil {
		see("the servers' health (needs operator:read)", err)
	}
}

// examineConsul judges Consul by the shortest lease that depends on it.
func examineConsul(all []consulFacts, lease time.Duration, databases []string) []Finding {
	d := diagnosis{area: "consul"}
	for _, f := range all {
		if len(f.blind) > 0 {
			level := Worth
			if f.leader == "" {
				level = Wrong
			}
			d.add(level, f.address, "see that it runs, and what its token may read", "could not look at %s", strings.Join(f.blind, ", "))
		}
		if f.plain {
			d.add(Worth, f.address, "write https:// there (Consul's ports.https) and set consul.cacert, here and in the files of agents and bouncers",
				"this command's token goes there without TLS: whoever is between gets it, and on this host any user who takes the port while Consul is restarted")
		}
		if f.leader == "" {
			continue
		}
		d.fine(f.address, "answers in %s, led by %s", Duration(f.latency), f.leader)
		if lease > 0 && f.latency > lease/10 {
			d.add(Worth, f.address, "look at the servers' disks and network: every beat is such a round trip",
				"a read with a quorum takes %s, with leases of %s", Duration(f.latency), Duration(lease))
		}
		if f.open {
			d.add(Worth, f.address, "switch ACLs on and give agents, bouncers and operators tokens (docs/rollout.md, Rights in Consul)",
				"it has no access control: whoever reaches it, also any user of this host, may lead and reconfigure every shard, and learn the secrets that stand for restapi.authentication")
		}
		if f.election > 0 && lease > 0 {
			if f.election > lease {
				d.add(Worth, f.address, "set performance { raft_multiplier = 1 } on all servers, or raise ttl",
					"after the loss of its leader Consul may need %s to elect another (raft_multiplier %d), longer than the shortest lease of %s",
					Duration(f.election), f.multiplier, Duration(lease))
			} else {
				d.fine(f.address, "elects a leader within %s (raft_multiplier %d)", Duration(f.election), f.multiplier)
			}
		}
	}
	i := slices.IndexFunc(all, func(f consulFacts) bool { return len(f.servers) > 0 })
	if i < 0 {
		return d.findings
	}
	d.servers(all[i], databases)
	return d.findings
}

// servers judges the servers, of which all addresses tell the same.
func (d *diagnosis) servers(f consulFacts, databases []string) {
	n := len(f.servers)
	switch {
	case n == 1:
		d.add(Wrong, "servers", "run three or five servers, on hosts that do not fail together", "there is one server: its loss leaves all shards to failsafe mode")
	case n%2 == 0:
		d.add(Worth, "servers", "run three or five", "there are %d servers: no more may fail than of %d", n, n-1)
	default:
		d.fine("servers", "%d servers: %d may fail", n, (n-1)/2)
	}
	if f.health != nil {
		for _, s := range f.health.Servers {
			if !s.Healthy {
				d.add(Wrong, s.Name, "see its log; consul operator autopilot state", "this server is not healthy (%s, last contact %s)", s.SerfStatus, s.LastContact)
			}
		}
	}
	var shared []string
	for _, server := range f.servers {
		if host, _, err := net.SplitHostPort(server); err == nil && slices.Contains(databases, host) && !isLoopback(host) {
			shared = append(shared, host)
		}
	}
	if a := f.autopilot; a != nil && len(shared) > 0 && a.CleanupDeadServers && a.MinQuorum < uint(n) {
		d.add(Worth, "autopilot", fmt.Sprintf("set autopilot { min_quorum = %d } on all servers", n),
			"%d servers run on database hosts, and one that is lost with its host is removed: then the next loss may leave no quorum", len(shared))
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
