package routes

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/bouncer/config"
)

const (
	// paceBurst is how many changes of one shard are taken in as they come: a switchover with its
	// replicas has five or so. paceEvery is how often one that goes on is taken in after these.
	paceBurst = 10
	paceEvery = time.Second
)

// pace limits how often what is known of a shard changes. Each change has PgBouncer read its
// whole file, and every client waits meanwhile: a route that is written many times a second, by
// two leaders in dispute or by a program gone wrong, would cost the clients of all shards. Its
// first changes are taken in at once, of the others the newest one once a second, for all such
// shards together. No other shard's change waits.
type pace struct {
	limits map[config.ShardID]*rate.Limiter
	// waiting are the newest routes of shards that have changed too often.
	waiting map[config.ShardID]Known
	// flapping are the shards that have, and have not come to rest yet.
	flapping map[config.ShardID]bool
	// wake is told of the first of them.
	wake chan struct{}
}

func newPace() pace {
	return pace{
		limits: map[config.ShardID]*rate.Limiter{}, waiting: map[config.ShardID]Known{}, flapping: map[config.ShardID]bool{},
		wake: make(chan struct{}, 1),
	}
}

// allow reports whether another change of a shard may be taken in now, one of so many.
func (p *pace) allow(id config.ShardID, shards int) bool {
	if shards <= 1 {
		return true // it costs nobody else
	}
	limit := p.limits[id]
	if limit == nil {
		if len(p.limits) >= 2*shards+paceBurst {
			p.forgetQuiet()
		}
		limit = rate.NewLimiter(rate.Every(paceEvery), paceBurst)
		p.limits[id] = limit
	}
	if limit.Allow() && !p.flapping[id] {
		return true
	}
	p.flapping[id] = true
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return false
}

// forgetQuiet forgets the shards that have not changed for so long that it makes no difference.
func (p *pace) forgetQuiet() {
	for id, limit := range p.limits {
		if !p.flapping[id] && limit.Tokens() >= paceBurst {
			delete(p.limits, id)
		}
	}
}

// rested ends the flapping of those shards that have not changed for some seconds.
func (p *pace) rested() (list []config.ShardID) {
	for id := range p.flapping {
		if limit := p.limits[id]; limit.Tokens() >= paceBurst/2 {
			delete(p.flapping, id)
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// errFlapping says that a shard's route changes too often.
func errFlapping(id config.ShardID) error {
	return fmt.Errorf("route of shard %s changes too often: it is followed once a second, with the newest one; look who writes it", printable.Text(string(id)))
}

// heard is what Consul said last of a shard, whether it is taken in yet or not.
func (b *Table) heard(id config.ShardID) (Known, bool) {
	if k, waits := b.pace.waiting[id]; waits {
		return k, true
	}
	return b.taken(id)
}

// taken is what is taken in of a shard.
func (b *Table) taken(id config.ShardID) (Known, bool) {
	if k := b.shards[id]; k != nil {
		return *k, true
	}
	return Known{}, false
}

// admit takes in what Consul says of a shard, now or, when that changes it too often, with the
// next catchUp. It reports whether the shard has changed.
func (b *Table) admit(id config.ShardID, now Known) (changed bool) {
	old, have := b.taken(id)
	changed = !have || !old.Confirmed || old.Gone || old.Patroni != now.Patroni || !now.Route.SameTopology(old.Route) || !now.Route.Since.Equal(old.Route.Since)
	if changed && !b.pace.allow(id, max(len(b.shards), len(b.only))) {
		b.pace.waiting[id] = now
		return false
	}
	delete(b.pace.waiting, id)
	b.set(id, now)
	return changed
}

// lose notes that the keys of a shard are gone. Its newest route that waits still does: who follows the table hears of it
// when it is taken in.
func (b *Table) lose(id config.ShardID) {
	waits, is := b.pace.waiting[id]
	if is {
		waits.Gone = true
		b.pace.waiting[id] = waits
	}
	if k, have := b.taken(id); have && (!is || k.Patroni == waits.Patroni) {
		k.Gone = true
		b.set(id, k)
	}
}

// complain notes what is wrong with the key of a shard, nil: nothing. Where that changes too often
// what was said stays.
func (b *Table) complain(id config.ShardID, key string, err error, problems map[string]error) {
	said := b.problems[key]
	same := (said == nil) == (err == nil) && (err == nil || said.Error() == err.Error())
	if !same && !b.pace.allow(id, max(len(b.shards), len(b.only))) {
		err = said
	}
	if err != nil {
		problems[key] = err
	}
}

// catchUp takes in the newest routes of shards that have changed too often, and returns those
// shards, those that have come to rest, and whether others have not.
func (b *Table) catchUp() (changed, rested []config.ShardID, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, k := range b.pace.waiting {
		b.set(id, k)
		changed = append(changed, id)
	}
	clear(b.pace.waiting)
	if len(changed) > 0 {
		b.changes++
	}
	slices.Sort(changed)
	return changed, b.pace.rested(), len(b.pace.flapping) > 0
}

// flapping are the shards whose routes change too often.
func (b *Table) flapping() (list []config.ShardID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.pace.flapping {
		list = append(list, id)
	}
	slices.Sort(list)
	return list
}

// Pace has the table catch up, and says which shards change too often, until ctx is done.
func (w *Watcher) Pace(ctx context.Context) {
	said := map[config.ShardID]bool{}
	for {
		select {
		case <-w.table.pace.wake:
		case <-ctx.Done():
			return
		}
		for more := true; more; {
			for _, id := range w.table.flapping() {
				if !said[id] {
					said[id] = true
					w.log.Error().Str("shard", string(id)).Msg("a route changes too often; it is followed once a second")
				}
			}
			select {
			case <-time.After(paceEvery):
			case <-ctx.Done():
				return
			}
			var changed, rested []config.ShardID
			changed, rested, more = w.table.catchUp()
			w.act(outcome{Changed: changed})
			for _, id := range rested {
				delete(said, id)
				w.log.Info().Str("shard", string(id)).Msg("a route has come to rest")
			}
			if len(rested) > 0 {
				w.changed()
				w.Poke() // what is wrong with them was not said as often as it changed
			}
		}
	}
}
