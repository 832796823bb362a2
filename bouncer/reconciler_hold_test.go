package bouncer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
)

// Clients are not released while PgBouncer tries no login, but for no longer than
// they can do without.
func TestLoginRetry(t *testing.T) {
	for value, want := range map[any]time.Duration{
		nil: 200 * time.Millisecond, 0.05: 50 * time.Millisecond, 15: loginRetryMost, 0: 0, "never": 0,
	} {
		c := config.Config{}
		if value != nil {
			c.PgBouncer.Settings = map[string]any{"server_login_retry": value}
		}
		if got := loginRetry(c); got != want {
			t.Errorf("server_login_retry %v: %s, want %s", value, got, want)
		}
	}
}

// Another leader that is awaited gets a time of its own, but two that take turns hold nobody for ever: clients
// wait for hold_timeout twice at most, until they were served.
func TestLeadersInTurnHoldNobodyForEver(t *testing.T) {
	const limit, turn = 2 * time.Second, 1300 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		c := &reconciler{
			config: config.Config{HoldTimeout: limit.Seconds()}, log: zerolog.Nop(), holds: map[config.ShardID]*hold{}, ours: map[string]time.Time{},
			standing: map[string]pgbouncer.Database{"s1": {Host: "elsewhere"}},
		}
		route := func(leader string, state cluster.RouteState) *shard {
			views, _ := render.View(config.Config{}, map[config.ShardID]render.ShardRoute{"service/s1": {
				Confirmed: true, Route: cluster.Route{State: state, Leader: cluster.RouteMember{Name: leader, Host: leader, Port: 5432}},
			}}, render.AnyName())
			return &shard{Shard: views[0]}
		}
		// flap has two leaders take turns, and returns for how long clients were held.
		flap := func() (held time.Duration) {
			t.Helper()
			for i := range 10 {
				v := route([]string{"a", "b"}[i%2], cluster.RoutePromoting)
				for begun := time.Now(); time.Since(begun) < turn; time.Sleep(10 * time.Millisecond) {
					if h := c.judge(v); h != nil && !h.expired {
						held += 10 * time.Millisecond
					}
				}
			}
			return held
		}
		for range 2 {
			if held := flap(); held < turn+limit || held > 2*limit {
				t.Errorf("clients were held for %v of hold_timeout %v", held, limit)
			}
			v := route("a", cluster.RouteOpen)
			c.standing["s1"] = pgbouncer.Database{Host: "a", Port: 5432}
			if c.judge(v) != nil {
				t.Error("clients wait though PgBouncer leads to their primary")
			}
			delete(c.holds, v.ID) // as they are released
		}
	})
}
