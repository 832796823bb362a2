package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// Without Consul nothing is started, not even data that was a primary; with it
// the shard comes up by itself.
func TestNoConsul(t *testing.T) {
	l := labtest.New(t, lab.Options{Bouncers: -1})
	s := l.Shard(0)
	ctx := within(t)
	for _, m := range s.Members() {
		must(t, m.Start(ctx))
	}
	for _, m := range s.Members() {
		await(ctx, t, m.Name+" does not say that it has no Consul", func() error {
			status, body, err := m.Get(ctx, "/patroni")
			if err == nil && (status != 200 || !strings.Contains(string(body), "Consul has not answered yet")) {
				t.Logf("%d %s", status, body)
				err = os.ErrNotExist
			}
			return err
		})
		if entries, err := os.ReadDir(m.DataDir); err == nil && len(entries) > 0 {
			t.Errorf("%s has begun a data directory", m.Name)
		}
	}
	must(t, l.StartConsul(ctx))
	got(s.AwaitHealthy(ctx))(t)

	// The same with data that was a primary.
	leader := got(s.Leader(ctx))(t)
	for _, h := range l.Hosts() {
		must(t, h.Kill(ctx))
	}
	must(t, leader.Start(ctx))
	await(ctx, t, "the old leader does not say that it has no Consul", func() error {
		_, body, err := leader.Get(ctx, "/patroni")
		if err == nil && !strings.Contains(string(body), "Consul has not answered yet") {
			err = os.ErrNotExist
		}
		return err
	})
	if _, err := leader.PostmasterPID(); err == nil {
		if _, err := leader.Postmaster(); err == nil {
			t.Error("a primary was started without Consul")
		}
	}
}

// A data directory that is not the shard's is refused and left as it is.
func TestForeignDataDirectory(t *testing.T) {
	l := start(t, lab.Options{Bouncers: -1, Members: 2, Async: true})
	s := l.Shard(0)
	ctx := within(t)
	got(s.AwaitHealthy(ctx))(t)
	replica := got(s.Replicas(ctx))(t)[0]

	// Nor is a second member of the same name let in.
	dir := t.TempDir()
	letIn(t, dir)
	config := string(got(os.ReadFile(filepath.Join(replica.Dir, "agent.yml")))(t))
	for old, other := range map[string]string{replica.REST: portAfter(t, replica.REST), replica.Postgres: portAfter(t, replica.Postgres), replica.DataDir: filepath.Join(dir, "data")} {
		config = strings.ReplaceAll(config, old, other)
	}
	file := filepath.Join(dir, "agent.yml")
	must(t, os.WriteFile(file, []byte(config), 0o600))
	out, err := replica.Command(ctx, os.Getenv("LICTOR_BIN"), "agent", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "runs already, at http://"+replica.REST) {
		t.Errorf("a second member of the name %s: %v\n%s", replica.Name, err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		t.Error("it has begun a data directory")
	}

	must(t, replica.Kill(ctx))
	must(t, os.RemoveAll(replica.DataDir))
	must(t, os.Mkdir(replica.DataDir, 0o755))
	photo := filepath.Join(replica.DataDir, "holiday.jpg")
	must(t, os.WriteFile(photo, []byte("beach"), 0o644))
	must(t, replica.Start(ctx))
	await(ctx, t, "the member does not refuse it", func() error {
		_, body, err := replica.Get(ctx, "/patroni")
		if err == nil && !strings.Contains(string(body), "not a PostgreSQL data directory") {
			t.Logf("%s", body)
			err = os.ErrNotExist
		}
		return err
	})
	if content, err := os.ReadFile(photo); err != nil || string(content) != "beach" {
		t.Errorf("the file was touched: %q %v", content, err)
	}

	// Nor does a member join whose replication slot another one has.
	must(t, replica.Kill(ctx))
	must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
		_, err := c.KV().Delete("service/"+s.Name+"/members/"+replica.Name, (&api.WriteOptions{}).WithContext(ctx))
		return err
	}))
	put(ctx, t, l, "service/"+s.Name+"/members/"+strings.ToUpper(replica.Name), `{"state":"running","role":"replica"}`)
	_ = replica.Start(ctx) // it may end before it is ready
	await(ctx, t, "the member joins one whose slot has the same name", func() error {
		if !strings.Contains(agentLog(t, replica), "another member has the same replication slot") || replica.Process("agent").Running() {
			return errors.New("the agent goes on")
		}
		return nil
	})
}

