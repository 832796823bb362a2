package ha

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// A PostgreSQL that was stopped by hand and does not end is no PostgreSQL that starts.
func TestShutDown(t *testing.T) {
	stopped := func(since time.Duration) func(*View) {
		return func(v *View) { v.Postgres.Accepting, v.Postgres.ShutDown = false, now.Add(-since) }
	}
	primary := func(v *View) { v.Postgres.Primary = true }
	failed := func(v *View) {
		v.Attempt = Attempt{Kind: TaskStart, Failures: 1, NotUntil: now.Add(time.Second)}
	}
	paused := func(v *View) { v.Config.Pause = true }
	runSituations(t, []situationTest{
		{"leader, just now", view(holdsLease(7*time.Second), primary, stopped(time.Second)), "", "shut down from outside the agent"},
		{"leader, for long", view(holdsLease(7*time.Second), primary, stopped(time.Minute)), "end what is left of PostgreSQL", "do not end"},
		{"leader, paused", view(holdsLease(7*time.Second), primary, stopped(time.Minute), paused), "", "shut down from outside the agent"},
		{"leader, it did not work", view(holdsLease(7*time.Second), primary, stopped(time.Minute), failed), "", "try again"},
		{"leader, busy", view(holdsLease(7*time.Second), primary, stopped(time.Minute), func(v *View) { v.Task = TaskRestart }), "", "busy"},
		{"replica, just now", view(leads("b", 0), stopped(time.Second)), "", "shut down from outside the agent"},
		{"replica, for long", view(leads("b", 0), stopped(time.Minute)), "end what is left of PostgreSQL", "do not end"},
		{"nobody leads, for long", view(stopped(time.Minute)), "end what is left of PostgreSQL", "do not end"},
		{"replica, paused", view(leads("b", 0), stopped(time.Minute), paused), "", "paused"},
	})
	var v View
	v.Postgres.ShutDown = cluster.Instant(1)
	if d, applies := shutDown(v); applies {
		t.Errorf("PostgreSQL does not run: %+v", d)
	}
}
