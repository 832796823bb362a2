package consul

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// What one shard's keys say is read up to a limit, which is that request's own error, and no address's.
func TestLimited(t *testing.T) {
	sent := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "1")
		w.Header().Set("X-Consul-KnownLeader", "true")
		fmt.Fprint(w, "[")
		sent = 0
		for i, value := 0, base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", 30000))); i < 1000; i++ {
			n, err := fmt.Fprintf(w, `{"Key": "service/s1/%d", "Value": %q},`, i, value)
			if sent += n; err != nil {
				return
			}
		}
		fmt.Fprint(w, `{"Key": "service/s1/last", "Value": ""}]`)
	}))
	defer server.Close()
	clients, err := NewClients(config.Config{Consul: settings.Consul{Hosts: []string{server.URL}}})
	testkit.Must(t, err)
	list := func(ctx context.Context) (int, error) {
		pairs, _, err := clients[0].KV().List("service/s1", (&api.QueryOptions{}).WithContext(ctx))
		return len(pairs), err
	}
	if n, err := list(Limited(t.Context(), 1<<20)); !errors.Is(err, ErrTooLong) || NoAnswer(err) {
		t.Errorf("%d pairs, %v", n, err)
	}
	for _, ctx := range []context.Context{t.Context(), Limited(t.Context(), 64<<20)} {
		if n, err := list(ctx); err != nil || n != 1001 {
			t.Errorf("%d pairs, %v", n, err)
		}
	}
	if n, err := list(Limited(t.Context(), int64(sent+len(`[{"Key": "service/s1/last", "Value": ""}]`)))); err != nil || n != 1001 {
		t.Errorf("an answer of just that length: %d pairs, %v", n, err)
	}
}
