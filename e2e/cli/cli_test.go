package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// patience bounds every wait.
const patience = 2 * time.Minute

func TestCommands(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l := labtest.Serving(ctx, t, lab.Options{TTL: 5, Bouncers: 1})
	s := l.Shard(0)
	if err := s.AwaitSync(ctx); err != nil {
		t.Fatal(err)
	}
	o := &operatorSeat{t: t, lab: l, shard: s}
	for _, step := range []struct {
		name string
		run  func(*operatorSeat)
	}{
		{"list", testList},
		{"no false lag", testNoFalseLag},
		{"configuration", testConfig},
		{"restart of the whole shard", testRestart},
		{"switchover", testSwitchover},
		{"scheduled", testScheduled},
		{"pause", testPause},
		{"SQL", testSQL},
		{"reinit", testReinit},
		{"fleet and doctor", testFleetAndDoctor},
		{"failover", testFailover},
		{"forced failover", testForcedFailover},
		{"leader lost in its promotion", testLostPromotion},
		{"overridden lease", testOverrideLease},
		{"remove", testRemove},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			o.t = t
			step.run(o)
		}) {
			return // what follows needs a whole shard
		}
	}
}

// operatorSeat is where a person sits who types commands.
type operatorSeat struct {
	t     *testing.T
	lab   *lab.Lab
	shard *lab.Shard
}

// program is the binary under test: the lab's, else what the Makefile builds.
func program(l *lab.Lab) string {
	if path := l.Options.Programs.Lictor; path != "" {
		return path
	}
	return "../../bin/lictor"
}

// result is what a command printed.
type result struct {
	out, err string
	code     int
}

// run runs a command on the shard's first member's configuration.
func (o *operatorSeat) run(stdin string, args ...string) result {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	m := o.shard.Members()[0]
	cmd := exec.CommandContext(ctx, program(o.lab), args...)
	cmd.Env = append(os.Environ(), operator.ConfigVariable+"="+filepath.Join(m.Dir, "agent.yml"))
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		o.t.Fatalf("lictor %v: %v", args, err)
	}
	r := result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
	o.t.Logf("$ lictor %s  # %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	return r
}

// must runs a command that must succeed.
func (o *operatorSeat) must(args ...string) string {
	o.t.Helper()
	r := o.run("", args...)
	if r.code != operator.ExitDone {
		o.t.Fatalf("lictor %v: exit code %d", args, r.code)
	}
	return r.out
}

// ends runs a command that must end with an exit code and say something.
func (o *operatorSeat) ends(code int, say, stdin string, args ...string) {
	o.t.Helper()
	r := o.run(stdin, args...)
	if r.code != code || !strings.Contains(r.err, say) {
		o.t.Errorf("lictor %v: exit code %d and %q, want %d and %q", args, r.code, r.err, code, say)
	}
}

type record map[string]any

func (o *operatorSeat) records(args ...string) []record {
	o.t.Helper()
	var rows []record
	if err := json.Unmarshal([]byte(o.must(append(args, "-o", "json")...)), &rows); err != nil {
		o.t.Fatalf("lictor %v: %v", args, err)
	}
	return rows
}

func (o *operatorSeat) ctx() context.Context {
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	o.t.Cleanup(cancel)
	return ctx
}

func (o *operatorSeat) healthy() *lab.Member {
	o.t.Helper()
	leader, err := o.shard.AwaitHealthy(o.ctx())
	if err == nil {
		err = o.shard.AwaitSync(o.ctx())
	}
	if err != nil {
		o.t.Fatal(err)
	}
	// The commands read the members' keys, and a key follows what its agent sees.
	o.await(func() error {
		snapshot, err := o.shard.Snapshot(o.ctx())
		if err != nil {
			return err
		}
		for _, m := range snapshot.Members {
			if v := m.Value; v.Name != leader.Name && v.ReplicationState == "" {
				return fmt.Errorf("the key of %s does not say yet that it replicates: %+v", v.Name, v)
			}
		}
		return nil
	})
	return leader
}

