package bouncer

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// Where nothing is configured root and the bouncer's user drain, on the bouncer's own
// host: no other user of it, no proxy, and no page that a browser shows.
func TestDrainIsForRootAndTheBouncersUser(t *testing.T) {
	w := serving(t, nil)
	if err := Drain(w.ctx, w.config, true); err != nil {
		t.Fatal(err)
	}
	try := func(edit func(*http.Request)) (int, string) {
		r, err := http.NewRequestWithContext(w.ctx, http.MethodPost, "http://"+w.config.Listen+"/undrain", nil)
		if err != nil {
			t.Fatal(err)
		}
		edit(r)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(text)
	}
	for name, edit := range map[string]func(*http.Request){
		"a page":                   func(r *http.Request) { r.Header.Set("Origin", "https://example.com") },
		"a page after rebinding":   func(r *http.Request) { r.Host = "evil.example.com:8009" },
		"a form of another site":   func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"somebody behind a proxy":  func(r *http.Request) { r.Header.Set("X-Forwarded-For", "10.9.9.9") },
		"a page of this host's":    func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
		"one that has no name yet": func(r *http.Request) { r.Header.Set("Origin", "null") },
	} {
		if code, text := try(edit); code != http.StatusForbidden {
			t.Errorf("%s: %d %s", name, code, text)
		}
	}
	if os.Geteuid() == 0 {
		host, port, _ := net.SplitHostPort(w.config.Listen)
		cmd := exec.Command("bash", "-c", `exec 3<>/dev/tcp/$0/$1; printf 'POST /undrain HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n' >&3; cat <&3`, host, port)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.Output(); err != nil || !strings.HasPrefix(string(out), "HTTP/1.1 403") || !strings.Contains(string(out), "65534") {
			t.Errorf("another user of this host: %v %s", err, out)
		}
	}
	if s, err := AskStatus(w.ctx, w.config); err != nil || !s.Draining {
		t.Fatalf("somebody has ended the draining: %v", err)
	}
	if err := Drain(w.ctx, w.config, false); err != nil {
		t.Error(err)
	}
}

// Two thousand idle connections of one host cost the load balancer no health check, and
// PgBouncer's console and Consul no descriptor.
func TestFloodCostsNoHealthCheck(t *testing.T) {
	w := serving(t, nil)
	w.awaitHealthy()
	attacker := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for i := range 2000 {
		conn, err := attacker.DialContext(w.ctx, "tcp", w.config.Listen)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%100 == 0 {
			var h Health
			if code, err := w.http(http.MethodGet, "/health", &h); err != nil || code != http.StatusOK {
				t.Fatalf("with %d connections: %d %v %v", i, code, h, err)
			}
		}
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
}

// Whoever asks without end for what costs a processor's time at a thousand shards gets what all
// get who ask: each answer has figures of the moment in which it was made.
func TestAnswersAreShared(t *testing.T) {
	w := serving(t, nil)
	w.awaitHealthy()
	const askers = 100
	answers := make(chan string, askers)
	var asking sync.WaitGroup
	for range askers {
		asking.Go(func() {
			response, err := http.Get("http://" + w.config.Listen + "/metrics")
			if err != nil {
				t.Error(err)
				return
			}
			defer response.Body.Close()
			text, err := io.ReadAll(response.Body)
			if err != nil || !strings.Contains(string(text), "go_memstats_alloc_bytes_total ") || !strings.Contains(string(text), "lictor_bouncer_healthy") {
				t.Errorf("%v: %.200s", err, text)
			}
			answers <- string(text)
		})
	}
	asking.Wait()
	close(answers)
	made := map[string]bool{}
	for text := range answers {
		made[text] = true
	}
	t.Logf("%d answers were made for %d who asked", len(made), askers)
	if len(made) > askers/2 {
		t.Error("each had one of its own")
	}
}

// Anybody who reaches the listener may poke and ask for handovers: what that has read
// of Consul is bounded, and one route is read for a poke, not those of all shards.
func TestForgedRequestsCostConsulLittle(t *testing.T) {
	var lists, routes, handovers atomic.Int64
	w := newWorld(t, func(c *config.Config) {
		target := &url.URL{Scheme: "http", Host: c.Consul.Host}
		pass := httputil.NewSingleHostReverseProxy(target)
		consul := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if q := r.URL.Query(); q.Has("consistent") {
				switch {
				case q.Has("recurse"):
					lists.Add(1)
				case strings.Contains(r.URL.Path, "/routes/"):
					routes.Add(1)
				case strings.Contains(r.URL.Path, "/handovers/"):
					handovers.Add(1)
				}
			}
			pass.ServeHTTP(rw, r)
		}))
		t.Cleanup(func() { consul.CloseClientConnections(); consul.Close() })
		c.Consul.Host = strings.TrimPrefix(consul.URL, "http://")
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	t.Cleanup(w.bouncer()) // before Consul's end
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	lists.Store(0)
	began := time.Now()
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	ended := make(chan struct{}, 8)
	for range cap(ended) {
		go func() {
			defer func() { ended <- struct{}{} }()
			for i := range 100 {
				var body map[string]any
				_, _ = w.post("/poke", cluster.Poke{Namespace: "service", Scope: "s1", Index: 1 << 60}, &body)
				_, _ = w.post("/poke", cluster.Poke{}, &body)
				if i%25 == 0 { // it waits for its read
					_, _ = w.post("/misses", cluster.Missing{Namespace: "service", Scope: "s1", Leader: "x", SilentMS: 1}, &body)
				}
				_, _ = w.post("/poke", cluster.Poke{Namespace: "service", Scope: fmt.Sprint("none", i)}, &body)
				if ctx.Err() != nil {
					return
				}
			}
		}()
	}
	forged := &announcement{w: w, value: cluster.Handover{ID: "x", Leader: "db1", DeadlineMS: 60000, State: cluster.HandoverAnnounced}}
	for range 8 {
		if code, answer, err := forged.post(0); err != nil || code != http.StatusConflict || answer.Paused {
			t.Errorf("%d %+v %v", code, answer, err)
		}
	}
	for range cap(ended) {
		<-ended
	}
	took := time.Since(began).Seconds()
	most := int64(3 + took*4) // as docs/security.md says, whatever the code's rates are
	if n := routes.Load(); n == 0 || n > most {
		t.Errorf("%d reads of the route in %.1f s", n, took)
	}
	if n := handovers.Load(); n == 0 || n > most {
		t.Errorf("%d reads of the handover in %.1f s", n, took)
	}
	if n := lists.Load(); n > int64(4+took) {
		t.Errorf("%d reads of all routes in %.1f s", n, took)
	}
	// What is true is heard at once all the same.
	w.announce("h1", 30*time.Second).held()
}

