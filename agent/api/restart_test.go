package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func restarting(err error) func(*fakeNode) {
	return func(n *fakeNode) { n.restart = func(context.Context) error { return err } }
}

func TestRestart(t *testing.T) {
	well := restarting(nil)
	at := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	scheduling := func(want RestartRequest, err error) func(*fakeNode) {
		return func(n *fakeNode) {
			n.scheduleRestart = func(_ context.Context, r RestartRequest) error {
				if !r.At.Equal(want.At) {
					return fmt.Errorf("asked for %s", r.At)
				}
				if r.At = want.At; r != want {
					return fmt.Errorf("asked for %+v", r)
				}
				return err
			}
		}
	}
	pending := func(s *State) { s.Postgres.PendingRestart = map[string]cluster.PendingChange{"a": {}} }
	const unsatisfied = "restart conditions are not satisfied"
	const unparsed = "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601"
	for _, e := range []exchange{
		{name: "now", node: well, body: `{}`, status: 200, want: "restarted successfully"},
		{name: "no body", node: well, status: 200, want: "restarted successfully"},
		{name: "role", node: well, body: `{"role":"primary"}`, status: 200},
		{name: "role in old words", node: well, body: `{"role":"master"}`, status: 200},
		{name: "role in new words, Patroni 3", compat: "patroni-3", node: well, body: `{"role":"primary"}`, status: 200},
		{name: "other role", body: `{"role":"replica"}`, status: 503, want: unsatisfied, reason: "its role is primary"},
		{name: "odd role", body: `{"role":"king"}`, status: 400, want: "PostgreSQL role should be either primary, standby_leader, or replica"},
		{name: "odd role, Patroni 3", compat: "patroni-3", body: `{"role":"king"}`, status: 400, want: "PostgreSQL role should be either primary or replica"},
		{name: "older than that", node: well, body: `{"postgres_version":"15.21"}`, status: 200},
		{name: "not older", body: `{"postgres_version":"15.20"}`, status: 503, want: unsatisfied, reason: "its PostgreSQL is not older than 15.20"},
		{name: "odd version", body: `{"postgres_version":"new"}`, status: 400, want: "Invalid PostgreSQL version: new"},
		{name: "short version", body: `{"postgres_version":"15"}`, status: 400, want: "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 15"},
		{name: "pending", node: well, state: pending, body: `{"restart_pending":true}`, status: 200},
		{name: "not pending", body: `{"restart_pending":"on"}`, status: 503, want: unsatisfied, reason: "no parameter waits for a restart"},
		{name: "whether pending or not", node: well, body: `{"restart_pending":false}`, status: 200},
		{name: "timeout", node: well, body: `{"timeout":"10s"}`, status: 200},
		{name: "bad timeout", body: `{"timeout":"-1"}`, status: 400, want: "Timeout should be a positive number of seconds"},
		{name: "timeout of what", body: `{"timeout":[1]}`, status: 400, want: "Timeout should be a positive number of seconds"},
		{name: "unknown filter", body: `{"colour":"red"}`, status: 400, want: "Unknown filter for the scheduled restart: colour"},
		{
			name: "timeout passes", body: `{"timeout":"1ms"}`, status: 503, want: "postgres is still starting",
			node: func(n *fakeNode) {
				n.restart = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			},
		},
		{name: "busy", node: restarting(fmt.Errorf("clone already in progress: %w", ErrRefused)), status: 503, want: "clone already in progress"},
		{name: "failed", node: restarting(errors.New("no\nspace")), status: 503, want: "restart failed", reason: "no space"},
		{
			name: "scheduled", status: 202, want: "Restart scheduled",
			node: scheduling(RestartRequest{At: at, Role: "replica", Version: "15.21", Pending: true, Timeout: time.Minute}, nil),
			body: `{"schedule":"2099-01-01T01:00:00+01:00","role":"replica","postgres_version":"15.21","restart_pending":true,"timeout":"1min"}`,
		},
		{
			name: "another one is scheduled", node: scheduling(RestartRequest{At: at}, fmt.Errorf("%w: for then", ErrConflict)),
			body: `{"schedule":"2099-01-01T00:00Z"}`, status: 409, want: "Another restart is already scheduled",
		},
		{
			name: "paused meanwhile", node: scheduling(RestartRequest{At: at}, fmt.Errorf("%w: %s", ErrRefused, pausedNoSchedule)),
			body: `{"schedule":"2099-01-01T00:00Z"}`, status: 500, want: pausedNoSchedule,
		},
		{
			name: "scheduled, paused", state: func(s *State) { s.Dynamic.Pause = true },
			body: `{"schedule":"2099-01-01T00:00:00+00:00"}`, status: 500, want: "Can't schedule restart in the paused state",
		},
		{name: "scheduled without zone", body: `{"schedule":"2099-01-01T00:00"}`, status: 400, want: "Timezone information is mandatory for the scheduled restart"},
		{name: "scheduled in the past", body: `{"schedule":"2009-01-01 00:00:00+02"}`, status: 422, want: "Cannot schedule restart in the past"},
		{name: "scheduled some time", body: `{"schedule":"soon"}`, status: 422, want: unparsed},
		{name: "scheduled at a number", body: `{"schedule":12}`, status: 422, want: unparsed},
	} {
		e.method, e.path = "POST", "/restart"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestDeleteRestart(t *testing.T) {
	cancelling := func(err error) func(*fakeNode) {
		return func(n *fakeNode) { n.cancelRestart = func(context.Context) error { return err } }
	}
	for _, e := range []exchange{
		{name: "done", node: cancelling(nil), status: 200, want: "scheduled restart deleted"},
		{name: "none", node: cancelling(ErrNone), status: 404, want: "no restarts are scheduled"},
		{name: "failed", node: cancelling(errors.New("stopping")), status: 503, reason: "stopping"},
	} {
		e.method, e.path = "DELETE", "/restart"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

// What is written under the member's key is what Patroni writes, and is read again
// by the agent's next run.
func TestScheduledRestartUnderTheMembersKey(t *testing.T) {
	started := time.Date(2026, 11, 21, 2, 49, 57, 598387000, time.UTC)
	at := time.Date(2099, 1, 1, 1, 0, 0, 0, time.FixedZone("", 3600))
	for _, c := range []struct {
		request RestartRequest
		started time.Time
		want    string
	}{
		{RestartRequest{At: at}, started, `{"schedule":"2099-01-01T01:00:00+01:00","postmaster_start_time":"2026-11-21 02:49:57.598387+00:00"}`},
		{RestartRequest{At: at}, time.Time{}, `{"schedule":"2099-01-01T01:00:00+01:00"}`},
		{
			RestartRequest{At: at, Role: "replica", Version: "15.21", Pending: true, Timeout: time.Minute},
			time.Time{},
			`{"schedule":"2099-01-01T01:00:00+01:00","role":"replica","postgres_version":"15.21","restart_pending":true,"timeout":60}`,
		},
		{RestartRequest{At: at, Timeout: 1500 * time.Millisecond}, time.Time{}, `{"schedule":"2099-01-01T01:00:00+01:00","timeout":1.5}`},
	} {
		written, err := json.Marshal(c.request.Value(c.started))
		if err != nil {
			t.Fatal(err)
		}
		if !sameJSON(t, string(written), c.want) {
			t.Errorf("%+v is written as %s, want %s", c.request, written, c.want)
		}
		var value map[string]any
		if err := json.Unmarshal(written, &value); err != nil {
			t.Fatal(err)
		}
		read, start, err := ParseRestartValue(value)
		if err != nil || !read.At.Equal(at) {
			t.Errorf("%s is read as %+v, %v", written, read, err)
		}
		if read.At = at; read != c.request {
			t.Errorf("%s is read as %+v, want %+v", written, read, c.request)
		}
		if !SameStart(start, c.started) {
			t.Errorf("%s: start %q, want %s", written, start, c.started)
		}
	}
	if SameStart(pythonTime(started), started.Add(time.Microsecond)) {
		t.Error("another start counts as the same")
	}
	for _, bad := range []string{`{}`, `{"schedule":"soon"}`, `{"schedule":"2099-01-01T01:00:00"}`, `{"schedule":"2099-01-01T01:00Z","role":"king"}`} {
		var value map[string]any
		if err := json.Unmarshal([]byte(bad), &value); err != nil {
			t.Fatal(err)
		}
		if r, _, err := ParseRestartValue(value); err == nil {
			t.Errorf("%s is read as %+v, want an error", bad, r)
		}
	}
}
