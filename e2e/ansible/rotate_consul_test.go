package ansible

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// TestConsulsOwnAreRotated: somebody has read consul.json on a server, and by that has the management
// token, the node's token and the key of the gossip. The playbook rotate_consul makes others; the old
// ones are good until every node has shown that it runs with the new ones, and for nothing then.
// What the role installs on hosts and restarts there is done here by the test.
func TestConsulsOwnAreRotated(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed: make deps")
	}
	s := newConsulSite(t)
	s.install(t)
	s.restart(t)
	s.play(t, "acl.yml")
	stolen := s.secrets(t, "a")
	s.awaitMembers(t, 2)
	s.awaitKnown(t, "a", "b")

	s.play(t, "new_gossip.yml", "new_tokens.yml")
	for name, token := range map[string]string{"management": stolen.management, "node": stolen.node} {
		if got := s.tokenWorks(t, token); got != http.StatusOK {
			t.Errorf("the old %s token has ended before all nodes have new ones: %d", name, got)
		}
	}
	// No node has been given what is new: nothing that is old may end.
	if out, err := s.tryPlay(t, map[string]any{"node_wait": 2}, "old_tokens.yml"); err == nil || !strings.Contains(out, "Every node must run with its new token") {
		t.Errorf("old tokens end while nodes run with them: %v\n%s", err, out)
	}
	if got := s.tokenWorks(t, stolen.management); got != http.StatusOK {
		t.Errorf("the old management token has ended: %d", got)
	}
	if keys := s.keyring(t); len(keys) != 2 || keys[stolen.gossip] != 2 {
		t.Errorf("members have the keys %v", keys)
	}

	s.install(t)
	s.restart(t)
	s.awaitMembers(t, 2)
	s.play(t, "old_tokens.yml", "old_gossip.yml")
	now := s.secrets(t, "a")
	if now.management == stolen.management || now.node == stolen.node || now.gossip == stolen.gossip {
		t.Errorf("something is as it was")
	}
	for name, token := range map[string]string{"management": stolen.management, "node": stolen.node} {
		if got := s.tokenWorks(t, token); got != http.StatusForbidden {
			t.Errorf("the thief's %s token: %d, want 403", name, got)
		}
	}
	for name, token := range map[string]string{"management": now.management, "node": now.node} {
		if got := s.tokenWorks(t, token); got != http.StatusOK {
			t.Errorf("the new %s token: %d, want 200", name, got)
		}
	}
	if keys := s.keyring(t); len(keys) != 1 || keys[now.gossip] != 2 {
		t.Errorf("members have the keys %v", keys)
	}
	if out := s.member(t, stolen.gossip); !strings.Contains(out, "No installed keys could decrypt") {
		t.Errorf("whoever has the old key of the gossip is a member: %s", out)
	}
	// A server that begins again makes no old token anew, and nodes go on with theirs.
	s.restart(t)
	s.awaitMembers(t, 2)
	s.awaitKnown(t, "a", "b")
	if got := s.tokenWorks(t, stolen.management); got != http.StatusForbidden {
		t.Errorf("the thief's management token, after Consul has begun again: %d, want 403", got)
	}
	if left, err := filepath.Glob(filepath.Join(s.secretsDir, "*.over")); err != nil || len(left) > 0 {
		t.Errorf("there are notes of old secrets: %v %v", left, err)
	}

	// A member that is away would be locked out by another key.
	testkit.Must(t, s.nodes["b"].stop(syscall.SIGKILL))
	if out, err := s.tryPlay(t, nil, "new_gossip.yml"); err == nil {
		// It may not have been missed yet: then the key has not reached all.
		s.awaitMembers(t, 1)
		out, err = s.tryPlay(t, nil, "new_gossip.yml")
		if err == nil || !strings.Contains(out, "not alive are b") {
			t.Errorf("another key, while a member is away: %v\n%s", err, out)
		}
	} else if !strings.Contains(out, "not alive are b") && !strings.Contains(out, "Install it on all members") && !strings.Contains(out, "Every member must") {
		t.Errorf("another key, while a member is away: %v\n%s", err, out)
	}
}

