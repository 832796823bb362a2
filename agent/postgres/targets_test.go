package postgres

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// A target among the replicas' parameters of recovery would have PostgreSQL promote itself there,
// without a lease, or end a promotion there and leave out WAL that it has acknowledged.
func TestReplicaHasNoTarget(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	must(t, b.Stop(ctx, Fast))
	target := value(ctx, t, a, "SELECT pg_current_wal_insert_lsn()::text")
	sql(ctx, t, a, "CREATE TABLE public.beyond (n int)")
	s, err := a.Observe(ctx)
	must(t, err)
	b.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{RecoveryConf: map[string]any{
		"Recovery_Target_LSN": target, "recovery_target_action": "promote", "recovery_target_timeline": "current",
	}}})
	up := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	r := observe(ctx, t, b, "is promoted, or has what lies beyond the target", func(r State) bool {
		return r.Accepting && (!r.InRecovery || r.ReplayedLSN >= s.WriteLSN)
	})
	if !r.InRecovery {
		t.Error("the replica has promoted itself")
	}
	if timeline := value(ctx, t, b, "SELECT current_setting('recovery_target_timeline')"); timeline != "latest" {
		t.Errorf("the replica follows the timeline %q", timeline)
	}
}
