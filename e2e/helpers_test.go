package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// patience bounds every wait in these tests. It says nothing about how fast
// things are: that is measured by `make bench`.
const patience = 2 * time.Minute

// start builds a lab and waits until its shards are whole.
func start(t *testing.T, opts lab.Options) *lab.Lab {
	t.Helper()
	l := labtest.New(t, opts)
	ctx := within(t)
	if err := l.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, s := range l.Shards() {
		if _, err := s.AwaitHealthy(ctx); err != nil {
			t.Fatal(err)
		}
		if !opts.Async {
			if err := s.AwaitSync(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	return l
}

func within(t *testing.T) context.Context { t.Helper(); return testkit.Within(t, patience) }

// must fails the test on an error.
func must(t *testing.T, err error) { t.Helper(); testkit.Must(t, err) }

// got is must for functions that also return a value.
func got[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return value
	}
}

func await(ctx context.Context, t *testing.T, what string, probe func() error) {
	t.Helper()
	testkit.Await(ctx, t, what, probe)
}

// clients writes through the load balancer while change happens, waits until
// the shard is whole again, and checks that nothing acknowledged was lost.
func clients(t *testing.T, s *lab.Shard, change func(ctx context.Context)) *lab.Workload {
	t.Helper()
	ctx := within(t)
	w := s.StartWorkload(ctx, lab.WorkloadOptions{})
	t.Cleanup(w.Stop)
	labtest.AwaitWrites(ctx, t, w)
	change(ctx)
	labtest.AwaitWrites(ctx, t, w)
	w.Stop()
	_ = got(s.AwaitHealthy(ctx))(t)
	loss := got(w.LostAcked(ctx))(t)
	if loss.Lost > 0 {
		t.Errorf("%d of %d acknowledged rows are gone: %v", loss.Lost, loss.Acked, loss.IDs)
	}
	t.Logf("acknowledged %d, errors %d, longest gap %s", w.Writes.Acked(), w.Writes.ErrorCount(),
		w.Writes.LongestGap(time.Time{}, time.Now()))
	return w
}

func put(ctx context.Context, t *testing.T, l *lab.Lab, key, value string) {
	t.Helper()
	must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
		_, err := c.KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, (&api.WriteOptions{}).WithContext(ctx))
		return err
	}))
}
