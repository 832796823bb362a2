package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// patience bounds every wait in these tests.
const patience = 2 * time.Minute

func within(t *testing.T) context.Context { t.Helper(); return testkit.Within(t, patience) }

// must fails the test on an error.
func must(t *testing.T, err error) { t.Helper(); testkit.Must(t, err) }

// got is must for functions that also return a value.
func got[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return value
	}
}

// all skips the test unless all tests are asked for (make test-backup): the others have
// their place in make test.
func all(t *testing.T) {
	t.Helper()
	if os.Getenv("LICTOR_TEST_BACKUP") == "" {
		t.Skip("a test of make test-backup")
	}
}

// needs skips the test where there is no pgBackRest, or no way to give it hosts.
func needs(t *testing.T) (program string) {
	t.Helper()
	labtest.RequireNetns(t)
	program, err := findPgBackRest()
	if err != nil {
		t.Skip(err)
	}
	return program
}

// serving builds a site of which each shard is whole and has been backed up once.
func serving(t *testing.T, opts lab.Options, edit func(m *lab.Member, config map[string]any)) *site {
	t.Helper()
	program := needs(t)
	opts.Substrate, opts.Database = lab.Netns, member(program, edit)
	if opts.ConsulServers == 0 {
		opts.ConsulServers = 1
	}
	if opts.Bouncers == 0 {
		opts.Bouncers = -1
	}
	ctx := within(t)
	l := labtest.New(t, opts)
	s := got(newSite(ctx, l, program))(t)
	must(t, l.Start(ctx))
	for _, shard := range l.Shards() {
		got(shard.AwaitHealthy(ctx))(t)
		must(t, shard.Prepare(ctx))
		must(t, s.pgbackrest(ctx, shard, "stanza-create"))
		must(t, s.backup(ctx, shard))
	}
	return s
}

// reinit has a replica made anew, and waits until the shard is whole again.
func (s *site) reinit(ctx context.Context, t *testing.T, m *lab.Member) {
	t.Helper()
	if status, answer, err := m.Post(ctx, "/reinitialize", map[string]any{}); err != nil || status != http.StatusOK {
		t.Fatalf("reinitialize %s: %d %s %v", m.Name, status, answer, err)
	}
	testkit.Await(ctx, t, "the reinit of "+m.Name+" begins", func() error {
		if status, err := m.Status(ctx); err == nil && status.State == "running" {
			return errors.New("it still runs")
		}
		return nil
	})
	got(m.Shard.AwaitHealthy(ctx))(t)
}

// made is how a member's data were made last, as its API tells.
func made(ctx context.Context, t *testing.T, m *lab.Member) string {
	t.Helper()
	_, body, err := m.Get(ctx, "/patroni")
	must(t, err)
	var status struct {
		Lictor struct {
			Made string `json:"made"`
		} `json:"lictor"`
	}
	must(t, json.Unmarshal(body, &status))
	return status.Lictor.Made
}

// lictor runs one of the operator's commands and gives what it prints, in one line.
func (s *site) lictor(ctx context.Context, shard *lab.Shard, command string) string {
	out, _ := s.Command(ctx, os.Getenv("LICTOR_BIN"), command, shard.Name, "--consul", s.ConsulServers()[0].HTTP).CombinedOutput() // findings are an error
	return strings.Join(strings.Fields(string(out)), " ")
}

// says waits until a command's output has some words.
func (s *site) says(ctx context.Context, t *testing.T, shard *lab.Shard, command, what string) {
	t.Helper()
	testkit.Await(ctx, t, "lictor "+command, func() error {
		if out := s.lictor(ctx, shard, command); !strings.Contains(out, what) {
			return fmt.Errorf("does not say %q: %s", what, out)
		}
		return nil
	})
}

func agentLog(t *testing.T, m *lab.Member) string {
	t.Helper()
	return string(got(os.ReadFile(m.Process("agent").LogPath()))(t))
}

func sql(ctx context.Context, t *testing.T, m *lab.Member, statements ...string) {
	t.Helper()
	must(t, execute(ctx, m, statements...))
}

// execute is sql for what is awaited.
func execute(ctx context.Context, m *lab.Member, statements ...string) error {
	conn, err := m.Connect(ctx, m.Shard.Name)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

func count(ctx context.Context, t *testing.T, m *lab.Member, query string) (n int) {
	t.Helper()
	conn := got(m.Connect(ctx, m.Shard.Name))(t)
	defer conn.Close(context.WithoutCancel(ctx))
	must(t, conn.QueryRow(ctx, query).Scan(&n))
	return n
}
