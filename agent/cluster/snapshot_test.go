package cluster

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// wholeShard is every key of a shard, each with another index.
func wholeShard(t *testing.T, k Keys) map[string]KV {
	t.Helper()
	shard := map[string]KV{}
	for i, kv := range []KV{
		{Key: k.Initialize(), Value: []byte("7300000000000000001")},
		{Key: k.Config(), Value: []byte(`{"ttl":8}`)},
		{Key: k.Leader(), Value: []byte("a"), Session: "sa"},
		{Key: k.Status(), Value: []byte(`{"optime":5,"lictor":{"lease_ms":8000,"beat":1,"owner":"a"}}`)},
		{Key: k.Sync(), Value: []byte(`{"leader":"a","quorum":0,"sync_standby":"b"}`)},
		{Key: k.Failover(), Value: []byte(`{"leader":"a","member":"b"}`)},
		{Key: k.Failsafe(), Value: []byte(`{"a":"http://a/patroni","b":"http://b/patroni"}`)},
		{Key: k.History(), Value: []byte(`[[1,67109200,"r"]]`)},
		{Key: k.Route(), Value: []byte(encode(t, goodRoute()))},
		{Key: k.Member("b"), Value: []byte(`{"state":"running","role":"replica"}`), Session: "sb"},
		{Key: k.Member("a"), Value: []byte(`{"state":"running","role":"primary"}`), Session: "sa"},
	} {
		kv.ModifyIndex = uint64(10 + i)
		shard[kv.Key] = kv
	}
	return shard
}

func parse(k Keys, shard map[string]KV) Snapshot {
	return ParseSnapshot(k, slices.Collect(maps.Values(shard)), 99)
}

func TestParseSnapshot(t *testing.T) {
	k := NewKeys("", "batman", "")
	s := parse(k, wholeShard(t, k))
	if errs := s.Problems(); len(errs) != 0 {
		t.Errorf("problems: %v", errs)
	}
	if s.Index != 99 || s.Initialize.Value != "7300000000000000001" || string(s.Config.Value) != `{"ttl":8}` || s.LeaderName() != "a" ||
		s.Status.Value.Lictor.Owner != "a" || !s.Sync.Value.Has("b") || s.Failover.Value.Candidate != "b" || len(s.Failsafe.Value) != 2 ||
		s.History.Value[0].LSN != 67109200 || s.Route.Value.Leader.Host != "10.0.0.1" || s.Leader.Session != "sa" || s.Leader.ModifyIndex != 12 {
		t.Errorf("%+v", s)
	}
	if len(s.Members) != 2 || s.Members[0].Value.Name != "a" || s.Members[1].Value.Name != "b" || s.Members[1].Session != "sb" {
		t.Errorf("members: %+v", s.Members)
	}
	if m, found := s.Member("b"); !found || m.Value.Role != RoleReplica {
		t.Errorf("member b: %+v %v", m, found)
	}
	if _, found := s.Member("B"); found {
		t.Error("names of members compare with case")
	}
}

func TestParseSnapshotOfNothing(t *testing.T) {
	s := ParseSnapshot(NewKeys("", "batman", ""), nil, 7)
	if s.Leader.Exists() || s.Status.Exists() || s.Route.OK() || s.LeaderName() != "" || len(s.Problems()) != 0 || s.Index != 7 {
		t.Errorf("%+v", s)
	}
}

// Keys that are not the shard's, however alike.
func TestParseSnapshotPassesOver(t *testing.T) {
	k := NewKeys("", "batman", "")
	shard := wholeShard(t, k)
	want := parse(k, shard)
	for _, key := range []string{
		"service/batman", "service/batman/", "service/batman2/leader", "service/batman/leader/", "service/batman/Leader", "service/batman/optime/leader",
		"service/batman/members", "service/batman/members/", "service/batman/members/x/y", "lictor/routes/service/batman2", "lictor/routes/batman", "",
	} {
		shard[key] = KV{Key: key, Value: []byte(`{"leader":"evil"`), Session: "x", ModifyIndex: 77}
	}
	if diff := cmp.Diff(want, parse(k, shard)); diff != "" {
		t.Error(diff)
	}
}

