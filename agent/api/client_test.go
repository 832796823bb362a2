package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

func newTestClient(t *testing.T, ctl config.Ctl, rest config.RestAPI) *Client {
	t.Helper()
	c, err := NewClient(ctl, rest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestStatusOfPatroniMembers(t *testing.T) {
	seen := time.Unix(1795230000, 0)
	tests := []struct {
		name, body string
		want       PeerStatus
	}{
		{
			"3.0 primary", `{"state": "running", "postmaster_start_time": "2026-11-21 02:49:57.598387+00:00", "role": "master",
			"server_version": 150020, "xlog": {"location": 83886160}, "timeline": 2,
			"replication": [{"usename": "replicator", "application_name": "node2", "client_addr": "10.0.0.2", "state": "streaming", "sync_state": "async", "sync_priority": 0}],
			"dcs_last_seen": 1795230000, "tags": {"new_tag": "new_value"}, "database_system_identifier": "7277694203142172922",
			"patroni": {"version": "3.0.2", "scope": "batman"}}`,
			PeerStatus{
				Scope: "batman", Version: "3.0.2", State: "running", Role: "master", Accepting: true, Primary: true, Timeline: 2,
				LSN: 83886160, ServerVersion: 150020, SystemIdentifier: "7277694203142172922",
				Tags: map[string]any{"new_tag": "new_value"}, ConsulSeen: seen,
			},
		},
		{
			"4.1 replica", `{"state": "running", "role": "replica", "server_version": 150020,
			"xlog": {"received_location": 83886160, "replayed_location": 83886000, "replayed_timestamp": null, "paused": false},
			"timeline": 2, "quorum_standby": true, "replication_state": "streaming", "pause": true, "cluster_unlocked": true,
			"dcs_last_seen": 1795230000, "pending_restart": true, "pending_restart_reason": {"a": {"old_value": 1}}, "watchdog_failed": true,
			"patroni": {"version": "4.1.4", "scope": "batman", "name": "node2"}}`,
			PeerStatus{
				Name: "node2", Scope: "batman", Version: "4.1.4", State: "running", Role: "replica", Accepting: true, Timeline: 2,
				LSN: 83886160, ReceivedLSN: 83886160, ReplayedLSN: 83886000, ServerVersion: 150020, ReplicationState: "streaming",
				SyncStandby: true, Pause: true, Unlocked: true, PendingRestart: true, WatchdogFailed: true, ConsulSeen: seen,
			},
		},
		{
			"wal instead of xlog", `{"state":"running","role":"replica","wal":{"received_location":1,"replayed_location":5},"patroni":{}}`,
			PeerStatus{State: "running", Role: "replica", Accepting: true, LSN: 5, ReceivedLSN: 1, ReplayedLSN: 5},
		},
		{"stopped", `{"state":"stopped","role":"demoted","patroni":{"version":"4.1.4"}}`, PeerStatus{State: "stopped", Role: "demoted", Version: "4.1.4"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			member := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/patroni" || r.Header.Get("Authorization") != "" {
					t.Errorf("%s %v", r.URL, r.Header)
				}
				_, _ = io.WriteString(w, tt.body)
			}))
			defer member.Close()
			client := newTestClient(t, config.Ctl{}, config.RestAPI{Authentication: config.Credentials{Username: "u", Password: "p"}})
			got, err := client.Status(t.Context(), Peer{APIURL: member.URL + "/patroni"})
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

func TestStatusOfLictorMembers(t *testing.T) {
	client := newTestClient(t, config.Ctl{}, config.RestAPI{})
	at := now().Add(-time.Second)
	stopClock := func(s *Server) { s.now = now }
	primary := start(t, config.RestAPI{}, fixed(primaryState(at)), stopClock)
	got, err := client.Status(t.Context(), Peer{APIURL: primary.url + "/patroni"})
	if err != nil {
		t.Fatal(err)
	}
	if !got.Accepting || !got.Primary || got.LSN != 100*mega || got.Timeline != 2 || got.Name != "node1" || !got.ConsulSeen.Equal(at) {
		t.Errorf("%+v", got)
	}
	want := &PeerLictor{
		Leads: true, LeaseLeft: 6 * time.Second, GuardRunning: true, GuardArmedFor: 5 * time.Second, Reason: "leading",
		Beat: &cluster.Beat{LeaseMS: 8000, Number: 42, Owner: "node1"}, LoopAge: time.Second, ObservedAge: -1,
	}
	if !reflect.DeepEqual(got.Lictor, want) {
		t.Errorf("%+v, want %+v", got.Lictor, want)
	}
	replica := start(t, config.RestAPI{}, fixed(replicaState(at)), stopClock)
	got, err = client.Status(t.Context(), Peer{APIURL: replica.url + "/patroni"})
	if err != nil {
		t.Fatal(err)
	}
	if got.Primary || !got.Accepting || got.LSN != 100*mega || got.ReplayedLSN != 99*mega || got.Lictor == nil || got.Lictor.Leads {
		t.Errorf("%+v", got)
	}
}

func TestStatusErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		status     int
		body, says string
	}{
		"no JSON":         {200, "hello", "not JSON"},
		"something else":  {200, `{"hello":1}`, "not a member's REST API"},
		"server error":    {500, `{}`, "500"},
		"sent elsewhere":  {302, "", "302"},
		"endless":         {200, strings.Repeat(" ", answerLimit+1), "longer than"},
		"another's shape": {200, `{"state":["running"]}`, "not JSON of the expected shape"},
	} {
		t.Run(name, func(t *testing.T) {
			member := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://127.0.0.1:1/")
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			}))
			defer member.Close()
			_, err := newTestClient(t, config.Ctl{}, config.RestAPI{}).Status(t.Context(), Peer{APIURL: member.URL})
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), member.URL) {
				t.Errorf("error %v, want one that says %q and where", err, tt.says)
			}
		})
	}
	client := newTestClient(t, config.Ctl{}, config.RestAPI{})
	for _, apiURL := range []string{"", "db1:8008", "ftp://db1/", "http://", "http://user:hush@db1/patroni", "http://a b/"} {
		if _, err := client.Status(t.Context(), Peer{APIURL: apiURL}); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", apiURL, err)
		}
	}
}

