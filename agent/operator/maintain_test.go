package operator

import (
	"encoding/json"
	"testing"
)

func TestCloning(t *testing.T) {
	for status, want := range map[string]string{
		`{"state":"creating replica"}`:                                                                        "creating replica",
		`{"state":"creating replica","lictor":{"task":{"from":"db2"}}}`:                                       "creating replica from db2",
		`{"state":"creating replica","lictor":{"task":{"from":"db2","bytes":3000000,"total_bytes":8000000}}}`: "creating replica from db2: 30 % of 7 MB",
		`{"state":"creating replica","lictor":{"task":{"from":"db2","bytes":9000000,"total_bytes":8000000}}}`: "creating replica from db2: 100 % of 7 MB",
		`{"state":"running"}`: "running, not streaming yet",
		`{"state":"running","replication_state":"streaming"}`:            "running, streaming",
		`{"state":"starting","lictor":{"task":{"kind":"reinitialize"}}}`: "starting",
	} {
		var now memberStatus
		if err := json.Unmarshal([]byte(status), &now); err != nil {
			t.Fatal(err)
		}
		if got := cloning(now); got != want {
			t.Errorf("%s: %q, want %q", status, got, want)
		}
	}
}
