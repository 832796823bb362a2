package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// three is a lab of one shard of three.
func three(t *testing.T, substrate lab.Substrate, edit func(config map[string]any)) (*lab.Lab, *lab.Shard) {
	t.Helper()
	l := labtest.New(t, lab.Options{
		Substrate: substrate, Members: 3, Bouncers: -1, ConsulServers: 1, Async: true,
		Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) { edit(config) }},
	})
	return l, l.Shard(0)
}

// configure changes the dynamic configuration.
func configure(ctx context.Context, t *testing.T, leader *lab.Member, patch map[string]any) {
	t.Helper()
	status, answer, err := leader.Patch(ctx, "/config", patch)
	if err != nil || status != http.StatusOK {
		t.Fatalf("PATCH /config: %d %s %v", status, answer, err)
	}
}

// strand has all replicas be away for longer than WAL is kept: there are no slots meanwhile.
func strand(ctx context.Context, t *testing.T, leader *lab.Member, replicas []*lab.Member) {
	t.Helper()
	configure(ctx, t, leader, map[string]any{"postgresql": map[string]any{"use_slots": false, "parameters": map[string]any{"wal_keep_size": 0, "max_wal_size": "32MB"}}})
	for _, m := range replicas {
		must(t, m.Process("agent").Stop(ctx))
	}
	conn := got(leader.ConnectLocal(ctx, "postgres", nil))(t)
	defer conn.Close(ctx)
	await(ctx, t, "the end of the slots", func() error {
		if _, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active"); err != nil {
			return err
		}
		var slots, keep int
		err := conn.QueryRow(ctx, "SELECT count(*), current_setting('wal_keep_size')::int FROM pg_replication_slots").Scan(&slots, &keep)
		if err == nil && slots+keep > 0 {
			err = fmt.Errorf("%d slots, wal_keep_size %d", slots, keep)
		}
		return err
	})
	for _, sql := range append([]string{"CREATE TABLE public.written (n int)"},
		strings.Split(strings.Repeat("INSERT INTO public.written VALUES (1);SELECT pg_switch_wal();CHECKPOINT;", 5), ";")...) {
		if sql != "" {
			_, err := conn.Exec(ctx, sql)
			must(t, err)
		}
	}
	configure(ctx, t, leader, map[string]any{"postgresql": map[string]any{"use_slots": true}})
	for _, m := range replicas {
		must(t, m.Process("agent").Start())
	}
}

// neverTwo watches that no two of these members are made anew at once, until stop is called.
func neverTwo(ctx context.Context, t *testing.T, replicas []*lab.Member) (stop func()) {
	t.Helper()
	watch, end := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for watch.Err() == nil {
			var now []string
			for _, m := range replicas {
				if status, err := m.Status(watch); err == nil && status.State == "creating replica" {
					now = append(now, m.Name)
				}
			}
			if len(now) > 1 {
				t.Errorf("made anew at once: %v", now)
				return
			}
			select {
			case <-watch.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return func() { end(); watching.Wait() }
}

// Two replicas were away for longer than WAL is kept. That is said, and an operator is waited for;
// with rebuild: auto both are made anew, one after the other, under writes: the first one from the
// leader, though both are tagged clonefrom.
func TestRebuild(t *testing.T) {
	l, s := three(t, lab.Loopback, func(config map[string]any) { config["tags"] = map[string]any{"clonefrom": true} })
	ctx := testkit.Within(t, 3*patience) // half a minute passes between two turns
	must(t, l.Start(ctx))
	leader := got(s.AwaitHealthy(ctx))(t)
	replicas := got(s.Replicas(ctx))(t)
	strand(ctx, t, leader, replicas)
	for _, m := range replicas {
		awaitSaid(ctx, t, l, s, "events", "member stranded "+m.Name)
		await(ctx, t, "the word of "+m.Name, func() error {
			out, _ := l.Command(ctx, os.Getenv("LICTOR_BIN"), "doctor", s.Name, "--consul", l.ConsulServers()[0].HTTP).CombinedOutput() // findings are an error
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, m.Name) && strings.Contains(line, "must be made anew") && strings.Contains(line, "is gone from "+leader.Name) {
					return nil
				}
			}
			return fmt.Errorf("lictor doctor says\n%s", out)
		})
	}

	stop := neverTwo(ctx, t, replicas)
	configure(ctx, t, leader, map[string]any{"rebuild": "auto"})
	awaitSaid(ctx, t, l, s, "list", "; rebuild: it is the turn of ")
	_ = got(s.AwaitHealthy(ctx))(t)
	stop()
	await(ctx, t, "the end of the last turn", func() error {
		return l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
			for _, key := range []string{"service/" + s.Name + "/rebuild", "lictor/rebuilds/service"} {
				keys, _, err := c.KV().List(key, (&api.QueryOptions{}).WithContext(ctx))
				if err != nil || len(keys) > 0 {
					return errors.Join(err, fmt.Errorf("%d keys below %s", len(keys), key))
				}
			}
			return nil
		})
	})
	first := 0
	for _, m := range replicas {
		log := string(got(os.ReadFile(m.Process("agent").LogPath()))(t))
		if n := strings.Count(log, "a copy is made anew"); n != 1 {
			t.Errorf("%s was made anew %d times", m.Name, n)
		}
		for line := range strings.Lines(log) {
			if strings.Contains(line, "a copy is made anew") && strings.Contains(line, fmt.Sprintf("%q:%q", "from", leader.Name)) {
				first++
			}
		}
		conn := got(m.ConnectLocal(ctx, "postgres", nil))(t)
		var n int
		must(t, conn.QueryRow(ctx, "SELECT count(*) FROM public.written").Scan(&n))
		must(t, conn.Close(ctx))
		if n != 5 {
			t.Errorf("%s has %d rows of 5", m.Name, n)
		}
	}
	if first == 0 {
		t.Error("both were copied from a replica")
	}
}