// await polls until f gives no error.
func (o *operatorSeat) await(f func() error) {
	o.t.Helper()
	ctx := o.ctx()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			o.t.Fatal(err)
		}
	}
}

func testList(o *operatorSeat) {
	leader := o.healthy()
	rows := o.records("list")
	roles := map[string]int{}
	for _, r := range rows {
		roles[fmt.Sprint(r["Role"])]++
		if (r["Role"] == "Leader") != (r["Member"] == leader.Name) || r["Cluster"] != o.shard.Name || r["TL"] == nil {
			o.t.Errorf("row: %v", r)
		}
	}
	if len(rows) != 3 || roles["Leader"] != 1 || roles["Sync Standby"] != 1 {
		o.t.Errorf("roles: %v", roles)
	}
	table := o.must("list", o.shard.Name)
	if lines := strings.Split(table, "\n"); !strings.HasPrefix(table, "+ Cluster: "+o.shard.Name+" (") || len(lines) != 8 {
		o.t.Errorf("table:\n%s", table)
	}
	if tsv := strings.Split(o.must("list", "-o", "tsv"), "\n"); !strings.HasPrefix(tsv[0], "Cluster\tMember\tHost\tRole") || len(tsv) != 5 {
		o.t.Errorf("tsv: %q", tsv)
	}
	if yaml := o.must("list", "-o", "yaml"); strings.Count(yaml, "- Cluster: "+o.shard.Name) != 3 {
		o.t.Errorf("yaml: %s", yaml)
	}
	if topology := o.must("topology"); strings.Count(topology, "| + ") != 2 {
		o.t.Errorf("topology: %s", topology)
	}
	o.ends(operator.ExitFailed, "there is no shard nothing", "", "list", "nothing")
	o.ends(operator.ExitUsage, "--output", "", "list", "-o", "xml")
	o.ends(operator.ExitUsage, "unknown flag", "", "list", "--colour")
	if names := o.must("__complete", "switchover", ""); !strings.HasPrefix(names, o.shard.Name+"\n") {
		o.t.Errorf("completion: %q", names)
	}
}

// A leader that switches to another WAL segment, as every base backup makes it do, is
// 16 MB ahead at once. The keys of its replicas are older, and no alarm is raised by that.
func testNoFalseLag(o *operatorSeat) {
	leader := o.healthy()
	conn, err := leader.Connect(o.ctx(), "postgres")
	if err != nil {
		o.t.Fatal(err)
	}
	defer conn.Close(o.ctx())
	for range 3 {
		var end int64
		if err := conn.QueryRow(o.ctx(), "SELECT pg_wal_lsn_diff(pg_switch_wal(), '0/0')::bigint FROM pg_logical_emit_message(false, 'x', 'y')").Scan(&end); err != nil {
			o.t.Fatal(err)
		}
		o.await(func() error {
			o.must("fleet", "--check", "--consul-only")
			for _, r := range o.records("list") {
				if lag, is := r["Lag in MB"].(float64); is && lag > 0 {
					o.t.Fatalf("%v lags", r)
				}
			}
			snapshot, err := o.shard.Snapshot(o.ctx())
			if err != nil {
				return err
			}
			for _, m := range snapshot.Members {
				if m.Value.XLogLocation < end || m.Value.Name != leader.Name && (m.Value.Lictor == nil || m.Value.Lictor.LeaderLSN < end) {
					return fmt.Errorf("%s does not say yet that it has the WAL up to %d: %+v", m.Value.Name, end, m.Value)
				}
			}
			return nil
		})
	}
}

