package ansible

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

const (
	// management is the token that may do everything.
	management = "11111111-2222-3333-4444-555555555555"
	// renewed is a node's, which the inventory has.
	renewed = "11111111-2222-3333-4444-666666666666"
)

// TestRights: what the tokens may that the role makes, at a real Consul. A token of one shard,
// bouncer or node opens that and nothing else, also where Consul's servers, the database
// hosts and the poolers are the same hosts.
func TestRights(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed: make deps")
	}
	abc := []string{"a", "b", "c"}
	for name, test := range map[string]struct {
		servers []string
		// onServer is what Consul answers to a token of host a that makes a session of a server.
		onServer int
	}{
		"three hosts":   {abc, http.StatusForbidden},
		"servers apart": {[]string{"b", "s1"}, http.StatusOK}, // of s1, where nobody else has any
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startConsul(t)
			for _, node := range []string{"a", "b", "c", "s1"} {
				c.must(t, "PUT", "/v1/catalog/register", management, map[string]any{"Node": node, "Address": "127.0.0.1"}, nil)
			}
			c.applyRights(t, map[string][]string{"consul_servers": test.servers, "lictor_databases": abc, "lictor_poolers": abc})
			agent, bouncer, node := c.token(t, "Agent of shard orders on a"), c.token(t, "Bouncer of a"), c.token(t, "Consul node a")
			if got := c.token(t, "Consul node c"); got != renewed {
				t.Errorf("a node whose token is in the inventory has another one in Consul: %s", got)
			}
			var theirs struct{ ID string }
			c.must(t, "PUT", "/v1/session/create", management, map[string]any{"Node": "b", "NodeChecks": []string{}}, &theirs)
			put := func(key string) [2]string { return [2]string{"PUT", "/v1/kv/" + key} }
			get := func(key string) [2]string { return [2]string{"GET", "/v1/kv/" + key} }
			c.must(t, "PUT", "/v1/kv/lictor/secrets/service/orders", management, "secret", nil)
			c.must(t, "PUT", "/v1/kv/lictor/secrets/service/users", management, "secret", nil)
			for who, may := range map[string]struct {
				token     string
				may, mayn [][2]string
			}{
				"an agent": {
					agent,
					[][2]string{put("service/orders/leader"), put("lictor/routes/service/orders"), get("lictor/secrets/service/orders"), put("lictor/rebuilds/service/" + addressOf("a", test.servers))},
					[][2]string{
						put("lictor/rebuilds/service/" + addressOf("c", nil)), put("lictor/rebuilds/service/" + addressOf("a", test.servers) + "0"),
						put("service/users/leader"), put("service/orders2/leader"), put("lictor/routes/service/users"), put("lictor/routes/service/orders2"),
						put("lictor/handovers/service/users"), put("lictor/events/service/users"), put("lictor/secrets/service/users"),
						get("lictor/secrets/service/users"), get("service/users/config"), put("lictor/bouncers/a"),
					},
				},
				"a bouncer": {
					bouncer,
					[][2]string{put("lictor/bouncers/a")},
					[][2]string{
						put("lictor/bouncers/b"), put("lictor/bouncers/ab"), put("lictor/routes/service/orders"),
						put("lictor/handovers/service/orders"), put("service/orders/leader"), get("lictor/secrets/service/orders"),
					},
				},
				"a node": {
					node, nil,
					[][2]string{put("service/orders/leader"), put("lictor/routes/service/orders"), put("lictor/bouncers/a"), get("lictor/secrets/service/orders"), get("service/orders/config")},
				},
			} {
				for want, all := range map[int][][2]string{http.StatusOK: may.may, http.StatusForbidden: may.mayn} {
					for _, one := range all {
						if got, said := c.ask(t, one[0], one[1], may.token, map[string]any{}); got != want {
							t.Errorf("%s: %s: %d, want %d: %s", who, one, got, want, said)
						}
					}
				}
				if got, said := c.ask(t, "PUT", "/v1/session/destroy/"+theirs.ID, may.token, nil); got != http.StatusForbidden {
					t.Errorf("%s ends a session of another host: %d %s", who, got, said)
				}
				for on, want := range map[string]int{"a": http.StatusOK, "b": http.StatusForbidden, test.servers[len(test.servers)-1]: test.onServer} {
					if who == "a node" {
						want = http.StatusForbidden
					}
					if got, said := c.ask(t, "PUT", "/v1/session/create", may.token, map[string]any{"Node": on, "NodeChecks": []string{}}); got != want {
						t.Errorf("%s makes a session of %s: %d, want %d: %s", who, on, got, want, said)
					}
				}
				if got, said := c.ask(t, "PUT", "/v1/catalog/deregister", may.token, map[string]any{"Node": "b"}); got != http.StatusForbidden {
					t.Errorf("%s takes another host from Consul: %d %s", who, got, said)
				}
			}
			if got, _ := c.ask(t, "GET", "/v1/session/info/"+theirs.ID, management, nil); got != http.StatusOK {
				t.Error("the other host's session is gone")
			}
		})
	}
}

// oneConsul is a Consul that lets nobody do anything without a token.
type oneConsul struct {
	address string // http
	https   int    // the port
	pki     string // the directory of its CA
}

