package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/proof"
)

func TestFailsafeAndDeposed(t *testing.T) {
	agrees := func(n *fakeNode) {
		n.failsafe = func(_ context.Context, r FailsafeRequest) error {
			if want := (FailsafeRequest{Name: "node1", APIURL: "http://10.0.0.1:8008/patroni", Lictor: &FailsafeLease{LeaseMS: 8000, Index: 42}}); !reflect.DeepEqual(r, want) {
				return errors.New("misread")
			}
			return nil
		}
	}
	disagrees := func(n *fakeNode) {
		n.failsafe = func(context.Context, FailsafeRequest) error { return errors.New("Running as a leader") } //nolint:staticcheck // Patroni's words
	}
	hears := func(n *fakeNode) {
		n.deposed = func(_ context.Context, d Deposition) error {
			if d != (Deposition{Leader: "node2", Index: 43}) {
				return errors.New("misread")
			}
			return nil
		}
	}
	detaches := func(n *fakeNode) {
		n.detach = func(_ context.Context, p DetachRequest) error {
			if p != (DetachRequest{Candidate: "node2", Index: 43}) {
				return errors.New("misread")
			}
			return nil
		}
	}
	secret := keeping(testSecret())
	const request = `{"name":"node1","api_url":"http://10.0.0.1:8008/patroni","lictor":{"lease_ms":8000,"index":42}}`
	for _, e := range []exchange{
		{name: "agreed", node: agrees, path: "/failsafe", body: request, status: 200, want: "Accepted"},
		{name: "not agreed", node: disagrees, path: "/failsafe", body: request, status: 500, want: "Running as a leader"},
		{name: "Patroni's, to a leader", path: "/failsafe", body: `{"name":"node2"}`, status: 500, want: "Running as a leader"},
		{name: "Patroni's, failsafe mode off", state: func(s *State) { s.Leader = false }, path: "/failsafe", body: `{"name":"node2"}`, status: 502},
		{name: "no name", node: agrees, path: "/failsafe", body: `{"api_url":"u"}`, status: 400},
		{name: "a lease that is no number", node: agrees, path: "/failsafe", body: `{"name":"node1","lictor":{"lease_ms":"x"}}`, status: 400},
		{name: "empty", node: agrees, path: "/failsafe", body: `{}`, status: 400},
		{name: "deposed", node: hears, path: "/deposed", body: `{"leader":"node2","index":43}`, status: 200, want: "Heard"},
		{name: "deposed by nobody", node: hears, path: "/deposed", body: `{"index":43}`, status: 400},
		{name: "deposed without an index", node: hears, path: "/deposed", body: `{"leader":"node2"}`, status: 400},
		{name: "deposed, refused", node: hears, path: "/deposed", body: `{"leader":"node3","index":43}`, status: 409, want: "misread"},
		{name: "parted", node: detaches, path: "/part", body: `{"candidate":"node2","index":43}`, status: 200, want: "Parted"},
		{name: "detached for nobody", node: detaches, path: "/part", body: `{"index":43}`, status: 400},
		{name: "detached without an index", node: detaches, path: "/part", body: `{"candidate":"node2"}`, status: 400},
		{name: "detached, refused", node: detaches, path: "/part", body: `{"candidate":"node3","index":43}`, status: 409, want: "misread"},
	} {
		t.Run(e.name, func(t *testing.T) {
			state := primaryState(time.Now())
			if e.state != nil {
				e.state(&state)
			}
			node := fixed(state)
			if e.node != nil {
				e.node(node)
			}
			got, err := proving(t, secret).Post(t.Context(), Peer{Name: state.Name, APIURL: guarded(t, node).url}, e.path, json.RawMessage(e.body))
			if err != nil || got.Status != e.status || e.want != "" && got.Text != e.want {
				t.Errorf("%d %q, %v, want %d %q", got.Status, got.Text, err, e.status, e.want)
			}
			if !got.Proved || got.ProvedBy != state.Name {
				t.Errorf("the answer is proved: %v, by %q", got.Proved, got.ProvedBy)
			}
		})
	}
}

// guarded is a server that knows the shard's secret.
func guarded(t *testing.T, node Node) running {
	return start(t, config.RestAPI{}, node, func(s *Server) { s.ProveWith(keeping(testSecret())) })
}

func testSecret() proof.Secret { return proof.Secret{Current: bytes.Repeat([]byte{7}, 32)} }

func keeping(s proof.Secret) *proof.Keeper {
	var k proof.Keeper
	k.Keep(s)
	return &k
}

