package clients

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// One shard for all clients; each part leaves it whole.
func TestClients(t *testing.T) {
	s := newSite(t)
	t.Run("patronictl", func(t *testing.T) {
		t.Run("looks", s.looks)
		t.Run("queries", s.queries)
		t.Run("configuration", s.configuration)
		t.Run("restarts", s.restarts)
		t.Run("restarts later", s.restartsLater)
		t.Run("switches over", s.switchesOver)
		t.Run("switches over later", s.switchesOverLater)
		t.Run("fails over", s.failsOver)
		t.Run("reinitializes", s.reinitializes)
		t.Run("pauses", s.pauses)
	})
	t.Run("HAProxy follows the primary", s.haproxy)
	t.Run("psql follows the primary", s.psql)
	t.Run("strangers change nothing", s.strangers)
	if !s.patroni4 { // which does not know those words
		t.Run("patronictl, with Patroni 3's words", s.oldWords)
	}
	t.Run("patronictl removes", s.removes)
	t.Run("nothing else has happened", s.quiet)
}

// Nobody's PostgreSQL has ended but by what was asked for.
func (s *site) quiet(t *testing.T) {
	for _, m := range s.Members() {
		log, err := os.ReadFile(m.Process("agent").LogPath())
		must(t, err)
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "ended without being told to") || strings.Contains(line, "TWO PRIMARIES") || strings.Contains(line, "kill PostgreSQL") {
				t.Errorf("%s: %s", m.Name, line)
			}
		}
	}
}

func (s *site) looks(t *testing.T) {
	leader, standby := s.whole(t), s.standby(t)
	wants := []string{"Cluster: " + s.Name, "| Leader ", "| Sync Standby ", "| Replica "}
	for _, m := range s.Members() {
		wants = append(wants, m.Name)
	}
	s.ctl(t, wants, "list")
	lines := s.list(t)
	await(t, "a replica lags", func() error {
		lines = s.list(t)
		for _, l := range lines {
			if lag, is := l.Lag.(float64); is && lag > 0 {
				return fmt.Errorf("%+v", l)
			}
		}
		return nil
	})
	replicates := "running"
	if s.patroni4 {
		replicates = "streaming" // as members' records say it
	}
	for _, m := range s.Members() {
		want := line{Member: m.Name, Host: m.Address, Role: "Replica", State: replicates, TL: lines[leader.Name].TL, Lag: 0.0}
		switch m {
		case leader:
			want.Role, want.State, want.Lag = "Leader", "running", nil
		case standby:
			want.Role = "Sync Standby"
		}
		got := lines[m.Name]
		if got.Lag == "" {
			got.Lag = nil
		}
		if got != want {
			t.Errorf("list: %+v, want %+v", got, want)
		}
	}
	out := s.ctl(t, []string{"| " + leader.Name, "| + " + standby.Name}, "topology")
	if strings.Index(out, leader.Name) > strings.Index(out, standby.Name) {
		t.Error("topology does not begin with the leader")
	}
	version, err := value(t, leader, "SHOW server_version")
	must(t, err)
	version, _, _ = strings.Cut(version, " ")
	for _, m := range s.Members() {
		s.ctl(t, []string{m.Name + ": Patroni ", " PostgreSQL " + version}, "version", s.Name, m.Name)
	}
}

func (s *site) queries(t *testing.T) {
	leader := s.whole(t)
	s.ctl(t, []string{"host=" + leader.Address + " port=5432"}, "dsn")
	for _, m := range s.Members() {
		s.ctl(t, []string{"host=" + m.Address + " port=5432"}, "dsn", "-m", m.Name)
		recovering := "False"
		if m != leader {
			recovering = "True"
		}
		out := s.ctl(t, []string{recovering, m.Address}, "query", "-m", m.Name, "-d", "postgres",
			"--format", "tsv", "-c", "SELECT pg_is_in_recovery(), host(inet_server_addr())")
		if strings.Contains(out, "No connection") {
			t.Error("no connection")
		}
	}
	if out := s.ctl(t, []string{"host="}, "dsn", "-r", "replica"); strings.Contains(out, leader.Address+" ") {
		t.Errorf("the leader's DSN as a replica's")
	}
	for role, recovering := range map[string]string{"leader": "False", "primary": "False", "replica": "True"} {
		s.ctl(t, []string{recovering}, "query", "-r", role, "-d", "postgres", "-c", "SELECT pg_is_in_recovery()")
	}
}

