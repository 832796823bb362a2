package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

func TestMetrics(t *testing.T) {
	at := time.Now()
	leader, replica := primaryState(at), replicaState(at)
	leader.FailsafeActive = true
	leader.Dynamic.FailsafeMode = true
	leader.Cluster.Failsafe = cluster.Entry[map[string]string]{ModifyIndex: 3, Value: map[string]string{"node1": "http://node1"}}
	replica.Tags = map[string]any{"nofailover": true}
	leader.OtherPrimaries = []string{"node2"}
	leader.Cluster.Status = cluster.Entry[cluster.Status]{ModifyIndex: 9, Value: cluster.Status{Lictor: &cluster.Beat{Number: 7, Owner: "node1", LeaseMS: 8000}}}
	for name, test := range map[string]struct {
		state State
		want  []string
	}{
		"leader": {leader, []string{
			`patroni_primary{name="node1",scope="batman"} 1`,
			`patroni_replica{name="node1",scope="batman"} 0`,
			`patroni_version{name="node1",scope="batman"} 10203`,
			`patroni_failsafe_mode_is_active{name="node1",scope="batman"} 1`,
			`patroni_xlog_location{name="node1",scope="batman"} 1.048576e+08`,
			`patroni_postgres_server_version{name="node1",scope="batman"} 150020`,
			`lictor_guard_running{name="node1",scope="batman"} 1`,
			`lictor_other_primaries{name="node1",scope="batman"} 1`,
			`patroni_postgres_state{name="node1",scope="batman"} 5`,
			`patroni_failover_priority{name="node1",scope="batman"} 1`,
			`patroni_failsafe_mode_enabled{name="node1",scope="batman"} 1`,
			`patroni_failsafe_member{name="node1",scope="batman"} 1`,
			`lictor_beat{name="node1",owner="node1",scope="batman"} 7`,
		}},
		"replica": {replica, []string{
			`patroni_primary{name="node2",scope="batman"} 0`,
			`patroni_replica{name="node2",scope="batman"} 1`,
			`patroni_xlog_replayed_location{name="node2",scope="batman"} 1.03809024e+08`,
			`patroni_failover_priority{name="node2",scope="batman"} 0`,
			`patroni_failsafe_member{name="node2",scope="batman"} 0`,
			`lictor_lease_left_seconds{name="node2",scope="batman"} 0`,
			`lictor_other_primaries{name="node2",scope="batman"} 0`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := NewServer(config.RestAPI{Listen: "127.0.0.1:0"}, fixed(test.state), zerolog.Nop())
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			if w.Code != http.StatusOK {
				t.Fatalf("status %d: %s", w.Code, w.Body)
			}
			lines := strings.Split(w.Body.String(), "\n")
			for _, want := range test.want {
				found := false
				for _, line := range lines {
					found = found || line == want
				}
				if !found {
					t.Errorf("%s is missing in\n%s", want, w.Body)
				}
			}
		})
	}
}
