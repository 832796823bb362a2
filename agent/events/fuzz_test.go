package events

import (
	"encoding/json"
	"testing"
	"time"
)

// FuzzParse: whatever the key holds, what is read of it can be merged, written and read
// again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `[`, `{"version":1,"events":[{"at":"2026-01-01T00:00:00Z","kind":"failover","by":"a","to":"b","phases":[{"name":"noticed","at_ms":5}]}]}`,
		`{"events":[{"took_ms":9223372036854775807,"timeline":-1,"cause":"\u001b"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		l, err := Parse(value)
		if err != nil {
			return
		}
		for _, e := range l.Events {
			_, _ = e.Took(), e.id()
			_, _ = e.Phase(Noticed)
		}
		merged := l.Merge([]Event{{At: time.Unix(1000, 0).UTC(), Kind: Crash, By: "a"}})
		text, err := json.Marshal(merged)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(text); err != nil {
			t.Fatal(err)
		}
	})
}
