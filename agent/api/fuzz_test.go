package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/proof"
)

// FuzzBodies: whatever is sent to the REST API, it answers; what it refuses it refuses
// with 4xx or says why it cannot, in text that may be shown, and nothing unchecked gets to
// the node.
func FuzzBodies(f *testing.F) {
	paths := []string{"/switchover", "/failover", "/restart", "/reinitialize", "/config", "/failsafe", "/deposed", "/part", "/reload", "/nothing", "/restore"}
	methods := []string{http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete, http.MethodGet}
	for i, body := range []string{
		`{"leader":"node1","candidate":"node2"}`, `{"member":"node2"}`, `{"role":"primary","postgres_version":"15.3","timeout":10,"schedule":"2099-01-01T00:00Z"}`, `{"force":true}`,
		`{"ttl":20,"postgresql":{"parameters":{"work_mem":null}}}`, `{"name":"node1","api_url":"http://a:1","conn_url":"postgres://a:1","lictor":{"lease_ms":9223372036854775807,"index":1}}`,
		`{"leader":"node1","index":18446744073709551615}`, `{"leader":"../x","index":-1}`, `[`, `{"leader":"\u001b[2J","scheduled_at":"x"}`,
		`{"target":"2026-01-02T10:00:00+00:00","label":"20260101-000000F","timeline":2}`, `{"target":"2026-01-02T10:00Z","label":"../x\u001b[2J","timeline":1e400}`,
		`{"leader":"node1","index":7,"forced":true}`, `{"candidate":"node2","index":7}`, `{"candidate":"\u202e","index":1.5}`,
	} {
		f.Add(uint8(i), uint8(i), body)
		f.Add(uint8(i), uint8(0), body)
	}
	state, secret := primaryState(time.Now()), proof.NewSecret()
	name := func(t *testing.T, names ...string) {
		for _, n := range names {
			if n != "" && cluster.CheckName(n) != nil {
				t.Errorf("the name %q got to the node", n)
			}
		}
	}
	f.Fuzz(func(t *testing.T, path, method uint8, body string) {
		node := fixed(state)
		node.reload = func(context.Context) error { return nil }
		node.restart = func(context.Context) error { return nil }
		node.scheduleRestart = func(context.Context, RestartRequest) error { return nil }
		node.cancelRestart = func(context.Context) error { return ErrNone }
		node.reinitialize = func(context.Context, ReinitRequest) error { return nil }
		node.cancelSwitchover = func(context.Context) error { return ErrNone }
		node.failsafe = func(context.Context, FailsafeRequest) error { return errors.New("no") }
		node.deposed = func(context.Context, Deposition) error { return errors.New("no") }
		node.detach = func(context.Context, DetachRequest) error { return errors.New("no") }
		node.restore = func(_ context.Context, r RestoreRequest) error {
			if !backupLabel.MatchString(r.Label) || r.Target.IsZero() || r.Timeline < 0 {
				t.Errorf("%+v got to the node", r)
			}
			return nil
		}
		node.cancelRestore = func(context.Context) error { return ErrNone }
		node.switchover = func(_ context.Context, wanted cluster.Failover) (Outcome, error) {
			name(t, wanted.Leader, wanted.Candidate)
			return Outcome{Known: true, Done: true, Leader: "node2"}, nil
		}
		node.changeConfig = func(_ context.Context, change func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error) {
			changed, err := change(map[string]any{"ttl": 30, "loop_wait": 10, "retry_timeout": 10})
			return changed, nil, err
		}
		server, err := NewServer(config.RestAPI{Listen: "127.0.0.1:0"}, node, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		// The same without a proof, and of a member that knows the secret: its word is what handlers decode.
		keeper := keeping(secret)
		server.ProveWith(keeper)
		member := proof.Prover{Keeper: keeper}
		send := func(proved bool) (*http.Request, *httptest.ResponseRecorder) {
			request := httptest.NewRequestWithContext(t.Context(), methods[int(method)%len(methods)], paths[int(path)%len(paths)], strings.NewReader(body))
			request.RemoteAddr, request.Host, request.URL.Host = "127.0.0.1:1", "127.0.0.1", "127.0.0.1"
			answer := httptest.NewRecorder()
			if !proved {
				server.ServeHTTP(answer, request)
				return request, answer
			}
			asked := member.Sign(request, state.Name, []byte(body))
			server.ServeHTTP(answer, request)
			if resp := answer.Result(); member.Again(asked, resp) {
				return nil, nil
			}
			return request, answer
		}
		for _, proved := range []bool{false, true} {
			request, answer := send(proved)
			if request == nil { // it has the challenge now
				request, answer = send(proved)
			}
			if request == nil || proved && (answer.Code == http.StatusUnauthorized || answer.Code == http.StatusForbidden) {
				t.Fatalf("%s %s %q: a member's proof is not taken: %s", methods[int(method)%len(methods)], paths[int(path)%len(paths)], body, answer.Body)
			}
			if answer.Code < 200 || answer.Code > 599 || answer.Code == http.StatusInternalServerError {
				t.Errorf("%s %s %q: status %d: %s", request.Method, request.URL.Path, body, answer.Code, answer.Body)
			}
			if strings.ContainsFunc(answer.Body.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
				t.Errorf("%s %s %q: %q", request.Method, request.URL.Path, body, answer.Body)
			}
		}
	})
}

// FuzzStatus: whatever another member answers, it is understood or refused.
func FuzzStatus(f *testing.F) {
	for _, seed := range []string{
		`{"state":"running","role":"replica","timeline":1,"xlog":{"received_location":1},"patroni":{"version":"0.1.0"},"lictor":{"leads":true,"lease_left_ms":1}}`,
		`null`, `[`, `{"state":1}`, `{"state":"running","timeline":1e400}`, `{"role":"x","lictor":{"lease_left_ms":-9223372036854775808,"loop_age_ms":9223372036854775807}}`,
		"2099-01-01T00:00Z", "15.3", "10min",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := parseStatus([]byte(text)); err == nil && s.State == "" && s.Role == "" {
			t.Errorf("%s: %+v", text, s)
		}
		if at, zoned, ok := parseTime(text); !ok && zoned && !at.IsZero() {
			t.Errorf("%q: %v", text, at)
		}
		if n, problem := ParseVersion(text); problem == "" && n < 0 {
			t.Errorf("%q: %d", text, n)
		}
		if d, err := parseSeconds(text); err == nil && d <= 0 {
			t.Errorf("%q: %v", text, d)
		}
		_, _, _ = ParseRestartValue(map[string]any{"schedule": text, "postgres_version": text, "timeout": text})
	})
}
