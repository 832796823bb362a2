package bouncer

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// httpBound bounds reading a request and writing its answer.
const httpBound = 5 * time.Second

// listenerAPI is the bouncer's HTTP listener: for the load balancer (/health), for
// agents (/poke, /handover) and for operators (/status, /drain, /undrain, /metrics).
type listenerAPI struct {
	config    Config
	log       zerolog.Logger
	conductor *conductor
	watcher   *watcher
	link      *link
	book      *book
	handovers *handovers
	files     []*fileKeeper
	draining  atomic.Bool
	// keep is told of draining, so that a restart does not end it.
	keep func(draining bool)
}

// Health is the body of /health.
type Health struct {
	Healthy bool     `json:"healthy"`
	Reasons []string `json:"reasons,omitempty"`
}

// Status is the body of /status.
type Status struct {
	Name      string          `json:"name"`
	Health    Health          `json:"health"`
	Draining  bool            `json:"draining"`
	Consul    consulStatus    `json:"consul"`
	PgBouncer pgbouncerStatus `json:"pgbouncer"`
	// Clients is the number of clients that are connected, as of the last look,
	// at most seconds ago; absent: it is not known.
	Clients *int                    `json:"clients,omitempty"`
	Shards  map[shardID]ShardStatus `json:"shards"`
	// Files are the further files that are kept, by path.
	Files map[string]FileStatus `json:"files,omitempty"`
	// Missing are configured shards of which no route is known.
	Missing []shardID `json:"missing,omitempty"`
	// Problems are keys under the routes prefix that cannot be followed.
	Problems map[string]string `json:"problems,omitempty"`
}

type pgbouncerStatus struct {
	Answers bool      `json:"answers"`
	Since   time.Time `json:"since"`
	Version string    `json:"version,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// serve answers on listener until ctx is done.
func (a *listenerAPI) serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: httpBound, ReadTimeout: httpBound, WriteTimeout: httpBound, IdleTimeout: time.Minute,
		MaxHeaderBytes: 1 << 14,
		BaseContext:    func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("HTTP listener: %w", err)
	case <-ctx.Done():
	}
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := server.Shutdown(shutdown); err != nil {
		_ = server.Close() // whoever does not let go in time is cut off
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("HTTP listener: %w", err)
	}
	return nil
}

func (a *listenerAPI) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		h := a.health()
		code := http.StatusOK
		if !h.Healthy {
			code = http.StatusServiceUnavailable
		}
		reply(w, code, h)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, a.status()) })
	mux.Handle("GET /metrics", a.metrics())
	mux.HandleFunc("POST /poke", a.poke)
	mux.HandleFunc("POST /handover", a.handover)
	mux.HandleFunc("POST /drain", a.operator(func(w http.ResponseWriter) { a.drain(w, true) }))
	mux.HandleFunc("POST /undrain", a.operator(func(w http.ResponseWriter) { a.drain(w, false) }))
	return mux
}

// operator lets a request pass that may change what clients see.
func (a *listenerAPI) operator(next func(http.ResponseWriter)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		want := a.config.Authentication
		if want.Username == "" {
			if !fromOwnHost(r) {
				reply(w, http.StatusForbidden, map[string]string{
					"error": "without authentication in bouncer.yml this is taken from the bouncer's own host only",
				})
				return
			}
			next(w)
			return
		}
		user, password, _ := r.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(user), []byte(want.Username))&
			subtle.ConstantTimeCompare([]byte(password), []byte(want.Password)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="lictor bouncer"`)
			reply(w, http.StatusUnauthorized, map[string]string{"error": "user name or password is wrong"})
			return
		}
		next(w)
	}
}

// fromOwnHost tells whether a request comes from this host: over loopback, or from
// the address that it came to.
func fromOwnHost(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	if from.Addr().Unmap().IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	to, err := netip.ParseAddrPort(local.String())
	return err == nil && to.Addr().Unmap() == from.Addr().Unmap()
}

func (a *listenerAPI) drain(w http.ResponseWriter, on bool) {
	if a.draining.Swap(on) != on {
		a.log.Info().Bool("draining", on).Msg("drain switched")
		a.keep(on)
	}
	reply(w, http.StatusOK, map[string]bool{"draining": on})
}

func (a *listenerAPI) health() Health {
	reasons := a.conductor.ready()
	if a.draining.Load() {
		reasons = append([]string{"draining"}, reasons...)
	}
	return Health{Healthy: len(reasons) == 0, Reasons: reasons}
}

func (a *listenerAPI) status() Status {
	link := a.link.now()
	s := Status{
		Name: a.config.Name, Health: a.health(), Draining: a.draining.Load(), Consul: a.watcher.status(),
		PgBouncer: pgbouncerStatus{Answers: link.Up, Since: link.Since.UTC()},
		Shards:    a.conductor.shards(), Problems: map[string]string{},
	}
	if link.Up {
		s.PgBouncer.Version = link.Version.String()
	} else if link.Err != nil {
		s.PgBouncer.Error = link.Err.Error()
	}
	for _, f := range a.files {
		if s.Files == nil {
			s.Files = map[string]FileStatus{}
		}
		s.Files[f.file.Path] = f.now()
	}
	if seen := a.conductor.suspector.clients(); seen != nil {
		s.Clients = &seen.clients
		for id, shard := range s.Shards {
			for _, name := range shard.Databases {
				shard.ClientsWaiting += seen.waiting[name]
			}
			s.Shards[id] = shard
		}
	}
	for key, err := range a.book.trouble() {
		s.Problems[key] = err.Error()
	}
	known, _ := a.book.known()
	for id := range maps.Keys(a.book.only) {
		if _, found := known[id]; !found {
			s.Missing = append(s.Missing, id)
		}
	}
	slices.Sort(s.Missing)
	return s
}

func reply(w http.ResponseWriter, code int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // a client that has gone needs no answer
}
