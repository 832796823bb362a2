package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// The scripts of a member write what they are called with into files beside its
// data: callbacks one line each, PATH and all.
const (
	callbackScript = `#!/bin/sh
[ -e "$1/stuck" ] && { trap "" TERM; touch "$1/began"; while :; do sleep 60; done; }
printf '%s\n' "$2 $3 $4" >> "$1/callbacks"
`
	prePromoteScript = `#!/bin/sh
echo pre_promote >> "$1/callbacks"
[ ! -e "$1/forbid" ]
`
	beforeStopScript = `#!/bin/sh
echo before_stop >> "$1/callbacks"
[ -e "$1/stuck_stop" ] && { trap "" TERM; while :; do sleep 60; done; }
exit 0
`
)

// scripted installs agents with scripts, and keeps each one's configuration.
type scripted struct {
	dir     string // of the scripts
	configs map[string]map[string]any
}

func (s *scripted) edit(m *lab.Member, config map[string]any) {
	postgres := config["postgresql"].(map[string]any)
	callbacks := map[string]any{}
	for _, action := range []string{"on_start", "on_stop", "on_restart", "on_reload", "on_role_change"} {
		callbacks[action] = filepath.Join(s.dir, "callback") + " " + m.Dir
	}
	postgres["callbacks"] = callbacks
	postgres["pre_promote"] = filepath.Join(s.dir, "pre_promote") + " " + m.Dir
	postgres["before_stop"] = filepath.Join(s.dir, "before_stop") + " " + m.Dir
	consul := config["consul"].(map[string]any)
	consul["register_service"], consul["service_tags"], consul["service_check_interval"] = true, []string{"blue"}, "1s"
	config["watchdog"] = map[string]any{"mode": "automatic", "device": filepath.Join(m.Dir, "no-watchdog")}
	config["log"] = map[string]any{"level": "INFO", "format": "patroni"}
	lictor, ok := config["lictor"].(map[string]any)
	if !ok {
		lictor = map[string]any{}
		config["lictor"] = lictor
	}
	lictor["script_timeout"] = 3
	s.configs[m.Name] = config
}

// rewrite changes a member's file; a reload makes it known.
func (s *scripted) rewrite(t *testing.T, l *lab.Lab, m *lab.Member, change func(config map[string]any)) {
	t.Helper()
	change(s.configs[m.Name])
	content := got(yaml.Marshal(s.configs[m.Name]))(t)
	must(t, l.WriteFile(filepath.Join(m.Dir, "agent.yml"), content, 0o600))
}

func called(m *lab.Member) []string {
	content, err := os.ReadFile(filepath.Join(m.Dir, "callbacks"))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(content)), "\n")
}

// awaitCalled waits until exactly these calls have been made since the last time.
func awaitCalled(ctx context.Context, t *testing.T, m *lab.Member, want ...string) {
	t.Helper()
	await(ctx, t, "calls of "+m.Name, func() error {
		if have := called(m); !slices.Equal(have, want) {
			return fmt.Errorf("called %q, want %q", have, want)
		}
		return nil
	})
	must(t, os.Remove(filepath.Join(m.Dir, "callbacks")))
}

func agentLog(t *testing.T, m *lab.Member) string {
	t.Helper()
	return string(got(os.ReadFile(m.Process("agent").LogPath()))(t))
}

// awaitCatalogue waits until the healthy services of a shard with a tag are those of
// these members.
func awaitCatalogue(ctx context.Context, t *testing.T, l *lab.Lab, scope, tag string, members ...*lab.Member) {
	t.Helper()
	want := map[string]bool{}
	for _, m := range members {
		want[scope+"/"+m.Name] = true
	}
	await(ctx, t, "services "+tag, func() error {
		have := map[string]bool{}
		err := l.Consul(ctx, func(ctx context.Context, client *consulapi.Client) error {
			entries, _, err := client.Health().Service(scope, tag, true, new(consulapi.QueryOptions).WithContext(ctx))
			for _, e := range entries {
				have[e.Service.ID] = true
			}
			return err
		})
		if err == nil && !maps.Equal(have, want) {
			err = fmt.Errorf("are %v, want %v", have, want)
		}
		return err
	})
}

