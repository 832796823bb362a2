package bouncer

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// manager stands for systemd.
type manager struct {
	ready, alive atomic.Int64
	every        time.Duration
	status       atomic.Value
	// came is when the loop came round last, patience how much longer than the unit says it may be away.
	came     atomic.Pointer[time.Time]
	patience atomic.Int64
}

var _ Manager = (*manager)(nil)

func (m *manager) Ready()                        { m.ready.Add(1) }
func (m *manager) KeepAliveEvery() time.Duration { return m.every }
func (m *manager) MayHang(longest time.Duration) { m.patience.Store(int64(longest)) }
func (m *manager) Status(text string)            { m.status.Store(text) }

func (m *manager) Alive() {
	now := time.Now()
	m.came.Store(&now)
	m.alive.Add(1)
}

// late is for how long the loop has not come round, allowed for how long it may: three times within that
// systemd.Notifier wants to hear of it.
func (m *manager) late() time.Duration    { return time.Since(*m.came.Load()) }
func (m *manager) allowed() time.Duration { return 3*m.every + time.Duration(m.patience.Load()) }

func (w *world) awaitReady(times int64) {
	w.t.Helper()
	w.await("readiness", func() error {
		if n := w.manager.ready.Load(); n != times {
			return fmt.Errorf("said %d times, want %d", n, times)
		}
		return nil
	})
}

// Ready means that the API serves and that a configuration with all that is known
// stands; a loop that does not come round is not alive.
func TestReadyMeansServing(t *testing.T) {
	w := newWorld(t, nil)
	w.manager.every = 20 * time.Millisecond
	w.proxy.set(true) // no Consul, and no knowledge of old
	stop := w.bouncer()
	w.await("Consul being missed", func() error {
		if text := w.log.String(); !strings.Contains(text, "Consul cannot be reached") || !strings.Contains(text, "PgBouncer cannot be reached") {
			return fmt.Errorf("the log is %s", text)
		}
		return nil
	})
	alive := w.manager.alive.Load()
	w.await("keepalives though nothing happens", func() error {
		if n := w.manager.alive.Load(); n < alive+3 {
			return fmt.Errorf("%d, before %d", n, alive)
		}
		return nil
	})
	if n := w.manager.ready.Load(); n > 0 {
		t.Fatal("ready without any route")
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.proxy.set(false)
	w.awaitReady(1) // PgBouncer can be started now
	text, err := os.ReadFile(w.config.PgBouncer.Config)
	if err != nil || !strings.Contains(string(text), fmt.Sprintf("port=%d", w.site.members[0].Port)) {
		t.Fatalf("ready with %q, %v", text, err)
	}
	if _, err := w.status(); err != nil {
		t.Fatalf("ready without its API: %v", err)
	}
	w.pgbouncer()
	w.awaitLeader(0)
	w.await("a word on how things are", func() error {
		if text := fmt.Sprint(w.manager.status.Load()); text != "1 shards, all routes applied and verified" {
			return fmt.Errorf("it is %q", text)
		}
		return nil
	})
	w.changes <- w.config
	w.awaitReady(2)
	stop()
	// What is known from before is enough, also without Consul; but what runs
	// must have it.
	w.proxy.set(true)
	w.bouncer()
	w.awaitReady(3)
	if s, err := w.status(); err != nil || s.Shards["service/s1"].VerifiedAt == nil {
		t.Fatalf("ready before PgBouncer was looked at: %+v, %v", s, err)
	}
}
