package operator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/drill"
	"github.com/lictor-ha/lictor/agent/proof"
)

// Whether an agent is gone, or another one by now, is told by when it was started. Nobody proves
// metrics, also where all else is proved.
func TestDrillSeesAnAgentGo(t *testing.T) {
	started := "1790000000.25"
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, "# HELP process_start_time_seconds Start time.\n# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds{name=\"a\",scope=\"x\"} %s\n", started)
	}))
	defer agent.Close()
	member, err := json.Marshal(cluster.Member{
		ConnURL: "postgres://10.0.0.1:5432/postgres", APIURL: agent.URL + "/patroni", State: cluster.StateRunning, Role: cluster.RolePrimary, Lictor: &cluster.MemberLictor{},
	})
	if err != nil {
		t.Fatal(err)
	}
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "5")
		w.Header().Set("X-Consul-Knownleader", "true")
		w.Header().Set("X-Consul-Lastcontact", "0")
		var pairs consulapi.KVPairs
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/kv/service/x/"):
			pairs = consulapi.KVPairs{{Key: "service/x/initialize", Value: []byte("77"), ModifyIndex: 1}, {Key: "service/x/members/a", Value: member, ModifyIndex: 2}}
		case strings.HasPrefix(r.URL.Path, "/v1/kv/lictor/secrets/"):
			pairs = consulapi.KVPairs{{Key: "lictor/secrets/service/x", Value: proof.NewSecret().Encode(), ModifyIndex: 1}}
		default:
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(pairs)
	}))
	defer consul.Close()
	site, err := Connect(Settings{Namespace: "service", Consul: settings.Consul{URL: consul.URL}})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := site.openDrill(t.Context(), &Console{Out: t.Output(), Err: t.Output()}, "x", DrillOptions{Kind: DrillKillAgent}, drill.Command{}, drill.Command{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.close()
	d, target := opened.(*shardDrill), drillTarget{Target: drill.Target{Shard: "x", Member: "a"}}
	if d.started, err = d.askStart(t.Context(), target); err != nil || d.started != started {
		t.Fatalf("%q, %v", d.started, err)
	}
	if err := d.agentGone(t.Context(), target); err == nil || !strings.Contains(err.Error(), "runs as before") {
		t.Errorf("the same agent: %v", err)
	}
	started = "1790000009"
	if err := d.agentGone(t.Context(), target); err != nil {
		t.Errorf("another one: %v", err)
	}
	agent.Close()
	if err := d.agentGone(t.Context(), target); err != nil {
		t.Errorf("none: %v", err)
	}
	if err := d.agentGone(t.Context(), drillTarget{Target: drill.Target{Shard: "x", Member: "b"}}); err != nil {
		t.Errorf("one without a key: %v", err)
	}
}

// A shard's token may write in its members' keys that they run on any host.
func TestDrillCutsNoOtherHost(t *testing.T) {
	for _, c := range []struct {
		kind  string
		hosts []string
		may   bool
	}{
		{DrillHost, []string{"db1", "DB2"}, true},
		{DrillHost, []string{"db1"}, false},
		{DrillKillAgent, []string{"db1", "db22"}, false},
		{DrillHost, nil, true}, // somebody is asked
		{DrillSwitchover, nil, true},
	} {
		if got := (DrillOptions{Kind: c.kind, Hosts: c.hosts}).mayCut("db2"); got != c.may {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