func startConsul(t *testing.T) oneConsul {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "../tools/consul.sh").Output()
	if err != nil {
		t.Fatalf("no Consul to test with: %v", err)
	}
	ports, err := testkit.FreePorts(4)
	testkit.Must(t, err)
	c := oneConsul{"127.0.0.1:" + strconv.Itoa(ports[0]), ports[3], t.TempDir()}
	pki(t, c.pki, "ca")
	node := pki(t, c.pki, "cert", "alone", "DNS:server.dc1.consul,DNS:alone,DNS:localhost,IP:127.0.0.1")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, string(bytes.TrimSpace(out)), "agent", "-dev", "-node=alone", "-disable-host-node-id", "-log-level=warn",
		"-bind=127.0.0.1", "-client=127.0.0.1", "-http-port="+strconv.Itoa(ports[0]), "-https-port="+strconv.Itoa(ports[3]), "-server-port="+strconv.Itoa(ports[1]),
		"-serf-lan-port="+strconv.Itoa(ports[2]), "-serf-wan-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1", "-dns-port=-1",
		`-hcl=tls { defaults { ca_file = "`+c.ca()+`", cert_file = "`+node+`", key_file = "`+node+`" } }`,
		`-hcl=acl { enabled = true, default_policy = "deny", tokens { initial_management = "`+management+`", agent = "`+management+`" } }`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	testkit.Must(t, cmd.Start())
	t.Cleanup(func() { cancel(); _ = cmd.Wait() }) // killed in the end
	for limit := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if got, said := c.ask(t, "PUT", "/v1/kv/ready", management, "yes"); got == http.StatusOK {
			return c
		} else if time.Now().After(limit) {
			t.Fatalf("Consul does not come up: %d %s", got, said)
		}
	}
}

func (c oneConsul) ca() string { return filepath.Join(c.pki, "ca.pem") }

// pki has the collection's script make a CA or a certificate, whose path it returns.
func pki(t *testing.T, dir string, args ...string) string {
	t.Helper()
	if _, err := output(t.Context(), commandTimeout, "../../ansible/roles/common/files/pki.sh", append([]string{dir}, args...)...); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, args[min(1, len(args)-1)]+".pem")
}

// ask is one request; the status is 0 where there is no answer.
func (c oneConsul) ask(t *testing.T, method, path, token string, body any) (status int, said string) {
	t.Helper()
	var content io.Reader
	if body != nil && method != http.MethodGet {
		text, err := json.Marshal(body)
		testkit.Must(t, err)
		content = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+c.address+path, content)
	testkit.Must(t, err)
	r.Header.Set("X-Consul-Token", token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	return resp.StatusCode, string(text)
}

func (c oneConsul) must(t *testing.T, method, path, token string, body, into any) {
	t.Helper()
	status, said := c.ask(t, method, path, token, body)
	if status != http.StatusOK {
		t.Fatalf("%s %s: %d %s", method, path, status, said)
	}
	if into != nil {
		testkit.Must(t, json.Unmarshal([]byte(said), into))
	}
}

// token is the secret of the one with this description.
func (c oneConsul) token(t *testing.T, description string) string {
	t.Helper()
	var all []struct{ AccessorID, Description string }
	c.must(t, "GET", "/v1/acl/tokens", management, nil, &all)
	for _, one := range all {
		if one.Description == description {
			var found struct{ SecretID string }
			c.must(t, "GET", "/v1/acl/token/"+one.AccessorID, management, nil, &found)
			return found.SecretID
		}
	}
	t.Fatalf("no token is called %q: %v", description, all)
	return ""
}

// addressOf is a host's address in the inventory. Consul's servers are asked there.
func addressOf(host string, servers []string) string {
	if slices.Contains(servers, host) {
		return "127.0.0.1"
	}
	return "10.9.9." + strconv.Itoa(int(host[0]))
}

// applyRights has the role's own tasks make policies and tokens for a site of two shards.
func (c oneConsul) applyRights(t *testing.T, groups map[string][]string) {
	t.Helper()
	dir := t.TempDir()
	inventory := map[string]any{"all": map[string]any{"vars": map[string]any{
		"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "consul_management_token": management, "consul_datacenter": "dc1",
		"consul_https_port": c.https, "consul_ca_path": c.ca(),
		"lictor_secrets_dir": filepath.Join(dir, "secrets"),
		"lictor_shards":      map[string]any{"orders": shard(5432, 8008, "a", "b"), "users": shard(5433, 8018, "b", "c")},
	}}}
	for group, names := range groups {
		hosts := map[string]any{}
		for _, n := range names {
			host := map[string]any{"ansible_host": "127.0.0.1", "lictor_address": addressOf(n, groups["consul_servers"])}
			if n == "c" {
				host["consul_agent_token"] = renewed
			}
			hosts[n] = host
		}
		inventory[group] = map[string]any{"hosts": hosts}
	}
	out, err := runPlay(t, dir, inventory, map[string]any{}, map[string]any{
		"hosts": "consul_servers", "gather_facts": false,
		"roles": []any{map[string]any{"role": "lictor_ha.lictor.common"}},
		"tasks": []any{map[string]any{
			"ansible.builtin.include_role": map[string]any{"name": "lictor_ha.lictor.consul", "tasks_from": "acl.yml"},
		}},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
