package render

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul-template/dependency"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
)

// fakeKey answers every question for a key as Consul does, once the wait for a change
// is over, which a new value or the server's end cuts short.
type fakeKey struct {
	*httptest.Server
	token, value atomic.Pointer[string] // the token that may read, and the value
	changed      atomic.Uint64          // the index
	deaf         atomic.Bool            // takes requests and says nothing
}

func newFakeKey(t *testing.T, token, value string) *fakeKey {
	t.Helper()
	f := &fakeKey{}
	f.token.Store(&token)
	f.put(value)
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for f.deaf.Load() || r.URL.Query().Get("index") == fmt.Sprint(f.changed.Load()) && r.Header.Get("X-Consul-Token") == *f.token.Load() {
			select {
			case <-r.Context().Done():
				return
			case <-time.After(time.Millisecond):
			}
		}
		if r.Header.Get("X-Consul-Token") != *f.token.Load() {
			http.Error(w, "ACL not found", http.StatusForbidden)
			return
		}
		w.Header().Set("X-Consul-Index", fmt.Sprint(f.changed.Load()))
		fmt.Fprintf(w, `[{"Key": "k", "Value": %q}]`, base64.StdEncoding.EncodeToString([]byte(*f.value.Load())))
	}))
	t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

func (f *fakeKey) put(value string) { f.value.Store(&value); f.changed.Add(1) }

// Templates go on with the token that the file has by now, and with the addresses that
// answer.
func TestTemplatesFollowTokenAndAddresses(t *testing.T) {
	t.Parallel()
	first, second := newFakeKey(t, "old", "one"), newFakeKey(t, "old", "one")
	file := filepath.Join(t.TempDir(), "token")
	testkit.Must(t, os.WriteFile(file, []byte("old\n"), 0o600))
	c := config.Config{Consul: settings.Consul{Hosts: []string{first.URL, second.URL}, TokenFile: file}}
	clients, err := consul.NewClients(c)
	testkit.Must(t, err)
	pool, err := consul.NewPool(clients)
	testkit.Must(t, err)
	defer pool.Close()
	data := newTemplateData(newTemplateClients(c, pool))
	t.Cleanup(data.close)
	key, err := dependency.NewKVGetQuery("k")
	testkit.Must(t, err)
	testkit.Must(t, data.follow([]dependency.Dependency{key}))
	await := func(when, want string) {
		t.Helper()
		limit := time.After(30 * time.Second)
		for {
			if got, _ := data.brain.Recall(key); got == want {
				return
			}
			select {
			case <-data.news:
			case <-limit:
				t.Fatalf("%s: the template has no %q: %s", when, want, data.lastErr())
			}
		}
	}
	put := func(value string) { first.put(value); second.put(value) }
	await("at first", "one")

	testkit.Must(t, os.WriteFile(file, []byte("new\n"), 0o600))
	token := "new"
	first.token.Store(&token)
	second.token.Store(&token)
	put("two")
	await("with another token", "two")

	first.deaf.Store(true)
	pool.Fail(0) // what the bouncer's own requests find
	put("three")
	await("at another address", "three")

	first.deaf.Store(false)
	second.CloseClientConnections()
	second.Listener.Close()
	put("four")
	await("after the end of that address", "four")
}

// One that says nothing from the beginning holds no template up.
func TestTemplatesPassADeafAddress(t *testing.T) {
	t.Parallel()
	first, second := newFakeKey(t, "", "one"), newFakeKey(t, "", "one")
	first.deaf.Store(true)
	c := config.Config{Consul: settings.Consul{Hosts: []string{first.URL, second.URL}}}
	clients, err := consul.NewClients(c)
	testkit.Must(t, err)
	pool, err := consul.NewPool(clients)
	testkit.Must(t, err)
	defer pool.Close()
	data := newTemplateData(newTemplateClients(c, pool))
	t.Cleanup(data.close)
	key, err := dependency.NewKVGetQuery("k")
	testkit.Must(t, err)
	testkit.Must(t, data.follow([]dependency.Dependency{key}))
	select {
	case <-data.news:
	case <-time.After(30 * time.Second):
		t.Fatalf("no data: %s", data.lastErr())
	}
}

func TestIsWord(t *testing.T) {
	for text, want := range map[string]bool{
		"a": true, "0": true, "-5": true, "-5m": true, "5-": true, "a_b.c/d:e@f+g=h,i~j-k": true, "~": true, "a--b": true,
		"": false, "-": false, "--5": false, "-a": false, "-.5": false, "a b": false, "a\n": false, "é": false, "a;": false, "a\x00": false, "\xff": false,
	} {
		if isWord(text) != want {
			t.Errorf("isWord(%q) = %t", text, !want)
		}
	}
}
