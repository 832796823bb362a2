package render

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

// However many shards there are, the ports of their members' REST APIs cost Consul a few
// connections, none of which waits, and a new port gets to HAProxy's file.
func TestMemberPortsHoldNoConnections(t *testing.T) {
	t.Parallel()
	const shards = 300
	var port, open, most, waited atomic.Int64
	port.Store(8010)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := open.Add(1)
		defer open.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if r.URL.Query().Get("index") != "" {
			waited.Add(1)
		}
		path := strings.TrimPrefix(r.URL.Path, "/v1/kv/")
		w.Header().Set("X-Consul-Index", fmt.Sprint(time.Now().UnixNano())) // as members write all the time
		value := fmt.Sprintf(`{"api_url": "http://10.0.0.1:%d/patroni", "xlog_location": %d}`, port.Load(), time.Now().UnixNano())
		if strings.Contains(path, "/n7/") {
			value = "no JSON"
		}
		if !strings.HasSuffix(path, "/members/m1") || r.URL.RawQuery != "" {
			t.Errorf("asked for %s", r.URL)
		}
		fmt.Fprintf(w, `[{"Key": %q, "Value": %q}]`, path, base64.StdEncoding.EncodeToString([]byte(value)))
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	c := config.Config{Consul: settings.Consul{Hosts: []string{server.URL}}}
	clients, err := consul.NewClients(c)
	testkit.Must(t, err)
	pool, err := consul.NewPool(clients)
	testkit.Must(t, err)
	defer pool.Close()
	known := map[config.ShardID]ShardRoute{}
	for i := range shards {
		known[config.ShardID(fmt.Sprintf("service/n%d", i))] = ShardRoute{Route: cluster.Route{Leader: cluster.RouteMember{Name: "m1", Host: "10.0.0.1", Port: 5432}}}
	}
	views, _ := View(c, known, pgbouncer.Version{})
	source, err := templates.Read(templates.HAProxy)
	testkit.Must(t, err)
	r := NewRenderer(c, pool, templates.HAProxy)
	r.data.pollPace = 50 * time.Millisecond
	t.Cleanup(r.Close)
	await := func(port int, want int) {
		t.Helper()
		limit := time.After(30 * time.Second)
		for {
			text, err := r.Render(source, views, AnyName())
			got := strings.Count(string(text), fmt.Sprintf("check port %d\n", port))
			if err == nil && got == want {
				return
			}
			if err != nil && !errors.Is(err, ErrWaiting) {
				t.Fatal(err)
			}
			select {
			case <-r.News():
			case <-limit:
				t.Fatalf("port %d stands there %d times, want %d: %v", port, got, want, err)
			}
		}
	}
	await(8010, 2*(shards-1)) // one is malformed, and told
	if left := strings.Join(r.LeftOut(), " "); !strings.Contains(left, "shard service/n7:") || !strings.Contains(left, "port 8008 is taken") {
		t.Errorf("left out: %s", left)
	}
	port.Store(8011)
	await(8011, 2*(shards-1))
	// What has not changed is no news: nothing is rendered for a member's progress.
	before := r.Arrived()
	time.Sleep(4 * r.data.pollPace)
	if n := r.Arrived() - before; n > 0 {
		t.Errorf("%d changes of nothing", n)
	}
	if most.Load() > polls || waited.Load() > 0 {
		t.Errorf("%d requests at once, %d of them waited for a change", most.Load(), waited.Load())
	}
}

// Whoever may write a shard's route names as many members there as it likes: not each costs Consul a request.
func TestMemberPortsAreOfTheRoute(t *testing.T) {
	v := &Shard{Route: cluster.Route{Leader: cluster.RouteMember{Name: "m2"}, Replicas: []cluster.RouteMember{{Name: "m1"}, {Name: "../x"}, {Name: "m2"}}}}
	v.template.Namespace, v.template.Scope = "service", "s1"
	if d := newMemberPorts(v); d.names != "m1 m2" || d.prefix != "service/s1/members/" {
		t.Errorf("%s", d)
	}
	for i := range 1000 {
		v.Route.Replicas = append(v.Route.Replicas, cluster.RouteMember{Name: fmt.Sprintf("n%d", i)})
	}
	if d := newMemberPorts(v); len(strings.Fields(d.names)) != mostPorts {
		t.Errorf("%s", d)
	}
}
