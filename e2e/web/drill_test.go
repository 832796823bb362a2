package web

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/drill"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// The report of a drill in a real browser: light, dark, on paper, on a phone, by keys, with texts that
// stand out from what is behind them, and nobody's markup obeyed.
func TestDrillReport(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	chromium(ctx, t)
	dir := t.TempDir()
	for name, report := range drillReports() {
		text, err := drill.Page(report)
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(filepath.Join(dir, name+".html"), text, 0o600))
	}
	look(ctx, t, "drill", (&url.URL{Scheme: "file", Path: dir + "/"}).String())
}

// drillReports are what managers may be shown.
func drillReports() map[string]drill.Report {
	began := time.Date(2026, 11, 28, 2, 0, 0, 0, time.UTC)
	passed := drill.Report{Kind: "switchover", Namespace: "service", Began: began, Ended: began.Add(4 * time.Minute), Verdict: drill.Passed}
	for i, name := range []string{"orders", "users", "a-shard-with-a-name-that-is-as-long-as-names-of-shards-may-become-in-practice"} {
		s := drill.Shard{
			Name: name, From: name + "-db1", To: name + "-db2", Host: "10.0.0.11", State: drill.Passed, Began: began.Add(time.Duration(i) * time.Minute), Took: 6100 * time.Millisecond,
			Slow: "promoted took longest, 480 ms of 912 ms: PostgreSQL ended recovery and took a checkpoint",
			Steps: []drill.Step{
				{Name: "checks", AtMS: 0, TookMS: 310},
				{Name: "the client settles", AtMS: 310, TookMS: 1010},
				{Name: "switchover", AtMS: 1320, TookMS: 1480},
				{Name: "well again", AtMS: 2800, TookMS: 3100},
				{Name: "the count", AtMS: 5900, TookMS: 200},
			},
			Probe: &drill.Result{Mode: drill.Writes, Attempts: 118, Acked: 118, GapMS: 912, GapAt: began.Add(1500 * time.Millisecond)},
			Events: []events.Event{{
				At: began.Add(2 * time.Second), Kind: events.Switchover, By: name + "-db2", From: name + "-db1", To: name + "-db2", Timeline: 4, Outcome: events.Done,
				Cause: "asked for by ops@bastion", TookMS: 912, Phases: []events.Phase{{Name: events.Noticed, AtMS: 40}, {Name: events.Elected, AtMS: 220}, {Name: events.Promoted, AtMS: 700}, {Name: events.Routed, AtMS: 912}},
			}},
		}
		for n := range 118 {
			took := time.Duration(8+n%7) * time.Millisecond
			if n == 30 {
				took = 912 * time.Millisecond
			}
			s.Probe.Samples = append(s.Probe.Samples, drill.Sample{At: began.Add(time.Duration(n)*50*time.Millisecond + took), Took: took})
		}
		passed.Shards = append(passed.Shards, s)
	}
	surprise := passed
	surprise.Kind, surprise.Verdict = "host", drill.Surprised
	surprise.What, surprise.Do = "users: 2 acknowledged rows are missing "+hostile, "stop the drill, keep the old leader's data directory, and see docs/runbooks/two-primaries.md"
	surprise.Shards = append([]drill.Shard{}, passed.Shards...)
	bad := &surprise.Shards[1]
	probe := *bad.Probe
	bad.State, bad.What, bad.Do, bad.Probe = drill.Surprised, surprise.What, surprise.Do, &probe
	bad.Notes = []string{"--restore was run after the surprise", hostile}
	probe.Lost, probe.Errors = 2, 4
	probe.Samples = append([]drill.Sample{}, probe.Samples...)
	for n := range 4 {
		probe.Samples[31+n].Failed = true
		probe.Failures = append(probe.Failures, drill.Failure{At: began.Add(time.Duration(n) * time.Second), TookMS: 912, Text: fmt.Sprintf("server closed the connection unexpectedly (%d) %s", n, hostile)})
	}
	surprise.Shards[2] = drill.Shard{Name: passed.Shards[2].Name, State: drill.NotBegun}
	underWay := drill.Report{
		Kind: "restart", Namespace: "service", Began: began, Verdict: drill.UnderWay,
		Shards: []drill.Shard{{Name: "orders", State: drill.UnderWay, Began: began, From: "db1", Host: "10.0.0.11"}, {Name: "users", State: drill.NotBegun}},
	}
	return map[string]drill.Report{"passed": passed, "surprise": surprise, "under-way": underWay}
}
