package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/operator"
)

func row(name, state string) operator.ShardRow {
	text, _ := json.Marshal(map[string]string{"name": name, "state": state})
	return operator.ShardRow{Name: name, JSON: text}
}

func TestStreamTellsWhatIsDifferent(t *testing.T) {
	var s stream
	state := operator.FleetState{Number: 1, View: operator.FleetView{
		Columns: []operator.ColumnView{{Name: "Shard"}}, Shards: []operator.ShardRow{row("a", "well"), row("b", "well")}, Poolers: operator.Sheet{Title: "Poolers"},
	}}
	say := func(seen uint64, want uint64, parts ...string) {
		t.Helper()
		text, number, err := s.message(state, seen)
		if err != nil || number != want || (len(parts) == 0) != (text == nil) {
			t.Fatalf("seen %d: number %d, %q, %v", seen, number, text, err)
		}
		for _, part := range parts {
			if without, not := strings.CutPrefix(part, "!"); not == strings.Contains(string(text), without) {
				t.Errorf("seen %d, %s: %s", seen, part, text)
			}
		}
	}
	say(0, 1, "event: shards\ndata: {", `"whole":true`, `"columns":`, `"name":"a"`, `"name":"b"`, "Poolers", "!gone")
	say(1, 1)
	state.Number, state.View.Shards = 2, []operator.ShardRow{row("a", "ill"), row("c", "new")}
	say(1, 2, `"state":"ill"`, `"name":"c"`, `"gone":["b"]`, "!whole", "!Poolers", "!columns")
	say(0, 2, `"whole":true`, `"state":"ill"`)
	state.Number, state.View.Shards = 3, []operator.ShardRow{row("a", "ill"), row("c", "old")}
	say(2, 3, `"state":"old"`, "!ill", "!gone")
	say(1, 3, `"whole":true`, `"state":"ill"`) // it was too slow for what was different from its view
	older := state
	older.Number = 2
	if _, number, _ := s.message(older, 3); number != 3 {
		t.Errorf("a state that was taken before goes back to %d", number)
	}
	// Who has looked before the view that the others know already gets that one, too.
	older = state
	state.Number, state.View.Shards = 4, []operator.ShardRow{row("c", "old"), row("d", "new")}
	say(3, 4, `"name":"d"`, `"gone":["a"]`)
	state = older
	say(0, 4, `"whole":true`, `"name":"c"`, `"name":"d"`, "![null", `!"name":"a"`)
}

func TestAge(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		state operator.FleetState
		want  string
	}{
		{operator.FleetState{}, `{"age_ms":-1}`},
		{operator.FleetState{Problem: "Consul cannot be asked"}, `{"age_ms":-1,"problem":"Consul cannot be asked"}`},
		{operator.FleetState{Number: 1, At: now.Add(-1500 * time.Millisecond)}, `{"age_ms":1500}`},
		{operator.FleetState{Number: 1, At: now.Add(time.Second)}, `{"age_ms":0}`}, // a clock was set
	} {
		text, err := age(c.state, now)
		if want := "event: age\ndata: " + c.want + "\n\n"; err != nil || string(text) != want {
			t.Errorf("got %q, %v, want %q", text, err, want)
		}
	}
}

func load(t *testing.T, text string) (Config, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, warnings, err := Load(settings.Source{Path: path})
	var texts []string
	for _, w := range warnings {
		texts = append(texts, w.String())
	}
	return c, strings.Join(texts, "\n"), err
}

