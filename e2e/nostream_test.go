package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// A member tagged nostream gets all WAL from the archive, that of a new timeline too.
// The others have no slot for it, do not wait for it and cannot switch over to it; but it
// leads when nobody else is left. The tag comes and goes with a reload.
func TestNoStream(t *testing.T) {
	archive := got(os.MkdirTemp("", "archive"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(archive) })
	must(t, os.Chmod(archive, 0o777)) //nolint:gosec // PostgreSQL's user writes into it
	var config map[string]any
	l := labtest.New(t, lab.Options{
		Bouncers: -1, ConsulServers: 1,
		Dynamic: map[string]any{"postgresql": map[string]any{"parameters": map[string]any{
			"archive_mode": "on", "archive_command": fmt.Sprintf("cp %%p %[1]s/%%f.new && mv %[1]s/%%f.new %[1]s/%%f", archive),
		}}},
		Database: lab.Lictor{Edit: func(m *lab.Member, c map[string]any) {
			if m != m.Shard.Members()[2] {
				return
			}
			c["tags"] = map[string]any{"nostream": true}
			c["postgresql"].(map[string]any)["recovery_conf"] = map[string]any{"restore_command": "cp " + archive + "/%f %p"}
			config = c
		}},
	})
	ctx := within(t)
	must(t, l.StartConsul(ctx))
	s := l.Shard(0)
	a, b, c := s.Members()[0], s.Members()[1], s.Members()[2]
	must(t, a.Start(ctx))
	got(s.AwaitLeader(ctx))(t)
	must(t, b.Start(ctx))
	must(t, c.Start(ctx))
	got(s.AwaitHealthy(ctx, c))(t)
	must(t, s.AwaitSync(ctx))
	reload := func(change func()) {
		t.Helper()
		change()
		must(t, l.WriteFile(filepath.Join(c.Dir, "agent.yml"), got(yaml.Marshal(config))(t), 0o600))
		must(t, c.Process("agent").Signal(syscall.SIGHUP))
	}

	byArchive(ctx, t, s, a, c)
	getsWAL(ctx, t, a, c)

	must(t, s.Switchover(ctx, a, b))
	if leader := got(s.AwaitHealthy(ctx, c))(t); leader != b {
		t.Fatalf("%s leads", leader.Name)
	}
	getsWAL(ctx, t, b, c)
	byArchive(ctx, t, s, b, c)
	pid := got(c.PostmasterPID())(t)

	// Without the tag it streams, and is waited for when it is the only one.
	reload(func() { delete(config, "tags") })
	got(s.AwaitHealthy(ctx))(t)
	must(t, a.Process("agent").Stop(ctx))
	voter := func(name string) {
		t.Helper()
		await(ctx, t, "the synchronous standby is not "+name, func() error {
			snapshot, err := s.Snapshot(ctx)
			if standbys := snapshot.Sync.Value.Standbys(); err == nil && (len(standbys) != 1 || standbys[0] != name) {
				err = fmt.Errorf("%v", standbys)
			}
			return err
		})
	}
	voter(c.Name)
	must(t, a.Start(ctx))
	reload(func() { config["tags"] = map[string]any{"nostream": true} })
	voter(a.Name)
	byArchive(ctx, t, s, b, c)
	getsWAL(ctx, t, b, c)
	if now := got(c.PostmasterPID())(t); now != pid {
		t.Error("PostgreSQL was restarted for a tag")
	}
	log := agentLog(t, c)
	if waits, leaves := strings.LastIndex(log, "until it does without this synchronous standby"), strings.LastIndex(log, "following nobody"); waits < 0 || leaves < waits {
		t.Errorf("it stopped streaming (%d) before the leader did without it (%d)", leaves, waits)
	}

	// Nobody else is left, and nothing is promised of its data.
	if status, answer, err := b.Patch(ctx, "/config", map[string]any{"synchronous_mode": false}); err != nil || status != http.StatusOK {
		t.Fatalf("synchronous_mode: %d %s %v", status, answer, err)
	}
	await(ctx, t, "the key sync is still there", func() error {
		snapshot, err := s.Snapshot(ctx)
		if err == nil && snapshot.Sync.Exists() {
			err = errors.New("it is")
		}
		return err
	})
	getsWAL(ctx, t, b, c)
	if status, answer, err := b.Post(ctx, "/switchover", map[string]string{"leader": b.Name, "candidate": c.Name}); err != nil || status == http.StatusOK || !strings.Contains(agentLog(t, b), "the switchover is refused: "+c.Name+" is tagged nostream") {
		t.Errorf("a switchover to it: %d %s %v", status, answer, err)
	}
	must(t, a.Kill(ctx))
	must(t, b.Kill(ctx))
	leader := got(s.AwaitLeader(ctx, b))(t)
	if status := got(leader.Status(ctx))(t); leader != c || status.Timeline != 3 {
		t.Errorf("%s leads on timeline %d", leader.Name, status.Timeline)
	}
	must(t, b.Start(ctx))
	got(s.AwaitHealthy(ctx, a))(t)
}

// byArchive waits until a member receives nothing from the leader and reads the archive.
func byArchive(ctx context.Context, t *testing.T, s *lab.Shard, leader, m *lab.Member) {
	t.Helper()
	await(ctx, t, m.Name+" does not follow by the archive", func() error {
		members, err := leader.Cluster(ctx)
		if err != nil {
			return err
		}
		primary, err := leader.Status(ctx)
		if err != nil {
			return err
		}
		for _, r := range primary.Replication {
			if strings.EqualFold(r.ApplicationName, m.Name) {
				return fmt.Errorf("%s is %s", r.ApplicationName, r.State)
			}
		}
		for _, row := range members {
			if row.Name == m.Name && row.State != postgres.InArchiveRecovery {
				return fmt.Errorf("its state is %s", row.State)
			}
		}
		conn, err := leader.Connect(ctx, "postgres")
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		slots := 0
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", cluster.SlotName(m.Name)).Scan(&slots); err != nil {
			return err
		}
		if slots > 0 {
			return errors.New("the leader keeps a slot for it")
		}
		snapshot, err := s.Snapshot(ctx)
		if err == nil && snapshot.Sync.Value.Has(m.Name) {
			err = errors.New("commits wait for it")
		}
		return err
	})
}

// getsWAL waits until what is written on the leader is on a member that reads the archive.
func getsWAL(ctx context.Context, t *testing.T, leader, m *lab.Member) {
	t.Helper()
	conn := got(leader.Connect(ctx, "postgres"))(t)
	defer conn.Close(ctx)
	for _, statement := range []string{"CREATE TABLE IF NOT EXISTS public.archived (n int)", "INSERT INTO public.archived SELECT count(*) FROM public.archived", "SELECT pg_switch_wal()"} {
		_, err := conn.Exec(ctx, statement)
		must(t, err)
	}
	rows, timeline := 0, got(leader.Status(ctx))(t).Timeline
	must(t, conn.QueryRow(ctx, "SELECT count(*) FROM public.archived").Scan(&rows))
	await(ctx, t, m.Name+" does not get the WAL", func() error {
		replica, err := m.Connect(ctx, "postgres")
		if err != nil {
			return err
		}
		defer replica.Close(ctx)
		has := 0
		if err := replica.QueryRow(ctx, "SELECT count(*) FROM public.archived").Scan(&has); err != nil {
			return err
		}
		status, err := m.Status(ctx)
		if err == nil && (has != rows || status.Timeline != timeline) {
			err = fmt.Errorf("%d rows of %d on timeline %d", has, rows, status.Timeline)
		}
		return err
	})
}
