package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/e2e/docs"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// evil is what a terminal acts on: colours, the title, a cleared screen, an answer that is
// typed for the person, characters that turn text around, C1 controls, a line of its own.
const evil = "\x1b[95mEVIL\x1b]0;title\x07\x1b[2J\x1b[6n\u202e\u2066\u200f\u009b31m\u0085\x7f\x08\rspoof"

// hostileShard is a shard as a member of it may leave it in Consul that wishes ill to
// whoever looks. Each value is text where it is not encoded.
func hostileShard(keys cluster.Keys, memberAPI string) (values map[string]any, held []string) {
	huge := strings.Repeat("x\x1b[31m", 4_000)
	when := time.Now().UTC()
	member := func(change func(*cluster.Member)) cluster.Member {
		m := cluster.Member{
			ConnURL: "postgres://127.0.0.1:1/postgres", APIURL: memberAPI, State: cluster.StateRunning, Role: cluster.RoleReplica, Version: "0.1.0",
			Tags: map[string]any{"replicatefrom": evil, evil: evil, "note": huge}, XLogLocation: 1, Timeline: 1,
			PendingRestart: true, PendingRestartReason: map[string]cluster.PendingChange{evil: {OldValue: evil, NewValue: huge}},
			ScheduledRestart: map[string]any{"schedule": evil, "postgres_version": evil}, ReplayStandsStill: evil, ReplicationState: evil,
		}
		change(&m)
		return m
	}
	null := evil + "," + huge
	bouncer := func(name string) cluster.Bouncer {
		return cluster.Bouncer{
			Name: name, URL: "http://127.0.0.1:1", Version: evil, All: true, Shards: []string{evil},
			Applied: map[string]cluster.BouncerShard{
				"service/" + keys.Scope(): {Leader: evil, Timeline: 3, State: cluster.RouteState(evil), VerifiedAt: &when},
				"service/" + evil:         {Leader: huge, State: cluster.RouteState(huge)},
			},
		}
	}
	values = map[string]any{
		keys.Initialize():                  evil,
		keys.Leader():                      "db1",
		keys.Config():                      map[string]any{"ttl": evil, evil: huge, "postgresql": map[string]any{"parameters": map[string]any{"work_mem": evil, evil: 1}}},
		keys.Status():                      cluster.Status{OpTime: 5 << 30, Lictor: &cluster.Beat{LeaseMS: 1, Number: 1, Owner: evil}},
		keys.Sync():                        cluster.Sync{Leader: evil, SyncStandby: &null},
		keys.Failover():                    cluster.Failover{Leader: evil, Candidate: evil, ScheduledAt: &when},
		keys.Failsafe():                    map[string]string{evil: evil},
		keys.History():                     cluster.History{{Timeline: 1, LSN: 1, Reason: evil, Time: evil, NewLeader: evil}, {Timeline: 2, LSN: 1, Reason: huge, Time: huge, NewLeader: huge}},
		keys.Events():                      events.Log{Version: 1, Events: []events.Event{{At: when, Kind: events.Kind(evil), By: evil, Outcome: events.Outcome(evil), From: evil, To: evil, Cause: evil + huge}}},
		keys.Route():                       map[string]any{"version": 1, "state": evil, "leader": map[string]any{"name": evil, "host": evil + huge, "port": 1}},
		keys.Member("db1"):                 member(func(m *cluster.Member) { m.Role = cluster.RolePrimary }),
		keys.Member("db2"):                 member(func(m *cluster.Member) { m.Role, m.State, m.Version = evil, evil, evil }),
		keys.Member("db3"):                 member(func(m *cluster.Member) { m.Role, m.State, m.Version = huge, huge, huge }),
		keys.Member("db4"):                 member(func(m *cluster.Member) { m.ConnURL, m.APIURL = "postgres://"+evil, "http://"+evil }),
		keys.Member("x" + evil):            member(func(*cluster.Member) {}),
		keys.Member("--x"):                 member(func(m *cluster.Member) { m.APIURL = huge }),
		"service/y" + evil + "/initialize": "7",
		keys.Bouncers() + "b1":             bouncer("b1"),
		keys.Bouncers() + evil:             bouncer(evil),
	}
	return values, []string{keys.Leader(), keys.Bouncers() + "b1", keys.Bouncers() + evil}
}

