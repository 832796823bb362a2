package agent

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// The first bouncer that misses the leader is the witness, whatever the others do; one on a host that is none is not asked.
func TestFirstToMiss(t *testing.T) {
	client, err := api.NewBouncerClient(config.Ctl{}, config.RestAPI{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var asked atomic.Int64
	pooler := func(name string, answer func(w http.ResponseWriter, r *http.Request)) cluster.Bouncer {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			var q cluster.Missing
			if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/misses" || q != (cluster.Missing{Namespace: "service", Scope: "orders", Leader: "db1", SilentMS: 300}) {
				t.Errorf("asked %s %+v %v", r.URL.Path, q, err)
			}
			answer(w, r)
		}))
		t.Cleanup(server.Close)
		return cluster.Bouncer{Name: name, URL: server.URL}
	}
	misses := pooler("misses", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") })
	hears := pooler("hears", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) })
	hangs := pooler("hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	b := &bouncers{namespace: "service", scope: "orders", client: client, log: zerolog.Nop()}
	ask := func(notOn []string, all ...cluster.Bouncer) string {
		return b.firstToMiss(t.Context(), all, "db1", notOn, 300*time.Millisecond)
	}
	elsewhere := []string{"192.0.2.1", "192.0.2.2"}
	began := time.Now()
	if got := ask(elsewhere, hangs, hears, misses); got != "misses" {
		t.Errorf("the witness is %q", got)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("the one that hangs was waited for: %s", took)
	}
	if got := ask(elsewhere, hears, hangs, cluster.Bouncer{Name: "x", URL: "http://127.0.0.1:1"}); got != "" {
		t.Errorf("%s is a witness", got)
	}
	before := asked.Load()
	if got := ask([]string{"127.0.0.1", "192.0.2.2"}, misses); got != "" || asked.Load() != before {
		t.Errorf("%s is a witness on the host of the leader, or of the one that asks", got)
	}
}
