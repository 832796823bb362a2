package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// upgradable is a lab whose members have the programs of a later major version as well.
func upgradable(t *testing.T) (l *lab.Lab, next int) {
	t.Helper()
	dir := os.Getenv("POSTGRES_NEXT_BIN")
	if dir == "" {
		t.Skip("make test-upgrade runs it, from one major version to another")
	}
	if _, err := fmt.Sscan(filepath.Base(filepath.Dir(dir)), &next); err != nil {
		t.Fatal(err)
	}
	l = start(t, lab.Options{Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) {
		own, _ := config["lictor"].(map[string]any)
		if own == nil {
			own = map[string]any{}
		}
		own["upgrade_bin_dir"] = dir
		config["lictor"] = own
	}}})
	ctx := within(t)
	must(t, l.Shard(0).Prepare(ctx))
	must(t, l.AwaitServing(ctx))
	must(t, l.AwaitPoolers(ctx))
	return l, next
}

// A shard becomes one of a later major version under clients, who wait: its members are of that version then, and the
// data of before lie beside.
func TestUpgrade(t *testing.T) {
	l, next := upgradable(t)
	s := l.Shard(0)
	before := map[string]string{}
	for _, m := range s.Members() {
		before[m.Name] = got(m.Status(within(t)))(t).SystemIdentifier
	}
	leader := got(s.Leader(within(t)))(t)
	w := s.StartWorkload(within(t), lab.WorkloadOptions{StatementTimeout: patience}) // they wait for as long as it takes
	t.Cleanup(w.Stop)
	labtest.AwaitWrites(within(t), t, w)
	func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		defer cancel()
		began := time.Now()
		out, err := l.Command(ctx, os.Getenv("LICTOR_BIN"), "upgrade", s.Name, "--to", fmt.Sprint(next), "--force", "--consul", l.ConsulServers()[0].HTTP).CombinedOutput()
		t.Logf("after %s:\n%s", time.Since(began).Round(100*time.Millisecond), out)
		must(t, err)
	}()
	labtest.AwaitWrites(within(t), t, w)
	w.Stop()
	_ = got(s.AwaitHealthy(within(t)))(t)
	if loss := got(w.LostAcked(within(t)))(t); loss.Lost > 0 {
		t.Errorf("%d of %d acknowledged rows are gone: %v", loss.Lost, loss.Acked, loss.IDs)
	}
	t.Logf("acknowledged %d, longest gap %s", w.Writes.Acked(), w.Writes.LongestGap(time.Time{}, time.Now()))
	if n := w.Writes.ErrorCount(); n > 0 {
		t.Errorf("clients saw %d errors: %v", n, w.Writes.Errors(time.Time{}, time.Now()))
	}
	if now := got(s.Leader(within(t)))(t); now != leader {
		t.Errorf("%s leads, %s did", now.Name, leader.Name)
	}
	ids := map[string]bool{}
	for _, m := range s.Members() {
		now := got(m.Status(within(t)))(t)
		ids[now.SystemIdentifier] = true
		if now.ServerVersion/10000 != next || now.SystemIdentifier == before[m.Name] {
			t.Errorf("%s: PostgreSQL %d, system identifier %s", m.Name, now.ServerVersion, now.SystemIdentifier)
		}
		if kept, err := filepath.Glob(m.DataDir + ".before-upgrade.*/base"); err != nil || len(kept) != 1 {
			t.Errorf("%s: the data of before: %v, %v", m.Name, kept, err)
		}
	}
	if len(ids) != 1 {
		t.Errorf("system identifiers: %v", ids)
	}

	// What was upgraded fails over, and back, and its agents begin anew with the same configuration.
	for range 2 {
		old := got(s.Leader(within(t)))(t)
		i := slices.IndexFunc(s.Members(), func(m *lab.Member) bool { return m != old })
		must(t, s.Switchover(within(t), old, s.Members()[i]))
		_ = got(s.AwaitHealthy(within(t)))(t)
	}
	for _, m := range s.Members() {
		must(t, m.Process("agent").Kill(within(t)))
		must(t, m.Process("agent").Start())
	}
	_ = got(s.AwaitHealthy(within(t)))(t)
	labtest.AwaitWrites(within(t), t, s.StartWorkload(within(t), lab.WorkloadOptions{}))
}

// The leader's agent is killed while the data are upgraded: the shard is whole afterwards, upgraded or as it was, and
// what was acknowledged is there.
func TestUpgradeCutShort(t *testing.T) {
	l, next := upgradable(t)
	s := l.Shard(0)
	for _, after := range []time.Duration{time.Second, 3 * time.Second, 6 * time.Second, 10 * time.Second} {
		leader := got(s.AwaitHealthy(within(t)))(t)
		if got(leader.Status(within(t)))(t).ServerVersion/10000 == next {
			break
		}
		clients(t, s, func(ctx context.Context) {
			ended := make(chan struct{})
			asked, cancel := context.WithCancel(ctx)
			go func() {
				defer close(ended)
				status, answer, err := leader.Post(asked, "/upgrade", map[string]any{"to": next})
				t.Logf("killed after %s: %d %s %v", after, status, answer, err)
			}()
			time.Sleep(after) // nothing is to be awaited: it is cut short wherever it is
			must(t, leader.Process("agent").Kill(ctx))
			cancel()
			<-ended
			must(t, leader.Process("agent").Start())
			version := 0
			await(ctx, t, "nobody serves", func() error {
				now, err := s.Leader(ctx)
				if err != nil {
					return err
				}
				status, err := now.Status(ctx)
				if err == nil && (status.State != "running" || status.ServerVersion == 0) {
					err = fmt.Errorf("%s is %s", now.Name, status.State)
				}
				leader, version = now, status.ServerVersion/10000
				return err
			})
			t.Logf("PostgreSQL %d serves on %s", version, leader.Name)
			for _, m := range s.Members() { // those of before, if it has come to that
				if m == leader || version != next {
					continue
				}
				await(ctx, t, m.Name+" is not made anew", func() error {
					status, answer, err := m.Post(ctx, "/reinitialize", map[string]any{})
					if err == nil && status != 200 {
						err = fmt.Errorf("%d %s", status, answer)
					}
					return err
				})
			}
		})
	}
}
