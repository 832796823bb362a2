package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/cli"
)

// patience bounds every wait. It says nothing about how fast things are.
const patience = 2 * time.Minute

// site is a Consul with a fleet in it, and the page.
type site struct {
	t       testing.TB
	consul  *api.Client
	address string // of Consul, as the test asks it
	proxy   *counter
	url     string // of the page
	page    *exec.Cmd
	stop    func() // Consul
}

// newSite starts Consul, fills it with n healthy shards, and starts the page.
func newSite(ctx context.Context, t testing.TB, n int) *site {
	t.Helper()
	s := newFleet(ctx, t, n)
	s.startPage(ctx, "web", "serving the fleet page", "listen: 127.0.0.1:%d\nconsul: {host: %q}\n")
	return s
}

// newFleet starts Consul and fills it with n healthy shards.
func newFleet(ctx context.Context, t testing.TB, n int) *site {
	t.Helper()
	if testing.Short() {
		t.Skip("Consul: make test-e2e")
	}
	binary := os.Getenv("CONSUL_BIN")
	if binary == "" {
		t.Skip("Consul is needed: set CONSUL_BIN to what e2e/tools/consul.sh prints")
	}
	s := &site{t: t}
	s.startConsul(ctx, binary)
	members := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{ // a client that has left needs no answer
			"state": "running", "role": "primary", "lictor": map[string]any{
				"lease_left_ms": 6900, "guard": map[string]any{"running": true},
				"backups": map[string]any{"age_ms": 40_000, "count": 7, "bytes": 3 << 30, "last": map[string]string{"full": "2026-11-29T02:00:00Z"}, "verified": "2026-11-29T04:00:00Z"},
			},
		})
	}))
	t.Cleanup(members.Close)
	testkit.Must(t, cli.SeedFleet(ctx, s.consul, n, members.URL+"/patroni"))
	return s
}

func (s *site) startConsul(ctx context.Context, binary string) {
	s.t.Helper()
	ports, err := testkit.FreePorts(4)
	testkit.Must(s.t, err)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, "agent", "-dev", "-log-level=warn", "-data-dir", s.t.TempDir(), "-bind=127.0.0.1",
		fmt.Sprintf("-http-port=%d", ports[0]), fmt.Sprintf("-serf-lan-port=%d", ports[1]), fmt.Sprintf("-server-port=%d", ports[2]),
		"-serf-wan-port=-1", "-dns-port=-1", "-grpc-port=-1", "-hcl=ports { grpc_tls = -1 }", "-hcl=limits { txn_max_req_len = 8000000 }")
	cmd.Stdout, cmd.Stderr = io.Discard, s.t.Output()
	testkit.Must(s.t, cmd.Start())
	s.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	s.t.Cleanup(s.stop)
	s.address = fmt.Sprintf("127.0.0.1:%d", ports[0])
	s.consul, err = api.NewClient(&api.Config{Address: s.address})
	testkit.Must(s.t, err)
	testkit.Await(testkit.Within(s.t, patience), s.t, "Consul", func() error {
		nodes, _, err := s.consul.Catalog().Nodes(nil)
		if err == nil && len(nodes) == 0 {
			err = errors.New("its node is not registered yet") // so no session can be made
		}
		return err
	})
	s.proxy = newCounter(s.t, s.address)
}

// startPage starts a command of Lictor's that serves the page, with a file that is given the port and
// Consul's address, and waits until it logs that it is ready.
func (s *site) startPage(ctx context.Context, command, ready, file string) {
	s.t.Helper()
	ports, err := testkit.FreePorts(1)
	testkit.Must(s.t, err)
	path := filepath.Join(s.t.TempDir(), command+".yml")
	testkit.Must(s.t, os.WriteFile(path, fmt.Appendf(nil, file, ports[0], s.proxy.url), 0o600))
	program := os.Getenv("LICTOR_BIN")
	if program == "" {
		program = "../../bin/lictor"
	}
	s.page = exec.CommandContext(context.WithoutCancel(ctx), program, command, path) // its own cleanup ends it
	s.page.Env = []string{"PATH=" + os.Getenv("PATH")}
	log, err := s.page.StderrPipe()
	testkit.Must(s.t, err)
	testkit.Must(s.t, s.page.Start())
	serves, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		told := sync.OnceFunc(func() { close(serves) })
		for lines := bufio.NewScanner(log); lines.Scan(); {
			fmt.Fprintln(s.t.Output(), lines.Text())
			if strings.Contains(lines.Text(), ready) {
				told()
			}
		}
	}()
	s.t.Cleanup(func() {
		_ = s.page.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
		if err := s.page.Wait(); err != nil {
			s.t.Errorf("lictor %s: %v", command, err)
		}
	})
	select {
	case <-serves:
	case <-ended:
		s.t.Fatalf("lictor %s has ended", command)
	case <-time.After(patience):
		s.t.Fatalf("lictor %s does not begin", command)
	}
	s.url = fmt.Sprintf("http://127.0.0.1:%d/", ports[0])
}

// change edits the JSON under a key.
func (s *site) change(key string, edit func(map[string]any)) {
	s.t.Helper()
	pair, _, err := s.consul.KV().Get(key, nil)
	testkit.Must(s.t, err)
	value := map[string]any{}
	if pair == nil {
		pair = &api.KVPair{Key: key}
	} else {
		testkit.Must(s.t, json.Unmarshal(pair.Value, &value))
	}
	edit(value)
	pair.Value, err = json.Marshal(value)
	testkit.Must(s.t, err)
	_, err = s.consul.KV().Put(pair, nil)
	testkit.Must(s.t, err)
}

// counter stands between the page and Consul and counts the questions that are open: from when
// Consul is asked until its answer has been read.
type counter struct {
	url string
	mu  sync.Mutex
	// Of the page's own, which any server of Consul's may answer (a bouncer's others must be newer),
	// and of all.
	page, all struct{ now, most int }
}

func newCounter(t testing.TB, consul string) *counter {
	t.Helper()
	c := &counter{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: consul})
	proxy.Transport = c
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	server := httptest.NewServer(proxy)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	c.url = server.URL
	return c
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	isPage := r.URL.Query().Has("stale")
	c.count(isPage, 1)
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		c.count(isPage, -1)
		return nil, err
	}
	answer.Body = &countedBody{answer.Body, sync.OnceFunc(func() { c.count(isPage, -1) })}
	return answer, nil
}

// countedBody is done before whoever is given its last bytes has them.
type countedBody struct {
	io.ReadCloser
	done func()
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.done()
	}
	return n, err
}

func (b *countedBody) Close() error {
	b.done()
	return b.ReadCloser.Close()
}

func (c *counter) count(isPage bool, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all.now += by
	c.all.most = max(c.all.most, c.all.now)
	if isPage {
		c.page.now += by
		c.page.most = max(c.page.most, c.page.now)
	}
}

// mostOpen is how many questions were open at the most, of the page's and of all.
func (c *counter) mostOpen() (page, all int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.page.most, c.all.most
}