// hostileAnswer is what a member answers who is asked for its shard (lictor backup run), or
// somebody at the port of a bouncer.
func hostileAnswer(path string) any {
	by := map[string]any{"by": evil, "since": time.Now()}
	switch path {
	case "/cluster":
		return map[string]any{"members": []any{
			map[string]any{"name": evil, "role": "leader", "state": evil}, map[string]any{"name": "--" + evil, "role": "replica", "state": strings.Repeat(evil, 4_000)},
		}}
	case "/pause":
		return map[string]any{"shard": evil, "paused": by, "warning": evil}
	case "/resume", "/release":
		return map[string]any{"shard": evil, "held": true, "warning": strings.Repeat(evil, 4_000)}
	case "/status":
		return map[string]any{"name": evil, "shards": map[string]any{evil: map[string]any{"operator_pause": by, "paused": true, "leader": evil}}, "problems": map[string]any{evil: evil}}
	}
	return nil
}

func seedHostile(ctx context.Context, c *api.Client, values map[string]any, held []string) error {
	session, _, err := c.Session().CreateNoChecks(&api.SessionEntry{}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		text, isText := values[key].(string)
		encoded := []byte(text)
		if !isText {
			if encoded, err = json.Marshal(values[key]); err != nil {
				return err
			}
		}
		op := &api.KVTxnOp{Verb: api.KVSet, Key: key, Value: encoded}
		if slices.Contains(held, key) {
			op.Verb, op.Session = api.KVLock, session
		}
		if ok, answer, _, err := c.Txn().Txn(api.TxnOps{{KV: op}}, (&api.QueryOptions{}).WithContext(ctx)); err != nil || !ok {
			return errors.Join(err, errors.New(key), errors.New(op.Key), errorOf(answer))
		}
	}
	return nil
}

// everyCommand fails for a command of the program's that is not among those that are run.
func everyCommand(t *testing.T, run [][]string) {
	t.Helper()
	dir := t.TempDir()
	if err := docs.WriteCommands(dir); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "lictor_*.md"))
	if err != nil || len(pages) < 30 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	others := map[string]string{
		"agent": "its log: TestLinesAreShownSafely in agent/logging", "bouncer": "so it is", "backup": "it has commands of its own",
		"completion": "it reads nothing", "completion bash": "nor", "completion fish": "nor", "completion powershell": "nor", "completion zsh": "nor",
		"sample-config": "it reads nothing", "generate-config": "it reads PostgreSQL, as its superuser: TestLook in agent/adoption",
	}
	for _, page := range pages {
		command := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(page), "lictor_"), ".md"), "_", " ")
		_, other := others[command]
		if !other && !slices.ContainsFunc(run, func(args []string) bool { return strings.HasPrefix(strings.Join(args, " ")+" ", command+" ") }) {
			t.Errorf("lictor %s is not run", command)
		}
	}
}

func errorOf(answer *api.TxnResponse) error {
	if answer == nil || len(answer.Errors) == 0 {
		return nil
	}
	return errors.New(answer.Errors[0].What)
}