func (s *site) configuration(t *testing.T) {
	s.ctl(t, []string{"synchronous_mode: true", "max_connections: 100"}, "show-config")
	out := s.ctl(t, []string{"+  ", "Configuration changed"}, "edit-config", "--force", "-p", "work_mem=7MB", "-s", "loop_wait=1")
	if !strings.Contains(out, "+loop_wait: 1") {
		t.Error("edit-config shows no difference")
	}
	for _, m := range s.Members() {
		awaitValue(t, m, "SHOW work_mem", "7MB")
	}
	// An editor that takes a key away and adds one.
	must(t, os.WriteFile(s.file("editor"), []byte("#!/bin/sh\nsed -i -e '/^loop_wait:/d' -e 's|work_mem: 7MB|work_mem: 8MB|' \"$1\"\n"), 0o755))
	s.ctl(t, []string{"-loop_wait: 1", "Configuration changed"}, "edit-config", "--force")
	for _, m := range s.Members() {
		awaitValue(t, m, "SHOW work_mem", "8MB")
	}
	if out := s.ctl(t, []string{"work_mem: 8MB"}, "show-config"); strings.Contains(out, "loop_wait") {
		t.Error("loop_wait was not taken away")
	}
	wants := []string{}
	for _, m := range s.Members() {
		wants = append(wants, "Reload request received for member "+m.Name)
	}
	s.ctl(t, wants, "reload", s.Name, "--force")
}

// starts are when PostgreSQL was started, by member.
func (s *site) starts(t *testing.T) map[string]string {
	t.Helper()
	starts := map[string]string{}
	for _, m := range s.Members() {
		starts[m.Name] = started(t, m)
	}
	return starts
}

