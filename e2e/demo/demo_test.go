package demo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// haproxyPooler is what users of Patroni put beside PgBouncer: an HAProxy that
// asks every member whether it is the primary.
type haproxyPooler struct{}

func (haproxyPooler) Install(l *lab.Lab, b *lab.Bouncer) ([]lab.Spec, error) {
	var config strings.Builder
	config.WriteString("defaults\n  mode tcp\n  timeout connect 1s\n  timeout check 1s\n  timeout client 1h\n  timeout server 1h\n")
	var databases []string
	for i, s := range l.Shards() {
		address, err := b.ListenAddress(7000 + i)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&config, "listen %s\n  bind %s\n  option httpchk GET /primary\n", s.Name, address)
		for _, m := range s.Members() {
			_, port, _ := strings.Cut(m.REST, ":")
			fmt.Fprintf(&config, "  server %s %s check inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions port %s\n", m.Name, m.Postgres, port)
		}
		host, port, _ := strings.Cut(address, ":")
		databases = append(databases, fmt.Sprintf("%s = host=%s port=%s", s.Name, host, port))
	}
	path := filepath.Join(b.Dir, "routes.cfg")
	if err := l.WriteFile(path, []byte(config.String()), 0o644); err != nil {
		return nil, err
	}
	pgbouncer, err := b.PgBouncerSpec(databases...)
	router := lab.Spec{Name: "haproxy", Path: l.Options.Programs.HAProxy, Args: []string{"-db", "-f", path}, Unprivileged: true}
	return []lab.Spec{router, pgbouncer}, err
}

func (haproxyPooler) Health(*lab.Bouncer) string { return "" }

// onPatroni puts Patroni, with timing that a test can wait for, in Lictor's place.
func onPatroni(o Options) Options {
	o.TTL = 20
	o.database = lab.Patroni{Edit: func(_ *lab.Member, config map[string]any) {
		dcs := config["bootstrap"].(map[string]any)["dcs"].(map[string]any)
		dcs["loop_wait"], dcs["retry_timeout"] = 1, 3
	}}
	o.pooler = haproxyPooler{}
	return o
}

// passableDir is a temporary directory that PostgreSQL's user can pass.
func passableDir(t *testing.T) string {
	t.Helper()
	top := t.TempDir()
	for dir := top; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return top
}

// TestOnceOnPatroni runs the whole of --once on software whose behaviour is
// known: the report has the specified form, its figures make sense, and nothing
// is left behind.
func TestOnceOnPatroni(t *testing.T) {
	if _, err := os.Stat("/usr/bin/patroni"); err != nil {
		t.Skip("Patroni is not installed")
	}
	parent := passableDir(t)
	report, dir := filepath.Join(parent, "report.json"), filepath.Join(parent, "demo")
	var out bytes.Buffer
	err := Run(t.Context(), onPatroni(Options{Once: true, Report: report, Dir: dir, Out: &out}))
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var got Report
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Shards != 2 || got.StartupMS <= 0 || len(got.Scenarios) != 1 {
		t.Fatalf("%+v", got)
	}
	r := got.Scenarios[0]
	if r.Name != hostLoss || r.Shard != "shard1" || r.OldPrimary == "" || r.NewPrimary == "" || r.OldPrimary == r.NewPrimary ||
		r.LostAcked != 0 || r.Acked == 0 || r.ClientErrors == 0 || r.WriteGapMS < 1000 || r.RecoveredMS < r.WriteGapMS/2 {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the demo's directory after its end: %v", err)
	}
}

func TestChoose(t *testing.T) {
	if got, err := choose(""); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := choose("all"); err != nil || len(got) != len(scenarios()) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := choose("switchover"); err != nil || len(got) != 1 || got[0].name != "switchover" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := choose("earthquake"); err == nil || !strings.Contains(err.Error(), hostLoss) {
		t.Errorf("an unknown scenario: %v", err)
	}
	keys := map[byte]string{'q': "quit"}
	for _, s := range scenarios() {
		if keys[s.key] != "" {
			t.Errorf("key %c breaks %s and %s", s.key, s.name, keys[s.key])
		}
		keys[s.key] = s.name
	}
}

