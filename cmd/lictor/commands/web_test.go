package commands

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// The page that a bouncer serves is for those whom the bouncer lets read it, and for nobody else.
func TestBouncerPageAsksWhoReads(t *testing.T) {
	c := config.Config{Web: true, WebNamespace: "service", Consul: settings.Consul{Host: "127.0.0.1:1"}}
	page, err := bouncerPage(c, httpserver.NewAccess(httpserver.AccessSettings{Username: "reader", Password: "open"}))
	testkit.Must(t, err)
	for _, path := range []string{"/", "/live", "/shards/x", "/runbooks/no-leader"} {
		for password, want := range map[string]int{"": http.StatusUnauthorized, "wrong": http.StatusUnauthorized} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:8009"+path, nil)
			if password != "" {
				r.SetBasicAuth("reader", password)
			}
			w := httptest.NewRecorder()
			if page.ServeHTTP(w, r); w.Code != want {
				t.Errorf("%s with the password %q: %d, want %d", path, password, w.Code, want)
			}
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:8009/", nil)
	r.SetBasicAuth("reader", "open")
	w := httptest.NewRecorder()
	if page.ServeHTTP(w, r); w.Code != http.StatusOK {
		t.Errorf("who may read: %d %s", w.Code, w.Body)
	}
}
