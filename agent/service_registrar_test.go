package agent

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/consul"
)

func TestService(t *testing.T) {
	if newServiceRegistrar(nil, settings.Consul{}, "shard", "a") != nil {
		t.Error("registered though nobody asked for it")
	}
	c := newServiceRegistrar(nil, settings.Consul{
		RegisterService: true, ServiceTags: []string{"blue"}, ServiceCheckInterval: "7s", ServiceCheckTLSServerName: "members",
	}, "My_shard.1", "a")
	for _, tt := range []struct {
		role string
		tags []string
		path string
	}{
		{cluster.RolePrimary, []string{"blue", "primary", "master"}, "/primary"},
		{cluster.RoleMaster, []string{"blue", "master", "primary"}, "/master"},
		{cluster.RoleReplica, []string{"blue", "replica"}, "/replica"},
		{"standby_leader", []string{"blue", "standby-leader"}, "/standby-leader"},
	} {
		got, err := c.service(api.State{
			Member:  cluster.Member{Role: tt.role, ConnURL: "postgres://10.0.0.1:5433/postgres", APIURL: "https://10.0.0.1:8008/patroni"},
			Dynamic: cluster.Dynamic{Timing: cluster.Timing{TTL: 8 * time.Second}},
		})
		want := consul.Service{
			ID: "My_shard.1/a", Name: "my-shard-1", Address: "10.0.0.1", Port: 5433, Tags: tt.tags,
			CheckURL: "https://10.0.0.1:8008" + tt.path, CheckInterval: 7 * time.Second, CheckServerName: "members", Forget: 40 * time.Second,
		}
		if err != nil || !got.Equal(want) {
			t.Errorf("%s: %+v (%v), want %+v", tt.role, got, err, want)
		}
	}
}
