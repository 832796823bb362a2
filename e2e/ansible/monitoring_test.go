package ansible

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// TestNoMemberSpeaksForAnotherShard has a real Prometheus read what the role makes, of a member
// that says it is another shard's primary, and of one whose answer has no end.
func TestNoMemberSpeaksForAnotherShard(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed: make deps")
	}
	programs, err := output(t.Context(), 15*time.Minute, "../tools/prometheus.sh")
	testkit.Must(t, err)
	forged := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `patroni_primary{scope="users",name="u1"} 1`+"\n")
	}))
	defer forged.Close()
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := 0; r.Context().Err() == nil; i++ {
			if _, err := fmt.Fprintf(w, "# %s\nlictor_more{i=\"%d\"} 1\n", strings.Repeat("x", 1<<16), i); err != nil {
				return
			}
		}
	}))
	defer endless.Close()

	roles, err := filepath.Abs("../../ansible/roles")
	testkit.Must(t, err)
	dir := t.TempDir()
	write := func(name string, value any) string {
		text, err := json.Marshal(value)
		testkit.Must(t, err)
		path := filepath.Join(dir, name)
		testkit.Must(t, os.WriteFile(path, text, 0o600))
		return path
	}
	port := func(s *httptest.Server) string {
		u, err := url.Parse(s.URL)
		testkit.Must(t, err)
		return u.Port()
	}
	made := filepath.Join(dir, "prometheus.yml")
	vars := write("vars.json", map[string]any{
		"lictor_tls": false, "lictor_bouncer_scheme": "http", "lictor_monitoring_interval": "1s", "lictor_addresses": map[string]string{"localhost": "127.0.0.1"},
		"lictor_shards": map[string]any{
			"orders":  map[string]any{"port": 5432, "api_port": port(forged), "members": []string{"localhost"}},
			"endless": map[string]any{"port": 5433, "api_port": port(endless), "members": []string{"localhost"}},
		},
		"consul_servers": []string{}, "lictor_secrets_dir": dir,
	})
	play := write("play.json", []any{map[string]any{
		"hosts": "localhost", "connection": "local", "gather_facts": false,
		"vars_files": []string{roles + "/common/defaults/main.yml", roles + "/monitoring/defaults/main.yml", vars},
		"tasks":      []any{map[string]any{"ansible.builtin.template": map[string]string{"src": roles + "/monitoring/templates/prometheus.yml.j2", "dest": made}}},
	}})
	cmd := exec.CommandContext(t.Context(), "ansible-playbook", "-i", "localhost,", "-e", "@"+vars, play)
	cmd.Env = append(os.Environ(), "ANSIBLE_HOME="+dir, "ANSIBLE_LOCAL_TEMP="+dir, "ANSIBLE_REMOTE_TEMP="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(made)
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(made, []byte(strings.Replace(string(text), "/etc/prometheus/lictor-alerts.yml", "none.yml", 1)), 0o600))

	ports, err := testkit.FreePorts(1)
	testkit.Must(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", ports[0])
	prometheus := exec.CommandContext(t.Context(), filepath.Join(strings.TrimSpace(programs), "prometheus"), "--config.file="+made,
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	prometheus.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	testkit.Must(t, prometheus.Start())
	defer func() {
		_ = prometheus.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = prometheus.Wait()
	}()
	// value is what Prometheus says of an expression, "" while it says nothing.
	value := func(expr string) string {
		r, err := http.Get("http://" + address + "/api/v1/query?" + url.Values{"query": {expr}}.Encode())
		if err != nil {
			return ""
		}
		defer r.Body.Close()
		var a struct {
			Data struct{ Result []struct{ Value []any } }
		}
		if json.NewDecoder(r.Body).Decode(&a) != nil || len(a.Data.Result) != 1 {
			return ""
		}
		return fmt.Sprint(a.Data.Result[0].Value[1])
	}
	for expr, want := range map[string]string{
		`patroni_primary{scope="orders",exported_scope="users",name="u1"}`: "1", // what it says is kept as its own
		`up{scope="endless"}`: "0",
	} {
		for deadline := time.Now().Add(time.Minute); value(expr) != want; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s is %q, want %q", expr, value(expr), want)
			}
		}
	}
	for _, expr := range []string{`count(patroni_primary{scope="users"})`, `count(lictor_more)`} {
		if got := value(expr); got != "" {
			t.Errorf("%s is %s", expr, got)
		}
	}
}
