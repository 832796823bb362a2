package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// A shard follows another one by its archive alone: it is made from a backup, its leader restores WAL, the other
// member streams from that one. Then the first one is demoted by the archive, and follows the second one.
func TestStandbyClusterByArchive(t *testing.T) {
	archive := got(os.MkdirTemp("", "archive"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(archive) })
	must(t, os.Chmod(archive, 0o777)) //nolint:gosec // PostgreSQL's user writes into it
	backup, restore := filepath.Join(archive, "backup.sh"), "cp "+archive+"/%f %p"
	l := labtest.New(t, lab.Options{
		Shards: 2, Members: 2, Bouncers: -1, ConsulServers: 1,
		Database: lab.Lictor{Edit: func(m *lab.Member, c map[string]any) {
			dcs := c["bootstrap"].(map[string]any)["dcs"].(map[string]any)
			parameters := c["postgresql"].(map[string]any)["parameters"].(map[string]any)
			parameters["archive_mode"] = "on"
			parameters["archive_command"] = fmt.Sprintf("test ! -e %[1]s/%%f && cp %%p %[1]s/%%f.new && mv %[1]s/%%f.new %[1]s/%%f", archive)
			if m.Shard.Name == "shard1" {
				return
			}
			c["postgresql"].(map[string]any)["restored"] = map[string]any{"command": "/bin/sh " + backup, "no_leader": true}
			dcs["standby_cluster"] = map[string]any{"restore_command": restore, "create_replica_methods": []any{"restored"}}
		}},
	})
	ctx := within(t)
	must(t, l.StartConsul(ctx))
	first, second := l.Shard(0), l.Shard(1)
	for _, m := range first.Members() {
		must(t, m.Start(ctx))
	}
	primary := got(first.AwaitHealthy(ctx))(t)
	rows := &siteRows{t: t}
	rows.create(ctx, primary)
	rows.write(ctx, primary, 10)
	host, port, err := net.SplitHostPort(primary.Postgres)
	must(t, err)
	must(t, os.WriteFile(backup, fmt.Appendf(nil, `for a in "$@"; do case $a in --datadir=*) d=${a#--datadir=};; esac; done
PGPASSWORD=%s exec %s/pg_basebackup -h %s -p %s -U %s -X none -c fast -D "$d"
`, l.Secrets.Replication, l.Options.Programs.PostgresBin, host, port, lab.ReplicationRole), 0o644)) //nolint:gosec // PostgreSQL's user reads it
	for _, m := range second.Members() {
		must(t, m.Start(ctx))
	}
	ctx = within(t)
	archived := func(n int) {
		t.Helper()
		rows.write(ctx, primary, n)
		// A standby whose first list of running transactions (a backup's checkpoint) was made while those rows were
		// being committed takes them for the future's until another transaction ends (latestCompletedXid in
		// ProcArrayApplyRecoveryInfo), and no more WAL is archived here.
		must(t, rows.exec(ctx, primary, "SELECT txid_current()"))
		must(t, rows.exec(ctx, primary, "SELECT pg_switch_wal()"))
		rows.await(ctx, second, rows.count(ctx, primary))
	}
	archived(10)
	leader := got(second.Leader(ctx))(t)
	if status := got(leader.Status(ctx))(t); status.Role != cluster.RoleStandbyLeader || status.ReplicationState != "in archive recovery" {
		t.Errorf("%s: %s, %s", leader.Name, status.Role, status.ReplicationState)
	}

	// Another member restores from the archive when the leader's host is lost.
	must(t, leader.PowerOff(ctx))
	await(ctx, t, "another standby leader", func() error {
		now, err := second.Leader(ctx)
		if err == nil && now == leader {
			err = fmt.Errorf("%s still leads", now.Name)
		}
		return err
	})
	must(t, leader.Start(ctx))
	archived(10)

	// The first shard follows by the archive as well: it has archived all of its WAL, and the second one restores it
	// before it is promoted.
	had := rows.count(ctx, primary)
	change := func(m *lab.Member, patch map[string]any) {
		t.Helper()
		if status, answer, err := m.Patch(ctx, "/config", patch); err != nil || status != http.StatusOK {
			t.Fatalf("%d %s %v", status, answer, err)
		}
	}
	change(primary, map[string]any{"standby_cluster": map[string]any{"restore_command": restore}})
	var at int64
	await(ctx, t, "the demotion", func() error {
		status, err := primary.Status(ctx)
		if at = status.XLog.ReplayedLocation; err == nil && (status.Role != cluster.RoleStandbyLeader || at == 0) {
			err = fmt.Errorf("%+v", status)
		}
		return err
	})
	leader = got(second.Leader(ctx))(t)
	await(ctx, t, "all WAL", func() error {
		status, err := leader.Status(ctx)
		if err == nil && status.XLog.ReplayedLocation < at {
			err = fmt.Errorf("%d of %d", status.XLog.ReplayedLocation, at)
		}
		return err
	})
	change(leader, map[string]any{"standby_cluster": nil})
	promoted := got(second.AwaitHealthy(ctx))(t)
	if has := rows.count(ctx, promoted); has < had {
		t.Errorf("%d rows of %d", has, had)
	}
	rows.write(ctx, promoted, 5)
	rows.await(ctx, second, had+5)
	must(t, rows.exec(ctx, promoted, "SELECT pg_switch_wal()"))
	rows.await(ctx, first, had+5)
}
