package cluster

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func seconds(ttl, loopWait, retry int) Timing {
	return Timing{TTL: time.Duration(ttl) * time.Second, LoopWait: time.Duration(loopWait) * time.Second, RetryTimeout: time.Duration(retry) * time.Second}
}

func TestTimingFollowsTTL(t *testing.T) {
	for value, want := range map[string]Timing{
		`{}`:          seconds(8, 2, 3),
		`{"ttl":8}`:   seconds(8, 2, 3),
		`{"ttl":7}`:   seconds(7, 1, 3),
		`{"ttl":5}`:   seconds(5, 1, 2),
		`{"ttl":4}`:   seconds(4, 1, 1),
		`{"ttl":3}`:   seconds(3, 1, 1),
		`{"ttl":20}`:  seconds(20, 2, 9),
		`{"ttl":30}`:  seconds(30, 2, 10),
		`{"ttl":300}`: seconds(300, 2, 10),
		`{"ttl":30,"loop_wait":10,"retry_timeout":10}`: seconds(30, 10, 10),
		`{"ttl":10,"loop_wait":4}`:                     seconds(10, 4, 3),
		`{"ttl":10,"retry_timeout":1}`:                 seconds(10, 2, 1),
		`{"ttl":"10s","loop_wait":"1"}`:                seconds(10, 1, 4),
		`{"ttl":"1min"}`:                               seconds(60, 2, 10),
		`{"ttl":null,"loop_wait":null}`:                seconds(8, 2, 3),
		`{"ttl":10.0}`:                                 seconds(10, 2, 4),
	} {
		d, _, err := ParseDynamicJSON([]byte(value))
		if err != nil || d.Timing != want {
			t.Errorf("%s: %+v, %v; want %+v", value, d.Timing, err, want)
		}
	}
}

func TestParseDynamicRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		value string
		want  []string
	}{
		"ttl too small":                    {`{"ttl":2}`, []string{"ttl: 2: must be at least 3 s"}},
		"ttl too large":                    {`{"ttl":86401}`, []string{"ttl: 86401: must be at most 86400 s"}},
		"ttl a fraction":                   {`{"ttl":7.5}`, []string{"ttl: 7.5: must be a whole number of seconds"}},
		"ttl in milliseconds":              {`{"ttl":"7500ms"}`, []string{`ttl: "7500ms": must be a whole number of seconds`}},
		"ttl a word":                       {`{"ttl":"soon"}`, []string{`ttl: "soon": must be`}},
		"ttl a list":                       {`{"ttl":[1]}`, []string{"ttl: a list: must be"}},
		"loop_wait":                        {`{"loop_wait":0}`, []string{"loop_wait: 0: must be at least 1 s"}},
		"retry_timeout":                    {`{"retry_timeout":-1}`, []string{"retry_timeout: -1: must be at least 1 s"}},
		"the sum":                          {`{"ttl":8,"loop_wait":3,"retry_timeout":3}`, []string{"ttl: 8: loop_wait + 2 x retry_timeout must not be more than ttl, but 3 + 2 x 3 = 9"}},
		"the sum, by default":              {`{"ttl":10,"loop_wait":9}`, []string{"9 + 2 x 1 = 11"}},
		"everything at once":               {`{"ttl":1,"pause":"perhaps","synchronous_node_count":0}`, []string{"ttl: 1", `pause: "perhaps": must be true or false`, "synchronous_node_count: 0: must be at least 1"}},
		"lag":                              {`{"maximum_lag_on_failover":"10 apples"}`, []string{"maximum_lag_on_failover", "must be a whole number of bytes"}},
		"lag below zero":                   {`{"maximum_lag_on_failover":-1}`, []string{"maximum_lag_on_failover: -1: must be at least 0"}},
		"lag of a sync node":               {`{"maximum_lag_on_syncnode":-2}`, []string{"must be at least -1"}},
		"lag too large":                    {`{"maximum_lag_on_failover":"9000000000TB"}`, []string{"maximum_lag_on_failover"}},
		"start timeout":                    {`{"master_start_timeout":"soon"}`, []string{"master_start_timeout"}},
		"start timeout, sign":              {`{"primary_start_timeout":-1}`, []string{"must not be negative"}},
		"synchronous_mode":                 {`{"synchronous_mode":"sometimes"}`, []string{`must be true, false or "quorum"`}},
		"failsafe_mode":                    {`{"failsafe_mode":2}`, []string{"failsafe_mode: 2: must be true or false"}},
		"slots":                            {`{"slots":[1]}`, []string{"slots: a list: must be a map"}},
		"slot's name":                      {`{"slots":{"Upper":null}}`, []string{"slots.Upper: a slot's name"}},
		"slot's type":                      {`{"slots":{"a":{"type":"round"}}}`, []string{`slots.a.type: "round": must be physical or logical`}},
		"logical slot":                     {`{"permanent_slots":{"a":{"type":"logical"}}}`, []string{"permanent_slots.a.database: must be set", "permanent_slots.a.plugin: must be set"}},
		"ignore_slots":                     {`{"ignore_slots":["a"]}`, []string{`ignore_slots[0]: "a": must be a map`}},
		"standby_cluster":                  {`{"standby_cluster":"db9"}`, []string{"standby_cluster"}},
		"standby_cluster without a source": {`{"standby_cluster":{"port":5432}}`, []string{"standby_cluster: needs host, where the remote primary is, or restore_command"}},
		"standby_cluster.host":             {`{"standby_cluster":{"host":"db8,d b9"}}`, []string{"standby_cluster.host: \"d b9\": must be"}},
		"standby_cluster of other types":   {`{"standby_cluster":{"host":1,"port":0,"create_replica_methods":"x"}}`, []string{"standby_cluster.host: 1: must be text", "standby_cluster.port: 0", "standby_cluster.create_replica_methods"}},
		"standby_cluster.slot":             {`{"standby_cluster":{"host":"db9","primary_slot_name":"Site-B"}}`, []string{"standby_cluster.primary_slot_name: \"Site-B\": a slot's name has lower-case letters"}},
		"postgresql":                       {`{"postgresql":{"use_slots":"perhaps","pg_hba":"all","parameters":{"a":[1]}}}`, []string{"postgresql.use_slots", "postgresql.pg_hba", "postgresql.parameters.a: a list: must be a single value"}},
		"data_directory":                   {`{"postgresql":{"parameters":{"Data_Directory":"/x","config_file":"/y"}}}`, []string{"postgresql.parameters.Data_Directory: must not be set: PostgreSQL would run where neither", "postgresql.parameters.config_file: must not be set"}},
		"parameters":                       {`{"postgresql":{"parameters":{"a\ndata_directory":"/x","b":"1\nx = 2","c.d.e":1,"f":1,"F":2}}}`, []string{"data_directory: is not the name of a parameter", "postgresql.parameters.b: must be one line", "postgresql.parameters.c.d.e: is not the name", "postgresql.parameters.f: is the same parameter as F"}},
		"recovery_conf":                    {`{"postgresql":{"recovery_conf":{"data_directory":"/x"}}}`, []string{"postgresql.recovery_conf.data_directory: must not be set"}},
		"pg_hba":                           {`{"postgresql":{"pg_hba":[7]}}`, []string{"postgresql.pg_hba[0]: 7: must be text"}},
		"not JSON":                         {`ttl: 8`, []string{"is not a JSON object"}},
		"nothing":                          {``, []string{"is not a JSON object"}},
		"null":                             {`null`, []string{"must be a JSON object"}},
		"a list":                           {`[]`, []string{"is not a JSON object"}},
		"two objects":                      {`{} {}`, []string{"something after the JSON object"}},
	} {
		t.Run(name, func(t *testing.T) {
			d, _, err := ParseDynamicJSON([]byte(tt.value))
			if err == nil {
				t.Fatalf("accepted as %+v", d)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestParseDynamicDefaults(t *testing.T) {
	d, warnings, err := ParseDynamic(nil)
	if err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}
	want := Dynamic{
		Timing: seconds(8, 2, 3), MaximumLagOnFailover: 1048576, MaximumLagOnSyncNode: -1, MaximumLagForReaders: 16 << 20, PrimaryStartTimeout: 300 * time.Second, Takeover: TakeoverLease, SuspectAfter: time.Second,
		SynchronousMode: SyncOff, SynchronousNodeCount: 1, FailsafeMode: true, MemberSlotsTTL: 30 * time.Minute, Rebuild: RebuildAsk, Raw: map[string]any{},
	}
	if diff := cmp.Diff(want, d, cmp.AllowUnexported(StandbyCluster{})); diff != "" {
		t.Error(diff)
	}
}

func TestParseDynamicReads(t *testing.T) {
	value := `{"maximum_lag_on_failover":"10MB","maximum_lag_on_syncnode":1048576,"max_timelines_history":5,"check_timeline":"on",
		"master_start_timeout":0,"master_stop_timeout":"10s","synchronous_mode":"quorum","synchronous_mode_strict":true,"synchronous_node_count":2,
		"failsafe_mode":"off","pause":true,"slots":{"a":null,"b":{"type":"logical","database":"d","plugin":"p"},"c":false},
		"ignore_slots":[{"name":"x"}],"member_slots_ttl":"1h","my_own":{"deep":[1,{"Case":true}]},
		"postgresql":{"use_pg_rewind":true,"use_slots":false,"parameters":{"pg_stat_statements.max":5000,"work_mem":"4MB"},"pg_hba":["local all all peer"],"recovery_conf":{"restore_command":"cp"}}}`
	d, warnings, err := ParseDynamicJSON([]byte(value))
	if told := fmt.Sprint(warnings); err != nil || len(warnings) != 4 || !strings.Contains(told, "my_own") || !strings.Contains(told, "slots.b: is not made: postgresql.parameters.wal_level") ||
		!strings.Contains(told, "master_stop_timeout: has no effect") {
		t.Fatal(warnings, err)
	}
	yes, no := true, false
	for name, pair := range map[string][2]any{
		"lag":             {d.MaximumLagOnFailover, int64(10 << 20)},
		"lag of sync":     {d.MaximumLagOnSyncNode, int64(1 << 20)},
		"history":         {d.MaxTimelinesHistory, 5},
		"check_timeline":  {d.CheckTimeline, true},
		"start, by alias": {d.PrimaryStartTimeout, time.Duration(0)},
		"stop, by alias":  {d.PrimaryStopTimeout, 10 * time.Second},
		"mode":            {d.SynchronousMode, SyncQuorum},
		"strict":          {d.SynchronousStrict, true},
		"count":           {d.SynchronousNodeCount, 2},
		"failsafe":        {d.FailsafeMode, false},
		"pause":           {d.Pause, true},
		"slots":           {len(d.Slots), 3},
		"ignored":         {d.IgnoreSlots, []map[string]any{{"name": "x"}}},
		"member slots":    {d.MemberSlotsTTL, time.Hour},
		"rewind":          {d.Postgres.UsePgRewind, &yes},
		"use_slots":       {d.Postgres.UseSlots, &no},
		"diverged":        {d.Postgres.RemoveOnDiverged, (*bool)(nil)},
		"parameter":       {d.Postgres.Parameters["pg_stat_statements.max"], json.Number("5000")},
		"pg_hba":          {d.Postgres.PgHBA, []string{"local all all peer"}},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s: %#v, want %#v", name, pair[0], pair[1])
		}
	}
	again, err := CanonicalJSON(d.Raw)
	if err != nil {
		t.Fatal(err)
	}
	var before, after any
	if json.Unmarshal([]byte(value), &before) != nil || json.Unmarshal(again, &after) != nil || !reflect.DeepEqual(before, after) {
		t.Errorf("Raw lost something:\n%s\n%s", value, again)
	}
}

func TestTimingThatPatroniLowers(t *testing.T) {
	for value, want := range map[string]Timing{
		`{"ttl":20,"loop_wait":2,"retry_timeout":10}`: seconds(20, 1, 9), // Patroni's documented example
		`{"ttl":10,"loop_wait":2,"retry_timeout":10}`: seconds(10, 1, 4),
		`{"ttl":30,"loop_wait":20,"retry_timeout":8}`: seconds(30, 14, 8),
		`{"ttl":20,"retry_timeout":10}`:               seconds(20, 1, 9),
		`{"ttl":8,"loop_wait":30}`:                    seconds(8, 6, 1),
		`{"ttl":3,"loop_wait":3,"retry_timeout":3}`:   seconds(3, 1, 1),
	} {
		if d, _, err := ParseDynamicJSON([]byte(value)); err == nil {
			t.Errorf("%s: taken as %+v", value, d.Timing)
		}
		d, warnings, err := Rules{LowerTiming: true}.ParseJSON([]byte(value))
		if err != nil || d.Timing != want {
			t.Errorf("%s: %+v, %v; want %+v", value, d.Timing, err, want)
		}
		told := 0
		for _, w := range warnings {
			if strings.Contains(w.Text, fmt.Sprintf("in force: ttl %d, loop_wait %d, retry_timeout %d",
				want.TTL/time.Second, want.LoopWait/time.Second, want.RetryTimeout/time.Second)) {
				told++
			}
		}
		if told != 1 {
			t.Errorf("%s: warnings %v", value, warnings)
		}
		again, _, err := ParseDynamic(d.WithTiming(d.Raw))
		if err != nil || again.Timing != want {
			t.Errorf("%s: what is in force is read as %+v, %v", value, again.Timing, err)
		}
	}
	if d, warnings, err := (Rules{LowerTiming: true}).Parse(map[string]any{"ttl": 5}); err != nil || len(warnings) > 0 || d.Timing != seconds(5, 1, 2) {
		t.Errorf("a set that fits: %+v, %v, %v", d.Timing, warnings, err)
	}
}

func TestSynchronousMode(t *testing.T) {
	for value, want := range map[string]SyncMode{
		`false`: SyncOff, `"off"`: SyncOff, `null`: SyncOff, `0`: SyncOff,
		`true`: SyncOn, `"on"`: SyncOn, `"true"`: SyncOn, `"quorum"`: SyncQuorum, `"Quorum"`: SyncQuorum,
	} {
		d, _, err := ParseDynamicJSON([]byte(`{"synchronous_mode":` + value + `}`))
		if err != nil || d.SynchronousMode != want {
			t.Errorf("%s: %q, %v; want %q", value, d.SynchronousMode, err, want)
		}
	}
}

func TestTheNewNameGoesBeforeItsAlias(t *testing.T) {
	d, _, err := ParseDynamicJSON([]byte(`{"primary_start_timeout":10,"master_start_timeout":20}`))
	if err != nil || d.PrimaryStartTimeout != 10*time.Second {
		t.Error(d.PrimaryStartTimeout, err)
	}
}

func TestParseDynamicWarns(t *testing.T) {
	for value, want := range map[string]string{
		`{"ttl":30,"loop_wait":10,"retry_timeout":10}`:                                                             "ttl: 30 s: when a host is lost, its shard takes no writes for up to 31 s",
		`{"postgresql":{"parameters":{"port":7}}}`:                                                                 "postgresql.parameters.port: has no effect: it follows from postgresql.listen",
		`{"postgresql":{"parameters":{"max_connections":24}}}`:                                                     "postgresql.parameters.max_connections: 24: must be a whole number, at least 25; 100 is in force",
		`{"postgresql":{"parameters":{"recovery_min_apply_delay":"1h"}}}`:                                          "recovery_min_apply_delay: has no effect here: put it under postgresql.recovery_conf",
		`{"postgresql":{"recovery_conf":{"work_mem":"1MB","recovery_end_command":"true"}}}`:                        "postgresql.recovery_conf.work_mem: has no effect",
		`{"postgresql":{"recovery_conf":{"Recovery_Target_LSN":"0/5000000","recovery_target_timeline":"latest"}}}`: "postgresql.recovery_conf.Recovery_Target_LSN: has no effect: a replica recovers to no target",
		`{"postgresql":{"recovery_conf":{"recovery_target_timeline":"current"}}}`:                                  "postgresql.recovery_conf.recovery_target_timeline: has no effect: a replica recovers to no target",
		`{"postgresql":{"parameters":{"recovery_target_action":"promote"}}}`:                                       "postgresql.parameters.recovery_target_action: has no effect: a replica recovers to no target",
		`{"postgresql":{"parameters":{"work_mem":1,"a.b":2,"work_mem":3}}}`:                                        "postgresql.parameters.work_mem: is there twice, and the last one counts",
		`{"ttl":5,"ttl":6}`: "ttl: is there twice",
		`{"ignore_slots":[{"name":"a"},{"name":"b","name":"c"}]}`: "ignore_slots[1].name: is there twice",
		`{"my_own":{"deep":1}}`:                                   "my_own: is not a known setting of the dynamic configuration and has no effect",
		`{"postgresql":{"use_pg_rewnd":true}}`:                    "postgresql.use_pg_rewnd: is not a known setting and has no effect; did you mean use_pg_rewind?",
		`{"postgresql":{"callbacks":{"on_start":"x"}}}`:           "postgresql.callbacks: is not a known setting of the dynamic configuration",
		`{"postgresql":{"parameters_replica":{"a":1}}}`:           "postgresql.parameters_replica: has no effect so far",
		`{"permanent_slots":{"a":{"database":"d","plugin":"p"}}}`: "permanent_slots.a: is not made: postgresql.parameters.wal_level",
		`{"slots":{"a":null},"postgresql":{"use_slots":false}}`:   "slots: has no effect without postgresql.use_slots",
		`{"ignore_slots":[{"nam":"x"}]}`:                          "ignore_slots[0].nam: is not a known setting and has no effect; did you mean name?",
		`{"primary_start_timeout":10,"master_start_timeout":20}`:  "master_start_timeout: has no effect beside primary_start_timeout",
		`{"synchronus_mode":true}`:                                "synchronus_mode: is not a known setting and has no effect; did you mean synchronous_mode?",
	} {
		_, warnings, err := ParseDynamicJSON([]byte(value))
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].String(), want) {
			t.Errorf("%s: %v, %v; want %q", value, warnings, err, want)
		}
	}
}

