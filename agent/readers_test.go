package agent

import (
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/postgres"
)

func TestLaggingReplicas(t *testing.T) {
	const at = int64(1 << 40)
	standby := func(replayed int64) []postgres.StandbyState {
		return []postgres.StandbyState{{ApplicationName: "db2", ReplayLSN: replayed}}
	}
	for name, c := range map[string]struct {
		standbys []postgres.StandbyState
		key      int64 // the position that the member's key has
		before   bool
		want     bool
	}{
		"at the limit":              {standby(at - maxReplicaLag), 0, false, false},
		"beyond the limit":          {standby(at - maxReplicaLag - 1), 0, false, true},
		"back within the limit":     {standby(at - maxReplicaLag/2 - 1), 0, true, true},
		"back within half of it":    {standby(at - maxReplicaLag/2), 0, true, false},
		"its key is older":          {standby(at), at - 2*maxReplicaLag, false, false},
		"it streams from a replica": {nil, at - maxReplicaLag - 1, false, true},
		"nothing is known":          {nil, 0, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			leader := postgres.State{WriteLSN: at, Standbys: c.standbys}
			got := lags(replicaLag(leader, cluster.Member{Name: "db2", ReplayLSN: c.key}), c.before)
			if got != c.want {
				t.Errorf("lags: %t, want %t", got, c.want)
			}
		})
	}
}
