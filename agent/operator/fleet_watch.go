package operator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/agent/proof"
)

// FleetWatch reads all shards again and again, for however many who look on. Three questions to
// Consul are open at the most: two blocking queries, for routes and bouncers, and one for either
// the shards' keys, of which some change with every beat, or one shard's events.
type FleetWatch struct {
	site    *Site
	client  *api.Client
	zoneTag string
	// turn holds one while the third question is open. Of those who want a shard's events only who has
	// eventsTurn waits for it: one at the most is in front of the shards' keys.
	turn, eventsTurn chan struct{}
	eventsPace       *rate.Limiter
	// dirty holds one while something has been read that is not in the state yet.
	dirty chan struct{}

	// What build has made of the bouncers' keys.
	presence answer
	bouncers []cluster.Bouncer

	mu      sync.Mutex
	answers map[string]answer // by prefix
	words   map[string]leaderWords
	events  map[string]readEvents
	built   map[string]*builtShard // by name; what is in it does not change
	state   FleetState
	changed chan struct{} // closed with the next state
	lookers int
	looked  chan struct{} // closed when the first one comes
}

// FleetState is what is known of the fleet.
type FleetState struct {
	View FleetView
	// Number grows with every view.
	Number uint64
	// At is the moment of which all of it tells, at least; zero: nothing was read yet.
	At time.Time
	// Problem says why nothing newer is known; empty: Consul answers.
	Problem string
}

// readEvents are a shard's events, as they were read.
type readEvents struct {
	log events.Log
	err error
	at  time.Time
}

const (
	// watchWait is how long Consul may wait for a change; of the shards' keys shardsWait, as others
	// wait for that turn. Each answer says, too, that Consul is there.
	watchWait, shardsWait = 2 * time.Second, time.Second
	// shardsRest is how long the shards' keys are left alone after an answer, more than twice as long
	// as it took if that is longer: at a thousand shards a third of a processor at the most, here
	// and at Consul, however many look.
	shardsRest = time.Second
	// leadersRest is how long leaders are not asked while no shard is known.
	leadersRest = 250 * time.Millisecond
	// failedRest is the same after an error.
	failedRest = time.Second
	// idleRest is the same while nobody looks.
	idleRest = 15 * time.Second
	// leadersEvery is how often leaders are asked what only they know, leadersLimit how long all of
	// them may take.
	leadersEvery, leadersLimit = 10 * time.Second, 2 * time.Second
	// eventsFor is how long a shard's events are not read again, eventsLimit how long reading them may
	// take: who asks for a shard gets all the rest of it.
	eventsFor, eventsLimit = 2 * time.Second, 2 * time.Second
	// eventsRate is how many shards' events are read a second, whoever asks for how many.
	eventsRate = 8
)

// WatchFleet makes a watch; Run has it read. zoneTag is the tag that names a member's zone.
func WatchFleet(site *Site, zoneTag string) (*FleetWatch, error) {
	client, err := site.memberClient()
	if err != nil {
		return nil, err
	}
	return &FleetWatch{
		site: site, client: client, zoneTag: zoneTag, turn: make(chan struct{}, 1), eventsTurn: make(chan struct{}, 1), eventsPace: rate.NewLimiter(eventsRate, eventsRate), dirty: make(chan struct{}, 1),
		answers: map[string]answer{}, words: map[string]leaderWords{}, events: map[string]readEvents{},
		changed: make(chan struct{}), looked: make(chan struct{}),
	}, nil
}

// Run reads until ctx ends.
func (w *FleetWatch) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, prefix := range w.prefixes() {
		all.Go(func() { w.follow(ctx, prefix) })
	}
	all.Go(func() { w.keepAsking(ctx) })
	all.Go(func() { w.build(ctx) })
	all.Wait()
	w.client.Close()
}

// prefixes are those of the shards, their routes, and the bouncers' two.
func (w *FleetWatch) prefixes() [3]string {
	keys := w.site.keys("x")
	return [3]string{w.site.Namespace + "/", keys.Routes() + w.site.Namespace + "/", strings.TrimSuffix(keys.Bouncers(), "/")}
}

// Look says that somebody looks on, until leave is called.
func (w *FleetWatch) Look() (leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lookers++; w.lookers == 1 {
		close(w.looked)
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.lookers--; w.lookers == 0 {
			w.looked = make(chan struct{})
		}
	}
}

// State is what is known now; changed is closed when that is no longer the newest view.
func (w *FleetWatch) State() (state FleetState, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	state = w.state
	for i, prefix := range w.prefixes() {
		a := w.answers[prefix]
		if i == 0 || a.at.Before(state.At) {
			state.At = a.at
		}
		switch {
		case state.Problem != "":
		case a.err != nil:
			state.Problem = Explain(a.err)
		case i == 0 && a.filtered && len(a.pairs) == 0:
			state.Problem = "Consul shows no shard: its token may not read the keys below " + prefix + " (consul.token_file or consul.token)"
		}
	}
	return state, w.changed
}