func TestPermanentSlotsWithAnUnknownKey(t *testing.T) {
	_, warnings, err := ParseDynamicJSON([]byte(`{"slots":{"a":{"type":"physical","lsn":"0/1"}}}`))
	if err != nil || len(warnings) != 1 || !strings.Contains(fmt.Sprint(warnings), "slots.a.lsn: is not a known setting") {
		t.Errorf("%v, %v", warnings, err)
	}
}

// A takeover by quorum is an option, which needs standbys that commits wait for.
func TestTakeover(t *testing.T) {
	for _, c := range []struct {
		raw   map[string]any
		want  TakeoverPolicy
		wrong string
	}{
		{map[string]any{"synchronous_mode": true}, TakeoverLease, ""},
		{map[string]any{"synchronous_mode": true, "takeover": "Lease"}, TakeoverLease, ""},
		{map[string]any{"synchronous_mode": true, "takeover": "quorum"}, TakeoverQuorum, ""},
		{map[string]any{"synchronous_mode": "quorum", "takeover": " Quorum "}, TakeoverQuorum, ""},
		{map[string]any{"takeover": "quorum"}, "", "needs synchronous_mode"},
		{map[string]any{"synchronous_mode": true, "takeover": "now"}, "", "must be lease or quorum"},
		{map[string]any{"synchronous_mode": true, "takeover": true}, "", "must be lease or quorum"},
	} {
		d, _, err := ParseDynamic(c.raw)
		if d.Takeover != c.want || (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%v: %q %v", c.raw, d.Takeover, err)
		}
	}
}

