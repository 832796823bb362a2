package api

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/config"
)

func TestNewServerRefusesBadSettings(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "encrypted.pem")
	writeFile(t, other, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
	cert := newCert(t, dir, "a", "member")
	tests := []struct {
		name string
		cfg  config.RestAPI
		says string
	}{
		{"no port", config.RestAPI{Listen: "10.0.0.1"}, "restapi.listen"},
		{"verify_client", config.RestAPI{Listen: ":0", VerifyClient: "always"}, "none, optional or required"},
		{"verify_client without TLS", config.RestAPI{Listen: ":0", VerifyClient: "required"}, "restapi.certfile"},
		{"verify_client by any authority", config.RestAPI{Listen: ":0", CertFile: cert, VerifyClient: "required"}, "restapi.cafile"},
		{"no certificate there", config.RestAPI{Listen: ":0", CertFile: dir + "/none"}, "/none"},
		{"key of another certificate", config.RestAPI{Listen: ":0", CertFile: cert, KeyFile: newCert(t, dir, "b", "other")}, "private key"},
		{"protected key", config.RestAPI{Listen: ":0", CertFile: cert, KeyFile: other, KeyFilePassword: "hush"}, "keyfile_password does not open it"},
		{"authorities that are none", config.RestAPI{Listen: ":0", CertFile: cert, CAFile: other}, "no certificate"},
		{"header", config.RestAPI{Listen: ":0", HTTPExtraHeaders: map[string]string{"A: b": "c"}}, "header"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewServer(tt.cfg, fixed(State{}), zerolog.Nop())
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

func TestListenErrorsNameTheAddress(t *testing.T) {
	var lc net.ListenConfig
	taken, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s, err := NewServer(config.RestAPI{Listen: taken.Addr().String()}, fixed(State{}), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "restapi.listen") || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Errorf("Serve: %v", err)
	}
}

func TestParseListen(t *testing.T) {
	for in, want := range map[string]string{"*:8008": ":8008", ":8008": ":8008", "0.0.0.0:1": "0.0.0.0:1", "[::]:8008": "[::]:8008", "db1:8008": "db1:8008"} {
		if got, err := parseListen(in); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestExtraHeaders(t *testing.T) {
	cert := newCert(t, t.TempDir(), "a", "member")
	cfg := config.RestAPI{
		HTTPExtraHeaders:  map[string]string{"X-One": "1", "X-Two": "http"},
		HTTPSExtraHeaders: map[string]string{"X-Two": "https"},
	}
	plain := start(t, cfg, fixed(primaryState(time.Now())))
	if h := ask(t, "GET", plain.url+"/patroni", "").header; h.Get("X-One") != "1" || h.Get("X-Two") != "http" {
		t.Errorf("plain: %v", h)
	}
	cfg.CertFile = cert
	secure := start(t, cfg, fixed(primaryState(time.Now())))
	if h := askWith(t, tlsClient(t, cert, "").http, "GET", secure.url+"/patroni", "").header; h.Get("X-One") != "1" || h.Get("X-Two") != "https" {
		t.Errorf("TLS: %v", h)
	}
}

func TestAuthentication(t *testing.T) {
	node := fixed(primaryState(time.Now()))
	node.reload = func(context.Context) error { return nil }
	login := config.RestAPI{Authentication: config.Credentials{Username: "username", Password: "pass:word"}}
	header := func(value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", value) }
	}
	basic := func(u, p string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(u, p) }
	}
	tests := []struct {
		name   string
		cfg    config.RestAPI
		method string
		path   string
		adjust func(*http.Request)
		status int
		body   string
	}{
		{"no login demanded", config.RestAPI{}, "POST", "/reload", nil, 202, "reload scheduled"},
		{"reading needs none", login, "GET", "/primary", nil, 200, ""},
		{"none given", login, "POST", "/reload", nil, 401, "no auth header received"},
		{"right", login, "POST", "/reload", basic("username", "pass:word"), 202, "reload scheduled"},
		{"wrong password", login, "POST", "/reload", basic("username", "password"), 401, "not authenticated"},
		{"wrong user", login, "POST", "/reload", basic("user", "pass:word"), 401, "not authenticated"},
		{"empty", login, "POST", "/reload", basic("", ""), 401, "not authenticated"},
		{"another scheme", login, "POST", "/reload", header("Bearer x"), 401, "not authenticated"},
		{"not base64", login, "POST", "/reload", header("Basic !"), 401, "not authenticated"},
		{"PATCH", login, "PATCH", "/config", nil, 401, "no auth header received"},
		{"PUT", login, "PUT", "/config", nil, 401, "no auth header received"},
		{"DELETE", login, "DELETE", "/switchover", nil, 401, "no auth header received"},
		{"listed address", config.RestAPI{Allowlist: []string{"10.0.0.1", "127.0.0.0/8"}}, "POST", "/reload", nil, 202, "reload scheduled"},
		{"listed name", config.RestAPI{Allowlist: []string{"localhost"}}, "POST", "/reload", nil, 202, "reload scheduled"},
		{"not listed", config.RestAPI{Allowlist: []string{"10.0.0.0/8"}}, "POST", "/reload", nil, 403, "Access is denied"},
		{"not listed, reading", config.RestAPI{Allowlist: []string{"10.0.0.0/8"}}, "GET", "/primary", nil, 200, ""},
		{"members only", config.RestAPI{AllowlistIncludeMembers: true}, "POST", "/reload", nil, 403, "Access is denied"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := start(t, tt.cfg, node)
			var adjust []func(*http.Request)
			if tt.adjust != nil {
				adjust = append(adjust, tt.adjust)
			}
			got := ask(t, tt.method, server.url+tt.path, "", adjust...)
			if got.status != tt.status || tt.body != "" && got.body != tt.body {
				t.Errorf("%d %q, want %d %q", got.status, got.body, tt.status, tt.body)
			}
			if realm := got.header.Get("WWW-Authenticate"); (tt.status == 401) != (realm == `Basic realm="Patroni"`) {
				t.Errorf("WWW-Authenticate: %q", realm)
			}
			if tt.status >= 400 && got.header.Get("Content-Type") != "text/html" {
				t.Errorf("Content-Type: %q", got.header.Get("Content-Type"))
			}
		})
	}
}

// Where nothing was configured, changes are for this host and, of what members tell
// each other, for members.
func TestChangesNeedSomethingConfigured(t *testing.T) {
	state := primaryState(time.Now())
	for _, c := range []struct {
		name, path, from string
		cfg              config.RestAPI
		local            bool
		origin           string
		site             string
		host             string // "10.0.0.1:8008"
		status           int    // 0: let in
	}{
		{name: "a web page in a browser on this host", path: "/restart", from: "127.0.0.1:1", local: true, origin: "https://example.com", status: 403},
		{name: "one that was rebound to this address", path: "/restart", from: "127.0.0.1:1", local: true, origin: "http://127.0.0.1:8008", status: 403},
		{name: "a web page behind the allowlist", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{Allowlist: []string{"10.9.0.0/16"}}, origin: "null", status: 403},
		{name: "a console that logs in", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{Authentication: config.Credentials{Username: "u", Password: "p"}}, origin: "https://console.example.com", status: 403},
		{name: "one whose browser does not say Origin", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{Authentication: config.Credentials{Username: "u", Password: "p"}}, site: "cross-site", status: 403},
		{name: "one of another port", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{Authentication: config.Credentials{Username: "u", Password: "p"}}, site: "same-site", status: 403},
		{name: "a page that calls itself by this name, after rebinding", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{Authentication: config.Credentials{Username: "u", Password: "p"}}, site: "same-origin", origin: "http://evil.example.com:8008", host: "evil.example.com:8008", status: 403},
		{name: "rebinding, without Origin", path: "/restart", from: "127.0.0.1:1", local: true, host: "evil.example.com:8008", status: 403},
		{name: "this site's own page", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{ConnectAddress: "db1.example.com:8008", Authentication: config.Credentials{Username: "u", Password: "p"}}, site: "same-origin", origin: "https://db1.example.com:8008", host: "DB1.example.com:8008", status: 401},
		{name: "a program that calls it by another name, and logs in", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{Authentication: config.Credentials{Username: "u", Password: "p"}}, host: "alias.example.com:8008", status: 401},
		{name: "another user of this host, whose address is listed", path: "/restart", from: "127.0.0.1:1", cfg: config.RestAPI{Allowlist: []string{"127.0.0.0/8"}}, status: 403},
		{name: "root, whose address is listed", path: "/restart", from: "127.0.0.1:1", cfg: config.RestAPI{Allowlist: []string{"127.0.0.0/8"}}, local: true},
		{name: "this host, another user", path: "/restart", from: "127.0.0.1:1", status: 403},
		{name: "this host, root", path: "/restart", from: "127.0.0.1:1", local: true},
		{name: "another host", path: "/restart", from: "10.9.9.9:1", status: 403},
		{name: "a member, as an operator", path: "/restart", from: "10.0.0.2:1", status: 403},
		{name: "a member of Patroni's", path: "/failsafe", from: "10.0.0.2:1"},
		{name: "a member that deposes, unproved", path: "/deposed", from: "10.0.0.3:1", status: 403},
		{name: "a member that asks to detach, unproved", path: "/part", from: "10.0.0.3:1", status: 403},
		{name: "another host as a member", path: "/failsafe", from: "10.9.9.9:1", status: 403},
		{name: "allowlist", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{Allowlist: []string{"10.9.0.0/16"}}},
		{name: "login", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{Authentication: config.Credentials{Username: "u", Password: "p"}}, status: 401},
		{name: "login without a password is none", path: "/restart", from: "10.9.9.9:1", cfg: config.RestAPI{Authentication: config.Credentials{Username: "u"}}, status: 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAccess(c.cfg, false)
			a.OnHost = func(*http.Request) error {
				if c.local {
					return nil
				}
				return errors.New("another user")
			}
			r := httptest.NewRequest(http.MethodPost, c.path, nil)
			r.RemoteAddr, r.Host = c.from, cmp.Or(c.host, "10.0.0.1:8008")
			if c.site != "" {
				r.Header.Set("Sec-Fetch-Site", c.site)
			}
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			denied := a.check(r, state, false)
			if got := denied; (got == nil) != (c.status == 0) || got != nil && got.Status != c.status {
				t.Errorf("got %+v, want %d", got, c.status)
			}
			if denied != nil && denied.Status == 403 && !strings.Contains(denied.Text, "restapi: {authentication:") && c.origin == "" && c.site == "" && c.host == "" {
				t.Errorf("%q does not say what to do", denied.Text)
			}
		})
	}
}

func TestMembersAreListed(t *testing.T) {
	state := primaryState(time.Now())
	state.Cluster.Members[1].Value.APIURL = "http://127.0.0.1:8008/patroni"
	node := fixed(state)
	node.reload = func(context.Context) error { return nil }
	server := start(t, config.RestAPI{AllowlistIncludeMembers: true}, node)
	if got := ask(t, "POST", server.url+"/reload", ""); got.status != 202 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := newCert(t, dir, "ours", "batman.patroni"), newCert(t, dir, "theirs", "batman.patroni")
	node := fixed(primaryState(time.Now()))
	node.reload = func(context.Context) error { return nil }
	tests := []struct {
		verify, shown string
		get, post     int // 0: the handshake fails
		body          string
	}{
		{"none", "", 200, 202, "reload scheduled"},
		{"optional", "", 200, 403, "client certificate required"},
		{"optional", ours, 200, 202, "reload scheduled"},
		{"optional", theirs, 0, 0, ""},
		{"required", "", 0, 0, ""},
		{"required", ours, 200, 202, "reload scheduled"},
		{"required", theirs, 0, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.verify+" "+filepath.Base(tt.shown), func(t *testing.T) {
			// One file is certificate, key and authority, as in Patroni's tests.
			server := start(t, config.RestAPI{CertFile: ours, CAFile: ours, VerifyClient: tt.verify}, node)
			client := tlsClient(t, ours, tt.shown)
			if tt.get == 0 {
				if a, err := client.Ask(t.Context(), Peer{APIURL: server.url}, "/primary"); err == nil {
					t.Fatalf("the handshake worked: %d", a.Status)
				}
				return
			}
			if got := askWith(t, client.http, "GET", server.url+"/primary", ""); got.status != tt.get {
				t.Errorf("GET: %d, want %d", got.status, tt.get)
			}
			if got := askWith(t, client.http, "POST", server.url+"/reload", ""); got.status != tt.post || got.body != tt.body {
				t.Errorf("POST: %d %q, want %d %q", got.status, got.body, tt.post, tt.body)
			}
		})
	}
}

func TestCertificatesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	file := newCert(t, dir, "member", "first")
	server := start(t, config.RestAPI{CertFile: file}, fixed(primaryState(time.Now())))
	shown := func() string {
		conn := tls.Client(dial(t, server), &tls.Config{InsecureSkipVerify: true})
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if got := shown(); got != "first" {
		t.Fatalf("shows %q", got)
	}
	writeFile(t, file, "half a certif")
	if got := shown(); got != "first" {
		t.Errorf("shows %q while the file is broken, want the last good one", got)
	}
	newCert(t, dir, "member", "second, a longer name")
	if got := shown(); got != "second, a longer name" {
		t.Errorf("shows %q after the change", got)
	}
}

// restapi.ciphers narrows what a client may choose with TLS 1.2.
func TestCiphers(t *testing.T) {
	file := newCert(t, t.TempDir(), "member", "member")
	server := start(t, config.RestAPI{CertFile: file, Ciphers: "ECDHE+AESGCM:!AES128"}, fixed(primaryState(time.Now())))
	agreed := func(newest uint16, offered ...uint16) (uint16, error) {
		conn := tls.Client(dial(t, server), &tls.Config{InsecureSkipVerify: true, MaxVersion: newest, CipherSuites: offered})
		err := conn.HandshakeContext(t.Context())
		return conn.ConnectionState().CipherSuite, err
	}
	wanted := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
	others := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	if got, err := agreed(tls.VersionTLS12, append(others, wanted...)...); err != nil || !slices.Contains(wanted, got) {
		t.Errorf("agreed on %s, %v", tls.CipherSuiteName(got), err)
	}
	if got, err := agreed(tls.VersionTLS12, others...); err == nil {
		t.Errorf("agreed on %s", tls.CipherSuiteName(got))
	}
	if _, err := agreed(tls.VersionTLS13); err != nil {
		t.Errorf("TLS 1.3: %v", err)
	}
	if _, err := NewServer(config.RestAPI{Listen: "127.0.0.1:0", CertFile: file, Ciphers: "AES256-SHA"}, nil, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "restapi.ciphers: ") {
		t.Errorf("a string that leaves nothing: %v", err)
	}
}

func TestSlowClientsAreCutOff(t *testing.T) {
	node := fixed(primaryState(time.Now()))
	server := start(t, config.RestAPI{}, node, func(s *Server) {
		s.http.Limits.Header, s.http.Limits.Request = 50*time.Millisecond, 50*time.Millisecond
	})
	for name, sent := range map[string]string{
		"silent":      "",
		"half header": "GET /primary HTTP/1.1\r\nHost: x\r\nX-Slow: ",
		"half body":   "PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"ttl\"",
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, server)
			if _, err := io.WriteString(conn, sent); err != nil {
				t.Fatal(err)
			}
			awaitClosed(conn)
		})
	}
}

