package member

import (
	"errors"
	"maps"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

func (m *Member) writeSync(w ha.WriteSync) {
	var value any
	if w.Value != nil {
		value = *w.Value
	}
	m.WriteAsLeader("sync", m.Keys.Sync(), w.Index, value, func(index uint64) {
		m.SyncUncertain, m.syncBefore = false, nil
		m.Snapshot.Sync = cluster.Entry[cluster.Sync]{}
		if w.Value != nil {
			m.Snapshot.Sync = cluster.Entry[cluster.Sync]{Value: *w.Value, ModifyIndex: index}
		}
	})
}

// ClearFailover empties the key failover if it still has index.
func (m *Member) ClearFailover(index uint64) {
	m.WriteAsLeader("failover", m.Keys.Failover(), index, cluster.Failover{}, func(index uint64) {
		m.Snapshot.Failover = cluster.Entry[cluster.Failover]{ModifyIndex: index}
	})
}

// WriteAsLeader writes one of the leader's own keys, one write per key at a
// time; written is told the new index.
func (m *Member) WriteAsLeader(what, key string, index uint64, value any, written func(index uint64)) {
	if m.writing[key] || m.Session == "" {
		return
	}
	m.writing[key] = true
	m.sendAsLeader(what, key, m.Session, index, value, written)
}

func (m *Member) sendAsLeader(what, key, session string, index uint64, value any, written func(index uint64)) {
	m.Consul.WriteAsLeader(m.Dynamic.RetryTimeout, session, key, index, value, func(index uint64, err error) {
		if err != nil {
			m.keyFailed(what, key, err)
			return
		}
		delete(m.writing, key)
		if strings.HasPrefix(key, m.Keys.Prefix()) { // the route lies elsewhere, and is watched by a query of its own
			m.Wrote(index)
		}
		written(index)
	})
}

// keyFailed notes a write of the leader's own key that did not succeed.
func (m *Member) keyFailed(what, key string, err error) {
	m.Log.Warn().Err(err).Msg("writing the key " + what + " failed")
	m.SyncUncertain = m.SyncUncertain || key == m.Keys.Sync() && errors.Is(err, cluster.ErrUncertain)
	m.Reread()
	m.Later.After(m.retryAfter(), func() { delete(m.writing, key) })
}

// writeFailsafe replaces the list of members that have to agree, or deletes it.
// The guard knows of the list before Consul can, so that an agent that is
// restarted in between asks these members too.
func (m *Member) writeFailsafe(w ha.WriteFailsafe) {
	key := m.Keys.Failsafe()
	if m.writing[key] || m.Session == "" {
		return
	}
	m.Tenure.BeginList(w.List)
	memo, session := m.Memo(), m.Session
	var value any
	if w.List != nil {
		value = maps.Clone(w.List)
	}
	m.writing[key] = true
	m.Guardian.remember(memo, func(err error) {
		if err != nil {
			m.keyFailed("failsafe", key, err)
			return
		}
		m.sendAsLeader("failsafe", key, session, w.Index, value, func(index uint64) {
			m.Snapshot.Failsafe = cluster.Entry[map[string]string]{Value: w.List, ModifyIndex: index}
			m.Tenure.ListKnown(index, w.List)
			m.ArmGuard()
			m.Log.Info().Int("members", len(w.List)).Msg("failsafe list written")
		})
	})
}