func TestSettings(t *testing.T) {
	for _, c := range []struct{ text, refused, warned string }{
		{text: "{}"},
		{text: "listen: 127.0.0.1:9999\nconsul: {host: https://consul:8501}"},
		{text: "listen: somewhere", refused: `listen: "somewhere": must be host:port`},
		{text: "listen: 127.0.0.1:99999", refused: "listen:"},
		{text: "lisen: 127.0.0.1:1", refused: "lisen: is not a known key; did you mean listen?"},
		{text: "authentication: {username: 'x:y', password: z}", refused: "authentication: username must not have a colon"},
		{text: "authentication: {username: x}", refused: "authentication: username and password must be set together"},
		{text: "verify_client: optional", refused: `verify_client: "optional": must be one of none, required`},
		{text: "verify_client: required", refused: "certfile: must be set: verify_client is required"},
		{text: "keyfile: /nowhere", refused: "certfile: must be set together with keyfile"},
		{text: "certfile: /nowhere/cert.pem", refused: "certfile: cannot be used:"},
		{text: "ctl: {cacert: /nowhere/ca.pem}", refused: "ctl.cacert: cannot be used:"},
		{text: "ctl: {keyfile: /nowhere}", refused: "ctl.certfile: must be set together with ctl.keyfile"},
		{text: "namespace: a//b", refused: `namespace: "a//b":`},
		{text: "zone_tag: 'a b'", refused: `zone_tag: "a b":`},
		{text: "log: {format: xml}", refused: `log.format: "xml": must be one of auto, console, json`},
		{text: "consul: {host: 'http://u:p@h'}", refused: "consul.host:"},
		{text: "listen: 0.0.0.0:8010", warned: "everybody who reaches 0.0.0.0:8010 sees all shards"},
		{text: "listen: 0.0.0.0:8010\nauthentication: {username: x, password: y}", warned: "the password crosses the network in clear text"},
	} {
		got, warned, err := load(t, c.text)
		switch {
		case c.refused == "" && (err != nil || got.Listen == "" || got.Namespace != "service"):
			t.Errorf("%s: %v", c.text, err)
		case c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)):
			t.Errorf("%s: %v, want %s", c.text, err, c.refused)
		case (c.warned == "") != (warned == "") || !strings.Contains(warned, c.warned):
			t.Errorf("%s: warned %q, want %q", c.text, warned, c.warned)
		}
	}
	if _, _, err := load(t, "authentication: {username: x, password: [hunter2]}"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("an error tells a password: %v", err)
	}
	c, _, err := Load(settings.Source{Environ: []string{"LICTOR_LISTEN=127.0.0.1:7", "CONSUL_HTTP_ADDR=consul:8500"}})
	if err != nil || c.Listen != "127.0.0.1:7" || c.Consul.Host != "consul:8500" {
		t.Errorf("from the environment: %+v, %v", c, err)
	}
}

// serve makes a server of a file's settings, to be asked without a network.
func serve(t *testing.T, text string) *Server {
	t.Helper()
	c, _, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(c, "1.2.3", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhoMayRead(t *testing.T) {
	open := serve(t, "{}")
	closed := serve(t, "authentication: {username: operator, password: secret}\n")
	c, _, _ := load(t, "{}")
	c.VerifyClient = "required" // TLS would have asked for it
	certified, err := New(c, "", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	shown := func(r *http.Request) { r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}} }
	for _, path := range []string{"/", "/app.js", "/live", "/shards/x", "/runbooks/no-leader", "/version", "/nowhere"} {
		for _, c := range []struct {
			name   string
			server *Server
			edit   func(*http.Request)
			denied int
		}{
			{"everybody", open, func(*http.Request) {}, 0},
			{"by a link of another page", open, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 0},
			{"by the name of another site", open, func(r *http.Request) { r.Host = "evil.example" }, http.StatusForbidden},
			{"nobody without a password", closed, func(*http.Request) {}, http.StatusUnauthorized},
			{"nobody with a wrong one", closed, func(r *http.Request) { r.SetBasicAuth("operator", "secre") }, http.StatusUnauthorized},
			{"who has it", closed, func(r *http.Request) { r.SetBasicAuth("operator", "secret"); r.Host = "fleet.example" }, 0},
			{"nobody without a certificate", certified, func(*http.Request) {}, http.StatusForbidden},
			{"who has one", certified, shown, 0},
			{"who has one, by the name of another site", certified, func(r *http.Request) { shown(r); r.Host = "evil.example" }, http.StatusForbidden},
		} {
			if path == "/live" && c.denied == 0 {
				continue // it lasts
			}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1"+path, nil)
			c.edit(r)
			w := httptest.NewRecorder()
			c.server.http.Handler.ServeHTTP(w, r)
			if (w.Code == http.StatusUnauthorized || w.Code == http.StatusForbidden) != (c.denied != 0) || c.denied != 0 && w.Code != c.denied {
				t.Errorf("%s, %s: %d %s", path, c.name, w.Code, w.Body)
			}
			if text := w.Body.String(); c.denied == http.StatusForbidden && strings.Contains(text, "changes") {
				t.Errorf("%s, %s: who reads is told of changes: %s", path, c.name, text)
			}
			policy := w.Header().Get("Content-Security-Policy")
			if !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s, %s: headers %v", path, c.name, w.Header())
			}
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		w := httptest.NewRecorder()
		open.http.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, "http://127.0.0.1/shards/x", nil))
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
}

// The page's files: no markup is made of what others have written, and nothing stands inline or
// comes from elsewhere, which the policy would not let it.
func TestPageMakesNoMarkup(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b|new Function|srcdoc|style="|\bon[a-z]+="|<script>|<style|https?://[^w]|//cdn|@import|url\(`)
	seen := 0
	err := fs.WalkDir(files, "page", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		seen++
		text, err := files.ReadFile(path)
		if found := forbidden.Find(text); found != nil {
			t.Errorf("%s has %q", path, found)
		}
		return err
	})
	if err != nil || seen < 6 {
		t.Errorf("%d files: %v", seen, err)
	}
}

