package bouncer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

const (
	// silentMost is the longest silence that is waited for.
	silentMost = 10 * time.Second
	// knocksIn is how often the leader is tried in that time.
	knocksIn = 4
)

// witness tells candidates whether this host misses the leader of a shard, too (design 5.30).
type witness struct {
	dial func(ctx context.Context, address string) error // nil: over TCP

	mu sync.Mutex
	// at are the shards whose leaders are being tried: for each no more than once at a time.
	at map[config.ShardID]bool
}

// begin reports whether nobody tries a shard's leader yet.
func (t *witness) begin(id config.ShardID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at[id] {
		return false
	}
	if t.at == nil {
		t.at = map[config.ShardID]bool{}
	}
	t.at[id] = true
	return true
}

func (t *witness) end(id config.ShardID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.at, id)
}

var (
	errAnswers = errors.New("it answers")
	errAtIt    = errors.New("it is being tried for somebody else")
)

// misses replies whether the leader of a shard has answered nothing for some time, where the route, read before and after, names
// it. It is tried where the route says and nowhere else: anybody may ask.
func (a *listenerAPI) misses(w http.ResponseWriter, r *http.Request) {
	var q cluster.Missing
	fail := func(code int, format string, args ...any) {
		reply(w, code, map[string]string{"error": fmt.Sprintf(format, args...)})
	}
	if err := decode(w, r, &q); err != nil {
		fail(http.StatusBadRequest, "%v", err)
		return
	}
	silent := time.Duration(q.SilentMS) * time.Millisecond
	if silent <= 0 || silent > silentMost || q.Leader == "" {
		fail(http.StatusBadRequest, "leader must be set, and silent_ms between 1 and %d", silentMost.Milliseconds())
		return
	}
	id := config.ShardID(q.Namespace + "/" + q.Scope)
	if !a.table.Knows(id) {
		fail(http.StatusNotFound, "shard %s is not served here", id)
		return
	}
	if !a.witness.begin(id) {
		fail(http.StatusTooManyRequests, "the leader of shard %s: %v", id, errAtIt)
		return
	}
	defer a.witness.end(id)
	bound, control := time.Now().Add(silent+2*httpBound), http.NewResponseController(w)
	if err := errors.Join(control.SetReadDeadline(bound), control.SetWriteDeadline(bound)); err != nil {
		a.log.Debug().Err(err).Msg("a reply may be cut off")
	}
	leader, err := a.leaderAsRead(r.Context(), id, q.Leader)
	if err == nil {
		defer httpserver.Hold(r.Context())() // not for who names any leader: of these connections there are few
		err = a.witness.knock(r.Context(), net.JoinHostPort(leader.Host, strconv.Itoa(leader.Port)), silent)
	}
	if err == nil {
		_, err = a.leaderAsRead(r.Context(), id, q.Leader)
	}
	if err != nil {
		fail(http.StatusConflict, "shard %s, leader %s: %v", id, q.Leader, err)
		return
	}
	a.log.Warn().Str("shard", string(id)).Str("leader", q.Leader).Str("from", r.RemoteAddr).Msg("witness of a leader that is silent")
	reply(w, http.StatusOK, map[string]string{"message": "the leader is missed"})
}

// leaderAsRead reads the route anew: that it can be read shows that this host has not lost the others.
func (a *listenerAPI) leaderAsRead(ctx context.Context, id config.ShardID, name string) (cluster.RouteMember, error) {
	never := func() bool { return false }
	if err := a.routeReads.Do(ctx, id, never, func(ctx context.Context) error { return a.watcher.ReadRoute(ctx, id, routes.NoIndex) }); err != nil {
		return cluster.RouteMember{}, err
	}
	known, found := a.table.Heard(id)
	if !found || known.Route.Leader.Name != name {
		return cluster.RouteMember{}, errors.New("the route names another leader, or none")
	}
	return known.Route.Leader, nil
}

// knock tries an address for as long as it must be silent; nil: it was. An address that cannot be tried is not silent.
func (t *witness) knock(ctx context.Context, address string, silent time.Duration) error {
	dial := t.dial
	if dial == nil {
		dial = dialOnce
	}
	pace := silent / knocksIn
	next := time.NewTimer(0)
	defer next.Stop()
	for range knocksIn {
		select {
		case <-next.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		next.Reset(pace)
		one, cancel := context.WithTimeout(ctx, pace)
		err := dial(one, address)
		cancel()
		unresolved := (*net.DNSError)(nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &unresolved): // also when it took too long: that is the resolver's silence
			return fmt.Errorf("it cannot be tried: %w", err)
		case err == nil, errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
			return errAnswers
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ETIMEDOUT), isTimeout(err):
		default:
			return fmt.Errorf("it cannot be tried: %w", err)
		}
	}
	select {
	case <-next.C: // the last knock has its time, too
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func isTimeout(err error) bool {
	var one net.Error
	return errors.As(err, &one) && one.Timeout()
}

// dialOnce opens a connection and closes it.
func dialOnce(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
