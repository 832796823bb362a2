package config

import (
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

const severalProcesses = `
consul: {host: 127.0.0.1:8500}
pgbouncer:
  peers: [a.example:6432, a.example:6432, b.example:6432]
  peer_id: 1
  settings: {max_client_conn: 500, logfile: /var/log/pgbouncer.log}
  processes:
    - {admin: "/run/pgbouncer/1:6432", config: /etc/pgbouncer/1.ini, settings: {pidfile: /run/pgbouncer/1/pid}}
    - {admin: "/run/pgbouncer/2:6432", config: /etc/pgbouncer/2.ini, settings: {pidfile: /run/pgbouncer/2/pid, max_client_conn: 100}}
`

// Every process has what is its own, and what all have.
func TestProcesses(t *testing.T) {
	c, warnings, err := loadText(t, severalProcesses, settings.Source{})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if !c.IsBeside() || c.Listed() || c.StateFile != "/etc/pgbouncer/1.ini.routes.json" {
		t.Errorf("beside %v, listed %v, state file %s", c.IsBeside(), c.Listed(), c.StateFile)
	}
	each := c.Each()
	if len(each) != 2 {
		t.Fatalf("%d processes", len(each))
	}
	newest := pgbouncer.Version{1, 26, 1}
	value := func(c Config, name string) string {
		list := c.Settings(newest)
		if i := slices.IndexFunc(list, func(s NamedSetting) bool { return s.Name == name }); i >= 0 {
			return list[i].Value
		}
		return ""
	}
	for i, want := range []map[string]string{
		{
			"unix_socket_dir": "/run/pgbouncer/1", "pidfile": "/run/pgbouncer/1/pid", "peer_id": "1", "max_client_conn": "500",
			"so_reuseport": "1", "listen_port": "6432", "logfile": "/var/log/pgbouncer.log", "auth_file": "/etc/pgbouncer/userlist.txt",
		},
		{"unix_socket_dir": "/run/pgbouncer/2", "pidfile": "/run/pgbouncer/2/pid", "peer_id": "2", "max_client_conn": "100", "so_reuseport": "1"},
	} {
		if !each[i].Listed() || !each[i].IsBeside() {
			t.Errorf("process %d: listed %v, beside %v", i, each[i].Listed(), each[i].IsBeside())
		}
		for name, want := range want {
			if got := value(each[i], name); got != want {
				t.Errorf("process %d: %s is %q, want %q", i, name, got, want)
			}
		}
		peers := []Peer{{1, "/run/pgbouncer/1", 6432}, {2, "/run/pgbouncer/2", 6432}, {3, "b.example", 6432}}
		if got := each[i].Peers(newest); !reflect.DeepEqual(got, peers) {
			t.Errorf("process %d: peers are %v", i, got)
		}
	}
	// Alone on their host they are each other's peers.
	c.PgBouncer.Peers, c.PgBouncer.PeerID = nil, 0
	if got := c.Each()[1].Peers(newest); len(got) != 2 || got[0].Host != "/run/pgbouncer/1" || value(c.Each()[1], "peer_id") != "2" {
		t.Errorf("peers are %v", got)
	}
	if list := c.Each()[1].Settings(pgbouncer.Version{1, 18, 0}); slices.ContainsFunc(list, func(s NamedSetting) bool { return s.Name == "peer_id" }) {
		t.Error("1.18 gets a peer_id, which it does not know")
	}
}

// What several processes cannot share is refused, and so is one alone that may share its port.
func TestProcessesAreRefused(t *testing.T) {
	for name, test := range map[string]struct{ old, new, want string }{
		"shared without a list": {
			severalProcesses, "pgbouncer: {config: /etc/p.ini, admin: 127.0.0.1:6432, settings: {so_reuseport: 1}}", "pgbouncer.settings.so_reuseport: lets several processes",
		},
		"both":          {"  peer_id: 1", "  peer_id: 1\n  config: /etc/p.ini\n  admin: 127.0.0.1:6432", "pgbouncer.admin: must not be set together with pgbouncer.processes"},
		"command":       {"  peer_id: 1", "  peer_id: 1\n  command: [pgbouncer]", "pgbouncer.command: must not be set together"},
		"an address":    {`"/run/pgbouncer/2:6432"`, `"127.0.0.1:6432"`, "pgbouncer.processes[1].admin: must be the directory"},
		"no admin":      {`admin: "/run/pgbouncer/2:6432", `, "", "pgbouncer.processes[1].admin: must be the directory"},
		"another port":  {"/run/pgbouncer/2:6432", "/run/pgbouncer/2:6433", "pgbouncer.processes[1].admin: must have the port of the others, 6432"},
		"one directory": {"/run/pgbouncer/2:6432", "/run/pgbouncer/1:6432", "pgbouncer.processes[1].admin: is already that of pgbouncer.processes[0]"},
		"one file":      {"/etc/pgbouncer/2.ini", "/etc/pgbouncer/1.ini", "pgbouncer.processes[1].config: is already that of pgbouncer.processes[0]"},
		"relative file": {"/etc/pgbouncer/2.ini", "2.ini", "pgbouncer.processes[1].config: must be an absolute path"},
		"one pidfile":   {"{max_client_conn: 500,", "{pidfile: /run/p.pid,", "pgbouncer.settings.pidfile: must be set in the settings of each"},
		"socket":        {"{max_client_conn: 500,", "{unix_socket_dir: /run,", "pgbouncer.settings.unix_socket_dir: must not be set"},
		"own socket":    {"max_client_conn: 100", "unix_socket_dir: /run", "pgbouncer.processes[1].settings.unix_socket_dir: must not be set"},
		"not shared":    {"{max_client_conn: 500,", "{so_reuseport: 0,", "pgbouncer.settings.so_reuseport: must be on"},
		"one is not":    {"max_client_conn: 100", "so_reuseport: off", "pgbouncer.processes[1].settings.so_reuseport: must be on"},
		"own setting":   {"max_client_conn: 100", "max_client_con: 100", "pgbouncer.processes[1].settings.max_client_con: PgBouncer has no such setting"},
		"place":         {"peer_id: 1", "peer_id: 3", "pgbouncer.peer_id: must be the place"},
		"the same file": {"pgbouncer:\n", "files: [{template: userlist.txt.ctmpl, path: /etc/pgbouncer/2.ini}]\npgbouncer:\n", "files[0].path: must be an absolute path, and not pgbouncer.config"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(severalProcesses, test.old, test.new, 1)
			_, _, err := loadText(t, text, settings.Source{})
			path, rule, _ := strings.Cut(test.want, ": ")
			if err == nil || !strings.Contains(err.Error(), path+": ") || !strings.Contains(err.Error(), rule) {
				t.Errorf("error is %v, want %s", err, test.want)
			}
		})
	}
}

func TestIsBeside(t *testing.T) {
	want := map[string]bool{
		"/run/postgresql:6432": true, "localhost:6432": true, "127.0.0.1:6432": true, "[::1]:6432": true,
		"203.0.113.7:6432": false, "pooler1.example:6432": false,
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		want[net.JoinHostPort(a.(*net.IPNet).IP.String(), "6432")] = true
	}
	for admin, want := range want {
		if got := (Config{PgBouncer: PgBouncer{Admin: admin}}).IsBeside(); got != want {
			t.Errorf("%s: %v", admin, got)
		}
	}
}
