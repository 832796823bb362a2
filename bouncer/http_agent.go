package bouncer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// What agents ask of a bouncer. Anybody who reaches the listener may ask: nothing
// that a request says is believed before it was read from Consul.

const (
	// bodyLimit bounds a request's body, in bytes.
	bodyLimit = 1 << 16
	// handoverWaitMost limits how long a reply may wait.
	handoverWaitMost = 30 * time.Second
)

// decode reads a request's body; an empty one is nothing.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyLimit)).Decode(into)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("the body is not what %s takes: %w", r.URL.Path, err)
	}
	return nil
}

const (
	// fewRoutes is how many routes are read one by one at the same time.
	fewRoutes = 8
	// manyLast is for how long after that none is.
	manyLast = 200 * time.Millisecond
)

// many reports whether so many shards are poked that what the watch of all routes brings is
// there sooner.
func (a *listenerAPI) many() bool {
	now := time.Now().UnixNano()
	if a.routeReads.Open() >= fewRoutes {
		a.manyUntil.Store(now + int64(manyLast))
	}
	return now < a.manyUntil.Load()
}

// poke reads the route that the poke tells of, unless that is known. Of many at once the
// watch reads all. One that names no shard, or one that is new, has all routes read, rarely.
func (a *listenerAPI) poke(w http.ResponseWriter, r *http.Request) {
	var p cluster.Poke
	if err := decode(w, r, &p); err != nil {
		reply(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	id := config.ShardID(p.Namespace + "/" + p.Scope)
	known := func() bool { return p.Index > 0 && a.table.Has(id, p.Index) }
	message := "reading the routes"
	switch {
	case known():
		message = "known already"
	case a.table.Knows(id) && a.many():
		a.watcher.Hurry()
		if !a.watcher.Status().Connected && a.listReads.Allow() {
			a.watcher.Poke()
		}
	case a.table.Knows(id):
		message = "reading the route"
		index := p.Index
		if index == 0 { // an agent that does not tell
			index = routes.NoIndex
		}
		a.routeReads.Ask(id, index, func(ctx context.Context, index uint64) error {
			err := a.watcher.ReadRoute(ctx, id, index)
			if err != nil {
				a.log.Debug().Err(err).Str("shard", string(id)).Msg("a poke could not be followed")
			}
			return err
		})
	case a.listReads.Allow():
		a.watcher.Poke()
	default:
		reply(w, http.StatusTooManyRequests, map[string]string{"error": "the routes have just been read"})
		return
	}
	a.log.Debug().Str("shard", string(id)).Uint64("index", p.Index).Str("from", r.RemoteAddr).Msg("poked")
	reply(w, http.StatusAccepted, map[string]string{"message": message})
}

// handover holds a shard's clients for a planned switchover, and replies how that
// stands.
func (a *listenerAPI) handover(w http.ResponseWriter, r *http.Request) {
	var q cluster.HandoverRequest
	err := decode(w, r, &q)
	if err == nil {
		err = q.Validate()
	}
	answer := cluster.HandoverAnswer{ID: q.ID, Bouncer: a.config.Name}
	fail := func(code int, format string, args ...any) {
		answer.Problem = fmt.Sprintf(format, args...)
		reply(w, code, answer)
	}
	if err != nil {
		fail(http.StatusBadRequest, "%v", err)
		return
	}
	id := config.ShardID(q.Namespace + "/" + q.Scope)
	if !a.table.Knows(id) {
		fail(http.StatusNotFound, "shard %s is not served here", id)
		return
	}
	known := func() bool {
		one, found, _ := a.handovers.Of(id)
		return found && one.Value.ID == q.ID && one.Over == (q.State != cluster.HandoverAnnounced)
	}
	read := func(ctx context.Context) error { return a.watcher.ReadHandover(ctx, id) }
	if err := a.handoverReads.Do(r.Context(), id, known, read); err != nil {
		fail(http.StatusServiceUnavailable, "%v", err)
		return
	}
	one, found, _ := a.handovers.Of(id)
	switch {
	case q.State != cluster.HandoverAnnounced:
		reply(w, http.StatusOK, answer) // whatever was held is let go
	case !found || one.Value.ID != q.ID || one.Over:
		fail(http.StatusConflict, "Consul has no such handover of shard %s, or it is over", id)
	default:
		a.awaitQuiet(w, r, id, q)
	}
}

// mostWaiting is how many requests may wait for one shard's handover: its leader's, and the
// same when it was sent again.
const mostWaiting = 2

// waitingReplies are the requests that wait for handovers, by shard. Any number may be sent
// for one, which lasts for as long as its leader likes. The zero value is ready to be used.
type waitingReplies struct {
	mu  sync.Mutex
	all map[config.ShardID][]chan struct{} // the oldest first
}

// enter takes a request in, for which the oldest of the shard's may have to answer: replaced is
// closed when that is this one.
func (w *waitingReplies) enter(id config.ShardID) (replaced <-chan struct{}, leave func()) {
	own := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[config.ShardID][]chan struct{}{}
	}
	if waiting := w.all[id]; len(waiting) >= mostWaiting {
		close(waiting[0])
		w.all[id] = slices.Delete(waiting, 0, 1)
	}
	w.all[id] = append(w.all[id], own)
	return own, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.all[id] = slices.DeleteFunc(w.all[id], func(c chan struct{}) bool { return c == own })
		if len(w.all[id]) == 0 {
			delete(w.all, id)
		}
	}
}

