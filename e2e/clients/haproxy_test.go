package clients

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// haproxyConfig is what Patroni's users have: writes at 5000, reads at 5001, checks
// at 8008 with the method OPTIONS.
func (s *site) haproxyConfig() string {
	var c strings.Builder
	c.WriteString(`global
    maxconn 100
    log stdout format raw local0 info

defaults
    log global
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 4s
    timeout server 30m
    timeout check 5s
`)
	for _, l := range [][3]string{{"primary", "5000", "/master"}, {"replicas", "5001", "/replica"}} {
		fmt.Fprintf(&c, `
listen %s
    bind *:%s
    option httpchk OPTIONS %s
    http-check expect status 200
    default-server init-addr last,libc,none inter 1s fall 3 rise 2 on-marked-down shutdown-sessions
`, l[0], l[1], l[2])
		for _, m := range s.Members() {
			fmt.Fprintf(&c, "    server %s %s:5432 maxconn 100 check port 8008\n", m.Name, m.Address)
		}
	}
	return c.String()
}

func (s *site) haproxy(t *testing.T) {
	leader, standby := s.whole(t), s.standby(t)
	must(t, os.WriteFile(s.file("haproxy.cfg"), []byte(s.haproxyConfig()), 0o600))
	cmd := s.lab.Command(t.Context(), s.lab.Options.Programs.HAProxy, "-db", "-f", s.file("haproxy.cfg"))
	log, err := os.Create(s.file("haproxy.log"))
	must(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			content, _ := os.ReadFile(log.Name())
			t.Logf("HAProxy:\n%s", content)
		}
	})

	s.awaitPorts(t, leader)
	s.ctl(t, []string{"Successfully switched over"}, "switchover", s.Name, "--candidate", standby.Name, "--force")
	s.awaitPorts(t, standby)
	s.whole(t)
	s.awaitPorts(t, standby)
}

// awaitPorts waits until writes arrive at the leader, and reads at both replicas and
// nowhere else.
func (s *site) awaitPorts(t *testing.T, leader *lab.Member) {
	t.Helper()
	ask := func(port string) (string, error) {
		out, err := s.run(t, "", s.lab.Options.Programs.PostgresBin+"/psql", "-h", "127.0.0.1", "-p", port, "-d", "postgres", "-AtXc",
			"SELECT host(inet_server_addr()) || ' ' || pg_is_in_recovery()")
		return strings.TrimSpace(out), err
	}
	await(t, "writes do not arrive at "+leader.Name, func() error {
		got, err := ask("5000")
		if err == nil && got != leader.Address+" false" {
			err = fmt.Errorf("they arrive at %s", got)
		}
		return err
	})
	await(t, "reads do not arrive at both replicas", func() error {
		seen := map[string]bool{}
		for range 4 {
			got, err := ask("5001")
			if err != nil {
				return err
			}
			seen[got] = true
		}
		for _, m := range s.Members() {
			if seen[m.Address+" true"] == (m == leader) || seen[m.Address+" false"] {
				return fmt.Errorf("they arrive at %v", seen)
			}
		}
		return nil
	})
}

// psql is libpq's way: all members in one connection string.
func (s *site) psql(t *testing.T) {
	hosts := []string{}
	for _, m := range s.Members() {
		hosts = append(hosts, m.Address)
	}
	for _, wanted := range []struct{ attributes, recovering string }{{"read-write", "false"}, {"primary", "false"}, {"standby", "true"}} {
		dsn := "host=" + strings.Join(hosts, ",") + " port=5432 dbname=postgres target_session_attrs=" + wanted.attributes
		for range 2 {
			leader, next := s.whole(t), s.standby(t)
			out, err := s.run(t, "", s.lab.Options.Programs.PostgresBin+"/psql", dsn, "-AtXc", "SELECT host(inet_server_addr()) || ' ' || pg_is_in_recovery()")
			must(t, err)
			got := strings.TrimSpace(out)
			if wanted.recovering == "false" && got != leader.Address+" false" || !strings.HasSuffix(got, wanted.recovering) {
				t.Errorf("%s leads to %q; the leader is %s", wanted.attributes, got, leader.Address)
			}
			if wanted.attributes != "read-write" {
				break
			}
			s.ctl(t, []string{"Successfully switched over"}, "switchover", s.Name, "--candidate", next.Name, "--force")
		}
	}
}
