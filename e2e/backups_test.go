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
	"regexp"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// backups is a shard of two members whose backups lie in a directory that both reach.
type backups struct {
	*lab.Lab
	pgbackrest, dir, pgpass, lictor string
}

func (b *backups) config(m *lab.Member) string { return filepath.Join(m.Dir, "pgbackrest.conf") }

// edit has a member archive and ask for backups, each second.
func (b *backups) edit(m *lab.Member, config map[string]any) {
	command := b.pgbackrest + " --config=" + b.config(m)
	parameters := config["postgresql"].(map[string]any)["parameters"].(map[string]any)
	parameters["archive_mode"], parameters["archive_command"] = "on", command+" --stanza="+m.Shard.Name+" archive-push %p"
	lictor, ok := config["lictor"].(map[string]any)
	if !ok {
		lictor = map[string]any{}
		config["lictor"] = lictor
	}
	lictor["backup"] = map[string]any{"stanza": m.Shard.Name, "command": command, "every": 1, "max_age": 1}
}

// configure writes pgBackRest's configuration of a member: it is pg1 itself.
func (b *backups) configure(t *testing.T, m *lab.Member) {
	t.Helper()
	text := fmt.Sprintf("[global]\nrepo1-path=%s/repo\nrepo1-retention-full=9\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=not-so-secret\n"+
		"log-path=%s\nlock-path=%[2]s/lock\nspool-path=%[2]s/spool\nstart-fast=y\n[%s]\n", b.dir, m.Dir, m.Shard.Name)
	n := 1
	for _, other := range append([]*lab.Member{m}, m.Shard.Members()...) {
		if n > 1 && other == m {
			continue
		}
		_, port, err := net.SplitHostPort(other.Postgres)
		must(t, err)
		text += fmt.Sprintf("pg%d-path=%s\npg%[1]d-socket-path=%[3]s\npg%[1]d-port=%[4]s\npg%[1]d-user=%[5]s\n", n, other.DataDir, other.SocketDir, port, lab.SuperuserRole)
		n++
	}
	must(t, b.WriteFile(b.config(m), []byte(text), 0o600))
}

// as runs a program as PostgreSQL's user, and returns what it prints.
func (b *backups) as(ctx context.Context, program string, args ...string) (string, error) {
	words := append([]string{program}, args...)
	if os.Geteuid() == 0 {
		words = append([]string{"runuser", "-u", "postgres", "--"}, words...)
	}
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env, cmd.Dir = append(os.Environ(), "PGPASSFILE="+b.pgpass), "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%v: %w: %s", words, err, out)
	}
	return string(out), nil
}

// run takes a backup on a member as its timer does.
func (b *backups) run(ctx context.Context, m *lab.Member, kind string) (string, error) {
	args := []string{"backup", "run", "--stanza", m.Shard.Name, "--type", kind, "--as", m.Name, "--pgbackrest", b.pgbackrest + " --config=" + b.config(m)}
	for _, agent := range m.Shard.Members() {
		args = append(args, "--agent", "http://"+agent.REST)
	}
	return b.as(ctx, b.lictor, args...)
}

