// Package httpserver is the HTTP server that agents and bouncers answer with. It holds
// what must not depend on who asks: that no client can keep another one out, or use up
// what the program itself needs, and who may have something changed.
//
//	server.go    listening, TLS, timeouts, orderly end
//	connlimit.go how many connections there are, and whose end when there are too many
//	slots.go     who keeps a connection when there are too many
//	shared.go    one answer for many, where making it costs something
//	access.go    who may change something
//	origin.go    requests that a web page makes somebody's browser send
//	lookup.go    the addresses of hosts, many at a time
//	peer.go      which user of this host has sent a request, or answers one
package httpserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Limits keep clients from using up what the program needs.
type Limits struct {
	Header  time.Duration // for a request's header, and for a TLS handshake
	Request time.Duration // for a whole request
	Answer  time.Duration // for writing an answer
	Idle    time.Duration // between two requests
	Stop    time.Duration // for ending requests when the server stops
	// Conns is how many connections there may be, PerSource how many of them from one
	// address (of IPv6: one /64).
	Conns, PerSource int
	HeaderBytes      int
}

// DefaultLimits are those of agents and bouncers.
func DefaultLimits() Limits {
	return Limits{
		Header: 5 * time.Second, Request: 10 * time.Second, Answer: 10 * time.Second,
		Idle: time.Minute, Stop: 3 * time.Second, Conns: 512, PerSource: 128, HeaderBytes: 32 << 10,
	}
}

const (
	// keptDescriptors are the file descriptors that clients do not get: Consul, a
	// console, children and files need them.
	keptDescriptors = 256
	// leastConns is how many connections there may be however few descriptors.
	leastConns = 16
)

// fit reduces the number of connections to what descriptors there are. changed reports
// whether it did.
func (l Limits) fit(descriptors uint64) (fitting Limits, changed bool) {
	room := leastConns
	if descriptors > keptDescriptors+leastConns {
		room = int(min(descriptors-keptDescriptors, 1<<20))
	}
	if l.Conns <= room {
		return l, false
	}
	l.Conns = room
	l.PerSource = min(l.PerSource, max(1, room/2))
	return l, true
}

// Server serves one handler.
type Server struct {
	// Handler answers the requests. It may wait, for as long as it holds its connection.
	Handler http.Handler
	// Name is what errors and log lines call the server, Setting where its address is
	// configured.
	Name, Setting string
	// Address is what to listen at.
	Address string
	// TLS is nil for plain HTTP.
	TLS    *tls.Config
	Limits Limits
	// Friends returns the addresses for which connections are kept: it may look names
	// up, and is asked again and again. nil: there are none.
	Friends func(context.Context) []net.IP
	// IsCheck reports whether a request is one that load balancers send: who sends such
	// requests regularly is served before those who do not. nil: none is.
	IsCheck func(*http.Request) bool
	// BaseContext is as in net/http.
	BaseContext func(net.Listener) context.Context
	Log         zerolog.Logger

	listener *connLimit
}

// Listen opens the address. Serve does it too; a caller that wants to know early
// whether the address is free calls it first.
func (s *Server) Listen(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.Address)
	if err != nil {
		return fmt.Errorf("%s: listen at %s (%s): %w", s.Name, s.Address, s.Setting, err)
	}
	s.ServeOn(l)
	return nil
}

// ServeOn has the server serve on a listener that is open already.
func (s *Server) ServeOn(l net.Listener) {
	var rlimit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &rlimit); err == nil {
		var changed bool
		if s.Limits, changed = s.Limits.fit(rlimit.Cur); changed {
			s.Log.Warn().Uint64("descriptors", rlimit.Cur).Int("connections", s.Limits.Conns).
				Msg("few file descriptors: fewer connections of clients are taken; raise LimitNOFILE")
		}
	}
	s.listener = newConnLimit(l, s.Limits.Conns, s.Limits.PerSource)
}

// Addr is the address that the server listens at, with the port that the kernel chose
// if that was left open. It is valid after Listen.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve answers requests until ctx ends; then it calls ending, lets requests in
// progress end, for a short while, and returns nil.
func (s *Server) Serve(ctx context.Context, ending func()) error {
	if s.listener == nil {
		if err := s.Listen(ctx); err != nil {
			return err
		}
	}
	var listener net.Listener = s.listener
	if s.TLS != nil {
		listener = tls.NewListener(listener, s.TLS)
	}
	server := &http.Server{
		Handler:           s.watched(),
		ReadHeaderTimeout: s.Limits.Header,
		ReadTimeout:       s.Limits.Request,
		WriteTimeout:      s.Limits.Answer,
		IdleTimeout:       s.Limits.Idle,
		MaxHeaderBytes:    s.Limits.HeaderBytes,
		BaseContext:       s.BaseContext,
		ConnContext:       withConn,
		ErrorLog:          stdlog.New(debugWriter{s.Log, s.Name}, "", 0),
	}
	friends, forget := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() { defer close(followed); s.followFriends(friends) }()
	defer func() { forget(); <-followed }()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("%s at %s: %w", s.Name, s.Address, err)
	case <-ctx.Done():
	}
	if ending != nil {
		ending()
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Limits.Stop)
	defer cancel()
	err := server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close() // who does not let go in time is cut off
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	if err != nil {
		return fmt.Errorf("%s at %s: stop: %w", s.Name, s.Address, err)
	}
	return nil
}

// watched is the handler, with the balancers noted.
func (s *Server) watched() http.Handler {
	if s.IsCheck == nil {
		return s.Handler
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.IsCheck(r) {
			if conn, ok := r.Context().Value(connKey{}).(*limitedConn); ok {
				s.listener.slots.checked(conn.source, time.Now())
			}
		}
		s.Handler.ServeHTTP(w, r)
	})
}

// friendsEvery is how often the friends' addresses are looked up, friendsLimit how long
// that may take.
const (
	friendsEvery = 15 * time.Second
	friendsLimit = 10 * time.Second
)

func (s *Server) followFriends(ctx context.Context) {
	if s.Friends == nil {
		return
	}
	tick := time.NewTicker(friendsEvery)
	defer tick.Stop()
	for {
		limit, cancel := context.WithTimeout(ctx, friendsLimit)
		s.listener.slots.befriend(s.Friends(limit))
		cancel()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// debugWriter takes net/http's complaints about clients: they are the clients'
// trouble, so they are logged at debug level.
type debugWriter struct {
	log  zerolog.Logger
	name string
}

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug().Str("problem", strings.TrimSpace(string(p))).Msg(w.name)
	return len(p), nil
}
