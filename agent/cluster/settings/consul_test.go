package settings

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
)

func TestAddresses(t *testing.T) {
	http := func(hosts ...string) []Address {
		var all []Address
		for _, h := range hosts {
			all = append(all, Address{"http", h})
		}
		return all
	}
	for name, tt := range map[string]struct {
		consul Consul
		want   []Address
	}{
		"nothing":                         {Consul{}, http("127.0.0.1:8500")},
		"host":                            {Consul{Host: "consul"}, http("consul:8500")},
		"host and port":                   {Consul{Host: "consul:8501"}, http("consul:8501")},
		"host with a key port":            {Consul{Host: "consul", Port: 9000}, http("consul:9000")},
		"the key port wins, as ever":      {Consul{Host: "consul:8500", Port: 9000}, http("consul:9000")},
		"scheme":                          {Consul{Host: "consul", Scheme: "HTTPS"}, []Address{{"https", "consul:8500"}}},
		"http URL":                        {Consul{Host: "http://consul:8501"}, http("consul:8501")},
		"https URL":                       {Consul{Host: "https://consul:8501/"}, []Address{{"https", "consul:8501"}}},
		"URL's scheme wins":               {Consul{Host: "HTTPS://consul:8501", Scheme: "http"}, []Address{{"https", "consul:8501"}}},
		"URL without a port":              {Consul{Host: "https://consul"}, []Address{{"https", "consul:8500"}}},
		"URL without, and a key port":     {Consul{Host: "https://consul", Port: 8501}, []Address{{"https", "consul:8501"}}},
		"URL's port wins":                 {Consul{Host: "https://consul:443", Port: 8501}, []Address{{"https", "consul:443"}}},
		"key url":                         {Consul{URL: "https://consul:8501", Host: "other"}, []Address{{"https", "consul:8501"}}},
		"unix socket":                     {Consul{Host: "unix:///run/consul.sock"}, []Address{{"unix", "/run/consul.sock"}}},
		"several hosts":                   {Consul{Hosts: []string{"a", "b:1", "https://c"}, Host: "other"}, []Address{{"http", "a:8500"}, {"http", "b:1"}, {"https", "c:8500"}}},
		"several in host":                 {Consul{Host: "a, b:1"}, http("a:8500", "b:1")},
		"the same twice":                  {Consul{Hosts: []string{"a", "a:8500"}}, http("a:8500")},
		"IPv6":                            {Consul{Host: "::1"}, http("[::1]:8500")},
		"IPv6 in brackets":                {Consul{Host: "[::1]:8501"}, http("[::1]:8501")},
		"IPv6 in brackets and a key port": {Consul{Host: "[::1]:8501", Port: 9000}, http("[::1]:9000")},
		"IPv6 in a URL":                   {Consul{Host: "https://[::1]"}, []Address{{"https", "[::1]:8500"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tt.consul.Addresses()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAddressesRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		consul Consul
		want   string
	}{
		"port":              {Consul{Host: "consul:x"}, `consul.host: "consul:x": must be host`},
		"port too large":    {Consul{Host: "consul:65536"}, "consul.host"},
		"scheme of the URL": {Consul{Host: "ftp://consul"}, "the scheme must be http, https or unix"},
		"key scheme":        {Consul{Scheme: "tls"}, `consul.scheme: "tls": must be http or https`},
		"path":              {Consul{URL: "https://consul/v1"}, "consul.url: \"https://consul/v1\": must end after host and port"},
		"blank":             {Consul{Host: "my consul"}, "consul.host"},
		"no host":           {Consul{Host: ":8500"}, "consul.host"},
		"relative socket":   {Consul{Host: "unix://run/consul.sock"}, "must be absolute"},
		"user":              {Consul{Host: "https://me:hush@consul"}, `"https://xxxxx@consul": must not contain a user`},
		"one of several":    {Consul{Hosts: []string{"a", "b c"}}, "consul.hosts[1]"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tt.consul.Addresses()
			if err == nil {
				t.Fatalf("accepted as %v", got)
			}
			if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hush") {
				t.Errorf("%q does not say %q", err, tt.want)
			}
			if _, err := tt.consul.ClientConfigs(); err == nil {
				t.Error("a client was made all the same")
			}
		})
	}
}

func TestFillFromEnvironment(t *testing.T) {
	environment := map[string]string{
		"CONSUL_HTTP_ADDR": "https://env:1", "CONSUL_HTTP_TOKEN": "env-token", "CONSUL_CACERT": "env-ca", "CONSUL_CLIENT_CERT": "env-cert",
		"CONSUL_CLIENT_KEY": "env-key", "CONSUL_HTTP_SSL_VERIFY": "false", "CONSUL_TLS_SERVER_NAME": "env-name", "CONSUL_HTTP_SSL": "true",
	}
	get := func(name string) string { return environment[name] }
	var c Consul
	if err := c.FillFromEnvironment(get); err != nil {
		t.Fatal(err)
	}
	no := false
	want := Consul{Host: "https://env:1", Scheme: "https", Token: "env-token", Verify: &no, CACert: "env-ca", Cert: "env-cert", Key: "env-key", TLSServerName: "env-name"}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}

	yes := true
	set := Consul{Hosts: []string{"file"}, Scheme: "http", TokenFile: "file-token", Verify: &yes, CACert: "file-ca", Cert: "file-cert", Key: "file-key", TLSServerName: "file-name"}
	kept := set
	if err := kept.FillFromEnvironment(get); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(set, kept); diff != "" {
		t.Error("what was set has changed", diff)
	}

	environment["CONSUL_HTTP_TOKEN_FILE"] = "env-file"
	c = Consul{}
	if err := c.FillFromEnvironment(get); err != nil || c.TokenFile != "env-file" || c.Token != "" {
		t.Errorf("a token file does not go before a token: %v, %v", c, err)
	}

	environment["CONSUL_HTTP_SSL"], environment["CONSUL_HTTP_SSL_VERIFY"] = "perhaps", "maybe"
	c = Consul{}
	err := c.FillFromEnvironment(get)
	if err == nil || !strings.Contains(err.Error(), `CONSUL_HTTP_SSL: "perhaps"`) || !strings.Contains(err.Error(), `CONSUL_HTTP_SSL_VERIFY: "maybe"`) {
		t.Error(err)
	}
}

