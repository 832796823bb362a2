package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// Who may read a shard's secret needs no password for its members, and nobody who lacks the
// secret passes for a member: whoever takes the port of one whose agent is down has no
// command believe what it says, and gets no password.
func TestCommandsProveThemselves(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l := labtest.Serving(ctx, t, lab.Options{
		Members: 2, Bouncers: -1, ConsulServers: 1,
		Database: lab.Lictor{Edit: func(m *lab.Member, config map[string]any) {
			config["tags"] = map[string]any{"host": m.Name} // so that there is another host to evacuate to
			config["restapi"].(map[string]any)["authentication"] = map[string]any{"username": "admin", "password": "hush"}
		}},
	})
	p := provingSeat{lab: l, shard: l.Shard(0)}
	leader, err := p.shard.AwaitHealthy(ctx)
	if err != nil {
		t.Fatal(err)
	}
	replicas, err := p.shard.Replicas(ctx)
	if err != nil {
		t.Fatal(err)
	}
	replica, name := replicas[0], p.shard.Name
	if err := p.shard.AwaitSync(ctx); err != nil {
		t.Fatal(err)
	}
	// Its file has the password; the flag overrides where its Consul is.
	file := filepath.Join(leader.Dir, "agent.yml")

	t.Run("without the password", func(t *testing.T) {
		if status, _, err := replica.Post(ctx, "/reload", nil); err != nil || status != http.StatusUnauthorized {
			t.Fatalf("whoever has neither password nor secret: %d, %v", status, err)
		}
		for _, args := range [][]string{
			{"pause", name, "--wait"},
			{"resume", name, "--wait"},
			{"restart", name, replica.Name, "--force"},
			{"reload", name, "--force"},
			{"edit-config", name, "--pg", "work_mem=7MB", "--force"},
		} {
			p.ends(ctx, t, operator.ExitDone, "", "", args...)
		}
	})

	t.Run("a replica's port", func(t *testing.T) {
		thief, back := p.takePort(ctx, t, replica, leader)
		unproved := "does not prove to be " + replica.Name
		for _, c := range []struct {
			code int
			args []string
		}{
			{operator.ExitUnknown, []string{"restart", name, replica.Name, "--force"}},
			{operator.ExitUnknown, []string{"reload", name, replica.Name, "--force"}},
			{operator.ExitFailed, []string{"reinit", name, replica.Name, "--force"}},
			{operator.ExitFailed, []string{"version", name, replica.Name}},
			{operator.ExitFailed, []string{"rotate-secret", name}},
			{operator.ExitFindings, []string{"doctor", name}},
			{operator.ExitRefused, []string{"evacuate", leader.Name, "--dry-run"}},
			{operator.ExitRefused, []string{"evacuate", leader.Name, "--yes"}},
		} {
			p.ends(ctx, t, c.code, unproved, "y\n", append(c.args, "--config", file)...)
		}
		if thief.asked.Load() == 0 {
			t.Error("nobody asked")
		}
		// Its key says now that it runs Patroni: it need prove nothing, and is told nothing.
		p.edit(ctx, t, p.shard.Keys.Member(replica.Name), func(value map[string]any) { delete(value, "lictor") })
		p.ends(ctx, t, operator.ExitDone, "", "", "restart", name, replica.Name, "--force", "--config", file)
		if thief.password.Load() {
			t.Error("the password was sent")
		}
		p.ends(ctx, t, operator.ExitDone, "", "", "restart", name, replica.Name, "--force", "--config", file, "--password-to-patroni")
		if !thief.password.Load() {
			t.Error("the password was not sent, though it was asked for")
		}
		back()
	})

	t.Run("the leader's port", func(t *testing.T) {
		if _, err := p.shard.AwaitHealthy(ctx); err != nil {
			t.Fatal(err)
		}
		if err := p.shard.AwaitSync(ctx); err != nil {
			t.Fatal(err)
		}
		p.ends(ctx, t, operator.ExitDone, "", "", "pause", name, "--wait") // so that it leads on without its agent
		_, back := p.takePort(ctx, t, leader, replica)
		p.ends(ctx, t, operator.ExitUnknown, "does not prove to be "+leader.Name, "", "switchover", name, "--force")
		p.ends(ctx, t, operator.ExitFindings, "does not prove to be "+leader.Name, "", "fleet", name, "--check")
		p.ends(ctx, t, operator.ExitFindings, "does not prove to be "+leader.Name, "", "doctor", name)
		p.ends(ctx, t, operator.ExitDone, "", "", "edit-config", name, "--pg", "work_mem=8MB", "--force") // the other one answers
		back()
	})
}

