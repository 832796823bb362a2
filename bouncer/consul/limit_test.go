package consul

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
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
	var answer strings.Builder
	answer.WriteString("[")
	value := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", 30000)))
	for i := range 100 {
		fmt.Fprintf(&answer, `{"Key": "service/s1/%d", "Value": %q},`, i, value)
	}
	answer.WriteString(`{"Key": "service/s1/last", "Value": ""}]`)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "1")
		w.Header().Set("X-Consul-KnownLeader", "true")
		_, _ = io.WriteString(w, answer.String())
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
		if n, err := list(ctx); err != nil || n != 101 {
			t.Errorf("%d pairs, %v", n, err)
		}
	}
	if n, err := list(Limited(t.Context(), int64(answer.Len()))); err != nil || n != 101 {
		t.Errorf("an answer of just that length: %d pairs, %v", n, err)
	}
	if n, err := list(Limited(t.Context(), int64(answer.Len())-1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("an answer of one byte more: %d pairs, %v", n, err)
	}
}
