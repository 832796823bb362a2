package cluster

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// roundTrip reads a value and writes it again; same JSON means nothing is lost.
func roundTrip[T any](t *testing.T, in string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(in), &v); err != nil {
		t.Fatalf("%s: %v", in, err)
	}
	if diff := cmp.Diff(jsonValue(t, in), jsonValue(t, encode(t, v))); diff != "" {
		t.Errorf("%s came back changed:\n%s", in, diff)
	}
	return v
}

func jsonValue(t *testing.T, in string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(in), &v); err != nil {
		t.Fatalf("%s: %v", in, err)
	}
	return v
}

// Members as Patroni's versions write them.
func TestMemberOfPatroni(t *testing.T) {
	primary := roundTrip[Member](t, `{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://10.0.0.1:8008/patroni",`+
		`"state":"running","role":"master","version":"3.0.4","checkpoint_after_promote":false,"xlog_location":83886160,"timeline":1}`)
	if primary.Role != RoleMaster || primary.XLogLocation != 83886160 || primary.CheckpointAfterPromote == nil || *primary.CheckpointAfterPromote {
		t.Errorf("primary: %+v", primary)
	}
	replica := roundTrip[Member](t, `{"conn_url":"postgres://10.0.0.2:5432/postgres","api_url":"https://10.0.0.2:8008/patroni",`+
		`"state":"running","role":"replica","version":"4.1.0","proxy_url":"postgres://10.0.0.2:6432/postgres",`+
		`"tags":{"nofailover":true,"Zone":"a","failover_priority":0,"clonefrom":"yes"},"pending_restart":true,`+
		`"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"101"}},"xlog_location":9223372036854775807,`+
		`"replay_lsn":67108864,"receive_lsn":67109200,"timeline":3,"replication_state":"in archive recovery","pause":true,`+
		`"scheduled_restart":{"schedule":"2099-01-01T00:00:00+00:00","postmaster_start_time":"2026-11-21 02:50:08.922841+00:00","role":"replica"}}`)
	if replica.XLogLocation != 9223372036854775807 || !replica.Tag("clonefrom") || replica.Tag("zone") || !NoFailover(replica.Tags) || !replica.Pause ||
		replica.PendingRestartReason["max_connections"] != (PendingChange{OldValue: "100", NewValue: "101"}) {
		t.Errorf("replica: %+v", replica)
	}
	if got := encode(t, Member{Name: "a"}); got != `{"conn_url":"","api_url":"","state":"","role":"","version":""}` {
		t.Errorf("the name is in the key, not in the value: %s", got)
	}
}

func TestTags(t *testing.T) {
	for in, want := range map[string]struct {
		noFailover bool
		priority   int
	}{
		`{}`:                                        {false, 1},
		`null`:                                      {false, 1},
		`{"nofailover":true}`:                       {true, 1},
		`{"nofailover":false}`:                      {false, 1},
		`{"nofailover":"True"}`:                     {true, 1},
		`{"nofailover":"on"}`:                       {true, 1},
		`{"nofailover":"no"}`:                       {false, 1},
		`{"nofailover":1}`:                          {true, 1},
		`{"nofailover":0}`:                          {false, 1},
		`{"nofailover":null}`:                       {false, 1},
		`{"nofailover":[true]}`:                     {false, 1},
		`{"NoFailover":true}`:                       {false, 1},
		`{"failover_priority":0}`:                   {true, 0},
		`{"failover_priority":-1}`:                  {true, -1},
		`{"failover_priority":"0"}`:                 {true, 0},
		`{"failover_priority":3}`:                   {false, 3},
		`{"failover_priority":"5"}`:                 {false, 5},
		`{"failover_priority":"odd"}`:               {false, 1},
		`{"nofailover":true,"failover_priority":3}`: {true, 3},
	} {
		var tags map[string]any
		if err := json.Unmarshal([]byte(in), &tags); err != nil {
			t.Fatal(err)
		}
		if NoFailover(tags) != want.noFailover || FailoverPriority(tags) != want.priority {
			t.Errorf("%s: nofailover %v, priority %d; want %+v", in, NoFailover(tags), FailoverPriority(tags), want)
		}
	}
	// As the local configuration gives them.
	if !NoFailover(map[string]any{"failover_priority": int64(0)}) || FailoverPriority(map[string]any{"failover_priority": 7}) != 7 || !NoFailover(map[string]any{"nofailover": 1}) {
		t.Error("tags that are Go's integers")
	}
}

