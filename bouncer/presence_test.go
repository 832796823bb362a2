package bouncer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// presenceServer answers as Consul does what a presence asks, and has what it wrote.
type presenceServer struct {
	*httptest.Server
	mu      sync.Mutex
	refuse  string // the prefix that the token may not write
	written map[string][]string
}

func newPresenceServer(t *testing.T, refuse string) *presenceServer {
	s := &presenceServer{refuse: refuse, written: map[string][]string{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, isKey := strings.CutPrefix(r.URL.Path, "/v1/kv/")
		text, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case !isKey && strings.HasSuffix(r.URL.Path, "/create"):
			fmt.Fprint(w, `{"ID": "one"}`)
		case !isKey:
			fmt.Fprint(w, "true")
		case s.refuse != "" && strings.HasPrefix(key, s.refuse):
			http.Error(w, "Permission denied", http.StatusForbidden)
		default:
			s.written[key] = append(s.written[key], string(text))
			fmt.Fprint(w, "true")
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *presenceServer) values(key string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written[key]
}

// What every agent reads before each poke is small, however many shards there are; the rest
// is written the more rarely the larger it is. A token of before may write it where it was.
func TestPresenceIsSmall(t *testing.T) {
	for name, refuse := range map[string]string{"own key": "", "refused": "lictor/bouncers-applied/"} {
		t.Run(name, func(t *testing.T) {
			server := newPresenceServer(t, refuse)
			c := config.Config{Name: "b1", Consul: settings.Consul{Hosts: []string{server.URL}}}
			clients, err := consul.NewClients(c)
			testkit.Must(t, err)
			pool, err := consul.NewPool(clients)
			testkit.Must(t, err)
			defer pool.Close()
			shards := map[config.ShardID]ShardStatus{}
			now := time.Now()
			for i := range 1000 {
				shards[config.ShardID(fmt.Sprintf("service/shard-%04d", i))] = ShardStatus{Leader: fmt.Sprintf("db%d", i), Timeline: 7, State: cluster.RouteOpen, VerifiedAt: &now}
			}
			p := &presence{
				log: zerolog.Nop(), pool: pool, key: "lictor/bouncers/b1", appliedKey: "lictor/bouncers-applied/b1", name: "b1",
				change: make(chan struct{}, 1), remember: func(string) {},
				value:   func() cluster.Bouncer { return presenceOf(c, "http://10.0.0.1:8009", pgbouncer.Version{1, 26, 1}) },
				applied: func() map[string]cluster.BouncerShard { return appliedOf(shards) },
			}
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { p.run(ctx) })
			defer running.Wait()
			defer stop()
			await := func(key string, n int) []string {
				t.Helper()
				for limit := time.Now().Add(20 * time.Second); len(server.values(key)) < n; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(limit) {
						t.Fatalf("key %s was written %d times, not %d", key, len(server.values(key)), n)
					}
				}
				return server.values(key)
			}
			parsed := func(text string) cluster.Bouncer {
				t.Helper()
				b, err := cluster.ParseBouncer("b1", []byte(text))
				testkit.Must(t, err)
				return b
			}
			first := await(p.key, 1)[0]
			if len(first) > 300 || parsed(first).Applied != nil {
				t.Errorf("the presence has %d bytes: %.300s", len(first), first)
			}
			if refuse != "" {
				if second := await(p.key, 2)[1]; len(parsed(second).Applied) != 1000 {
					t.Errorf("the presence has %d shards", len(parsed(second).Applied))
				}
				return
			}
			var a cluster.BouncerApplied
			value := await(p.appliedKey, 1)[0]
			if err := json.Unmarshal([]byte(value), &a); err != nil || len(a.Applied) != 1000 {
				t.Fatalf("%d shards, %v", len(a.Applied), err)
			}
			for range 2 { // the second is taken once the answer to that write is there
				p.change <- struct{}{}
			}
			stop()
			running.Wait()
			if wait := time.Until(p.nextApplied); wait < time.Duration(len(value)/appliedPart-1)*time.Second {
				t.Errorf("%d bytes may be written again in %s", len(value), wait)
			}
		})
	}
}

// A bouncer whose configuration changes is there all the time, with the session that it had; one that gets
// another name leaves no key behind.
func TestPresenceOverSIGHUP(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitHealthy()
	keys := []string{w.config.Keys().Bouncers() + "b1", w.config.Keys().BouncersApplied() + "b1"}
	sessionOf := func(key string) (string, error) {
		pair, _, err := w.site.client.KV().Get(key, nil)
		if err == nil && pair == nil {
			err = fmt.Errorf("key %s is not there", key)
		}
		if err != nil {
			return "", err
		}
		return pair.Session, nil
	}
	var before string
	for _, key := range keys {
		w.await("the keys", func() (err error) { before, err = sessionOf(key); return err })
	}
	ctx, stop := context.WithCancel(w.ctx)
	var watching sync.WaitGroup
	looks := make(chan struct{}, 1)
	watching.Go(func() {
		for ctx.Err() == nil {
			for _, key := range keys {
				if session, err := sessionOf(key); err != nil || session != before {
					t.Errorf("over SIGHUP %s has session %q, not %q: %v", key, session, before, err)
					stop()
				}
			}
			select {
			case looks <- struct{}{}:
			default:
			}
		}
	})
	for i := range 5 {
		w.config.PgBouncer.Settings = map[string]any{"max_client_conn": 90 + i}
		w.changes <- w.config
		<-looks
		w.await("the configuration", func() error {
			text, err := os.ReadFile(w.config.PgBouncer.Config)
			if err == nil && !strings.Contains(string(text), fmt.Sprint("max_client_conn = ", 90+i)) {
				err = fmt.Errorf("%s", text)
			}
			return err
		})
	}
	stop()
	watching.Wait()
	w.config.Name = "b2"
	w.changes <- w.config
	w.await("the old key's end", func() error {
		if _, err := sessionOf(keys[0]); err == nil {
			return fmt.Errorf("key %s is there still", keys[0])
		}
		return nil
	})
}
