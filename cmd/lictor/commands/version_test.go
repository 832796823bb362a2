package commands

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	say := func(args string) string {
		t.Helper()
		var out bytes.Buffer
		root := Root()
		root.SetOut(&out)
		root.SetArgs(strings.Fields(args))
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatalf("%s: %v", args, err)
		}
		return out.String()
	}
	if got, want := say("version"), "lictor version "+version+"\n"; got != want {
		t.Errorf("version: %q, want %q", got, want)
	}
	for _, args := range []string{"version --json", "version -o json", "version -f json"} {
		var rows []map[string]string
		if err := json.Unmarshal([]byte(say(args)), &rows); err != nil || len(rows) != 1 || rows[0]["Version"] != version || rows[0]["Go"] == "" || !strings.HasPrefix(rows[0]["Platform"], "linux/") {
			t.Errorf("%s: %v, %v", args, rows, err)
		}
	}
}
