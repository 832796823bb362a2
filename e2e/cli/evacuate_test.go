package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// fleetSeat is where a person sits who types commands for all shards of a lab.
type fleetSeat struct {
	t   *testing.T
	lab *lab.Lab
}

// command is a command of the program that runs where the lab's clients are.
func (f fleetSeat) command(ctx context.Context, args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := f.lab.Command(ctx, program(f.lab), append(args, "--consul", f.lab.ConsulHosts()[0])...)
	errs := &bytes.Buffer{}
	cmd.Stderr = errs
	return cmd, errs
}

// run runs a command that prints JSON and must end with this exit code.
func (f fleetSeat) run(code int, args ...string) ([]record, string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*patience)
	defer cancel()
	cmd, errs := f.command(ctx, append(args, "-o", "json")...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		f.t.Fatalf("lictor %v: %v", args, err)
	}
	f.t.Logf("$ lictor %s  # %d\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), out, errs)
	if got := cmd.ProcessState.ExitCode(); got != code {
		f.t.Fatalf("lictor %v: exit code %d, want %d", args, got, code)
	}
	var rows []record
	if len(out) > 0 {
		if err := json.Unmarshal(out, &rows); err != nil {
			f.t.Fatalf("lictor %v: %v", args, err)
		}
	}
	return rows, errs.String()
}

// leaders says which host leads which shard: "shard1 on db2, shard2 on db3".
func (f fleetSeat) leaders(ctx context.Context) string {
	f.t.Helper()
	var all []string
	for _, s := range f.lab.Shards() {
		leader, err := s.AwaitHealthy(ctx)
		if err != nil {
			f.t.Fatal(err)
		}
		all = append(all, s.Name+" on "+leader.Name)
	}
	return strings.Join(all, ", ")
}