// consulSite is a server a and a client b that run by the files that the role would install.
type consulSite struct {
	dir, secretsDir, binary string
	https                   int // a's port
	inventory               map[string]any
	nodes                   map[string]*consulNode
}

type consulNode struct {
	name, config, binary string
	serf                 int
	cmd                  *exec.Cmd
	ended                chan struct{}
	log                  bytes.Buffer
}

type consulSecrets struct{ management, node, gossip string }

func newConsulSite(t *testing.T) *consulSite {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "../tools/consul.sh").Output()
	if err != nil {
		t.Fatalf("no Consul to test with: %v", err)
	}
	dir := t.TempDir()
	s := &consulSite{dir: dir, secretsDir: filepath.Join(dir, "secrets"), binary: string(bytes.TrimSpace(out)), nodes: map[string]*consulNode{}}
	certificates := t.TempDir()
	pki(t, certificates, "ca")
	hosts := map[string]any{}
	serfOfA := 0
	for _, name := range []string{"a", "b"} {
		ports, err := testkit.FreePorts(4)
		testkit.Must(t, err)
		role := map[string]string{"a": "server", "b": "client"}[name]
		pem := pki(t, certificates, "cert", name, "DNS:"+role+".dc1.consul,DNS:"+name+",DNS:localhost,IP:127.0.0.1")
		if name == "a" {
			serfOfA, s.https = ports[3], ports[1]
		}
		s.nodes[name] = &consulNode{name: name, binary: s.binary, config: filepath.Join(dir, name+".json"), serf: ports[3]}
		hosts[name] = map[string]any{"ansible_host": "127.0.0.1", "consul_extra_config": map[string]any{
			"data_dir": filepath.Join(dir, name), "retry_join": []string{"127.0.0.1:" + strconv.Itoa(serfOfA)}, "log_level": "warn", "retry_interval": "1s",
			"addresses": map[string]string{"https": "127.0.0.1"},
			"ports":     map[string]int{"http": ports[0], "https": ports[1], "server": ports[2], "serf_lan": ports[3], "serf_wan": -1},
			"tls":       map[string]any{"defaults": map[string]string{"ca_file": filepath.Join(certificates, "ca.pem"), "cert_file": pem, "key_file": pem}},
		}}
	}
	s.inventory = map[string]any{
		"all": map[string]any{"vars": map[string]any{
			"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "consul_https_port": s.https,
			"consul_ca_path": filepath.Join(certificates, "ca.pem"), "lictor_secrets_dir": s.secretsDir,
			"lictor_shards": map[string]any{"orders": shard(5432, 8008, "a", "b")},
		}},
		"consul_servers": map[string]any{"hosts": map[string]any{"a": hosts["a"]}}, "lictor_databases": map[string]any{"hosts": hosts},
	}
	t.Cleanup(func() {
		for _, n := range s.nodes {
			if err := n.stop(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Logf("%s:\n%s", n.name, n.log.String())
			}
		}
	})
	return s
}

// tryPlay runs task files of the role consul, on the server.
func (s *consulSite) tryPlay(t *testing.T, vars map[string]any, files ...string) (string, error) {
	t.Helper()
	var tasks []any
	for _, file := range files {
		tasks = append(tasks, map[string]any{"ansible.builtin.include_role": map[string]any{"name": "lictor_ha.lictor.consul", "tasks_from": file}})
	}
	if vars == nil {
		vars = map[string]any{}
	}
	out, err := runPlay(t, t.TempDir(), s.inventory, vars, map[string]any{
		"hosts": "consul_servers[0]", "gather_facts": false, "roles": []any{map[string]any{"role": "lictor_ha.lictor.common"}}, "tasks": tasks,
	})
	for _, secret := range s.allSecrets(t) {
		if strings.Contains(out, secret) {
			t.Errorf("%v: a secret is told: %s", files, out)
		}
	}
	return out, err
}