func testConfig(o *operatorSeat) {
	o.ends(operator.ExitRefused, "ttl", "", "edit-config", "--set", "ttl=2", "--force")
	o.ends(operator.ExitRefused, "tll: is not a known setting and has no effect; did you mean ttl?", "", "edit-config", "--set", "tll=10", "--force")
	o.ends(operator.ExitRefused, "nothing was done", "n\n", "edit-config", "--set", "maximum_lag_on_failover=2097152")
	o.ends(operator.ExitUsage, "name=value", "", "edit-config", "--pg", "work_mem", "--force")
	// PostgreSQL itself is asked: with this one no member would start again.
	o.ends(operator.ExitRefused, "postgresql.parameters.work_mem", "", "edit-config", "--pg", "work_mem=99zz", "--force")
	out := o.run("y\n", "edit-config", "--pg", "work_mem=7MB", "--set", "postgresql.parameters.max_connections=150").out
	if !strings.Contains(out, "+    work_mem: 7MB") || !strings.Contains(out, "Configuration changed") {
		o.t.Errorf("the diff: %s", out)
	}
	if again := o.must("edit-config", "--pg", "work_mem=7MB", "--force"); !strings.Contains(again, "Not changed") {
		o.t.Errorf("the same again: %s", again)
	}
	var config struct {
		TTL        int `json:"ttl"`
		PostgreSQL struct {
			Parameters map[string]any `json:"parameters"`
		} `json:"postgresql"`
	}
	if err := json.Unmarshal([]byte(o.must("show-config", "-o", "json")), &config); err != nil || config.TTL != 5 || config.PostgreSQL.Parameters["work_mem"] != "7MB" {
		o.t.Errorf("the configuration: %+v, %v", config, err)
	}
	o.await(func() error {
		for _, r := range o.records("list") {
			if r["Pending restart"] != "*" {
				return fmt.Errorf("%v does not wait for a restart", r["Member"])
			}
		}
		return nil
	})
}

func testRestart(o *operatorSeat) {
	leader := o.healthy()
	w := o.shard.StartWorkload(o.ctx(), lab.WorkloadOptions{})
	defer w.Stop()
	o.writes(w)
	o.ends(operator.ExitRefused, "hands over", "n\n", "restart", o.shard.Name, "--pending")
	now := time.Now().UTC()
	o.windows(now.Add(6*time.Hour).Format("15:04") + "-" + now.Add(8*time.Hour).Format("15:04"))
	o.ends(operator.ExitRefused, "outside the maintenance windows of the shard for a restart", "", "restart", "--pending", "--force")
	o.ends(operator.ExitRefused, "outside the maintenance windows of the shard for a handover", "", "switchover", "--force")
	o.ends(operator.ExitRefused, "maintenance_windows[0]", "", "edit-config", "--set", `maintenance_windows=["02:00"]`, "--force")
	out := o.must("restart", "--pending", "--force", "--outside-window")
	for _, m := range o.shard.Members() {
		if !strings.Contains(out, "Success: restart on member "+m.Name) {
			o.t.Errorf("%s was not restarted", m.Name)
		}
	}
	o.writes(w)
	w.Stop()
	if n := w.Writes.ErrorCount(); n > 0 {
		o.t.Errorf("clients saw %d errors: %v", n, w.Writes.Errors(time.Time{}, time.Now()))
	}
	if now := o.healthy(); now == leader {
		o.t.Errorf("%s still leads", now.Name)
	}
	for _, r := range o.records("list") {
		if r["Pending restart"] != nil {
			o.t.Errorf("waits for a restart: %v", r)
		}
	}
	if out := o.must("restart", "--pending", "--force"); out != "" && !strings.Contains(out, "No member") {
		o.t.Errorf("nothing to restart: %s", out)
	}
	replica, err := o.shard.Replicas(o.ctx())
	if err != nil {
		o.t.Fatal(err)
	}
	o.windows(now.Add(-6*time.Hour).Format("15:04") + "-" + now.Add(6*time.Hour).Format("15:04"))
	o.must("restart", o.shard.Name, replica[0].Name, "--force")
	o.healthy()
	o.windows()
}