// On hosts with networks of their own: whoever is made anew loses its session in the middle of the
// copy, and takes its turn again. The other replica waits for it.
func TestRebuildThatLosesItsSession(t *testing.T) {
	dir := got(os.MkdirTemp("", "rebuild"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755)) //nolint:gosec // PostgreSQL's user looks into it
	slow := filepath.Join(dir, "slow")
	l, s := three(t, lab.Netns, func(config map[string]any) {
		postgres := config["postgresql"].(map[string]any)
		postgres["create_replica_methods"] = []string{"slow", "basebackup"}
		postgres["slow"] = map[string]any{"command": "sh -c 'while test -e " + slow + "; do sleep 0.2; done; false'", "no_params": true}
	})
	ctx := testkit.Within(t, 3*patience) // half a minute passes between two turns
	must(t, l.Start(ctx))
	leader := got(s.AwaitHealthy(ctx))(t)
	replicas := got(s.Replicas(ctx))(t)
	configure(ctx, t, leader, map[string]any{"rebuild": "auto"})
	must(t, os.WriteFile(slow, nil, 0o644)) //nolint:gosec // as above
	strand(ctx, t, leader, replicas)
	var holder, session string
	await(ctx, t, "a copy", func() error {
		snapshot, err := s.Snapshot(ctx)
		if err != nil || !snapshot.Rebuild.Exists() {
			return errors.Join(err, errors.New("it is nobody's turn"))
		}
		holder, session = snapshot.Rebuild.Value, snapshot.Rebuild.Session
		log, err := os.ReadFile(s.Member(holder).Process("agent").LogPath())
		if err == nil && !strings.Contains(string(log), "a copy is made anew") {
			err = fmt.Errorf("%s makes none yet", holder)
		}
		return err
	})
	stop := neverTwo(ctx, t, replicas)
	must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
		_, err := c.Session().Destroy(session, (&api.WriteOptions{}).WithContext(ctx))
		return err
	}))
	await(ctx, t, "the turn of "+holder+" by another session", func() error {
		snapshot, err := s.Snapshot(ctx)
		if err == nil && (snapshot.Rebuild.Value != holder || snapshot.Rebuild.Session == session) {
			err = fmt.Errorf("%+v", snapshot.Rebuild)
		}
		return err
	})
	awaitSaid(ctx, t, l, s, "list", "; rebuild: it is the turn of "+holder)
	must(t, os.Remove(slow))
	_ = got(s.AwaitHealthy(ctx))(t)
	stop()
}