func (s *consulSite) play(t *testing.T, files ...string) {
	t.Helper()
	if out, err := s.tryPlay(t, nil, files...); err != nil {
		t.Fatalf("%v: %v\n%s", files, err, out)
	}
}

// install writes every node's file, as the role's task does.
func (s *consulSite) install(t *testing.T) {
	t.Helper()
	task := taskOf(t, "roles/consul/tasks/main.yml", "Install the configuration")
	args, ok := task["ansible.builtin.copy"].(map[string]any)
	if !ok {
		t.Fatal("the role installs its file in another way")
	}
	args["dest"], args["validate"] = filepath.Join(s.dir, "{{ inventory_hostname }}.json"), s.binary+" validate -config-format=json %s"
	delete(args, "owner")
	delete(args, "group")
	delete(task, "notify")
	var tasks []any
	for _, file := range []string{defaultsOf(t, "common"), defaultsOf(t, "consul")} {
		tasks = append(tasks, map[string]any{"ansible.builtin.include_vars": map[string]any{"file": file}})
	}
	// Variables of a file would stand above the inventory's.
	extra := map[string]any{"ansible.builtin.set_fact": map[string]any{"consul_extra_config": "{{ hosts_own[inventory_hostname] }}"}}
	own := map[string]any{}
	for name, h := range s.inventory["lictor_databases"].(map[string]any)["hosts"].(map[string]any) {
		own[name] = h.(map[string]any)["consul_extra_config"]
	}
	vars := map[string]any{"hosts_own": own}
	for name, value := range s.inventory["all"].(map[string]any)["vars"].(map[string]any) {
		vars[name] = value
	}
	out, err := runPlay(t, t.TempDir(), s.inventory, vars, map[string]any{
		"hosts": "lictor_databases", "gather_facts": false, "tasks": append(tasks, extra, task),
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// restart has every node run by its file as it is now.
func (s *consulSite) restart(t *testing.T) {
	t.Helper()
	for _, name := range []string{"a", "b"} {
		n := s.nodes[name]
		testkit.Must(t, n.stop(syscall.SIGTERM))
		n.start(t)
	}
}

func (n *consulNode) start(t *testing.T) {
	t.Helper()
	n.cmd, n.ended = exec.Command(n.binary, "agent", "-config-file="+n.config), make(chan struct{}) //nolint:noctx // it is ended in the end
	n.cmd.Stdout, n.cmd.Stderr = &n.log, &n.log
	testkit.Must(t, n.cmd.Start())
	go func() { defer close(n.ended); _ = n.cmd.Wait() }()
}

func (n *consulNode) stop(s syscall.Signal) error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-n.ended
	n.cmd = nil
	return nil
}

// secrets are what consul.json of a node has.
func (s *consulSite) secrets(t *testing.T, name string) consulSecrets {
	t.Helper()
	text, err := os.ReadFile(s.nodes[name].config)
	testkit.Must(t, err)
	var c struct {
		Encrypt string
		ACL     struct {
			Tokens struct {
				Agent      string
				Management string `json:"initial_management"`
			}
		}
	}
	testkit.Must(t, json.Unmarshal(text, &c))
	return consulSecrets{c.ACL.Tokens.Management, c.ACL.Tokens.Agent, c.Encrypt}
}

// allSecrets are those of all files, as far as there are any.
func (s *consulSite) allSecrets(t *testing.T) (all []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.secretsDir, "consul_*"))
	testkit.Must(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		testkit.Must(t, err)
		for word := range strings.FieldsSeq(string(text)) {
			if len(word) > 12 { // not a round
				all = append(all, word)
			}
		}
	}
	for name := range s.nodes {
		if _, err := os.Stat(s.nodes[name].config); err == nil {
			now := s.secrets(t, name)
			all = append(all, now.node, now.gossip)
		}
	}
	return all
}

