package api

import (
	"errors"
	"strings"
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

// The tables were compared with those that patronictl 3.0.2 prints for the same
// keys; it leaves the system identifier out of the title, which 4.x puts there.
func TestFormatList(t *testing.T) {
	const id = "7277694203142172922"
	tests := []struct {
		name string
		keys []string
		want string
	}{
		{"three members, one synchronous, one starting", []string{
			"initialize", id, "leader", "node1", "status", `{"optime":104857600}`,
			"sync", `{"leader":"node1","sync_standby":"node2"}`,
			"members/node3", `{"conn_url":"postgres://10.0.0.3:5432/postgres","state":"starting","role":"replica"}`,
			"members/node1", `{"conn_url":"postgres://10.0.0.1:5432/postgres","state":"running","role":"primary","timeline":2,"xlog_location":104857600}`,
			"members/node2", `{"conn_url":"postgres://10.0.0.2:5432/postgres","state":"running","replication_state":"streaming","role":"replica","timeline":2,"xlog_location":104857600}`,
		}, `
+ Cluster: batman (7277694203142172922) -------+----+-----------+
| Member | Host     | Role         | State     | TL | Lag in MB |
+--------+----------+--------------+-----------+----+-----------+
| node1  | 10.0.0.1 | Leader       | running   |  2 |           |
| node2  | 10.0.0.2 | Sync Standby | streaming |  2 |         0 |
| node3  | 10.0.0.3 | Replica      | starting  |    |   unknown |
+--------+----------+--------------+-----------+----+-----------+
`},
		{"tags, pending restart, ports, pause, switchover to come", []string{
			"initialize", id, "leader", "node1", "status", `{"optime":104857600}`, "config", `{"pause":true}`,
			"failover", `{"leader":"node1","member":"node2","scheduled_at":"2099-01-01T00:00:00+00:00"}`,
			"members/node1", `{"conn_url":"postgres://10.0.0.1:5432/postgres","state":"running","timeline":12,"pending_restart":true,"tags":{"nofailover":true,"zone":"eu-1"}}`,
			"members/node2", `{"conn_url":"postgres://10.0.0.1:5433/postgres","state":"running","timeline":12,"xlog_location":102236160,"tags":{"a":"1"}}`,
		}, `
+ Cluster: batman (7277694203142172922) -----+----+-----------+-----------------+------------------+
| Member | Host          | Role    | State   | TL | Lag in MB | Pending restart | Tags             |
+--------+---------------+---------+---------+----+-----------+-----------------+------------------+
| node1  | 10.0.0.1:5432 | Leader  | running | 12 |           | *               | nofailover: true |
|        |               |         |         |    |           |                 | zone: eu-1       |
+--------+---------------+---------+---------+----+-----------+-----------------+------------------+
| node2  | 10.0.0.1:5433 | Replica | running | 12 |         2 |                 | a: '1'           |
+--------+---------------+---------+---------+----+-----------+-----------------+------------------+
 Maintenance mode: on
 Switchover scheduled at: 2099-01-01T00:00:00+00:00
                    from: node1
                      to: node2
`},
		{"scheduled restart, nobody leads", []string{
			"initialize", "",
			"members/node1", `{"conn_url":"postgres://10.0.0.1:5432/postgres","state":"running","timeline":12,"scheduled_restart":{"schedule":"2099-01-01T00:00:00+00:00","postgres_version":"15.4"}}`,
		}, `
+ Cluster: batman (initializing) -------+----+-----------+---------------------------------------------+
| Member | Host     | Role    | State   | TL | Lag in MB | Scheduled restart                           |
+--------+----------+---------+---------+----+-----------+---------------------------------------------+
| node1  | 10.0.0.1 | Replica | running | 12 |   unknown | 2099-01-01T00:00:00+00:00 if version < 15.4 |
+--------+----------+---------+---------+----+-----------+---------------------------------------------+
`},
		{"standby cluster, a member that makes no sense", []string{
			"initialize", id, "leader", "node1", "config", `{"standby_cluster":{"host":"10.9.0.1"}}`,
			"members/node1", `{"conn_url":"postgres://[fd00::1]:5432/postgres","state":"running","timeline":1}`,
			"members/node2", `nonsense`,
		}, `
+ Cluster: batman (7277694203142172922) ------+----+-----------+
| Member | Host    | Role           | State   | TL | Lag in MB |
+--------+---------+----------------+---------+----+-----------+
| node1  | fd00::1 | Standby Leader | running |  1 |           |
| node2  |         | Replica        |         |    |   unknown |
+--------+---------+----------------+---------+----+-----------+
`},
		{"nothing", nil, `
+ Cluster: batman (uninitialized) --+-----------+
| Member | Host | Role | State | TL | Lag in MB |
+--------+------+------+-------+----+-----------+
+--------+------+------+-------+----+-----------+
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if err := FormatList(&out, "batman", keys(tt.keys...)); err != nil {
				t.Fatal(err)
			}
			if got := "\n" + out.String(); got != tt.want {
				t.Errorf("got%s\nwant%s", got, tt.want)
			}
		})
	}
}

type brokenWriter struct{}

var errBroken = errors.New("broken")

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func TestFormatListReportsWriteErrors(t *testing.T) {
	if err := FormatList(brokenWriter{}, "batman", keys()); !errors.Is(err, errBroken) {
		t.Errorf("%v", err)
	}
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
