package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// What an answer quotes, of a request or of another member's key, is cut and has nothing
// that a terminal acts on; JSON means what it meant.
func TestAnswersAreCutAndPrintable(t *testing.T) {
	const evil = "\x1b[95mEVIL\x1b]0;title\x07\u202e\u2066\u009b31m\u0085\x7f\r\nspoof"
	state := primaryState(time.Now())
	state.Cluster.Members[1].Value.State = evil
	state.Cluster.Members[1].Value.Tags = map[string]any{evil: evil}
	state.Cluster.History.Value = cluster.History{{Timeline: 1, LSN: 1, Reason: evil, Time: evil, NewLeader: evil}}
	node := fixed(state)
	// A configuration with many keys that nobody knows.
	node.changeConfig = func(_ context.Context, change func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error) {
		changed, err := change(map[string]any{})
		var warnings []cluster.Warning
		for i := range 10_000 {
			warnings = append(warnings, cluster.Warning{Path: fmt.Sprintf("key%d", i), Text: "has no effect " + evil})
		}
		return changed, warnings, err
	}
	server := start(t, config.RestAPI{}, node)
	safe := func(what, text string, limit int) {
		t.Helper()
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%s: %.100q", what, text[i:])
		}
		if limit > 0 && len(text) > limit {
			t.Errorf("%s: %d bytes", what, len(text))
		}
	}
	for _, path := range []string{"/cluster", "/history", "/patroni", "/config"} {
		got := ask(t, "GET", server.url+path, "")
		safe(path, got.body, 0)
		if !json.Valid([]byte(got.body)) {
			t.Errorf("%s: not JSON: %s", path, got.body)
		}
	}
	var view struct {
		Members []struct {
			State string
		}
	}
	if err := json.Unmarshal([]byte(ask(t, "GET", server.url+"/cluster", "").body), &view); err != nil || len(view.Members) < 2 || view.Members[1].State != evil {
		t.Errorf("the state has become %+v, %v", view, err)
	}
	for _, method := range []string{"PATCH", "PUT"} {
		got := ask(t, method, server.url+"/config", `{"ttl":10}`)
		warning := got.header.Get(warningHeader)
		safe(method+" /config", warning, headerLimit)
		if got.status != http.StatusOK || !strings.HasPrefix(warning, "key0: has no effect ") {
			t.Errorf("%s: %d, %.100q", method, got.status, warning)
		}
	}
	long := strings.Repeat("x\x1b[31m", 10_000)
	for path, field := range map[string]string{"/switchover": "leader", "/failover": "candidate", "/restart": "postgres_version", "/reinitialize": "force"} {
		for _, value := range []string{evil, long} {
			body, err := json.Marshal(map[string]string{field: value, "role": value, "scheduled_at": value})
			if err != nil {
				t.Fatal(err)
			}
			got := ask(t, "POST", server.url+path, string(body))
			safe(path, got.body, 5000)
			safe(path, got.header.Get(reasonHeader), 5000)
		}
	}
}
