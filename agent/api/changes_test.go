package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// exchange is a request and the answer that must come.
type exchange struct {
	name   string
	node   func(*fakeNode)
	state  func(*State)
	compat string
	method string
	path   string
	body   string
	adjust func(*http.Request)
	status int
	want   string // empty: not compared
	has    string // is somewhere in the body
	reason string // of the header Lictor-Reason
}

func (e exchange) run(t *testing.T, state State) {
	t.Helper()
	if e.state != nil {
		e.state(&state)
	}
	node := fixed(state)
	if e.node != nil {
		e.node(node)
	}
	server := start(t, config.RestAPI{}, node, func(s *Server) { s.Compat = e.compat })
	var adjust []func(*http.Request)
	if e.adjust != nil {
		adjust = append(adjust, e.adjust)
	}
	got := ask(t, e.method, server.url+e.path, e.body, adjust...)
	if got.status != e.status {
		t.Errorf("status %d, want %d: %s", got.status, e.status, got.body)
	}
	same := got.body == e.want
	if strings.HasPrefix(e.want, "{") || strings.HasPrefix(e.want, "[") {
		same = sameJSON(t, got.body, e.want)
	}
	if e.want != "" && !same {
		t.Errorf("body %q, want %q", got.body, e.want)
	}
	if !strings.Contains(got.body, e.has) {
		t.Errorf("body %q lacks %q", got.body, e.has)
	}
	if r := got.header.Get(reasonHeader); r != e.reason {
		t.Errorf("reason %q, want %q", r, e.reason)
	}
}

// holding makes a node whose configuration is present.
func holding(present map[string]any) func(*fakeNode) {
	return func(n *fakeNode) {
		n.changeConfig = func(_ context.Context, change func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error) {
			changed, err := change(present)
			return changed, nil, err
		}
	}
}

// What of a new configuration is lowered, ignored or altered stands beside it, so that the
// body is what patronictl reads.
func TestConfigWarnings(t *testing.T) {
	node := fixed(State{Cluster: snapshot()})
	warnings := []cluster.Warning{{Path: "ttl", Text: "is lowered to 10"}, {Path: "nonsense", Text: "has no effect"}}
	node.changeConfig = func(_ context.Context, change func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error) {
		changed, err := change(map[string]any{"ttl": 8})
		return changed, warnings, err
	}
	server := start(t, config.RestAPI{}, node, func(*Server) {})
	for _, method := range []string{"PATCH", "PUT"} {
		got := ask(t, method, server.url+"/config", `{"ttl":10}`)
		if got.status != 200 || !sameJSON(t, got.body, `{"ttl":10}`) {
			t.Errorf("%s: %d %s", method, got.status, got.body)
		}
		if w, want := got.header.Get(warningHeader), "ttl: is lowered to 10; nonsense: has no effect"; w != want {
			t.Errorf("%s: warns %q, want %q", method, w, want)
		}
	}
	warnings = nil
	if got := ask(t, "PATCH", server.url+"/config", `{"ttl":10}`); got.header.Values(warningHeader) != nil {
		t.Errorf("warns %q of nothing", got.header.Get(warningHeader))
	}
}

func configError(err error) func(*fakeNode) {
	return func(n *fakeNode) {
		n.changeConfig = func(context.Context, func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error) {
			return nil, nil, err
		}
	}
}