// A leader has announced a handover, and one client's transaction does not end: whoever knows of it may have
// any number of replies wait, on every connection that there is. Two of them do, the newest, and no
// health check is lost.
func TestWaitingRepliesKeepNobodyOut(t *testing.T) {
	w := serving(t, nil)
	client := w.connect("s1")
	w.exec(client, "BEGIN; SELECT 1")
	a := w.announce("h1", 2*time.Minute)
	a.held()
	w.awaitHealthy()
	body, err := json.Marshal(cluster.HandoverRequest{Namespace: "service", Scope: "s1", Handover: a.value, WaitMS: 30000})
	if err != nil {
		t.Fatal(err)
	}
	request := fmt.Sprintf("POST /handover HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	const conns = 512
	var replies, busy atomic.Int64
	var reading sync.WaitGroup
	var all []net.Conn
	defer func() {
		for _, conn := range all {
			conn.Close()
		}
		reading.Wait()
	}()
	for i := range conns {
		attacker := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%4))}}
		conn, err := attacker.DialContext(w.ctx, "tcp", w.config.Listen)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, conn)
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(i, err)
		}
		reading.Go(func() {
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return
			}
			defer answer.Body.Close()
			var said cluster.HandoverAnswer
			if err := json.NewDecoder(answer.Body).Decode(&said); err != nil || answer.StatusCode != http.StatusOK || !said.Paused || said.ID != "h1" {
				t.Errorf("%d %+v %v", answer.StatusCode, said, err)
			}
			replies.Add(1)
			busy.Add(int64(said.Busy))
		})
	}
	// Each on a connection of its own, as a balancer asks.
	checks := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range 20 {
		answer, err := checks.Get("http://" + w.config.Listen + "/health")
		if err != nil {
			t.Fatalf("health check %d: %v", i, err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Fatalf("health check %d: %s", i, answer.Status)
		}
	}
	w.await("all but two being replied to", func() error {
		if n := replies.Load(); n < conns-mostWaiting {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if n := replies.Load(); n != conns-mostWaiting || busy.Load() != n {
		t.Errorf("%d replies, which tell of %d transactions", n, busy.Load())
	}
	w.exec(client, "COMMIT") // the newest wait for it
	w.await("the others being replied to", func() error {
		if n := replies.Load(); n < conns {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if n := busy.Load(); n != conns-mostWaiting {
		t.Errorf("who has waited is told of a transaction that has ended: %d", n)
	}
}

// With a certificate the listener speaks https alone; agents and commands check it, and
// with verify_client: required nobody without one is heard.
func TestListenerTLS(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := bouncertest.Certificate(t, dir, "ours"), bouncertest.Certificate(t, dir, "theirs")
	w := newWorld(t, func(c *config.Config) {
		c.CertFile, c.CAFile, c.VerifyClient, c.ConnectAddress = ours, ours, "required", c.Listen
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.await("the listener", func() error { _, err := AskStatus(w.ctx, w.config); return err })
	if err := Drain(w.ctx, w.config, true); err != nil {
		t.Error(err)
	}
	w.await("its key", func() error {
		pair, _, err := w.site.client.KV().Get(w.config.Keys().Bouncers()+"b1", nil)
		if err != nil || pair == nil {
			return fmt.Errorf("no key: %w", err)
		}
		if b, err := cluster.ParseBouncer("b1", pair.Value); err != nil || b.URL != "https://"+w.config.Listen {
			t.Fatalf("%+v %v", b, err)
		}
		return nil
	})
	if rows, err := Overview(w.ctx, w.config); err != nil || len(rows) != 1 || !rows[0].Answers {
		t.Errorf("%+v %v", rows, err)
	}
	if _, err := w.status(); err == nil {
		t.Error("plain HTTP is answered")
	}
	for name, edit := range map[string]func(*config.Config){
		"no certificate":           func(c *config.Config) { c.CertFile = "" },
		"another's certificate":    func(c *config.Config) { c.CertFile = theirs },
		"another's authority":      func(c *config.Config) { c.CAFile = theirs },
		"no authority":             func(c *config.Config) { c.CAFile = "" },
		"another name":             func(c *config.Config) { c.ConnectAddress = "db9.example.com:8009" },
		"plain, as without a file": func(c *config.Config) { c.CertFile, c.CAFile = "", "" },
	} {
		c := w.config
		edit(&c)
		if err := Drain(w.ctx, c, false); err == nil {
			t.Errorf("%s: drained", name)
		}
	}
	c := w.config
	c.ConnectAddress, c.VerifyNames = "db9.example.com:8009", new(bool)
	if err := Drain(w.ctx, c, false); err != nil {
		t.Errorf("another name, which is not compared: %v", err)
	}
}
