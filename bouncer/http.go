package bouncer

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// httpBound bounds reading a request and writing its answer.
const httpBound = 5 * time.Second

// listenerAPI is the bouncer's HTTP listener: for the load balancer (/health), for
// agents (/poke, /handover) and for operators (/status, /drain, /pause and their like, /metrics).
type listenerAPI struct {
	config    config.Config
	log       zerolog.Logger
	processes *processes
	operators *operatorPauses
	watcher   *routes.Watcher
	table     *routes.Table
	handovers *routes.Handovers
	files     []*fileWriter
	passes    prometheus.Histogram
	draining  atomic.Bool
	access    httpserver.Access
	page      Page // nil: there is none
	// What others may have read of Consul.
	routeReads, handoverReads *routes.SharedReads
	listReads                 *rate.Limiter
	waiting                   waitingReplies
	witness                   witness
	// manyUntil is until when pokes leave the reading to the watch, in nanoseconds of Unix.
	manyUntil atomic.Int64
	// keep is told of draining, so that a restart does not end it.
	keep func(draining bool)
}

// Health is the body of /health.
type Health struct {
	Healthy bool     `json:"healthy"`
	Reasons []string `json:"reasons,omitempty"`
	// Warnings are what is wrong with the configuration and takes nothing from clients.
	Warnings []string `json:"warnings,omitempty"`
}

// Status is the body of /status.
type Status struct {
	Name      string              `json:"name"`
	Health    Health              `json:"health"`
	Draining  bool                `json:"draining"`
	Consul    routes.ConsulStatus `json:"consul"`
	PgBouncer pgbouncerStatus     `json:"pgbouncer"`
	// Clients is the number of clients that are connected, as of the last look,
	// at most seconds ago; absent: it is not known.
	Clients *int                           `json:"clients,omitempty"`
	Shards  map[config.ShardID]ShardStatus `json:"shards"`
	// Files are the further files that are kept, by path.
	Files map[string]FileStatus `json:"files,omitempty"`
	// Missing are configured shards of which no route is known.
	Missing []config.ShardID `json:"missing,omitempty"`
	// Refused are shards of bouncer.yml that are not served as they stand there, by their ids or,
	// where these are wrong as well, their places; Problems says why.
	Refused []string `json:"refused,omitempty"`
	// Problems are keys under the routes prefix that cannot be followed, and shards that
	// cannot be offered.
	Problems map[string]string `json:"problems,omitempty"`
}

type pgbouncerStatus struct {
	Answers bool      `json:"answers"`
	Since   time.Time `json:"since"`
	Version string    `json:"version,omitempty"`
	Error   string    `json:"error,omitempty"`
	// Processes are those that share the port, where several may.
	Processes []processStatus `json:"processes,omitempty"`
}

// server makes the HTTP server, with the certificates that are configured.
func (a *listenerAPI) server(listener net.Listener) (*httpserver.Server, error) {
	s := &httpserver.Server{
		Name: "HTTP listener", Setting: "listen", Limits: httpserver.DefaultLimits(), Log: a.log,
		IsCheck: func(r *http.Request) bool { return r.URL.Path == "/health" },
		Friends: func(ctx context.Context) []net.IP {
			return append(a.access.Friends(ctx), httpserver.Lookup(ctx, a.table.Hosts())...)
		},
	}
	s.Limits.Header, s.Limits.Request, s.Limits.Answer, s.Limits.Stop = httpBound, httpBound, httpBound, time.Second
	s.Limits.HeaderBytes = 1 << 14
	auth, err := a.config.ClientAuth()
	if err != nil {
		return nil, err
	}
	if a.config.CertFile != "" {
		certs, err := a.config.Certificates(func(err error) { a.log.Error().Err(err).Msg("HTTP listener: certificates") })
		if err != nil {
			return nil, err
		}
		if s.TLS, err = certs.ServerConfig(auth, nil); err != nil {
			return nil, fmt.Errorf("verify_client: %w (cafile)", err)
		}
	}
	s.ServeOn(listener)
	return s, nil
}

// serve answers on listener until ctx is done.
func (a *listenerAPI) serve(ctx context.Context, listener net.Listener) error {
	server, err := a.server(listener)
	if err != nil {
		return err
	}
	life, end := context.WithCancel(ctx)
	a.routeReads, a.handoverReads = routes.NewSharedReads(life), routes.NewSharedReads(life)
	a.listReads = rate.NewLimiter(1, 3)
	defer func() {
		end()
		a.routeReads.Wait()
		a.handoverReads.Wait()
	}()
	server.Handler = a.handler()
	server.BaseContext = func(net.Listener) context.Context { return life }
	return server.Serve(ctx, nil)
}

