package cluster

import (
	"errors"
	"strings"
	"testing"
)

func TestSlotName(t *testing.T) {
	for member, want := range map[string]string{
		"Node-1.x": "node_1_x", "a b": "au0032b", "é": "u0233", strings.Repeat("x", 70): strings.Repeat("x", 63),
	} {
		if got := SlotName(member); got != want {
			t.Errorf("%s: %s", member, got)
		}
	}
}

// Two members whose names make one slot are told of, and the second does not join.
func TestNamesakes(t *testing.T) {
	k := NewKeys("", "batman", "")
	shard := func(names ...string) Snapshot {
		var kvs []KV
		for _, name := range names {
			kvs = append(kvs, KV{Key: k.Member(name), Value: []byte(`{"state":"running","role":"replica"}`), ModifyIndex: 3})
		}
		return ParseSnapshot(k, kvs, 3)
	}
	long := strings.Repeat("x", 63)
	for _, test := range []struct {
		names    []string
		joins    string
		refused  bool
		problems int
	}{
		{[]string{"db-1", "db-2"}, "db-3", false, 0},
		{[]string{"db-1", "db-2"}, "db.1", true, 0},
		{[]string{"db-1", "db-2"}, "DB-1", true, 0},
		{[]string{"db-1", "db-2"}, "db_2", true, 0},
		{[]string{"db-1", "db-2"}, "db-2", false, 0},
		{[]string{"db-1", "db_1"}, "db-1", false, 1},
		{[]string{long + "1", "b"}, long + "2", true, 0},
		{[]string{long + "1", long + "2"}, "b", false, 1},
		{nil, "db-1", false, 0},
	} {
		s := shard(test.names...)
		if err := s.Joins(test.joins); errors.Is(err, ErrNamesake) != test.refused {
			t.Errorf("%s joins %q: %v", test.joins, test.names, err)
		}
		if problems := s.Problems(); len(problems) != test.problems || len(problems) > 0 && !errors.Is(problems[0], ErrNamesake) {
			t.Errorf("%q: problems %v", test.names, problems)
		}
	}
}
