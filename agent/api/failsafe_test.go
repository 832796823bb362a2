package api

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
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
	parts := func(n *fakeNode) {
		n.part = func(_ context.Context, p Parting) error {
			if p != (Parting{Candidate: "node2", Index: 43}) {
				return errors.New("misread")
			}
			return nil
		}
	}
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
		{name: "parted", node: parts, path: "/part", body: `{"candidate":"node2","index":43}`, status: 200, want: "Parted"},
		{name: "parted for nobody", node: parts, path: "/part", body: `{"index":43}`, status: 400},
		{name: "parted without an index", node: parts, path: "/part", body: `{"candidate":"node2"}`, status: 400},
		{name: "parted, refused", node: parts, path: "/part", body: `{"candidate":"node3","index":43}`, status: 409, want: "misread"},
	} {
		e.method = http.MethodPost
		t.Run(e.name, func(t *testing.T) { e.run(t, primaryState(time.Now())) })
	}
}

// Both change who may write, so they need the credentials that other requests
// which change something need.
func TestFailsafeNeedsCredentials(t *testing.T) {
	asked := false
	node := fixed(primaryState(time.Now()))
	node.failsafe = func(context.Context, FailsafeRequest) error { asked = true; return nil }
	rest := config.RestAPI{}
	rest.Authentication.Username, rest.Authentication.Password = "admin", "secret"
	server := start(t, rest, node, func(*Server) {})
	request := FailsafeRequest{Name: "node1", Lictor: &FailsafeLease{LeaseMS: 8000, Index: 1}}
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
			err = client.Failsafe(t.Context(), server.url+"/patroni", request)
			if (err == nil) != test.ok || asked != test.ok {
				t.Errorf("error %v, asked %v", err, asked)
			}
			if err != nil && strings.Contains(err.Error(), test.password) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}