func TestConsulValidate(t *testing.T) {
	dir := t.TempDir()
	cert, key := newCertificate(t, dir, "client")
	both := filepath.Join(dir, "both.pem")
	write(t, both, read(t, cert)+read(t, key), 0o600)
	authorities := filepath.Join(dir, "authorities")
	if err := os.Mkdir(authorities, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(authorities, "ca.crt"), read(t, cert), 0o600)
	no := false
	for name, tt := range map[string]struct {
		consul  Consul
		problem string
		warning string
	}{
		"nothing":                    {Consul{}, "", ""},
		"consistency":                {Consul{Consistency: "eventual"}, `consul.consistency: "eventual": must be one of default, consistent, stale`, ""},
		"port":                       {Consul{Port: 70000}, "consul.port", ""},
		"token twice":                {Consul{Scheme: "https", Token: "hush", TokenFile: cert}, "must not be set together with consul.token", ""},
		"token with a line's end":    {Consul{Scheme: "https", Token: "hush\n"}, "consul.token: must not begin or end with a blank", ""},
		"no token file":              {Consul{Scheme: "https", TokenFile: filepath.Join(dir, "none")}, "consul.token_file", ""},
		"token file is a directory":  {Consul{Scheme: "https", TokenFile: dir}, "is not a file", ""},
		"no CA":                      {Consul{CACert: filepath.Join(dir, "none"), Scheme: "https"}, "there is no such file", ""},
		"directory of CAs":           {Consul{CACert: authorities, Scheme: "https"}, "", ""},
		"a CA that is none":          {Consul{CACert: key, Scheme: "https"}, "consul.cacert", ""},
		"a key that does not fit":    {Consul{Cert: cert, Key: cert, Scheme: "https"}, "consul.cert", ""},
		"certificate, no key":        {Consul{Cert: cert, Scheme: "https"}, "consul.key: must be set", ""},
		"certificate with its key":   {Consul{Cert: both, Scheme: "https"}, "", ""},
		"key, no certificate":        {Consul{Key: key, Scheme: "https"}, "consul.cert: must be set together with consul.key", ""},
		"service_check_interval":     {Consul{ServiceCheckInterval: "5"}, "service_check_interval", ""},
		"certificates without https": {Consul{CACert: cert}, "", "Consul is reached over http"},
		"certificates with https":    {Consul{CACert: cert, Host: "https://a"}, "", ""},
		"a token in plain text":      {Consul{Token: "hush"}, "", "the token goes to http://127.0.0.1:8500 without TLS"},
		"a token file, the same":     {Consul{TokenFile: cert, Hosts: []string{"https://a", "http://b:1", "c:2"}}, "", "the token goes to http://b:1, http://c:2 without TLS"},
		"a token with TLS":           {Consul{Token: "hush", Hosts: []string{"https://a", "unix:///run/consul.sock"}}, "", ""},
		"no token":                   {Consul{Hosts: []string{"http://a"}}, "", ""},
		"verify: false":              {Consul{Host: "https://a", Verify: &no}, "", "consul.verify: Consul's certificate is not checked"},
	} {
		t.Run(name, func(t *testing.T) {
			warnings, err := tt.consul.Validate()
			if (err != nil) != (tt.problem != "") || err != nil && !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("%v, want %q", err, tt.problem)
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("the token is in %q", err)
			}
			if (len(warnings) != 0) != (tt.warning != "") || len(warnings) == 1 && !strings.Contains(warnings[0].String(), tt.warning) {
				t.Errorf("%v, want %q", warnings, tt.warning)
			}
		})
	}
}

