package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// keyKeepers are members that only keep their keys in Consul: a switchover changes the keys and takes
// no time.
type keyKeepers struct {
	t      *testing.T
	client *api.Client

	mu             sync.Mutex
	underWay, most int
	handovers      int
	refuses        string // the shard whose leader refuses
	// together is how many handovers must be under way before one goes on; all is closed then.
	together int
	all      chan struct{}
}

// since counts the handovers since it was asked last, and how many were under way at once. From now
// on the leader of a shard refuses to hand over, and none is done before so many are under way.
func (k *keyKeepers) since(refuses string, together int) (handovers, most int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	handovers, most = k.handovers, k.most
	k.handovers, k.most, k.refuses, k.together, k.all = 0, 0, refuses, together, make(chan struct{})
	return handovers, most
}

// keysOf is the shard of a member by the address that it was asked at: each has one of its own.
func keysOf(host string) (keys cluster.Keys, member string) {
	var shard, number int
	address, _, _ := net.SplitHostPort(host)
	var high, low int
	if _, err := fmt.Sscanf(address, "127.%d.%d.%d", &number, &high, &low); err != nil {
		return keys, ""
	}
	shard = high*200 + low
	s := seededShard{keys: cluster.NewKeys("", fmt.Sprintf("s%03d", shard), "")}
	return s.keys, s.member(number)
}

// ServeHTTP answers as the member does at whose address it was asked.
func (k *keyKeepers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	keys, member := keysOf(r.Host)
	s := k.read(r.Context(), keys)
	m, _ := s.Member(member)
	if r.Method == http.MethodGet {
		status := map[string]any{"state": m.Value.State, "role": m.Value.Role, "replication_state": m.Value.ReplicationState, "lictor": map[string]any{}}
		if err := json.NewEncoder(w).Encode(status); err != nil {
			k.t.Error(err)
		}
		return
	}
	var request struct{ Leader, Candidate string }
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		k.t.Error(err)
	}
	k.mu.Lock()
	k.underWay++
	k.most = max(k.most, k.underWay)
	k.handovers++
	if k.handovers == k.together {
		close(k.all)
	}
	refuses, together, all := k.refuses == keys.Scope(), k.together, k.all
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		k.underWay--
		k.mu.Unlock()
	}()
	if request.Leader != s.LeaderName() || refuses {
		w.WriteHeader(http.StatusPreconditionFailed)
		fmt.Fprint(w, "leader name does not match")
		return
	}
	if together > 0 {
		select {
		case <-all:
		case <-r.Context().Done():
			return
		}
	}
	k.handOver(r.Context(), keys, s, request.Candidate)
	fmt.Fprintf(w, "Successfully switched over to %q", request.Candidate)
}

func (k *keyKeepers) read(ctx context.Context, keys cluster.Keys) cluster.Snapshot {
	return cluster.ParseSnapshot(keys, k.list(ctx, keys.Prefix()), 0)
}

func (k *keyKeepers) list(ctx context.Context, prefix string) (kvs []cluster.KV) {
	pairs, _, err := k.client.KV().List(prefix, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		k.t.Error(err)
	}
	for _, p := range pairs {
		kvs = append(kvs, cluster.KV{Key: p.Key, Value: p.Value, Session: p.Session, ModifyIndex: p.ModifyIndex})
	}
	return kvs
}

// readAll reads shards s001 and on, as many as there are, at once.
func (k *keyKeepers) readAll(ctx context.Context, shards int) (all []cluster.Snapshot) {
	byScope := map[string][]cluster.KV{}
	for _, kv := range k.list(ctx, "service/") {
		scope, _, _ := strings.Cut(strings.TrimPrefix(kv.Key, "service/"), "/")
		byScope[scope] = append(byScope[scope], kv)
	}
	for i := range shards {
		keys := cluster.NewKeys("", fmt.Sprintf("s%03d", i+1), "")
		all = append(all, cluster.ParseSnapshot(keys, byScope[keys.Scope()], 0))
	}
	return all
}

// handOver changes the keys as a switchover leaves them.
func (k *keyKeepers) handOver(ctx context.Context, keys cluster.Keys, s cluster.Snapshot, to string) {
	var standbys []string
	values := map[string]any{}
	for _, m := range s.Members {
		v := m.Value
		v.Role, v.ReplicationState = cluster.RoleReplica, "streaming"
		if v.Name == to {
			v.Role, v.ReplicationState = cluster.RolePrimary, ""
		} else {
			standbys = append(standbys, v.Name)
		}
		v.Timeline++
		values[keys.Member(v.Name)] = v
	}
	status := s.Status.Value
	beat := *status.Lictor
	beat.Owner, beat.Number = to, beat.Number+1
	status.Lictor = &beat
	sync := cluster.NewSync(to, standbys)
	sync.Quorum = 1
	values[keys.Status()], values[keys.Sync()] = status, sync
	ops := api.TxnOps{{KV: &api.KVTxnOp{Verb: api.KVLock, Key: keys.Leader(), Value: []byte(to), Session: s.Leader.Session}}}
	for key, value := range values {
		encoded, err := json.Marshal(value)
		if err != nil {
			k.t.Error(err)
		}
		ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVSet, Key: key, Value: encoded}})
	}
	if ok, answer, _, err := k.client.Txn().Txn(ops, (&api.QueryOptions{}).WithContext(ctx)); err != nil || !ok {
		k.t.Errorf("handing %s over: %v %v", keys.Scope(), err, answer)
	}
}

