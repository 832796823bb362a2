package postgres

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

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

// Nor is it what the agent's own role or database has.
func TestOwnCommitOfTheAgentsRole(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a := serving(ctx, t)
	a.Apply(cluster.Dynamic{Takeover: cluster.TakeoverQuorum})
	anew := func() { a.hangUp() } // what a role has is given to new sessions
	shows := func(want string) {
		t.Helper()
		observe(ctx, t, a, want, func(s State) bool { return s.SynchronousCommit == want })
	}
	set := func(commit string) {
		t.Helper()
		sql(ctx, t, a, "ALTER SYSTEM SET synchronous_commit = "+commit)
		sql(ctx, t, a, "SELECT pg_reload_conf()")
	}
	for _, own := range []string{"ROLE CURRENT_USER", "DATABASE postgres"} {
		set("off")
		sql(ctx, t, a, "ALTER "+own+" SET synchronous_commit = 'on'")
		anew()
		shows("off")
		set("on")
		sql(ctx, t, a, "ALTER "+own+" SET synchronous_commit = 'local'")
		anew()
		shows("on")
		sql(ctx, t, a, "ALTER "+own+" RESET synchronous_commit")
		anew()
	}
	// Everybody's is the clients', too, from their next session on.
	sql(ctx, t, a, "ALTER ROLE ALL SET synchronous_commit = 'remote_write'")
	shows("remote_write")
	anew()
	shows("remote_write")
	set("off")
	sql(ctx, t, a, "ALTER ROLE ALL SET synchronous_commit = 'on'")
	anew()
	shows("off") // sessions of before have that
	set("on")
	shows("on")
}
