package routes

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
)

// Those of one shard who share a read get one that is new enough for each of them.
func TestSharedReadHasHighestIndex(t *testing.T) {
	life, end := context.WithCancel(t.Context())
	defer end()
	s := NewSharedReads(life)
	var (
		mu   sync.Mutex
		seen []uint64
	)
	begun, release := make(chan struct{}), make(chan struct{})
	read := func(_ context.Context, index uint64) error {
		mu.Lock()
		seen = append(seen, index)
		first := len(seen) == 1
		mu.Unlock()
		if first {
			close(begun)
			<-release
		}
		return nil
	}
	first := s.Ask("service/s1", 5, read)
	<-begun
	// These wait for the turn of the first, and so share one read.
	var others []*sharedRead
	for _, index := range []uint64{7, 9, 8} {
		others = append(others, s.Ask("service/s1", index, read))
	}
	close(release)
	for _, one := range append(others, first) {
		<-one.done
	}
	last := s.Ask("service/s1", 3, read)
	<-last.done
	s.Wait()
	if want := []uint64{5, 9, 3}; !slices.Equal(seen, want) {
		t.Errorf("read at %v, want %v", seen, want)
	}
}

// poolOf is a pool of one Consul server that answers so, as its leader.
func poolOf(t *testing.T, answer http.HandlerFunc) *consul.Pool {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-KnownLeader", "true")
		w.Header().Set("X-Consul-Index", "20")
		w.Header().Set("X-Consul-LastContact", "0")
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	clients, err := consul.NewClients(config.Config{Consul: settings.Consul{Hosts: []string{server.URL}}})
	testkit.Must(t, err)
	pool, err := consul.NewPool(clients)
	testkit.Must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// What Consul's leader has at the index that a poke tells of, or later, is taken in; anything else is read
// consistently.
func TestPokedRead(t *testing.T) {
	for name, test := range map[string]struct {
		known  uint64 // to the leader, when it is asked without a quorum; 0: it has no such key
		index  uint64
		status int // of that answer
		modes  []string
	}{
		"as told":     {known: 12, index: 12, modes: []string{"default"}},
		"newer":       {known: 15, index: 12, modes: []string{"default"}},
		"older":       {known: 11, index: 12, modes: []string{"default", "consistent"}},
		"no such key": {index: 12, status: http.StatusNotFound, modes: []string{"default", "consistent"}},
		"no answer":   {index: 12, status: http.StatusInternalServerError, modes: []string{"default", "consistent"}},
		"no index":    {known: 15, index: NoIndex, modes: []string{"consistent"}},
	} {
		t.Run(name, func(t *testing.T) {
			value, err := json.Marshal(testRoute("h1"))
			testkit.Must(t, err)
			var modes []string
			pool := poolOf(t, func(w http.ResponseWriter, r *http.Request) {
				mode, index := "default", test.known
				if r.URL.Query().Has("consistent") {
					mode, index = "consistent", 18
				}
				modes = append(modes, mode)
				if mode == "default" && test.status != 0 {
					w.WriteHeader(test.status)
					return
				}
				testkit.Must(t, json.NewEncoder(w).Encode(api.KVPairs{{Key: "lictor/routes/service/s1", Value: value, ModifyIndex: index, CreateIndex: 3}}))
			})
			table, changed := NewTable(config.Config{RoutesPrefix: "lictor"}), 0
			w := NewWatcher(zerolog.Nop(), pool, table, nil, func() { changed++ })
			testkit.Must(t, w.ReadRoute(t.Context(), "service/s1", test.index))
			want := test.known
			if slices.Contains(test.modes, "consistent") {
				want = 18
			}
			known, _ := table.Known()
			if k := known["service/s1"]; k.ModifyIndex != want || changed != 1 || !slices.Equal(modes, test.modes) {
				t.Errorf("known is %d, want %d; asked in modes %v, want %v; %d changes", k.ModifyIndex, want, modes, test.modes, changed)
			}
		})
	}
}
