package ansible

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// patience bounds every wait for something to become true.
const patience = 2 * time.Minute

// await retries until what is true, and fails the test when it does not become so.
func (r *rollout) await(t *testing.T, what string, try func() error) {
	t.Helper()
	testkit.Await(testkit.Within(t, patience), t, "waiting for "+what, try)
}

type clusterView struct {
	Members []struct{ Name, Role, State string }
}

// leader is the leader of the shard whose agents listen on a port.
func (r *rollout) leader(t *testing.T, port string) (name string) {
	t.Helper()
	r.await(t, "a leader", func() error {
		var view clusterView
		if err := r.tryAsk(t.Context(), http.MethodGet, r.member, port, "/cluster", "", &view); err != nil {
			return err
		}
		for _, m := range view.Members {
			if m.Role == "leader" && m.State == "running" {
				name = m.Name
				return nil
			}
		}
		return fmt.Errorf("no leader in %v", view)
	})
	return name
}

// awaitHealthy waits until a shard has a leader and all members stream.
func (r *rollout) awaitHealthy(t *testing.T, port string, members int) {
	t.Helper()
	r.await(t, "the shard to be whole", func() error {
		var view clusterView
		if err := r.tryAsk(t.Context(), http.MethodGet, r.member, port, "/cluster", "", &view); err != nil {
			return err
		}
		leaders, streaming := 0, 0
		for _, m := range view.Members {
			switch {
			case m.Role == "leader" && m.State == "running":
				leaders++
			case m.State == "streaming":
				streaming++
			}
		}
		if leaders != 1 || streaming != members-1 {
			return fmt.Errorf("shard of port %s: %v", port, view)
		}
		return nil
	})
}

// postmaster is the pid and start of orders' postmaster on a host.
func (r *rollout) postmaster(t *testing.T, name string) string {
	t.Helper()
	text, err := r.host(name).run(t.Context(), "sed -n '1p;3p' /var/lib/postgresql/15/orders/postmaster.pid")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (r *rollout) ask(t *testing.T, method, name, port, path, body string, into any) {
	t.Helper()
	if err := r.tryAsk(t.Context(), method, name, port, path, body, into); err != nil {
		t.Fatal(err)
	}
}

// shardAt is the shard whose agents listen on a port, empty when none do.
func (r *rollout) shardAt(port string) string {
	for scope, settings := range r.vars["lictor_shards"].(map[string]any) {
		if fmt.Sprint(settings.(map[string]any)["api_port"]) == port {
			return scope
		}
	}
	return ""
}

// tryAsk asks an agent's REST API, with its shard's password, or Prometheus.
func (r *rollout) tryAsk(ctx context.Context, method, name, port, path, body string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	scope, scheme := r.shardAt(port), "http"
	transport := &http.Transport{DialContext: r.dial, DisableKeepAlives: true}
	if scope != "" { // the shards' agents; they ask for a certificate, too, where something changes
		scheme = "https"
		pki := filepath.Join(r.dir, "secrets/pki")
		authority, err := os.ReadFile(filepath.Join(pki, "ca.pem"))
		if err != nil {
			return err
		}
		own := filepath.Join(pki, r.member+".lictor.pem")
		certificate, err := tls.LoadX509KeyPair(own, own)
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(authority)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{certificate}}
	}
	url := scheme + "://" + net.JoinHostPort(r.host(name).address, port) + path
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	if scope != "" {
		password, err := os.ReadFile(filepath.Join(r.dir, "secrets/shards", scope, "api"))
		if err != nil {
			return err
		}
		req.SetBasicAuth("lictor", strings.TrimSpace(string(password)))
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