// One lab for what an operator sets and is told: scripts, settings, metrics, logs.
func TestOperatorsSettings(t *testing.T) {
	scripts := &scripted{dir: t.TempDir(), configs: map[string]map[string]any{}}
	letIn(t, scripts.dir)
	for name, content := range map[string]string{"callback": callbackScript, "pre_promote": prePromoteScript, "before_stop": beforeStopScript} {
		must(t, os.WriteFile(filepath.Join(scripts.dir, name), []byte(content), 0o755)) //nolint:gosec // another user runs it
	}
	l := labtest.New(t, lab.Options{
		Members: 2, Bouncers: 1, ConsulServers: 1, Database: lab.Lictor{Edit: scripts.edit},
		Dynamic: map[string]any{
			"maximum_lag_on_failover": 16 << 20,
			"postgresql":              map[string]any{"parameters": map[string]any{"archive_mode": "on", "archive_command": "true"}},
		},
	})
	ctx := within(t)
	must(t, l.Start(ctx))
	s := l.Shard(0)
	a := got(s.AwaitHealthy(ctx))(t)
	must(t, s.AwaitSync(ctx))
	b := got(s.Replicas(ctx))(t)[0]
	scope := s.Name
	awaitCalled(ctx, t, a, "on_start primary "+scope) // none during the bootstrap
	awaitCalled(ctx, t, b, "on_start replica "+scope)

	pending := func(ctx context.Context, m *lab.Member, name, change string) {
		t.Helper()
		await(ctx, t, "pending restart of "+m.Name, func() error {
			_, body, err := m.Get(ctx, "/patroni")
			if err != nil {
				return err
			}
			var status struct {
				Pending bool `json:"pending_restart"`
				Reason  map[string]struct {
					Old string `json:"old_value"`
					New string `json:"new_value"`
				} `json:"pending_restart_reason"`
			}
			if err := json.Unmarshal(body, &status); err != nil {
				return err
			}
			have := ""
			if r, ok := status.Reason[name]; ok {
				have = r.Old + " -> " + r.New
			}
			if have != change || status.Pending != (change != "") {
				return fmt.Errorf("pending %v: %+v", status.Pending, status.Reason)
			}
			for _, member := range got(s.Snapshot(ctx))(t).Members {
				if member.Value.Name == m.Name && member.Value.PendingRestart != (change != "") {
					return fmt.Errorf("the member key says pending_restart: %v", member.Value.PendingRestart)
				}
			}
			return nil
		})
	}
	setting := func(ctx context.Context, m *lab.Member, name, want string) {
		t.Helper()
		await(ctx, t, name+" of "+m.Name, func() error {
			conn, err := m.Connect(ctx, "postgres")
			if err != nil {
				return err
			}
			defer conn.Close(ctx)
			var have string
			if err := conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&have); err != nil || have != want {
				return fmt.Errorf("is %q, want %q: %w", have, want, err)
			}
			return nil
		})
	}

	t.Run("a dynamic parameter is applied everywhere and reload scripts are called once", func(t *testing.T) {
		ctx := within(t)
		status, answer, err := a.Patch(ctx, "/config", map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"work_mem": "5MB"}}})
		if must(t, err); status != http.StatusOK || !strings.Contains(answer, `"work_mem":"5MB"`) || !strings.Contains(answer, `"shared_buffers"`) {
			t.Fatalf("%d %s", status, answer)
		}
		for _, m := range []*lab.Member{a, b} {
			setting(ctx, m, "work_mem", "5MB")
		}
		awaitCalled(ctx, t, a, "on_reload primary "+scope)
		awaitCalled(ctx, t, b, "on_reload replica "+scope)
	})

	t.Run("the dynamic configuration is kept with the data", func(t *testing.T) {
		ctx := within(t)
		for _, m := range []*lab.Member{a, b} {
			await(ctx, t, "patroni.dynamic.json of "+m.Name, func() error {
				content, err := os.ReadFile(filepath.Join(m.DataDir, "patroni.dynamic.json"))
				if err != nil || !strings.Contains(string(content), `"work_mem":"5MB"`) {
					return fmt.Errorf("%s: %w", content, err)
				}
				return nil
			})
		}
	})

	t.Run("a change that does not concern PostgreSQL calls nothing", func(t *testing.T) {
		ctx := within(t)
		applied := func() int { return strings.Count(agentLog(t, b), "dynamic configuration applied") }
		before := applied()
		status, answer, err := a.Patch(ctx, "/config", map[string]any{"maximum_lag_on_failover": 17 << 20})
		if must(t, err); status != http.StatusOK {
			t.Fatalf("%d %s", status, answer)
		}
		await(ctx, t, "applied", func() error {
			if applied() == before {
				return fmt.Errorf("not yet")
			}
			return nil
		}) // the next calls are exactly those of other changes
	})

	t.Run("a bad change is refused before anybody sees it", func(t *testing.T) {
		ctx := within(t)
		for _, test := range []struct {
			patch any
			want  string
		}{
			{map[string]any{"ttl": 2}, "ttl: 2: must be at least 3 s"},
			{map[string]any{"ttl": 6, "loop_wait": 5, "retry_timeout": 3}, "loop_wait + 2 x retry_timeout"},
			{map[string]any{"standby_cluster": map[string]any{"host": "d b9", "port": 5432}}, `standby_cluster.host: "d b9"`},
			{map[string]any{"synchronous_node_count": 0}, "synchronous_node_count: 0: must be at least 1"},
			{map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"work_mem": "5XB"}}}, "postgresql.parameters.work_mem: 5XB: its unit must be one of"},
			{map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"max_connections": 3}}}, "postgresql.parameters.max_connections: 3: must be a whole number, at least 25"},
			{map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"Data_Directory": "/x"}}}, "postgresql.parameters.Data_Directory: must not be set"},
			{map[string]any{"postgresql": map[string]any{"pg_hba": []string{"host all all all scrum"}}}, "postgresql.pg_hba[0]"},
		} {
			status, answer, err := b.Patch(ctx, "/config", test.patch)
			if must(t, err); status != http.StatusBadRequest || !strings.Contains(answer, test.want) {
				t.Errorf("%v: %d %s, want %s", test.patch, status, answer, test.want)
			}
		}
	})

	t.Run("a remote primary that does not answer demotes nobody, and the shard serves on", func(t *testing.T) {
		ctx := within(t)
		good := string(got(s.Snapshot(ctx))(t).Config.Value)
		var config map[string]any
		must(t, json.Unmarshal([]byte(good), &config))
		config["standby_cluster"] = map[string]any{"host": "10.9.9.9", "port": 5432}
		key := "service/" + scope + "/config"
		put(ctx, t, l, key, string(got(json.Marshal(config))(t)))
		for _, m := range []*lab.Member{a, b} {
			await(ctx, t, "the configuration at "+m.Name, func() error {
				snapshot, err := s.Snapshot(ctx)
				if err != nil {
					return err
				}
				if own, _ := snapshot.Member(m.Name); own.Value.Lictor == nil || own.Value.Lictor.Config < snapshot.Config.ModifyIndex {
					return fmt.Errorf("not yet")
				}
				return nil
			})
		}
		await(ctx, t, "what keeps the primary", func() error {
			if !strings.Contains(agentLog(t, a), "PostgreSQL runs on as it is") {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		if status, body, err := a.Get(ctx, "/primary"); err != nil || status != http.StatusOK {
			t.Errorf("GET /primary: %d %s, %v", status, body, err)
		}
		// Who mends it by a request is heard.
		status, answer, err := a.Patch(ctx, "/config", map[string]any{"standby_cluster": nil})
		if must(t, err); status != http.StatusOK || strings.Contains(answer, "standby_cluster") {
			t.Errorf("%d %s", status, answer)
		}
	})

	t.Run("a local setting wins, and the log's level changes with SIGHUP", func(t *testing.T) {
		ctx := within(t)
		scripts.rewrite(t, l, b, func(config map[string]any) {
			config["postgresql"].(map[string]any)["parameters"].(map[string]any)["work_mem"] = "7MB"
			config["log"].(map[string]any)["level"] = "DEBUG"
		})
		must(t, b.Process("agent").Signal(syscall.SIGHUP))
		setting(ctx, b, "work_mem", "7MB")
		setting(ctx, a, "work_mem", "5MB")
		awaitCalled(ctx, t, b, "on_reload replica "+scope)
		must(t, b.Process("agent").Signal(syscall.SIGUSR1))
		await(ctx, t, "SIGUSR1", func() error {
			if !strings.Contains(agentLog(t, b), "log level switched by SIGUSR1 now=info") {
				return fmt.Errorf("not yet")
			}
			return nil
		})
	})

	t.Run("a parameter that needs a restart", func(t *testing.T) {
		ctx := within(t)
		status, answer, err := a.Patch(ctx, "/config", map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"max_connections": 120}}})
		if must(t, err); status != http.StatusOK {
			t.Fatalf("%d %s", status, answer)
		}
		for _, m := range []*lab.Member{b, a} { // replicas first
			pending(ctx, m, "max_connections", "100 -> 120")
			status, answer, err := m.Post(ctx, "/restart", map[string]any{})
			if must(t, err); status != http.StatusOK {
				t.Fatalf("restart of %s: %d %s", m.Name, status, answer)
			}
			pending(ctx, m, "max_connections", "")
			setting(ctx, m, "max_connections", "120")
		}
		awaitCalled(ctx, t, b, "before_stop", "on_restart replica "+scope)
		awaitCalled(ctx, t, a, "before_stop", "on_restart primary "+scope)
	})

	t.Run("PostgreSQL is not restarted with a configuration that it would not start with", func(t *testing.T) {
		ctx := within(t)
		good := string(got(s.Snapshot(ctx))(t).Config.Value)
		began := got(a.Postmaster())(t)
		var config map[string]any
		must(t, json.Unmarshal([]byte(good), &config))
		bad := map[string]any{"shared_preload_libraries": "nosuch", "timezone": "Nowhere"}
		for name, value := range bad {
			status, answer, err := a.Patch(ctx, "/config", map[string]any{"postgresql": map[string]any{"parameters": map[string]any{name: value}}})
			if must(t, err); status == http.StatusOK || !strings.Contains(answer, value.(string)) {
				t.Errorf("PATCH of %s: %d %s", name, status, answer)
			}
		}
		maps.Copy(config["postgresql"].(map[string]any)["parameters"].(map[string]any), bad)
		key := "service/" + scope + "/config"
		told := func() {
			t.Helper()
			awaitCalled(ctx, t, a, "on_reload primary "+scope)
			awaitCalled(ctx, t, b, "on_reload replica "+scope)
		}
		put(ctx, t, l, key, string(got(json.Marshal(config))(t))) // past the REST API, as patronictl does it
		told()
		for _, m := range []*lab.Member{a, b} {
			status, answer, err := m.Post(ctx, "/restart", map[string]any{})
			if must(t, err); status == http.StatusOK || !strings.Contains(answer, "nosuch") {
				t.Errorf("%s: restart: %d %s", m.Name, status, answer)
			}
			if log := agentLog(t, m); !strings.Contains(log, "PostgreSQL refuses the value of a parameter") || !strings.Contains(log, "Nowhere") {
				t.Errorf("%s has not told of the time zone", m.Name)
			}
		}
		if now := got(a.Postmaster())(t); now.PID != began.PID {
			t.Error("PostgreSQL was restarted")
		}
		put(ctx, t, l, key, good)
		told()
	})

	t.Run("a switchover tells both of their roles, once and in order", func(t *testing.T) {
		ctx := within(t)
		must(t, s.AwaitSync(ctx))
		must(t, s.Switchover(ctx, a, b))
		awaitCalled(ctx, t, b, "pre_promote", "on_role_change primary "+scope)
		awaitCalled(ctx, t, a, "before_stop", "on_role_change replica "+scope)
		got(s.AwaitHealthy(ctx))(t)
		must(t, s.AwaitSync(ctx))
		a, b = b, a
	})

	t.Run("Consul's catalogue follows the roles", func(t *testing.T) {
		ctx := within(t)
		awaitCatalogue(ctx, t, l, scope, "primary", a)
		awaitCatalogue(ctx, t, l, scope, "replica", b)
		awaitCatalogue(ctx, t, l, scope, "blue", a, b)
	})

	t.Run("a primary whose agent and PostgreSQL die, with a stuck script", func(t *testing.T) {
		ctx := within(t)
		must(t, os.WriteFile(filepath.Join(a.Dir, "stuck"), nil, 0o644)) //nolint:gosec // no secret
		must(t, a.Process("agent").Signal(syscall.SIGHUP))               // on_reload hangs
		await(ctx, t, "on_reload", func() error {
			_, err := os.Stat(filepath.Join(a.Dir, "began"))
			return err
		})
		must(t, a.Process("agent").Signal(syscall.SIGSTOP))
		leader := got(s.AwaitLeader(ctx, a))(t)
		awaitCalled(ctx, t, leader, "pre_promote", "on_role_change primary "+scope)
		must(t, a.Process("agent").Signal(syscall.SIGCONT))
		must(t, os.Remove(filepath.Join(a.Dir, "stuck")))
		got(s.AwaitHealthy(ctx))(t)
		await(ctx, t, "the stuck script's end", func() error {
			if !strings.Contains(agentLog(t, a), "a callback failed") {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		await(ctx, t, "the new role", func() error {
			have := called(a)
			if len(have) == 0 || have[len(have)-1] != "on_role_change replica "+scope {
				return fmt.Errorf("called %q", have)
			}
			return nil
		})
		must(t, os.Remove(filepath.Join(a.Dir, "callbacks")))
		must(t, s.AwaitSync(ctx))
		a, b = b, a
	})

	t.Run("pre_promote forbids a promotion: the lock is given up", func(t *testing.T) {
		ctx := within(t)
		forbid := filepath.Join(b.Dir, "forbid")
		must(t, os.WriteFile(forbid, nil, 0o644)) //nolint:gosec // no secret
		status, answer, err := a.Post(ctx, "/switchover", map[string]string{"leader": a.Name, "candidate": b.Name})
		if must(t, err); status == http.StatusOK && !strings.Contains(answer, `instead of`) {
			t.Errorf("the candidate must not be promoted: %d %s", status, answer)
		}
		leader := got(s.AwaitHealthy(ctx))(t)
		if leader != a {
			t.Errorf("%s leads, though its pre_promote forbids it", leader.Name)
		}
		if !strings.Contains(agentLog(t, b), "the leader lock is given up") {
			t.Errorf("%s does not say that it has given the lock up", b.Name)
		}
		must(t, os.Remove(forbid))
		awaitCalled(ctx, t, b, "pre_promote")
		must(t, s.AwaitSync(ctx))
		must(t, os.Remove(filepath.Join(a.Dir, "callbacks")))
	})

	t.Run("a stuck before_stop does not hold up a demotion", func(t *testing.T) {
		ctx := within(t)
		status, answer, err := a.Patch(ctx, "/config", map[string]any{"failsafe_mode": false})
		if must(t, err); status != http.StatusOK {
			t.Fatalf("%d %s", status, answer)
		}
		await(ctx, t, "failsafe_mode off", func() error {
			if snapshot := got(s.Snapshot(ctx))(t); snapshot.Failsafe.Exists() {
				return fmt.Errorf("the failsafe list is still there")
			}
			return nil
		})
		stuck := filepath.Join(a.Dir, "stuck_stop")
		must(t, os.WriteFile(stuck, nil, 0o644)) //nolint:gosec // no secret
		server := l.ConsulServers()[0].Processes()[0]
		must(t, server.Signal(syscall.SIGSTOP))
		defer func() { must(t, server.Signal(syscall.SIGCONT)) }()
		awaitCalled(ctx, t, a, "before_stop", "on_role_change demoted "+scope)
		if text := agentLog(t, a); !strings.Contains(text, "before_stop failed; PostgreSQL is stopped all the same") {
			t.Error("it is not said that before_stop has failed")
		}
		must(t, os.Remove(stuck))
	})
	leader := got(s.AwaitHealthy(within(t)))(t)
	must(t, s.AwaitSync(within(t)))
	if leader != a {
		a, b = b, a
	}
	must(t, os.RemoveAll(filepath.Join(a.Dir, "callbacks")))
	must(t, os.RemoveAll(filepath.Join(b.Dir, "callbacks")))

	t.Run("metrics", func(t *testing.T) { checkMetrics(t, l, a, b) })
	t.Run("logs", func(t *testing.T) { checkLogs(t, l, a, b) })
	t.Run("the bouncer's level changes, too", func(t *testing.T) {
		ctx := within(t)
		p := l.BouncerHosts()[0].Process("bouncer")
		must(t, p.Signal(syscall.SIGUSR1))
		await(ctx, t, "SIGUSR1", func() error {
			if text := string(got(os.ReadFile(p.LogPath()))(t)); !strings.Contains(text, `"now":"debug"`) {
				return fmt.Errorf("not yet")
			}
			return nil
		})
	})

	t.Run("an orderly stop waits for its script", func(t *testing.T) {
		ctx := within(t)
		must(t, b.Process("agent").Stop(ctx))
		awaitCalled(ctx, t, b, "before_stop", "on_stop replica "+scope)
		awaitCatalogue(ctx, t, l, scope, "blue", a)
		must(t, b.Process("agent").Start())
		awaitCalled(ctx, t, b, "on_start replica "+scope)
	})

	t.Run("systemd hears how the agent fares", func(t *testing.T) {
		ctx := within(t)
		path := filepath.Join(b.Dir, "notify")
		conn := got(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}))(t)
		said := make(chan string, 1000)
		var listening sync.WaitGroup
		listening.Go(func() {
			for buf := make([]byte, 4096); ; {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				said <- string(buf[:n])
			}
		})
		defer listening.Wait()
		defer func() { _ = conn.Close() }()
		hear := func(want string) {
			t.Helper()
			for {
				select {
				case text := <-said:
					if strings.HasPrefix(text, want) {
						return
					}
				case <-ctx.Done():
					t.Fatalf("systemd does not hear %q", want)
				}
			}
		}
		agent := b.Process("agent")
		must(t, agent.Stop(ctx))
		agent.Env = append(agent.Env, "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=300000")
		must(t, agent.Start())
		hear("READY=1")
		hear("STATUS=shard " + scope + ", member " + b.Name + ": replica, running; a replica, following " + a.Name)
		hear("WATCHDOG=1")
		hear("WATCHDOG=1") // again and again
		must(t, agent.Signal(syscall.SIGHUP))
		hear("RELOADING=1\nMONOTONIC_USEC=")
		hear("READY=1")
		must(t, agent.Signal(syscall.SIGTERM))
		hear("STOPPING=1")
		<-agent.Done()
	})
}

