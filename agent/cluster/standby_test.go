package cluster

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseStandbyCluster(t *testing.T) {
	for value, want := range map[string]StandbyCluster{
		`{}`:                                 {},
		`{"standby_cluster":null}`:           {},
		`{"standby_cluster":{}}`:             {},
		`{"standby_cluster":{"host":"db9"}}`: {Host: "db9", Port: 5432},
		`{"standby_cluster":{"host":"db8, db9","port":"5433","primary_slot_name":"site_b"}}`:     {Host: "db8,db9", Port: 5433, PrimarySlotName: "site_b"},
		`{"standby_cluster":{"host":"db9","recovery_min_apply_delay":300000}}`:                   {Host: "db9", Port: 5432, RecoveryMinApplyDelay: "300000"},
		`{"standby_cluster":{"restore_command":"cp /a/%f %p","archive_cleanup_command":"true"}}`: {Port: 5432, RestoreCommand: "cp /a/%f %p", ArchiveCleanupCommand: "true"},
		`{"standby_cluster":{"host":"db9","create_replica_methods":["mine","basebackup"]}}`:      {Host: "db9", Port: 5432, CreateReplicaMethods: []string{"mine", "basebackup"}},
	} {
		d, warnings, err := ParseDynamicJSON([]byte(value))
		if diff := cmp.Diff(want, d.StandbyCluster, cmp.AllowUnexported(StandbyCluster{})); diff != "" || err != nil || len(warnings) > 0 {
			t.Errorf("%s: %s %v %v", value, diff, warnings, err)
		}
	}
	for value, want := range map[string]string{
		`{"standby_cluster":{"host":"db9"},"synchronous_mode":true}`:          "synchronous_mode: has no effect before standby_cluster is removed",
		`{"standby_cluster":{"restore_command":"x","primary_slot_name":"s"}}`: "standby_cluster.primary_slot_name: has no effect without host",
		`{"standby_cluster":{"host":"db9","primary_slot":"s"}}`:               "standby_cluster.primary_slot: is not a known setting",
	} {
		if _, warnings, err := ParseDynamicJSON([]byte(value)); err != nil || !strings.Contains(fmt.Sprint(warnings), want) {
			t.Errorf("%s: %v %v", value, warnings, err)
		}
	}
}

// What a standby leader follows has a name that no member can have, and that changes with it.
func TestRemoteUpstream(t *testing.T) {
	for want, s := range map[string]StandbyCluster{
		"":                              {},
		"remote primary db9:5432":       {Host: "db9", Port: 5432},
		"remote primary db8,db9:5433":   {Host: "db8,db9", Port: 5433},
		"remote primary by its archive": {RestoreCommand: "x", Port: 5432},
	} {
		if got := s.Upstream(); got != want || s.On() != (want != "") || IsRemote(got) != (want != "") || CheckName(got) == nil {
			t.Errorf("%+v: %q", s, got)
		}
	}
}

// Of a configuration that is not valid it is heeded that the shard is a standby, whatever is wrong
// with that.
func TestHeedStandbyCluster(t *testing.T) {
	for value, want := range map[string]struct{ on, known bool }{
		`{"ttl":1}`:                                  {false, false},
		`{"ttl":1,"standby_cluster":null}`:           {false, false},
		`{"ttl":1,"standby_cluster":{}}`:             {false, false},
		`{"ttl":1,"standby_cluster":{"host":"db9"}}`: {true, true},
		`{"standby_cluster":{"host":1}}`:             {true, false},
		`{"standby_cluster":"db9"}`:                  {true, false},
	} {
		raw, err := DecodeObject([]byte(value))
		if err != nil {
			t.Fatal(err)
		}
		if s := HeedStandbyCluster(raw); s.On() != want.on || (s.Upstream() != "") != want.known {
			t.Errorf("%s: %+v", value, s)
		}
	}
}

func TestDelay(t *testing.T) {
	for text, want := range map[string]bool{
		"0": true, "300000": true, "5min": true, "5 min": true, "1h": true, "24d": true, "30s": true, "250ms": true, " 10 ": true,
		"": false, "5XB": false, "-1": false, "25d": false, "1.5h": false, "mins": false, "10mss": false, "9999999999": false, "5 minutes": false,
	} {
		if got := isDelay(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
