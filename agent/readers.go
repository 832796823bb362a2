package agent

import (
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// maxReplicaLag is how many bytes of WAL a replica may be behind its leader in
// replaying before it takes no more readers. It is taken back when it is within
// half of that, so that it does not come and go.
const maxReplicaLag = 16 << 20

// replicaLag is how many bytes of WAL the replica is behind the leader in replaying.
// What the leader's PostgreSQL says of it is as fresh as the leader's own position;
// of one that streams from another member only its key tells, every loop_wait.
func replicaLag(leader postgres.State, replica cluster.Member) int64 {
	for _, s := range leader.Standbys {
		if s.ApplicationName == replica.Name && s.ReplayLSN > 0 {
			return leader.LSN() - s.ReplayLSN
		}
	}
	if replica.ReplayLSN > 0 {
		return leader.LSN() - replica.ReplayLSN
	}
	return 0 // nothing is known; it says that it serves
}

// lags tells whether a replica is too far behind for readers, by its lag and by
// whether it was before.
func lags(bytes int64, before bool) bool {
	if before {
		return bytes > maxReplicaLag/2
	}
	return bytes > maxReplicaLag
}
