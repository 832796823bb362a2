package backup

import (
	"net/http"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// An archive_command that fails, is slow or hangs, with WAL that waits for it, makes no
// restart, switchover, failover, stop or start longer.
func TestArchiveCommandsThatAreInTheWay(t *testing.T) {
	all(t)
	for name, command := range map[string]string{"fails": "false", "is slow": "sleep 3", "hangs": "exec sleep 1234", "kills itself": "kill -9 $$"} {
		t.Run(name, func(t *testing.T) {
			ctx := testkit.Within(t, 2*patience)
			l := labtest.Serving(ctx, t, lab.Options{
				Bouncers: -1, Members: 2, ConsulServers: 1,
				Parameters: map[string]any{"archive_mode": "on", "archive_command": command},
			})
			shard := l.Shard(0)
			step := func(what string, within time.Duration, do func(leader *lab.Member)) {
				t.Helper()
				must(t, shard.AwaitSync(ctx))
				leader := got(shard.Leader(ctx))(t)
				for range 5 { // WAL that waits
					sql(ctx, t, leader, "DROP TABLE IF EXISTS public.t", "CREATE TABLE public.t ()", "SELECT pg_switch_wal()")
				}
				began := time.Now()
				do(leader)
				took := time.Since(began)
				if t.Logf("%s: %.1f s", what, took.Seconds()); took > within {
					t.Errorf("%s took %s, want at most %s", what, took, within)
				}
				got(shard.AwaitHealthy(ctx))(t)
			}
			step("restart", 15*time.Second, func(leader *lab.Member) {
				if status, answer, err := leader.Post(ctx, "/restart", map[string]any{}); err != nil || status != http.StatusOK {
					t.Fatalf("%d %s %v", status, answer, err)
				}
			})
			step("switchover", 15*time.Second, func(leader *lab.Member) {
				if status, answer, err := leader.Post(ctx, "/switchover", map[string]string{"leader": leader.Name}); err != nil || status != http.StatusOK {
					t.Fatalf("%d %s %v", status, answer, err)
				}
			})
			step("failover", 30*time.Second, func(leader *lab.Member) {
				must(t, leader.Kill(ctx))
				got(shard.AwaitLeader(ctx, leader))(t)
				must(t, leader.Start(ctx))
			})
			step("stop and start", 40*time.Second, func(leader *lab.Member) {
				must(t, leader.Process("agent").Stop(ctx))
				got(shard.AwaitLeader(ctx, leader))(t)
				must(t, leader.Start(ctx))
			})
			step("stop and start of all", 60*time.Second, func(leader *lab.Member) {
				for _, m := range shard.Members() {
					must(t, m.Process("agent").Stop(ctx))
				}
				for _, m := range shard.Members() {
					must(t, m.Start(ctx))
				}
				got(shard.AwaitLeader(ctx))(t)
			})
		})
	}
}
