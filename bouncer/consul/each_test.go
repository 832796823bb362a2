package consul

import (
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

// The pairs of a list are those that the client has, in its order; an answer that is cut off, or is no list, is an
// error, and no shorter one.
func TestEachPair(t *testing.T) {
	var long strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&long, `,{"LockIndex":0,"Key":"a/%d","Flags":7,"Value":"eA==","CreateIndex":3,"ModifyIndex":%d,"Session":"s"}`, i, i+9)
	}
	whole := "[" + long.String()[1:] + "]"
	for name, test := range map[string]struct {
		answer string
		status int
		fails  bool
	}{
		"none":         {answer: "[]", status: http.StatusOK},
		"no such key":  {status: http.StatusNotFound},
		"one":          {answer: `[{"Key":"a","Value":null,"ModifyIndex":1}]`, status: http.StatusOK},
		"many":         {answer: whole, status: http.StatusOK},
		"cut off":      {answer: whole[:len(whole)/2], status: http.StatusOK, fails: true},
		"cut at a end": {answer: whole[:strings.LastIndex(whole, ",{")], status: http.StatusOK, fails: true},
		"without ]":    {answer: whole[:len(whole)-1], status: http.StatusOK, fails: true},
		"nothing":      {answer: "", status: http.StatusOK, fails: true},
		"no list":      {answer: `{"Key":"a"}`, status: http.StatusOK, fails: true},
		"wrong value":  {answer: `[{"Key":"a","Value":7}]`, status: http.StatusOK, fails: true},
		"an error":     {answer: "[]", status: http.StatusInternalServerError, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Consul-Index", "7")
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.answer)
			}))
			defer server.Close()
			clients, err := NewClients(config.Config{Consul: settings.Consul{Hosts: []string{server.URL}}})
			testkit.Must(t, err)
			want, _, wantErr := clients[0].KV().List("a", new(api.QueryOptions).WithContext(t.Context()))
			var got api.KVPairs
			left, meta, err := clients[0].KV().List("a", new(api.QueryOptions).WithContext(EachPair(t.Context(), func(p api.KVPair) { got = append(got, &p) })))
			if (err != nil) != test.fails || (wantErr != nil) != test.fails || len(left) != 0 {
				t.Fatalf("%v, the client has %v; %d are left", err, wantErr, len(left))
			}
			if test.fails {
				return
			}
			if fmt.Sprint(deref(got)) != fmt.Sprint(deref(want)) || meta.LastIndex != 7 {
				t.Errorf("%v, want %v; index %d", deref(got), deref(want), meta.LastIndex)
			}
		})
	}
}

func deref(list api.KVPairs) (all []api.KVPair) {
	for _, p := range list {
		all = append(all, *p)
	}
	return all
}
