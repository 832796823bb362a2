package bouncer

import (
	"fmt"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Whatever dies in whichever phase of a handover: when the successor serves and all
// is back, clients reach it and nothing is paused.
func TestHandoverSurvivesFaults(t *testing.T) {
	type actors struct {
		stopBouncer   func()
		killPgBouncer func()
	}
	faults := map[string]func(*world, *actors) (mend func()){
		"PgBouncer killed": func(w *world, a *actors) func() {
			a.killPgBouncer()
			return func() { a.killPgBouncer = w.pgbouncer() }
		},
		"bouncer ends": func(w *world, a *actors) func() {
			a.stopBouncer()
			return func() { a.stopBouncer = w.bouncer() }
		},
		"both end": func(w *world, a *actors) func() {
			a.stopBouncer()
			a.killPgBouncer()
			return func() { a.killPgBouncer, a.stopBouncer = w.pgbouncer(), w.bouncer() }
		},
		"Consul cut": func(w *world, _ *actors) func() {
			w.proxy.set(true)
			return func() { w.proxy.set(false) }
		},
	}
	phases := []string{"announced", "quiet", "promoting", "open"}
	for name, fault := range faults {
		for at, phase := range phases {
			t.Run(fmt.Sprintf("%s when %s", name, phase), func(t *testing.T) {
				w := newWorld(t, nil)
				w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
				a := &actors{stopBouncer: w.bouncer(), killPgBouncer: w.pgbouncer()}
				w.awaitLeader(0)
				client := w.connect("s1")
				w.exec(client, "SELECT 1")
				var mend func()
				reached := func(i int) {
					if i == at {
						mend = fault(w, a)
					}
				}
				h := w.announce("h1", 20*time.Second)
				reached(0)
				if at > 0 {
					if _, answer := h.ask(10 * time.Second); !answer.Quiet() {
						t.Fatalf("%+v", answer)
					}
				}
				reached(1)
				w.put(w.keys.Route(), w.route(1, cluster.RoutePromoting))
				if at > 1 {
					w.awaitShard("promoting", func(s ShardStatus) bool { return s.State == cluster.RoutePromoting })
				}
				reached(2)
				w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
				h.write(cluster.HandoverDone)
				reached(3)
				mend()
				w.awaitLeader(1)
				w.awaitPaused(false)
				w.awaitHealthy()
				if got := w.where(w.connect("s1")); got != 1 {
					t.Fatalf("query went to member %d", got)
				}
			})
		}
	}
}