// Where commits are to wait for standbys, what makes them lost all the same is told.
func TestSynchronousCommit(t *testing.T) {
	for value, want := range map[string]string{
		`"synchronous_mode":true,"postgresql":{"parameters":{"Synchronous_Commit":"Local"}}`:        "postgresql.parameters.Synchronous_Commit: Local: commits wait for no standby in spite of synchronous_mode",
		`"synchronous_mode":"quorum","postgresql":{"parameters":{"synchronous_commit":false}}`:      "postgresql.parameters.synchronous_commit: off: commits wait for no standby",
		`"synchronous_mode":true,"postgresql":{"parameters":{"synchronous_commit":"remote_write"}}`: "postgresql.parameters.synchronous_commit: remote_write: commits do not wait until the standby has them on its disk",
		`"synchronous_mode":true,"postgresql":{"parameters":{"synchronous_commit":"remote_apply"}}`: "",
		`"synchronous_mode":true,"postgresql":{"parameters":{"fsync":"no"}}`:                        "postgresql.parameters.fsync: no: what was acknowledged need not be on any disk",
		`"postgresql":{"parameters":{"fsync":"off"}}`:                                               "",
		`"synchronous_mode":true,"postgresql":{"parameters":{"synchronous_commit":true}}`:           "",
		`"postgresql":{"parameters":{"synchronous_commit":"local"}}`:                                "",
	} {
		_, warnings, err := ParseDynamicJSON([]byte("{" + value + "}"))
		if err != nil || len(warnings) > 0 != (want != "") || want != "" && !strings.Contains(warnings[0].String(), want) {
			t.Errorf("%s: %v, %v; want %q", value, warnings, err, want)
		}
	}
}

