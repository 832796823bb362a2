package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// Strangers at the leader's and the bouncer's API: connections of all kinds cost no
// health check and no lease, and whoever registers as a bouncer hears of a switchover
// but is shown no password.
func TestStrangers(t *testing.T) {
	const user, password, node = "admin", "rest-password", "the-hosts-own"
	l := start(t, lab.Options{
		Members: 2, Bouncers: 1, ConsulServers: 1,
		Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) {
			config["restapi"].(map[string]any)["authentication"] = map[string]any{"username": user, "password": password}
			config["consul"].(map[string]any)["node"] = node
		}},
		Pooler: lab.LictorBouncer{Edit: func(_ *lab.Bouncer, config map[string]any) {
			config["consul"].(map[string]any)["node"] = node
			config["web"] = true // to everybody
		}},
	})
	s := l.Shard(0)

	for name, begin := range map[string]func(ctx context.Context, targets ...string) *flood{
		"a flood from 1 addresses":  func(ctx context.Context, targets ...string) *flood { return startFlood(ctx, 1, targets...) },
		"a flood from 16 addresses": func(ctx context.Context, targets ...string) *flood { return startFlood(ctx, 16, targets...) },
		"requests without end": func(ctx context.Context, targets ...string) *flood {
			return startRequests(ctx, s.Name, targets...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := within(t)
			leader := got(s.AwaitHealthy(ctx))(t)
			before := got(s.Snapshot(ctx))(t).Leader
			attack := begin(ctx, leader.REST, l.BouncerHosts()[0].API)
			defer attack.stop()
			// The balancer's checks: each on a connection of its own, while six beats pass.
			client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			beats, last, seen, longest := 0, int64(0), time.Time{}, time.Duration(0)
			var checks []time.Duration
			for began := time.Now(); beats < 6 || time.Since(began) < *floodFor; {
				for _, url := range []string{"http://" + leader.REST + "/primary", "http://" + l.BouncerHosts()[0].API + "/health"} {
					asked := time.Now()
					if code, _, err := request(ctx, client, http.MethodGet, url, nil, nil); err != nil || code != http.StatusOK {
						t.Fatalf("health check %d: %d %v", len(checks), code, err)
					}
					checks = append(checks, time.Since(asked))
				}
				beat := got(s.Snapshot(ctx))(t).Status.Value.Lictor
				if beat == nil || beat.Number == last {
					continue
				}
				now := time.Now()
				if last != 0 {
					longest = max(longest, now.Sub(seen))
				}
				last, seen = beat.Number, now
				beats++
			}
			opened, rate := attack.stop()
			slices.Sort(checks)
			t.Logf("%d connections held at the most, %.0f new ones (or requests) a second; %d health checks answered, median %s, 99 of 100 within %s, all within %s; %d beats, at most %s between two of them",
				opened, rate, len(checks), checks[len(checks)/2], checks[len(checks)*99/100], checks[len(checks)-1], beats, longest)
			if after := got(s.Snapshot(ctx))(t).Leader; after.Session != before.Session || after.Value != before.Value {
				t.Errorf("the lead was lost: %+v, was %+v", after, before)
			}
			if ttl := 8 * time.Second; longest > ttl/2 {
				t.Errorf("%s passed between two beats", longest)
			}
		})
	}

	// Who may end sessions of other nodes ends none of these (consul.node).
	t.Run("sessions are of the host's own node", func(t *testing.T) {
		ctx := within(t)
		leader := got(s.AwaitHealthy(ctx))(t)
		sessions := func(each func(ctx context.Context, c *api.Client, one *api.SessionEntry) error) error {
			return l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
				all, _, err := c.Session().List((&api.QueryOptions{}).WithContext(ctx))
				for _, one := range all {
					err = errors.Join(err, each(ctx, c, one))
				}
				return err
			})
		}
		must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
			_, err := c.Catalog().Register(&api.CatalogRegistration{Node: node, Address: "127.0.0.1"}, (&api.WriteOptions{}).WithContext(ctx))
			return err
		}))
		must(t, sessions(func(ctx context.Context, c *api.Client, one *api.SessionEntry) error {
			_, err := c.Session().Destroy(one.ID, (&api.WriteOptions{}).WithContext(ctx)) // it was of the node that was asked, as this one was not known yet
			return err
		}))
		await(ctx, t, "sessions are not made anew", func() error {
			n := 0
			err := sessions(func(_ context.Context, _ *api.Client, one *api.SessionEntry) error {
				if n++; one.Node != node {
					return fmt.Errorf("session %s is of %s", one.Name, one.Node)
				}
				return nil
			})
			if err == nil && n != 3 {
				err = fmt.Errorf("%d sessions, want those of two agents and a bouncer", n)
			}
			return err
		})
		if now := got(s.AwaitHealthy(ctx))(t); now.Name != leader.Name {
			t.Errorf("%s leads, not %s", now.Name, leader.Name)
		}
	})

	t.Run("a forged bouncer", func(t *testing.T) {
		ctx := within(t)
		leader := got(s.AwaitHealthy(ctx))(t)
		must(t, s.AwaitSync(ctx)) // whose session has just been made anew
		var mu sync.Mutex
		heard := map[string]bool{}
		forged := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			heard[r.URL.Path] = true
			mu.Unlock()
			body, _ := io.ReadAll(r.Body)
			if said := fmt.Sprint(r.Header, string(body)); r.Header.Get("Authorization") != "" || strings.Contains(said, password) {
				t.Errorf("it was shown %s", said)
			}
			if r.URL.Path == "/handover" { // for ever busy
				var asked cluster.HandoverRequest
				_ = json.Unmarshal(body, &asked)
				_ = json.NewEncoder(w).Encode(cluster.HandoverAnswer{ID: asked.ID, Bouncer: "evil", Paused: true, Busy: 1})
				return
			}
			w.WriteHeader(http.StatusConflict)
		}))
		defer forged.Close()
		value, err := json.Marshal(cluster.Bouncer{Name: "evil", URL: forged.URL, All: true})
		must(t, err)
		must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
			session, _, err := c.Session().Create(&api.SessionEntry{Behavior: api.SessionBehaviorDelete, LockDelay: time.Millisecond}, (&api.WriteOptions{}).WithContext(ctx))
			if err != nil {
				return err
			}
			key := cluster.NewKeys("", "x", "").Bouncers() + "evil"
			done, _, err := c.KV().Acquire(&api.KVPair{Key: key, Value: value, Session: session}, (&api.WriteOptions{}).WithContext(ctx))
			if err == nil && !done {
				err = errors.New("the key is locked")
			}
			return err
		}))
		body := fmt.Sprintf(`{"leader": %q, "on_busy": "refuse"}`, leader.Name)
		code, text, err := request(ctx, http.DefaultClient, http.MethodPost, "http://"+leader.REST+"/switchover", strings.NewReader(body), func(r *http.Request) {
			r.SetBasicAuth(user, password)
		})
		if err != nil || code != http.StatusOK {
			t.Fatalf("switchover: %d %s %v", code, text, err)
		}
		await(ctx, t, "the forged bouncer was not told", func() error {
			mu.Lock()
			defer mu.Unlock()
			if !heard["/handover"] || !heard["/poke"] {
				return fmt.Errorf("it heard of %v", heard)
			}
			return nil
		})
	})
}