func proving(t *testing.T, k *proof.Keeper) *Client {
	t.Helper()
	c, err := NewClient(config.Ctl{}, config.RestAPI{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.ProveWith(k)
	return c
}

// unproved reports whether an error is that of an answer which nobody is known to have given.
func unproved(err error) bool { return errors.As(err, new(*Unproved)) }

// What members tell each other is taken from nobody else, wherever he sits and
// whatever else he may, and his answers count as nothing.
func TestMembersProveThemselves(t *testing.T) {
	heard := 0
	node := fixed(primaryState(time.Now()))
	node.failsafe = func(context.Context, FailsafeRequest) error { heard++; return nil }
	node.deposed = func(context.Context, Deposition) error { heard++; return nil }
	node.detach = func(context.Context, DetachRequest) error { heard++; return nil }
	node.reload = func(context.Context) error { return nil }
	rest := config.RestAPI{}
	rest.Authentication.Username, rest.Authentication.Password = "admin", "secret"
	server := start(t, rest, node, func(s *Server) { s.ProveWith(keeping(testSecret())) })
	bodies := map[string]string{
		"/failsafe": `{"name":"node1","lictor":{"lease_ms":8000,"index":42}}`,
		"/deposed":  `{"leader":"node2","index":43}`,
		"/part":     `{"candidate":"node2","index":43}`,
	}
	login := func(r *http.Request) { r.SetBasicAuth("admin", "secret") }
	for path, body := range bodies {
		t.Run("an operator without the secret asks "+path, func(t *testing.T) {
			if got := ask(t, "POST", server.url+path, body, login); got.status != http.StatusForbidden || heard != 0 {
				t.Errorf("%d %s, heard %d times", got.status, got.body, heard)
			}
		})
		t.Run("another shard's member asks "+path, func(t *testing.T) {
			other := proving(t, keeping(proof.NewSecret()))
			if a, err := other.Post(t.Context(), Peer{Name: node.state().Name, APIURL: server.url}, path, json.RawMessage(body)); !unproved(err) || a.OK() || heard != 0 || a.Proved {
				t.Errorf("%+v, %v, heard %d times", a, err, heard)
			}
		})
		t.Run("a member asks "+path, func(t *testing.T) {
			if a, err := proving(t, keeping(testSecret())).Post(t.Context(), Peer{Name: node.state().Name, APIURL: server.url}, path, json.RawMessage(body)); err != nil || !a.OK() || heard != 1 || !a.Proved {
				t.Errorf("%+v, %v, heard %d times", a, err, heard)
			}
			heard = 0
		})
	}
	t.Run("what can be read does not have it", func(t *testing.T) {
		current := testSecret().Current
		for _, path := range []string{"/patroni", "/config", "/cluster", "/metrics", "/history", "/failsafe", "/"} {
			body := ask(t, "GET", server.url+path, "", login).body
			for _, form := range []string{base64.StdEncoding.EncodeToString(current), hex.EncodeToString(current)} {
				if strings.Contains(body, form) {
					t.Errorf("%s: %s", path, body)
				}
			}
			if path == "/patroni" && !strings.Contains(body, proof.Fingerprint(current)) {
				t.Errorf("no fingerprint: %s", body)
			}
		}
	})
	t.Run("the secret's holder is an operator", func(t *testing.T) {
		if a, err := proving(t, keeping(testSecret())).Post(t.Context(), Peer{Name: node.state().Name, APIURL: server.url}, "/reload", nil); err != nil || a.Status != http.StatusAccepted {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

// relay passes requests on to a server, and lets a test change them.
func relay(t *testing.T, to string, change func(r *http.Request, body []byte) []byte) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		body = change(r, body)
		out, err := http.NewRequestWithContext(r.Context(), r.Method, to+r.URL.RequestURI(), bytes.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		out.Header = r.Header.Clone()
		resp, err := http.DefaultClient.Do(out)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		if _, err := io.Copy(w, resp.Body); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// Who sits between two members can neither change what they say, nor say it again, nor
// answer for another one.
func TestRelayedProofs(t *testing.T) {
	heard := 0
	node := fixed(primaryState(time.Now()))
	node.detach = func(context.Context, DetachRequest) error { heard++; return nil }
	server := guarded(t, node)
	me := Peer{Name: node.state().Name}
	var kept []*http.Request
	detaching := DetachRequest{Candidate: "node2", Index: 43}
	t.Run("unchanged", func(t *testing.T) {
		me.APIURL = relay(t, server.url, func(r *http.Request, body []byte) []byte {
			kept = append(kept, r)
			return body
		})
		if _, err := proving(t, keeping(testSecret())).Detach(t.Context(), me, detaching); err != nil || heard != 1 {
			t.Fatalf("%v, heard %d times", err, heard)
		}
	})
	t.Run("said again", func(t *testing.T) {
		for _, r := range kept {
			got := ask(t, "POST", server.url+"/part", `{"candidate":"node2","index":43}`, func(again *http.Request) { again.Header = r.Header.Clone() })
			if got.status == http.StatusOK || heard != 1 {
				t.Errorf("%d %s, heard %d times", got.status, got.body, heard)
			}
		}
	})
	t.Run("with another body", func(t *testing.T) {
		me.APIURL = relay(t, server.url, func(_ *http.Request, body []byte) []byte { return bytes.ReplaceAll(body, []byte("43"), []byte("44")) })
		if _, err := proving(t, keeping(testSecret())).Detach(t.Context(), me, detaching); err == nil || heard != 1 {
			t.Errorf("%v, heard %d times", err, heard)
		}
	})
	t.Run("to another path", func(t *testing.T) {
		me.APIURL = relay(t, server.url, func(r *http.Request, body []byte) []byte { r.URL.Path = "/deposed"; return body })
		if _, err := proving(t, keeping(testSecret())).Detach(t.Context(), me, detaching); err == nil || heard != 1 {
			t.Errorf("%v, heard %d times", err, heard)
		}
	})
	t.Run("to another member", func(t *testing.T) {
		other := Peer{Name: "node7", APIURL: relay(t, server.url, func(_ *http.Request, body []byte) []byte { return body })}
		if _, err := proving(t, keeping(testSecret())).Detach(t.Context(), other, detaching); err == nil || !strings.Contains(err.Error(), "another member") || heard != 1 {
			t.Errorf("%v, heard %d times", err, heard)
		}
	})
	for name, answer := range map[string]http.HandlerFunc{
		"somebody who says yes":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) },
		"somebody who plays Patroni": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotImplemented) },
		"somebody who always asks back": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Lictor-Challenge", rand.Text())
			w.WriteHeader(http.StatusUnauthorized)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(answer)
			defer s.Close()
			c, fake := proving(t, keeping(testSecret())), Peer{Name: "node3", APIURL: s.URL}
			if known, err := c.Detach(t.Context(), fake, detaching); err == nil || !known {
				t.Errorf("detached: %v %v", known, err)
			}
			if err := c.Failsafe(t.Context(), fake, FailsafeRequest{Name: "node1", Lictor: &FailsafeLease{LeaseMS: 1, Index: 1}}); err == nil {
				t.Error("promised")
			}
			if _, err := c.Observe(t.Context(), fake); err == nil {
				t.Error("observed")
			}
		})
	}
}

// Whoever took the port of a member that is down learns no password, and keeps nobody
// from that member when it is back.
func TestSomebodyHasTheMembersPort(t *testing.T) {
	rest := config.RestAPI{}
	rest.Authentication.Username, rest.Authentication.Password = "admin", "secret"
	client, err := NewClient(config.Ctl{}, rest)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.ProveWith(keeping(testSecret()))
	detached := 0
	node := fixed(primaryState(time.Now()))
	node.detach = func(context.Context, DetachRequest) error { detached++; return nil }
	back := start(t, rest, node, func(s *Server) { s.ProveWith(keeping(testSecret())) })

	var thief atomic.Pointer[string]
	port := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		challenge := thief.Load()
		if challenge == nil {
			u, err := url.Parse(back.url)
			if err != nil {
				t.Error(err)
			}
			httputil.NewSingleHostReverseProxy(u).ServeHTTP(w, r)
			return
		}
		if r.Header.Get("Authorization") != "" {
			t.Error("the password was sent to somebody who is no member")
		}
		w.Header()["Lictor-Challenge"] = []string{*challenge}
		w.Header().Set("WWW-Authenticate", `Basic realm="Patroni"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer port.Close()
	member := Peer{Name: node.state().Name, APIURL: port.URL}
	for _, challenge := range []string{"", "x", "a\x0bb", "a\xffb", "é", strings.Repeat("a", 64), strings.Repeat("a", 32), strings.Repeat("ab", 1<<15)} {
		thief.Store(&challenge)
		for range 2 {
			if _, err := client.Detach(t.Context(), member, DetachRequest{Candidate: "node2", Index: 43}); err == nil {
				t.Fatalf("%.20q: believed", challenge)
			}
		}
		thief.Store(nil)
		if _, err := client.Detach(t.Context(), member, DetachRequest{Candidate: "node2", Index: 43}); err != nil {
			t.Errorf("%.20q: the member is not reached any more: %v", challenge, err)
		}
	}
}

// What a member's port answers is that member's only where it is proved, whatever was asked;
// a member of Patroni's can prove nothing.
func TestAnswersAreProved(t *testing.T) {
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"state":"running","role":"replica"}`)
	}))
	defer thief.Close()
	node := fixed(primaryState(time.Now()))
	node.reload = func(context.Context) error { return nil }
	member := guarded(t, node)
	for name, ask := range map[string]func(c *Client, p Peer) (Answer, error){
		"get":  func(c *Client, p Peer) (Answer, error) { return c.Ask(t.Context(), p, "/patroni") },
		"post": func(c *Client, p Peer) (Answer, error) { return c.Post(t.Context(), p, "/reload", nil) },
		"patch": func(c *Client, p Peer) (Answer, error) {
			return c.Patch(t.Context(), p, "/config", map[string]any{"ttl": 20})
		},
		"put": func(c *Client, p Peer) (Answer, error) {
			return c.Put(t.Context(), p, "/config", map[string]any{"ttl": 20})
		},
		"delete": func(c *Client, p Peer) (Answer, error) { return c.Delete(t.Context(), p, "/switchover") },
	} {
		t.Run(name, func(t *testing.T) {
			client := proving(t, keeping(testSecret()))
			if status, err := proving(t, &proof.Keeper{}).For(keeping(testSecret())).Status(t.Context(), Peer{Name: "node1", APIURL: thief.URL}); !unproved(err) {
				t.Errorf("somebody's status is taken for the member's: %+v, %v", status, err)
			}
			if a, err := ask(client, Peer{Name: "node1", APIURL: thief.URL}); !unproved(err) || !strings.Contains(err.Error(), "does not prove to be node1") {
				t.Errorf("somebody who has the port: %+v, %v", a, err)
			}
			if a, err := ask(client, Peer{Name: "node1", APIURL: member.url}); err != nil || !a.Proved || a.ProvedBy != "node1" {
				t.Errorf("the member: %+v, %v", a, err)
			}
			if a, err := ask(client, Peer{Name: "node1", APIURL: thief.URL, Patroni: true}); err != nil || !a.OK() {
				t.Errorf("a member of Patroni's: %+v, %v", a, err)
			}
			if a, err := ask(proving(t, &proof.Keeper{}), Peer{Name: "node1", APIURL: thief.URL}); err != nil || a.Proved {
				t.Errorf("without the secret: %+v, %v", a, err)
			}
		})
	}
}