// restarted names the members whose PostgreSQL was started since.
func (s *site) restarted(t *testing.T, before map[string]string) []string {
	t.Helper()
	names := []string{}
	for name, start := range s.starts(t) {
		if start != before[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func names(members []*lab.Member) []string {
	list := []string{}
	for _, m := range members {
		list = append(list, m.Name)
	}
	return list
}

func (s *site) restarts(t *testing.T) {
	leader := s.whole(t)
	replicas := slices.DeleteFunc(s.Members(), func(m *lab.Member) bool { return m == leader })
	before, lock := s.starts(t), s.lock(t)

	s.ctl(t, []string{"Success: restart on member " + leader.Name}, "restart", s.Name, leader.Name, "--force")
	same(t, "restarted", s.restarted(t, before), leader.Name)
	if now := s.lock(t); now != lock {
		t.Errorf("the lock changed hands: %+v, was %+v", now, lock)
	}
	s.whole(t)

	before = s.starts(t)
	s.ctl(t, []string{"Success: restart on member " + replicas[0].Name, "Success: restart on member " + replicas[1].Name},
		"restart", s.Name, "--role", "replica", "--force")
	same(t, "restarted", s.restarted(t, before), names(replicas)...)
	s.whole(t)

	// Not one that replay needs, max_connections for example: agents restart replicas
	// by themselves for those.
	s.ctl(t, []string{"Configuration changed"}, "edit-config", "--force", "-q", "-p", "shared_buffers=24MB")
	for _, m := range s.Members() {
		await(t, m.Name+" does not want to be restarted", func() error {
			if l := s.list(t)[m.Name]; l.Pending != "*" {
				return fmt.Errorf("%+v", l)
			}
			return nil
		})
	}
	before = s.starts(t)
	s.ctl(t, []string{"Success: restart on member " + leader.Name}, "restart", s.Name, "--role", "primary", "--pending", "--force")
	s.whole(t)
	same(t, "restarted", s.restarted(t, before), leader.Name)
	wants := []string{"Success: restart on member " + replicas[0].Name, "Success: restart on member " + replicas[1].Name}
	if !s.patroni4 { // which does not even ask a member that need not be restarted
		wants = append(wants, "restart conditions are not satisfied")
	}
	s.ctl(t, wants, "restart", s.Name, "--pending", "--force")
	s.whole(t)
	same(t, "restarted", s.restarted(t, before), names(s.Members())...)
	for _, m := range s.Members() {
		awaitValue(t, m, "SHOW shared_buffers", "24MB")
	}
	s.ctl(t, []string{"restart conditions are not satisfied"}, "restart", s.Name, leader.Name, "--pg-version", "12.0", "--force")
}

// lock is who leads since when.
func (s *site) lock(t *testing.T) string {
	t.Helper()
	snapshot, err := s.Snapshot(within(t))
	must(t, err)
	return snapshot.LeaderName() + " " + snapshot.Leader.Session
}

// soon is a time a little ahead as operators write it.
func soon(d time.Duration) string { return time.Now().Add(d).Format("2006-01-02T15:04:05-07:00") }

// later schedules something a little ahead; on a busy machine patronictl may take
// longer than that until it asks, and is run again with more.
func (s *site) later(t *testing.T, ahead time.Duration, want string, args ...string) {
	t.Helper()
	for ; ; ahead *= 2 {
		all := append(append([]string{"-c", s.file("patronictl.yml")}, args...), "--scheduled", soon(ahead), "--force")
		switch out, err := s.run(t, "", s.patronictl, all...); {
		case err == nil && strings.Contains(out, want):
			return
		case !strings.Contains(out, "in the past") || ahead > time.Minute:
			t.Fatalf("patronictl %s does not say %q: %v", args[0], want, err)
		}
	}
}

func (s *site) restartsLater(t *testing.T) {
	leader := s.whole(t)
	replica := s.standby(t)
	before := s.starts(t)

	s.ctl(t, []string{"Success: restart scheduled on member " + replica.Name}, "restart", s.Name, replica.Name, "--scheduled", "2099-01-01T00:00:00+00:00", "--force")
	await(t, "the scheduled restart is not listed", func() error {
		if l := s.list(t)[replica.Name]; l.Scheduled != "2099-01-01T00:00:00+00:00" {
			return fmt.Errorf("%+v", l)
		}
		return nil
	})
	code, body, err := replica.Get(within(t), "/patroni")
	if err != nil || code != 200 || !strings.Contains(string(body), `"scheduled_restart":{"schedule":"2099-01-01T00:00:00+00:00"}`) {
		t.Errorf("GET /patroni: %d %s, %v", code, body, err)
	}
	// --force replaces a restart that is scheduled already; without it there are questions.
	out, err := s.run(t, "y\n\n", s.patronictl, "-c", s.file("patronictl.yml"), "restart", s.Name, replica.Name, "--scheduled", "2099-01-02T00:00:00+00:00")
	if err != nil || !strings.Contains(out, "another restart is already scheduled on member "+replica.Name) {
		t.Errorf("a second scheduled restart: %v", err)
	}
	s.ctl(t, []string{"Success: flush scheduled restart for member " + replica.Name}, "flush", s.Name, replica.Name, "restart", "--force")

	for _, m := range []*lab.Member{replica, leader} {
		s.later(t, 7*time.Second, "Success: restart scheduled on member "+m.Name, "restart", s.Name, m.Name)
	}
	// The plan outlives the agent.
	must(t, replica.Process("agent").Kill(within(t)))
	must(t, replica.Process("agent").Start())
	await(t, "the scheduled restarts do not happen", func() error {
		if got := s.restarted(t, before); len(got) != 2 {
			return fmt.Errorf("restarted: %q", got)
		}
		return nil
	})
	same(t, "restarted", s.restarted(t, before), leader.Name, replica.Name)
	if now := s.whole(t); now != leader {
		t.Errorf("the leader is %s, was %s", now.Name, leader.Name)
	}
	for _, l := range s.list(t) {
		if l.Scheduled != "" {
			t.Errorf("still scheduled: %+v", l)
		}
	}
}

func (s *site) switchesOver(t *testing.T) {
	leader, standby := s.whole(t), s.standby(t)
	s.ctl(t, []string{`Successfully switched over to "` + standby.Name + `"`}, "switchover", s.Name, "--leader", leader.Name, "--candidate", standby.Name, "--force")
	if now := s.whole(t); now != standby {
		t.Errorf("the leader is %s, not %s", now.Name, standby.Name)
	}
	// As people do it: with questions, to anybody.
	out, err := s.run(t, standby.Name+"\n\nnow\ny\n", s.patronictl, "-c", s.file("patronictl.yml"), "switchover", s.Name)
	if err != nil || !strings.Contains(out, "Successfully switched over to") {
		t.Errorf("switchover with questions: %v", err)
	}
	if now := s.whole(t); now == standby {
		t.Errorf("%s leads still", now.Name)
	}
	out = s.ctl(t, []string{"no recovery target specified"}, "history")
	for _, m := range []*lab.Member{standby, s.whole(t)} {
		if !strings.Contains(out, m.Name) {
			t.Errorf("the history does not name %s", m.Name)
		}
	}
}

func (s *site) switchesOverLater(t *testing.T) {
	leader, standby := s.whole(t), s.standby(t)
	s.ctl(t, []string{"Switchover scheduled", "Switchover scheduled at: 2099-01-01T00:00:00+00:00", "to: " + standby.Name},
		"switchover", s.Name, "--leader", leader.Name, "--candidate", standby.Name, "--scheduled", "2099-01-01T00:00:00+00:00", "--force")
	s.ctl(t, []string{"Switchover scheduled at: 2099-01-01T00:00:00+00:00", "from: " + leader.Name}, "list")
	s.ctl(t, []string{"scheduled switchover deleted"}, "flush", s.Name, "switchover")
	if out := s.ctl(t, nil, "list"); strings.Contains(out, "Switchover scheduled") {
		t.Error("the switchover is still scheduled")
	}
	s.later(t, 3*time.Second, "Switchover scheduled", "switchover", s.Name, "--leader", leader.Name, "--candidate", standby.Name)
	got, err := s.AwaitLeader(within(t), leader)
	must(t, err)
	if got != standby {
		t.Errorf("the leader is %s, not %s", got.Name, standby.Name)
	}
	s.whole(t)
	if out := s.ctl(t, nil, "list"); strings.Contains(out, "Switchover scheduled") {
		t.Error("the switchover is still scheduled")
	}
}

func (s *site) failsOver(t *testing.T) {
	standby := s.standby(t)
	s.ctl(t, []string{`Successfully failed over to "` + standby.Name + `"`}, "failover", s.Name, "--candidate", standby.Name, "--force")
	if now := s.whole(t); now != standby {
		t.Errorf("the leader is %s, not %s", now.Name, standby.Name)
	}
}

func (s *site) reinitializes(t *testing.T) {
	leader := s.whole(t)
	replica := s.standby(t)
	marker := replica.DataDir + "/of-the-old-directory"
	must(t, os.WriteFile(marker, nil, 0o644))
	s.ctl(t, []string{"Success: reinitialize for member " + replica.Name, "Reinitialize is completed on: " + replica.Name}, "reinit", s.Name, replica.Name, "--force", "--wait")
	if _, err := os.Stat(marker); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data directory is the old one: %v", err)
	}
	if now := s.whole(t); now != leader {
		t.Errorf("the leader is %s, was %s", now.Name, leader.Name)
	}
	// The REST API shows how far it is.
	replica = s.standby(t)
	if status, body := s.rest(t, replica, "POST", "/reinitialize", `{"from_leader":true}`, true); status != 200 || body != "reinitialize started" {
		t.Errorf("POST /reinitialize: %d %s", status, body)
	}
	if _, body := s.rest(t, replica, "GET", "/patroni", "", false); !strings.Contains(body, `"state":"creating replica"`) || !strings.Contains(body, `"task":{"kind":"reinitialize"`) {
		t.Errorf("GET /patroni: %s", body)
	}
	if now := s.whole(t); now != leader {
		t.Errorf("the leader is %s, was %s", now.Name, leader.Name)
	}
	out, err := s.run(t, "", s.patronictl, "-c", s.file("patronictl.yml"), "reinit", s.Name, leader.Name, "--force")
	if err == nil && strings.Contains(out, "Success") {
		t.Error("the leader was reinitialized")
	}
}

func (s *site) pauses(t *testing.T) {
	leader := s.whole(t)
	s.ctl(t, []string{"Success: cluster management is paused"}, "pause", s.Name, "--wait")
	s.ctl(t, []string{"Maintenance mode: on"}, "list")
	snapshot, err := s.Snapshot(within(t))
	must(t, err)
	for _, m := range snapshot.Members {
		if !m.Value.Pause {
			t.Errorf("%s does not say that it is paused", m.Value.Name)
		}
	}
	for _, args := range [][]string{
		{"restart", s.Name, leader.Name, "--scheduled", "2099-01-01T00:00:00+00:00", "--force"},
		{"switchover", s.Name, "--scheduled", "2099-01-01T00:00:00+00:00", "--force"},
	} {
		out, err := s.run(t, "", s.patronictl, append([]string{"-c", s.file("patronictl.yml")}, args...)...)
		if err == nil || !strings.Contains(out, "Can't schedule "+args[0]+" in the paused state") {
			t.Errorf("%s in pause: %v", args[0], err)
		}
	}
	before := s.starts(t)
	s.ctl(t, []string{"Success: restart on member " + leader.Name}, "restart", s.Name, leader.Name, "--force")
	same(t, "restarted", s.restarted(t, before), leader.Name)
	s.ctl(t, []string{"Success: cluster management is resumed"}, "resume", s.Name, "--wait")
	if out := s.ctl(t, nil, "list"); strings.Contains(out, "Maintenance") {
		t.Error("still paused")
	}
	if now := s.whole(t); now != leader {
		t.Errorf("the leader is %s, was %s", now.Name, leader.Name)
	}
}

// Every unsafe request needs the credentials, and no answer holds a secret.
func (s *site) strangers(t *testing.T) {
	leader := s.whole(t)
	for _, request := range []string{"POST /restart", "DELETE /restart", "POST /reinitialize", "POST /switchover", "POST /failover", "DELETE /switchover", "PATCH /config", "PUT /config", "POST /reload", "POST /failsafe"} {
		method, path, _ := strings.Cut(request, " ")
		if status, body := s.rest(t, leader, method, path, `{"ttl":9}`, false); status != 401 || body != "no auth header received" {
			t.Errorf("%s: %d %s", request, status, body)
		}
	}
	for _, path := range []string{"/patroni", "/cluster", "/config", "/history", "/metrics", "/primary"} {
		code, body, err := leader.Get(within(t), path)
		if err != nil || code != 200 {
			t.Errorf("GET %s: %d, %v", path, code, err)
		}
		for _, hidden := range []string{secret, s.lab.Secrets.Superuser, s.lab.Secrets.Replication, s.lab.Secrets.Rewind} {
			if strings.Contains(string(body), hidden) {
				t.Errorf("GET %s tells a password", path)
			}
		}
	}
}

// A fleet whose tools know Patroni 3 alone sets compat: patroni-3.
func (s *site) oldWords(t *testing.T) {
	ctx := within(t)
	leader := s.whole(t)
	for _, m := range s.Members() {
		path := m.Dir + "/agent.yml"
		content, err := os.ReadFile(path)
		must(t, err)
		changed := strings.Replace(string(content), "lictor:\n", "lictor:\n    compat: patroni-3\n", 1)
		if changed == string(content) {
			t.Fatalf("no section lictor in %s", path)
		}
		must(t, s.lab.WriteFile(path, []byte(changed), 0o600))
		must(t, m.Process("agent").Kill(ctx)) // its PostgreSQL goes on
		must(t, m.Process("agent").Start())
	}
	await(t, "the leader does not use the old word", func() error {
		snapshot, err := s.Snapshot(ctx)
		if err != nil {
			return err
		}
		if m, _ := snapshot.Member(leader.Name); m.Value.Role != cluster.RoleMaster {
			return fmt.Errorf("its role is %q", m.Value.Role)
		}
		return nil
	})
	if now := s.whole(t); now != leader {
		t.Errorf("the leader is %s, was %s", now.Name, leader.Name)
	}
	s.ctl(t, []string{"| Leader ", "| Sync Standby ", "| Replica "}, "list")
	s.ctl(t, []string{"host=" + leader.Address}, "dsn", "-r", "master")
	before := s.starts(t)
	s.ctl(t, []string{"Success: restart on member " + leader.Name}, "restart", s.Name, "--role", "master", "--force")
	same(t, "restarted", s.restarted(t, before), leader.Name)
	standby := s.standby(t)
	s.ctl(t, []string{`Successfully switched over to "` + standby.Name + `"`}, "switchover", s.Name, "--master", leader.Name, "--candidate", standby.Name, "--force")
	s.whole(t)
}

func (s *site) removes(t *testing.T) {
	ctx := within(t)
	leader := s.whole(t)
	for _, m := range append(slices.DeleteFunc(s.Members(), func(m *lab.Member) bool { return m == leader }), leader) {
		must(t, m.Process("agent").Stop(ctx))
	}
	out, err := s.run(t, s.Name+"\nYes I am aware\n", s.patronictl, "-c", s.file("patronictl.yml"), "remove", s.Name)
	must(t, err)
	if strings.Contains(out, "Error") {
		t.Error("not removed")
	}
	snapshot, err := s.Snapshot(ctx)
	must(t, err)
	if snapshot.Initialize.Exists() || snapshot.Config.Exists() || len(snapshot.Members) > 0 {
		t.Errorf("left over: %+v", snapshot)
	}
}
