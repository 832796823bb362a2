package adoption

import (
	"strings"
	"testing"
)

// fitting is a primary with which nothing is wrong.
func fitting() Found {
	return Found{
		Version: 150014, DataDirectory: "/data", HBAFile: "/etc/pg/pg_hba.conf", ClusterName: "orders",
		HBA: []string{"host replication replicator 10.0.0.0/8 scram-sha-256"}, Roles: []Role{{Name: "replicator"}},
		InForce: map[string]string{
			"wal_level": "replica", "max_wal_senders": "10", "max_replication_slots": "10", "max_connections": "100", "max_worker_processes": "8",
			"max_prepared_transactions": "0", "max_locks_per_transaction": "64", "wal_log_hints": "off", "data_checksums": "on", "full_page_writes": "on",
			"track_commit_timestamp": "off", "recovery_min_apply_delay": "0", "synchronous_standby_names": "", "stats_temp_directory": "pg_stat_tmp",
		},
	}
}

// What does not fit is found, and whether it stops an agent.
func TestFindings(t *testing.T) {
	t.Parallel()
	if all := fitting().Findings(); len(all) != 0 {
		t.Errorf("nothing is wrong: %v", all)
	}
	standby := func(f *Found) { f.Standby, f.Upstream = true, Upstream{Host: "db1", Slot: "db2", Streaming: true} }
	for _, c := range []struct {
		name  string
		spoil func(*Found)
		want  string
	}{
		{"old", func(f *Found) { f.Version = 110022 }, "problem: PostgreSQL 11.22 is older than 12; upgrade it first"},
		{"Lictor's already", func(f *Found) { f.Agent = true }, "problem: an agent of Lictor's runs this PostgreSQL already; use that agent's file"},
		{"no role", func(f *Found) { f.Roles = nil }, "problem: no role may log in and replicate; CREATE ROLE"},
		{"superusers only", func(f *Found) { f.Roles = []Role{{"postgres", true}} }, "note: only superusers replicate (postgres)"},
		{"hba has no replication", func(f *Found) { f.HBA = []string{"host all all 10.0.0.0/8 scram-sha-256"} }, "lets nobody replicate from another host"},
		{"hba has it for this host", func(f *Found) { f.HBA = []string{"host replication all 127.0.0.1/32 scram-sha-256"} }, "lets nobody replicate from another host"},
		{"hba rejects it", func(f *Found) { f.HBA = []string{"host replication all 10.0.0.0/8 reject"} }, "lets nobody replicate from another host"},
		{"hba is broken", func(f *Found) { f.HBAProblems = []string{"line 7: invalid"} }, "problem: /etc/pg/pg_hba.conf has lines that PostgreSQL does not take (line 7: invalid)"},
		{"old sync names", func(f *Found) { f.InForce["synchronous_standby_names"] = "*" }, `problem: synchronous_standby_names is "*"`},
		{"logical slots", func(f *Found) { f.LogicalSlots = []string{"cdc"} }, "note: the logical slots cdc are not carried to replicas"},
		{"standby of nobody", func(f *Found) { standby(f); f.Upstream.Host = "" }, "problem: this standby's primary_conninfo has no host"},
		{"standby that does not stream", func(f *Found) { standby(f); f.Upstream.Streaming = false }, "problem: this standby does not stream from db1"},
		{"standby without a slot", func(f *Found) { standby(f); f.Upstream.Slot = "" }, "note: this standby has no replication slot"},
		{"standby that is delayed", func(f *Found) { standby(f); f.InForce["recovery_min_apply_delay"] = "60000" }, "note: this standby is delayed"},
		{"cluster_name", func(f *Found) { f.ClusterName = "15/main" }, `note: cluster_name is "15/main"`},
		{"wal_level", func(f *Found) { f.InForce["wal_level"] = "minimal" }, "problem: wal_level is minimal"},
		{"no rewind", func(f *Found) { f.InForce["data_checksums"] = "off" }, "note: neither data checksums nor wal_log_hints are on"},
		{"few connections", func(f *Found) { f.InForce["max_connections"] = "20" }, "note: max_connections is 20, which no member of a shard may have"},
		{"no sender left", func(f *Found) { f.InForce["max_wal_senders"] = "1"; f.Standbys = []Connected{{Name: "db2"}} }, "problem: max_wal_senders is 1 and all are taken"},
		{"statistics", func(f *Found) { f.InForce["stats_temp_directory"] = "/var/run/postgresql/13-main.pg_stat_tmp" }, "note: stats_temp_directory is"},
		{"tablespace", func(f *Found) { f.Tablespaces = []Tablespace{{"fast", "/ssd/fast"}} }, "note: the tablespace fast must have the place /ssd/fast on every member"},
		{"tablespace inside", func(f *Found) { f.Tablespaces = []Tablespace{{"fast", "/data/fast"}} }, "problem: the tablespace fast lies in the data directory"},
		{"another file", func(f *Found) { f.Settings = []Setting{{"work_mem", "7MB", "/etc/pg/conf.d/a.conf"}} }, "note: settings of /etc/pg/conf.d/a.conf stay where they are"},
		{"altered", func(f *Found) { f.Settings = []Setting{{"work_mem", "7MB", "/data/postgresql.auto.conf"}} }, "note: ALTER SYSTEM has set work_mem on this member alone"},
	} {
		f := fitting()
		c.spoil(&f)
		all := f.Findings()
		found := false
		for _, one := range all {
			found = found || strings.Contains(one.String(), c.want)
		}
		if !found {
			t.Errorf("%s: %v, want %s", c.name, all, c.want)
		}
	}
}

// What an agent would not take is not written into its file.
func TestOptionsAreChecked(t *testing.T) {
	good := Options{Scope: "orders", Name: "db1", Address: "10.0.0.1"}
	if _, err := fitting().Config(good); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*Options){
		"--scope": func(o *Options) { o.Scope = "a/b" }, "--name": func(o *Options) { o.Name = "" },
		"--address": func(o *Options) { o.Address = "10.0.0.1:5432 x" }, "--namespace": func(o *Options) { o.Namespace = "a//b" },
	} {
		o := good
		spoil(&o)
		if text, err := fitting().Config(o); err == nil || !strings.Contains(err.Error(), want+": ") {
			t.Errorf("%s: %v, %q", want, err, text)
		}
	}
}