// provingSeat is where a person sits who may read the shard's keys, and has no password.
type provingSeat struct {
	lab   *lab.Lab
	shard *lab.Shard
}

// ends runs a command that must end with an exit code and say something.
func (p provingSeat) ends(ctx context.Context, t *testing.T, code int, say, stdin string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(p.lab), append(args, "--consul", p.lab.ConsulHosts()[0])...)
	cmd.Env = append(os.Environ(), operator.ConfigVariable+"=", "HOME="+t.TempDir())
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("lictor %v: %v", args, err)
	}
	got := cmd.ProcessState.ExitCode()
	t.Logf("$ lictor %s  # %d\n%s", strings.Join(args, " "), got, out)
	if got != code || !strings.Contains(string(out), say) || code != operator.ExitDone && strings.Contains(string(out), "Success:") {
		t.Errorf("lictor %v: exit code %d, want %d and %q", args, got, code, say)
	}
}

// edit changes a value in Consul, as somebody may who may write the shard's keys.
func (p provingSeat) edit(ctx context.Context, t *testing.T, key string, change func(map[string]any)) {
	t.Helper()
	err := p.lab.Consul(ctx, func(ctx context.Context, c *api.Client) error {
		pair, _, err := c.KV().Get(key, (&api.QueryOptions{}).WithContext(ctx))
		if err != nil || pair == nil {
			return errors.Join(err, errors.New("there is no key "+key))
		}
		var value map[string]any
		if err := json.Unmarshal(pair.Value, &value); err != nil {
			return err
		}
		change(value)
		if pair.Value, err = json.Marshal(value); err != nil {
			return err
		}
		_, err = c.KV().Put(&api.KVPair{Key: key, Value: pair.Value}, (&api.WriteOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// portThief has the port of a member.
type portThief struct {
	asked    atomic.Int64
	password atomic.Bool // it was sent one
}

// takePort ends a member's agent and answers at its port, while the member's keys stay:
// that all is well, in the words of another member. back gives the port back.
func (p provingSeat) takePort(ctx context.Context, t *testing.T, m, words *lab.Member) (thief *portThief, back func()) {
	t.Helper()
	snapshot, err := p.shard.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	key, found := snapshot.Member(m.Name)
	if !found {
		t.Fatalf("%s has no key", m.Name)
	}
	if err := m.Process("agent").Kill(ctx); err != nil {
		t.Fatal(err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", m.REST)
	if err != nil {
		t.Fatal(err)
	}
	thief = &portThief{}
	relay := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: words.REST})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		thief.asked.Add(1)
		if r.Header.Get("Authorization") != "" {
			thief.password.Store(true)
		}
		if r.Method == http.MethodGet {
			relay.ServeHTTP(w, r)
			return
		}
		_, _ = io.WriteString(w, "Success")
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	renewing, stop := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() { // the session goes with its agent otherwise
		defer close(stopped)
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-tick.C:
			case <-renewing.Done():
				return
			}
			_ = p.lab.Consul(renewing, func(ctx context.Context, c *api.Client) error {
				_, _, err := c.Session().Renew(key.Session, (&api.WriteOptions{}).WithContext(ctx))
				return err
			}) // if it fails, the member's key goes and the commands say so
		}
	}()
	return thief, func() {
		t.Helper()
		stop()
		<-stopped
		server.Close()
		if err := m.Process("agent").Start(); err != nil {
			t.Error(err)
		}
	}
}