// rest waits before the next question, for long while nobody looks; false: ctx has ended.
func (w *FleetWatch) rest(ctx context.Context, busy time.Duration) bool {
	w.mu.Lock()
	looked := w.looked
	w.mu.Unlock()
	busily, idly := time.NewTimer(busy), time.NewTimer(idleRest)
	defer busily.Stop()
	defer idly.Stop()
	select {
	case <-busily.C:
	case <-ctx.Done():
		return false
	}
	select {
	case <-looked:
	case <-idly.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// follow reads one prefix after each change.
func (w *FleetWatch) follow(ctx context.Context, prefix string) {
	for {
		w.mu.Lock()
		before := w.answers[prefix]
		w.mu.Unlock()
		now := w.ask(ctx, prefix, before)
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		w.answers[prefix] = now
		w.mu.Unlock()
		if now.err == nil && (now.index != before.index || len(now.leftOut) > 0) { // what is left out waits for no change
			w.markDirty()
		}
		pause := shardsRest
		if now.err != nil {
			pause = failedRest
		} else if prefix == w.prefixes()[0] {
			pause = max(pause, 2*now.took)
		}
		if !w.rest(ctx, pause) {
			return
		}
	}
}

// ask asks for what is newer than the answer before. Any server of Consul's may answer, so that
// the leader is not kept from its work: it says how far it is behind.
func (w *FleetWatch) ask(ctx context.Context, prefix string, before answer) (now answer) {
	wait, shards := watchWait, prefix == w.prefixes()[0]
	if shards {
		wait = shardsWait
		if !take(ctx, w.turn) {
			return before
		}
		defer func() { <-w.turn }()
	}
	var err error
	if shards {
		now, err = w.site.shardsAfter(ctx, stale, wait, before)
	} else {
		now, err = w.site.listAfter(ctx, prefix, stale, wait, before, &budget{left: bytesOfAll})
	}
	if err != nil {
		now = before
	}
	now.err = err
	return now
}

func take(ctx context.Context, turn chan<- struct{}) bool {
	select {
	case turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// markDirty says that there is something to build.
func (w *FleetWatch) markDirty() {
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

// build makes a new state of what was read, and rests for as long as that took.
func (w *FleetWatch) build(ctx context.Context) {
	for {
		select {
		case <-w.dirty:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		w.rebuild()
		select {
		case <-time.After(time.Since(began)):
		case <-ctx.Done():
			return
		}
	}
}

func (w *FleetWatch) rebuild() {
	prefixes := w.prefixes()
	w.mu.Lock()
	shards, routes, presence := w.answers[prefixes[0]], w.answers[prefixes[1]], w.answers[prefixes[2]]
	before, words := w.built, w.words
	w.mu.Unlock()
	if shards.at.IsZero() || routes.at.IsZero() || presence.at.IsZero() {
		return // half of it would look like trouble
	}
	if before == nil || presence.index != w.presence.index {
		before = nil
		w.presence = presence
		w.bouncers = w.site.parseBouncers(w.below(w.site.keys("x").Bouncers()), w.below(w.site.keys("x").BouncersApplied()))
	}
	built := make(map[string]*builtShard, len(before))
	for scope, kvs := range w.site.byShard(shards.pairs, routes.pairs) {
		one, sum := before[scope], sumOf(kvs)
		if one == nil || one.sum != sum {
			one = &builtShard{sum: sum, shard: w.site.parseShard(scope, kvs, w.bouncers)}
			one.shard.leaderWords = words[one.shard.said()]
			one.show(w.zoneTag)
		} else if now := words[one.shard.said()]; one.shard.leaderWords != now {
			one = &builtShard{sum: sum, shard: one.shard}
			one.shard.leaderWords = now
			one.show(w.zoneTag)
		}
		built[scope] = one
	}
	for scope, one := range shards.leftOut {
		if one.isShard {
			built[scope] = &builtShard{shard: fleetShard{scope: scope, unread: one.why}}
			built[scope].show(w.zoneTag)
		}
	}
	view := fleetView(built, w.bouncers)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.built, w.state.View = built, view
	w.state.Number++
	close(w.changed)
	w.changed = make(chan struct{})
}

// below are the keys of bouncers that begin so.
func (w *FleetWatch) below(prefix string) (pairs consulapi.KVPairs) {
	for _, p := range w.presence.pairs {
		if strings.HasPrefix(p.Key, prefix) {
			pairs = append(pairs, p)
		}
	}
	return pairs
}

// sumOf is another one for other keys, or other values of them.
func sumOf(kvs []cluster.KV) uint64 {
	sum := fnv.New64a()
	var index [8]byte
	for _, kv := range kvs {
		_, _ = sum.Write([]byte(kv.Key)) // a hash takes everything
		binary.NativeEndian.PutUint64(index[:], kv.ModifyIndex)
		_, _ = sum.Write(index[:])
		_, _ = sum.Write([]byte(kv.Session))
		_, _ = sum.Write(kv.Value)
	}
	return sum.Sum64()
}

// said is whose words are the shard's leader's: another leader's are not.
func (s fleetShard) said() string { return s.scope + "/" + s.snapshot.LeaderName() }

// keepAsking asks all leaders what only they know, more rarely while nobody looks.
func (w *FleetWatch) keepAsking(ctx context.Context) {
	pause := time.Duration(0)
	for w.rest(ctx, pause) {
		w.mu.Lock()
		built := w.built
		w.mu.Unlock()
		var f fleet
		for _, b := range built {
			s := b.shard
			s.leaderWords = leaderWords{} // who does not answer now has said nothing
			s.secret = &proof.Keeper{}    // the page may read none: what is said is shown, and nothing done by it
			f.shards = append(f.shards, s)
		}
		if pause = leadersEvery; len(f.shards) == 0 {
			pause = leadersRest
			continue
		}
		f.askLeaders(ctx, w.client, leadersLimit)
		words := map[string]leaderWords{}
		for _, s := range f.shards {
			words[s.said()] = s.leaderWords
		}
		w.mu.Lock()
		w.words = words
		w.mu.Unlock()
		w.markDirty()
	}
}

// Has reports whether there is a shard of that name.
func (w *FleetWatch) Has(scope string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.built[scope] != nil
}

// Shard is all that is known of one shard; false: there is none of that name.
func (w *FleetWatch) Shard(ctx context.Context, scope string) (ShardView, bool) {
	w.mu.Lock()
	built := w.built[scope]
	w.mu.Unlock()
	if built == nil {
		return ShardView{}, false
	}
	view := built.shard.detail(time.Now())
	log, err := w.eventsOf(ctx, scope)
	if err != nil {
		view.Unread = Explain(err)
	}
	for _, e := range slices.Backward(log.Events) {
		view.Events = append(view.Events, readable(e))
	}
	return view, true
}

// readable is an event without what would show as something else than it is.
func readable(e events.Event) events.Event {
	e.Kind, e.Outcome = events.Kind(printable.Text(string(e.Kind))), events.Outcome(printable.Text(string(e.Outcome)))
	e.By, e.From, e.To, e.Cause = printable.Text(e.By), printable.Text(e.From), printable.Text(e.To), printable.Text(e.Cause)
	e.Phases = slices.Clone(e.Phases)
	for i := range e.Phases {
		e.Phases[i].Name = printable.Text(e.Phases[i].Name)
	}
	return e
}

// eventsOf reads what happened to a shard, unless that was done just now.
func (w *FleetWatch) eventsOf(ctx context.Context, scope string) (events.Log, error) {
	recent := func() (readEvents, bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		maps.DeleteFunc(w.events, func(_ string, r readEvents) bool { return time.Since(r.at) > eventsFor })
		r, found := w.events[scope]
		return r, found
	}
	if r, found := recent(); found {
		return r.log, r.err
	}
	ctx, cancel := context.WithTimeout(ctx, eventsLimit)
	defer cancel()
	if err := w.eventsPace.Wait(ctx); err != nil {
		return events.Log{}, fmt.Errorf("too many ask for shards just now: %w", err)
	}
	for _, turn := range []chan struct{}{w.eventsTurn, w.turn} {
		if !take(ctx, turn) {
			return events.Log{}, fmt.Errorf("waiting for Consul: %w", ctx.Err())
		}
		defer func() { <-turn }()
	}
	if r, found := recent(); found { // who had the turn before has read them
		return r.log, r.err
	}
	var r readEvents
	key := w.site.keys(scope).Events()
	r.err = w.site.query(ctx, func(ctx context.Context, c *consulapi.Client) error {
		pair, _, err := c.KV().Get(key, (&consulapi.QueryOptions{AllowStale: true}).WithContext(ctx))
		if err != nil || pair == nil {
			return err
		}
		if r.log, err = events.Parse(pair.Value); err != nil {
			return &failure{ExitFailed, fmt.Errorf("the key %s: %w", key, err)}
		}
		return nil
	})
	if errors.Is(ctx.Err(), context.Canceled) {
		return r.log, r.err // who asked has left: that says nothing to others
	}
	r.at = time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events[scope] = r
	return r.log, r.err
}
