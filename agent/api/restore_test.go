package api

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestRestore(t *testing.T) {
	want := RestoreRequest{Target: time.Date(2026, 1, 2, 9, 0, 0, 0, time.UTC), Label: "20260101-000000F_20260102-000000I", Timeline: 2}
	restoring := func(err error) func(*fakeNode) {
		return func(n *fakeNode) {
			n.restore = func(_ context.Context, r RestoreRequest) error {
				if !r.Target.Equal(want.Target) || r.Label != want.Label || r.Timeline != want.Timeline {
					return fmt.Errorf("asked for %+v", r)
				}
				return err
			}
		}
	}
	const asked = `{"target":"2026-01-02T10:00:00+01:00","label":"20260101-000000F_20260102-000000I","timeline":2}`
	const noTarget, noLabel = "target: must be a time with its zone, 2026-11-29T10:00:00+00:00", "label: must be that of a backup, 20261129-000000F"
	for _, e := range []exchange{
		{name: "done", node: restoring(nil), body: asked, status: 200, want: "restored"},
		{name: "refused", node: restoring(fmt.Errorf("the shard is paused: %w", ErrRefused)), body: asked, status: 412, want: "the shard is paused"},
		{
			name: "undone", node: restoring(errors.New("the target\nis not reached")), body: asked, status: 503,
			want: "restore failed: the data are put back as they were", reason: "the target is not reached",
		},
		{
			name: "not undone", node: restoring(fmt.Errorf("boom; %w: no room", ErrNotUndone)), body: asked, status: 500,
			want: "restore failed, and is not undone yet", reason: "boom; it is not undone yet: no room",
		},
		{
			name: "not on disk", node: restoring(fmt.Errorf("boom; %w", ErrRestored)), body: asked, status: 500,
			want: "the restore has come to its end, but with an error", reason: "boom; the restored data are the shard's",
		},
		{name: "a replica", state: func(s *State) { s.Name = "node2" }, body: asked, status: 412, want: "node2 does not lead: node1 does"},
		{name: "nobody leads", state: func(s *State) { s.Cluster.Leader.Value = "" }, body: asked, status: 412, want: "node1 does not lead: nobody does"},
		{name: "no body", status: 400},
		{name: "no target", body: `{"label":"20260101-000000F"}`, status: 400, want: noTarget},
		{name: "without a zone", body: `{"target":"2026-01-02T10:00:00","label":"20260101-000000F"}`, status: 400, want: noTarget},
		{name: "by a zone's name", body: `{"target":"2026-01-02T10:00:00 CST","label":"20260101-000000F"}`, status: 400, want: noTarget},
		{name: "a number", body: `{"target":7,"label":"20260101-000000F"}`, status: 400, want: noTarget},
		{name: "in the future", body: `{"target":"2999-01-02T10:00:00Z","label":"20260101-000000F"}`, status: 400, want: "target: is in the future"},
		{name: "a timeline that is none", body: `{"target":"2026-01-02T10:00:00Z","label":"20260101-000000F","timeline":1.5}`, status: 400, want: "timeline: must be the number of a timeline"},
		{name: "a timeline's name", body: `{"target":"2026-01-02T10:00:00Z","label":"20260101-000000F","timeline":"latest"}`, status: 400, want: "timeline: must be the number of a timeline"},
		{name: "no label", body: `{"target":"2026-01-02T10:00:00Z"}`, status: 400, want: noLabel},
		{name: "another option for a label", body: `{"target":"2026-01-02T10:00:00Z","label":"20260101-000000F --delta"}`, status: 400, want: noLabel},
	} {
		e.method, e.path = "POST", "/restore"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestCancelRestore(t *testing.T) {
	cancelling := func(err error) func(*fakeNode) {
		return func(n *fakeNode) { n.cancelRestore = func(context.Context) error { return err } }
	}
	for _, e := range []exchange{
		{name: "done", node: cancelling(nil), status: 200, want: "the restore is undone"},
		{
			name: "too late", node: cancelling(ErrRestored), status: 409,
			want: "the restore has come to its end, and is not undone: the restored data are the shard's",
		},
		{name: "none", node: cancelling(ErrNone), status: 404, want: "no restore is under way"},
		{
			name: "not undone yet", node: cancelling(fmt.Errorf("%w: no room", ErrNotUndone)), status: 500,
			want: "the restore is broken off, and is not undone yet", reason: "it is not undone yet: no room",
		},
		{name: "failed", node: cancelling(errors.New("stopping")), status: 503, want: "the restore goes on", reason: "stopping"},
	} {
		e.method, e.path = "DELETE", "/restore"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}
