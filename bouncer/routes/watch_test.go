package routes

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
)

// A Consul that hangs is not waited for as long as one that has nothing new, where an answer is due at once: what has
// changed is what the list is read for.
func TestListIsNotAwaitedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, err := api.NewClient(api.DefaultConfig())
		if err != nil {
			t.Fatal(err)
		}
		pool, err := consul.NewPool([]*api.Client{client})
		if err != nil {
			t.Fatal(err)
		}
		w := NewWatcher(zerolog.Nop(), pool, NewTable(config.Config{RoutesPrefix: "lictor"}), nil, func() {})
		for index, atMost := range map[uint64]time.Duration{0: 15 * time.Second, 7: 2 * watchWait} {
			begun := time.Now()
			_, _, err := w.query(t.Context(), index, watchWait, func(_ int, options *api.QueryOptions) (*api.QueryMeta, error) {
				<-options.Context().Done()
				return nil, context.Cause(options.Context())
			})
			if took := time.Since(begun); err == nil || took > atMost || index > 0 && took < watchWait {
				t.Errorf("newer than %d: %v after %s", index, err, took)
			}
		}
	})
}

// What is in doubt is read again until that has succeeded: nothing else may change for hours.
func TestDoubtIsReadUntilItIsOver(t *testing.T) {
	const key = "lictor/routes/service/s1"
	var asked atomic.Int32
	pool := poolOf(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		older := testPair(t, key, 5, testRoute("h5"))
		testkit.Must(t, json.NewEncoder(w).Encode(api.KVPairs{{Key: key, Value: older.Value, ModifyIndex: 5, CreateIndex: 3}}))
	})
	c := config.Config{RoutesPrefix: "lictor"}
	table := NewTable(c)
	w := NewWatcher(zerolog.Nop(), pool, table, NewHandovers(c.Keys(), table.Serves), func() {})
	ctx, end := context.WithTimeout(t.Context(), 20*time.Second)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer end()
	serving.Go(func() { w.Serve(ctx) })
	for _, index := range []uint64{10, 5} { // a snapshot of Consul is restored
		w.take(Answer{Pairs: []Pair{testPair(t, key, index, testRoute("h10"))}, KnownLeader: true})
	}
	testkit.Await(ctx, t, "the older route is confirmed", func() error {
		if host := knownTo(table)["service/s1"].Route.Leader.Host; host != "h5" {
			return errors.New("known is " + host)
		}
		return nil
	})
}