// A key that lacks what Lictor's members write in theirs has no command send the password to
// where it says the member is, once the secret is held.
func TestPasswordsOfThoseWhoHaveTheSecret(t *testing.T) {
	var user string
	port := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { user, _, _ = r.BasicAuth() }))
	defer port.Close()
	rest := config.RestAPI{}
	rest.Authentication.Username, rest.Authentication.Password = "admin", "secret"
	held, none := keeping(testSecret()), &proof.Keeper{}
	for _, tt := range []struct {
		name    string
		prove   func(*Client)
		patroni bool
		sent    bool
	}{
		{"a command", func(c *Client) { c.ProveOnly(held) }, true, false},
		{"a command, to a member of Lictor's", func(c *Client) { c.ProveOnly(held) }, false, false},
		{"a command that cannot read the secret", func(c *Client) { c.ProveOnly(none) }, true, true},
		{"a command that cannot read the secret, to a member of Lictor's", func(c *Client) { c.ProveOnly(none) }, false, true},
		{"an agent in a mixed shard", func(c *Client) { c.ProveWith(held) }, true, true},
		{"an agent, to a member of Lictor's", func(c *Client) { c.ProveWith(held) }, false, false},
	} {
		client, err := NewClient(config.Ctl{}, rest)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		tt.prove(client)
		_, err = client.Post(t.Context(), Peer{Name: "node1", APIURL: port.URL, Patroni: tt.patroni}, "/restart", nil)
		if (user != "") != tt.sent || err != nil && !unproved(err) {
			t.Errorf("%s: the password was sent: %v, want %v (%v)", tt.name, user != "", tt.sent, err)
		}
	}
}

