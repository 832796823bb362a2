package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func testRead(t *testing.T, s shard) {
	empty := s.read()
	if empty.Index == 0 || empty.Leader.Exists() || empty.Status.Exists() || empty.Route.Exists() || len(empty.Members) != 0 {
		t.Errorf("an empty shard: %+v", empty)
	}
	// Neighbours whose names begin alike are other shards.
	other := newStore(t, cluster.NewKeys("", s.keys.Scope()+"2", ""), s.clients[0].address)
	must(t, other.Write(s.ctx, other.keys.Config(), 0, value(1)))
	_, index := s.leader("a")
	now := s.read()
	if now.Config.Exists() {
		t.Errorf("another shard's key: %+v", now.Config)
	}
	if now.Index < index || now.LeaderName() != "a" || !now.Route.OK() || !now.Status.OK() {
		t.Errorf("the shard: %+v", now)
	}
}

type watched[T any] struct {
	value T
	index uint64
	err   error
}

// begin runs a blocking query beside the test.
func begin[T any](query func() (T, uint64, error)) <-chan watched[T] {
	done := make(chan watched[T], 1)
	go func() {
		v, index, err := query()
		done <- watched[T]{v, index, err}
	}()
	return done
}

// moment is how long a query is held that is to find nothing new.
const moment = 50 * time.Millisecond

func testWatch(t *testing.T, s shard) {
	_, index, err := s.Watch(s.ctx, 0, patience)
	must(t, err)
	if index == 0 {
		t.Fatal("no index to wait from")
	}
	session := s.session("a")
	change := begin(func() (cluster.Snapshot, uint64, error) { return s.Watch(s.ctx, index, patience) })
	all, err := s.TakeOver(s.ctx, s.takeover(session, "a"))
	must(t, err)
	written := all[s.keys.Status()]
	got := <-change
	must(t, got.err)
	if got.index < written || got.value.LeaderName() != "a" || got.value.Status.ModifyIndex != written {
		t.Errorf("woken by %+v", got)
	}
	_, same, err := s.Watch(s.ctx, got.index, moment)
	must(t, err)
	if same != got.index {
		t.Errorf("nothing has changed: index %d, was %d", same, got.index)
	}

	// A key that goes with its session is a change as well.
	change = begin(func() (cluster.Snapshot, uint64, error) { return s.Watch(s.ctx, same, patience) })
	must(t, s.DestroySession(s.ctx, session))
	gone := <-change
	must(t, gone.err)
	if gone.value.Leader.Exists() || gone.index <= same {
		t.Errorf("after the end of the session: %+v", gone)
	}

	_, restored, err := s.Watch(s.ctx, gone.index+1_000_000, moment)
	must(t, err)
	if restored != 0 {
		t.Errorf("Consul's index went back: next from %d, want 0", restored)
	}

	ended, cancel := context.WithCancel(s.ctx)
	change = begin(func() (cluster.Snapshot, uint64, error) { return s.Watch(ended, gone.index, patience) })
	cancel()
	if got := <-change; !errors.Is(got.err, context.Canceled) || got.index != gone.index {
		t.Errorf("cancelled: %+v", got)
	}
}

func testWatchRoute(t *testing.T, s shard) {
	none, index, err := s.WatchRoute(s.ctx, 0, patience)
	must(t, err)
	if none.Exists() || index == 0 {
		t.Fatalf("no route: %+v, index %d", none, index)
	}
	session := s.session("a")
	change := begin(func() (cluster.Entry[cluster.Route], uint64, error) {
		for next := index; ; {
			var r cluster.Entry[cluster.Route]
			var err error
			// Without the key, other keys' changes may wake the query too.
			if r, next, err = s.WatchRoute(s.ctx, next, patience); err != nil || r.Exists() {
				return r, next, err
			}
		}
	})
	all, err := s.TakeOver(s.ctx, s.takeover(session, "a"))
	must(t, err)
	written := all[s.keys.Status()]
	got := <-change
	must(t, got.err)
	if !got.value.OK() || got.value.ModifyIndex != written || got.value.Value.Leader.Name != "a" {
		t.Errorf("route: %+v", got)
	}
	_, err = s.Beat(s.ctx, session, written, status("a", 2))
	must(t, err)
	same, next, err := s.WatchRoute(s.ctx, got.index, moment)
	must(t, err)
	if next != got.index || same.ModifyIndex != written {
		t.Errorf("a beat is no change of the route: %+v, index %d, was %d", same, next, got.index)
	}
}

