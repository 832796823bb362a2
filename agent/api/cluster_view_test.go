package api

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// keys makes a snapshot from the keys of the shard as Consul would hold them.
func keys(pairs ...string) cluster.Snapshot {
	k := cluster.NewKeys("", "batman", "")
	var kvs []cluster.KV
	for i := 0; i < len(pairs); i += 2 {
		kvs = append(kvs, cluster.KV{Key: k.Prefix() + pairs[i], Value: []byte(pairs[i+1]), Session: "s", ModifyIndex: 7})
	}
	return cluster.ParseSnapshot(k, kvs, 7)
}

func TestClusterView(t *testing.T) {
	state := primaryState(time.Now())
	state.Cluster = keys(
		"leader", "node1", "status", `{"optime":83886160}`,
		"config", `{"pause":true,"synchronous_mode":"quorum"}`,
		"sync", `{"leader":"node1","quorum":1,"sync_standby":"node2"}`,
		"failover", `{"leader":"node1","scheduled_at":"2099-01-01T00:00:00.5+02:00"}`,
		"members/node1", `{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://10.0.0.1:8008/patroni","state":"running","role":"primary","timeline":3,"xlog_location":83886160,"tags":{"a":1}}`,
		"members/node2", `{"conn_url":"postgres://10.0.0.2:5433/postgres","api_url":"http://10.0.0.2:8008/patroni","state":"running","replication_state":"streaming","role":"replica","timeline":3,"xlog_location":83886160,"receive_lsn":83886176,"replay_lsn":83886000,"pending_restart":true,"pending_restart_reason":{"a":{"old_value":"1","new_value":"2"}}}`,
		"members/node3", `{"conn_url":"postgres://10.0.0.3:5432/postgres","api_url":"http://10.0.0.3:8008/patroni","state":"starting","role":"replica"}`,
	)
	server := start(t, config.RestAPI{}, fixed(state))
	got := ask(t, "GET", server.url+"/cluster", "")
	if want := `{"members":[
		{"name":"node1","role":"leader","state":"running","api_url":"http://10.0.0.1:8008/patroni","host":"10.0.0.1","port":5432,"timeline":3,"tags":{"a":1}},
		{"name":"node2","role":"quorum_standby","state":"streaming","api_url":"http://10.0.0.2:8008/patroni","host":"10.0.0.2","port":5433,"timeline":3,
		 "pending_restart":true,"pending_restart_reason":{"a":{"old_value":"1","new_value":"2"}},
		 "receive_lsn":"0/5000060","receive_lag":0,"replay_lsn":"0/4FFFFB0","replay_lag":160,"lsn":"0/5000050","lag":0},
		{"name":"node3","role":"replica","state":"starting","api_url":"http://10.0.0.3:8008/patroni","host":"10.0.0.3","port":5432,
		 "receive_lsn":"unknown","receive_lag":"unknown","replay_lsn":"unknown","replay_lag":"unknown","lsn":"unknown","lag":"unknown"}],
		"scope":"batman","pause":true,"scheduled_switchover":{"at":"2099-01-01T00:00:00.500000+02:00","from":"node1"}}`; got.status != 200 || !sameJSON(t, got.body, want) {
		t.Errorf("%d %s", got.status, got.body)
	}
}
