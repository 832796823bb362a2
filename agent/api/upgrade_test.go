package api

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/pg"
)

func TestCheckUpgrade(t *testing.T) {
	checking := func(found pg.UpgradeCheck, err error) func(*fakeNode) {
		return func(n *fakeNode) {
			n.checkUpgrade = func(_ context.Context, to int) (pg.UpgradeCheck, error) {
				if to != 17 {
					return pg.UpgradeCheck{}, fmt.Errorf("asked for %d", to)
				}
				return found, err
			}
		}
	}
	const noVersion = "to: must be a major version of PostgreSQL, 17 for instance"
	for _, e := range []exchange{
		{name: "nothing found", node: checking(pg.UpgradeCheck{From: 15, To: 17}, nil), body: `{"to":17}`, status: 200, want: `{"from":15,"to":17}`},
		{
			name: "something found", node: checking(pg.UpgradeCheck{From: 15, To: 17, Problems: []string{"no"}, Warnings: []string{"slots"}}, nil), body: `{"to":17}`, status: 200,
			want: `{"from":15,"to":17,"problems":["no"],"warnings":["slots"]}`,
		},
		{name: "another one goes on", node: checking(pg.UpgradeCheck{}, ErrConflict), body: `{"to":17}`, status: 409, want: "another check goes on"},
		{name: "refused", node: checking(pg.UpgradeCheck{}, fmt.Errorf("it is down: %w", ErrRefused)), body: `{"to":17}`, status: 412, want: "it is down"},
		{name: "failed", node: checking(pg.UpgradeCheck{}, errors.New("no room")), body: `{"to":17}`, status: 503, want: "the check could not be done", reason: "no room"},
		{name: "no body", status: 400},
		{name: "no version", body: `{"at":17}`, status: 400, want: noVersion},
		{name: "a name", body: `{"to":"17"}`, status: 400, want: noVersion},
		{name: "a minor version", body: `{"to":17.2}`, status: 400, want: noVersion},
		{name: "below all", body: `{"to":-1}`, status: 400, want: noVersion},
		{name: "programs of the sender's", body: `{"to":17,"bin_dir":"/tmp/mine"}`, status: 400, want: "bin_dir: is not known"},
	} {
		e.method, e.path = "POST", "/upgrade_check"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestUpgrade(t *testing.T) {
	upgrading := func(err error) func(*fakeNode) {
		return func(n *fakeNode) {
			n.upgrade = func(to int) error {
				if to != 17 {
					return fmt.Errorf("asked for %d", to)
				}
				return err
			}
		}
	}
	for _, e := range []exchange{
		{name: "announced", node: upgrading(nil), body: `{"to":17}`, status: 200, want: "announced"},
		{name: "refused", node: upgrading(fmt.Errorf("the shard is paused: %w", ErrRefused)), body: `{"to":17}`, status: 412, want: "the shard is paused"},
		{name: "taken back", node: upgrading(errors.New("no room")), body: `{"to":17}`, status: 503, want: "the upgrade failed, and is taken back", reason: "no room"},
		{name: "no body", status: 400},
		{name: "programs of the sender's", body: `{"to":17,"bin_dir":"/tmp/mine"}`, status: 400, want: "bin_dir: is not known"},
	} {
		e.method, e.path = "POST", "/upgrade"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
	led := primaryState(time.Now())
	led.Cluster.Leader.Value = "another"
	exchange{method: "POST", path: "/upgrade", body: `{"to":17}`, status: 412, want: "node1 does not lead: another does"}.run(t, led)
}

func TestAnalyze(t *testing.T) {
	for _, e := range []exchange{
		{name: "made", node: func(n *fakeNode) { n.analyze = func() error { return nil } }, status: 200, want: "analyzed"},
		{name: "failed", node: func(n *fakeNode) { n.analyze = func() error { return errors.New("no room") } }, status: 503, want: "the statistics could not be made", reason: "no room"},
	} {
		e.method, e.path = "POST", "/analyze"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}