// awaitQuiet replies once nothing of the shard runs here, or when the time for
// that is over, or newer requests wait.
func (a *listenerAPI) awaitQuiet(w http.ResponseWriter, r *http.Request, id config.ShardID, q cluster.HandoverRequest) {
	// What it waits for only its leader and who may read Consul know the name of.
	defer httpserver.Hold(r.Context())()
	replaced, leave := a.waiting.enter(id)
	defer leave()
	wait := min(max(time.Duration(q.WaitMS)*time.Millisecond, 0), handoverWaitMost)
	// The listener's own bounds are for short requests.
	bound, control := time.Now().Add(wait+cluster.HandoverWaitLeast+httpBound), http.NewResponseController(w)
	if err := errors.Join(control.SetReadDeadline(bound), control.SetWriteDeadline(bound)); err != nil {
		a.log.Debug().Err(err).Msg("a reply may be cut off")
	}
	quiet, paused := time.NewTimer(wait), time.NewTimer(max(wait, cluster.HandoverWaitLeast))
	defer quiet.Stop()
	defer paused.Stop()
	late := false
	for {
		one, _, answered := a.handovers.Of(id)
		if one.Value.ID != q.ID || one.Over {
			reply(w, http.StatusConflict, cluster.HandoverAnswer{ID: q.ID, Bouncer: a.config.Name, Problem: "the handover is over"})
			return
		}
		if ours := one.Answer.ID == q.ID; ours && (one.Answer.Quiet() || late && one.Answer.Paused) {
			reply(w, http.StatusOK, one.Answer)
			return
		}
		select {
		case <-answered:
		case <-quiet.C: // what runs still is told at once, so that the leader hears it in time
			late = true
		case <-paused.C:
			a.replyAsItStands(w, q.ID, one.Answer)
			return
		case <-replaced:
			a.replyAsItStands(w, q.ID, one.Answer)
			return
		case <-r.Context().Done():
			return
		}
	}
}

// replyAsItStands replies to who is not to wait any longer.
func (a *listenerAPI) replyAsItStands(w http.ResponseWriter, id string, answer cluster.HandoverAnswer) {
	code := http.StatusOK
	if answer.ID, answer.Bouncer = id, a.config.Name; !answer.Paused {
		code = http.StatusServiceUnavailable
	}
	reply(w, code, answer)
}