func TestClientObeysItsContext(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	member := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-release
	}))
	defer member.Close()
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := newTestClient(t, config.Ctl{}, config.RestAPI{}).Status(ctx, Peer{APIURL: member.URL}); err == nil {
		t.Error("a member that does not answer gave no error")
	}
}

func TestRequests(t *testing.T) {
	type seen struct {
		method, url, body, user, password, contentType string
	}
	var got seen
	member := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		user, password, _ := r.BasicAuth()
		got = seen{r.Method, r.URL.String(), string(body), user, password, r.Header.Get("Content-Type")}
		w.Header().Set(reasonHeader, "because")
		w.Header().Set(tookHeader, "812")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "Switchover scheduled\n")
	}))
	defer member.Close()
	client := newTestClient(t, config.Ctl{Authentication: config.Credentials{Username: "u", Password: "p"}}, config.RestAPI{})
	apiURL := member.URL + "/patroni"
	body := map[string]any{"a": 1}
	for _, tt := range []struct {
		call func() (Answer, error)
		want seen
	}{
		{func() (Answer, error) { return client.Post(t.Context(), Peer{APIURL: apiURL}, "/restart", body) }, seen{"POST", "/restart", `{"a":1}`, "u", "p", "application/json"}},
		{func() (Answer, error) { return client.Post(t.Context(), Peer{APIURL: apiURL}, "reload", nil) }, seen{"POST", "/reload", "", "u", "p", ""}},
		{func() (Answer, error) {
			return client.Patch(t.Context(), Peer{APIURL: apiURL}, "/config", json.RawMessage(`{"b":2}`))
		}, seen{"PATCH", "/config", `{"b":2}`, "u", "p", "application/json"}},
		{func() (Answer, error) { return client.Put(t.Context(), Peer{APIURL: apiURL}, "/config", body) }, seen{"PUT", "/config", `{"a":1}`, "u", "p", "application/json"}},
		{func() (Answer, error) { return client.Delete(t.Context(), Peer{APIURL: apiURL}, "/switchover") }, seen{"DELETE", "/switchover", "", "u", "p", ""}},
		{func() (Answer, error) { return client.Ask(t.Context(), Peer{APIURL: apiURL}, "/replica?lag=1MB") }, seen{"GET", "/replica?lag=1MB", "", "", "", ""}},
	} {
		a, err := tt.call()
		if err != nil || got != tt.want {
			t.Errorf("%+v, %v, want %+v", got, err, tt.want)
		}
		if want := (Answer{Status: 202, Text: "Switchover scheduled", Reason: "because", Took: 812 * time.Millisecond}); a != want || !a.OK() {
			t.Errorf("%+v", a)
		}
	}
	if _, err := client.Post(t.Context(), Peer{APIURL: apiURL}, "/restart", func() {}); err == nil {
		t.Error("a body that is no JSON was sent")
	}
}

