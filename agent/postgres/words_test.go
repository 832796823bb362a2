package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/pg"
)

func unwired(major int, local config.Postgres, dynamic cluster.DynamicPostgres) *Instance {
	p := assemble(&installation{scope: "shard", name: "a", dataDir: "/data", configDir: "/data", stateDir: "/state", major: major, log: zerolog.Nop()}, nil)
	p.local.Store(&local)
	p.dynamic.Postgres = dynamic
	return p
}

func TestParameters(t *testing.T) {
	tests := []struct {
		name           string
		major          int
		local, dynamic map[string]any
		want           map[string]string
		without        []string
	}{
		{
			name: "local wins, truth values, dots, numbers", major: 15,
			dynamic: map[string]any{"work_mem": "1MB", "pg_stat_statements.max": float64(500), "fsync": true},
			local:   map[string]any{"work_mem": "2MB"},
			want:    map[string]string{"work_mem": "2MB", "pg_stat_statements.max": "500", "fsync": "on", "password_encryption": "scram-sha-256"},
		},
		{
			name: "those of the command line and of recovery stay out", major: 15,
			dynamic: map[string]any{"Max_Connections": 7, "primary_conninfo": "x", "port": 1, "restore_command": "cp"},
			want:    map[string]string{"restore_command": "cp"},
			without: []string{"max_connections", "Max_Connections", "primary_conninfo", "port"},
		},
		{
			name: "null removes", major: 15, dynamic: map[string]any{"work_mem": "1MB"}, local: map[string]any{"work_mem": nil, "wal_keep_size": nil},
			without: []string{"work_mem", "wal_keep_size"},
		},
		{
			name: "wal_keep_segments on 15", major: 15, dynamic: map[string]any{"wal_keep_segments": 100},
			want: map[string]string{"wal_keep_size": "1600MB"}, without: []string{"wal_keep_segments"},
		},
		{name: "wal_keep_segments on 12", major: 12, want: map[string]string{"wal_keep_segments": "8"}, without: []string{"wal_keep_size"}},
		{name: "gone in 16", major: 16, local: map[string]any{"promote_trigger_file": "x", "force_parallel_mode": "on"}, without: []string{"promote_trigger_file", "force_parallel_mode"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := unwired(test.major, config.Postgres{Parameters: test.local}, cluster.DynamicPostgres{Parameters: test.dynamic}).parameters()
			for name, want := range test.want {
				if got[name] != want {
					t.Errorf("%s = %q, want %q", name, got[name], want)
				}
			}
			for _, name := range test.without {
				if value, found := got[name]; found {
					t.Errorf("%s = %q is there", name, value)
				}
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	dynamic := cluster.DynamicPostgres{Parameters: map[string]any{
		"max_connections": 24, "max_wal_senders": 12, "max_prepared_transactions": -1, "wal_level": "minimal", "track_commit_timestamp": true,
		"hot_standby": "off", "wal_log_hints": "off", "max_worker_processes": "many",
	}}
	local := config.Postgres{Parameters: map[string]any{"max_connections": 500}}
	p := unwired(15, local, dynamic)
	want := map[string]string{
		"max_connections": "100", "max_wal_senders": "12", "max_prepared_transactions": "0", "wal_level": "replica",
		"track_commit_timestamp": "on", "hot_standby": "on", "wal_log_hints": "on", "max_worker_processes": "8",
		"max_locks_per_transaction": "64", "max_replication_slots": "10", "track_activities": "on", "update_process_title": "on",
	}
	if got := p.commandLineValues(Primary, Control{}); !reflect.DeepEqual(got, want) {
		t.Errorf("primary: %v", got)
	}
	minima := Control{Minima: map[string]int{"max_connections": 300, "max_wal_senders": 5}}
	want["max_connections"] = "300"
	if got := p.commandLineValues(Replica, minima); !reflect.DeepEqual(got, want) {
		t.Errorf("replica: %v", got)
	}
	p = unwired(15, local, cluster.DynamicPostgres{Parameters: map[string]any{"wal_level": "hot_standby"}})
	if got := p.commandLineValues(Primary, Control{})["wal_level"]; got != "replica" {
		t.Errorf("wal_level: %s", got)
	}
}

func TestSynchronousStandbyNames(t *testing.T) {
	for want, names := range map[string][]string{"": nil, "*": {"*"}, `"a"`: {"a"}, `2 ("a","b""")`: {"a", `b"`}} {
		if got := syncStandbyNames(names); got != want {
			t.Errorf("%v: %s", names, got)
		}
	}
}

// What the user's parameters say of synchronous_standby_names is not taken for
// the agent's own promise after a restart.
func TestWhoseSynchronousStandbyNames(t *testing.T) {
	dir := newDir(t)
	file := dir + "/postgresql.conf"
	written := func(p *Instance) string {
		put(t, file, p.postgresqlConf(as{role: Primary}, p.parameters(), nil, p.hbaFile(nil), p.identFile(nil)))
		p.dataDir, p.configDir = dir, dir
		return p.readSyncNames()
	}
	p := unwired(15, config.Postgres{Parameters: map[string]any{"synchronous_standby_names": "theirs"}}, cluster.DynamicPostgres{})
	if got := written(p); got != "" {
		t.Errorf("the user's: %q", got)
	}
	p.syncNames = `2 ("it's","b")`
	if got := written(p); got != p.syncNames {
		t.Errorf("the agent's: %q", got)
	}
	put(t, file, "# Do not edit this file manually!\nsynchronous_standby_names = '\"node2\"'\n")
	if got := p.readSyncNames(); got != `"node2"` {
		t.Errorf("Patroni's: %q", got)
	}
}

func TestConninfo(t *testing.T) {
	p := unwired(15, config.Postgres{}, cluster.DynamicPostgres{})
	role := config.PgUser{Username: "it's", Password: secret, SSLMode: "verify-ca", SSLRootCert: "/my ca"}
	text := p.conninfo(Upstream{Name: "b", Host: "::1", Port: 5433}, role, "", "me")
	if strings.Contains(text, "s3cr") || !strings.Contains(text, `user='it\'s'`) || !strings.Contains(text, "sslrootcert='/my ca'") {
		t.Error(text)
	}
	for _, text := range []string{
		text, "host=::1 port=5433", "user=x host = '::1' port='5433' options='host=no'",
		"hostaddr=::1 port=5433", "postgresql://u:p@[::1]:5433/?sslmode=prefer", "postgres:///?host=::1&port=5433", "postgres://x@/?hostaddr=::1&port=5433",
	} {
		if host, port, err := conninfoAddress(text); err != nil || host != "::1" || port != 5433 {
			t.Errorf("%s: %s %d %v", text, host, port, err)
		}
	}
	if _, _, err := conninfoAddress("port=1"); err == nil {
		t.Error("without a host")
	}
}

func TestInitdbOptions(t *testing.T) {
	got, err := initdbOptions([]any{"data-checksums", map[string]any{"encoding": "UTF8"}, map[string]any{"allow-group-access": true, "debug": false}})
	if want := []string{"--data-checksums", "--encoding=UTF8", "--allow-group-access"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v", got, err)
	}
	for _, option := range []any{"nosync", "pgdata=/x", "--pwfile=x", map[string]any{"version": nil}, "sync-only", 7} {
		if _, err := initdbOptions([]any{option}); err == nil {
			t.Errorf("%v is taken", option)
		}
	}
}

func TestDivergedFrom(t *testing.T) {
	history := cluster.History{{Timeline: 1, LSN: 1000}, {Timeline: 2, LSN: 2000}}
	tests := []struct {
		name     string
		control  Control
		timeline int
		want     bool
	}{
		{"shut down before the fork", Control{State: "shut down", CheckpointLSN: 900}, 1, false},
		{"shut down beyond", Control{State: "shut down", CheckpointLSN: 1000}, 1, true},
		{"standby replayed up to the fork", Control{State: "shut down in recovery", CheckpointLSN: 800, MinRecovery: 1000}, 1, false},
		{"standby replayed beyond", Control{State: "shut down in recovery", CheckpointLSN: 800, MinRecovery: 1001}, 1, true},
		{"crashed standby on the second timeline", Control{State: "in archive recovery", CheckpointLSN: 1500, MinRecovery: 1900}, 2, false},
		{"crashed primary", Control{State: "in production", CheckpointLSN: 900}, 1, false},
		{"timeline unknown upstream", Control{State: "shut down"}, 3, true},
	}
	for _, test := range tests {
		if got := divergedFrom(history, test.control, test.timeline); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func TestParseHistory(t *testing.T) {
	got, err := pg.ParseHistory("1\t0/4000000\tno recovery target specified\n\n# x\n2\tA/B\tbefore 2000-01-01 00:00:00+00\n")
	want := cluster.History{{Timeline: 1, LSN: 0x4000000, Reason: "no recovery target specified"}, {Timeline: 2, LSN: 0xA0000000B, Reason: "before 2000-01-01 00:00:00+00"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	for _, bad := range []string{"x\t0/1\ty", "1", "1\tzz\ty"} {
		if _, err := pg.ParseHistory(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if pg.FormatLSN(0xA0000000B) != "A/B" {
		t.Error(pg.FormatLSN(0xA0000000B))
	}
}

func TestSleepsWithoutSIGHUP(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tpostgres\nState:\tS (sleeping)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n": true,
		"State:\tS (sleeping)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000001\n":                  false,
		"State:\tT (stopped)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n":                   false,
		"State:\tR (running)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n":                   false,
		"": false,
	} {
		if got := sleepsWithoutSIGHUP(status); got != want {
			t.Errorf("%q: %v", status, got)
		}
	}
}

func TestSCRAMVerifier(t *testing.T) {
	text, err := scramVerifier("pencil")
	must(t, err)
	parts := strings.FieldsFunc(text, func(r rune) bool { return r == '$' || r == ':' })
	if len(parts) != 5 || parts[0] != "SCRAM-SHA-256" || parts[1] != "4096" {
		t.Fatal(text)
	}
	salt, err := base64.StdEncoding.DecodeString(parts[2])
	must(t, err)
	salted, err := pbkdf2.Key(sha256.New, "pencil", salt, 4096, 32)
	must(t, err)
	mac := hmac.New(sha256.New, salted)
	mac.Write([]byte("Server Key"))
	if parts[4] != base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		t.Error(text)
	}
}
