package api

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

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/config"
)

// Server is the REST API of one agent:
//
//	server.go      listening, TLS, limits, orderly end
//	routes.go      which request goes where; how answers and bodies look
//	health.go      the health checks of load balancers and supervisors
//	status.go      GET /patroni
//	changes.go     PATCH and PUT /config, reload, reinitialize
//	restart.go     restart, now or at some time
//	switchover.go  switchover and failover
//	access.go      who may change something
//	peer.go        which user of this host has sent a request
//	pace.go        how often clients can have PostgreSQL looked at
type Server struct {
	// Compat is the version of Patroni whose words are spoken: patroni-3 says
	// master where patroni-4 (the default) says primary. Set it before the
	// server is used.
	Compat string
	// Collectors are metrics that GET /metrics has besides those of the node's
	// state. Set them before the server is used.
	Collectors []prometheus.Collector

	node     Node
	log      zerolog.Logger
	listen   string
	access   access
	headers  map[string]string
	certs    *certFiles // nil: plain HTTP
	auth     tls.ClientAuthType
	ciphers  []uint16 // for TLS 1.2; nil: the library's choice
	limits   limits
	now      func() time.Time
	started  time.Time
	listener net.Listener

	// life ends with Serve, and every operation in progress with it.
	life context.Context
	end  context.CancelFunc
}

// limits keep clients from using up what the agent needs.
type limits struct {
	header  time.Duration // for a request's header, and for a TLS handshake
	request time.Duration // for a whole request
	answer  time.Duration // for writing an answer
	idle    time.Duration // between two requests
	stop    time.Duration // for ending requests when the server stops
	conns   int
	body    int64 // bytes; Consul takes no value of more than 512 KB
}

func defaultLimits() limits {
	return limits{
		header: 5 * time.Second, request: 10 * time.Second, answer: 10 * time.Second,
		idle: time.Minute, stop: 3 * time.Second, conns: 512, body: 512 << 10,
	}
}

// NewServer makes the server for one node and checks its settings, the
// certificates among them. Nothing listens yet.
func NewServer(cfg config.RestAPI, node Node, log zerolog.Logger) (*Server, error) {
	listen, err := parseListen(cfg.Listen)
	if err != nil {
		return nil, err
	}
	s := &Server{
		node: &pacedNode{Node: node, pace: pace{interval: observePace}}, log: log, listen: listen, limits: defaultLimits(),
		now: time.Now, started: time.Now(), headers: map[string]string{},
	}
	s.auth, err = clientAuth(cfg.VerifyClient)
	if err != nil {
		return nil, err
	}
	// What of it has no effect was said when the configuration was checked.
	if s.ciphers, _, err = config.ParseCiphers(cfg.Ciphers); err != nil {
		return nil, fmt.Errorf("restapi.ciphers: %w", err)
	}
	for name, value := range cfg.HTTPExtraHeaders {
		s.headers[name] = value
	}
	if cfg.CertFile != "" {
		s.certs, err = newCertFiles(cfg.CertFile, cfg.KeyFile, cfg.CAFile, cfg.KeyFilePassword, func(err error) {
			log.Error().Err(err).Msg("REST API: certificates")
		})
		if err != nil {
			return nil, fmt.Errorf("restapi: %w", err)
		}
		for name, value := range cfg.HTTPSExtraHeaders {
			s.headers[name] = value
		}
	} else if s.auth != tls.NoClientCert {
		return nil, errors.New("restapi.verify_client: needs restapi.certfile: without TLS clients show no certificates")
	}
	if err := checkHeaders(s.headers); err != nil {
		return nil, err
	}
	s.access = newAccess(cfg, s.auth != tls.NoClientCert)
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// clientAuth turns verify_client into what TLS asks of clients.
func clientAuth(verify string) (tls.ClientAuthType, error) {
	switch strings.ToLower(verify) {
	case "", "none":
		return tls.NoClientCert, nil
	case "optional":
		return tls.VerifyClientCertIfGiven, nil
	case "required":
		return tls.RequireAndVerifyClientCert, nil
	}
	return 0, fmt.Errorf("restapi.verify_client: %q, must be none, optional or required", verify)
}

func checkHeaders(headers map[string]string) error {
	for name, value := range headers {
		if name == "" || strings.ContainsAny(name, " \t\r\n:") || strings.ContainsAny(value, "\r\n") {
			return fmt.Errorf("restapi extra headers: %q is not a valid header", name)
		}
	}
	return nil
}

// Listen opens the address to listen at. Serve does it too; a caller that wants
// to know early whether the address is free calls it first.
func (s *Server) Listen(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.listen)
	if err != nil {
		return fmt.Errorf("REST API: listen at %s (restapi.listen): %w", s.listen, err)
	}
	if addr, ok := l.Addr().(*net.TCPAddr); s.access.open() && (!ok || !addr.IP.IsLoopback()) {
		s.log.Warn().Str("restapi.listen", s.listen).Msg("nothing says who may change something; " + openText)
	}
	s.listener = &connLimit{Listener: l, max: s.limits.conns}
	return nil
}

// Addr is the address that the server listens at, with the port that the kernel
// chose if that was left open. It is valid after Listen.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve answers requests until ctx ends; then it lets requests in progress end,
// for a short while, and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	defer s.end()
	if s.listener == nil {
		if err := s.Listen(ctx); err != nil {
			return err
		}
	}
	listener := s.listener
	if s.certs != nil {
		listener = tls.NewListener(listener, s.certs.serverConfig(s.auth, s.ciphers))
	}
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: s.limits.header,
		ReadTimeout:       s.limits.request,
		WriteTimeout:      s.limits.answer,
		IdleTimeout:       s.limits.idle,
		MaxHeaderBytes:    32 << 10,
		ConnContext:       withConn,
		ErrorLog:          stdlog.New(debugWriter{s.log}, "", 0),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("REST API at %s: %w", s.listen, err)
	case <-ctx.Done():
	}
	s.end()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.limits.stop)
	defer cancel()
	err := server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	if err != nil {
		return fmt.Errorf("REST API at %s: stop: %w", s.listen, err)
	}
	return nil
}

// whenEnding has f called when the server ends, unless stop is called first.
func (s *Server) whenEnding(f func()) (stop func() bool) {
	return context.AfterFunc(s.life, f)
}

// debugWriter takes net/http's complaints about clients: they are the clients'
// trouble, so they are logged at debug level.
type debugWriter struct{ log zerolog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug().Str("problem", strings.TrimSpace(string(p))).Msg("REST API")
	return len(p), nil
}