func TestStatus(t *testing.T) {
	if s := roundTrip[Status](t, `{"optime":83886160}`); s.Lictor != nil || s.OpTime != 83886160 {
		t.Errorf("Patroni's: %+v", s)
	}
	roundTrip[Status](t, `{"optime":83886160,"slots":{"node2":83886160,"l":1},"retain_slots":["node2"]}`)
	s := roundTrip[Status](t, `{"optime":1,"lictor":{"lease_ms":8500,"beat":9007199254740993,"owner":"a","released":true,"successor":"b"}}`)
	if s.Lictor.Lease() != 8500*time.Millisecond || s.Lictor.Number != 9007199254740993 {
		t.Errorf("beat: %+v", s.Lictor)
	}
	if got := encode(t, Status{OpTime: 5}); got != `{"optime":5}` {
		t.Errorf("without a beat: %s", got)
	}
}

func TestFailover(t *testing.T) {
	if f := roundTrip[Failover](t, `{}`); !f.Empty() {
		t.Errorf("idle: %+v", f)
	}
	f := roundTrip[Failover](t, `{"leader":"node1","member":"node2"}`)
	if f.Empty() || f.Leader != "node1" || f.Candidate != "node2" || f.ScheduledAt != nil {
		t.Errorf("request: %+v", f)
	}
	want := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	for in, fraction := range map[string]time.Duration{
		`{"scheduled_at":"2099-01-01T00:00:00+00:00"}`:        0,
		`{"scheduled_at":"2099-01-01T02:00:00+02:00"}`:        0,
		`{"scheduled_at":"2098-12-31T18:30:00-05:30"}`:        0,
		`{"scheduled_at":"2099-01-01T00:00:00Z"}`:             0,
		`{"scheduled_at":"2099-01-01T00:00:00.000001+00:00"}`: time.Microsecond,
	} {
		var f Failover
		if err := json.Unmarshal([]byte(in), &f); err != nil || f.Empty() || !f.ScheduledAt.Equal(want.Add(fraction)) {
			t.Errorf("%s: %+v, %v", in, f, err)
			continue
		}
		var again Failover
		if err := json.Unmarshal([]byte(encode(t, f)), &again); err != nil || !again.ScheduledAt.Equal(*f.ScheduledAt) {
			t.Errorf("%s came back as %s, %v", in, encode(t, f), err)
		}
	}
	for _, in := range []string{`{"scheduled_at":"2099-01-01T00:00:00"}`, `{"scheduled_at":"tomorrow"}`, `{"scheduled_at":4070908800}`} {
		var f Failover
		if err := json.Unmarshal([]byte(in), &f); err == nil {
			t.Errorf("%s: read as %+v, though it names no moment", in, f)
		}
	}
}

func TestSync(t *testing.T) {
	for in, want := range map[string][]string{
		`{"leader":"node1","sync_standby":"node2,node3"}`:    {"node2", "node3"},
		`{"leader":"node1","quorum":0,"sync_standby":null}`:  nil,
		`{"leader":"node1","quorum":1,"sync_standby":"b,C"}`: {"b", "C"},
		`{"leader":null,"sync_standby":""}`:                  nil,
		`{}`:                                                 nil,
	} {
		var s Sync
		if err := json.Unmarshal([]byte(in), &s); err != nil || !slices.Equal(s.Standbys(), want) {
			t.Errorf("%s: %v, %v; want %v", in, s.Standbys(), err, want)
		}
	}
	s := NewSync("Node1", []string{"node3", "PG-B", "node2"})
	if got := encode(t, s); got != `{"leader":"Node1","quorum":0,"sync_standby":"PG-B,node2,node3"}` {
		t.Errorf("written: %s", got)
	}
	if got := encode(t, NewSync("a", nil)); got != `{"leader":"a","quorum":0,"sync_standby":null}` {
		t.Errorf("nobody: %s", got)
	}
	var three, four Sync // as Patroni 3 and 4 write it
	if err := json.Unmarshal([]byte(`{"leader":"a","sync_standby":"b,c"}`), &three); err != nil || three.Quorum != 0 {
		t.Errorf("of Patroni 3: %+v, %v", three, err)
	}
	if err := json.Unmarshal([]byte(`{"leader":"a","quorum":1,"sync_standby":"b,c"}`), &four); err != nil || four.Quorum != 1 {
		t.Errorf("of Patroni 4: %+v, %v", four, err)
	}
	four.After = 47
	if got := encode(t, four); got != `{"leader":"a","quorum":1,"sync_standby":"b,c","after":47}` {
		t.Errorf("with quorum: %s", got)
	}
	for name, want := range map[string]bool{
		"node1": true, "NODE1": true, "pg-b": true, "PG-B": true, "Node2": true, "node": false, "node4": false, "node2,node3": false, "": false, "pg_b": false,
	} {
		if s.Has(name) != want {
			t.Errorf("has %q: %v, want %v", name, s.Has(name), want)
		}
	}
	given := []string{"z", "a"}
	NewSync("x", given)
	if !slices.Equal(given, []string{"z", "a"}) {
		t.Error("the caller's list was sorted")
	}
}