// What an operator asks of one member is done by no other one, whoever passes it on: also
// where that one would take it without a proof, from root on its own host or from an address
// in its allowlist. Whoever may write a shard's keys says where its members are.
func TestRequestIsForOneMember(t *testing.T) {
	node := fixed(replicaState(time.Now()))
	node.reinitialize = func(context.Context, ReinitRequest) error { t.Error("another member was reinitialized"); return nil }
	node.restart = func(context.Context) error { t.Error("another member was restarted"); return nil }
	node.changeConfig = func(context.Context, func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error) {
		t.Error("another shard's configuration was changed")
		return nil, nil, nil
	}
	password := config.RestAPI{}
	password.Authentication.Username, password.Authentication.Password = "admin", "secret"
	for name, rest := range map[string]config.RestAPI{
		"password": password, "this host": {}, "allowlist": {Allowlist: []string{"127.0.0.0/8"}},
	} {
		server := start(t, rest, node, func(s *Server) { s.ProveWith(keeping(testSecret())) })
		to := relay(t, server.url, func(_ *http.Request, body []byte) []byte { return body })
		for asked, from := range map[string]struct {
			member string
			secret proof.Secret
		}{"another member": {"node7", testSecret()}, "another shard's member": {node.state().Name, proof.NewSecret()}} {
			t.Run(name+", "+asked, func(t *testing.T) {
				client, peer := proving(t, keeping(from.secret)), Peer{Name: from.member, APIURL: to}
				for _, path := range []string{"/reinitialize", "/restart"} {
					if a, err := client.Post(t.Context(), peer, path, map[string]any{}); !unproved(err) || a.OK() || a.Proved {
						t.Errorf("%s: %+v, %v", path, a, err)
					}
				}
				if a, err := client.Patch(t.Context(), peer, "/config", map[string]any{"ttl": 20}); !unproved(err) || a.OK() || a.Proved {
					t.Errorf("/config: %+v, %v", a, err)
				}
			})
		}
	}
}

