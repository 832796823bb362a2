package ansible

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// TestManagementTokenGoesToConsul: whoever takes Consul's port while Consul is away is not told the
// token that may do everything: neither another user of the host, nor PostgreSQL's, which has a
// certificate of the same CA for the same address.
func TestManagementTokenGoesToConsul(t *testing.T) {
	t.Parallel()
	c := startConsul(t)
	node := pki(t, c.pki, "cert", "db1.lictor", "DNS:db1,DNS:localhost,IP:127.0.0.1")
	elsewhere := t.TempDir()
	pki(t, elsewhere, "ca")
	stranger := pki(t, elsewhere, "cert", "stranger", "DNS:server.dc1.consul,IP:127.0.0.1")
	consul := "127.0.0.1:" + strconv.Itoa(c.https)
	api := func(address string) map[string]any {
		return map[string]any{"servers": []string{address}, "ca_path": c.ca(), "server_name": "server.dc1.consul", "token": management}
	}
	give := map[string]any{"lictor_ha.lictor.consul_acl": map[string]any{"policies": []any{map[string]any{"name": "one", "rules": "", "description": ""}}, "timeout": 1}}
	ask := map[string]any{"lictor_ha.lictor.consul_request": map[string]any{"path": "/v1/acl/token/self"}}
	with := func(task map[string]any, address string) map[string]any {
		copied := map[string]any{"ignore_errors": true}
		for module, args := range task {
			all := map[string]any{"api": api(address)}
			for name, value := range args.(map[string]any) {
				all[name] = value
			}
			copied[module] = all
		}
		return copied
	}

	plain := newImpostor(t, "")
	lictors := newImpostor(t, node)
	others := newImpostor(t, stranger)
	var tasks []map[string]any
	for _, i := range []*impostor{plain, lictors, others} {
		tasks = append(tasks, with(give, i.address), with(ask, i.address))
	}
	out, err := runTasks(t, map[string]any{}, tasks...)
	testkit.Must(t, err)
	for name, i := range map[string]*impostor{"another user": plain, "PostgreSQL's user": lictors, "another CA": others} {
		if n := i.requests.Load(); n != 0 {
			t.Errorf("%s was asked %d times", name, n)
		}
	}
	if n := strings.Count(out, "fatal: "); n != 6 || !strings.Contains(out, "Hostname mismatch") {
		t.Errorf("%d of 6 tasks failed: %s", n, out)
	}
	if strings.Contains(out, management) {
		t.Errorf("the token is told: %s", out)
	}

	out, err = runTasks(t, map[string]any{}, with(give, consul), with(ask, consul))
	testkit.Must(t, err)
	if strings.Contains(out, "fatal: ") || !strings.Contains(out, "ok=2    changed=1") || strings.Contains(out, management) {
		t.Errorf("Consul itself: %s", out)
	}

	// The role's own tasks that ask this node, to the last one: after it Consul has left.
	stub := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(stub, "systemctl"), []byte("#!/bin/sh\n"), 0o700)) //nolint:gosec // a program
	tasks = []map[string]any{
		{"ansible.builtin.include_vars": map[string]any{"file": defaultsOf(t, "common")}},
		taskOf(t, "roles/consul/handlers/main.yml", "Restart Consul"),
		taskOf(t, "roles/consul/tasks/leader.yml", "Wait until Consul knows a leader"),
		taskOf(t, "roles/consul/tasks/healthy.yml", "Wait until all servers are healthy voters"),
		taskOf(t, "roles/consul/tasks/rejoin.yml", "Leave"),
	}
	tasks[1]["environment"] = map[string]string{"PATH": stub + ":" + os.Getenv("PATH")}
	out, err = runTasks(t, map[string]any{
		"consul_https_port": c.https, "consul_ca_path": c.ca(), "consul_management_token": management, "consul_servers": []string{"localhost"},
		"lictor_addresses": map[string]string{"localhost": "127.0.0.1"}, "consul_leaves": true, "consul_started": map[string]bool{"changed": false},
	}, tasks...)
	if err != nil || !strings.Contains(out, "ok=5    changed=2") {
		t.Errorf("%v: %s", err, out)
	}
}

// defaultsOf is the file of a role's defaults.
func defaultsOf(t *testing.T, role string) string {
	t.Helper()
	path, err := filepath.Abs("../../ansible/roles/" + role + "/defaults/main.yml")
	testkit.Must(t, err)
	return path
}

// impostor listens where Consul should.
type impostor struct {
	address  string // host:port
	requests atomic.Int32
}

func (i *impostor) port() string {
	_, port, _ := strings.Cut(i.address, ":")
	return port
}

