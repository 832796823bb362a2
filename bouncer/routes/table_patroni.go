package routes

import (
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// What the table knows from Patroni's keys instead of from a route.

// routed reports whether a route of Lictor's is known of a shard.
func (b *Table) routed(id config.ShardID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k, found := b.shards[id]
	return found && !k.Patroni
}

// Get returns what is known of one shard.
func (b *Table) Get(id config.ShardID) (Known, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken(id)
}

// Heard returns what Consul said last of one shard, which may not be taken in yet.
func (b *Table) Heard(id config.ShardID) (Known, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.heard(id)
}

// followed takes in what Patroni's keys say of a shard. A route of Lictor's stays
// where there is one.
func (b *Table) followed(id config.ShardID, route cluster.Route, index uint64) (changed bool, err error) {
	if err := route.Validate(); err != nil {
		return false, fmt.Errorf("shard %s: what Patroni's keys say makes no route: %w", id, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old, have := b.heard(id)
	if have && !old.Patroni && !old.Gone && !b.patroni[id] {
		return false, nil
	}
	if have && !old.Gone && route.SystemIdentifier != old.Route.SystemIdentifier {
		return false, fmt.Errorf("shard %s: Patroni's cluster has system identifier %s, known is %s: it %w and is refused; "+
			"if it was upgraded or made anew on purpose, delete its key initialize, which Patroni's leader writes again",
			id, route.SystemIdentifier, old.Route.SystemIdentifier, errForeign)
	}
	now := Known{Route: route, ModifyIndex: index, First: b.first(id), Confirmed: true, Patroni: true}
	if have && old.Gone && old.Patroni && route.State == cluster.RouteDown && route.SystemIdentifier == old.Route.SystemIdentifier {
		now.Gone, now.Timeline = true, old.Timeline // without a leader it says what was known before
		if old.Confirmed && route.SameTopology(old.Route) && route.Since.Equal(old.Route.Since) {
			b.set(id, now)
			return false, nil
		}
	}
	if have && !old.Gone {
		if err := old.newerThan(route); err != nil {
			return false, fmt.Errorf("shard %s: Patroni's leader %w and is refused; if it was set back on purpose, delete its key initialize, which Patroni's leader writes again", id, err)
		}
		now.Timeline = old.served()
	}
	if changed = b.admit(id, now); changed {
		b.changes++
	}
	return changed, nil
}

// forgotten says that the key initialize of a shard that Patroni runs is not there, or is another one: what comes
// next may be another cluster, or the same one set back.
func (b *Table) forgotten(id config.ShardID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if k, found := b.heard(id); found && k.Patroni && !k.Gone {
		b.lose(id)
	}
}

// foundWrong notes what is wrong with a shard that Patroni runs, nil: nothing. It
// reports whether that is new.
func (b *Table) foundWrong(id config.ShardID, err error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	key, old := string(id), b.wrong[string(id)]
	if err == nil {
		delete(b.wrong, key)
		return old != nil
	}
	b.wrong[key] = err
	return old == nil || old.Error() != err.Error()
}