func (a *listenerAPI) handler() http.Handler {
	mux := http.NewServeMux()
	// These cost more the more shards there are, and anybody may ask for them.
	shared := func(path string, h http.Handler) { mux.Handle("GET "+path, httpserver.NewShared(h)) }
	shared("/health", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := a.health(r.Context())
		code := http.StatusOK
		if !h.Healthy {
			code = http.StatusServiceUnavailable
		}
		reply(w, code, h)
	}))
	shared("/status", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reply(w, http.StatusOK, a.status(r.Context())) }))
	shared("/metrics", a.metrics())
	shared("/metrics/pgbouncer", a.poolerMetrics())
	if a.page != nil {
		mux.Handle("GET /", a.page)
	}
	mux.HandleFunc("POST /poke", a.poke)
	mux.HandleFunc("POST /handover", a.handover)
	mux.HandleFunc("POST /misses", a.misses)
	mux.HandleFunc("POST /drain", a.operator(func(w http.ResponseWriter, _ *http.Request) { a.drain(w, true) }))
	mux.HandleFunc("POST /undrain", a.operator(func(w http.ResponseWriter, _ *http.Request) { a.drain(w, false) }))
	mux.HandleFunc("POST /pause", a.operator(a.pausing(a.pause)))
	mux.HandleFunc("POST /resume", a.operator(a.pausing(a.resume)))
	mux.HandleFunc("POST /release", a.operator(a.pausing(a.release)))
	return mux
}

// operator lets a request pass that may change what clients see.
func (a *listenerAPI) operator(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		denied := a.access.Check(r, nil)
		if denied == nil {
			next(w, r)
			return
		}
		if denied.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="lictor bouncer"`)
			denied.Text = "user name or password is wrong"
		}
		reply(w, denied.Status, map[string]string{"error": denied.Text})
	}
}

func (a *listenerAPI) drain(w http.ResponseWriter, on bool) {
	if a.draining.Swap(on) != on {
		a.log.Info().Bool("draining", on).Msg("drain switched")
		a.keep(on)
	}
	reply(w, http.StatusOK, map[string]bool{"draining": on})
}

func (a *listenerAPI) health(ctx context.Context) Health {
	reasons := a.processes.unfit(ctx)
	if a.draining.Load() {
		reasons = append([]string{"draining"}, reasons...)
	}
	return Health{Healthy: len(reasons) == 0, Reasons: reasons, Warnings: a.processes.warnings()}
}

func (a *listenerAPI) status(ctx context.Context) Status {
	s := Status{
		Name: a.config.Name, Health: a.health(ctx), Draining: a.draining.Load(), Consul: a.watcher.Status(),
		PgBouncer: a.processes.status(), Shards: a.processes.shards(), Problems: map[string]string{},
	}
	for _, f := range a.files {
		if s.Files == nil {
			s.Files = map[string]FileStatus{}
		}
		s.Files[f.file.Path] = f.now()
	}
	if seen := a.processes.clients(); seen != nil {
		s.Clients = &seen.Clients
		for id, shard := range s.Shards {
			for _, name := range shard.Databases {
				shard.ClientsWaiting += seen.Waiting[name]
			}
			s.Shards[id] = shard
		}
	}
	for key, err := range a.table.Trouble() {
		s.Problems[key] = err.Error()
	}
	for key, err := range a.handovers.Trouble() {
		s.Problems[key] = err.Error()
	}
	maps.Copy(s.Problems, a.processes.problems())
	if err := a.config.StandsFor(); err != nil {
		s.Problems["bouncer.yml"] = err.Error()
	}
	s.Missing = a.table.Missing()
	for _, r := range a.config.Refused() {
		s.Refused = append(s.Refused, r.Name)
	}
	return s
}

func reply(w http.ResponseWriter, code int, body any) {
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(body); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(printable.JSON(text.Bytes())) // a client that has gone needs no answer
}

// remedy says how others than root and the bouncer's user may drain.
const remedy = "without authentication, verify_client or allowlist in bouncer.yml this is taken from root and the bouncer's user on its own host only"

// accessOf says who may drain and undrain.
func accessOf(c config.Config) httpserver.Access { return accessBy(c, c.Authentication) }

// pageAccess says who may read the fleet page.
func pageAccess(c config.Config) httpserver.Access { return accessBy(c, c.WebLogin()) }

func accessBy(c config.Config, login config.Credentials) httpserver.Access {
	auth, _ := c.ClientAuth() // a wrong one has been refused
	return httpserver.NewAccess(httpserver.AccessSettings{
		Username: login.Username, Password: login.Password,
		Certificate: auth != tls.NoClientCert, Allowlist: c.Allowlist,
		Hosts: []string{c.ConnectAddress, c.Listen}, Remedy: remedy,
	})
}