// 300 shards on 20 hosts in a real Consul, with members that only keep their keys: the plan of an
// evacuation is even, its limit is kept, it stops at the first refusal, goes on and is undone.
func TestEvacuateOneHostOf300Shards(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	const shards, hosts, parallel = 300, 20, 6
	l := labtest.New(t, lab.Options{Bouncers: -1, ConsulServers: 1})
	if err := l.StartConsul(ctx); err != nil {
		t.Fatal(err)
	}
	client := l.ConsulServers()[0].Client()
	k := &keyKeepers{t: t, client: client}
	everywhere, err := net.Listen("tcp", "0.0.0.0:0") //nolint:noctx // it waits for nothing
	testkit.Must(t, err)
	server := &httptest.Server{Listener: everywhere, Config: &http.Server{Handler: k}} //nolint:gosec // a test's
	server.Start()
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(everywhere.Addr().String())
	testkit.Must(t, err)
	host := func(n int) string { return fmt.Sprintf("10.0.0.%d", n%hosts+1) }
	testkit.Must(t, seedFleet(ctx, client, shards, func(s *seededShard) string {
		n := s.number - 1
		s.quorum = true
		s.hosts = []string{host(n), host(n + 1 + n/hosts%4), host(n + 7 + n/hosts%5)}
		return ""
	}))
	// Each member has an address of its own, by which it is known when it is asked.
	for i, snapshot := range k.readAll(ctx, shards) {
		s := seededShard{keys: cluster.NewKeys("", fmt.Sprintf("s%03d", i+1), ""), number: i + 1}
		var ops api.TxnOps
		for number := 1; number <= 3; number++ {
			m, _ := snapshot.Member(s.member(number))
			m.Value.APIURL = fmt.Sprintf("http://127.%d.%d.%d:%s/patroni", number, s.number/200, s.number%200, port)
			value, err := json.Marshal(m.Value)
			testkit.Must(t, err)
			ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVSet, Key: s.keys.Member(m.Value.Name), Value: value}})
		}
		if ok, _, _, err := client.Txn().Txn(ops, (&api.QueryOptions{}).WithContext(ctx)); err != nil || !ok {
			t.Fatal(err)
		}
	}
	f := fleetSeat{t, l}
	leaders := func() (all []string, load map[string]int) {
		load = map[string]int{}
		for _, s := range k.readAll(ctx, shards) {
			leader, _ := s.Member(s.LeaderName())
			address, _, err := leader.Value.Address()
			testkit.Must(t, err)
			all = append(all, leader.Value.Name)
			load[address]++
		}
		return all, load
	}
	before, _ := leaders()
	began := time.Now()
	rows, _ := f.run(operator.ExitDone, "evacuate", "10.0.0.3", "--dry-run")
	t.Logf("the plan took %s", time.Since(began))
	if len(rows) != shards/hosts {
		t.Fatalf("%d moves planned", len(rows))
	}
	if n, _ := k.since(fmt.Sprint(rows[7]["shard"]), 0); n != 0 {
		t.Errorf("a dry run has handed %d shards over", n)
	}
	done, said := f.run(operator.ExitFailed, "evacuate", "10.0.0.3", "--yes", "--parallel", "1")
	if states := statesOf(done); states != strings.Repeat("moved ", 7)+"refused"+strings.Repeat(" not begun", 7) || !strings.Contains(said, "7 of 15 leaders were handed over, 7 were not begun") {
		t.Errorf("stopped: %s: %s", states, said)
	}
	k.since("", parallel)
	done, _ = f.run(operator.ExitDone, "evacuate", "10.0.0.3", "--yes", "--parallel", fmt.Sprint(parallel))
	if states := statesOf(done); states != strings.TrimSpace(strings.Repeat("moved ", 8)) {
		t.Errorf("gone on: %s", states)
	}
	if _, most := k.since("", 0); most != parallel {
		t.Errorf("%d handovers at the same time, %d were allowed", most, parallel)
	}
	_, load := leaders()
	for address, n := range load {
		if n > shards/hosts+shards/hosts/3 || address == "10.0.0.3" {
			t.Errorf("%s leads %d shards: %v", address, n, load)
		}
	}
	f.run(operator.ExitDone, "evacuate", "10.0.0.3", "--undo", "--yes", "--parallel", fmt.Sprint(parallel))
	if now, _ := leaders(); strings.Join(now, " ") != strings.Join(before, " ") {
		t.Errorf("undone: %v, want %v", now, before)
	}

	// Two hosts in turn, and then all shards spread again.
	for n := range 2 {
		f.run(operator.ExitDone, "evacuate", host(n), "--yes", "--parallel", "20")
		f.run(operator.ExitDone, "evacuate", host(n), "--forget", "--yes")
	}
	began = time.Now()
	plan, _ := f.run(operator.ExitDone, "rebalance", "--dry-run")
	t.Logf("a plan of %d moves took %s", len(plan), time.Since(began))
	k.since("", 0)
	began = time.Now()
	f.run(operator.ExitDone, "rebalance", "--yes", "--parallel", "20")
	n, _ := k.since("", 0)
	t.Logf("%d handovers that take no time, 20 at a time, took %s", n, time.Since(began))
	if n != len(plan) {
		t.Errorf("%d handovers, %d were planned", n, len(plan))
	}
	if _, load = leaders(); len(load) != hosts {
		t.Errorf("leaders on %d hosts: %v", len(load), load)
	}
	for address, n := range load {
		if n != shards/hosts {
			t.Errorf("%s leads %d shards: %v", address, n, load)
		}
	}
}

// statesOf are the states of all rows.
func statesOf(rows []record) string {
	var all []string
	for _, r := range rows {
		all = append(all, fmt.Sprint(r["state"]))
	}
	return strings.Join(all, " ")
}