// A member that has not read the secret yet promises nothing, and says so.
func TestNoSecretYet(t *testing.T) {
	node := fixed(primaryState(time.Now()))
	node.detach = func(context.Context, DetachRequest) error { t.Error("parted"); return nil }
	server := start(t, config.RestAPI{}, node, func(s *Server) { s.ProveWith(&proof.Keeper{}) })
	_, err := proving(t, keeping(testSecret())).Detach(t.Context(), Peer{Name: "node1", APIURL: server.url}, DetachRequest{Candidate: "node2", Index: 43})
	if err == nil || !strings.Contains(err.Error(), "does not know the shard's secret yet") {
		t.Errorf("%v", err)
	}
}

// While the secret is changed, members that know of the change and members that do not
// yet believe each other.
func TestSecretIsRotated(t *testing.T) {
	node := fixed(primaryState(time.Now()))
	node.detach = func(context.Context, DetachRequest) error { return nil }
	old := proof.NewSecret()
	announced := old.Announce()
	rotated := announced.Rotate()
	believes := func(server, client proof.Secret) bool {
		s := start(t, config.RestAPI{}, node, func(s *Server) { s.ProveWith(keeping(server)) })
		_, err := proving(t, keeping(client)).Detach(t.Context(), Peer{Name: node.state().Name, APIURL: s.url}, DetachRequest{Candidate: "node2", Index: 43})
		return err == nil
	}
	for _, pair := range [][2]proof.Secret{{old, announced}, {announced, old}, {announced, rotated}, {rotated, announced}, {rotated, rotated.Forget()}, {rotated.Forget(), rotated}} {
		if !believes(pair[0], pair[1]) {
			t.Errorf("%v does not believe %v", pair[0].Fingerprints(), pair[1].Fingerprints())
		}
	}
	if believes(rotated.Forget(), old) || believes(rotated.Forget(), announced) {
		t.Error("the old secret is believed for ever")
	}
}

// What a member of Patroni's asks changes who may write, so it needs the credentials that
// other requests which change something need.
func TestFailsafeNeedsCredentials(t *testing.T) {
	asked := false
	state := replicaState(time.Now())
	state.Leader, state.Dynamic.FailsafeMode = false, true
	node := fixed(state)
	node.failsafe = func(context.Context, FailsafeRequest) error { asked = true; return nil }
	rest := config.RestAPI{}
	rest.Authentication.Username, rest.Authentication.Password = "admin", "secret"
	server := start(t, rest, node, func(*Server) {})
	request := FailsafeRequest{Name: "node1"}
	for name, test := range map[string]struct {
		password string
		ok       bool
	}{"right": {"secret", true}, "wrong": {"guess", false}} {
		t.Run(name, func(t *testing.T) {
			asked = false
			mine := config.RestAPI{}
			mine.Authentication.Username, mine.Authentication.Password = "admin", test.password
			client, err := NewClient(config.Ctl{}, mine)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			err = client.Failsafe(t.Context(), Peer{Name: "node2", APIURL: server.url + "/patroni", Patroni: true}, request)
			if (err == nil) != test.ok || asked != test.ok {
				t.Errorf("error %v, asked %v", err, asked)
			}
			if err != nil && strings.Contains(err.Error(), test.password) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}
