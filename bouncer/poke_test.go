package bouncer

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// routeRequests stands before Consul and notes what is asked of the routes.
type routeRequests struct {
	mu   sync.Mutex
	list []routeRequest
	// release, when it is set, has the answers to requests of the kind held wait for its end.
	held    string
	release chan struct{}
}

type routeRequest struct {
	kind string // key, keys, list
	at   time.Time
}

func (r *routeRequests) serve(t *testing.T, c *config.Config) {
	t.Helper()
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: c.Consul.Host})
	pass.ModifyResponse = func(response *http.Response) error {
		r.mu.Lock()
		held, release := r.held, r.release
		r.mu.Unlock()
		if release != nil && routeRequestKind(response.Request.URL) == held {
			<-release
		}
		return nil
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if kind := routeRequestKind(q.URL); kind != "" {
			r.mu.Lock()
			r.list = append(r.list, routeRequest{kind, time.Now()})
			r.mu.Unlock()
		}
		pass.ServeHTTP(w, q)
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	c.Consul.Host = strings.TrimPrefix(server.URL, "http://")
}

func routeRequestKind(u *url.URL) string {
	switch q := u.Query(); {
	case !strings.Contains(u.Path, "/routes/"):
		return ""
	case q.Has("keys"):
		return "keys"
	case q.Has("recurse"):
		return "list"
	}
	return "key"
}

// take returns what was asked since the last call.
func (r *routeRequests) take() (list []routeRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list, r.list = r.list, nil
	return list
}

func (r *routeRequests) hold(kind string) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := make(chan struct{})
	r.held, r.release = kind, held
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.release = nil
		close(held)
	}
}

// manyRoutes puts routes of shards that nobody asks for.
func (w *world) manyRoutes(n int) {
	w.t.Helper()
	for i := range n {
		r := w.route(0, cluster.RouteOpen)
		r.Leader.Host = fmt.Sprintf("127.9.%d.%d", i/250, i%250+1)
		w.put(cluster.NewKeys("", fmt.Sprintf("many%03d", i), w.config.RoutesPrefix).Route(), r)
	}
}

// Where there are many shards, a poke brings its one to PgBouncer by reading one key. The
// list of all routes is read after that, and at once when nobody pokes.
func TestPokeReadsOneKey(t *testing.T) {
	const listDelay = 100 * time.Millisecond // as docs/design.md says
	requests := &routeRequests{}
	w := newWorld(t, func(c *config.Config) { requests.serve(t, c) })
	w.manyRoutes(150)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	t.Cleanup(w.bouncer()) // before Consul's end
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	w.await("the watch by names", func() error {
		if list := requests.take(); len(list) != 0 && list[len(list)-1].kind == "keys" {
			return nil
		}
		w.put(cluster.NewKeys("", "many000", w.config.RoutesPrefix).Route(), w.route(0, cluster.RouteOpen))
		return fmt.Errorf("none was seen")
	})
	time.Sleep(2 * listDelay) // what was put before has been read
	requests.take()
	release := requests.hold("keys")
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	pair, _, err := w.site.client.KV().Get(w.keys.Route(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var body map[string]any
	if code, err := w.post("/poke", cluster.Poke{Namespace: "service", Scope: "s1", Index: pair.ModifyIndex}, &body); err != nil || code != http.StatusAccepted {
		t.Fatalf("%d %v", code, err)
	}
	w.awaitLeader(1)
	if list := requests.take(); len(list) != 1 || list[0].kind != "key" {
		t.Errorf("a poke had read %v", list)
	}
	released := time.Now()
	release()
	var list []routeRequest
	w.await("the list", func() error {
		list = append(list, requests.take()...)
		list = slices.DeleteFunc(list, func(r routeRequest) bool { return r.kind == "keys" }) // whether there is more
		if len(list) == 0 {
			return fmt.Errorf("nothing was asked")
		}
		return nil
	})
	if list[0].kind != "list" || list[0].at.Sub(released) < listDelay {
		t.Errorf("then it has asked for %s after %v", list[0].kind, list[0].at.Sub(released))
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen)) // nobody pokes
	w.awaitLeader(0)
	if text := w.scrape("/metrics"); !strings.Contains(text, `lictor_bouncer_pass_seconds_bucket{bouncer="b1",le="0.1"}`) {
		t.Error("passes are not measured")
	}
}

// Of many pokes at once few have a key read: the list of all routes brings what they tell of.
func TestManyPokesReadTheList(t *testing.T) {
	const few = 8 // as docs/design.md says
	requests := &routeRequests{}
	w := newWorld(t, func(c *config.Config) { requests.serve(t, c) })
	w.manyRoutes(150)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	t.Cleanup(w.bouncer()) // before Consul's end
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	defer requests.hold("key")()
	requests.take()
	poke := func(scope string) {
		t.Helper()
		var body map[string]any
		if code, err := w.post("/poke", cluster.Poke{Namespace: "service", Scope: scope, Index: 1 << 60}, &body); err != nil || code != http.StatusAccepted {
			t.Fatalf("%d %v", code, err)
		}
	}
	for i := range 3 * few {
		poke(fmt.Sprintf("many%03d", i))
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	poke("s1")
	w.awaitLeader(1)
	keys := 0
	for _, request := range requests.take() {
		if request.kind == "key" {
			keys++
		}
	}
	if keys == 0 || keys >= 2*few { // on a slow machine a read may be given up meanwhile
		t.Errorf("%d keys were read", keys)
	}
}

// Whoever may write one shard's keys, and announces handovers and calls them off without end, has no bouncer list
// all routes for that.
func TestFlappingHandoverListsNoRoutes(t *testing.T) {
	requests := &routeRequests{}
	w := newWorld(t, func(c *config.Config) { requests.serve(t, c) })
	w.manyRoutes(150)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	t.Cleanup(w.bouncer()) // before Consul's end
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	a := w.announce("first", 30*time.Second)
	a.held()
	a.write(cluster.HandoverCancelled)
	w.awaitShard("the end of the first", func(s ShardStatus) bool { return !s.Held && !s.Paused })
	requests.take()
	const times = 30
	for i := range times {
		a.value.ID = fmt.Sprint("h", i)
		a.write(cluster.HandoverAnnounced)
		time.Sleep(50 * time.Millisecond) // as fast as one may write
		a.write(cluster.HandoverCancelled)
		time.Sleep(50 * time.Millisecond)
	}
	w.awaitShard("the end", func(s ShardStatus) bool { return !s.Held && !s.Paused })
	lists, keys := 0, 0
	for _, r := range requests.take() {
		switch r.kind {
		case "list":
			lists++
		case "key":
			keys++
		}
	}
	if lists > times/3 { // those of readHolding are among them: once a second while clients are held
		t.Errorf("%d handovers had %d lists and %d keys read", times, lists, keys)
	}
}