// Whatever stands in Consul and whatever members answer: nothing that a terminal acts on
// comes out of any command, and no line is longer than a person reads.
func TestNothingHostileReachesATerminal(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l := labtest.New(t, lab.Options{Bouncers: -1, ConsulServers: 1})
	if err := l.StartConsul(ctx); err != nil {
		t.Fatal(err)
	}
	member := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Lictor-Reason", "because \x9b31m of \u202e")
		if answer := hostileAnswer(r.URL.Path); answer != nil {
			_ = json.NewEncoder(w).Encode(answer)
			return
		}
		if r.Method != http.MethodGet {
			w.WriteHeader(http.StatusPreconditionFailed)
			_, _ = w.Write([]byte(evil + strings.Repeat("z", 500_000)))
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"state": evil, "role": evil, "server_version": 150003, "timeline": 1, "patroni": map[string]any{"version": evil, "name": evil, "scope": evil},
			"lictor": map[string]any{"leads": true, "reason": evil}, "pending_restart_reason": map[string]any{evil: map[string]any{"old_value": evil, "new_value": evil}},
		})
	}))
	defer member.Close()
	keys := cluster.NewKeys("", "h", "")
	values, held := hostileShard(keys, member.URL+"/patroni")
	if err := seedHostile(ctx, l.ConsulServers()[0].Client(), values, held); err != nil {
		t.Fatal(err)
	}
	bouncerFile := filepath.Join(t.TempDir(), "bouncer.yml")
	if err := os.WriteFile(bouncerFile, []byte("listen: "+strings.TrimPrefix(member.URL, "http://")+"\npgbouncer: {config: /nowhere/pgbouncer.ini}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	commands := [][]string{
		{"list"},
		{"list", "h", "--extended"},
		{"list", "h"},
		{"topology", "h"},
		{"fleet"},
		{"fleet", "--alarms"},
		{"doctor", "h", "--all"},
		{"doctor"},
		{"events", "h"},
		{"history", "h"},
		{"show-config", "h"},
		{"edit-config", "h", "--set", "ttl=9", "--force"},
		{"edit-config", "h", "--set", "ttl=9"},
		{"switchover", "h", "--force"},
		{"switchover", "h", "--candidate", "db2"},
		{"switchover", "h", "--leader", evil},
		{"switchover", "h", "--candidate", evil},
		{"failover", "h", "--candidate", "db2", "--force"},
		{"failover", "h", "--candidate", "db2"},
		{"restart", "h", "db2", "--force"},
		{"restart", "h", "db2"},
		{"reload", "h", "--force"},
		{"reinit", "h", "db2", "--force"},
		{"reinit", "h", "db2"},
		{"reinit", "h", "x" + evil, "--force"},
		{"pause", "h"},
		{"resume", "h"},
		{"query", "h", "-c", "select 1"},
		{"query", "h", "select 1"},
		{"dsn", "h"},
		{"dsn", "h", "--member", "db4"},
		{"flush", "h", "restart", "--force"},
		{"flush", "h", "switchover", "--force"},
		{"version", "h"},
		{"routes"},
		{"routes", "--json"},
		{"remove", "h"},
		{"list", "y" + evil},
		{"list", "nobody" + evil},
		{"list", "--namespace", evil},
		{"list", "-c", evil},
		{"list", "--" + strings.ReplaceAll(evil, "\x00", "")},
		{"__complete", "list", ""},
		{"__complete", "reinit", "h", ""},
		{evil},
		{"validate", evil},
		{"bouncer", "status", evil},
		{"bouncer", "status", bouncerFile},
		{"bouncer", "drain", bouncerFile},
		{"bouncer", "pause", bouncerFile, "h"},
		{"bouncer", "resume", bouncerFile, "h"},
		{"bouncer", "release", bouncerFile, evil},
		{"bouncer", "undrain", bouncerFile},
		{"bouncer", "validate", evil},
		{"bouncer", "render", bouncerFile},
		{"backup", "run", "--stanza", "h", "--agent", member.URL, "--dry-run"},
		{"backup", "run", "--stanza", evil, "--agent", member.URL, "--dry-run"},
		{"backup", "verify", "--stanza", evil, "--scratch", evil, "--bin-dir", evil},
		{"evacuate", "127.0.0.1", "--force"},
		{"evacuate", "db1"},
		{"evacuate", evil},
		{"rebalance", "--force"},
		{"rebalance"},
		{"drill", "h", "--yes"},
		{"drill", "--all", "--kind", "host", "--cut", "false " + evil, "--restore", "false %h", "--yes", "--hosts", "127.0.0.1," + evil},
		{"drill", evil, "--probe", evil},
		{"drill", "h", "--probe", "host=127.0.0.1 port=1 dbname=" + evil},
		{"restore", "h", "--to", "2026-11-29T10:00:00+00:00", "--force"},
		{"restore", "h", "--to", evil},
		{"restore", evil, "--to", "2026-11-29T10:00:00+00:00", "--as", evil},
		{"upgrade", "h", "--to", "17", "--check"},
		{"upgrade", evil, "--to", "17", "--check", "--member", evil},
		{"rotate-secret", "h", "--force"},
		{"rotate-secret", "h"},
		{"demote-cluster", "h", "--host", evil, "--force"},
		{"demote-cluster", evil},
		{"promote-cluster", "h", "--force"},
		{"promote-cluster", evil},
		{"windows", "h"},
		{"windows", "h", "--for", evil},
		{"repack", "h", "--table", evil, "--check"},
		{"repack", "h", "--table", evil, "--database", evil, "--program", evil, "--force"},
		{"web", evil}, // what it serves: TestPage in e2e/web
	}
	everyCommand(t, commands)
	const plain = "bouncer backup web" // these know nothing of formats, nor of --consul
	for _, command := range commands {
		for _, format := range []string{"pretty", "json", "yaml", "tsv"} {
			args := slices.Clone(command)
			if strings.Contains(plain, args[0]) && format != "pretty" {
				break
			}
			if !strings.HasPrefix(args[0], "_") && !strings.Contains(plain, args[0]) {
				args = append(args, "--consul", l.ConsulHosts()[0])
			}
			if format != "pretty" {
				args = append(args, "-o", format)
			}
			limit, done := context.WithTimeout(ctx, 30*time.Second)
			cmd := exec.CommandContext(limit, program(l), args...)
			cmd.Stdin = strings.NewReader("db2\nn\n")
			out, _ := cmd.CombinedOutput() // many are refused
			if limit.Err() != nil {
				t.Errorf("%q does not end", args)
			}
			done()
			checkOutput(t, args, out, format == "pretty" && !slices.Contains(args, "--json"))
			if bytes.Contains(out, []byte("unknown flag")) || bytes.Contains(out, []byte("unknown shorthand")) {
				break // it has no formats
			}
		}
	}
	// With colours, which are the command's own.
	script, err := exec.LookPath("script")
	if err != nil {
		t.Skip("script is needed for a terminal")
	}
	colours := regexp.MustCompile(`\x1b\[(0|1|2|32|33|1;31)m`)
	for _, command := range []string{"list", "list h --extended", "fleet", "doctor h", "events h", "history h", "routes", "edit-config h --set ttl=9"} {
		cmd := exec.CommandContext(ctx, script, "-qec", program(l)+" "+command+" --consul "+l.ConsulHosts()[0], "/dev/null")
		cmd.Env = append(cmd.Environ(), "TERM=xterm", "NO_COLOR=")
		cmd.Stdin = strings.NewReader("n\n")
		out, _ := cmd.CombinedOutput()
		out = bytes.ReplaceAll(colours.ReplaceAll(out, nil), []byte("\r\n"), []byte("\n"))
		checkOutput(t, []string{"on a terminal:", command}, bytes.Trim(out, "\x04\x08"), true)
	}
}

// checkOutput asserts that all is printable, and in lines that a person reads.
func checkOutput(t *testing.T, args []string, out []byte, people bool) {
	t.Helper()
	shown := strings.ToValidUTF8(string(out), "\ufffd")
	if !utf8.Valid(out) {
		t.Errorf("%.100q: not UTF-8: %.300q", args, out)
	}
	for i, r := range shown {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			t.Errorf("%.100q: %U in %.300q", args, r, shown[max(0, i-100):])
			return
		}
	}
	for line := range strings.SplitSeq(shown, "\n") {
		if people && len(line) > 20_000 {
			t.Errorf("%.100q: a line of %d bytes: %.300q", args, len(line), line)
			return
		}
	}
}
