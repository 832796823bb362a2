package postgres

import "testing"

// What a look shows of synchronous_commit is what clients are given, not what the agent's own session has set.
func TestCommitThatIsShown(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a := serving(ctx, t)
	observe(ctx, t, a, "on", func(s State) bool { return s.SynchronousCommit == "on" && !s.Fsync })
	for _, value := range []string{"remote_write", "off", "on"} {
		sql(ctx, t, a, "ALTER SYSTEM SET synchronous_commit = "+value)
		sql(ctx, t, a, "SELECT pg_reload_conf()")
		observe(ctx, t, a, value, func(s State) bool { return s.SynchronousCommit == value })
	}
	conn, err := a.take(ctx)
	must(t, err)
	defer a.give(conn)
	var own string
	if err := conn.QueryRow(ctx, "SHOW synchronous_commit").Scan(&own); err != nil || own != "local" {
		t.Errorf("the agent's own session waits for standbys: %q %v", own, err)
	}
}
