package simulation

import (
	"maps"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// The faults of Consul that are more than its being away.
const (
	ConsulError     Kind = "consul-error"     // a member's requests are answered with the HTTP status Value
	RestoreSnapshot Kind = "restore-snapshot" // what it knows now, when For is over
)

func consulFaults() map[Kind]fault {
	return map[Kind]fault{
		ConsulError: {member: true, value: true, inject: func(w *world, e Event) func() {
			w.net.status[e.Member] = e.Value
			return func() { w.net.status[e.Member] = 0 }
		}},
		RestoreSnapshot: {inject: func(w *world, _ Event) func() {
			if made, _ := w.consul.keys[keyInitialize].value.(string); made == "" {
				return nil // of a shard that is not there yet, nothing would be left
			}
			s := w.consul.save()
			return func() { w.consul.restore(s) }
		}},
	}
}

// saved is a snapshot of Consul's, as an operator restores it.
type saved struct {
	keys     map[string]kv
	sessions []*consulSession
	changed  uint64
}

func (c *consul) save() saved {
	return saved{keys: maps.Clone(c.keys), sessions: slices.Clone(c.sessions), changed: c.changed}
}

// restore brings back what was saved: keys with the indexes that they had, and sessions that
// have ended since, for a TTL. Indexes that are given from now on are higher than all before.
func (c *consul) restore(s saved) {
	listed, vouches := c.keys[keyFailsafe].index, c.keys[keySync].index
	c.keys, c.sessions = maps.Clone(s.keys), slices.Clone(s.sessions)
	for _, session := range c.sessions {
		c.renew(session)
	}
	c.changed, c.snapshot, c.applied = s.changed, nil, nil
	c.w.judge.restored(listed != c.keys[keyFailsafe].index, vouches != c.keys[keySync].index)
	c.w.reconfigure(nil) // the operator sees to what is configured
	left := c.waiting
	c.waiting = nil
	for _, q := range left { // all are told
		q.answer()
	}
}

// restored: Consul has forgotten what happened since the snapshot, perhaps also whom the
// leader asks when it cannot reach Consul, or which standbys it waits for.
func (j *judge) restored(list, sync bool) {
	if sync {
		j.forget()
	}
	j.wentBack, j.otherSync, j.clean = true, j.otherSync || sync, nil
	before := j.status.Lictor
	e, found := j.w.consul.keys[keyStatus]
	if found {
		j.status = e.value.(cluster.Status)
	}
	if before != nil && (j.status.Lictor == nil || j.status.Lictor.Discarded < before.Discarded) {
		j.unsaid = max(j.unsaid, before.Discarded)
	}
	for _, h := range j.w.hosts {
		// Who led in pause has no time after which it surely does not, nor has who goes on by
		// the word of other members than those of whom Consul knows again.
		leads := before != nil && before.Owner == h.name
		h.forgotten = h.pg.writable && (h.forgotten || leads && (before.Paused || list))
		h.unaware = h.agent != nil && h.agent.Snapshot.Status.ModifyIndex <= e.index
	}
}

// refuses reports whether a member's request is answered with an error of HTTP's: with a
// status below 500 it has certainly had no effect, with others it may have.
func (w *world) refuses(member int) (refused, effect bool) {
	status := w.net.status[member]
	return status != 0, status >= 500 && w.chance(0.5)
}

// errorSoon is how long Consul takes to refuse.
func (w *world) errorSoon() time.Duration { return w.between(0, 2*time.Millisecond) }