// A report that could not be written is told before anything is started.
func TestReportThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	for path, wrong := range map[string]bool{
		filepath.Join(dir, "missing", "report.json"): true, dir: true, filepath.Join(dir, "report.json"): false,
	} {
		if err := (Options{Report: path}).withDefaults().Check(); (err != nil) != wrong {
			t.Errorf("%s: %v", path, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}

func TestReportHasTheSpecifiedForm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	want := Report{Shards: 2, StartupMS: 1, Scenarios: []Result{{Name: "n", Shard: "shard1", WriteGapMS: 2, ClientErrors: 3, Acked: 4, LostAcked: 5, RecoveredMS: 6, OldPrimary: "a", NewPrimary: "b"}}}
	if err := writeReport(path, want); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, content); err != nil {
		t.Fatal(err)
	}
	const form = `{"shards":2,"startup_ms":1,"scenarios":[{"name":"n","shard":"shard1","write_gap_ms":2,"client_errors":3,"acked":4,"lost_acked":5,"recovered_ms":6,"old_primary":"a","new_primary":"b"}]}`
	if compact.String() != form {
		t.Errorf("got  %s\nwant %s", compact.String(), form)
	}
}

func testScreen() screen {
	return screen{
		picture: picture{
			shards: []shardPicture{{
				name: "shard1", written: 1000, failed: 3, perSecond: 99, waiting: 2 * time.Second,
				members: []memberPicture{
					{name: "shard1-db1", address: "127.0.0.1:5001", role: "primary", state: "running", timeline: 4, lease: 6500 * time.Millisecond},
					{name: "shard1-db2", address: "127.0.0.1:5002", role: "sync replica", state: "running", timeline: 4, lag: 20480, lease: -1},
					{name: "shard1-db3", address: "127.0.0.1:5003", silent: true, lease: -1},
				},
			}},
			poolers: []poolerPicture{{name: "pooler1", healthy: true, routes: map[string]string{"shard1": "shard1-db1"}}},
		},
		now: 65 * time.Second, connect: []string{"connect with psql"},
	}
}

func TestScreenShowsWhatMatters(t *testing.T) {
	s := testScreen()
	s.events = []string{"an event"}
	s.height = 100
	got := strings.Join(s.lines(), "\n")
	for _, want := range []string{
		"0:01:05", "shard1-db1", "primary", "6.5 s", "sync replica", "20 kB", "does not answer", "99 writes/s", "3 errors",
		"no write for 2.0 s", "shard1 -> shard1-db1", "connect with psql", "host-loss", "an event",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "\x1b") {
		t.Error("colours though none were asked for")
	}
	s.busy = "host-loss on shard1"
	if got := strings.Join(s.lines(), "\n"); !strings.Contains(got, "under way: host-loss on shard1") {
		t.Error("the scenario under way is not shown")
	}
}

func TestScreenFitsTheTerminal(t *testing.T) {
	s := testScreen()
	s.colours, s.width, s.height = true, 40, 12
	for range 50 {
		s.events = append(s.events, strings.Repeat("long ", 30))
	}
	lines := s.lines()
	if len(lines) > s.height {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		visible := 0
		for i := 0; i < len(line); i++ {
			if line[i] == '\x1b' {
				i += strings.IndexByte(line[i:], 'm')
				continue
			}
			visible++
		}
		if visible > s.width {
			t.Errorf("%d characters: %q", visible, line)
		}
		if strings.Count(line, "\x1b[")%2 != 0 {
			t.Errorf("a colour is not ended: %q", line)
		}
	}
}

func TestReadBouncer(t *testing.T) {
	p, err := readBouncer([]byte(`{"name":"pooler1","health":{"healthy":false,"reasons":["draining"]},
		"shards":{"service/shard1":{"leader":"a","state":"open"},"a/b/shard2":{"leader":"b","state":"promoting","held":true},"service/shard3":{"leader":"c","state":"down"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"shard1": "a", "shard2": "b (clients wait)", "shard3": "c (down)"}
	if p.healthy || p.note != "draining" || !maps.Equal(p.routes, want) {
		t.Errorf("%+v", p)
	}
	if _, err := readBouncer([]byte(`[]`)); err == nil {
		t.Error("a list was understood")
	}
}
