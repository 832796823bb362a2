package cluster

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHandoverValidate(t *testing.T) {
	good := Handover{ID: "x", Leader: "a", Successor: "b", Timeline: 3, DeadlineMS: 10000, State: HandoverAnnounced}
	for name, test := range map[string]struct {
		change func(*Handover)
		want   string // in the message; empty: valid
	}{
		"good":             {func(*Handover) {}, ""},
		"no successor yet": {func(h *Handover) { h.Successor = "" }, ""},
		"no timeline":      {func(h *Handover) { h.Timeline = 0 }, ""},
		"cancelled":        {func(h *Handover) { h.State = HandoverCancelled }, ""},
		"done":             {func(h *Handover) { h.State = HandoverDone }, ""},
		"longest":          {func(h *Handover) { h.DeadlineMS = MaxHandoverDeadline.Milliseconds() }, ""},
		"no id":            {func(h *Handover) { h.ID = "" }, "id:"},
		"no leader":        {func(h *Handover) { h.Leader = "" }, "leader:"},
		"no deadline":      {func(h *Handover) { h.DeadlineMS = 0 }, "deadline_ms: 0"},
		"too long":         {func(h *Handover) { h.DeadlineMS = MaxHandoverDeadline.Milliseconds() + 1 }, "deadline_ms"},
		"no state":         {func(h *Handover) { h.State = "" }, "state:"},
		"unknown state":    {func(h *Handover) { h.State = "Done" }, "state:"},
	} {
		t.Run(name, func(t *testing.T) {
			h := good
			test.change(&h)
			text, err := json.Marshal(h)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ParseHandover(text)
			if test.want == "" {
				if diff := cmp.Diff(h, got); err != nil || diff != "" {
					t.Errorf("%v %s", err, diff)
				}
			} else if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q in it", err, test.want)
			}
		})
	}
	if _, err := ParseHandover([]byte(`{"id":1}`)); err == nil {
		t.Error("an id that is a number was taken")
	}
}

// The request carries the same JSON as the key, beside what names the shard.
func TestHandoverRequestIsFlat(t *testing.T) {
	var r HandoverRequest
	text := `{"namespace":"service","scope":"s1","id":"x","leader":"a","successor":"b","deadline_ms":10,"state":"announced","wait_ms":5}`
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	want := HandoverRequest{
		Namespace: "service", Scope: "s1", WaitMS: 5,
		Handover: Handover{ID: "x", Leader: "a", Successor: "b", DeadlineMS: 10, State: HandoverAnnounced},
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Error(diff)
	}
}

func TestHandoverKeys(t *testing.T) {
	for _, k := range []Keys{NewKeys("", "s1", ""), NewKeys("db/prod", "s1", "x/y")} {
		namespace, scope, err := k.SplitHandover(k.Handover())
		if err != nil || namespace != k.Namespace() || scope != "s1" {
			t.Errorf("%s: %q %q %v", k.Handover(), namespace, scope, err)
		}
	}
	k := NewKeys("", "s1", "")
	for _, key := range []string{"", "lictor/handovers/", "lictor/handovers/s", "lictor/handovers/a/", k.Route()} {
		if _, _, err := k.SplitHandover(key); err == nil {
			t.Errorf("%q was taken", key)
		}
	}
}

func TestBouncerServes(t *testing.T) {
	b, err := ParseBouncer("b1", []byte(`{"name":"b1","url":"http://h:1","shards":["service/s1"]}`))
	if err != nil || !b.Serves("service", "s1") || b.Serves("service", "s2") || b.Serves("other", "s1") {
		t.Errorf("%+v %v", b, err)
	}
	b, err = ParseBouncer("b1", []byte(`{"name":"b1","url":"http://h:1","all":true}`))
	if err != nil || !b.Serves("service", "s2") {
		t.Errorf("%+v %v", b, err)
	}
	const others = `{"name":"b2","url":"http://h:1","all":true}`
	for _, text := range []string{``, `{}`, `{"name":"b1"}`, `[]`, others} {
		if _, err := ParseBouncer("b1", []byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// A bouncer that may no longer write what it has applied into a key of its own has it beside
// its name, while the other key stays as it was.
func TestAppliedInTheOwnKeyIsNewer(t *testing.T) {
	const stale = `{"applied":{"service/s1":{"leader":"old","timeline":1}}}`
	if b := (Bouncer{}).WithApplied([]byte(stale)); b.Applied["service/s1"].Leader != "old" {
		t.Errorf("%+v", b)
	}
	own := Bouncer{Applied: map[string]BouncerShard{"service/s1": {Leader: "new", Timeline: 2}}}
	if b := own.WithApplied([]byte(stale)); b.Applied["service/s1"].Leader != "new" {
		t.Errorf("%+v", b)
	}
}
