package ansible

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// fakePooler greets its clients with its name, and says how it is.
type fakePooler struct {
	name    string
	healthy atomic.Bool
}

func startPooler(t *testing.T, name, address, port, healthPort string) *fakePooler {
	t.Helper()
	p := &fakePooler{name: name}
	clients, err := net.Listen("tcp", net.JoinHostPort(address, port))
	testkit.Must(t, err)
	t.Cleanup(func() { _ = clients.Close() })
	go func() {
		for {
			conn, err := clients.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, name)
			_ = conn.Close()
		}
	}()
	health, err := net.Listen("tcp", net.JoinHostPort(address, healthPort))
	testkit.Must(t, err)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" || !p.healthy.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(health) }()
	return p
}

// A pooler that is not healthy gets no new clients while another one is; when none is, all
// get clients: poolers that cannot serve one shard serve the others.
func TestHAProxyServesWhenNoPoolerIsHealthy(t *testing.T) {
	for _, program := range []string{"ansible", "haproxy"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is not installed: make deps")
		}
	}
	ports, err := testkit.FreePorts(3)
	testkit.Must(t, err)
	entry, pgbouncer, health := strconv.Itoa(ports[0]), strconv.Itoa(ports[1]), strconv.Itoa(ports[2])
	poolers := []*fakePooler{startPooler(t, "p1", "127.0.0.2", pgbouncer, health), startPooler(t, "p2", "127.0.0.3", pgbouncer, health)}
	config := renderHAProxy(t, map[string]any{
		"lictor_nlb_port": entry, "lictor_pgbouncer_port": pgbouncer, "lictor_bouncer_port": health,
		"lictor_bouncer_scheme": "http", "lictor_tls": false,
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	haproxy := exec.CommandContext(ctx, "haproxy", "-db", "-f", config)
	out := &strings.Builder{}
	haproxy.Stdout, haproxy.Stderr = out, out
	testkit.Must(t, haproxy.Start())
	defer func() { _ = haproxy.Process.Kill(); _ = haproxy.Wait() }()

	serves := func() string {
		conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", entry))
		if err != nil {
			return ""
		}
		defer conn.Close()
		said, _ := io.ReadAll(conn)
		return string(said)
	}
	// Whether a dozen clients in a row reach exactly these, nobody is turned away.
	reach := func(when string, names ...string) {
		t.Helper()
		for {
			got := map[string]bool{}
			for range 12 {
				got[serves()] = true
			}
			right := len(got) == len(names)
			for _, name := range names {
				right = right && got[name]
			}
			if right {
				return
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				_ = haproxy.Process.Kill()
				_ = haproxy.Wait()
				t.Fatalf("%s: clients reach %v, not %v:\n%s", when, got, names, out)
			}
		}
	}
	poolers[0].healthy.Store(true)
	reach("one is healthy", "p1")
	poolers[0].healthy.Store(false)
	reach("none is healthy", "p1", "p2")
	poolers[1].healthy.Store(true)
	reach("one is healthy again", "p2")
	poolers[0].healthy.Store(true)
	reach("both are healthy", "p1", "p2")
}

// With TLS the checks are by https; HAProxy takes that file, too.
func TestHAProxyTakesItsConfiguration(t *testing.T) {
	for _, program := range []string{"ansible", "haproxy"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is not installed: make deps")
		}
	}
	for _, scheme := range []string{"http", "https"} {
		config := renderHAProxy(t, map[string]any{
			"lictor_nlb_port": "6432", "lictor_pgbouncer_port": "6432", "lictor_bouncer_port": "8009", "lictor_bouncer_scheme": scheme, "lictor_tls": true,
		})
		if out, err := exec.Command("haproxy", "-c", "-f", config).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", scheme, err, out)
		}
	}
}

// renderHAProxy renders the role's template, for a process without its users and sockets.
func renderHAProxy(t *testing.T, vars map[string]any) string {
	t.Helper()
	dir := t.TempDir()
	vars["lictor_nlb_maxconn"], vars["lictor_nlb_idle_timeout"] = 1000, "1h"
	vars["lictor_addresses"] = map[string]string{"p1": "127.0.0.2", "p2": "127.0.0.3"}
	inventory, err := json.Marshal(map[string]any{
		"all": map[string]any{
			"hosts": map[string]any{"localhost": map[string]any{"ansible_connection": "local"}}, "vars": vars,
		},
		"lictor_poolers": map[string]any{"hosts": map[string]any{"p1": nil, "p2": nil}},
	})
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "inventory.json"), inventory, 0o600))
	config := filepath.Join(dir, "haproxy.cfg")
	template, err := filepath.Abs("../../ansible/roles/nlb/templates/haproxy.cfg.j2")
	testkit.Must(t, err)
	cmd := exec.Command("ansible", "-i", filepath.Join(dir, "inventory.json"), "localhost", "-m", "ansible.builtin.template",
		"-a", fmt.Sprintf("src=%s dest=%s", template, config))
	cmd.Env = append(os.Environ(), "ANSIBLE_HOME="+dir, "ANSIBLE_LOCAL_TEMP="+dir, "ANSIBLE_REMOTE_TEMP="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(config)
	testkit.Must(t, err)
	ca := filepath.Join(dir, "ca.pem")
	testkit.Must(t, exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=test", "-keyout", filepath.Join(dir, "key"), "-out", ca).Run())
	changed := strings.NewReplacer(
		"    stats socket /run/haproxy/admin.sock mode 660 level admin\n", "", "    log /dev/log local0 notice\n", "    log stdout format raw local0\n",
		"    user haproxy\n", "", "    group haproxy\n", "", "/etc/haproxy/lictor-ca.pem", ca,
	).Replace(string(text))
	testkit.Must(t, os.WriteFile(config, []byte(changed), 0o600))
	return config
}