// A value that makes no sense is told and harms nothing else.
func TestParseSnapshotWithBadValues(t *testing.T) {
	k := NewKeys("", "batman", "")
	for _, test := range []struct {
		key, name, field string
		look             func(Snapshot) (exists, zero bool, err error)
	}{
		{k.Status(), "status", "Status", func(s Snapshot) (exists, zero bool, err error) {
			return s.Status.Exists() && !s.Status.OK(), cmp.Equal(s.Status.Value, Status{}), s.Status.Err
		}},
		{k.Sync(), "sync", "Sync", func(s Snapshot) (exists, zero bool, err error) {
			return s.Sync.Exists() && !s.Sync.OK(), cmp.Equal(s.Sync.Value, Sync{}), s.Sync.Err
		}},
		{k.Failover(), "failover", "Failover", func(s Snapshot) (exists, zero bool, err error) {
			return s.Failover.Exists() && !s.Failover.OK(), s.Failover.Value.Empty(), s.Failover.Err
		}},
		{k.Failsafe(), "failsafe", "Failsafe", func(s Snapshot) (exists, zero bool, err error) {
			return s.Failsafe.Exists() && !s.Failsafe.OK(), s.Failsafe.Value == nil, s.Failsafe.Err
		}},
		{k.History(), "history", "History", func(s Snapshot) (exists, zero bool, err error) {
			return s.History.Exists() && !s.History.OK(), s.History.Value == nil, s.History.Err
		}},
		{k.Route(), "route", "Route", func(s Snapshot) (exists, zero bool, err error) {
			return s.Route.Exists() && !s.Route.OK(), cmp.Equal(s.Route.Value, Route{}), s.Route.Err
		}},
		{k.Member("b"), "members/b", "Members", func(s Snapshot) (exists, zero bool, err error) {
			m, found := s.Member("b")
			return found && !m.OK(), cmp.Equal(m.Value, Member{Name: "b"}), m.Err
		}},
	} {
		for _, bad := range []string{`{`, `x`, `"text"`, `[1]`, `12`, `{"optime":"x","leader":1,"member":[],"a":1,"state":3}`, "\x00\xff", `{} {}`} {
			shard := wholeShard(t, k)
			want := parse(k, shard)
			kv := shard[test.key]
			kv.Value = []byte(bad)
			shard[test.key] = kv
			got := parse(k, shard)
			exists, zero, err := test.look(got)
			if err == nil || !exists || !zero {
				t.Errorf("%s = %q: error %v, exists and not OK %v, value zero %v", test.key, bad, err, exists, zero)
			}
			problems := got.Problems()
			if len(problems) != 1 || !strings.HasPrefix(problems[0].Error(), "key "+test.name+": ") {
				t.Errorf("%s = %q: problems %v", test.key, bad, problems)
			}
			if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Snapshot{}, test.field)); diff != "" {
				t.Errorf("%s = %q harms something else:\n%s", test.key, bad, diff)
			}
			if a, found := got.Member("a"); !found || !a.OK() {
				t.Errorf("%s = %q harms member a: %+v", test.key, bad, a)
			}
		}
	}
}

// A route of the right shape that nobody can render.
func TestParseSnapshotWithInvalidRoute(t *testing.T) {
	k := NewKeys("", "batman", "")
	r := goodRoute()
	r.Leader.Port = 0
	s := ParseSnapshot(k, []KV{{Key: k.Route(), Value: []byte(encode(t, r)), ModifyIndex: 3}}, 3)
	if s.Route.OK() || s.Route.ModifyIndex != 3 || !cmp.Equal(s.Route.Value, Route{}) || len(s.Problems()) != 1 {
		t.Errorf("%+v %v", s.Route, s.Problems())
	}
}

func TestLeader(t *testing.T) {
	k := NewKeys("", "batman", "")
	member := KV{Key: k.Member("a"), Value: []byte(`{}`), ModifyIndex: 1}
	for name, test := range map[string]struct {
		kvs      []KV
		leader   string
		problems int
	}{
		"nobody":           {[]KV{member}, "", 0},
		"a member":         {[]KV{member, {Key: k.Leader(), Value: []byte("a"), Session: "s", ModifyIndex: 2}}, "a", 0},
		"not a member":     {[]KV{member, {Key: k.Leader(), Value: []byte("b"), Session: "s", ModifyIndex: 2}}, "b", 1},
		"without session":  {[]KV{member, {Key: k.Leader(), Value: []byte("a"), ModifyIndex: 2}}, "", 0},
		"empty, bootstrap": {[]KV{{Key: k.Initialize(), Session: "s", ModifyIndex: 2}}, "", 0},
	} {
		s := ParseSnapshot(k, test.kvs, 2)
		if s.LeaderName() != test.leader || len(s.Problems()) != test.problems {
			t.Errorf("%s: leader %q, problems %v", name, s.LeaderName(), s.Problems())
		}
	}
}

// No value of any key makes parsing fail, or touches another key.
func FuzzParseSnapshot(f *testing.F) {
	f.Add("status", []byte(`{"optime":5,"lictor":{"lease_ms":8000,"beat":1,"owner":"a"}}`))
	f.Add("history", []byte(`[[1,67109200,"r","t","n"]]`))
	f.Add("members/b", []byte(`{"tags":{"nofailover":true}}`))
	f.Add("sync", []byte(`{"leader":"a","sync_standby":"b,C"}`))
	f.Add("members/", []byte(`null`))
	f.Add("failover", []byte(`{"scheduled_at":"2099-01-01T00:00:00+00:00"}`))
	k := NewKeys("", "batman", "")
	f.Fuzz(func(t *testing.T, key string, in []byte) {
		fixed := KV{Key: k.Member("a"), Value: []byte(`{"role":"primary"}`), Session: "s", ModifyIndex: 1}
		s := ParseSnapshot(k, []KV{fixed, {Key: k.Prefix() + key, Value: in, ModifyIndex: 2}, {Key: k.Route(), Value: in, ModifyIndex: 3}}, 3)
		if key != "members/a" {
			if a, found := s.Member("a"); !found || !a.OK() || a.Value.Role != RolePrimary {
				t.Fatalf("%s = %q harms member a: %+v", key, in, a)
			}
		}
		for _, m := range s.Members {
			if m.Value.Name == "" || strings.Contains(m.Value.Name, "/") {
				t.Fatalf("%s is no member: %+v", key, m)
			}
			_, _ = NoFailover(m.Value.Tags), FailoverPriority(m.Value.Tags)
		}
		if _, err := ParseRoute(in); (err == nil) != s.Route.OK() {
			t.Fatalf("route %q: %v, in the snapshot %+v", in, err, s.Route)
		}
		if s.Status.Err == nil && s.Status.Value.Lictor != nil {
			_ = s.Status.Value.Lictor.Lease()
		}
		_, _, _ = s.LeaderName(), s.Sync.Value.Has("a"), s.Problems()
	})
}
