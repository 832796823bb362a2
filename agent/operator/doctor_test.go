package operator

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// judged checks that exactly one finding is not fine, that it says what it should,
// and what to do; an empty want means that all is fine.
func judged(t *testing.T, findings []Finding, level Level, want string) {
	t.Helper()
	var bad []Finding
	for _, f := range findings {
		if f.Level != Fine {
			bad = append(bad, f)
		}
	}
	switch {
	case want == "" && len(bad) == 0 && len(findings) > 0:
	case want != "" && len(bad) == 1 && strings.Contains(bad[0].What, want) && bad[0].Level == level && bad[0].Do != "":
	default:
		t.Errorf("got %+v of %d findings, want %s %q", bad, len(findings), level, want)
	}
}

func TestExamineConsul(t *testing.T) {
	healthy := func() consulFacts {
		return consulFacts{
			address: "http://c1:8500", leader: "10.0.0.1:8300", servers: []string{"10.0.0.1:8300", "10.0.0.2:8300", "10.0.0.3:8300"},
			election: 3 * time.Second, multiplier: 1, latency: time.Millisecond,
			autopilot: &consulapi.AutopilotConfiguration{CleanupDeadServers: true}, health: &consulapi.OperatorHealthReply{Healthy: true},
		}
	}
	for _, c := range []struct {
		name  string
		edit  func(*consulFacts)
		lease time.Duration
		hosts []string
		level Level
		want  string
	}{
		{name: "all is well"},
		{name: "slow elections", edit: func(f *consulFacts) { f.election, f.multiplier = 15*time.Second, 5 }, level: Worth, want: "raft_multiplier 5"},
		{name: "no access control", edit: func(f *consulFacts) { f.open = true }, level: Worth, want: "whoever reaches it"},
		{name: "a token without TLS", edit: func(f *consulFacts) { f.plain = true }, level: Worth, want: "token goes there without TLS"},
		{name: "slow", edit: func(f *consulFacts) { f.latency = time.Second }, level: Worth, want: "takes 1.0 s"},
		{name: "no leader", edit: func(f *consulFacts) { f.leader, f.servers, f.blind = "", nil, []string{"the keys (500)"} }, level: Wrong, want: "could not look at the keys"},
		{name: "a token that may not see", edit: func(f *consulFacts) { f.blind = []string{"autopilot"} }, level: Worth, want: "autopilot"},
		{name: "alone", edit: func(f *consulFacts) { f.servers = f.servers[:1] }, level: Wrong, want: "one server"},
		{name: "two", edit: func(f *consulFacts) { f.servers = f.servers[:2] }, level: Worth, want: "2 servers"},
		{name: "ill", edit: func(f *consulFacts) {
			f.health.Servers = []consulapi.ServerHealth{{Name: "c2", SerfStatus: "failed"}}
		}, level: Wrong, want: "not healthy"},
		{name: "on database hosts", hosts: []string{"10.0.0.2"}, level: Worth, want: "run on database hosts"},
		{name: "on database hosts, with a minimum", hosts: []string{"10.0.0.2"}, edit: func(f *consulFacts) { f.autopilot.MinQuorum = 3 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := healthy()
			if c.edit != nil {
				c.edit(&f)
			}
			judged(t, examineConsul([]consulFacts{f}, 8*time.Second, c.hosts), c.level, c.want)
		})
	}
}

// The doctor tells of the addresses to which its own token goes in plain text.
func TestDoctorTellsOfAPlainToken(t *testing.T) {
	refusing := httptest.NewServer(http.NotFoundHandler())
	defer refusing.Close()
	for token, want := range map[string]bool{"hush": true, "": false} {
		site, err := Connect(Settings{Consul: settings.Consul{Hosts: []string{refusing.URL, "https://127.0.0.1:1"}, Token: token}})
		if err != nil {
			t.Fatal(err)
		}
		all := site.lookAtConsul(t.Context())
		if len(all) != 2 || all[0].plain != want || all[1].plain {
			t.Errorf("with the token %q: %+v", token, all)
		}
	}
}