func TestSlowClientsKeepNobodyOut(t *testing.T) {
	server := start(t, config.RestAPI{}, fixed(primaryState(time.Now())), func(s *Server) { s.http.Limits.Conns = 4 })
	for range 20 {
		conn := dial(t, server)
		if _, err := io.WriteString(conn, "GET /primary HTTP/1.1\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(t, "GET", server.url+"/primary", ""); got.status != 200 {
		t.Errorf("%d", got.status)
	}
}

func TestWaitingOperationsAreNotCutOff(t *testing.T) {
	const limit = 500 * time.Millisecond
	node := fixed(primaryState(time.Now()))
	begun, finish := make(chan struct{}), make(chan struct{})
	node.restart = func(ctx context.Context) error {
		close(begun)
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	server := start(t, config.RestAPI{}, node, func(s *Server) {
		s.http.Limits.Conns = 2
		s.http.Limits.Header, s.http.Limits.Request, s.http.Limits.Answer = limit, limit, limit
	})
	request := func() (answer *bufio.Reader, ended <-chan error) {
		conn := dial(t, server)
		_, _ = io.WriteString(conn, "POST /restart HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n") // ended tells
		answer = bufio.NewReader(conn)
		peeked := make(chan error, 1)
		go func() { _, err := answer.Peek(1); peeked <- err }()
		return answer, peeked
	}
	answer, ended := request()
	for waiting := true; waiting; {
		select {
		case <-begun:
			waiting = false
		case err := <-ended:
			if err == nil {
				t.Fatal("answered before it had ended")
			}
			answer, ended = request() // on a busy machine it came too late for the limits
		}
	}
	// Newer connections want its place: with room for two, each drives out the
	// one before it. The last is cut off when the limits have passed.
	idle := dial(t, server)
	for range 5 {
		next := dial(t, server)
		awaitClosed(idle)
		idle = next
	}
	awaitClosed(idle)
	close(finish)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(answer, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "restarted successfully" {
		t.Errorf("%q, %v", body, err)
	}
}

func TestClientThatGoesAwayBreaksNothingOff(t *testing.T) {
	node := fixed(primaryState(time.Now()))
	begun, ended := make(chan struct{}), make(chan error, 1)
	node.restart = func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	server := start(t, config.RestAPI{}, node)
	conn := dial(t, server)
	if _, err := io.WriteString(conn, "POST /restart HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-begun
	conn.Close()
	if got := ask(t, "GET", server.url+"/primary", ""); got.status != 200 {
		t.Errorf("%d", got.status)
	}
	select {
	case err := <-ended:
		t.Fatalf("the restart was broken off with its client: %v", err)
	default:
	}
	// The end of the server does break it off, and Serve waits for it.
	if err := server.stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// dial opens a connection that ends with the test.
func dial(t *testing.T, r running) net.Conn {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", r.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// awaitClosed returns when the server has closed a connection, in whichever way
// that shows.
func awaitClosed(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// tlsClient trusts one file and shows the certificate in another.
func tlsClient(t *testing.T, trusted, shown string) *Client {
	t.Helper()
	ctl := config.Ctl{CACert: trusted, CertFile: shown, KeyFile: shown}
	c, err := NewClient(ctl, config.RestAPI{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newCert writes a self-signed certificate and its key to one file: server,
// client and authority at once, for 127.0.0.1.
func newCert(t *testing.T, dir, file, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, file+".pem")
	writeFile(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))+
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return path
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
