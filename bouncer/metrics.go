package bouncer

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics answers GET /metrics with what /status says, as numbers (docs/metrics.md
// lists all).
func (a *listenerAPI) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(a.passes, &statusCollector{status: func() Status { return a.status(context.Background()) }, version: a.config.Version, now: time.Now},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
}

// newPasses measures how long the reconcilers' passes take: whatever happens to a shard waits
// for the one that is under way.
func newPasses(bouncer string) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "lictor_bouncer_pass_seconds", Help: "How long a look at all shards takes, with what is done about them.",
		ConstLabels: prometheus.Labels{"bouncer": bouncer}, Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
	})
}

// statusCollector turns a status into metrics. It is unchecked: which shards there
// are changes.
type statusCollector struct {
	status  func() Status
	version string
	now     func() time.Time
}

// Describe sends nothing, which makes the collector unchecked.
func (c *statusCollector) Describe(chan<- *prometheus.Desc) {}

// Collect sends all metrics.
func (c *statusCollector) Collect(out chan<- prometheus.Metric) {
	s, now := c.status(), c.now()
	send := func(name, help string, value float64, labels ...string) {
		names, values := []string{"bouncer"}, []string{s.Name}
		for i := 0; i+1 < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		desc := prometheus.NewDesc(name, help, names, nil)
		m, err := prometheus.NewConstMetric(desc, prometheus.GaugeValue, value, values...)
		if err != nil {
			m = prometheus.NewInvalidMetric(desc, err)
		}
		out <- m
	}
	send("lictor_bouncer_build_info", "1, with the bouncer's version.", 1, "version", c.version)
	send("lictor_bouncer_healthy", "1 if the load balancer should send clients here: /health answers 200.", truth(s.Health.Healthy))
	send("lictor_bouncer_draining", "1 if an operator has asked the load balancer to send no more clients.", truth(s.Draining))
	send("lictor_bouncer_consul_connected", "1 if Consul has answered the last request.", truth(s.Consul.Connected))
	send("lictor_bouncer_consul_state_age_seconds", "How long Consul has been connected, or not.", since(s.Consul.Since, now))
	send("lictor_bouncer_pgbouncer_up", "1 if PgBouncer answers.", truth(s.PgBouncer.Answers))
	send("lictor_bouncer_pgbouncer_state_age_seconds", "How long PgBouncer has answered, or not.", since(s.PgBouncer.Since, now))
	for _, p := range s.PgBouncer.Processes {
		send("lictor_bouncer_process_up", "1 if this process of PgBouncer answers; of several that share a port.", truth(p.Answers), "process", p.Admin)
		send("lictor_bouncer_process_shards_behind", "Shards of which this process is not known to lead to the primary.", float64(p.Shards-p.Verified), "process", p.Admin)
	}
	if s.Clients != nil {
		send("lictor_bouncer_clients", "Clients that are connected to PgBouncer; absent while that is not known.", float64(*s.Clients))
	}
	send("lictor_bouncer_shards", "Shards whose route is known.", float64(len(s.Shards)))
	send("lictor_bouncer_shards_missing", "Configured shards of which no route is known.", float64(len(s.Missing)))
	send("lictor_bouncer_problems", "Keys in Consul, shards and configurations that cannot be followed.", float64(len(s.Problems)))
	for id, shard := range s.Shards {
		one := func(name, help string, value float64, more ...string) {
			send(name, help, value, append([]string{"shard", string(id)}, more...)...)
		}
		one("lictor_bouncer_route_info", "1, with the shard's leader and the state of its route.", 1, "leader", shard.Leader, "state", string(shard.State))
		one("lictor_bouncer_route_age_seconds", "How long the present leader has had the route.", since(shard.Since, now))
		one("lictor_bouncer_route_timeline", "Timeline of the route.", float64(shard.Timeline))
		one("lictor_bouncer_route_verified", "1 if PgBouncer was seen to lead to the route's primary.", truth(shard.VerifiedAt != nil))
		one("lictor_bouncer_clients_waiting", "Clients that wait for a server connection.", float64(shard.ClientsWaiting))
		one("lictor_bouncer_held", "1 if the shard's clients are held because it has no primary.", truth(shard.Held))
		left := 0.0
		if shard.HoldUntil != nil {
			left = max(0, shard.HoldUntil.Sub(now).Seconds())
		}
		one("lictor_bouncer_hold_left_seconds", "How long held clients wait at most, 0 when none are held.", left)
		one("lictor_bouncer_paused", "1 if PgBouncer is paused for the shard's databases.", truth(shard.Paused))
		pause := 0.0
		if shard.Operator != nil {
			pause = max(1, since(shard.Operator.Since, now))
		}
		one("lictor_bouncer_operator_pause_seconds", "How long an operator has had the shard's clients wait, 0 when none has.", pause)
		one("lictor_bouncer_handover", "1 if a planned switchover is under way.", truth(shard.Handover != ""))
		one("lictor_bouncer_primary_ill", "1 if PgBouncer has lost its connections to the primary, which does not answer.", truth(shard.Unhealthy))
		one("lictor_bouncer_route_error", "1 if something is wrong with the shard's route.", truth(shard.Error != ""))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// since is the age of a moment in seconds, 0 when it is not known.
func since(at, now time.Time) float64 {
	if at.IsZero() {
		return 0
	}
	return max(0, now.Sub(at).Seconds())
}
