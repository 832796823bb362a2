package routes

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// handoverGrace is how long a bouncer that starts leaves those clients held that
// it finds held, while Consul does not say why.
const handoverGrace = 5 * time.Second

// Handovers holds the planned switchovers that leaders have announced. Each holds
// its shard's clients until the route leads to the successor, it is called off,
// or its deadline has passed. Its rules: an announcement counts only while a
// session holds its key; the end of one counts only once the shard's route has been
// read after it, for the new route may not have come yet; and each is followed
// once, so that one whose time is up does not begin again. Of a shard that announces one
// after the other no more than one a second is followed: each holds its clients, and has its route read.
type Handovers struct {
	keys   cluster.Keys
	serves func(config.ShardID) bool
	clock  func() time.Time

	// begun is when this bouncer began.
	begun time.Time

	mu  sync.Mutex
	all map[config.ShardID]*handover
	// listed: Consul has said which handovers there are, as of index. eras counts how often that
	// has gone back since: indexes of another era say nothing.
	listed bool
	index  uint64
	eras   int
	// answered is closed and made anew with each answer and each end.
	answered chan struct{}
	// wrong is what is wrong with keys of handovers.
	wrong map[string]error
	// paces are those of the announcements, by shard.
	paces map[config.ShardID]*rate.Limiter
}

// handover is one switchover as this bouncer knows it.
type handover struct {
	value cluster.Handover
	// announced and index are the key's ModifyIndex, of the announcement and now.
	announced, index uint64
	era              int
	seen             time.Time
	// ended is when its end was heard of.
	ended time.Time
	// over: it holds nobody any more, and will not.
	over   bool
	answer cluster.HandoverAnswer
	// answered is closed and made anew with each answer, and with the end.
	answered chan struct{}
}

func NewHandovers(keys cluster.Keys, serves func(config.ShardID) bool) *Handovers {
	return &Handovers{keys: keys, serves: serves, clock: time.Now, begun: time.Now(), all: map[config.ShardID]*handover{}, answered: make(chan struct{}), paces: map[config.ShardID]*rate.Limiter{}}
}

// GoOn takes over the handovers that were known under the configuration before, of the same routes: none is
// followed for longer, or again, because a file was read again. What has ended meanwhile the first list
// tells, and no leader has an answer yet.
func (h *Handovers) GoOn(before *Handovers) {
	before.mu.Lock()
	defer before.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index, h.eras, h.paces = before.index, before.eras, before.paces
	for id, one := range before.all {
		if !h.serves(id) {
			continue
		}
		kept := *one
		kept.answer, kept.answered = cluster.HandoverAnswer{}, make(chan struct{})
		if !kept.over {
			kept.ended = time.Time{} // its end is heard of again, and the route read then
		}
		h.all[id] = &kept
	}
}

// merge takes in what a list of all handovers says, which Consul had at index.
// ended: the routes must be read. problems are those that are new.
func (h *Handovers) merge(pairs api.KVPairs, index uint64) (changed, ended bool, problems []problem) {
	h.mu.Lock()
	defer h.mu.Unlock()
	present, wrong := map[config.ShardID]bool{}, map[string]error{}
	changed, h.listed = !h.listed, true
	if index < h.index { // the newest key was deleted, or Consul was set back
		h.eras++
	}
	h.index = index
	for _, p := range pairs {
		namespace, scope, err := h.keys.SplitHandover(p.Key)
		if err == nil {
			id := config.ShardID(namespace + "/" + scope)
			present[id] = true
			var c, e bool
			one := h.all[id]
			c, e, err = h.take(id, p, one != nil && one.era != h.eras)
			changed, ended = changed || c, ended || e
		}
		if err == nil {
			continue
		}
		wrong[p.Key] = err
		if before := h.wrong[p.Key]; before == nil || before.Error() != err.Error() {
			problems = append(problems, problem{p.Key, err})
		}
	}
	h.wrong = wrong
	for id, one := range h.all {
		// An answer from before the announcement says nothing of it.
		if !present[id] && index > one.index && h.end(one) {
			changed, ended = true, true
		}
	}
	return changed, ended, problems
}

// Trouble is what is wrong with handovers, by key.
func (h *Handovers) Trouble() map[string]error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wrong // replaced, never changed
}

// indexOf is the index at which Consul had the handover of a shard, as far as is known.
func (h *Handovers) indexOf(id config.ShardID) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if one := h.all[id]; one != nil {
		return one.index
	}
	return 0
}

// put takes in one key that was read consistently, when indexOf was before; nil: it is not there.
func (h *Handovers) put(id config.ShardID, p *api.KVPair, before uint64) (changed, ended bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p != nil {
		one := h.all[id]
		return h.take(id, p, one != nil && one.index == before)
	}
	if one := h.all[id]; one != nil && h.end(one) {
		return true, true, nil
	}
	return false, false, nil
}

