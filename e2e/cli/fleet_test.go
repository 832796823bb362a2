package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// 300 shards in a real Consul: every one is shown, and exactly those with trouble
// have an alarm that says which.
func TestFleetOf300(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l := labtest.New(t, lab.Options{Bouncers: -1, ConsulServers: 1})
	if err := l.StartConsul(ctx); err != nil {
		t.Fatal(err)
	}
	// A monitor that looks in the wrong place must not find that all is well.
	nothing := exec.CommandContext(ctx, program(l), "fleet", "--check", "--namespace", "elsewhere", "--consul", l.ConsulHosts()[0])
	if out, err := nothing.CombinedOutput(); err == nil || !strings.Contains(string(out), "there are no shards below elsewhere/") {
		t.Errorf("a fleet of nothing: %v: %s", err, out)
	}
	trouble := map[string]struct{ key, value, alarm string }{
		"s007": {"service/s007/leader", "", "no leader"},
		"s100": {"service/s100/members/s100-db2", `{"conn_url":"postgres://10.2.0.100:5432/postgres","api_url":"http://127.0.0.1:1/patroni","state":"stopped","role":"replica","version":"0.1.0"}`, "s100-db2 is stopped"},
		"s101": {"service/s101/status", `{"optime":`, "key status"},
		"s102": {"lictor/routes/service/s102", `{"version":1,"system_identifier":"1","state":"open","timeline":1,"leader":{"name":"x","host":"h","port":1},"replicas":[]}`, "another cluster"},
		"s103": {"service/s103/config", `{"pause":true}`, "paused"},
	}
	// Its many transactions have the test's own limit.
	if err := SeedFleet(ctx, l.ConsulServers()[0].Client(), 300, "http://127.0.0.1:1/patroni"); err != nil {
		t.Fatal(err)
	}
	err := l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
		for _, it := range trouble {
			var err error
			if it.value == "" {
				_, err = c.KV().Delete(it.key, (&api.WriteOptions{}).WithContext(ctx))
			} else {
				_, err = c.KV().Put(&api.KVPair{Key: it.key, Value: []byte(it.value)}, (&api.WriteOptions{}).WithContext(ctx))
			}
			if err != nil {
				return err
			}
		}
		_, err := c.KV().Put(&api.KVPair{Key: "service/other/thing", Value: []byte("no shard")}, (&api.WriteOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	fleet := func(args ...string) ([]record, int) {
		began := time.Now()
		cmd := exec.CommandContext(ctx, program(l), append([]string{"fleet", "--consul", l.ConsulHosts()[0], "-o", "json"}, args...)...)
		out, err := cmd.Output()
		t.Logf("lictor fleet %v took %s", args, time.Since(began))
		var rows []record
		if json.Unmarshal(out, &rows) != nil {
			t.Fatalf("lictor fleet: %v: %s", err, out)
		}
		return rows, cmd.ProcessState.ExitCode()
	}
	rows, code := fleet()
	if len(rows) != 300 || code != operator.ExitDone {
		t.Fatalf("%d shards, exit code %d", len(rows), code)
	}
	for i, r := range rows {
		name := fmt.Sprintf("s%03d", i+1)
		want := trouble[name].alarm
		alarms := ""
		if r["alarms"] != nil {
			alarms = fmt.Sprint(r["alarms"])
		}
		if r["shard"] != name || (want == "") != (alarms == "") || !strings.Contains(alarms, want) {
			t.Errorf("row %d: %v, want an alarm like %q", i, r, want)
		}
	}
	if r := rows[0]; r["primary"] != "s001-db1" || r["replicas"] != "2/2" || r["sync"] != "s001-db2" || r["bouncers"] != "10/10" || r["timeline"] != 2.0 {
		t.Errorf("a healthy shard: %v", r)
	}
	if rows, code := fleet("--alarms", "--check", "--consul-only"); len(rows) != len(trouble) || code != operator.ExitFindings {
		t.Errorf("with --alarms: %d rows, exit code %d", len(rows), code)
	}
	t.Run("an operator overrides the failsafe list", func(t *testing.T) { testOverride(ctx, t, l) })
}

// A shard without a leader, whose failsafe list does not have the candidate: the
// command says what can be lost, does nothing when the answer is no, and with
// --force removes the list and leaves the request in Consul, as no member can be
// reached. Nobody carries it out: interrupted, it says that the outcome is unknown.
func testOverride(ctx context.Context, t *testing.T, l *lab.Lab) {
	keys := cluster.NewKeys("", "s200", "")
	read := func() cluster.Snapshot {
		var kvs []cluster.KV
		err := l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
			pairs, _, err := c.KV().List(keys.Prefix(), (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
			kvs = nil
			for _, p := range pairs {
				kvs = append(kvs, cluster.KV{Key: p.Key, Value: p.Value, Session: p.Session, ModifyIndex: p.ModifyIndex})
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return cluster.ParseSnapshot(keys, kvs, 0)
	}
	err := l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
		o := (&api.WriteOptions{}).WithContext(ctx)
		if _, err := c.KV().Delete(keys.Leader(), o); err != nil {
			return err
		}
		_, err := c.KV().Put(&api.KVPair{Key: keys.Failsafe(), Value: []byte(`{"s200-db1":""}`)}, o)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	command := func(more ...string) (*exec.Cmd, *bytes.Buffer) {
		args := append([]string{"failover", "s200", "--candidate", "s200-db2", "--consul", l.ConsulHosts()[0]}, more...)
		cmd, errs := exec.CommandContext(ctx, program(l), args...), &bytes.Buffer{}
		cmd.Stderr = errs
		return cmd, errs
	}
	asked, words := command()
	asked.Stdin = strings.NewReader("n\n")
	_ = asked.Run() // its exit code tells
	if asked.ProcessState.ExitCode() != operator.ExitRefused || !strings.Contains(words.String(), "not in the failsafe list") || !read().Failsafe.Exists() {
		t.Errorf("exit code %d, %s", asked.ProcessState.ExitCode(), words)
	}
	forced, words := command("--force")
	if err := forced.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = forced.Wait() // its exit code tells
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for s := read(); s.Failsafe.Exists() || s.Failover.Value.Candidate != "s200-db2"; s = read() {
		select {
		case <-tick.C:
		case <-ended:
			t.Fatalf("it ended: %s", words)
		case <-ctx.Done():
			t.Fatalf("keys: %+v %+v", s.Failsafe, s.Failover)
		}
	}
	if err := forced.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-ended
	if code := forced.ProcessState.ExitCode(); code != operator.ExitUnknown || !strings.Contains(words.String(), "outcome is unknown") {
		t.Errorf("interrupted: exit code %d, %s", code, words)
	}
}
