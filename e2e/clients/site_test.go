package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

const (
	// patience bounds every wait; it says nothing about how fast things are.
	patience = 2 * time.Minute

	operator, secret = "operator", "a-password"
)

// site is the one shard that all tests share, and where its clients are.
type site struct {
	*lab.Shard
	lab *lab.Lab
	dir string // of the clients' files

	patronictl string // its path
	patroni4   bool   // it is of Patroni 4, not 3
}

func newSite(t *testing.T) *site {
	t.Helper()
	labtest.RequireNetns(t) // the usual ports are part of what is tested
	l := labtest.New(t, lab.Options{
		Substrate: lab.Netns, Bouncers: -1, ConsulServers: 1,
		Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) {
			rest := config["restapi"].(map[string]any)
			delete(rest, "allowlist")
			rest["authentication"] = map[string]any{"username": operator, "password": secret}
		}},
	})
	ctx := within(t)
	patronictl, err := exec.LookPath("patronictl")
	must(t, err)
	must(t, l.Start(ctx))
	s := &site{Shard: l.Shard(0), lab: l, dir: t.TempDir(), patronictl: patronictl}
	s.whole(t)
	version, err := s.run(t, "", patronictl, "version")
	must(t, err)
	s.patroni4 = strings.Contains(version, "patronictl version 4.")
	config, err := yaml.Marshal(map[string]any{
		"scope":   s.Name,
		"consul":  map[string]any{"host": l.ConsulHosts()[0]},
		"restapi": map[string]any{"authentication": map[string]any{"username": operator, "password": secret}},
	})
	must(t, err)
	must(t, os.WriteFile(s.file("patronictl.yml"), config, 0o600))
	return s
}

func (s *site) file(name string) string { return filepath.Join(s.dir, name) }

// whole waits until every member serves, and returns the leader.
func (s *site) whole(t *testing.T) *lab.Member {
	t.Helper()
	ctx := within(t)
	leader, err := s.AwaitHealthy(ctx)
	must(t, err)
	must(t, s.AwaitSync(ctx))
	return leader
}

// standby is the synchronous standby, asyncReplica the other replica.
func (s *site) standby(t *testing.T) *lab.Member {
	t.Helper()
	s.whole(t)
	snapshot, err := s.Snapshot(within(t))
	must(t, err)
	return s.Member(snapshot.Sync.Value.Standbys()[0])
}

// run runs a client and returns what it printed.
func (s *site) run(t *testing.T, input, path string, args ...string) (string, error) {
	t.Helper()
	cmd := s.lab.Command(within(t), path, args...)
	cmd.Env = []string{
		"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + s.dir, "LANG=C.UTF-8", "EDITOR=" + s.file("editor"),
		"PGUSER=" + lab.SuperuserRole, "PGPASSWORD=" + s.lab.Secrets.Superuser, "PGCONNECT_TIMEOUT=2",
	}
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	t.Logf("$ %s %s\n%s", filepath.Base(path), strings.Join(args, " "), strings.TrimRight(out.String(), "\n"))
	return out.String(), err
}

// ctl runs patronictl, which must succeed and say what is wanted.
func (s *site) ctl(t *testing.T, wants []string, args ...string) string {
	t.Helper()
	out, err := s.run(t, "", s.patronictl, append([]string{"-c", s.file("patronictl.yml")}, args...)...)
	if err != nil {
		t.Fatalf("patronictl %s: %v", args[0], err)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("patronictl %s does not say %q", args[0], want)
		}
	}
	return out
}

// line is one member as patronictl list prints it.
type line struct {
	Member, Host, Role, State string
	TL                        int
	Lag                       any    `json:"Lag in MB"`
	Pending                   string `json:"Pending restart"`
	Scheduled                 string `json:"Scheduled restart"`
}

// list is what patronictl list says, by member.
func (s *site) list(t *testing.T) map[string]line {
	t.Helper()
	var lines []line
	if err := json.Unmarshal([]byte(s.ctl(t, nil, "list", "-f", "json")), &lines); err != nil {
		t.Fatal(err)
	}
	members := map[string]line{}
	for _, l := range lines {
		members[l.Member] = l
	}
	return members
}

// started is when the member's PostgreSQL was started; it waits until that answers.
func started(t *testing.T, m *lab.Member) string {
	t.Helper()
	var status struct {
		PostmasterStartTime string `json:"postmaster_start_time"`
	}
	await(t, m.Name+" does not say when its PostgreSQL was started", func() error {
		code, body, err := m.Get(within(t), "/patroni")
		if err != nil {
			return err
		}
		if err := json.Unmarshal(body, &status); err != nil || status.PostmasterStartTime == "" {
			return fmt.Errorf("GET /patroni: %d %s: %w", code, body, err)
		}
		return nil
	})
	return status.PostmasterStartTime
}

// rest sends a request to a member's REST API, with the credentials or without.
func (s *site) rest(t *testing.T, m *lab.Member, method, path, body string, known bool) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(within(t), method, "http://"+m.REST+path, strings.NewReader(body))
	must(t, err)
	if known {
		r.SetBasicAuth(operator, secret)
	}
	client := http.Client{Transport: &http.Transport{DialContext: s.lab.Dial, DisableKeepAlives: true}}
	answer, err := client.Do(r)
	must(t, err)
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	must(t, err)
	return answer.StatusCode, string(content)
}

// value asks the member's PostgreSQL.
func value(t *testing.T, m *lab.Member, sql string) (string, error) {
	t.Helper()
	ctx := within(t)
	conn, err := m.Connect(ctx, "postgres")
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var v string
	err = conn.QueryRow(ctx, sql).Scan(&v)
	return v, err
}

// awaitValue waits until the member's PostgreSQL gives that answer.
func awaitValue(t *testing.T, m *lab.Member, sql, want string) {
	t.Helper()
	await(t, fmt.Sprintf("%s: %s", m.Name, sql), func() error {
		got, err := value(t, m, sql)
		if err == nil && got != want {
			err = fmt.Errorf("%q, not %q", got, want)
		}
		return err
	})
}

func within(t *testing.T) context.Context { t.Helper(); return testkit.Within(t, patience) }

func must(t *testing.T, err error) { t.Helper(); testkit.Must(t, err) }

func await(t *testing.T, what string, probe func() error) {
	t.Helper()
	testkit.Await(within(t), t, what, probe)
}