// Who has taken the port of Consul, as any user of the host can while Consul is restarted, is told the
// token by exactly those addresses that the warning names.
func TestPlainTokenIsWarnedOf(t *testing.T) {
	var told atomic.Bool
	taken := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told.Store(told.Load() || r.Header.Get("X-Consul-Token") == "hush")
		w.WriteHeader(http.StatusInternalServerError)
	})
	plain, encrypted := httptest.NewServer(taken), httptest.NewTLSServer(taken)
	defer plain.Close()
	defer encrypted.Close()
	encrypted.Config.ErrorLog = log.New(io.Discard, "", 0) // its certificate is not taken
	for _, address := range []string{plain.URL, encrypted.URL} {
		told.Store(false)
		c := Consul{URL: address, Token: "hush"}
		warnings, err := c.Validate()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := client(t, c).KV().Get("k", nil); err == nil {
			t.Fatal("somebody else is taken for Consul")
		}
		warned := len(warnings) == 1 && strings.Contains(warnings[0].String(), address+" without TLS")
		if warned != told.Load() || warned != (address == plain.URL) {
			t.Errorf("%s was told the token: %v; the warnings are %v", address, told.Load(), warnings)
		}
	}
}

// PostgreSQL's user on a host with a server of Consul takes that server's port while it is restarted.
// It has a certificate of the same authority for the host's address, and is told no token by the
// agents of other hosts: it has not the name that Consul's servers have.
func TestNobodyPassesForAServer(t *testing.T) {
	address := ownAddress(t)
	dir := t.TempDir()
	serve := func(listen, name string, addresses ...net.IP) (url string, told *atomic.Bool) {
		cert, key := newCertificate(t, dir, name, addresses...)
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		told = &atomic.Bool{}
		l, err := net.Listen("tcp", net.JoinHostPort(listen, "0"))
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			told.Store(told.Load() || r.Header.Get("X-Consul-Token") == "hush")
			w.WriteHeader(http.StatusInternalServerError)
		}))
		s.Listener.Close()
		s.Listener, s.TLS = l, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.StartTLS()
		t.Cleanup(s.Close)
		return "https://" + l.Addr().String(), told
	}
	thief, toldThief := serve(address.String(), "db1", address)
	server, toldServer := serve(address.String(), "server.dc1.consul", address)
	local, toldLocal := serve("127.0.0.1", "client.dc1.consul", net.IPv4(127, 0, 0, 1))
	authorities := t.TempDir() // as one that has signed all three
	for _, name := range []string{"db1", "server.dc1.consul", "client.dc1.consul"} {
		write(t, filepath.Join(authorities, name), read(t, filepath.Join(dir, name+".crt")), 0o600)
	}
	for _, tt := range []struct {
		name, url, remote string
		told              *atomic.Bool
		want              bool
	}{
		{"the own Consul", local, "server.dc1.consul", toldLocal, true},
		{"a server", server, "server.dc1.consul", toldServer, true},
		{"PostgreSQL's user there", thief, "server.dc1.consul", toldThief, false},
		{"PostgreSQL's user there, where no name is asked for", thief, "", toldThief, true},
	} {
		c := Consul{URL: tt.url, Token: "hush", CACert: authorities, RemoteTLSServerName: tt.remote}
		if _, err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		tt.told.Store(false)
		_, _, err := client(t, c).KV().Get("k", nil)
		if tt.told.Load() != tt.want {
			t.Errorf("%s was told the token: %v, want %v (%v)", tt.name, tt.told.Load(), tt.want, err)
		}
	}
}