func TestParseDynamicKeepsItsArgumentAlone(t *testing.T) {
	raw := map[string]any{"ttl": 5, "postgresql": map[string]any{"parameters": map[string]any{"a": 1}}}
	d, _, err := ParseDynamic(raw)
	if err != nil {
		t.Fatal(err)
	}
	d.Raw["ttl"] = 7
	d.Postgres.Parameters["a"] = 2
	if raw["ttl"] != 5 || raw["postgresql"].(map[string]any)["parameters"].(map[string]any)["a"] != 1 {
		t.Errorf("the argument has changed: %v", raw)
	}
}

func TestPatchBetween(t *testing.T) {
	type m = map[string]any
	for _, c := range []struct{ before, after, patch m }{
		{m{}, m{}, m{}},
		{m{"ttl": 8, "a": "b"}, m{"ttl": 8, "a": "b"}, m{}},
		{m{"ttl": 8}, m{"ttl": 9, "x": 1}, m{"ttl": 9, "x": 1}},
		{m{"ttl": 8, "x": 1}, m{"x": 1}, m{"ttl": nil}},
		{m{"ttl": 8, "x": 1}, m{"ttl": nil, "x": 1}, m{"ttl": nil}},
		{m{"ttl": nil}, m{"x": nil}, m{}},
		{m{"p": m{"q": m{"a": 1, "b": 2}, "r": 3}}, m{"p": m{"q": m{"a": 1, "b": 4}, "r": 3}}, m{"p": m{"q": m{"b": 4}}}},
		{m{"p": m{"a": 1}}, m{"p": m{}}, m{"p": m{"a": nil}}},
		{m{"p": m{"a": 1}}, m{"p": 5}, m{"p": 5}},
		{m{"p": 5}, m{"p": m{"a": 1}}, m{"p": m{"a": 1}}},
		{m{"l": []any{"a", "b"}}, m{"l": []any{"b"}}, m{"l": []any{"b"}}},
	} {
		got := PatchBetween(c.before, c.after)
		if !reflect.DeepEqual(got, c.patch) {
			t.Errorf("from %v to %v: %v, want %v", c.before, c.after, got, c.patch)
		}
		// Without what is null.
		if merged, want := MergePatch(nil, MergePatch(c.before, got)), MergePatch(nil, c.after); !reflect.DeepEqual(merged, want) {
			t.Errorf("%v merged into %v makes %v, want %v", got, c.before, merged, want)
		}
	}
}