// checkLogs reads what the agents have logged: levels where Patroni's users look
// for them, no secret, no noise.
func checkLogs(t *testing.T, l *lab.Lab, members ...*lab.Member) {
	t.Helper()
	line := regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR): \S`)
	for _, m := range members {
		text := agentLog(t, m)
		for _, secret := range []string{l.Secrets.Superuser, l.Secrets.Replication, l.Secrets.Rewind} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has logged a secret", m.Name)
			}
		}
		last, repeated := "", 0
		for text := range strings.Lines(text) {
			if !line.MatchString(text) {
				t.Errorf("%s: %q is not in Patroni's format", m.Name, text)
			}
			if len(text) > 24 && text[24:] == last {
				repeated++
			}
			last = text[min(24, len(text)):]
		}
		if repeated > 5 {
			t.Errorf("%s has logged %d lines that say what the line before said", m.Name, repeated)
		}
	}
}

// checkMetrics compares what the documents name with what is really answered.
func checkMetrics(t *testing.T, l *lab.Lab, members ...*lab.Member) {
	t.Helper()
	ctx := within(t)
	var answered bytes.Buffer
	// A crash before has taken PostgreSQL's statistics with it.
	conn := got(members[0].Connect(ctx, "postgres"))(t)
	defer conn.Close(ctx)
	_, err := conn.Exec(ctx, "SELECT pg_logical_emit_message(false, 'test', 'something to archive'), pg_switch_wal()")
	must(t, err)
	await(ctx, t, "an archiver's figures, after the restarts before", func() error {
		_, body, err := members[0].Get(ctx, "/metrics")
		if err == nil && !bytes.Contains(body, []byte("\nlictor_archive_last_success_timestamp_seconds")) {
			err = errors.New("there are none")
		}
		return err
	})
	for _, m := range members {
		status, body, err := m.Get(ctx, "/metrics")
		if must(t, err); status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		answered.Write(body)
	}
	for _, b := range l.BouncerHosts() {
		for _, path := range []string{"/metrics", "/metrics/pgbouncer"} {
			request := got(http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.API+path, nil))(t)
			response, err := l.HTTP().Do(request)
			must(t, err)
			_, err = answered.ReadFrom(response.Body)
			response.Body.Close()
			must(t, err)
		}
	}
	// Only where several PgBouncer share a port (bouncer's TestProcess... ask for them), and
	// where there are backups (TestBackups does).
	have := map[string]bool{
		"lictor_bouncer_process_up": true, "lictor_bouncer_process_shards_behind": true,
		"lictor_backup_repository_up": true, "lictor_backups": true, "lictor_backups_damaged": true, "lictor_backup_repository_bytes": true,
		"lictor_backup_last_success_timestamp_seconds": true, "lictor_backup_last_verified_timestamp_seconds": true,
	}
	for text := range strings.Lines(answered.String()) {
		if fields := strings.Fields(text); len(fields) > 3 && fields[0] == "#" && fields[1] == "HELP" {
			have[fields[2]] = true
		}
	}
	named := regexp.MustCompile(`\b(?:lictor|patroni)_[a-z0-9_]+`)
	suffix := regexp.MustCompile(`_(?:bucket|sum|count)$`)
	documented := map[string]bool{}
	paths := []string{"../docs/metrics.md", "../docs/monitoring/alerts.yml"}
	for _, name := range dashboards(t) {
		paths = append(paths, "../docs/monitoring/"+name)
	}
	for _, path := range paths {
		for _, name := range named.FindAllString(string(got(os.ReadFile(path))(t)), -1) {
			if strings.HasPrefix(name, "lictor_monitoring_") { // a variable of the Ansible role
				continue
			}
			documented[name] = documented[name] || strings.HasSuffix(path, ".md")
			if !have[name] && !have[suffix.ReplaceAllString(name, "")] {
				t.Errorf("%s names %s, which nobody answers", path, name)
			}
		}
	}
	for name := range have {
		if named.MatchString(name) && !documented[name] {
			t.Errorf("docs/metrics.md says nothing of %s", name)
		}
	}
	for _, name := range regexp.MustCompile(`\bpgbouncer_[a-z0-9_]+`).FindAllString(string(got(os.ReadFile("../docs/monitoring/grafana-poolers.json"))(t)), -1) {
		if !have[name] {
			t.Errorf("grafana-poolers.json names %s, which PgBouncer's bouncer does not answer", name)
		}
	}
	count := regexp.MustCompile(`lictor_leader_changes_total\{cause="operator",kind="switchover",name="[^"]+",outcome="done",scope="[^"]+"\} (\d+)`)
	if m := count.FindStringSubmatch(answered.String()); m == nil || got(strconv.Atoi(m[1]))(t) < 1 {
		t.Errorf("the switchover was not counted")
	}
}