// windows sets the shard's maintenance windows, and waits until the members know of them.
func (o *operatorSeat) windows(windows ...string) {
	o.t.Helper()
	text, err := json.Marshal(windows)
	if err != nil {
		o.t.Fatal(err)
	}
	o.must("edit-config", "--set", "maintenance_windows="+string(text), "--force")
	o.await(func() error {
		snapshot, err := o.shard.Snapshot(o.ctx())
		if err != nil {
			return err
		}
		for _, m := range snapshot.Members {
			if m.Value.Lictor == nil || m.Value.Lictor.Config < snapshot.Config.ModifyIndex {
				return fmt.Errorf("%s does not know of %s", m.Value.Name, text)
			}
		}
		return nil
	})
}

// writes waits until clients have written some more.
func (o *operatorSeat) writes(w *lab.Workload) {
	o.t.Helper()
	from := w.Writes.Acked()
	o.await(func() error {
		if n := w.Writes.Acked(); n < from+20 {
			return fmt.Errorf("%d rows acknowledged since", n-from)
		}
		return nil
	})
}

func testSwitchover(o *operatorSeat) {
	old := o.healthy()
	o.ends(operator.ExitRefused, "cannot lead", "", "switchover", "--candidate", "ghost", "--force")
	o.ends(operator.ExitRefused, "is led by", "", "switchover", "--leader", "ghost", "--force")
	o.ends(operator.ExitRefused, "the answer was", "\nn\n", "switchover")
	o.ends(operator.ExitRefused, "nobody has answered", "", "switchover")
	snapshot, err := o.shard.Snapshot(o.ctx())
	if err != nil {
		o.t.Fatal(err)
	}
	standby := snapshot.Sync.Value.Standbys()[0]
	for _, m := range o.shard.Members() {
		if m != old && m.Name != standby {
			o.ends(operator.ExitRefused, "no synchronous standby", "", "switchover", "--candidate", m.Name, "--force")
		}
	}
	out := o.run(standby+"\ny\n", "switchover")
	if out.code != operator.ExitDone || !strings.Contains(out.out, fmt.Sprintf("Successfully switched over to %q in ", standby)) {
		o.t.Errorf("switchover: %d %s %s", out.code, out.out, out.err)
	}
	if now := o.healthy(); now.Name != standby {
		o.t.Errorf("%s leads", now.Name)
	}
	e := o.event("switchover", "done", old.Name+" -> "+standby)
	if e["timeline"] == nil || !ordered(e, "noticed_ms", "elected_ms", "promoted_ms", "routed_ms") {
		o.t.Errorf("event: %v", e)
	}
	o.must("events")
	history := o.records("history")
	last := history[len(history)-1]
	if last["New Leader"] != standby || last["Change"] != "switchover" || last["took_ms"] == nil {
		o.t.Errorf("history: %v", last)
	}
}

// event waits for the last event of a kind to have an outcome and to be about
// somebody; who may be empty.
func (o *operatorSeat) event(kind, outcome, who string) record {
	o.t.Helper()
	var found record
	o.await(func() error {
		all := o.records("events")
		slices.Reverse(all)
		i := slices.IndexFunc(all, func(r record) bool { return r["kind"] == kind })
		if i < 0 || fmt.Sprint(all[i]["outcome"]) != outcome || who != "" && all[i]["who"] != who {
			return fmt.Errorf("no %s of %s that is %s: %v", kind, who, outcome, all)
		}
		found = all[i]
		return nil
	})
	return found
}

func ordered(r record, keys ...string) bool {
	last := -1.0
	for _, key := range keys {
		n, is := r[key].(float64)
		if !is || n < last {
			return false
		}
		last = n
	}
	return true
}

func testScheduled(o *operatorSeat) {
	o.healthy()
	o.ends(operator.ExitUsage, "in the past", "", "switchover", "--force", "--scheduled", "2020-01-01T00:00Z")
	o.must("switchover", "--force", "--scheduled", "+24h")
	o.await(func() error {
		if list := o.must("list"); !strings.Contains(list, "Switchover scheduled at: ") {
			return errors.New("list does not show it")
		}
		return nil
	})
	o.must("flush", o.shard.Name, "switchover")
	o.ends(operator.ExitRefused, "no switchover is scheduled", "", "flush", o.shard.Name, "switchover")
}