// slowReader reads a part at a time, and notes by when.
type slowReader struct {
	http.ResponseWriter
	parts, deadlines int
	longest          int
}

func (s *slowReader) SetWriteDeadline(time.Time) error { s.deadlines++; return nil }

func (s *slowReader) Write(part []byte) (int, error) {
	s.parts++
	s.longest = max(s.longest, len(part))
	return len(part), nil
}

// Who reads slowly gets a large fleet in the end: the limit is that of a part, not of all of it.
func TestLargeMessagesAreSentInParts(t *testing.T) {
	r := &slowReader{ResponseWriter: httptest.NewRecorder()}
	if err := send(r, make([]byte, 10*writePart+1)); err != nil || r.parts != 11 || r.deadlines != 11 || r.longest > writePart {
		t.Errorf("%v: %+v", err, r)
	}
	r = &slowReader{ResponseWriter: httptest.NewRecorder()}
	if err := send(r, nil); err != nil || r.parts != 0 {
		t.Errorf("nothing: %v, %+v", err, r)
	}
}

// A server ends though a browser has its stream open, and the stream tells why it shows nothing.
func TestStreamEndsWithTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := serve(t, "listen: 127.0.0.1:0\nconsul: {host: '127.0.0.1:1'}\n")
	ready, ended := make(chan string, 1), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func(address string) { ready <- address }) }()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+<-ready+"/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Fatalf("%d, %s", answer.StatusCode, kind)
	}
	heard := ""
	for buffer := make([]byte, 4096); !strings.Contains(heard, "Consul cannot be asked at 127.0.0.1:1"); {
		n, err := answer.Body.Read(buffer)
		if heard += string(buffer[:n]); err != nil {
			t.Fatalf("%v after %q", err, heard)
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the server does not end")
	}
}

// Streams are for so many, and for half as many of one address: one address keeps nobody out.
func TestLookersAreLimited(t *testing.T) {
	s := serve(t, "{}")
	addr := func(host byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, host}) }
	look := func(from string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/live", nil)
		r.RemoteAddr = from
		w := httptest.NewRecorder() // which cannot be kept open, so that who is let in is told so
		s.page.ServeHTTP(w, r)
		return w
	}
	var leave []func()
	for i := range mostLookers {
		one, ok := s.page.lookers.enter(addr(byte(1 + i/lookersFrom)))
		if !ok {
			t.Fatalf("the %dth is turned away", i+1)
		}
		leave = append(leave, one)
		if i == lookersFrom-1 {
			if w := look("10.0.0.1:4711"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
				t.Errorf("one address has all: %d", w.Code)
			}
			if w := look("10.0.0.2:4711"); !strings.Contains(w.Body.String(), "cannot be kept open") {
				t.Errorf("another address: %d %s", w.Code, w.Body)
			}
		}
	}
	if w := look("10.0.0.3:4711"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("one more than there may be: %d", w.Code)
	}
	for _, one := range leave {
		one()
	}
	if w := look("10.0.0.1:4711"); !strings.Contains(w.Body.String(), "cannot be kept open") || s.page.lookers.all != 0 || len(s.page.lookers.from) != 0 {
		t.Errorf("when all have left: %d %s, %+v", w.Code, w.Body, s.page.lookers.from)
	}
}

// All who ask for one shard get one answer, and a name that is none of a shard leaves nothing behind.
func TestShardsAnswersAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var shards sharedShards
		there := map[string]bool{"/shards/a": true, "/shards/b": true}
		exists := func(name string) bool { return there[name] }
		made, begin := atomic.Int64{}, make(chan struct{})
		handle := func(w http.ResponseWriter, r *http.Request) {
			made.Add(1)
			<-begin
			fmt.Fprint(w, r.URL.Path)
		}
		var asking sync.WaitGroup
		for i := range 50 {
			asking.Go(func() {
				path := []string{"/shards/a", "/shards/b"}[i%2]
				w := httptest.NewRecorder()
				shards.of(path, exists, handle).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
				if w.Body.String() != path {
					t.Errorf("%s: %s", path, w.Body)
				}
			})
		}
		synctest.Wait()
		close(begin)
		asking.Wait()
		if n := made.Load(); n != 4 { // the first of each shard, and all who came meanwhile
			t.Errorf("%d answers for 50 who asked", n)
		}
		shards.of("/shards/nowhere", exists, handle)
		delete(there, "/shards/a")
		shards.of("/shards/a", exists, handle)
		if len(shards.all) != 1 {
			t.Errorf("%d are remembered, of one shard", len(shards.all))
		}
	})
}
