package web

import (
	"context"
	"embed"
	"encoding/json"
	"io/fs"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/docs/runbooks"
)

//go:embed page
var files embed.FS

const (
	// ageEvery is how often a browser is told how old is what it shows: who hears nothing for
	// longer knows that nobody is there.
	ageEvery = time.Second
	// writeLimit bounds the sending of writePart bytes: who does not read them in time is cut off, and comes
	// again. (It does not bound a message: a thousand shards over a slow line would begin anew for ever.)
	writeLimit = 10 * time.Second
	writePart  = 32 << 10
	// mostLookers is how many streams are open at the most, lookersFrom how many of them go to one address.
	mostLookers, lookersFrom = 128, 64
)

// Server serves the page at an address of its own, for `lictor web`.
type Server struct {
	page *Page
	http *httpserver.Server
}

// New makes a server of these settings; Run has it serve.
func New(c Config, version string, log zerolog.Logger) (*Server, error) {
	page, err := NewPage(c.site(), c.ZoneTag, httpserver.NewAccess(httpserver.AccessSettings{
		Username: c.Authentication.Username, Password: c.Authentication.Password, Certificate: c.VerifyClient == "required",
		Hosts: []string{c.ConnectAddress, c.Listen},
	}), version)
	if err != nil {
		return nil, err
	}
	s := &Server{page: page, http: &httpserver.Server{
		Handler: page, Name: "fleet page", Setting: "listen", Address: c.Listen, Limits: httpserver.DefaultLimits(), Log: log,
	}}
	s.http.TLS, err = c.tls(func(err error) { log.Error().Err(err).Msg("fleet page: certificates") })
	return s, err
}

// Run serves until ctx ends. ready is called with the address once the page can be opened.
func (s *Server) Run(ctx context.Context, ready func(address string)) error {
	if err := s.http.Listen(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() { defer close(watched); s.page.Run(ctx) }()
	defer func() { cancel(); <-watched }()
	ready(s.http.Addr().String())
	return s.http.Serve(ctx, nil)
}

// Page answers what may be read of the fleet; there is nothing else. A program that has a listener
// already, as the bouncer has, serves it there.
type Page struct {
	watch   *operator.FleetWatch
	access  httpserver.Access
	stream  stream
	lookers lookers
	shards  sharedShards
	handler http.Handler
	// ending is closed when Run ends: streams last until then.
	ending chan struct{}
}

// NewPage makes the page of the fleet that these settings lead to. zoneTag is the tag that names a
// member's zone; access says who may read.
func NewPage(settings operator.Settings, zoneTag string, access httpserver.Access, version string) (*Page, error) {
	site, err := operator.Connect(settings)
	if err != nil {
		return nil, err
	}
	watch, err := operator.WatchFleet(site, zoneTag)
	if err != nil {
		return nil, err
	}
	static, err := fs.Sub(files, "page")
	if err != nil {
		return nil, err
	}
	p := &Page{watch: watch, access: access, ending: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(static))
	mux.HandleFunc("GET /live", p.live)
	mux.HandleFunc("GET /shards/{name}", func(w http.ResponseWriter, r *http.Request) {
		p.shards.of(r.PathValue("name"), p.watch.Has, p.shard).ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /runbooks/{name}", runbook)
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { reply(w, map[string]string{"version": version}) })
	p.handler = mux
	return p, nil
}

// Run reads what the page shows until ctx ends, and ends its streams then. It is called once.
func (p *Page) Run(ctx context.Context) {
	defer close(p.ending)
	p.watch.Run(ctx)
}

// ServeHTTP answers who may read.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	protect(w.Header())
	if denied := p.access.CheckReader(r); denied != nil {
		if denied.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="lictor web", charset="UTF-8"`)
			denied.Text = "user name or password is wrong"
		}
		http.Error(w, printable.Text(denied.Text), denied.Status)
		return
	}
	p.handler.ServeHTTP(w, r)
}

// protect has a browser run nothing but the page's own files, take text for text, and show the
// page in no other one.
func protect(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// live tells a browser of the fleet as it is and of each change, until it leaves.
func (p *Page) live(w http.ResponseWriter, r *http.Request) {
	leave, ok := p.lookers.enter(httpserver.Source(r))
	if !ok {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many look on already", http.StatusServiceUnavailable)
		return
	}
	defer leave()
	defer p.watch.Look()()
	conn := http.NewResponseController(w)
	if err := conn.SetReadDeadline(time.Time{}); err != nil { // that of a request, which this one outlasts
		http.Error(w, "this connection cannot be kept open", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(ageEvery)
	defer tick.Stop()
	var seen uint64
	for {
		state, changed := p.watch.State()
		news, number, err := p.stream.message(state, seen)
		if err != nil {
			return
		}
		old, err := age(state, time.Now())
		if err != nil {
			return
		}
		for _, message := range [][]byte{news, old} {
			if send(w, message) != nil {
				return
			}
		}
		if conn.Flush() != nil {
			return
		}
		seen = number
		select {
		case <-changed:
		case <-tick.C:
		case <-p.ending:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// lookers are those who have a stream open. The zero value is ready to be used.
type lookers struct {
	mu   sync.Mutex
	all  int
	from map[netip.Addr]int
}

// enter takes one more in, unless there are too many; leave lets it go.
func (l *lookers) enter(source netip.Addr) (leave func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= mostLookers || l.from[source] >= lookersFrom {
		return nil, false
	}
	if l.from == nil {
		l.from = map[netip.Addr]int{}
	}
	l.all++
	l.from[source]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all--
		if l.from[source]--; l.from[source] == 0 {
			delete(l.from, source)
		}
	}, true
}

// sharedShards have one answer made for all who ask for the same shard. The zero value is ready to be used.
type sharedShards struct {
	mu  sync.Mutex
	all map[string]*httpserver.Shared // as many as there are shards
}

// of is what answers for a shard: handle, for one request at a time, where there is such a shard.
func (s *sharedShards) of(name string, exists func(string) bool, handle http.HandlerFunc) http.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !exists(name) {
		delete(s.all, name)
		return handle
	}
	if s.all == nil {
		s.all = map[string]*httpserver.Shared{}
	}
	if s.all[name] == nil {
		s.all[name] = httpserver.NewShared(handle)
	}
	return s.all[name]
}

// send writes a message part by part.
func send(w http.ResponseWriter, message []byte) error {
	conn := http.NewResponseController(w)
	for part := range slices.Chunk(message, writePart) {
		if err := conn.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
			return err
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// shard tells all of one shard.
func (p *Page) shard(w http.ResponseWriter, r *http.Request) {
	view, found := p.watch.Shard(r.Context(), r.PathValue("name"))
	if !found {
		http.Error(w, "there is no shard of this name", http.StatusNotFound)
		return
	}
	reply(w, view)
}

func runbook(w http.ResponseWriter, r *http.Request) {
	text, err := runbooks.Read(r.PathValue("name"))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(text) // a client that has gone needs no answer
}

func reply(w http.ResponseWriter, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(printable.JSON(text), '\n')) // a client that has gone needs no answer
}
