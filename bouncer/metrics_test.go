package bouncer

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

func TestMetrics(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	verified, until, clients := now.Add(-time.Minute), now.Add(20*time.Second), 17
	c := &statusCollector{version: "1.2.3", now: func() time.Time { return now }, status: func() Status {
		return Status{
			Name: "pgb1", Health: Health{Healthy: true}, Clients: &clients,
			Consul: routes.ConsulStatus{Connected: true, Since: now.Add(-time.Hour)}, PgBouncer: pgbouncerStatus{Answers: true, Since: now.Add(-2 * time.Hour)},
			Shards: map[config.ShardID]ShardStatus{
				"service/s1": {Leader: "db1", State: cluster.RouteOpen, Timeline: 3, Since: now.Add(-90 * time.Second), VerifiedAt: &verified, ClientsWaiting: 4},
				"service/s2": {Leader: "db9", State: cluster.RouteDown, Since: now.Add(-5 * time.Second), Held: true, HoldUntil: &until, Paused: true, Unhealthy: true, Error: "x"},
			},
			Missing: []config.ShardID{"service/s3"}, Problems: map[string]string{"k": "v"},
		}
	}}
	want := `
# HELP lictor_bouncer_clients_waiting Clients that wait for a server connection.
# TYPE lictor_bouncer_clients_waiting gauge
lictor_bouncer_clients_waiting{bouncer="pgb1",shard="service/s1"} 4
lictor_bouncer_clients_waiting{bouncer="pgb1",shard="service/s2"} 0
# HELP lictor_bouncer_hold_left_seconds How long held clients wait at most, 0 when none are held.
# TYPE lictor_bouncer_hold_left_seconds gauge
lictor_bouncer_hold_left_seconds{bouncer="pgb1",shard="service/s1"} 0
lictor_bouncer_hold_left_seconds{bouncer="pgb1",shard="service/s2"} 20
# HELP lictor_bouncer_route_age_seconds How long the present leader has had the route.
# TYPE lictor_bouncer_route_age_seconds gauge
lictor_bouncer_route_age_seconds{bouncer="pgb1",shard="service/s1"} 90
lictor_bouncer_route_age_seconds{bouncer="pgb1",shard="service/s2"} 5
# HELP lictor_bouncer_route_info 1, with the shard's leader and the state of its route.
# TYPE lictor_bouncer_route_info gauge
lictor_bouncer_route_info{bouncer="pgb1",leader="db1",shard="service/s1",state="open"} 1
lictor_bouncer_route_info{bouncer="pgb1",leader="db9",shard="service/s2",state="down"} 1
# HELP lictor_bouncer_route_verified 1 if PgBouncer was seen to lead to the route's primary.
# TYPE lictor_bouncer_route_verified gauge
lictor_bouncer_route_verified{bouncer="pgb1",shard="service/s1"} 1
lictor_bouncer_route_verified{bouncer="pgb1",shard="service/s2"} 0
# HELP lictor_bouncer_shards_missing Configured shards of which no route is known.
# TYPE lictor_bouncer_shards_missing gauge
lictor_bouncer_shards_missing{bouncer="pgb1"} 1
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), "lictor_bouncer_clients_waiting", "lictor_bouncer_hold_left_seconds",
		"lictor_bouncer_route_age_seconds", "lictor_bouncer_route_info", "lictor_bouncer_route_verified", "lictor_bouncer_shards_missing"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