// Somebody has the port at which a member was, and answers as that member did. The member, which has
// another address now, starts all the same, under its own name.
func TestNameIsNotTakenByAStranger(t *testing.T) {
	l := start(t, lab.Options{Bouncers: -1, Members: 2, ConsulServers: 1, Async: true})
	s := l.Shard(0)
	ctx := within(t)
	got(s.AwaitHealthy(ctx))(t)
	replica := got(s.Replicas(ctx))(t)[0]
	_, words, err := replica.Get(ctx, "/patroni")
	must(t, err)
	must(t, replica.Kill(ctx)) // its key stays for the rest of its session
	asked := make(chan struct{}, 1)
	var listener net.ListenConfig
	port := got(listener.Listen(ctx, "tcp", replica.REST))(t)
	stranger := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		_, _ = w.Write(words)
	})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = stranger.Serve(port) // until it is closed
	}()
	defer func() {
		_ = stranger.Close()
		<-served
	}()

	file := filepath.Join(replica.Dir, "agent.yml")
	config := string(got(os.ReadFile(file))(t))
	elsewhere := portAfter(t, replica.REST)
	must(t, os.WriteFile(file, []byte(strings.ReplaceAll(config, replica.REST, elsewhere)), 0o600))
	must(t, replica.Process("agent").Start())
	select {
	case <-asked:
	case <-ctx.Done():
		t.Fatal("the stranger was not asked")
	}
	await(ctx, t, "the member does not run at its new address", func() error {
		snapshot, err := s.Snapshot(ctx)
		if err != nil {
			return err
		}
		if m, _ := snapshot.Member(replica.Name); m.Value.State != "running" || !strings.Contains(m.Value.APIURL, elsewhere) {
			return fmt.Errorf("%s at %s", m.Value.State, m.Value.APIURL)
		}
		return nil
	})
	if !strings.Contains(agentLog(t, replica), "is not taken for it") {
		t.Error("the log does not tell of the stranger")
	}
}

// portAfter is an address with a port that is another's.
func portAfter(t *testing.T, address string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	must(t, err)
	return net.JoinHostPort(host, strconv.Itoa(got(strconv.Atoi(port))(t)+1000))
}

// What is wrong with a configuration is said at once, field by field, and
// nothing is started.
func TestBadConfig(t *testing.T) {
	program := os.Getenv("LICTOR_BIN")
	if program == "" {
		program = filepath.Join("..", "bin", "lictor")
	}
	file := filepath.Join(t.TempDir(), "agent.yml")
	must(t, os.WriteFile(file, []byte(`
scope: shard1
naem: db1
restapi: {listen: 127.0.0.1:8008}
etcd: {host: 127.0.0.1}
bootstrap: {dcs: {ttl: 5, loop_wait: 2, retry_timeout: 2}}
postgresql: {listen: "127.0.0.1:5432", data_dir: /tmp/nowhere, authentication: {superuser: {username: postgres, password: hush}}}
`), 0o600))
	for _, command := range []string{"validate", "agent"} {
		out, err := exec.Command(program, command, file).CombinedOutput()
		if err == nil {
			t.Errorf("%s accepted it", command)
		}
		for _, want := range []string{"did you mean name", "etcd", "loop_wait + 2"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s does not say %q: %s", command, want, out)
			}
		}
		if strings.Contains(string(out), "hush") {
			t.Errorf("%s prints a password", command)
		}
	}
	out, err := exec.Command(program, "validate", "--set", "log.level=loudest", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "loudest") {
		t.Errorf("--set was not heard: %s", out)
	}
	if out, err := exec.Command(program, "sample-config").Output(); err != nil || len(out) < 1000 {
		t.Errorf("sample-config: %v, %d bytes", err, len(out))
	}
}
