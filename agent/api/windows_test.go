package api

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// In maintenance windows requests are taken, outside of them only from who says that this is meant. A failover is
// always taken.
func TestMaintenanceWindows(t *testing.T) {
	const future = "2099-01-03T" // a Saturday
	at := func(clock string) time.Time {
		t.Helper()
		moment, err := time.Parse(time.RFC3339, future+clock)
		if err != nil {
			t.Fatal(err)
		}
		return moment
	}
	three := at("03:00:00Z")
	now := time.Now().UTC()
	closed := now.Add(6*time.Hour).Format("15:04") + "-" + now.Add(8*time.Hour).Format("15:04")
	opened := now.Add(-2*time.Hour).Format("15:04") + "-" + now.Add(2*time.Hour).Format("15:04")
	with := func(windows ...string) func(*State) {
		return func(s *State) {
			for _, text := range windows {
				w, err := cluster.ParseWindow(text)
				if err != nil {
					t.Fatal(err)
				}
				s.Dynamic.MaintenanceWindows = append(s.Dynamic.MaintenanceWindows, w)
			}
		}
	}
	to := ending(t, cluster.Failover{Leader: "node1"}, Outcome{Leader: "node2", Known: true, Done: true}, nil)
	scheduled := ending(t, cluster.Failover{Leader: "node1", ScheduledAt: &three}, Outcome{}, nil)
	restarts := func(n *fakeNode) {
		n.restart = func(context.Context) error { return nil }
		n.scheduleRestart = func(context.Context, RestartRequest) error { return nil }
	}
	const outside = "outside the maintenance windows of the shard for a "
	for _, e := range []exchange{
		{name: "switchover inside", path: "/switchover", state: with(opened), body: `{"leader":"node1"}`, node: to, status: 200},
		{name: "switchover outside", path: "/switchover", state: with(closed), body: `{"leader":"node1"}`, status: 412, has: outside + "handover (" + closed + "), of which one begins at "},
		{name: "switchover outside, and meant", path: "/switchover", state: with(closed), body: `{"leader":"node1","outside_window":true}`, node: to, status: 200},
		{name: "switchover outside, and not meant", path: "/switchover", state: with(closed), body: `{"leader":"node1","outside_window":false}`, status: 412, has: outside},
		{name: "switchover, windows are for restarts", path: "/switchover", state: with(closed + " for restart"), body: `{"leader":"node1"}`, node: to, status: 200},
		{name: "switchover scheduled inside", path: "/switchover", state: with(closed, "Sat 02:00-04:00"), body: `{"leader":"node1","scheduled_at":"` + future + `03:00Z"}`, node: scheduled, status: 202},
		{name: "switchover scheduled outside", path: "/switchover", state: with(opened, "Sat 02:00-03:00 for handover", "Sun 03:00-04:00"), body: `{"leader":"node1","scheduled_at":"2100-01-01T` + now.Add(12*time.Hour).Format("15:04") + `Z"}`, status: 412, has: outside},
		{name: "failover outside", path: "/failover", state: with(closed), body: `{"candidate":"node2"}`, node: ending(t, cluster.Failover{Candidate: "node2"}, Outcome{Leader: "node2", Known: true, Done: true}, nil), status: 200},
		{name: "restart inside", path: "/restart", state: with(opened), body: `{}`, node: restarts, status: 200},
		{name: "restart outside", path: "/restart", state: with(closed), body: `{}`, node: restarts, status: 412, has: outside + "restart"},
		{name: "restart outside, and meant", path: "/restart", state: with(closed), body: `{"outside_window":true}`, node: restarts, status: 200},
		{name: "restart scheduled inside", path: "/restart", state: with("Sat 02:00-04:00"), body: `{"schedule":"` + future + `03:00Z"}`, node: restarts, status: 202},
		{name: "restart scheduled outside", path: "/restart", state: with("Sat 02:00-04:00"), body: `{"schedule":"` + future + `04:00Z"}`, node: restarts, status: 412, has: outside + "restart"},
	} {
		e.method = http.MethodPost
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}