// leading makes the facts of a shard's leader as its REST API tells them.
func leading(t *testing.T, status string) memberFacts {
	t.Helper()
	snapshot := shardOf(nil)
	m := memberFacts{
		scope: "x", member: snapshot.Members[0].Value, leads: true,
		shard: fleetShard{scope: "x", snapshot: snapshot, dynamic: cluster.Dynamic{Timing: cluster.Timing{TTL: 8 * time.Second, LoopWait: 2 * time.Second}}},
	}
	if err := json.Unmarshal([]byte(status), &m.status); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestExamineMember(t *testing.T) {
	const dog = `"watchdog":{"mode":"required","device":"/dev/watchdog","working":true,"active":true}`
	for _, c := range []struct {
		name, status string
		level        Level
		want         string
	}{
		{"all is well", `{"state":"running","lictor":{"secrets":["s"],"lease_left_ms":7000,"loop_age_ms":10,"guard":{"running":true,"armed_for_ms":6000},` + dog + `}}`, Fine, ""},
		{"Patroni", `{"state":"running"}`, Worth, "runs Patroni"},
		{"no secret", `{"state":"running","lictor":{"lease_left_ms":7000,"guard":{"running":true},` + dog + `}}`, Wrong, "does not know the shard's secret"},
		{"hangs", `{"state":"running","lictor":{"secrets":["s"],"lease_left_ms":7000,"loop_age_ms":9000,"guard":{"running":true},` + dog + `}}`, Wrong, "last came round 9.0 s ago"},
		{"problems", `{"state":"running","lictor":{"secrets":["s"],"lease_left_ms":7000,"problems":["PostgreSQL refuses timezone"],"guard":{"running":true},` + dog + `}}`, Wrong, "refuses timezone"},
		{"the archive is at work", `{"state":"running","lictor":{"secrets":["s"],"lease_left_ms":7000,"loop_age_ms":10,"archiver":{"waiting":9,"waiting_ms":60000},"guard":{"running":true,"armed_for_ms":6000},` + dog + `}}`, Fine, ""},
		{"the archive hangs", `{"state":"running","lictor":{"secrets":["s"],"lease_left_ms":7000,"archiver":{"waiting":9,"waiting_ms":3600000},"guard":{"running":true},` + dog + `}}`, Wrong, "9 files of WAL wait for the archive, the first for 60 min"},
		{"no guard", `{"state":"running","lictor":{"secrets":["s"],"lease_left_ms":7000,"guard":{"running":false},` + dog + `}}`, Wrong, "without a guard"},
		{"no lease", `{"state":"running","lictor":{"secrets":["s"],"guard":{"running":true},` + dog + `}}`, Wrong, "holds no lease"},
		{"little left", `{"state":"running","lictor":{"secrets":["s"],"lease_left_ms":1500,"guard":{"running":true},` + dog + `}}`, Worth, "only 1.5 s"},
		{"failsafe", `{"state":"running","failsafe_mode_is_active":true,"lictor":{"secrets":["s"],"lease_left_ms":7000,"guard":{"running":true},` + dog + `}}`, Worth, "not on Consul"},
		{"two primaries", `{"state":"running","lictor":{"secrets":["s"],"lease_left_ms":7000,"guard":{"running":true},"other_primaries":["b"],` + dog + `}}`, Wrong, "b"},
		{"no watchdog", `{"state":"running","lictor":{"secrets":["s"],"lease_left_ms":7000,"guard":{"running":true}}}`, Worth, "no watchdog"},
		{"broken watchdog", `{"state":"running","watchdog_failed":true,"lictor":{"secrets":["s"],"lease_left_ms":7000,"guard":{"running":true},"watchdog":{"device":"/dev/watchdog","last_error":"busy"}}}`, Wrong, "busy"},
	} {
		t.Run(c.name, func(t *testing.T) { judged(t, examineMember(leading(t, c.status)), c.level, c.want) })
	}
	promised := leading(t, `{"state":"running","failsafe_mode_is_active":true,"lictor":{"secrets":["s"],"guard":{"running":true},`+dog+`}}`)
	promised.leads = false
	for _, f := range examineMember(promised) {
		if strings.Contains(f.What, "not on Consul") {
			t.Errorf("a member that has promised has no lease: %+v", f)
		}
	}
	silent := leading(t, `{}`)
	silent.statusErr = errors.New("connection refused")
	judged(t, examineMember(silent), Wrong, "connection refused")
}

func TestExaminePostgres(t *testing.T) {
	healthy := func() *sqlFacts {
		return &sqlFacts{
			Settings: map[string]string{
				"fsync": "on", "full_page_writes": "on", "wal_level": "replica", "max_wal_senders": "10", "max_replication_slots": "10",
				"wal_log_hints": "on", "data_checksums": "off", "max_slot_wal_keep_size": "10240", "server_version": "15.4",
			},
			Senders: []senderFact{{Name: "b", State: "streaming"}, {Name: "c", State: "streaming"}},
			Slots:   []slotFact{{Name: "b", Active: true, Retained: 2 << 30}},
		}
	}
	for _, c := range []struct {
		name  string
		edit  func(*sqlFacts)
		level Level
		want  string
	}{
		{name: "all is well", edit: func(*sqlFacts) {}},
		{"in recovery", func(f *sqlFacts) { f.Recovering = true }, Wrong, "in recovery"},
		{"fsync", func(f *sqlFacts) { f.Settings["fsync"] = "off" }, Wrong, "fsync is off"},
		{"nobody is waited for", func(f *sqlFacts) { f.Settings["synchronous_commit"] = "local" }, Wrong, "synchronous_commit is local: commits wait for no standby"},
		{"roles and databases that wait for nobody", func(f *sqlFacts) {
			f.Unwaiting = []ownCommit{{Role: "loader", Value: "off"}, {Role: "app", Database: "logs", Value: "local"}, {Database: "cache", Value: "remote_write"}}
		}, Worth, "a synchronous_commit of its own: role loader: off, role app in database logs: local, database cache: remote_write"},
		{"rewind", func(f *sqlFacts) { f.Settings["wal_log_hints"] = "off" }, Worth, "pg_rewind cannot work"},
		{"senders", func(f *sqlFacts) { f.Settings["max_wal_senders"] = "3" }, Wrong, "max_wal_senders is 3"},
		{"slots", func(f *sqlFacts) { f.Settings["max_replication_slots"] = "2" }, Wrong, "max_replication_slots is 2"},
		{"full disk", func(f *sqlFacts) { f.Settings["max_slot_wal_keep_size"] = "-1" }, Worth, "fill the disk"},
		{"forgotten slot", func(f *sqlFacts) { f.Slots[0].Active = false }, Worth, "nobody reads slot b, which keeps 2048 MB"},
		{"lost slot", func(f *sqlFacts) { f.Slots[0].Status = "lost" }, Wrong, "has lost WAL"},
		{"a replica that does not stream", func(f *sqlFacts) { f.Senders = f.Senders[:1] }, Wrong, "c does not stream"},
		{"a replica that catches up", func(f *sqlFacts) { f.Senders[1].State = "catchup" }, Worth, "c is in state catchup"},
		{"ALTER SYSTEM", func(f *sqlFacts) { f.Altered = []string{"work_mem"} }, Worth, "ALTER SYSTEM has set work_mem"},
		{"clock", func(f *sqlFacts) { f.skew = -3 * time.Second }, Worth, "off by 3.0 s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := leading(t, `{}`)
			m.shard.dynamic.SynchronousMode = cluster.SyncOn
			m.sql = healthy()
			c.edit(m.sql)
			judged(t, examinePostgres(m), c.level, c.want)
		})
	}
	for role, want := range map[string]string{cluster.RoleStandbyLeader: "", cluster.RolePrimary: "it has the lock, but PostgreSQL is in recovery"} {
		m := leading(t, `{}`)
		m.member.Role, m.sql = role, healthy()
		m.sql.Recovering = true
		judged(t, examinePostgres(m), Wrong, want)
	}
	silent := leading(t, `{}`)
	silent.sqlErr = errors.New("connection refused")
	judged(t, examinePostgres(silent), Wrong, "connection refused")
}

