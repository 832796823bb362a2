package metrics

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lictor-ha/lictor/agent/events"
)

// Every phase and outcome of an event is counted once, however often the recorder
// shows it, and a cause in words becomes one of a few labels.
func TestEventsAreCountedOnce(t *testing.T) {
	m := New()
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	e := events.Event{
		Kind: events.Failover, At: at, Outcome: events.UnderWay, Cause: "no sign of life from db1 for 8.1 s, more than its lease of 8 s",
		Phases: []events.Phase{{Name: events.Noticed, AtMS: 8100}, {Name: events.Elected, AtMS: 8300}},
	}
	m.SawEvents([]events.Event{e})
	m.SawEvents([]events.Event{e})
	m.SawEvents(nil) // nothing is to be written now, which does not mean that it is forgotten
	e.Phases = append(e.Phases, events.Phase{Name: events.Promoted, AtMS: 8800}, events.Phase{Name: events.Routed, AtMS: 8900})
	e.Outcome, e.TookMS = events.Done, 8900
	m.SawEvents([]events.Event{e})
	e.Phases = append(e.Phases, events.Phase{Name: events.FirstWrite, AtMS: 9000})
	refused := events.Event{Kind: events.Switchover, At: at.Add(time.Second), Outcome: events.RolledBack}
	m.SawEvents([]events.Event{e, refused, {Kind: events.Paused, At: at}})
	m.SawEvents([]events.Event{e, refused})

	want := `
# HELP lictor_leader_changes_total Changes of leader that this member has led, by outcome.
# TYPE lictor_leader_changes_total counter
lictor_leader_changes_total{cause="lease_ended",kind="failover",outcome="done"} 1
lictor_leader_changes_total{cause="operator",kind="switchover",outcome="rolled_back"} 1
`
	if err := testutil.CollectAndCompare(m.outcomes, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	took := map[string]float64{}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			for _, label := range metric.GetLabel() {
				if f.GetName() == "lictor_leader_change_phase_duration_seconds" && label.GetName() == "phase" {
					if metric.GetHistogram().GetSampleCount() != 1 {
						t.Errorf("%s was counted %d times", label.GetValue(), metric.GetHistogram().GetSampleCount())
					}
					took[label.GetValue()] = metric.GetHistogram().GetSampleSum()
				}
			}
		}
	}
	for phase, seconds := range map[string]float64{"noticed": 8.1, "elected": .2, "promoted": .5, "routed": .1, "first_write": .1} {
		if d := took[phase] - seconds; d > .001 || d < -.001 {
			t.Errorf("%s took %g s, want %g", phase, took[phase], seconds)
		}
	}
}

// answering is a transport that answers with a status, or fails.
type answering int

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	if a == 0 {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: int(a), Body: http.NoBody}, nil
}

func TestConsulRequestsAreTimed(t *testing.T) {
	m := New()
	for _, r := range []struct {
		method, url string
		status      answering
	}{
		{http.MethodPut, "/v1/txn", 200},
		{http.MethodPut, "/v1/txn", 409}, // an answer
		{http.MethodPut, "/v1/txn", 500},
		{http.MethodGet, "/v1/kv/service/x?recurse=", 200},
		{http.MethodGet, "/v1/kv/service/x?recurse=&index=7&wait=30s", 200}, // waits, and is not timed
		{http.MethodGet, "/v1/kv/service/x?recurse=&index=7&wait=30s", 0},
		{http.MethodPut, "/v1/session/renew/y", 200},
	} {
		request, err := http.NewRequestWithContext(t.Context(), r.method, "http://consul"+r.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := (&timed{metrics: m, next: r.status}).RoundTrip(request)
		if (err == nil) != (r.status != 0) {
			t.Errorf("%v", err)
		}
		if err == nil {
			response.Body.Close()
		}
	}
	want := `
# HELP lictor_consul_request_failures_total Requests to Consul without an answer, or with one of status 500 and above.
# TYPE lictor_consul_request_failures_total counter
lictor_consul_request_failures_total{operation="read"} 0
lictor_consul_request_failures_total{operation="session"} 0
lictor_consul_request_failures_total{operation="transaction"} 1
lictor_consul_request_failures_total{operation="watch"} 1
lictor_consul_request_failures_total{operation="write"} 0
`
	if err := testutil.CollectAndCompare(m.failures, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(m.consul); n != 3 { // transaction, read, session
		t.Errorf("%d kinds of requests were timed, want 3", n)
	}
}
