package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster/certfiles"
	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/proof"
)

// Server is the REST API of one agent:
//
//	server.go      its settings; listening is package httpserver's
//	routes.go      which request goes where; how answers and bodies look
//	health.go      the health checks of load balancers and supervisors
//	status.go      GET /patroni
//	changes.go     PATCH and PUT /config, reload, reinitialize
//	restart.go     restart, now or at some time
//	switchover.go  switchover and failover
//	access.go      who may change something
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
	secrets  *proof.Keeper
	verifier *proof.Verifier
	log      zerolog.Logger
	access   access
	headers  map[string]string
	figures  http.Handler
	http     *httpserver.Server
	now      func() time.Time
	started  time.Time

	// life ends with Serve, and every operation in progress with it.
	life context.Context
	end  context.CancelFunc
}

// bodyLimit is how long a request's body may be, in bytes; Consul takes no value of
// more than 512 KB.
const bodyLimit = 512 << 10

// NewServer makes the server for one node and checks its settings, the
// certificates among them. Nothing listens yet.
func NewServer(cfg config.RestAPI, node Node, log zerolog.Logger) (*Server, error) {
	listen, err := parseListen(cfg.Listen)
	if err != nil {
		return nil, err
	}
	s := &Server{
		node: &pacedNode{Node: node, pace: pace{interval: observePace}}, log: log,
		now: time.Now, started: time.Now(), headers: map[string]string{}, verifier: proof.NewVerifier(nil, nil),
		http: &httpserver.Server{
			Name: "REST API", Setting: "restapi.listen", Address: listen, Limits: httpserver.DefaultLimits(),
			IsCheck: isCheck, Log: log,
		},
	}
	auth, err := clientAuth(cfg.VerifyClient)
	if err != nil {
		return nil, err
	}
	// What of it has no effect was said when the configuration was checked.
	ciphers, _, err := config.ParseCiphers(cfg.Ciphers)
	if err != nil {
		return nil, fmt.Errorf("restapi.ciphers: %w", err)
	}
	for name, value := range cfg.HTTPExtraHeaders {
		s.headers[name] = value
	}
	if cfg.CertFile != "" {
		paths := certfiles.Paths{Cert: cfg.CertFile, Key: cfg.KeyFile, CA: cfg.CAFile, Password: cfg.KeyFilePassword}
		certs, err := certfiles.New(paths, func(err error) {
			log.Error().Err(err).Msg("REST API: certificates")
		})
		if err != nil {
			return nil, fmt.Errorf("restapi: %w", err)
		}
		if s.http.TLS, err = certs.ServerConfig(auth, ciphers); err != nil {
			return nil, fmt.Errorf("restapi.verify_client: %w (restapi.cafile)", err)
		}
		for name, value := range cfg.HTTPSExtraHeaders {
			s.headers[name] = value
		}
	} else if auth != tls.NoClientCert {
		return nil, errors.New("restapi.verify_client: needs restapi.certfile: without TLS clients show no certificates")
	}
	if err := checkHeaders(s.headers); err != nil {
		return nil, err
	}
	s.access = newAccess(cfg, auth != tls.NoClientCert)
	s.figures = httpserver.NewShared(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.metrics().ServeHTTP(w, r) }))
	s.http.Handler = s
	s.http.Friends = func(ctx context.Context) []net.IP {
		return append(s.access.Friends(ctx), httpserver.Lookup(ctx, memberHosts(s.node.State()))...)
	}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// isCheck reports whether a request is what a load balancer sends.
func isCheck(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		return false
	}
	switch segmentOf(r) {
	case "patroni", "cluster", "history", "config", "failsafe", "metrics":
		return false
	}
	return true
}

// ProveWith has the server take requests that prove themselves with the secret that is
// held, once there is one. Call it before the server is used.
func (s *Server) ProveWith(k *proof.Keeper) {
	s.secrets, s.verifier = k, proof.NewVerifier(k, func() string { return s.node.State().Name })
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
	if err := s.http.Listen(ctx); err != nil {
		return err
	}
	if addr, ok := s.http.Addr().(*net.TCPAddr); s.access.Open() && (!ok || !addr.IP.IsLoopback()) {
		s.log.Warn().Str("restapi.listen", s.http.Address).Msg("nothing says who may change something; " + openText)
	}
	return nil
}

// Addr is the address that the server listens at, with the port that the kernel
// chose if that was left open. It is valid after Listen.
func (s *Server) Addr() net.Addr { return s.http.Addr() }

// Serve answers requests until ctx ends; then it lets requests in progress end,
// for a short while, and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	defer s.end()
	return s.http.Serve(ctx, s.end)
}

// whenEnding has f called when the server ends, unless stop is called first.
func (s *Server) whenEnding(f func()) (stop func() bool) {
	return context.AfterFunc(s.life, f)
}
