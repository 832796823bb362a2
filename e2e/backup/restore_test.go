package backup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// restores makes a shard's members know their stanza.
func restores(program string) func(m *lab.Member, config map[string]any) {
	return func(m *lab.Member, config map[string]any) {
		lictor, _ := config["lictor"].(map[string]any)
		if lictor == nil {
			lictor = map[string]any{}
			config["lictor"] = lictor
		}
		lictor["backup"] = map[string]any{"stanza": m.Shard.Name, "command": program + " --config=" + filepath.Join(m.Dir, configFile)}
	}
}

// restore runs lictor restore on a member's host.
func (s *site) restore(ctx context.Context, m *lab.Member, args ...string) (out string, code int) {
	args = append([]string{"restore", m.Shard.Name, "--force", "-c", filepath.Join(m.Dir, "agent.yml")}, args...)
	said, err := m.Command(ctx, os.Getenv("LICTOR_BIN"), args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(said), exit.ExitCode()
	}
	if err != nil {
		return err.Error(), -1
	}
	return string(said), 0
}

// A table that was dropped by mistake: the shard's state before becomes another shard on a
// member's host, while clients go on. What cannot be done is refused before anything is there.
func TestRestoreBesideTheLivingShard(t *testing.T) {
	all(t)
	s := serving(t, lab.Options{Shards: 2, Members: 1, Async: true}, restores(needs(t)))
	ctx := testkit.Within(t, 2*patience)
	shard := s.Shard(0)
	m := got(shard.Leader(ctx))(t)
	sql(ctx, t, m, "CREATE TABLE public.known (what text)", "INSERT INTO public.known VALUES ('before')")
	before := moment(ctx, t, m, "0")
	sql(ctx, t, m, "DROP TABLE public.known")
	other := s.Shard(1)
	labels := strings.Fields(string(got(s.repo.CommandAsPostgres(ctx, "sh", "-c", "ls "+filepath.Join(s.repo.Dir, "repo/backup", other.Name)).Output())(t)))

	files := func() []string {
		t.Helper()
		return got(filepath.Glob(filepath.Join(m.Dir, "*monday*")))(t)
	}
	for name, test := range map[string]struct {
		args []string
		say  string
		code int
	}{
		"before the first backup":  {[]string{"--to", "2020-01-01 00:00+00"}, "earlier than the end of the first good backup", operator.ExitRefused},
		"in the future":            {[]string{"--to", time.Now().Add(time.Hour).Format("2006-01-02 15:04:05-07:00")}, "is in the future", operator.ExitRefused},
		"without a zone":           {[]string{"--to", "2026-11-29 10:00"}, "has no zone", operator.ExitUsage},
		"an ambiguous zone":        {[]string{"--to", "2026-11-29 10:00 CST"}, "a zone's name may stand for several offsets", operator.ExitUsage},
		"another shard's backup":   {[]string{"--to", before, "--from-backup", labels[0]}, "there is no good backup " + labels[0] + " of this cluster", operator.ExitRefused},
		"a shard that is there":    {[]string{"--to", before, "--as", other.Name}, "there is a shard " + other.Name, operator.ExitRefused},
		"a directory that is used": {[]string{"--to", before, "--data-dir", m.DataDir}, "is not empty", operator.ExitRefused},
		"a file that is there":     {[]string{"--to", before, "--file", filepath.Join(m.Dir, "agent.yml")}, "exists already", operator.ExitRefused},
		"a port that is used":      {[]string{"--to", before, "--port", portOf(t, m.Postgres)}, "--port: port", operator.ExitRefused},
		"no room":                  {[]string{"--to", before, "--data-dir", "/proc/monday"}, "MB free", operator.ExitRefused},
	} {
		args := test.args
		if !strings.Contains(strings.Join(args, " "), "--as") {
			args = append(args, "--as", "monday")
		}
		if out, code := s.restore(ctx, m, args...); code != test.code || !strings.Contains(out, test.say) {
			t.Errorf("%s: %d, %s", name, code, out)
		}
		if left := files(); len(left) > 0 {
			t.Errorf("%s: it has made %s", name, left)
		}
	}

	out, code := s.restore(ctx, m, "--to", before, "--as", "monday", "--port", "15432", "--api-port", "18008")
	if t.Log(out); code != 0 {
		t.Fatal(code)
	}
	began := time.Now()
	agent, err := m.Run(lab.Spec{Name: "monday", Path: os.Getenv("LICTOR_BIN"), Args: []string{"agent", filepath.Join(m.Dir, "monday.yml")}})
	must(t, err)
	t.Cleanup(func() { must(t, agent.Stop(context.WithoutCancel(ctx))) })
	config := got(pgx.ParseConfig(fmt.Sprintf("host=%s port=15432 user=%s password=%s dbname=%s sslmode=disable", m.Address, lab.SuperuserRole, s.Secrets.Superuser, shard.Name)))(t)
	config.DialFunc = s.Dial
	testkit.Await(ctx, t, "the new shard is there", func() error {
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return fmt.Errorf("%w; its log: %s", err, got(os.ReadFile(agent.LogPath()))(t))
		}
		defer conn.Close(context.WithoutCancel(ctx))
		var what, archives, name string
		var recovers bool
		err = conn.QueryRow(ctx, "SELECT (SELECT string_agg(what, ' ') FROM public.known), current_setting('archive_mode'), current_setting('cluster_name'), pg_is_in_recovery()").
			Scan(&what, &archives, &name, &recovers)
		if err != nil || recovers {
			return fmt.Errorf("it recovers: %w", err)
		}
		if what != "before" || archives != "off" || name != "monday" {
			t.Errorf("it has the rows %q, archive_mode %s, cluster_name %s", what, archives, name)
		}
		return nil
	})
	t.Logf("it was there %.1f s after the agent had begun", time.Since(began).Seconds())
	if n := count(ctx, t, m, "SELECT count(*) FROM pg_class WHERE relname = 'known'"); n != 0 {
		t.Error("the living shard has the table again")
	}
	must(t, s.pgbackrest(ctx, shard, "check")) // it archives as before
	for _, of := range s.Shards() {
		got(of.AwaitHealthy(ctx))(t)
	}
}

func portOf(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	must(t, err)
	return port
}