func TestReading(t *testing.T) {
	history := cluster.Entry[cluster.History]{ModifyIndex: 1, Value: cluster.History{
		{Timeline: 1, LSN: 67109200, Reason: "no recovery target specified", Time: "2026-11-21T02:50:08.922841+00:00", NewLeader: "node2"},
	}}
	for _, e := range []exchange{
		{name: "config, as it stands", path: "/config", status: 200, want: `{"ttl":8,"unknown":{"kept":1.50}}`},
		{name: "no config", state: func(s *State) { s.Cluster.Config = cluster.Entry[[]byte]{} }, path: "/config", status: 502},
		{name: "config that is no JSON", state: func(s *State) { s.Cluster.Config.Value = []byte("{") }, path: "/config", status: 502},
		{name: "no history", path: "/history", status: 200, want: `[]`},
		{
			name: "history", state: func(s *State) { s.Cluster.History = history }, path: "/history", status: 200,
			want: `[[1,67109200,"no recovery target specified","2026-11-21T02:50:08.922841+00:00","node2"]]`,
		},
		{name: "failsafe off", path: "/failsafe", status: 502},
		{
			name: "failsafe", path: "/failsafe", status: 200, want: `{"node1":"http://10.0.0.1:8008/patroni"}`,
			state: func(s *State) {
				s.Cluster.Failsafe = cluster.Entry[map[string]string]{ModifyIndex: 1, Value: map[string]string{"node1": "http://10.0.0.1:8008/patroni"}}
			},
		},
	} {
		e.method = "GET"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestConfig(t *testing.T) {
	for _, e := range []exchange{
		{
			name: "patch merges deeply, null removes", method: "PATCH",
			node: holding(map[string]any{"ttl": 8, "loop_wait": 2, "postgresql": map[string]any{"use_slots": true, "parameters": map[string]any{"a": "1", "b": "2"}}}),
			body: `{"ttl":null,"retry_timeout":3,"big":9007199254740993,"postgresql":{"parameters":{"a":null,"c":null,"d":"4"}},"slots":{"s":{"type":"physical","x":null}}}`,
			want: `{"loop_wait":2,"retry_timeout":3,"big":9007199254740993,"postgresql":{"use_slots":true,"parameters":{"b":"2","d":"4"}},"slots":{"s":{"type":"physical"}}}`, status: 200,
		},
		{name: "patch: an object replaces a value", method: "PATCH", node: holding(map[string]any{"slots": 1}), body: `{"slots":{"a":{}}}`, status: 200, want: `{"slots":{"a":{}}}`},
		{name: "patch: lost race", method: "PATCH", node: configError(fmt.Errorf("write config: %w", ErrConflict)), body: `{"ttl":1}`, status: 409},
		{name: "patch: no config yet", method: "PATCH", node: configError(ErrNone), body: `{"ttl":1}`, status: 503},
		{name: "patch: refused", method: "PATCH", node: configError(fmt.Errorf("ttl: 1, must be 3 or more: %w", ErrRefused)), body: `{"ttl":1}`, status: 400, want: "ttl: 1, must be 3 or more"},
		{name: "patch: failed", method: "PATCH", node: configError(errors.New("no Consul")), body: `{"ttl":1}`, status: 503},
		{
			name: "numbers stay as they were written", method: "PUT", node: holding(nil), status: 200,
			body: `{"a":12345678901234567890123,"b":1.10,"c":1.5,"d":[0.1000]}`, want: `{"a":12345678901234567890123,"b":1.10,"c":1.5,"d":[0.1000]}`,
		},
		{name: "a key twice", method: "PUT", node: holding(nil), body: `{"postgresql":{"parameters":{"a":1,"b":2,"a":3}}}`, status: 400, want: "postgresql.parameters.a: is there twice"},
		{name: "put replaces", method: "PUT", node: holding(map[string]any{"ttl": 8}), body: `{"loop_wait":1}`, status: 200, want: `{"loop_wait":1}`},
		{name: "put: failed", method: "PUT", node: configError(errors.New("no Consul")), body: `{"ttl":1}`, status: 502},
		{name: "put: none", method: "PUT", node: configError(ErrNone), body: `{"ttl":1}`, status: 502},
	} {
		e.path = "/config"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestBodies(t *testing.T) {
	large := `{"a":"` + strings.Repeat("x", 600<<10) + `"}`
	for _, target := range []string{"PATCH /config", "PUT /config", "POST /switchover", "POST /failover"} {
		method, path, _ := strings.Cut(target, " ")
		for _, e := range []exchange{
			{name: "without Content-Length", body: "{}", adjust: chunked, status: 411},
			{name: "none", status: 400},
			{name: "not JSON", body: "ttl: 10", status: 400},
			{name: "cut off", body: `{"ttl":`, status: 400},
			{name: "an array", body: `[1]`, status: 400},
			{name: "null", body: `null`, status: 400},
			{name: "empty object", body: `{}`, status: 400},
			{name: "two objects", body: `{"a":1}{"b":2}`, status: 400},
			{name: "too large", body: large, status: 413},
		} {
			e.method, e.path = method, path
			t.Run(target+" "+e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
		}
	}
	for _, target := range []string{"POST /restart", "POST /reinitialize"} {
		method, path, _ := strings.Cut(target, " ")
		e := exchange{method: method, path: path, body: `[]`, status: 400}
		t.Run(target+" an array", func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestRouting(t *testing.T) {
	for _, e := range []exchange{
		{name: "unknown POST", method: "POST", path: "/nonsense", status: 501},
		{name: "unknown PUT", method: "PUT", path: "/patroni", status: 501},
		{name: "unknown method", method: "TRACE", path: "/primary", status: 501},
		{name: "only the first segment counts", method: "DELETE", path: "/restart/x/y", status: 404, want: "no restarts are scheduled"},
		{name: "GET of a command is a health check", method: "GET", path: "/restart", status: 503},
	} {
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestReload(t *testing.T) {
	reloading := func(err error) func(*fakeNode) {
		return func(n *fakeNode) { n.reload = func(context.Context) error { return err } }
	}
	for _, e := range []exchange{
		{name: "done", node: reloading(nil), status: 202, want: "reload scheduled"},
		{name: "bad file", node: reloading(errors.New("ttl: must be a number")), status: 500, want: "reload failed: ttl: must be a number"},
	} {
		e.method, e.path = "POST", "/reload"
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

func TestReinitialize(t *testing.T) {
	asked := func(want ReinitRequest, err error) func(*fakeNode) {
		return func(n *fakeNode) {
			n.reinitialize = func(_ context.Context, r ReinitRequest) error {
				if r != want {
					return fmt.Errorf("asked for %+v", r)
				}
				return err
			}
		}
	}
	forced := func(force bool, err error) func(*fakeNode) { return asked(ReinitRequest{Force: force}, err) }
	for _, e := range []exchange{
		{name: "begun", node: forced(false, nil), status: 200, want: "reinitialize started"},
		{name: "by force", node: forced(true, nil), body: `{"force":true}`, status: 200, want: "reinitialize started"},
		{name: "by force, in words", node: forced(true, nil), body: `{"force":"true"}`, status: 200, want: "reinitialize started"},
		{name: "from the leader", node: asked(ReinitRequest{FromLeader: true}, nil), body: `{"from_leader":true}`, status: 200, want: "reinitialize started"},
		{name: "busy", node: forced(false, fmt.Errorf("%w: restart already in progress", ErrRefused)), status: 503, want: "restart already in progress"},
		{name: "failed", node: forced(false, errors.New("no space")), status: 503, want: "reinitialize failed", reason: "no space"},
		{
			name: "the leader", state: func(s *State) { s.Name = "node1" }, status: 503,
			want: "I am the leader, can not reinitialize",
		},
		{
			name: "no leader", state: func(s *State) { s.Cluster.Leader = cluster.Entry[string]{} }, status: 503,
			want: "Cluster has no leader, can not reinitialize",
		},
	} {
		e.method, e.path = "POST", "/reinitialize"
		t.Run(e.name, func(t *testing.T) { e.run(t, replicaState(time.Now())) })
	}
}

// A client drops an answer whose header is too long, and nothing may end a line in it.
func TestReasonsAreShort(t *testing.T) {
	a := because(text(503, "restart failed"), "PostgreSQL did not start:\r\n "+strings.Repeat("ö", headerLimit))
	reason := a.headers[reasonHeader]
	if len(reason) > headerLimit+3 || !strings.HasPrefix(reason, "PostgreSQL did not start: ö") || !utf8.ValidString(reason) {
		t.Errorf("%d bytes: %.40q", len(reason), reason)
	}
	if a := because(text(503, "x"), " \n"); a.headers != nil {
		t.Errorf("no reason: %v", a.headers)
	}
}

func TestParseSeconds(t *testing.T) {
	good := map[string]time.Duration{"10": 10 * time.Second, "10s": 10 * time.Second, "2 min": 2 * time.Minute, "500ms": 500 * time.Millisecond, "1h": time.Hour, "1.5": 1500 * time.Millisecond}
	for _, in := range slices.Sorted(maps.Keys(good)) {
		if got, err := parseSeconds(in); err != nil || got != good[in] {
			t.Errorf("%q: %v, %v, want %v", in, got, err, good[in])
		}
	}
	for _, in := range []any{"", "0", "-1s", "10 parsecs", "1e9", nil, map[string]any{}, true} {
		if got, err := parseSeconds(in); err == nil {
			t.Errorf("%v: %v, want an error", in, got)
		}
	}
}