// What is found of several members is told once to people, and of each to programs.
func TestTogether(t *testing.T) {
	one := func(subject, what string) Finding { return Finding{Worth, "agent", subject, what, "mend it"} }
	findings := []Finding{one("s1/a", "no watchdog"), one("s1/a", "slow"), one("s1/b", "no watchdog"), one("s2/a", "no watchdog"), one("s2", "no watchdog"), one("s2", "no watchdog")}
	got := together(findings)
	if len(got) != 2 || got[0].Subject != "s1/a, b\ns2/a\ns2" || got[1].Subject != "s1/a" {
		t.Errorf("%+v", got)
	}
	for format, want := range map[Format]int{Pretty: 1, JSON: 5} {
		var out strings.Builder
		if err := report(&Console{Out: &out, Err: &out, Format: format}, findings, DoctorOptions{}); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(out.String(), "no watchdog"); n != want {
			t.Errorf("%s: told %d times, want %d:\n%s", format, n, want, out.String())
		}
	}
}

func TestSkew(t *testing.T) {
	began := time.Now()
	ended := began.Add(time.Second)
	for at, want := range map[time.Duration]time.Duration{500 * time.Millisecond: 0, -2 * time.Second: -2 * time.Second, 4 * time.Second: 3 * time.Second} {
		if got := skew(began.Add(at), began, ended); got != want {
			t.Errorf("%s: %s, want %s", at, got, want)
		}
	}
}