func testPause(o *operatorSeat) {
	o.must("pause", "--wait")
	if list := o.must("list"); !strings.Contains(list, "Maintenance mode: on") {
		o.t.Error("list does not show the pause")
	}
	o.ends(operator.ExitRefused, "already paused", "", "pause")
	o.must("resume", "--wait")
	o.ends(operator.ExitRefused, "not paused", "", "resume")
	o.event("resume", "<nil>", "")
}

func testSQL(o *operatorSeat) {
	leader := o.healthy()
	rows := o.records("query", "--command", "SELECT pg_is_in_recovery() AS recovering, 1 + 1 AS two")
	if len(rows) != 1 || rows[0]["recovering"] != "f" || rows[0]["two"] != "2" {
		o.t.Errorf("on the leader: %v", rows)
	}
	if rows := o.records("query", "-r", "replica", "--command", "SELECT pg_is_in_recovery() AS recovering"); rows[0]["recovering"] != "t" {
		o.t.Errorf("on a replica: %v", rows)
	}
	o.ends(operator.ExitFailed, "nonsense", "", "query", "--command", "SELECT nonsense")
	if dsn := o.must("dsn"); !strings.HasPrefix(dsn, "host=") || !strings.HasSuffix(leader.Postgres, strings.TrimSpace(dsn[strings.LastIndex(dsn, "=")+1:])) {
		o.t.Errorf("dsn: %s, the leader is at %s", dsn, leader.Postgres)
	}
	for _, r := range o.records("version", o.shard.Name) {
		if r["Agent"] == nil || r["PostgreSQL"] == nil {
			o.t.Errorf("version: %v", r)
		}
	}
	if out := o.must("reload", o.shard.Name, leader.Name, "--force"); !strings.Contains(out, "Reload request received for member "+leader.Name) {
		o.t.Errorf("reload: %s", out)
	}
}

func testReinit(o *operatorSeat) {
	leader := o.healthy()
	replicas, err := o.shard.Replicas(o.ctx())
	if err != nil {
		o.t.Fatal(err)
	}
	o.ends(operator.ExitRefused, "leads", "", "reinit", o.shard.Name, leader.Name, "--force")
	o.ends(operator.ExitUsage, "not a member", "", "reinit", o.shard.Name, "ghost", "--force")
	out := o.must("reinit", o.shard.Name, replicas[0].Name, "--force", "--wait")
	if !strings.Contains(out, "Reinitialize is completed on "+replicas[0].Name) {
		o.t.Errorf("reinit: %s", out)
	}
	o.healthy()
}

func testFleetAndDoctor(o *operatorSeat) {
	leader := o.healthy()
	o.await(func() error {
		r := o.records("fleet")[0]
		if r["primary"] != leader.Name || r["replicas"] != "2/2" || r["route"] != "open" || r["bouncers"] != "1/1" || r["alarms"] != nil {
			return fmt.Errorf("fleet: %v", r)
		}
		if left, is := r["lease_left_ms"].(float64); !is || left <= 0 {
			return fmt.Errorf("lease: %v", r)
		}
		return nil
	})
	o.must("fleet", "--check", "--consul-only")
	r := o.run("", "doctor", "-o", "json", "--all")
	var findings []record
	if err := json.Unmarshal([]byte(r.out), &findings); err != nil || r.code != operator.ExitDone {
		o.t.Errorf("doctor of a healthy shard: exit code %d, %v", r.code, err)
	}
	areas := map[string]bool{}
	for _, f := range findings {
		areas[fmt.Sprint(f["area"])] = true
		if f["level"] == "problem" {
			o.t.Errorf("finding: %v", f)
		}
	}
	for _, area := range []string{"config", "consul", "agent", "postgresql", "bouncer"} {
		if !areas[area] {
			o.t.Errorf("doctor did not look at %s: %v", area, areas)
		}
	}
	if !strings.Contains(r.out, "PgBouncer 1.") {
		o.t.Errorf("doctor does not tell PgBouncer's version: %s", r.out)
	}
	o.must("doctor")

	// What the agent's own role has says nothing of what commits wait for.
	own := func(change string) {
		o.must("query", "--role", "leader", "--command", "ALTER ROLE CURRENT_USER "+change)
	}
	own("SET synchronous_commit = 'local'")
	out := o.run("", "doctor").out
	own("RESET synchronous_commit")
	if strings.Contains(out, "synchronous_commit is local") || !strings.Contains(out, "a synchronous_commit of its own: role ") {
		o.t.Errorf("doctor takes its own session's synchronous_commit for the server's: %s", out)
	}
}