// What happens when one of several addresses does not work.
func TestAddresses(t *testing.T) {
	consul := startConsul(t)
	// ever asks the first address first, giving it longer and longer: how much time
	// a busy machine takes for an answer is not what is tested.
	ever := func(t *testing.T, s shard, ask func(context.Context) error) {
		t.Helper()
		for limit := time.Second; ; limit *= 2 {
			ctx, cancel := context.WithTimeout(s.ctx, limit)
			s.current.Store(0)
			err := ask(ctx)
			cancel()
			if err == nil {
				return
			}
			if s.ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}

	t.Run("dead", func(t *testing.T) {
		s := newShard(t, deadAddress(t), consul.address)
		// A transaction that was not sent is sent elsewhere.
		must(t, s.Write(s.ctx, s.keys.Config(), 0, value(1)))
		if got := s.read().Config; string(got.Value) != string(value(1)) {
			t.Errorf("value: %s", got.Value)
		}
		if s.current.Load() != 1 {
			t.Error("the address that works is not remembered")
		}
	})

	t.Run("all dead", func(t *testing.T) {
		s := newShard(t, deadAddress(t), deadAddress(t))
		err := s.Write(s.ctx, s.keys.Config(), 0, value(1))
		if err == nil || errors.Is(err, ErrUncertain) || errors.Is(err, ErrConflict) {
			t.Errorf("write: %v", err)
		}
		_, err = s.Read(s.ctx)
		for _, c := range s.clients {
			if err == nil || !strings.Contains(err.Error(), c.address) {
				t.Errorf("read: %v does not name %s", err, c.address)
			}
		}
	})

	t.Run("quiet", func(t *testing.T) {
		// A blocking query in which nothing happens is no failure, with however
		// many addresses its time is shared.
		s := newShard(t, consul.address, consul.address, consul.address)
		_, index, err := s.Watch(s.ctx, 0, patience)
		must(t, err)
		ever(t, s, func(ctx context.Context) error {
			_, next, err := s.Watch(ctx, index, patience)
			if at := s.current.Load(); err == nil && (next != index || at != 0) {
				return fmt.Errorf("index %d, was %d; address %d", next, index, at)
			}
			return err
		})
	})

	t.Run("without a leader", func(t *testing.T) {
		for name, answer := range map[string]http.HandlerFunc{
			"refusing": func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "No cluster leader", http.StatusInternalServerError)
			},
			"empty": func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Consul-KnownLeader", "false")
				w.WriteHeader(http.StatusNotFound)
			},
		} {
			lost := httptest.NewServer(answer)
			t.Cleanup(lost.Close)
			s := newShard(t, strings.TrimPrefix(lost.URL, "http://"), consul.address)
			if snapshot, err := s.Read(s.ctx); err != nil || snapshot.Index == 0 {
				t.Errorf("%s: read: index %d, %v", name, snapshot.Index, err)
			}
			s.current.Store(0)
			if _, index, err := s.Watch(s.ctx, 0, patience); err != nil || index == 0 {
				t.Errorf("%s: watch: index %d, %v", name, index, err)
			}
			s.current.Store(0)
			if name == "refusing" {
				id := s.session("a")
				s.current.Store(0)
				if err := s.RenewSession(s.ctx, id); err != nil {
					t.Errorf("renewing: %v", err)
				}
				s.current.Store(0)
				// Consul answers so as well when it lost its leader half way.
				wants(t, "write", s.Write(s.ctx, s.keys.Config(), 0, value(1)), ErrUncertain)
			}
		}
	})

	t.Run("hung", func(t *testing.T) {
		hung := startConsul(t)
		hung.stop(t)
		alone := newShard(t, hung.address)
		ever(t, alone, func(ctx context.Context) error {
			if err := alone.Write(ctx, alone.keys.Config(), 0, value(1)); !errors.Is(err, ErrUncertain) {
				return fmt.Errorf("write to a hung Consul: %w", err)
			}
			return nil
		})

		s := newShard(t, hung.address, consul.address)
		// A third of the time is the hung one's: enough to send it there.
		ctx, cancel := context.WithTimeout(s.ctx, 15*time.Second)
		defer cancel()
		wants(t, "write to a hung Consul of two", s.Write(ctx, s.keys.Config(), 0, value(1)), ErrUncertain)
		// Sent to the second as well it could take effect twice.
		second := newShard(t, consul.address)
		if got := second.read().Config; got.Exists() {
			t.Errorf("sent twice: %+v", got)
		}
		ever(t, s, func(ctx context.Context) error {
			if _, err := s.Read(ctx); err != nil {
				return fmt.Errorf("read with one hung: %w", err)
			}
			return nil
		})
		must(t, s.Write(s.ctx, s.keys.Config(), 0, value(2)))
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(nil, cluster.NewKeys("", "s", "")); err == nil {
		t.Error("a store without an address")
	}
}

func TestSessionTTL(t *testing.T) {
	for lease, want := range map[time.Duration]time.Duration{
		3 * time.Second: 10 * time.Second, 10 * time.Second: 10 * time.Second, 30 * time.Second: 30 * time.Second,
	} {
		if got := SessionTTL(lease); got != want {
			t.Errorf("lease %s: session %s, want %s", lease, got, want)
		}
	}
}

// A session belongs to the host's own node, whichever Consul agent is asked, so that a token
// needs no right to end those of others. While Consul does not know that node it belongs to the
// one that is asked, where the token may have one there.
func TestSessionsNode(t *testing.T) {
	server := startConsul(t)
	ctx := within(t)
	write := (&api.WriteOptions{}).WithContext(ctx)
	open, err := api.NewClient(&api.Config{Address: server.address})
	must(t, err)
	management, _, err := open.ACL().Bootstrap()
	must(t, err)
	admin, err := api.NewClient(&api.Config{Address: server.address, Token: management.SecretID})
	must(t, err)
	for _, node := range []string{"db1", "db2"} {
		_, err = admin.Catalog().Register(&api.CatalogRegistration{Node: node, Address: "127.0.0.1"}, write)
		must(t, err)
	}
	// as lets the token have sessions of these nodes.
	as := func(nodes ...string) *Store {
		t.Helper()
		rules := `session_prefix "" { policy = "read" }`
		for _, n := range nodes {
			rules += fmt.Sprintf("\nsession %q { policy = \"write\" }", n)
		}
		name := strings.Join(nodes, "-")
		policy, _, err := admin.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, write)
		must(t, err)
		token, _, err := admin.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: policy.ID}}}, write)
		must(t, err)
		s, err := New([]*api.Config{{Address: server.address, Token: token.SecretID}}, cluster.NewKeys("", "node", ""))
		must(t, err)
		return s
	}
	nodeOf := func(id string) string {
		entry, _, err := admin.Session().Info(id, (&api.QueryOptions{}).WithContext(ctx))
		if err != nil || entry == nil {
			t.Fatalf("session %s: %v", id, err)
		}
		return entry.Node
	}
	own := as("db1")
	id, err := own.CreateSession(ctx, Session{Name: "a", TTL: time.Minute, Node: "db1"})
	must(t, err)
	if got := nodeOf(id); got != "db1" {
		t.Errorf("the session belongs to %s", got)
	}
	must(t, own.RenewSession(ctx, id))
	for _, node := range []string{"", "db2"} {
		if id, err := own.CreateSession(ctx, Session{Name: "a", TTL: time.Minute, Node: node}); err == nil {
			t.Errorf("a session of %s was made with the token of db1", nodeOf(id))
		}
	}
	theirs, err := as("db2").CreateSession(ctx, Session{Name: "b", TTL: time.Minute, Node: "db2"})
	must(t, err)
	if err := own.DestroySession(ctx, theirs); err == nil {
		t.Error("a session of db2 was ended with the token of db1")
	}

	_, err = admin.Catalog().Deregister(&api.CatalogDeregistration{Node: "db1"}, write)
	must(t, err)
	wants(t, "a session of a node that has left", own.RenewSession(ctx, id), ErrNoSession)
	if _, err := own.CreateSession(ctx, Session{Name: "a", TTL: time.Minute, Node: "db1"}); err == nil {
		t.Error("a session was made where the token may have none")
	}
	if id, err = as("db1", "alone").CreateSession(ctx, Session{Name: "a", TTL: time.Minute, Node: "db1"}); err != nil || nodeOf(id) != "alone" {
		t.Errorf("while its node is unknown: %v", err)
	}
}
