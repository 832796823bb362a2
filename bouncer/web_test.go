package bouncer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// fakePage answers whom it may with its namespace, and stays with who asks for /live.
type fakePage struct {
	namespace string
	access    httpserver.Access
	runs      chan string // "begins" and "ends", as Run does
}

func (p *fakePage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if denied := p.access.CheckReader(r); denied != nil {
		http.Error(w, denied.Text, denied.Status)
		return
	}
	fmt.Fprintln(w, "the page of", p.namespace)
	if r.URL.Path == "/live" {
		_ = http.NewResponseController(w).Flush() // a client that has gone needs no answer
		<-r.Context().Done()
	}
}

func (p *fakePage) Run(ctx context.Context) {
	p.runs <- "begins"
	<-ctx.Done()
	p.runs <- "ends"
}

// The fleet page takes nothing from what the listener answered before, is read by those whom
// authentication lets in, and ends, streams and all, with the configuration that wanted it.
func TestFleetPage(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Web, c.Authentication = true, config.Credentials{Username: "admin", Password: "secret"}
	})
	runs := make(chan string, 8)
	w.page = func(c config.Config, access httpserver.Access) (Page, error) {
		return &fakePage{c.WebNamespace, access, runs}, nil
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	if said := <-runs; said != "begins" {
		t.Fatal(said)
	}
	ask := func(path, password string) (*http.Response, error) {
		r, err := http.NewRequestWithContext(w.ctx, http.MethodGet, "http://"+w.config.Listen+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if password != "" {
			r.SetBasicAuth("admin", password)
		}
		return http.DefaultClient.Do(r)
	}
	read := func(path, password string) (int, string) {
		t.Helper()
		answer, err := ask(path, password)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	for _, c := range []struct {
		path, password string
		code           int
		part           string
	}{
		{"/", "secret", http.StatusOK, "the page of service"},
		{"/shards/s1", "secret", http.StatusOK, "the page of service"},
		{"/", "", http.StatusUnauthorized, "no auth header received"},
		{"/", "wrong", http.StatusUnauthorized, "not authenticated"},
		{"/health", "", http.StatusOK, `"healthy":true`},
		{"/status", "", http.StatusOK, `"service/s1"`},
		{"/metrics", "", http.StatusOK, "lictor_bouncer_healthy"},
	} {
		if code, text := read(c.path, c.password); code != c.code || !strings.Contains(text, c.part) {
			t.Errorf("%s with the password %q: %d %.200s", c.path, c.password, code, text)
		}
	}
	stream, err := ask("/live", "secret")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	plain := w.config
	plain.Web = false
	w.changes <- plain
	if said := <-runs; said != "ends" {
		t.Fatal(said)
	}
	if _, err := io.Copy(io.Discard, stream.Body); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the stream: %v", err)
	}
	w.await("a listener without the page", func() error {
		answer, err := ask("/", "secret")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusNotFound {
			return errors.New(answer.Status)
		}
		return nil
	})
	w.awaitHealthy()
	stop()
	if len(runs) > 0 {
		t.Errorf("a page without web: %s", <-runs)
	}
}

// Certificates that are asked of who drains are asked of who reads the page, and those who are not
// on the allowlist do not read it.
func TestFleetPageAccess(t *testing.T) {
	dir := t.TempDir()
	own := bouncertest.Certificate(t, dir, "own")
	for name, edit := range map[string]func(*config.Config){
		"a certificate is asked for": func(c *config.Config) { c.CertFile, c.CAFile, c.VerifyClient = own, own, "optional" },
		"not on the allowlist":       func(c *config.Config) { c.Allowlist = []string{"192.0.2.1"} },
	} {
		c := config.Config{Listen: "127.0.0.1:8009"}
		edit(&c)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:8009/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = "127.0.0.1:4711"
		if denied := pageAccess(c).CheckReader(r); denied == nil || denied.Status != http.StatusForbidden {
			t.Errorf("%s: %+v", name, denied)
		}
	}
}

// The page's own login reads the page and does nothing else, and that of who drains does not read it.
func TestFleetPageHasALoginOfItsOwn(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Web, c.Authentication = true, config.Credentials{Username: "admin", Password: "secret"}
		c.WebAuthentication = config.Credentials{Username: "reader", Password: "open"}
	})
	w.page = func(c config.Config, access httpserver.Access) (Page, error) {
		return &fakePage{c.WebNamespace, access, make(chan string, 8)}, nil
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitHealthy()
	for _, c := range []struct {
		method, path, user, password string
		code                         int
	}{
		{http.MethodGet, "/", "reader", "open", http.StatusOK},
		{http.MethodGet, "/", "admin", "secret", http.StatusUnauthorized},
		{http.MethodGet, "/", "", "", http.StatusUnauthorized},
		{http.MethodPost, "/drain", "reader", "open", http.StatusUnauthorized},
		{http.MethodPost, "/pause?shard=s1", "reader", "open", http.StatusUnauthorized},
		{http.MethodPost, "/drain", "admin", "secret", http.StatusOK},
	} {
		r, err := http.NewRequestWithContext(w.ctx, c.method, "http://"+w.config.Listen+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.user != "" {
			r.SetBasicAuth(c.user, c.password)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != c.code {
			t.Errorf("%s %s by %q: %d", c.method, c.path, c.user, answer.StatusCode)
		}
	}
}

// A page that cannot be made takes nothing from anybody: the configuration before goes on.
func TestFleetPageThatCannotBeMade(t *testing.T) {
	w := newWorld(t, nil)
	w.page = func(config.Config, httpserver.Access) (Page, error) {
		return nil, errors.New("its certificate is gone")
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	wanting := w.config
	wanting.Web = true
	w.changes <- wanting
	w.await("the reason", func() error {
		if !strings.Contains(w.log.String(), "the fleet page (web): its certificate is gone") {
			return errors.New("is not logged")
		}
		return nil
	})
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.awaitHealthy()
}
