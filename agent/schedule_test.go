package agent

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
)

func TestPlannedRestart(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	started := time.Date(2029, 12, 1, 0, 0, 0, 123456000, time.UTC)
	for _, c := range []struct {
		name    string
		after   time.Duration // now, after the time of the plan
		request api.RestartRequest
		change  func(*api.State)
		busy    bool
		want    verdict
	}{
		{name: "too early", after: -time.Millisecond, want: keepPlan},
		{name: "due", want: carryOut},
		{name: "due, and busy", busy: true, want: keepPlan},
		{name: "late", after: 3 * time.Second, want: carryOut},
		{name: "too late", after: 3*time.Second + time.Millisecond, want: dropPlan},
		{name: "too late, and busy", after: time.Minute, busy: true, want: dropPlan},
		{name: "paused", change: func(s *api.State) { s.Dynamic.Pause = true }, want: keepPlan},
		{name: "paused, too late", after: time.Hour, change: func(s *api.State) { s.Dynamic.Pause = true }, want: keepPlan},
		{name: "restarted since", after: -time.Hour, change: func(s *api.State) { s.Postgres.StartTime = started.Add(time.Hour) }, want: dropPlan},
		{name: "not observed now", change: func(s *api.State) { s.Postgres.StartTime = time.Time{} }, want: carryOut},
		{name: "role", request: api.RestartRequest{Role: "replica"}, want: carryOut},
		{name: "other role", request: api.RestartRequest{Role: "primary"}, want: dropPlan},
		{name: "older", request: api.RestartRequest{Version: "15.21"}, want: carryOut},
		{name: "not older", request: api.RestartRequest{Version: "15.20"}, want: dropPlan},
		{name: "nothing pending", request: api.RestartRequest{Pending: true}, want: dropPlan},
		{
			name: "pending", request: api.RestartRequest{Pending: true}, want: carryOut,
			change: func(s *api.State) {
				s.Postgres.PendingRestart = map[string]cluster.PendingChange{"max_connections": {}}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			state := api.State{Postgres: api.Postgres{Accepting: true, InRecovery: true, StartTime: started, ServerVersion: 150020}}
			state.Dynamic.LoopWait = 2 * time.Second
			c.request.At = at
			p, err := parsePlan(c.request.Value(started))
			if err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				c.change(&state)
			}
			if got, why := p.judge(state, at.Add(c.after), c.busy); got != c.want {
				t.Errorf("got %d (%s), want %d", got, why, c.want)
			}
		})
	}
}