func testFailover(o *operatorSeat) {
	old := o.healthy()
	w := o.shard.StartWorkload(o.ctx(), lab.WorkloadOptions{})
	defer w.Stop()
	o.writes(w)
	if err := old.Kill(o.ctx()); err != nil {
		o.t.Fatal(err)
	}
	next, err := o.shard.AwaitLeader(o.ctx(), old)
	if err != nil {
		o.t.Fatal(err)
	}
	o.writes(w)
	w.Stop()
	var e record
	o.await(func() error {
		e = o.event("failover", "done", old.Name+" -> "+next.Name)
		if e["first_write_ms"] == nil {
			return fmt.Errorf("no first write: %v", e)
		}
		return nil
	})
	if !ordered(e, "noticed_ms", "elected_ms", "promoted_ms", "routed_ms") ||
		!strings.Contains(fmt.Sprint(e["cause"]), "no sign of life from "+old.Name) {
		o.t.Errorf("event: %v", e)
	}
	o.must("events")
	o.await(func() error {
		if r := o.run("", "fleet", "--check"); r.code != operator.ExitFindings {
			return errors.New("the fleet shows no alarm for a lost member")
		}
		return nil
	})
	if r := o.run("", "doctor"); r.code != operator.ExitFindings || !strings.Contains(r.out, "->") {
		o.t.Errorf("doctor finds no problem: %d", r.code)
	}
	if err := old.Start(o.ctx()); err != nil {
		o.t.Fatal(err)
	}
	o.healthy()
	o.event("member back", "<nil>", old.Name)
}

// An operator need not wait until the others find out that a leader is lost: the
// leader's REST API is gone, so the request goes by way of Consul.
func testForcedFailover(o *operatorSeat) {
	old := o.healthy()
	snapshot, err := o.shard.Snapshot(o.ctx())
	if err != nil {
		o.t.Fatal(err)
	}
	standby := snapshot.Sync.Value.Standbys()[0]
	o.ends(operator.ExitUsage, "needs --candidate", "", "failover", "--force")
	if err := old.Kill(o.ctx()); err != nil {
		o.t.Fatal(err)
	}
	if out := o.must("failover", "--candidate", standby, "--force"); !strings.Contains(out, standby+" leads") {
		o.t.Errorf("failover: %s", out)
	}
	o.overridden(old, standby)
}

// A host that is lost for ever while it promotes leaves a key sync that names only it: no
// other member leads by itself, and each says why (docs/runbooks/no-leader.md).
func testLostPromotion(o *operatorSeat) {
	old := o.healthy()
	if err := old.Kill(o.ctx()); err != nil {
		o.t.Fatal(err)
	}
	if err := o.lab.Consul(o.ctx(), func(ctx context.Context, client *api.Client) error {
		alone := &api.KVPair{Key: o.shard.Keys.Sync(), Value: []byte(`{"leader":"` + old.Name + `","quorum":0,"sync_standby":null}`)}
		_, err := client.KV().Put(alone, (&api.WriteOptions{}).WithContext(ctx))
		return err
	}); err != nil {
		o.t.Fatal(err)
	}
	candidate := ""
	for _, m := range o.shard.Members() {
		if m.Name == old.Name {
			continue
		}
		candidate = m.Name
		o.await(func() error {
			_, body, err := m.Get(o.ctx(), "/patroni")
			if want := "nobody leads; is not a synchronous standby of " + old.Name; err == nil && !strings.Contains(string(body), want) {
				err = fmt.Errorf("%s does not say %q", m.Name, want)
			}
			return err
		})
	}
	r := o.run("", "failover", "--candidate", candidate, "--force")
	if r.code != operator.ExitDone || !strings.Contains(r.out, candidate+" leads") || !strings.Contains(r.err, "is no synchronous standby") {
		o.t.Errorf("failover: %d %s %s", r.code, r.out, r.err)
	}
	o.overridden(old, candidate)
}

