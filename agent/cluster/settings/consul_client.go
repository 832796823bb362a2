package settings

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// Limits of the connections to Consul. Requests have no limit of their own here:
// each one's context ends with what is left of the lease.
const (
	consulDialTimeout = 3 * time.Second
	consulTLSTimeout  = 5 * time.Second
	consulKeepAlive   = 5 * time.Second
	consulIdleLimit   = 90 * time.Second
	consulIdleConns   = 8
)

// ClientConfigs makes one client configuration for each address, in order. Each
// has a transport of its own. A rotated token and a renewed client certificate
// are picked up while the client is in use.
func (c Consul) ClientConfigs() ([]*api.Config, error) {
	addresses, err := c.Addresses()
	if err != nil {
		return nil, err
	}
	configs := make([]*api.Config, 0, len(addresses))
	for _, a := range addresses {
		transport, err := c.transport(a)
		if err != nil {
			return nil, fmt.Errorf("consul: TLS for %s: %w", a, err)
		}
		config := &api.Config{
			Address: a.Host, Scheme: a.Scheme, Datacenter: c.DC, Token: c.Token, Transport: transport,
			HttpClient: &http.Client{Transport: &authorized{source: c.tokens(), next: transport}},
		}
		if a.Scheme == "unix" {
			// An address unix:// would make the client replace this transport by
			// one of its own, and the token with it.
			config.Address, config.Scheme = "localhost", "http"
		}
		configs = append(configs, config)
	}
	return configs, nil
}

func (c Consul) transport(a Address) (*http.Transport, error) {
	dialer := &net.Dialer{Timeout: consulDialTimeout, KeepAlive: consulKeepAlive}
	// No proxy: who leads must not hang on a variable meant for downloads.
	t := &http.Transport{
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: consulTLSTimeout,
		MaxIdleConns:        consulIdleConns,
		MaxIdleConnsPerHost: consulIdleConns,
		IdleConnTimeout:     consulIdleLimit,
		// Within a host compression takes longer than what it saves: half a megabyte of routes is compressed
		// and read again in the time that all else of the answer takes.
		DisableCompression: a.Scheme == "unix" || a.onLoopback(),
	}
	switch a.Scheme {
	case "unix":
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", a.Host)
		}
	case "https":
		tlsConfig, err := c.tls(c.ServerName(a))
		if err != nil {
			return nil, err
		}
		t.TLSClientConfig = tlsConfig
	}
	return t, nil
}

// onLoopback reports whether an address is reached within this host.
func (a Address) onLoopback() bool {
	host, _, err := net.SplitHostPort(a.Host)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// ServerName is the name that the certificate at an address must have; empty: its host.
func (c Consul) ServerName(a Address) string {
	if c.RemoteTLSServerName != "" && !a.onLoopback() {
		return c.RemoteTLSServerName
	}
	return c.TLSServerName
}

// tls makes the configuration for an address whose certificate must have a name; empty: its host's.
func (c Consul) tls(serverName string) (*tls.Config, error) {
	options := api.TLSConfig{Address: serverName, InsecureSkipVerify: c.Verify != nil && !*c.Verify}
	if c.CACert != "" {
		info, err := os.Stat(c.CACert)
		switch {
		case err != nil:
			return nil, fmt.Errorf("consul.cacert: %w", err)
		case info.IsDir():
			options.CAPath = c.CACert
		default:
			options.CAFile = c.CACert
		}
	}
	config, err := api.SetupTLSConfig(&options)
	if err != nil {
		return nil, fmt.Errorf("consul.cacert %s: %w", c.CACert, err)
	}
	config.MinVersion = tls.VersionTLS12
	if c.Cert != "" {
		pair := &keyPair{cert: c.Cert, key: c.Key}
		if pair.key == "" {
			pair.key = c.Cert
		}
		if _, err := pair.load(); err != nil {
			return nil, err
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.load() }
	}
	return config, nil
}

// keyPair is a client certificate that is read for every handshake. While the
// files are being replaced the last good pair goes on.
type keyPair struct {
	cert, key string

	mu   sync.Mutex
	last *tls.Certificate
}

func (p *keyPair) load() (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	switch {
	case err == nil:
		p.last = &pair
	case p.last == nil:
		return nil, fmt.Errorf("consul.cert %s with consul.key %s: %w", p.cert, p.key, err)
	}
	return p.last, nil
}

// hasKey tells why a certificate file does not hold its key as well.
func hasKey(path string) error {
	_, err := tls.LoadX509KeyPair(path, path)
	return err
}

// authorized puts the ACL token into every request. It also takes out one that
// the client may have found in the environment by itself: the configuration
// decides.
type authorized struct {
	source tokenSource
	next   http.RoundTripper
}

const tokenHeader = "X-Consul-Token"

// RoundTrip implements http.RoundTripper.
func (a *authorized) RoundTrip(request *http.Request) (*http.Response, error) {
	token, err := a.source.token()
	if err != nil {
		return nil, err
	}
	request = request.Clone(request.Context())
	if request.Header.Del(tokenHeader); token != "" {
		request.Header.Set(tokenHeader, token)
	}
	return a.next.RoundTrip(request)
}

// CloseIdleConnections lets http.Client reach the transport's.
func (a *authorized) CloseIdleConnections() {
	if c, ok := a.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// CurrentToken is the ACL token as it is now: the one of the file, if there is
// a file. It is for programs that are handed a token instead of a client.
func (c Consul) CurrentToken() (string, error) { return c.tokens().token() }

func (c Consul) tokens() tokenSource {
	if c.TokenFile != "" {
		return &tokenFile{path: c.TokenFile}
	}
	return fixedToken(c.Token)
}

type tokenSource interface{ token() (string, error) }

type fixedToken string

func (t fixedToken) token() (string, error) { return string(t), nil }

// tokenFile reads the token anew each time: requests are few, and a file's
// times do not tell reliably that it changed. While the file is being replaced
// the last good token goes on.
type tokenFile struct {
	path string

	mu   sync.Mutex
	last string
}

func (t *tokenFile) token() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Whoever can put a link in its place has what it leads to sent to Consul.
	content, err := osuser.Keeper(t.path).ReadFile(t.path)
	token := strings.TrimSpace(string(content))
	if err == nil && token == "" {
		err = errors.New("the file is empty")
	}
	switch {
	case err == nil:
		t.last = token
	case t.last == "":
		return "", fmt.Errorf("consul.token_file %s: %w", t.path, err)
	}
	return t.last, nil
}

// CheckFile tells why path is not a file that can be read.
func CheckFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("there is no such file")
	case err != nil:
		return errors.Unwrap(err)
	case !info.Mode().IsRegular():
		return errors.New("is not a file")
	}
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return fmt.Errorf("cannot be read: %w", errors.Unwrap(err))
	}
	return f.Close()
}
