package cluster

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

// A slot without a type is what its other settings make of it, as with Patroni.
func TestPermanentSlots(t *testing.T) {
	d, _, err := ParseDynamicJSON([]byte(`{"slots":{"p":null,"q":{"type":"physical"},"l":{"type":"logical","database":"d","plugin":"x"},"m":{"database":"d","plugin":"x"},"n":{"database":"d"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Slot{
		{Name: "l", Type: SlotLogical, Database: "d", Plugin: "x"},
		{Name: "m", Type: SlotLogical, Database: "d", Plugin: "x"},
		{Name: "n", Type: SlotPhysical},
		{Name: "p", Type: SlotPhysical},
		{Name: "q", Type: SlotPhysical},
	}
	if diff := cmp.Diff(want, d.PermanentSlots()); diff != "" {
		t.Error(diff)
	}
}

// A slot is left alone when it fits all that a matcher names, however little that is.
func TestIgnoresSlot(t *testing.T) {
	slot := Slot{Name: "s", Type: SlotLogical, Database: "d", Plugin: "p"}
	for matcher, want := range map[string]bool{
		`{"name":"s"}`: true, `{"type":"logical"}`: true, `{"database":"d","plugin":"p"}`: true, `{"name":"s","type":"logical","database":"d","plugin":"p"}`: true,
		`{"name":"s","plugin":""}`: true, `{"name":"s","plugin":null}`: true,
		`{"name":"s","type":"physical"}`: false, `{"name":"other","database":"d"}`: false, `{"plugin":"P"}`: false, `{"name":1}`: false, `{}`: false,
	} {
		d, _, err := ParseDynamicJSON([]byte(`{"ignore_slots":[{"name":"none"},` + matcher + `]}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := d.IgnoresSlot(slot); got != want {
			t.Errorf("%s: %v", matcher, got)
		}
	}
	if (Dynamic{}).IgnoresSlot(slot) {
		t.Error("without a matcher")
	}
}
