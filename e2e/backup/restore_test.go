package backup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
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
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
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

// A shard is put back to the moment between two known rows, under clients: they wait or fail,
// and go on with the restored rows; another shard's notice nothing. The leader's old data lie
// beside, its replica follows, and no member leads with what was discarded.
func TestRestoreInPlace(t *testing.T) {
	all(t)
	s := serving(t, lab.Options{Shards: 2, Members: 2, Bouncers: 1, Async: true}, restores(needs(t)))
	ctx := testkit.Within(t, 3*patience)
	must(t, s.AwaitServing(ctx))
	shard, other := s.Shard(0), s.Shard(1)
	leader := got(shard.Leader(ctx))(t)
	replica := got(shard.Replicas(ctx))(t)[0]
	sql(ctx, t, leader, "CREATE TABLE public.known (what text)", "INSERT INTO public.known VALUES ('before')")
	before := moment(ctx, t, leader, "0")
	sql(ctx, t, leader, "INSERT INTO public.known VALUES ('after')")
	after := moment(ctx, t, leader, "0")
	sql(ctx, t, leader, "INSERT INTO public.known VALUES ('last')")
	clients, others := shard.StartWorkload(ctx, lab.WorkloadOptions{}), other.StartWorkload(ctx, lab.WorkloadOptions{})
	labtest.AwaitWrites(ctx, t, clients)
	labtest.AwaitWrites(ctx, t, others)
	was := got(leader.Status(ctx))(t)

	// What cannot be done is refused, and nobody notices.
	for say, args := range map[string][]string{
		"earlier than the end of the first good backup": {"--to", "2020-01-01 00:00+00"},
		"is in the future":        {"--to", time.Now().Add(time.Hour).Format("2006-01-02 15:04:05-07:00")},
		"there is no good backup": {"--to", before, "--from-backup", "20200101-000000F"},
	} {
		if out, code := s.restore(ctx, leader, args...); code != operator.ExitRefused || !strings.Contains(out, say) {
			t.Errorf("%v: %d, %s", args, code, out)
		}
	}
	if out, code := s.restore(ctx, replica, "--to", before); code != operator.ExitRefused || !strings.Contains(out, "run this on the leader's host") {
		t.Errorf("on a replica's host: %d, %s", code, out)
	}
	// So it is by the agent, whoever asks it.
	label := strings.Fields(string(got(s.repo.CommandAsPostgres(ctx, "sh", "-c", "ls "+filepath.Join(s.repo.Dir, "repo/backup", shard.Name)).Output())(t)))[0]
	for say, request := range map[string]map[string]any{
		"and a recovery from it ends later":        {"target": "2020-01-01T00:00:00Z"},
		"target: is in the future":                 {"target": time.Now().Add(time.Hour).Format(time.RFC3339)},
		"target: must be a time with its zone":     {"target": "2026-11-29 10:00 CST"},
		"is later than the last WAL of timeline":   {"target": time.Now().Format(time.RFC3339Nano)},
		"there is no good backup 20200101-000000F": {"target": inZone(before), "label": "20200101-000000F"},
		"timeline: the shard was on ":              {"target": inZone(before), "timeline": 77},
	} {
		if request["label"] == nil {
			request["label"] = label
		}
		if status, answer, err := leader.Post(ctx, "/restore", request); err != nil || status != http.StatusPreconditionFailed && status != http.StatusBadRequest || !strings.Contains(answer, say) {
			t.Errorf("POST /restore %v: %d %s %v", request, status, answer, err)
		}
	}
	if now := got(leader.Status(ctx))(t); now.Timeline != was.Timeline || len(asides(t, leader)) > 0 {
		t.Fatalf("it was touched: timeline %d, %v", now.Timeline, asides(t, leader))
	}

	began := time.Now()
	out, code := s.restore(ctx, leader, "--to", before)
	if t.Logf("%.1f s: %s", time.Since(began).Seconds(), out); code != 0 {
		t.Fatalf("%d\n%s", code, agentLog(t, leader))
	}
	if again := got(shard.AwaitHealthy(ctx))(t); again != leader {
		t.Errorf("%s leads", again.Name)
	}
	for _, m := range shard.Members() {
		if n := count(ctx, t, m, "SELECT count(*) FROM public.known WHERE what = 'after'"); n != 0 {
			t.Errorf("%s has what was committed later", m.Name)
		}
		if n := count(ctx, t, m, "SELECT count(*) FROM public.known"); n != 1 {
			t.Errorf("%s has %d known rows", m.Name, n)
		}
		if now := got(m.Status(ctx))(t); now.Timeline <= was.Timeline {
			t.Errorf("%s is on timeline %d, was on %d", m.Name, now.Timeline, was.Timeline)
		}
	}
	labtest.AwaitWrites(ctx, t, clients)
	if beside := asides(t, leader); len(beside) != 1 {
		t.Errorf("the old data: %v", beside)
	}
	clients.Stop()
	others.Stop()
	if n := others.Writes.ErrorCount(); n > 0 {
		t.Errorf("%d writes of the other shard's clients have failed", n)
	}

	// What that has discarded is reached all the same: the recovery follows the timeline of then.
	out, code = s.restore(ctx, leader, "--to", after)
	if t.Log(out); code != 0 || !strings.Contains(out, fmt.Sprintf("timeline    %d, which an earlier restore left", was.Timeline)) {
		t.Fatalf("%d\n%s", code, agentLog(t, leader))
	}
	got(shard.AwaitHealthy(ctx))(t)
	for _, m := range shard.Members() {
		if n := count(ctx, t, m, "SELECT count(*) FROM public.known"); n != 2 {
			t.Errorf("after the second restore %s has %d known rows", m.Name, n)
		}
	}
	must(t, s.backup(ctx, shard)) // on the new timeline
	s.reinit(ctx, t, replica)
	if how := made(ctx, t, replica); !strings.Contains(how, " by pgbackrest in ") {
		t.Errorf("its replica was made %q", how)
	}
}

// inZone is a moment as the REST API takes it.
func inZone(at string) string { return strings.Replace(at, " ", "T", 1) + ":00" }

// asides are the data directories that restores have moved aside.
func asides(t *testing.T, m *lab.Member) []string {
	t.Helper()
	return got(filepath.Glob(m.DataDir + ".before-restore.*"))(t)
}