// floodFor is how long a flood lasts at the least: for measuring.
var floodFor = flag.Duration("flood", 0, "how long TestStrangers' floods last at the least")

// flood is strangers who connect to APIs, 1,000 times a second, and keep what they have got: idle, in the middle of a
// header, after a request, or with a body that does not come. For measuring it is 4,000 times: beside a machine's
// other tests the server may not be given the processor to accept so many, and then who comes last waits longest.
type flood struct {
	end   context.CancelFunc
	work  sync.WaitGroup
	began time.Time
	// made counts connections, held those that the strangers have not closed, most the
	// most of these.
	made, held, most atomic.Int64
	once             sync.Once
	perSecond        float64
}

func startFlood(ctx context.Context, sources int, targets ...string) *flood {
	ctx, end := context.WithCancel(ctx)
	f := &flood{end: end, began: time.Now()}
	perSecond := rate.Limit(1000)
	if *floodFor > 0 {
		perSecond = 4000
	}
	pace := rate.NewLimiter(perSecond, int(perSecond)/4)
	for i, target := range targets {
		for j, sent := range []string{"", "GET /health HTTP/1.1\r\nX-Slow: ", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "POST /handover HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"} {
			for k := range floodHands {
				f.work.Go(func() { f.attack(ctx, pace, target, sent, sources, 4*i+j+k) })
			}
		}
	}
	return f
}

// startRequests is strangers who ask on 32 kept connections to each API, from four addresses,
// for what costs most, as fast as they are answered.
func startRequests(ctx context.Context, scope string, targets ...string) *flood {
	ctx, end := context.WithCancel(ctx)
	f := &flood{end: end, began: time.Now()}
	paths := []string{"/metrics", "/status", "/metrics/pgbouncer", "/patroni?observe", "/cluster", "/config", "/health", "/", "/live", "/shards/" + scope, "/shards/nowhere"}
	for _, target := range targets {
		for i := range 32 {
			f.work.Go(func() {
				dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%4))}}
				transport := &http.Transport{DialContext: dialer.DialContext}
				defer transport.CloseIdleConnections()
				client := &http.Client{Transport: transport}
				f.most.Store(max(f.most.Load(), f.held.Add(1)))
				for n := i; ctx.Err() == nil; n++ {
					one, end := context.WithTimeout(ctx, 2*time.Second) // /live does not end
					if _, _, err := request(one, client, http.MethodGet, "http://"+target+paths[n%len(paths)], nil, nil); err == nil || one.Err() != nil {
						f.made.Add(1)
					}
					end()
				}
			})
		}
	}
	return f
}

// floodHands is how many connect at the same time with one thing to say to one API, and floodKept
// how many connections all of them keep.
const (
	floodHands = 4
	floodKept  = 500
)

func (f *flood) attack(ctx context.Context, pace *rate.Limiter, target, sent string, sources, number int) {
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	for n := number; pace.Wait(ctx) == nil; n++ {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+n%sources))}}
		conn, err := dialer.DialContext(ctx, "tcp", target)
		if err != nil {
			continue // no room, on whichever side
		}
		f.made.Add(1)
		f.most.Store(max(f.most.Load(), f.held.Add(1)))
		_, _ = io.WriteString(conn, sent) // it may be closed already
		if open = append(open, conn); len(open) > floodKept/floodHands {
			open[0].Close()
			f.held.Add(-1)
			open = open[1:]
		}
	}
}

// stop ends the flood, and tells how many connections the strangers held at the most and
// how many they made in a second.
func (f *flood) stop() (most int64, perSecond float64) {
	f.once.Do(func() {
		f.end()
		f.perSecond = float64(f.made.Load()) / time.Since(f.began).Seconds()
		f.work.Wait()
	})
	return f.most.Load(), f.perSecond
}

func request(ctx context.Context, client *http.Client, method, url string, body io.Reader, edit func(*http.Request)) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return 0, "", err
	}
	if edit != nil {
		edit(r)
	}
	answer, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}