// take takes one key in. final: it is newer than what is known, also where its index is lower, as in a Consul that
// was set back.
func (h *Handovers) take(id config.ShardID, p *api.KVPair, final bool) (changed, ended bool, err error) {
	if !h.serves(id) {
		return false, false, nil
	}
	old := h.all[id]
	known := old != nil && p.ModifyIndex <= old.index && (p.Session != "" || !old.ended.IsZero())
	if known && (!final || p.ModifyIndex == old.index) {
		return false, false, nil
	}
	value, err := cluster.ParseHandover(p.Value)
	if err != nil {
		return false, false, fmt.Errorf("handover of shard %s is not followed: %w", id, err)
	}
	// The loss of a session does not always change the key's index.
	void := value.State != cluster.HandoverAnnounced || p.Session == ""
	if old != nil && old.value.ID == value.ID {
		if old.index = max(old.index, p.ModifyIndex); final {
			old.index, old.era = p.ModifyIndex, h.eras
		}
		if void {
			e := h.end(old)
			return e, e, nil
		}
		return false, false, nil
	}
	if void {
		if old != nil && h.end(old) {
			return true, true, nil
		}
		return false, false, nil
	}
	if !h.allow(id) {
		if old != nil {
			changed = h.end(old) // it is that one no more
		}
		return changed, changed, fmt.Errorf("handover of shard %s is not followed: its leader announces one after the other; look who writes the key", id)
	}
	if old != nil {
		h.tell(old) // another one has taken its place
	}
	h.all[id] = &handover{
		value: value, announced: p.ModifyIndex, index: p.ModifyIndex, era: h.eras, seen: h.clock(), answered: make(chan struct{}),
	}
	return true, false, nil
}

// allow reports whether another announcement of a shard may be followed now.
func (h *Handovers) allow(id config.ShardID) bool {
	limit := h.paces[id]
	if limit == nil { // as many as there are shards that the bouncer serves
		limit = rate.NewLimiter(rate.Every(paceEvery), paceBurst)
		h.paces[id] = limit
	}
	return limit.AllowN(h.clock(), 1)
}

// end notes that a handover is called off or done.
func (h *Handovers) end(one *handover) bool {
	if one.over || !one.ended.IsZero() {
		return false
	}
	one.ended = h.clock()
	h.tell(one)
	return true
}

// refreshed says that the routes were read consistently, from begun on; of these shards, or
// of all. It tells whether that was awaited.
func (h *Handovers) refreshed(begun time.Time, only ...config.ShardID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	awaited := false
	for id, one := range h.all {
		if !one.over && !one.ended.IsZero() && !one.ended.After(begun) && (len(only) == 0 || slices.Contains(only, id)) {
			one.over, awaited = true, true
		}
	}
	return awaited
}

// ending are the shards whose end of a handover waits for the route to be read.
func (h *Handovers) ending() (ids []config.ShardID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, one := range h.all {
		if !one.over && !one.ended.IsZero() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Unknown returns until when it is not known whether there are handovers; zero: it
// is. A bouncer that was restarted in one would release clients that have no
// primary; without Consul it cannot wait for ever.
func (h *Handovers) Unknown() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if until := h.begun.Add(handoverGrace); !h.listed && h.clock().Before(until) {
		return until
	}
	return time.Time{}
}

// Holds returns the handover that holds a shard's clients, nil when none does.
// The route is what is known of the shard, which Consul had at index.
func (h *Handovers) Holds(id config.ShardID, route cluster.Route, index uint64) *cluster.Handover {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.all[id]
	if one == nil {
		return nil
	}
	if !one.over {
		arrived := route.State == cluster.RouteOpen && index > one.announced &&
			(route.Leader.Name != one.value.Leader || one.value.Timeline > 0 && route.Timeline > one.value.Timeline)
		one.over = arrived || !h.clock().Before(one.seen.Add(one.value.Deadline()))
	}
	if one.over {
		if one.ended.IsZero() {
			one.ended = h.clock()
			h.tell(one)
		}
		return nil
	}
	value := one.value
	return &value
}

// Until is when the handover that holds a shard's clients gives up; zero: none holds them.
func (h *Handovers) Until(id config.ShardID) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.all[id]
	if one == nil || one.over {
		return time.Time{}
	}
	return one.seen.Add(one.value.Deadline())
}

// Respond notes how a handover stands here, and tells those who wait for it.
func (h *Handovers) Respond(id config.ShardID, a cluster.HandoverAnswer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.all[id]
	if one == nil || one.value.ID != a.ID {
		return
	}
	a.TookMS = h.clock().Sub(one.seen).Milliseconds()
	if before := one.answer; before.ID == a.ID {
		before.TookMS = a.TookMS
		if before == a {
			return
		}
	}
	one.answer = a
	h.tell(one)
}

// tell wakes those who wait for one handover, and who looks at all.
func (h *Handovers) tell(one *handover) {
	close(one.answered)
	one.answered = make(chan struct{})
	close(h.answered)
	h.answered = make(chan struct{})
}

// Of returns the handover of one shard, and a channel that is closed when it has a new
// answer or has ended. Its cost is the same however many there are: each of a thousand
// leaders may wait for its own.
func (h *Handovers) Of(id config.ShardID) (one Standing, found bool, answered <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.all[id]
	if o == nil {
		return Standing{}, false, h.answered
	}
	return o.standing(), true, o.answered
}

func (o *handover) standing() Standing {
	return Standing{o.value, o.answer, o.over || !o.ended.IsZero()}
}

// Standing is a handover and how it stands here.
type Standing struct {
	Value  cluster.Handover
	Answer cluster.HandoverAnswer
	// Over: it holds nobody any more, or is about to.
	Over bool
}

// Current returns all handovers.
func (h *Handovers) Current() map[config.ShardID]Standing {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make(map[config.ShardID]Standing, len(h.all))
	for id, one := range maps.All(h.all) {
		all[id] = one.standing()
	}
	return all
}