func TestReport(t *testing.T) {
	var out strings.Builder
	c := &Console{Out: &out, Err: &out, Format: Pretty}
	findings := []Finding{{Level: Fine, What: "fine"}, {Level: Worth, What: "worth", Do: "this"}}
	if err := report(c, findings, DoctorOptions{}); err != nil || !strings.Contains(out.String(), "-> this") || strings.Contains(out.String(), "ok ") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if err := report(c, append(findings, Finding{Level: Wrong}), DoctorOptions{}); ExitCode(err) != ExitFindings {
		t.Error(err)
	}
	out.Reset()
	if err := report(c, findings[:1], DoctorOptions{}); err != nil || !strings.Contains(out.String(), "1 check fine") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// What an agent only warns of in its log, the doctor tells.
func TestDoctorTellsWarningsOfTheDynamicConfiguration(t *testing.T) {
	d, warnings, err := cluster.Rules{LowerTiming: true}.Parse(map[string]any{"ttl": 8, "loop_wait": 5, "retry_timeout": 3, "synchronous_mode": true, "postgresql": map[string]any{"use_slot": true}})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, f := range examineShard(fleetShard{scope: "x", dynamic: d, warnings: warnings}) {
		if f.Level == Worth {
			told = append(told, f.What)
		}
	}
	all := strings.Join(told, "; ")
	for _, want := range []string{"in force: ttl 8, loop_wait 2, retry_timeout 3", "postgresql.use_slot: is not a known setting and has no effect; did you mean use_slots?"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not told in %q", want, all)
		}
	}
}

// A bouncer that leaves it to TCP to free clients is told of; one of an older Lictor, which
// does not say, is not.
func TestExamineFreeing(t *testing.T) {
	for frees, want := range map[string]string{
		cluster.FreesByTimeout: "tcp_user_timeout is 30 s", cluster.FreesBySockets: "by sockets", cluster.FreesByKill: "by kill_client", "": "",
	} {
		d := diagnosis{}
		examineFreeing(&d, cluster.Bouncer{Name: "b1", Frees: frees})
		said, level := "", Fine
		for _, f := range d.findings {
			said, level = said+f.What, f.Level
		}
		if (want == "") != (said == "") || !strings.Contains(said, want) || (level == Worth) != (frees == cluster.FreesByTimeout) {
			t.Errorf("%q: %v %q", frees, level, said)
		}
	}
}