// newImpostor serves with a file of certificate and key; without one, without TLS.
func newImpostor(t *testing.T, file string) *impostor {
	t.Helper()
	i := &impostor{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.requests.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write([]byte("[]"))
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that clients break off
	if file == "" {
		s.Start()
	} else {
		certificate, err := tls.LoadX509KeyPair(file, file)
		testkit.Must(t, err)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	i.address = s.Listener.Addr().String()
	return i
}

// TestProgramsAskConsulByTLS: agents and bouncers know no address of Consul without TLS, on loopback
// neither: whoever took the port there would be told their tokens. Playbooks send none so.
func TestProgramsAskConsulByTLS(t *testing.T) {
	t.Parallel()
	c := startConsul(t)
	plain := newImpostor(t, "")
	elsewhere := t.TempDir()
	pki(t, elsewhere, "ca")
	others := newImpostor(t, pki(t, elsewhere, "cert", "stranger", "DNS:localhost,IP:127.0.0.1"))
	for name, test := range map[string]struct {
		port string
		is   *impostor // nil: Consul
	}{
		"Consul": {strconv.Itoa(c.https), nil}, "another user": {plain.port(), plain}, "another CA": {others.port(), others},
	} {
		for program, consul := range sections(t, test.port) {
			hosts, _ := consul["hosts"].([]any)
			if len(hosts) != 2 || hosts[0] != "https://127.0.0.1:"+test.port || hosts[1] != "https://10.0.0.9:"+test.port {
				t.Errorf("the %s asks %v", program, hosts)
			}
			if consul["remote_tls_server_name"] != "server.dc1.consul" {
				t.Errorf("the %s takes whoever has a certificate for another host's address for its Consul: %v", program, consul)
			}
			lictor := os.Getenv("LICTOR_BIN")
			if lictor == "" {
				continue // make test sets it
			}
			dir := t.TempDir()
			token := filepath.Join(dir, "token")
			testkit.Must(t, os.WriteFile(token, []byte(management), 0o600))
			consul["cacert"], consul["token_file"], consul["hosts"] = c.ca(), token, hosts[:1]
			text, err := json.Marshal(map[string]any{"scope": "orders", "name": "db1", "consul": consul})
			testkit.Must(t, err)
			config := filepath.Join(dir, "lictor.yml")
			testkit.Must(t, os.WriteFile(config, text, 0o600))
			out, err := output(t.Context(), commandTimeout, lictor, "fleet", "-c", config)
			// Consul has answered, and knows of no shard.
			if test.is == nil && (err == nil || !strings.Contains(err.Error(), "there are no shards below service/ in Consul")) {
				t.Errorf("Consul, as the %s asks it: %v %s", program, err, out)
			}
			if test.is != nil && (err == nil || test.is.requests.Load() != 0) {
				t.Errorf("%s was asked %d times by the %s: %v %s", name, test.is.requests.Load(), program, err, out)
			}
		}
	}

	// Whoever asks Consul without TLS must do so without a token; nobody does.
	testkit.Must(t, filepath.WalkDir("../../ansible", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) == ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, no := range []string{":8500", "X-Consul-Token"} {
			if strings.Contains(string(text), no) && filepath.Base(path) != "consul.py" {
				t.Errorf("%s has %q: use the module consul_request", path, no)
			}
		}
		return nil
	}))
}

// sections are what the roles give an agent and a bouncer as their section consul, where Consul
// has this port and one server besides.
func sections(t *testing.T, port string) map[string]map[string]any {
	t.Helper()
	to := filepath.Join(t.TempDir(), "sections.json")
	var tasks []map[string]any
	for _, role := range []string{"common", "agent", "bouncer"} {
		tasks = append(tasks, map[string]any{"ansible.builtin.include_vars": map[string]any{"file": defaultsOf(t, role)}})
	}
	tasks = append(tasks, map[string]any{"ansible.builtin.copy": map[string]any{
		"content": "{{ {'agent': lictor_agent_config.consul, 'bouncer': lictor_bouncer_config.consul} | to_json }}", "dest": to, "mode": "0600",
	}})
	out, err := runTasks(t, map[string]any{
		"scope": "orders", "consul_servers": []string{"s1"}, "lictor_addresses": map[string]string{"s1": "10.0.0.9"}, "consul_https_port": port,
		"lictor_shard_spec": shard(5432, 8008, "localhost"), "lictor_secrets_dir": t.TempDir(),
	}, tasks...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(to)
	testkit.Must(t, err)
	var all map[string]map[string]any
	testkit.Must(t, json.Unmarshal(text, &all))
	return all
}
