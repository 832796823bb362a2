package api

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/printable"
)

// Whoever may make a session in Consul can register a URL as a bouncer's, and send on
// who comes to it.
func TestBouncersGetNoCredentials(t *testing.T) {
	var asked []http.Header
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the request went on to where the forged bouncer sent it")
	}))
	defer elsewhere.Close()
	forged := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header)
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}))
	defer forged.Close()
	login := config.Credentials{Username: "admin", Password: "secret"}
	client, err := NewBouncerClient(config.Ctl{Authentication: login}, config.RestAPI{Authentication: login})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, path := range []string{"/poke", "/handover"} {
		if err := client.PostJSON(t.Context(), forged.URL, path, map[string]string{}, nil); err == nil || !strings.Contains(err.Error(), "307") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if status, err := client.Status(t.Context(), forged.URL); err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("/status: %v, %v", status, err)
	}
	if len(asked) != 3 {
		t.Errorf("%d requests", len(asked))
	}
	for _, header := range asked {
		for name, values := range header {
			if name == "Authorization" || name == "Cookie" || strings.Contains(strings.Join(values, " "), login.Password) {
				t.Errorf("the forged bouncer was shown %s: %v", name, values)
			}
		}
	}
	for _, url := range []string{"http://user:secret@127.0.0.1:1", "file:///etc/passwd", "", "127.0.0.1:8009"} {
		if err := client.PostJSON(t.Context(), url, "/poke", nil, nil); err == nil {
			t.Errorf("%q was asked", url)
		}
	}
}

// What a bouncer answers fills no screen: a JSON decoder repeats a number that it cannot take.
func TestBouncersAnswerIsCut(t *testing.T) {
	forged := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"busy":`+strings.Repeat("1", bouncerAnswerLimit-100)+`}`)
	}))
	defer forged.Close()
	client, err := NewBouncerClient(config.Ctl{}, config.RestAPI{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var answer cluster.HandoverAnswer
	if err := client.PostJSON(t.Context(), forged.URL, "/handover", nil, &answer); err == nil || len(err.Error()) > 2*printable.MaxText {
		t.Errorf("an error of %d bytes", len(fmt.Sprint(err)))
	}
}

// A member's key says where its API is. Where TLS is configured, a key that names
// plain HTTP gets no password.
func TestNoPasswordInPlainTextWhereTLSIsConfigured(t *testing.T) {
	asked := 0
	forged := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer forged.Close()
	login := config.Credentials{Username: "admin", Password: "secret"}
	ca := newCert(t, t.TempDir(), "ca.pem", "127.0.0.1")
	client := newTestClient(t, config.Ctl{}, config.RestAPI{CAFile: ca, Authentication: login})
	if _, err := client.Post(t.Context(), Peer{APIURL: forged.URL}, "/reload", nil); err == nil || !strings.Contains(err.Error(), "without TLS") {
		t.Errorf("%v", err)
	}
	if asked != 0 {
		t.Error("it was asked")
	}
}
