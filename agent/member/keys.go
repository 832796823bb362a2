package member

import (
	"errors"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// leaderKeys are the keys that are the leader's own, but for the lock and the status: each is
// written once at a time, and only under the lock.
type leaderKeys struct {
	*Shard
	consul Consul
	reread func()

	writing map[string]bool // that are being written
	// Refused says why the last request for a switchover was refused.
	Refused string
	// SyncUncertain: a write of the key sync may still land.
	SyncUncertain bool
	// syncBefore is the key sync as it was before a promotion that did not happen.
	syncBefore *cluster.Entry[cluster.Sync]
}

// Writing reports whether one of the leader's own keys is being written.
func (k *leaderKeys) Writing(key string) bool { return k.writing[key] }

func (k *leaderKeys) writeSync(w ha.WriteSync) {
	var value any
	if w.Value != nil {
		value = *w.Value
	}
	k.WriteAsLeader("sync", k.Keys.Sync(), w.Index, value, func(index uint64) {
		k.SyncUncertain, k.syncBefore = false, nil
		k.Snapshot.Sync = cluster.Entry[cluster.Sync]{}
		if w.Value != nil {
			k.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *w.Value, ModifyIndex: index}
		}
	})
}

// ClearFailover empties the key failover if it still has index.
func (k *leaderKeys) ClearFailover(index uint64) {
	k.WriteAsLeader("failover", k.Keys.Failover(), index, cluster.Failover{}, func(index uint64) {
		k.Snapshot.Failover = cluster.Entry[cluster.Failover]{ModifyIndex: index}
	})
}

// ForgetRefusal forgets why a request was refused: another one follows.
func (k *leaderKeys) ForgetRefusal() { k.Refused = "" }

// begin reports whether a key may be written now, and notes that it is.
func (k *leaderKeys) begin(key string) bool {
	if k.writing[key] || k.Session == "" {
		return false
	}
	k.writing[key] = true
	return true
}

// WriteAsLeader writes one of the leader's own keys, one write per key at a
// time; written is told the new index.
func (k *leaderKeys) WriteAsLeader(what, key string, index uint64, value any, written func(index uint64)) {
	if k.begin(key) {
		k.send(what, key, k.Session, index, value, written)
	}
}

// send writes a key for which begin was called.
func (k *leaderKeys) send(what, key, session string, index uint64, value any, written func(index uint64)) {
	k.consul.WriteAsLeader(k.Dynamic.RetryTimeout, session, key, index, value, func(index uint64, err error) {
		if err != nil {
			k.failed(what, key, err)
			return
		}
		delete(k.writing, key)
		if strings.HasPrefix(key, k.Keys.Prefix()) { // the route lies elsewhere, and is watched by a query of its own
			k.Wrote(index)
		}
		written(index)
	})
}

// failed notes a write of the leader's own key that did not succeed.
func (k *leaderKeys) failed(what, key string, err error) {
	k.Log.Warn().Err(err).Msg("writing the key " + what + " failed")
	k.SyncUncertain = k.SyncUncertain || key == k.Keys.Sync() && errors.Is(err, cluster.ErrUncertain)
	k.reread()
	k.After(k.retryAfter(), func() { delete(k.writing, key) })
}
