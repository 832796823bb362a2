package postgres

import (
	"testing"
	"time"
)

// A replica that receives nothing as its leader was restarted says what keeps it from being asked
// about: replay that is paused or delayed, and an archive, whoever has set it.
func TestStrandedReplicasSayWhatTheyWaitFor(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		set  []string
		says func(State) bool
	}{
		"paused":     {[]string{"SELECT pg_wal_replay_pause()"}, func(s State) bool { return s.Standstill != "" && s.ReplayPaused }},
		"delayed":    {[]string{"ALTER SYSTEM SET recovery_min_apply_delay = '1h'", "SELECT pg_reload_conf()"}, func(s State) bool { return s.Standstill != "" }},
		"an archive": {[]string{"ALTER SYSTEM SET restore_command = 'false'", "SELECT pg_reload_conf()"}, func(s State) bool { return s.ReplicationState == InArchiveRecovery }},
		"nothing":    {nil, func(s State) bool { return s.Standstill == "" && s.ReplicationState == "" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			a, b := pair(ctx, t)
			caughtUp(ctx, t, a, b)
			for _, s := range tt.set {
				sql(ctx, t, b, s)
			}
			observe(ctx, t, b, "is as it was set", func(s State) bool { return tt.says(s) || s.ReplicationState == Streaming })
			keepsNoWAL(ctx, t, a)
			sql(ctx, t, a, "CREATE TABLE public.received (n int)")
			must(t, a.Stop(ctx, Fast))
			lost := observe(ctx, t, b, "receives nothing", func(s State) bool { return s.Accepting && s.ReplicationState != Streaming })
			for began := time.Now(); time.Since(began) < 6*time.Second; { // PostgreSQL tries again each five
				if !tt.says(lost) {
					t.Fatalf("it says %+v", lost)
				}
				lost = observe(ctx, t, b, "receives nothing", func(s State) bool { return s.Accepting && s.ReplicationState != Streaming })
			}
		})
	}
}