// ownAddress is one of this host's that is not on loopback.
func ownAddress(t *testing.T) net.IP {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP
		}
	}
	t.Skip("this host has no address but loopback")
	return nil
}

func TestConsulNeverShowsItsToken(t *testing.T) {
	c := Consul{Host: "consul", Token: "hush"}
	for _, text := range []string{c.String(), c.GoString()} {
		if strings.Contains(text, "hush") || !strings.Contains(text, "consul") {
			t.Errorf("shown as %q", text)
		}
	}
}

// fakeConsul answers like Consul's /v1/kv and notes what was asked.
type fakeConsul struct {
	mu     sync.Mutex
	tokens []string
	query  string
	client string
}

func (f *fakeConsul) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens = append(f.tokens, r.Header.Get("X-Consul-Token"))
	f.query = r.URL.RawQuery
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		f.client = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write([]byte(`[{"Key":"k","Value":"dg==","ModifyIndex":1}]`)); err != nil {
		panic(err)
	}
}

func (f *fakeConsul) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tokens[len(f.tokens)-1]
}

func client(t *testing.T, c Consul) *api.Client {
	t.Helper()
	configs, err := c.ClientConfigs()
	if err != nil {
		t.Fatal(err)
	}
	made, err := api.NewClient(configs[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(configs[0].HttpClient.CloseIdleConnections)
	return made
}

func get(t *testing.T, c *api.Client) error {
	t.Helper()
	_, _, err := c.KV().Get("k", new(api.QueryOptions).WithContext(t.Context()))
	return err
}

func TestClientSendsTheToken(t *testing.T) {
	// What the client library would find by itself must not count.
	t.Setenv("CONSUL_HTTP_TOKEN", "of-the-process")
	fake := &fakeConsul{}
	server := httptest.NewServer(fake)
	defer server.Close()
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "first\n", 0o600)

	for want, c := range map[string]Consul{
		"":      {Host: server.URL},
		"fixed": {Host: server.URL, Token: "fixed", DC: "dc2"},
		"first": {Host: server.URL, TokenFile: file},
	} {
		if err := get(t, client(t, c)); err != nil || fake.last() != want {
			t.Errorf("sent %q, %v; want %q", fake.last(), err, want)
		}
		if c.DC != "" && !strings.Contains(fake.query, "dc=dc2") {
			t.Errorf("asked with %q", fake.query)
		}
	}
}

// What does not leave the host is not compressed.
func TestCompressionIsForOtherHosts(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1:8500": true, "localhost": true, "https://[::1]:8501": true, "unix:///run/consul.sock": true, "10.0.0.1:8500": false, "consul.example": false,
	} {
		configs, err := Consul{Host: host}.ClientConfigs()
		if err != nil || configs[0].Transport.DisableCompression != want {
			t.Errorf("%s: %v, without compression: %v", host, err, !want)
		}
	}
}