func TestClientTrust(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := newCert(t, dir, "ours", "batman.patroni"), newCert(t, dir, "theirs", "batman.patroni")
	server := start(t, config.RestAPI{CertFile: ours, CAFile: ours, VerifyClient: "optional"}, fixed(primaryState(time.Now())))
	tests := []struct {
		name string
		ctl  config.Ctl
		rest config.RestAPI
		ok   bool
	}{
		{"the member's own settings", config.Ctl{}, config.RestAPI{CertFile: ours, KeyFile: ours, CAFile: ours}, true},
		{"ctl's settings win", config.Ctl{CACert: ours}, config.RestAPI{CAFile: theirs}, true},
		{"another authority", config.Ctl{CACert: theirs}, config.RestAPI{}, false},
		{"the system's authorities", config.Ctl{}, config.RestAPI{}, false},
		{"insecure", config.Ctl{Insecure: true}, config.RestAPI{}, true},
		{"insecure, with a certificate: the chain still counts", config.Ctl{Insecure: true, CACert: theirs}, config.RestAPI{CertFile: ours}, false},
		{"insecure, with a certificate and the authority", config.Ctl{Insecure: true}, config.RestAPI{CertFile: ours, CAFile: ours}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newTestClient(t, tt.ctl, tt.rest).Status(t.Context(), Peer{APIURL: server.url + "/patroni"})
			if (err == nil) != tt.ok {
				t.Errorf("error %v, want success %v", err, tt.ok)
			}
		})
	}
	// The certificate is for 127.0.0.1 alone.
	localhost := strings.Replace(server.url, "127.0.0.1", "localhost", 1)
	for name, tt := range map[string]struct {
		ctl config.Ctl
		ok  bool
	}{
		"its name is compared":               {config.Ctl{CACert: ours}, false},
		"unless that is switched off":        {config.Ctl{CACert: ours, VerifyNames: new(bool)}, true},
		"which is no trust in everybody":     {config.Ctl{CACert: theirs, VerifyNames: new(bool)}, false},
		"nor without authorities in anybody": {config.Ctl{VerifyNames: new(bool)}, false},
	} {
		client, err := NewBouncerClient(tt.ctl, config.RestAPI{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newTestClient(t, tt.ctl, config.RestAPI{}).Status(t.Context(), Peer{APIURL: localhost}); (err == nil) != tt.ok {
			t.Errorf("%s: member: error %v", name, err)
		}
		// It is no bouncer, so that its answer, where it gives one, is an error, too.
		if _, err := client.Status(t.Context(), localhost); strings.Contains(err.Error(), "answers 503") != tt.ok {
			t.Errorf("%s: bouncer: error %v", name, err)
		}
		client.Close()
	}
	if _, err := NewClient(config.Ctl{CACert: filepath.Join(dir, "none")}, config.RestAPI{}); err == nil {
		t.Error("a file of authorities that is not there was taken")
	}
}

func TestClientFollowsNewAuthorities(t *testing.T) {
	dir := t.TempDir()
	cert, ca := newCert(t, dir, "member", "member"), newCert(t, dir, "ca", "another")
	server := start(t, config.RestAPI{CertFile: cert}, fixed(primaryState(time.Now())))
	client := newTestClient(t, config.Ctl{CACert: ca}, config.RestAPI{})
	if _, err := client.Status(t.Context(), Peer{APIURL: server.url}); err == nil {
		t.Fatal("a member of another authority was trusted")
	}
	writeFile(t, ca, readFile(t, cert)+readFile(t, ca))
	if _, err := client.Status(t.Context(), Peer{APIURL: server.url}); err != nil {
		t.Errorf("after the file changed: %v", err)
	}
}

// A question before an election waits for a new look at PostgreSQL, and the answer
// tells how old that is; a look that takes too long holds up nobody.
func TestObserve(t *testing.T) {
	at := time.Now()
	for name, test := range map[string]struct {
		look func(*State)
		min  time.Duration
		max  time.Duration
	}{
		"a new look":      {func(s *State) { s.ObservedAt = time.Now() }, 0, 10 * time.Second},
		"an old one":      {func(s *State) { s.ObservedAt = at.Add(-time.Hour) }, time.Hour, 2 * time.Hour},
		"never looked at": {func(*State) {}, -1, -1},
	} {
		t.Run(name, func(t *testing.T) {
			var state atomic.Pointer[State]
			first := replicaState(at)
			state.Store(&first)
			node := fixed(first)
			node.state = func() State { return *state.Load() }
			asked := 0
			node.observe = func(context.Context) {
				asked++
				seen := *state.Load()
				test.look(&seen)
				state.Store(&seen)
			}
			server := start(t, config.RestAPI{}, node, func(*Server) {})
			client, err := NewClient(config.Ctl{}, config.RestAPI{})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			got, err := client.Observe(t.Context(), Peer{APIURL: server.url + "/patroni", Patroni: true})
			if err != nil {
				t.Fatal(err)
			}
			if age := got.Lictor.ObservedAge; asked != 1 || age < test.min || age > test.max {
				t.Errorf("looked %d times, age %s", asked, age)
			}
			if _, err := client.Status(t.Context(), Peer{APIURL: server.url + "/patroni"}); err != nil || asked != 1 {
				t.Errorf("a plain question: %v, looked %d times", err, asked)
			}
		})
	}
}
