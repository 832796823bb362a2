package faults_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/e2e/faults"
)

// selection is what every run of the tests plays; `make lab` plays all.
const selection = "kill-agent,kill-agent-and-guard,kill-postmaster-and-guard,stop-agent,consul-all-hang,disk-full,partition-primary"

// TestFaults plays a fixed selection of faults on one installation, at a short
// lease. What it judges is in Round.
func TestFaults(t *testing.T) {
	if err := faults.Privileged(); err != nil {
		t.Skip(err)
	}
	chosen, err := faults.Choose(selection)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	site := open(ctx, t, faults.Options{TTL: 5, Outage: 12 * time.Second, Slack: 2 * time.Second, Progress: func(line string) { t.Log(line) }})
	runner := &faults.Runner{Site: site, Seed: 1}
	for _, f := range chosen {
		played := t.Run(f.Name, func(t *testing.T) {
			if f.Available != nil {
				if err := f.Available(site); err != nil {
					t.Skip(err)
				}
			}
			round, err := runner.Play(ctx, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, violation := range round.Violations {
				t.Error(violation)
			}
			if round.Verdict != faults.Linearizable {
				t.Errorf("porcupine: %s", round.Verdict)
			}
			t.Logf("gap %d ms, acked %d, overlap %.1f ms, leader %s, then %s", round.WriteGapMS, round.Acked, round.OverlapMS, round.LeaderBefore, round.LeaderAfter)
			if round.Wrecked {
				t.FailNow()
			}
		})
		if !played {
			return // the next one would be judged on what this one left
		}
	}
	t.Run("two primaries are seen", func(t *testing.T) { splitBrain(ctx, t, site) })
}

// splitBrain makes a second primary by hand, which pause mode allows, and expects
// the witness to prove it: else no round would mean anything.
func splitBrain(ctx context.Context, t *testing.T, site *faults.Site) {
	leader, err := site.Shard.AwaitHealthy(ctx)
	if err != nil {
		t.Fatal(err)
	}
	status, answer, err := leader.Patch(ctx, "/config", map[string]any{"pause": true})
	if err != nil || status != http.StatusOK {
		t.Fatalf("pause: %v, %d %s", err, status, answer)
	}
	replicas, err := site.Shard.Replicas(ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := replicas[0].ConnectLocal(ctx, "postgres", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	site.Witness.Reset()
	if _, err := conn.Exec(ctx, "SELECT pg_promote(false)"); err != nil {
		t.Fatal(err)
	}
	for {
		overlap := faults.Overlaps(site.Witness.Reigns())
		if overlap.Proven > 0 {
			t.Logf("seen for %v so far", overlap.Proven)
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("two primaries, and the witness saw %+v", site.Witness.Reigns())
		}
	}
}

func open(ctx context.Context, t *testing.T, opts faults.Options) *faults.Site {
	t.Helper()
	dir, err := os.MkdirTemp("", "lictor-faults-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL's user must get in
		t.Fatal(err)
	}
	opts.Dir = filepath.Join(dir, "lab")
	site, err := faults.Open(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(site.Lab.LogTail(25))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := site.Close(ctx, false); err != nil {
			t.Errorf("closing the site: %v", err)
		}
	})
	return site
}

// TestChoose: names are those that the documentation uses, each but once.
func TestChoose(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range faults.All() {
		if seen[f.Name] {
			t.Errorf("two faults are named %s", f.Name)
		}
		seen[f.Name] = true
	}
	chosen, err := faults.Choose("host-loss, kill-agent")
	if err != nil || len(chosen) != 2 || chosen[1].Name != "kill-agent" {
		t.Errorf("%v, %v", chosen, err)
	}
	if _, err := faults.Choose("no-such-fault"); err == nil {
		t.Error("an unknown name is no error")
	}
}