// bring has a shard led on a host.
func (f fleetSeat) bring(ctx context.Context, s *lab.Shard, host string) {
	f.t.Helper()
	leader, err := s.AwaitHealthy(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	if leader.Name == host {
		return
	}
	if err := s.AwaitSync(ctx); err != nil {
		f.t.Fatal(err)
	}
	if err := s.Switchover(ctx, leader, s.Member(host)); err != nil {
		f.t.Fatal(err)
	}
}

// Three shards share three hosts, two of them are led on db1: its leaders are handed over under
// clients, and back, and then spread.
func TestEvacuate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("hosts that are shared need network namespaces, and these need root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	l := labtest.Serving(ctx, t, lab.Options{Substrate: lab.Netns, Shards: 3, Members: 2, Hosts: 3, Bouncers: 1, ConsulServers: 1})
	f := fleetSeat{t, l}
	for i, host := range []string{"db1", "db2", "db1"} { // on db1, db2 and on db2, db3 and on db3, db1
		f.bring(ctx, l.Shard(i), host)
	}
	before := f.leaders(ctx)
	if before != "shard1 on db1, shard2 on db2, shard3 on db1" {
		t.Fatal(before)
	}
	for _, s := range l.Shards() {
		if err := s.AwaitSync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	var clients []*lab.Workload
	for _, s := range l.Shards() {
		w := s.StartWorkload(ctx, lab.WorkloadOptions{})
		t.Cleanup(w.Stop)
		labtest.AwaitWrites(ctx, t, w)
		clients = append(clients, w)
	}

	// A plan changes nothing, and says what will be done.
	rows, _ := f.run(operator.ExitDone, "evacuate", "db1", "--dry-run")
	if len(rows) != 2 || rows[0]["shard"] != "shard1" || rows[0]["to"] != "db2" || rows[1]["to"] != "db3" || rows[0]["state"] != "planned" {
		t.Errorf("plan: %v", rows)
	}
	f.run(operator.ExitFindings, "evacuate", "db1", "--check")
	_, said := f.run(operator.ExitRefused, "evacuate", "db9")
	if !strings.Contains(said, "no member of any shard runs on db9") {
		t.Errorf("a host in no group: %s", said)
	}
	f.run(operator.ExitRefused, "evacuate", "db1", "--undo")
	if _, said = f.run(operator.ExitRefused, "evacuate", "db1"); !strings.Contains(said, "nobody has answered") {
		t.Errorf("nobody answers: %s", said)
	}

	// A paused shard: nothing is done.
	cmd, errs := f.command(ctx, "pause", "shard3", "--wait")
	if err := cmd.Run(); err != nil {
		t.Fatalf("pause: %v %s", err, errs)
	}
	if rows, said = f.run(operator.ExitRefused, "evacuate", "db1", "--yes"); len(rows) != 2 || !strings.Contains(said, "shard3: it is paused: lictor resume shard3") {
		t.Errorf("a paused shard: %v %s", rows, said)
	}
	if cmd, errs = f.command(ctx, "resume", "shard3", "--wait"); cmd.Run() != nil {
		t.Fatalf("resume: %s", errs)
	}
	if now := f.leaders(ctx); now != before {
		t.Fatalf("nothing was to change: %s", now)
	}

	rows, _ = f.run(operator.ExitDone, "evacuate", "db1", "--yes")
	if len(rows) != 2 || rows[0]["state"] != "moved" || rows[1]["state"] != "moved" {
		t.Errorf("evacuated: %v", rows)
	}
	if now := f.leaders(ctx); now != "shard1 on db2, shard2 on db2, shard3 on db3" {
		t.Errorf("evacuated: %s", now)
	}
	if rows, _ = f.run(operator.ExitDone, "evacuate", "db1", "--yes"); len(rows) != 0 {
		t.Errorf("once more: %v", rows)
	}
	f.run(operator.ExitDone, "evacuate", "db1", "--check")
	if rows, _ = f.run(operator.ExitDone, "rebalance", "--yes"); len(rows) != 0 {
		t.Errorf("nothing goes to an evacuated host: %v", rows)
	}

	// Killed on the way back, and run again.
	cmd, _ = f.command(ctx, "evacuate", "db1", "--undo", "--yes", "--parallel", "1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testkit.Await(ctx, t, "the first shard is not handed back", func() error {
		leader, err := l.Shard(0).Leader(ctx)
		if err == nil && leader.Name != "db1" {
			err = fmt.Errorf("shard1 is led on %s", leader.Name)
		}
		return err
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	f.leaders(ctx)
	f.run(operator.ExitDone, "evacuate", "db1", "--undo", "--yes")
	if now := f.leaders(ctx); now != before {
		t.Errorf("undone: %s, want %s", now, before)
	}
	f.run(operator.ExitRefused, "evacuate", "db1", "--undo", "--yes")

	// Two, one and none: one handover makes them one each.
	rows, _ = f.run(operator.ExitDone, "rebalance", "--yes")
	if len(rows) != 1 || rows[0]["shard"] != "shard3" || rows[0]["to"] != "db3" {
		t.Errorf("rebalance: %v", rows)
	}
	f.run(operator.ExitDone, "rebalance", "--check")
	f.run(operator.ExitDone, "rebalance", "--undo", "--yes")
	if now := f.leaders(ctx); now != before {
		t.Errorf("rebalance undone: %s, want %s", now, before)
	}
	var left []string
	if err := l.Consul(ctx, func(ctx context.Context, c *api.Client) (err error) {
		left = nil
		for _, prefix := range []string{"lictor/evacuations/", "lictor/rebalances/"} {
			keys, _, err := c.KV().Keys(prefix, "", (&api.QueryOptions{}).WithContext(ctx))
			if err != nil {
				return err
			}
			left = append(left, keys...)
		}
		return nil
	}); err != nil || len(left) > 0 {
		t.Errorf("keys that are left: %q %v", left, err)
	}
	for i, w := range clients {
		labtest.AwaitWrites(ctx, t, w)
		w.Stop()
		for _, e := range append(w.Writes.Errors(time.Time{}, time.Now()), w.Reads.Errors(time.Time{}, time.Now())...) {
			t.Errorf("a client of %s: %s", l.Shard(i).Name, e.Err)
		}
		loss, err := w.LostAcked(ctx)
		if err != nil || loss.Lost > 0 {
			t.Errorf("%s: %+v, %v", l.Shard(i).Name, loss, err)
		}
		t.Logf("%s: %d rows, longest gap %s", l.Shard(i).Name, loss.Acked, w.Writes.LongestGap(time.Time{}, time.Now()))
	}
}

// 24 shards of three members share six hosts. Their leaders are spread over the hosts, one host is
// evacuated within a minute, and put back, under clients of every shard.
// `make test-evacuate` runs it: 72 PostgreSQL are no part of `make test`.
func TestEvacuateOneOfSixHosts(t *testing.T) {
	if os.Getenv("LICTOR_TEST_EVACUATE") == "" {
		t.Skip("make test-evacuate runs it")
	}
	const shards, hosts = 24, 6
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
	defer cancel()
	l := labtest.Serving(ctx, t, lab.Options{
		Substrate: lab.Netns, Shards: shards, Members: 3, Hosts: hosts, Bouncers: 2,
		Dynamic:    map[string]any{"synchronous_mode": "quorum"},
		Parameters: map[string]any{"shared_buffers": "16MB", "max_connections": 40},
	})
	f := fleetSeat{t, l}
	for _, s := range l.Shards() {
		if err := s.AwaitSync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	var clients []*lab.Workload
	for _, s := range l.Shards() {
		w := s.StartWorkload(ctx, lab.WorkloadOptions{WriteEvery: 100 * time.Millisecond, ReadEvery: time.Second})
		t.Cleanup(w.Stop)
		labtest.AwaitWrites(ctx, t, w)
		clients = append(clients, w)
	}
	timed := func(what string, args ...string) []record {
		began := time.Now()
		rows, _ := f.run(operator.ExitDone, args...)
		took := time.Since(began)
		t.Logf("%s: %d handovers in %s, until the old leaders follow", what, len(rows), took.Round(100*time.Millisecond))
		for _, w := range clients {
			labtest.AwaitWrites(ctx, t, w)
		}
		if what != "rebalance" && took > time.Minute {
			t.Errorf("%s took %s", what, took)
		}
		return rows
	}
	load := func() map[string]int {
		n := map[string]int{}
		for _, s := range l.Shards() {
			leader, err := s.AwaitHealthy(ctx)
			if err != nil {
				t.Fatal(err)
			}
			n[leader.Name]++
		}
		return n
	}
	t.Logf("leaders at first: %v", load())
	timed("rebalance", "rebalance", "--yes")
	spread := load()
	for i := range hosts {
		if host := fmt.Sprintf("db%d", i+1); spread[host] != shards/hosts {
			t.Errorf("%s leads %d shards of %d: %v", host, spread[host], shards, spread)
		}
	}
	before := f.leaders(ctx)
	if rows := timed("evacuate", "evacuate", "db3", "--yes"); len(rows) != shards/hosts {
		t.Errorf("evacuated: %v", rows)
	}
	if now := load(); now["db3"] != 0 {
		t.Errorf("leaders: %v", now)
	}
	timed("undo", "evacuate", "db3", "--undo", "--yes")
	if now := f.leaders(ctx); now != before {
		t.Errorf("undone: %s, want %s", now, before)
	}
	failed, rows, gap := 0, int64(0), time.Duration(0)
	for i, w := range clients {
		w.Stop()
		for _, e := range append(w.Writes.Errors(time.Time{}, time.Now()), w.Reads.Errors(time.Time{}, time.Now())...) {
			failed++
			t.Errorf("a client of %s: %s", l.Shard(i).Name, e.Err)
		}
		loss, err := w.LostAcked(ctx)
		if err != nil || loss.Lost > 0 {
			t.Errorf("%s: %+v, %v", l.Shard(i).Name, loss, err)
		}
		rows, gap = rows+loss.Acked, max(gap, w.Writes.LongestGap(time.Time{}, time.Now()))
	}
	t.Logf("%d rows, %d client errors, longest gap %s", rows, failed, gap.Round(time.Millisecond))
}