func TestHistory(t *testing.T) {
	h := roundTrip[History](t, `[[1,67109200,"no recovery target specified"],`+
		`[2,83886368,"no recovery target specified","2026-11-21T02:50:08.922841+00:00"],`+
		`[3,9223372036854775807,"before LSN \"0/5\"\ttab","2026-11-21T02:50:08.922841+00:00","node2"]]`)
	if want := (TimelineSwitch{3, 9223372036854775807, "before LSN \"0/5\"\ttab", "2026-11-21T02:50:08.922841+00:00", "node2"}); h[2] != want {
		t.Errorf("line: %+v, want %+v", h[2], want)
	}
	roundTrip[History](t, `[]`)
	var longer TimelineSwitch
	if err := json.Unmarshal([]byte(`[1,2,"r","t","n","what a later version adds"]`), &longer); err != nil || longer.NewLeader != "n" {
		t.Errorf("a longer line: %+v, %v", longer, err)
	}
	if err := json.Unmarshal([]byte(`[1,2,"r",null,null]`), &longer); err != nil || longer != (TimelineSwitch{Timeline: 1, LSN: 2, Reason: "r"}) {
		t.Errorf("nulls: %+v, %v", longer, err)
	}
	for _, in := range []string{`[[1,2]]`, `[[]]`, `[{}]`, `[["1",2,"r"]]`, `[[1,2.5,"r"]]`, `[[1,2,3]]`, `[[1,2,"r",4]]`, `{}`, `"x"`} {
		var h History
		if err := json.Unmarshal([]byte(in), &h); err == nil {
			t.Errorf("%s: read as %+v", in, h)
		}
	}
}

func TestMemberAddress(t *testing.T) {
	for connURL, want := range map[string]string{
		"postgres://10.0.0.1:5433/postgres":    "10.0.0.1 5433",
		"postgres://db1/postgres":              "db1 5432",
		"postgres://[fd00::1]:5433/":           "fd00::1 5433",
		"":                                     "",
		"postgres:///postgres":                 "",
		"postgres://db1:x/":                    "",
		"postgres://db1:99999999999999999999/": "",
	} {
		host, port, err := Member{Name: "a", ConnURL: connURL}.Address()
		if want == "" {
			if err == nil || !strings.Contains(err.Error(), "member a: conn_url") {
				t.Errorf("%s: %s %d, %v", connURL, host, port, err)
			}
			continue
		}
		if got := fmt.Sprint(host, " ", port); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", connURL, got, err, want)
		}
	}
}

// What validation takes for a tag is what it means.
func TestTextTag(t *testing.T) {
	for want, value := range map[string]any{"a": " a ", "1": 1, "2": 2.0, "": []any{"a"}} {
		if got := TextTag(map[string]any{"zone": value}, "zone"); got != want {
			t.Errorf("%v: %q, want %q", value, got, want)
		}
	}
	if got := TextTag(nil, "zone"); got != "" {
		t.Errorf("no tag: %q", got)
	}
}

func TestTagsMeanWhatIsTaken(t *testing.T) {
	for _, on := range []any{true, "on", " TRUE ", "1", 1, int64(1), json.Number("1")} {
		if !NoFailover(map[string]any{"nofailover": on}) {
			t.Errorf("nofailover: %#v is off", on)
		}
	}
	for _, priority := range []any{7, int64(7), " 7 ", "7", 7.0, json.Number("7"), uint64(7)} {
		if got := FailoverPriority(map[string]any{"failover_priority": priority}); got != 7 {
			t.Errorf("failover_priority: %#v is %d", priority, got)
		}
		if got := SyncPriority(map[string]any{"sync_priority": priority}); got != 7 {
			t.Errorf("sync_priority: %#v is %d", priority, got)
		}
	}
	if got := SyncPriority(map[string]any{"sync_priority": "x"}); got != 1 {
		t.Errorf("sync_priority: x is %d", got)
	}
}