func TestMergePatchLeavesItsArgumentsAlone(t *testing.T) {
	present := map[string]any{"a": map[string]any{"b": 1}}
	patch := map[string]any{"a": map[string]any{"b": nil, "c": map[string]any{"d": nil}}}
	got := MergePatch(present, patch)
	if want := map[string]any{"a": map[string]any{"c": map[string]any{}}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if !reflect.DeepEqual(present, map[string]any{"a": map[string]any{"b": 1}}) || len(patch["a"].(map[string]any)) != 2 {
		t.Errorf("changed: %v, %v", present, patch)
	}
	if got := MergePatch(nil, map[string]any{"a": 1}); !reflect.DeepEqual(got, map[string]any{"a": 1}) {
		t.Errorf("onto nothing: %v", got)
	}
}

func TestMergePatch(t *testing.T) {
	type m = map[string]any
	for name, tt := range map[string]struct{ base, patch, want m }{
		"adds":                      {m{"a": 1}, m{"b": 2}, m{"a": 1, "b": 2}},
		"replaces":                  {m{"a": 1}, m{"a": 2}, m{"a": 2}},
		"null removes":              {m{"a": 1, "b": 2}, m{"a": nil}, m{"b": 2}},
		"null removes what is not":  {m{}, m{"a": nil}, m{}},
		"merges below":              {m{"p": m{"a": 1, "b": 2}}, m{"p": m{"b": nil, "c": 3}}, m{"p": m{"a": 1, "c": 3}}},
		"map takes a value's place": {m{"p": 1}, m{"p": m{"a": 1, "b": nil}}, m{"p": m{"a": 1}}},
		"value takes a map's place": {m{"p": m{"a": 1}}, m{"p": 1}, m{"p": 1}},
		"lists are replaced":        {m{"l": []any{1, 2}}, m{"l": []any{3}}, m{"l": []any{3}}},
		"nothing in nothing":        {nil, nil, m{}},
	} {
		t.Run(name, func(t *testing.T) {
			base, patch := cloneTree(tt.base), cloneTree(tt.patch)
			got := MergePatch(tt.base, tt.patch)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if inner, ok := got["p"].(m); ok {
				inner["new"] = true
			}
			if !reflect.DeepEqual(base, cloneTree(tt.base)) || !reflect.DeepEqual(patch, cloneTree(tt.patch)) {
				t.Error("an argument has changed")
			}
		})
	}
}

func TestCanonicalJSON(t *testing.T) {
	d, _, err := ParseDynamicJSON([]byte(`{ "ttl" : 8, "maximum_lag_on_failover": 1048576, "big": 9007199254740993, "hba": "a<b&c", "f": 0.5 }`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := CanonicalJSON(d.Raw)
	if want := `{"big":9007199254740993,"f":0.5,"hba":"a<b&c","maximum_lag_on_failover":1048576,"ttl":8}`; err != nil || string(got) != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
	if got, err := CanonicalJSON(map[string]any{"lag": 1048576.0}); err != nil || string(got) != `{"lag":1048576}` {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := CanonicalJSON(nil); err != nil || string(got) != "{}" {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := CanonicalJSON(map[string]any{"a": func() {}}); err == nil {
		t.Error("a function was written as JSON")
	}
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "10": 10, "7B": 7, "1kB": 1024, "10MB": 10 << 20, " 2 GB ": 2 << 30, "1TB": 1 << 40} {
		if n, err := ParseBytes(text); err != nil || n != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", text, n, err, want)
		}
	}
	for _, text := range []any{"", "MB", "1mb", "1.5MB", "-1MB", "1 PB", true, nil, 1.5} {
		if n, err := ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%v) = %d, want an error", text, n)
		}
	}
	for text, want := range map[string]time.Duration{"0": 0, "10s": 10 * time.Second, "2 min": 2 * time.Minute, "1h": time.Hour, "1d": 24 * time.Hour, "3000ms": 3 * time.Second, "1000000us": time.Second} {
		if d, err := ParseSeconds(text); err != nil || d != want {
			t.Errorf("ParseSeconds(%q) = %s, %v; want %s", text, d, err, want)
		}
	}
	for _, text := range []any{"", "s", "1m", "1500ms", "1.5s", "99999999d", "9223372036854775807h", 99999999999, true, nil} {
		if d, err := ParseSeconds(text); err == nil {
			t.Errorf("ParseSeconds(%v) = %s, want an error", text, d)
		}
	}
}

func TestProblemsTakesAJoinedErrorApart(t *testing.T) {
	_, _, err := ParseDynamicJSON([]byte(`{"ttl":1,"pause":7}`))
	problems := Problems(err)
	if len(problems) != 2 || problems[0].Path != "ttl" || problems[0].Value != "1" || problems[1].Path != "pause" {
		t.Errorf("%#v", problems)
	}
	if Problems(nil) != nil {
		t.Error("nil has problems")
	}
}

// FuzzParseDynamic: whatever the key holds, parsing ends, and what is accepted
// keeps the rules and survives being written and read again.
func FuzzParseDynamic(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[`, `{"ttl":3}`, `{"ttl":30,"loop_wait":10,"retry_timeout":10}`, `{"ttl":1e400}`, `{"ttl":"9999999999999999999d"}`,
		`{"maximum_lag_on_failover":"8388608TB"}`, `{"slots":{"":{}}}`, `{"postgresql":{"parameters":{"a":null}}}`, `{"loop_wait":-9223372036854775808}`,
		`{"retry_timeout":9223372036854775807}`, `{"ignore_slots":[null]}`, `{"ttl":8}{}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		d, _, err := ParseDynamicJSON(value)
		if err != nil {
			return
		}
		if d.TTL < 3*time.Second || d.LoopWait < time.Second || d.RetryTimeout < time.Second || d.LoopWait+2*d.RetryTimeout > d.TTL {
			t.Fatalf("accepted %+v", d.Timing)
		}
		if d.MaximumLagOnFailover < 0 || d.PrimaryStartTimeout < 0 || d.SynchronousNodeCount < 1 {
			t.Fatalf("accepted %+v", d)
		}
		written, err := CanonicalJSON(d.Raw)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := ParseDynamicJSON(written)
		if err != nil {
			t.Fatalf("what was accepted is refused once written: %v", err)
		}
		if diff := cmp.Diff(d, again, cmp.AllowUnexported(StandbyCluster{})); diff != "" {
			t.Fatal(diff)
		}
	})
}