func TestClientPicksUpARotatedToken(t *testing.T) {
	fake := &fakeConsul{}
	server := httptest.NewServer(fake)
	defer server.Close()
	file := filepath.Join(t.TempDir(), "token")
	c := Consul{Host: server.URL, TokenFile: file}
	rotating := client(t, c)
	if err := get(t, rotating); err == nil || !strings.Contains(err.Error(), "consul.token_file") {
		t.Fatalf("without the file: %v", err)
	}
	for _, step := range []struct{ content, want string }{{"one", "one"}, {"two\n", "two"}, {"", "two"}} {
		write(t, file, step.content, 0o600)
		if err := get(t, rotating); err != nil || fake.last() != step.want {
			t.Errorf("with %q in the file sent %q, %v", step.content, fake.last(), err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := get(t, rotating); err != nil || fake.last() != "two" {
		t.Errorf("without the file sent %q, %v", fake.last(), err)
	}
	if _, err := c.CurrentToken(); err == nil {
		t.Error("a token came from nowhere")
	}
}

func TestClientOverUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "consul.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fake := &fakeConsul{}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: fake, ReadHeaderTimeout: time.Minute}}
	server.Start()
	defer server.Close()
	if err := get(t, client(t, Consul{Host: "unix://" + path, Token: "fixed"})); err != nil || fake.last() != "fixed" {
		t.Errorf("sent %v, %v", fake.tokens, err)
	}
}

func TestClientOverTLS(t *testing.T) {
	dir := t.TempDir()
	serverCert, serverKey := newCertificate(t, dir, "server.dc1.consul")
	oneCert, oneKey := newCertificate(t, dir, "one")
	_, twoKey := newCertificate(t, dir, "two")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(read(t, oneCert)))
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	fake := &fakeConsul{}
	server := httptest.NewUnstartedServer(fake)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are expected
	server.StartTLS()
	defer server.Close()

	cert, key := filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key")
	write(t, cert, read(t, oneCert), 0o600)
	write(t, key, read(t, oneKey), 0o600)
	no := false
	good := Consul{Host: server.URL, CACert: serverCert, Cert: cert, Key: key, TLSServerName: "server.dc1.consul"}
	for name, tt := range map[string]struct {
		change func(*Consul)
		ok     bool
	}{
		"all right":                {func(*Consul) {}, true},
		"address and port as SNI":  {func(c *Consul) { c.TLSServerName += ":8501" }, true},
		"wrong name":               {func(c *Consul) { c.TLSServerName = "" }, false},
		"unknown authority":        {func(c *Consul) { c.CACert = oneCert }, false},
		"verify: false":            {func(c *Consul) { c.CACert, c.TLSServerName, c.Verify = "", "", &no }, true},
		"no certificate of ours":   {func(c *Consul) { c.Cert, c.Key = "", "" }, false},
		"scheme instead of URL":    {func(c *Consul) { c.Host, c.Scheme = strings.TrimPrefix(c.Host, "https://"), "https" }, true},
		"plain HTTP on a TLS port": {func(c *Consul) { c.Host = strings.TrimPrefix(c.Host, "https://") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			tt.change(&c)
			if err := get(t, client(t, c)); (err == nil) != tt.ok {
				t.Errorf("%v", err)
			}
		})
	}
	if fake.client != "one" {
		t.Errorf("came as %q", fake.client)
	}
	t.Run("a key that does not fit", func(t *testing.T) {
		c := good
		c.Cert, c.Key = oneCert, twoKey
		if _, err := c.ClientConfigs(); err == nil || !strings.Contains(err.Error(), "consul.cert") {
			t.Error(err)
		}
	})
}

func TestARenewedCertificateIsUsedByTheSameClient(t *testing.T) {
	dir := t.TempDir()
	oneCert, oneKey := newCertificate(t, dir, "one")
	twoCert, twoKey := newCertificate(t, dir, "two")
	cert, key := filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key")
	c := Consul{Host: "https://consul", Cert: cert, Key: key}
	write(t, cert, read(t, oneCert), 0o600)
	write(t, key, read(t, oneKey), 0o600)
	config, err := c.tls("")
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		pair, err := config.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.Subject.CommonName
	}
	if got := name(); got != "one" {
		t.Errorf("first %s", got)
	}
	write(t, cert, read(t, twoCert), 0o600) // the key is not there yet
	if got := name(); got != "one" {
		t.Errorf("half way %s", got)
	}
	write(t, key, read(t, twoKey), 0o600)
	if got := name(); got != "two" {
		t.Errorf("then %s", got)
	}
}

func TestARequestEndsWithItsContext(t *testing.T) {
	arrived := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	if _, _, err := client(t, Consul{Host: server.URL}).KV().Get("k", new(api.QueryOptions).WithContext(ctx)); err == nil {
		t.Error("an answer came")
	}
}

// newCertificate makes a self-signed certificate for a name.
func newCertificate(t *testing.T, dir, name string, addresses ...net.IP) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: addresses, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o644)
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})), 0o600)
	return certFile, keyFile
}
