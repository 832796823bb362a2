package postgres

import (
	"context"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// A query on a replica that replay waits for, without limit where max_standby_streaming_delay says so,
// holds a promotion up no longer than a command does.
func TestPromotionWithAQuery(t *testing.T) {
	t.Parallel()
	for what, changes := range map[string][]string{
		"snapshot": {"DELETE FROM public.t", "VACUUM public.t"},
		"lock":     {"DROP TABLE public.t"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			a, b := pair(ctx, t)
			if what == "snapshot" && b.Major() < 13 {
				t.Skip("before version 13 PostgreSQL does not tell of this wait")
			}
			must(t, b.Stop(ctx, Fast))
			local := *b.local.Load()
			local.Parameters = maps.Clone(local.Parameters)
			local.Parameters["max_standby_streaming_delay"] = -1
			b.Reconfigure(local)
			sql(ctx, t, a, "CREATE TABLE public.t AS SELECT n FROM generate_series(1, 1000) n")
			follow(ctx, t, b, a)
			caughtUp(ctx, t, a, b)
			conn, err := b.dedicated(ctx)
			must(t, err)
			defer hangUpOn(conn)
			for _, statement := range []string{"BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM public.t"} {
				_, err := conn.Exec(ctx, statement)
				must(t, err)
			}
			for _, statement := range changes {
				sql(ctx, t, a, statement)
			}
			s, err := a.Observe(ctx)
			must(t, err)
			observe(ctx, t, b, "has received it", func(r State) bool { return r.ReceivedLSN >= s.WriteLSN })
			testkit.Await(ctx, t, "replay waits", func() error {
				if value(ctx, t, b, "SELECT count(*)::text FROM pg_stat_activity WHERE backend_type = 'startup' AND (wait_event_type = 'Lock' OR wait_event LIKE 'RecoveryConflict%')") != "1" {
					return errors.New("it does not")
				}
				return nil
			})
			must(t, a.Kill(ctx))
			limited, cancel := context.WithTimeout(ctx, 40*time.Second)
			defer cancel()
			began := time.Now()
			must(t, b.Promote(limited, 0))
			if took := time.Since(began); took > commandPatience+busy {
				t.Errorf("the promotion took %s", took)
			}
		})
	}
}
