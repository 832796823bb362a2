// Package metrics counts and times what an agent does, for GET /metrics. What is so at a
// moment is told by package api from the loop's state (docs/metrics.md lists all).
package metrics

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/lictor-ha/lictor/agent/events"
)

// Metrics counts and times what the agent does.
type Metrics struct {
	// Steps is how long the loop took to come round, in seconds.
	Steps    prometheus.Histogram
	consul   *prometheus.HistogramVec
	failures *prometheus.CounterVec
	changes  *prometheus.HistogramVec
	phases   *prometheus.HistogramVec
	outcomes *prometheus.CounterVec
	// Callbacks is how long callbacks took, in seconds, by name and outcome.
	Callbacks *prometheus.HistogramVec
	// Reloads counts how often the agent's own file was read anew, by outcome.
	Reloads *prometheus.CounterVec

	// counted are the phases of the events that were taken in already.
	counted map[eventKey]countedEvent
}

type eventKey struct {
	kind events.Kind
	at   time.Time
}

type countedEvent struct {
	phases int
	over   bool
}

// New makes metrics that has counted nothing.
func New() *Metrics {
	name := func(name, help string) prometheus.Opts { return prometheus.Opts{Name: name, Help: help} }
	histogram := func(n, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: n, Help: help, Buckets: buckets}
	}
	// From a quick handover to a failover with a long lease.
	outage := []float64{.05, .1, .2, .35, .5, .75, 1, 1.5, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300}
	quick := []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}
	m := &Metrics{
		Steps: prometheus.NewHistogram(histogram("lictor_loop_duration_seconds",
			"How long the loop took to observe, decide and begin to act. It never waits, so this is its own work.", quick)),
		consul: prometheus.NewHistogramVec(histogram("lictor_consul_request_duration_seconds",
			"How long Consul took to answer, by kind of request, without those that wait for a change.", quick[3:]), []string{"operation"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts(name("lictor_consul_request_failures_total",
			"Requests to Consul without an answer, or with one of status 500 and above.")), []string{"operation"}),
		changes: prometheus.NewHistogramVec(histogram("lictor_leader_change_duration_seconds",
			"How long a change of leader took, from the last sign of life of the old leader, or the request, to the open route in Consul; of a crash, to PostgreSQL accepting writes.", outage),
			[]string{"kind", "cause"}),
		phases: prometheus.NewHistogramVec(histogram("lictor_leader_change_phase_duration_seconds",
			"How long each phase of a change of leader took, from the end of the phase before.", outage), []string{"kind", "cause", "phase"}),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts(name("lictor_leader_changes_total",
			"Changes of leader that this member has led, by outcome.")), []string{"kind", "cause", "outcome"}),
		Callbacks: prometheus.NewHistogramVec(histogram("lictor_callback_duration_seconds",
			"How long callbacks took.", outage), []string{"callback", "outcome"}),
		Reloads: prometheus.NewCounterVec(prometheus.CounterOpts(name("lictor_reloads_total",
			"How often the agent's own file was read anew.")), []string{"outcome"}),
		counted: map[eventKey]countedEvent{},
	}
	// So that a rate can be told from the first failure on.
	for _, operation := range []string{"read", "write", "transaction", "session", "watch"} {
		m.failures.WithLabelValues(operation)
	}
	for _, outcome := range []string{"done", "refused"} {
		m.Reloads.WithLabelValues(outcome)
	}
	return m
}

// Collectors are the metrics to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.Steps, m.consul, m.failures, m.changes, m.phases, m.outcomes, m.Callbacks, m.Reloads,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}
}

// SawEvents takes in what the recorder has recorded, each phase once. The loop
// alone calls it.
func (m *Metrics) SawEvents(recorded []events.Event) {
	if len(recorded) == 0 {
		return
	}
	present := make(map[eventKey]countedEvent, len(recorded))
	for _, e := range recorded {
		key := eventKey{e.Kind, e.At}
		known := m.counted[key]
		present[key] = m.sawEvent(e, known)
	}
	m.counted = present // what the recorder has forgotten does not come back
}

func (m *Metrics) sawEvent(e events.Event, known countedEvent) countedEvent {
	kind, cause, timed := kindAndCause(e)
	if !timed {
		return known
	}
	before := time.Duration(0)
	for i, p := range e.Phases {
		at := time.Duration(p.AtMS) * time.Millisecond
		if i >= known.phases {
			m.phases.WithLabelValues(kind, cause, strings.ReplaceAll(p.Name, " ", "_")).Observe(max(0, at-before).Seconds())
		}
		before = at
	}
	known.phases = len(e.Phases)
	if !known.over && e.Outcome != events.UnderWay {
		known.over = true
		outcome := strings.ReplaceAll(string(e.Outcome), " ", "_")
		if outcome == "" {
			outcome = "lost_again"
		}
		m.outcomes.WithLabelValues(kind, cause, outcome).Inc()
		if e.Outcome == events.Done {
			m.changes.WithLabelValues(kind, cause).Observe(e.Took().Seconds())
		}
	}
	return known
}

// kindAndCause are an event's labels. A cause in words has names and numbers in
// it; as a label it is one of a few.
func kindAndCause(e events.Event) (kind, cause string, timed bool) {
	cause = "other"
	switch e.Kind {
	case events.Switchover:
		cause = "operator"
	case events.Crash:
		cause = "postgres_ended"
	case events.Resumed, events.Bootstrap:
		cause = "nobody_led"
	case events.Failover:
		switch {
		case strings.HasPrefix(e.Cause, "no sign of life"):
			cause = "lease_ended"
		case strings.Contains(e.Cause, "gave the lead up"):
			cause = "given_up"
		case strings.Contains(e.Cause, "an operator asked"):
			cause = "operator"
		case strings.Contains(e.Cause, "does not hold the lock"):
			cause = "lock_lost"
		}
	default:
		return "", "", false
	}
	return string(e.Kind), cause, true
}

// Timed times the requests to Consul that go through a transport.
func (m *Metrics) Timed(next http.RoundTripper) http.RoundTripper {
	return &timed{metrics: m, next: next}
}

type timed struct {
	metrics *Metrics
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *timed) RoundTrip(request *http.Request) (*http.Response, error) {
	operation, waits := consulOperation(request)
	began := time.Now()
	response, err := t.next.RoundTrip(request)
	switch {
	case err != nil && request.Context().Err() == nil, err == nil && response.StatusCode >= http.StatusInternalServerError:
		t.metrics.failures.WithLabelValues(operation).Inc()
	case err != nil && !waits: // its time was over before Consul's answer came
		t.metrics.failures.WithLabelValues(operation).Inc()
	case err == nil && !waits:
		t.metrics.consul.WithLabelValues(operation).Observe(time.Since(began).Seconds())
	}
	return response, err //nolint:wrapcheck // a transport hands errors on as they are
}

// CloseIdleConnections lets http.Client reach the transport's.
func (t *timed) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// consulOperation is the kind of a request, and whether it waits for a change.
func consulOperation(r *http.Request) (operation string, waits bool) {
	path := r.URL.Path
	switch {
	case r.URL.Query().Get("index") != "" && r.URL.Query().Get("index") != "0":
		return "watch", true
	case strings.HasPrefix(path, "/v1/txn"):
		return "transaction", false
	case strings.HasPrefix(path, "/v1/session"):
		return "session", false
	case strings.HasPrefix(path, "/v1/kv") && r.Method == http.MethodGet:
		return "read", false
	case strings.HasPrefix(path, "/v1/kv"):
		return "write", false
	}
	return "other", false
}