// ask asks the server, with the management token that the files have now.
func (s *consulSite) ask(t *testing.T, path, token string, into any) int {
	t.Helper()
	text, err := os.ReadFile(s.nodes["a"].config)
	testkit.Must(t, err)
	var c struct{ Ports struct{ HTTP int } }
	testkit.Must(t, json.Unmarshal(text, &c))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", c.Ports.HTTP, path), nil)
	testkit.Must(t, err)
	r.Header.Set("X-Consul-Token", token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	if into != nil && resp.StatusCode == http.StatusOK {
		testkit.Must(t, json.Unmarshal(said, into))
	}
	return resp.StatusCode
}

func (s *consulSite) tokenWorks(t *testing.T, token string) int {
	t.Helper()
	return s.ask(t, "/v1/acl/token/self", token, nil)
}

// awaitMembers waits until so many members of the gossip are alive, and there is a leader.
func (s *consulSite) awaitMembers(t *testing.T, want int) {
	t.Helper()
	s.await(t, fmt.Sprintf("%d members", want), func() error {
		var members []struct{ Status int }
		var leader string
		token := s.secrets(t, "a").management
		if got := s.ask(t, "/v1/agent/members", token, &members); got != http.StatusOK {
			return fmt.Errorf("Consul answers %d", got)
		}
		alive := 0
		for _, m := range members {
			if m.Status == 1 {
				alive++
			}
		}
		if s.ask(t, "/v1/status/leader", token, &leader); alive != want || leader == "" {
			return fmt.Errorf("%d members are alive, led by %q", alive, leader)
		}
		// A server that has just begun knows for a moment what was true before.
		if got := s.ask(t, "/v1/kv/none?consistent", token, nil); got != http.StatusNotFound {
			return fmt.Errorf("a consistent read: %d", got)
		}
		return nil
	})
}

// awaitKnown waits until nodes have registered themselves, which they may with a good token.
func (s *consulSite) awaitKnown(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		s.await(t, name+" in the catalogue", func() error {
			var known struct {
				Node struct{ TaggedAddresses map[string]string }
			}
			if got := s.ask(t, "/v1/catalog/node/"+name, s.secrets(t, "a").management, &known); got != http.StatusOK || len(known.Node.TaggedAddresses) == 0 {
				return fmt.Errorf("%d %v", got, known)
			}
			return nil
		})
	}
}

func (s *consulSite) await(t *testing.T, what string, try func() error) {
	t.Helper()
	testkit.Await(testkit.Within(t, patience), t, "waiting for "+what, try)
}

// keyring is how many members have which key.
func (s *consulSite) keyring(t *testing.T) map[string]int {
	t.Helper()
	var pools []struct{ Keys map[string]int }
	// Between the new tokens and the new files the files have the old one, which is good then.
	if got := s.ask(t, "/v1/operator/keyring", s.secrets(t, "a").management, &pools); got != http.StatusOK || len(pools) != 1 {
		t.Fatalf("the keyring: %d %v", got, pools)
	}
	return pools[0].Keys
}

// member has an agent of somebody's try to become a member with a key, and returns what it says.
func (s *consulSite) member(t *testing.T, key string) string {
	t.Helper()
	ports, err := testkit.FreePorts(2)
	testkit.Must(t, err)
	cmd := exec.CommandContext(t.Context(), s.binary, "agent", "-node=thief", "-data-dir="+t.TempDir(), "-bind=127.0.0.1", "-encrypt="+key,
		"-serf-lan-port="+strconv.Itoa(ports[0]), "-server-port="+strconv.Itoa(ports[1]), "-http-port=-1", "-grpc-port=-1", "-dns-port=-1",
		"-retry-join=127.0.0.1:"+strconv.Itoa(s.nodes["a"].serf), "-retry-max=1", "-retry-interval=1s")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	testkit.Must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	select {
	case <-ended: // it has given up
	case <-time.After(10 * time.Second): // it is a member: it leaves, so that nobody waits for it
		testkit.Must(t, cmd.Process.Signal(os.Interrupt))
		<-ended
	}
	return said.String()
}