// Backups as the timers of the Ansible role take and verify them, with the real pgBackRest:
// from the replica, by the one member that is chosen, also after a failover; what the
// repository has is told by metrics, fleet, doctor and events.
func TestBackups(t *testing.T) {
	pgbackrest, err := exec.LookPath("pgbackrest")
	if err != nil {
		t.Skip("pgbackrest is not installed: make deps")
	}
	b := &backups{pgbackrest: pgbackrest}
	b.Lab = labtest.New(t, lab.Options{Bouncers: -1, Members: 2, ConsulServers: 1, Database: lab.Lictor{Edit: b.edit}})
	s := b.Shard(0)
	ctx := within(t)
	b.dir = filepath.Join(s.Members()[0].Dir, "backups")
	_ = got(b.as(ctx, "mkdir", b.dir, filepath.Join(b.dir, "repo"), filepath.Join(b.dir, "scratch")))(t)
	b.pgpass, b.lictor = filepath.Join(b.dir, "pgpass"), filepath.Join(b.dir, "lictor")
	program := got(os.ReadFile(os.Getenv("LICTOR_BIN")))(t)
	must(t, os.WriteFile(b.lictor, program, 0o755)) //nolint:gosec // PostgreSQL's user runs it, and does not get into a clone in /root
	must(t, b.WriteFile(b.pgpass, []byte("*:*:*:*:"+b.Secrets.Superuser+"\n"), 0o600))
	for _, m := range s.Members() {
		b.configure(t, m)
	}
	must(t, b.Start(ctx))
	a := got(s.AwaitHealthy(ctx))(t)
	must(t, s.AwaitSync(ctx))
	replica := got(s.Replicas(ctx))(t)[0]
	lictor := func(command string) string { return lictorSays(ctx, b.Lab, s, command) }
	says := func(command, what string) { t.Helper(); awaitSaid(ctx, t, b.Lab, s, command, what) }
	measures := func(m *lab.Member, pattern string) {
		t.Helper()
		want := regexp.MustCompile(`(?m)^` + fmt.Sprintf(pattern, regexp.QuoteMeta(fmt.Sprintf(`name="%s",scope="%s"`, m.Name, s.Name))) + `$`)
		await(ctx, t, "metrics of "+m.Name, func() error {
			_, body, err := m.Get(ctx, "/metrics")
			if err == nil && !want.Match(body) {
				err = fmt.Errorf("nothing is %s in\n%s", want, regexp.MustCompile(`(?m)^lictor_backup.*$`).FindAll(body, -1))
			}
			return err
		})
	}
	silent := func(m *lab.Member) {
		t.Helper()
		await(ctx, t, "metrics of "+m.Name, func() error {
			_, body, err := m.Get(ctx, "/metrics")
			if err == nil && strings.Contains(string(body), "lictor_backup") {
				err = errors.New("a replica tells of backups")
			}
			return err
		})
	}

	// No stanza, then no backup.
	says("fleet", "pgBackRest cannot read the repository: repository 1: missing stanza path")
	measures(a, `lictor_backup_repository_up\{%s\} 0`)
	_ = got(b.as(ctx, pgbackrest, "--config="+b.config(a), "--stanza="+s.Name, "stanza-create"))(t)
	says("fleet", "there is no good backup of this cluster")
	says("doctor", "the shard's backups are not as they should be: there is no good backup of this cluster")
	says("events", "backups missing "+a.Name+" under way")
	measures(a, `lictor_backups\{%s\} 0`)
	silent(replica)

	// The replica takes it, and the primary leaves it to the replica.
	if out, err := b.run(ctx, a, "full"); err != nil || !strings.Contains(out, "from "+replica.Name) {
		t.Errorf("on the primary: %v %s", err, out)
	}
	if out := got(b.as(ctx, pgbackrest, "--config="+b.config(a), "--stanza="+s.Name, "--output=json", "info"))(t); strings.Contains(out, `"type":"full"`) {
		t.Errorf("the primary took the backup itself: %s", out)
	}
	out := got(b.run(ctx, replica, "full"))(t)
	if !strings.Contains(out, "a backup is taken from "+replica.Name) {
		t.Errorf("on the replica: %s", out)
	}
	measures(a, `lictor_backup_last_success_timestamp_seconds\{%s,type="full"\} 1\.\d+e\+09`)
	measures(a, `lictor_backup_repository_bytes\{%s\} \d\.\d+e\+06`)
	measures(a, `lictor_backup_repository_up\{%s\} 1`)
	measures(a, `lictor_backups_damaged\{%s\} 0`)
	says("events", "backups missing "+a.Name+" done")
	if out := lictor("fleet") + lictor("doctor"); strings.Contains(out, "backup") {
		t.Errorf("there is a backup, and they say: %s", out)
	}

	// It can be restored; nothing is left of it, and nothing else is touched.
	verify := func() (string, error) {
		return b.as(ctx, b.lictor, "backup", "verify", "--stanza", s.Name, "--pgbackrest", pgbackrest+" --config="+b.config(a),
			"--scratch", filepath.Join(b.dir, "scratch"), "--bin-dir", b.Options.Programs.PostgresBin, "--annotate")
	}
	if out := got(verify())(t); !strings.Contains(out, "the backup is good") {
		t.Errorf("the verification: %s", out)
	}
	if left := got(os.ReadDir(filepath.Join(b.dir, "scratch")))(t); len(left) > 0 {
		t.Errorf("the verification has left %s", left[0].Name())
	}
	measures(a, `lictor_backup_last_verified_timestamp_seconds\{%s\} 1\.\d+e\+09`)

	// After a switchover the other one does.
	if status, answer, err := a.Post(ctx, "/switchover", map[string]string{"leader": a.Name, "candidate": replica.Name}); err != nil || status != http.StatusOK {
		t.Fatalf("switchover: %d %s %v", status, answer, err)
	}
	_ = got(s.AwaitHealthy(ctx))(t)
	must(t, s.AwaitSync(ctx))
	if out := got(b.run(ctx, replica, "incr"))(t); !strings.Contains(out, "from "+a.Name) {
		t.Errorf("on the new primary: %s", out)
	}
	if out := got(b.run(ctx, a, "incr"))(t); !strings.Contains(out, "a backup is taken from "+a.Name) {
		t.Errorf("on the new replica: %s", out)
	}
	measures(replica, `lictor_backup_last_success_timestamp_seconds\{%s,type="incr"\} 1\.\d+e\+09`)
	measures(replica, `lictor_backup_last_verified_timestamp_seconds\{%s\} 1\.\d+e\+09`) // it lies in the repository
	silent(a)

	// Without the replica the primary takes it.
	must(t, a.Process("agent").Stop(ctx))
	await(ctx, t, "the primary is chosen", func() error {
		out, err := b.run(ctx, replica, "diff")
		if err == nil && !strings.Contains(out, "a backup is taken from "+replica.Name) {
			err = errors.New(out)
		}
		return err
	})
	measures(replica, `lictor_backup_last_success_timestamp_seconds\{%s,type="diff"\} 1\.\d+e\+09`)

	// A damaged backup does not pass, a repository that is away is told of, and what was
	// known of it stays.
	label := strings.Fields(strings.TrimSpace(got(b.as(ctx, "ls", filepath.Join(b.dir, "repo", "backup", s.Name, "latest", "pg_data", "global")))(t)))
	if len(label) == 0 {
		t.Fatal("the backup has no files")
	}
	must(t, os.Rename(filepath.Join(b.dir, "repo"), filepath.Join(b.dir, "repo.away")))
	measures(replica, `lictor_backup_repository_up\{%s\} 0`)
	measures(replica, `lictor_backups\{%s\} 3`)
	says("fleet", "pgBackRest cannot read the repository")
	if out, err := verify(); err == nil {
		t.Errorf("a repository that is away is verified: %s", out)
	}
	must(t, os.Rename(filepath.Join(b.dir, "repo.away"), filepath.Join(b.dir, "repo")))
	measures(replica, `lictor_backup_repository_up\{%s\} 1`)
	must(t, os.Truncate(filepath.Join(b.dir, "repo", "backup", s.Name, "latest", "pg_data", "global", label[len(label)-1]), 17))
	if out, err := verify(); err == nil {
		t.Errorf("a damaged backup is verified: %s", out)
	} else {
		t.Logf("of a damaged backup: %s", out)
	}
}
