package routes

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

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
