package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// batch is how many keys one transaction writes: Consul takes up to 64 operations
// in all its versions.
const batch = 64

// SeedFleet writes n healthy shards into Consul, s001 and on, as agents would leave
// them: three members each, a route, a history, and ten bouncers that serve all.
// The members' REST API is at apiURL. A session holds the leader keys; it lives as
// long as its node.
func SeedFleet(ctx context.Context, c *api.Client, n int, apiURL string) error {
	return seedFleet(ctx, c, n, func(*seededShard) string { return apiURL })
}

// seedFleet is SeedFleet for shards that differ: prepare is told of each one and says where its
// members' REST API is.
func seedFleet(ctx context.Context, c *api.Client, n int, prepare func(*seededShard) string) error {
	o := (&api.WriteOptions{}).WithContext(ctx)
	session, _, err := c.Session().CreateNoChecks(&api.SessionEntry{Name: "fleet", Behavior: api.SessionBehaviorDelete}, o)
	if err != nil {
		return fmt.Errorf("the leaders' session: %w", err)
	}
	values := map[string]any{}
	held := map[string]bool{}
	applied := map[string]cluster.BouncerShard{}
	now := time.Now().UTC().Truncate(time.Millisecond)
	for i := range n {
		s := seededShard{keys: cluster.NewKeys("", fmt.Sprintf("s%03d", i+1), ""), number: i + 1, now: now}
		s.apiURL = prepare(&s)
		s.fill(values)
		held[s.keys.Leader()] = true
		applied["service/"+s.keys.Scope()] = cluster.BouncerShard{Leader: s.member(1), Timeline: 2, State: cluster.RouteOpen, VerifiedAt: &now}
	}
	for i := range 10 {
		name := fmt.Sprintf("pooler%02d", i+1)
		keys := cluster.NewKeys("", "x", "")
		for key, value := range map[string]any{
			keys.Bouncers() + name:        cluster.Bouncer{Name: name, URL: "http://" + name + ":8009", All: true},
			keys.BouncersApplied() + name: cluster.BouncerApplied{Applied: applied},
		} {
			held[key], values[key] = true, value
		}
	}
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(values)), batch) {
		var ops api.TxnOps
		for _, key := range keys {
			value, isText := values[key].(string)
			encoded := []byte(value)
			if !isText {
				if encoded, err = json.Marshal(values[key]); err != nil {
					return fmt.Errorf("key %s: %w", key, err)
				}
			}
			op := &api.KVTxnOp{Verb: api.KVSet, Key: key, Value: encoded}
			if held[key] {
				op.Verb, op.Session = api.KVLock, session
			}
			ops = append(ops, &api.TxnOp{KV: op})
		}
		ok, answer, _, err := c.Txn().Txn(ops, (&api.QueryOptions{}).WithContext(ctx))
		switch {
		case err != nil:
			return fmt.Errorf("writing the fleet: %w", err)
		case !ok:
			return fmt.Errorf("writing the fleet: %s", answer.Errors[0].What)
		}
	}
	return nil
}

// seededShard is one shard of a fleet.
type seededShard struct {
	keys   cluster.Keys
	number int
	apiURL string
	now    time.Time
	// hosts are those of its members; nil: one of its own for each.
	hosts []string
	// quorum has both replicas as synchronous standbys, of which any one will do.
	quorum bool
}

func (s seededShard) member(i int) string { return fmt.Sprintf("%s-db%d", s.keys.Scope(), i) }

func (s seededShard) fill(values map[string]any) {
	const position = 5 << 30
	id := fmt.Sprint(7700000000000000000 + s.number)
	failsafe := map[string]string{}
	route := cluster.Route{Version: cluster.RouteVersion, SystemIdentifier: id, State: cluster.RouteOpen, Timeline: 2, Since: s.now}
	for i := 1; i <= 3; i++ {
		name, host := s.member(i), fmt.Sprintf("10.%d.%d.%d", i, s.number/256, s.number%256)
		if s.hosts != nil {
			host = s.hosts[i-1]
		}
		m := cluster.Member{
			ConnURL: "postgres://" + host + ":5432/postgres", APIURL: s.apiURL, State: cluster.StateRunning, Role: cluster.RoleReplica,
			Version: "0.1.0", XLogLocation: position, ReplayLSN: position, ReceiveLSN: position, Timeline: 2, ReplicationState: "streaming",
		}
		at := cluster.RouteMember{Name: name, Host: host, Port: 5432}
		if i == 1 {
			m.Role, m.ReplicationState, m.ReplayLSN, m.ReceiveLSN = cluster.RolePrimary, "", 0, 0
			route.Leader = at
		} else {
			route.Replicas = append(route.Replicas, at)
		}
		failsafe[name] = s.apiURL
		values[s.keys.Member(name)] = m
	}
	var history cluster.History
	for i := range 20 {
		history = append(history, cluster.TimelineSwitch{Timeline: i + 1, LSN: position, Reason: "no recovery target specified", Time: s.now.Format(time.RFC3339), NewLeader: s.member(1)})
	}
	values[s.keys.Initialize()] = id
	values[s.keys.Leader()] = s.member(1)
	values[s.keys.Config()] = map[string]any{"ttl": 8, "synchronous_mode": true, "postgresql": map[string]any{"parameters": map[string]any{"work_mem": "16MB"}}}
	values[s.keys.Status()] = cluster.Status{OpTime: position, Lictor: &cluster.Beat{LeaseMS: 8000, Number: 1, Owner: s.member(1)}}
	values[s.keys.Sync()] = cluster.NewSync(s.member(1), []string{s.member(2)})
	if s.quorum {
		values[s.keys.Config()] = map[string]any{"ttl": 8, "synchronous_mode": "quorum"}
		sync := cluster.NewSync(s.member(1), []string{s.member(2), s.member(3)})
		sync.Quorum = 1
		values[s.keys.Sync()] = sync
	}
	values[s.keys.Failsafe()] = failsafe
	values[s.keys.Failover()] = cluster.Failover{}
	values[s.keys.History()] = history
	values[s.keys.Route()] = route
}