// When nobody leads, and a lease that its owner has not released would keep everybody
// waiting for minutes, an operator who takes the responsibility need not wait.
func testOverrideLease(o *operatorSeat) {
	old := o.healthy()
	o.must("edit-config", "--set", "ttl=300", "--force")
	o.await(func() error {
		snapshot, err := o.shard.Snapshot(o.ctx())
		if err != nil {
			return err
		}
		if b := snapshot.Status.Value.Lictor; b == nil || b.Lease() != 300*time.Second {
			return fmt.Errorf("no beat with the new lease: %+v", b)
		}
		return nil
	})
	o.healthy()
	snapshot, err := o.shard.Snapshot(o.ctx())
	if err != nil {
		o.t.Fatal(err)
	}
	standby := snapshot.Sync.Value.Standbys()[0]
	if err := old.Kill(o.ctx()); err != nil {
		o.t.Fatal(err)
	}
	// The session follows ttl, too: which one it was in the end is seen now.
	if snapshot, err = o.shard.Snapshot(o.ctx()); err != nil {
		o.t.Fatal(err)
	}
	// Otherwise Consul would take as long as the lease to find out.
	if err := o.lab.Consul(o.ctx(), func(ctx context.Context, client *api.Client) error {
		_, err := client.Session().Destroy(snapshot.Leader.Session, (&api.WriteOptions{}).WithContext(ctx))
		return err
	}); err != nil {
		o.t.Fatal(err)
	}
	o.await(func() error {
		if list := o.must("list"); strings.Contains(list, "Leader") {
			return errors.New("the lock is still held")
		}
		return nil
	})
	r := o.run("", "failover", "--candidate", standby, "--force")
	if r.code != operator.ExitDone || !strings.Contains(r.out, standby+" leads") || !strings.Contains(r.err, "The lease of "+old.Name+" is overridden") ||
		!strings.Contains(r.err, "may still run as a primary") {
		o.t.Errorf("failover: %d %s %s", r.code, r.out, r.err)
	}
	o.must("edit-config", "--set", "ttl=5", "--force")
	o.overridden(old, standby)
}

// overridden demands that a failover that was asked for is told of, and stands when the
// old leader is back.
func (o *operatorSeat) overridden(old *lab.Member, standby string) {
	o.t.Helper()
	if e := o.event("failover", "done", old.Name+" -> "+standby); !strings.Contains(fmt.Sprint(e["cause"]), "an operator asked for a failover to "+standby) {
		o.t.Errorf("event: %v", e)
	}
	if err := old.Start(o.ctx()); err != nil {
		o.t.Fatal(err)
	}
	if now := o.healthy(); now.Name != standby {
		o.t.Errorf("%s leads", now.Name)
	}
}

func testRemove(o *operatorSeat) {
	leader := o.healthy()
	o.ends(operator.ExitRefused, "nothing was removed", "other\n", "remove", o.shard.Name)
	o.ends(operator.ExitRefused, "nothing was removed", o.shard.Name+"\nyes\n", "remove", o.shard.Name)
	for _, m := range o.shard.Members() {
		if err := m.Kill(o.ctx()); err != nil {
			o.t.Fatal(err)
		}
	}
	r := o.run(fmt.Sprintf("%s\nYes I am aware\n%s\n", o.shard.Name, leader.Name), "remove", o.shard.Name)
	if r.code != operator.ExitDone {
		o.t.Errorf("remove: %d", r.code)
	}
	o.ends(operator.ExitFailed, "there is no shard", "", "list", o.shard.Name)
	o.ends(operator.ExitFailed, "there is no shard", "", "events", o.shard.Name)
}
