package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// Two replicas were away for longer than WAL is kept. That is said, and an operator is waited for;
// with rebuild: auto both are made anew, one after the other, under writes.
func TestRebuild(t *testing.T) {
	l := labtest.New(t, lab.Options{
		Members: 3, Bouncers: -1, ConsulServers: 1, Async: true,
		Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) {
			dcs := config["bootstrap"].(map[string]any)["dcs"].(map[string]any)
			dcs["postgresql"] = map[string]any{"use_slots": false, "parameters": map[string]any{"wal_keep_size": 0, "max_wal_size": "32MB"}}
		}},
	})
	ctx := within(t)
	must(t, l.Start(ctx))
	s := l.Shard(0)
	leader := got(s.AwaitHealthy(ctx))(t)
	replicas := got(s.Replicas(ctx))(t)
	for _, m := range replicas {
		must(t, m.Process("agent").Stop(ctx))
	}
	writes(ctx, t, leader)
	for _, m := range replicas {
		must(t, m.Process("agent").Start())
	}
	for _, m := range replicas {
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

	// While they are made anew, there are never two.
	watch, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	creating := 0
	watching.Go(func() {
		for watch.Err() == nil {
			now := 0
			for _, m := range replicas {
				if status, err := m.Status(watch); err == nil && status.State == "creating replica" {
					now++
				}
			}
			creating = max(creating, now)
		}
	})
	status, answer, err := leader.Patch(ctx, "/config", map[string]any{"rebuild": "auto"})
	if err != nil || status != http.StatusOK {
		t.Fatalf("PATCH /config: %d %s %v", status, answer, err)
	}
	_ = got(s.AwaitHealthy(ctx))(t)
	stop()
	watching.Wait()
	if creating > 1 {
		t.Error("two were made anew at once")
	}
	await(ctx, t, "the end of the last turn", func() error {
		return l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
			pair, _, err := c.KV().Get("service/"+s.Name+"/rebuild", (&api.QueryOptions{}).WithContext(ctx))
			if err == nil && pair != nil {
				err = fmt.Errorf("the key rebuild is held by %s", pair.Value)
			}
			return err
		})
	})
	for _, m := range replicas {
		conn := got(m.ConnectLocal(ctx, "postgres", nil))(t)
		var n int
		must(t, conn.QueryRow(ctx, "SELECT count(*) FROM public.written").Scan(&n))
		must(t, conn.Close(ctx))
		if n != 5 {
			t.Errorf("%s has %d rows of 5", m.Name, n)
		}
	}
}

// writes makes a primary go on for more segments than it keeps.
func writes(ctx context.Context, t *testing.T, m *lab.Member) {
	t.Helper()
	conn := got(m.ConnectLocal(ctx, "postgres", nil))(t)
	defer conn.Close(ctx)
	for _, sql := range append([]string{"CREATE TABLE public.written (n int)"},
		strings.Split(strings.Repeat("INSERT INTO public.written VALUES (1);SELECT pg_switch_wal();CHECKPOINT;", 5), ";")...) {
		if sql != "" {
			_, err := conn.Exec(ctx, sql)
			must(t, err)
		}
	}
}
