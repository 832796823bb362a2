package ansible

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/backup"
)

// TestSiteWithBackups sets up a small site with a repository of backups on a host of its own,
// takes backups there, over TLS, from a replica, also after a handover, and verifies them.
func TestSiteWithBackups(t *testing.T) {
	if os.Getenv("LICTOR_TEST_ANSIBLE") == "" {
		t.Skip("set LICTOR_TEST_ANSIBLE=1, or run make test-ansible: four systemd hosts, some 6 minutes")
	}
	names := []string{"a", "b", "c"}
	orders := shard(5432, 8008, names...)
	r := newRollout(t, append(names, "keep"),
		map[string][]string{"consul_servers": names, "lictor_databases": names, "lictor_repository": {"keep"}},
		map[string]any{"lictor_shards": map[string]any{"orders": orders}, "lictor_backup_repository": ""})
	// It was there before its backups were thought of.
	r.mustPlay(t, "site")
	delete(r.vars, "lictor_backup_repository")
	r.mustPlay(t, "site")
	r.mustPlay(t, "rolling_restart")
	r.testIdempotent(t)
	r.await(t, "WAL in the archive", func() error {
		out, err := r.sql(t, "SELECT count(*) FROM pg_stat_archiver, pg_switch_wal() WHERE last_archived_time > coalesce(last_failed_time, '-infinity')")
		if err == nil && out != "1" {
			err = errors.New("pg_stat_archiver has none")
		}
		return err
	})

	taken := func(kind string, args ...string) {
		t.Helper()
		before, leader := len(r.backups(t).Backups), r.leader(t, "8008")
		r.mustPlay(t, "backup_now", append(args, "-e", "type="+kind)...)
		after := r.backups(t)
		if len(after.Backups) != before+1 || after.Backups[len(after.Backups)-1].Type != kind {
			t.Errorf("there were %d backups, and are %+v", before, after)
		}
		log, err := r.host("keep").run(t.Context(), "journalctl --no-pager -u 'lictor-backup-"+kind+"@orders' | grep -o 'a backup is taken from .*' | tail -n 1")
		if err != nil || !strings.HasPrefix(log, "a backup is taken from ") || strings.HasPrefix(log, "a backup is taken from "+leader+":") {
			t.Errorf("%s leads, and %q: %v", leader, log, err)
		}
	}
	taken(backup.Full)
	r.mustPlay(t, "verify_backups", "-e", "shard=orders")
	if verified := r.backups(t).Verified(); verified.IsZero() {
		t.Error("the repository does not say that the backup was verified")
	}
	for _, name := range names {
		if left, err := r.host(name).run(t.Context(), "ls -A /var/tmp | grep lictor-verify; true"); err != nil || left != "" {
			t.Errorf("the verification has left %s on %s: %v", left, name, err)
		}
	}
	leader := r.leader(t, "8008")
	if out, err := r.host(leader).run(t.Context(), "lictor switchover orders --config /etc/lictor/agents/orders.yml --force"); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	r.awaitHealthy(t, "8008", 3)
	taken(backup.Incremental, "-e", "shard=orders")

	// Timers, spread over the hours and days, each with a next time.
	timers, err := r.host("keep").run(t.Context(), "systemctl list-timers --no-legend 'lictor-backup-*' | grep -o 'lictor-backup-[a-z]*@orders.timer' | sort")
	if err != nil || !slices.Equal(strings.Fields(timers), []string{"lictor-backup-diff@orders.timer", "lictor-backup-full@orders.timer", "lictor-backup-incr@orders.timer"}) {
		t.Errorf("timers: %q, %v", timers, err)
	}
	for _, name := range names {
		if out, err := r.host(name).run(t.Context(), "systemctl list-timers --all --no-legend 'lictor-backup-*'"); err != nil || out != "" {
			t.Errorf("%s has timers, too: %q, %v", name, out, err)
		}
	}
	r.checkSecrets(t)
}

// sql asks the primary.
func (r *rollout) sql(t *testing.T, query string) (string, error) {
	t.Helper()
	return r.host(r.leader(t, "8008")).run(t.Context(), fmt.Sprintf(`runuser -u postgres -- psql -p 5432 -AtXc "%s" postgres`, query))
}

// backups are what the repository has of orders.
func (r *rollout) backups(t *testing.T) backup.Info {
	t.Helper()
	out, err := r.host("keep").run(t.Context(), "runuser -u postgres -- pgbackrest "+strings.Join(backup.InfoOptions("orders"), " "))
	if err != nil {
		t.Fatal(err)
	}
	info, err := backup.Parse([]byte(out), "orders", "")
	if err != nil || info.Trouble != "" {
		t.Fatalf("%v %s: %s", err, info.Trouble, out)
	}
	return info
}
