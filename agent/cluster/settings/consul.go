package settings

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// DefaultConsulPort is that of Consul's HTTP API.
const DefaultConsulPort = 8500

// Consul is how agent and bouncer reach Consul: the section `consul` of both.
type Consul struct {
	// Host is Consul's HTTP API: host, host:port, a full http(s):// URL or a unix:// path. Default:
	// 127.0.0.1:8500.
	Host string `mapstructure:"host"`
	// Hosts are several such addresses, tried in order: one that hangs or has no leader costs a part
	// of a request's time, not the lease. Give the local agent first and two servers.
	Hosts []string `mapstructure:"hosts"`
	// Port is the port where host has none (a port number). Default: 8500.
	Port int `mapstructure:"port"`
	// Scheme is how Consul is reached where host is no URL: http or https. Default: http.
	Scheme string `mapstructure:"scheme"`
	// URL is the same as host with a URL.
	URL string `mapstructure:"url"`
	// Token is the ACL token. Better a token_file: a configuration file is read by more people.
	Token string `mapstructure:"token" json:"-"`
	// TokenFile is a file with the ACL token; it is read for every request, so that a rotated token
	// needs no restart.
	TokenFile string `mapstructure:"token_file"`
	// Verify says whether Consul's certificate is checked; false: any will do, and whoever is between
	// can decide who leads. Default: true.
	Verify *bool `mapstructure:"verify"`
	// CACert is a file, or a directory of files, of the authorities for Consul's certificate. Default:
	// those of the host.
	CACert string `mapstructure:"cacert"`
	// Cert is the file of the client certificate.
	Cert string `mapstructure:"cert"`
	// Key is the file of its key, if cert does not hold it as well.
	Key string `mapstructure:"key"`
	// TLSServerName is the name expected in Consul's certificate (SNI), where it is not the host's.
	TLSServerName string `mapstructure:"tls_server_name"`
	// RemoteTLSServerName is the name expected in the certificates of addresses that are not this
	// host's loopback: server.DATACENTER.consul, if Consul's servers alone have that, so that no other
	// program on their hosts passes for them. Default: tls_server_name.
	RemoteTLSServerName string `mapstructure:"remote_tls_server_name"`
	// DC is the datacenter. Default: that of the Consul agent.
	DC string `mapstructure:"dc"`
	// Node is the node that sessions belong to, by its name in Consul. Default: that of the Consul agent
	// that is asked. Where hosts has others than this host's own, name the host's own here: a token
	// then needs the right to write sessions of that node alone.
	Node string `mapstructure:"node"`
	// Consistency is Patroni's. Without effect: reads that decide are consistent, watches are default.
	Consistency string `mapstructure:"consistency"`
	// Checks are health checks of the Consul node whose failing ends the session. None by default, as
	// a flapping check must not cost a leader its lock.
	Checks []string `mapstructure:"checks"`
	// RegisterService makes the member a service in Consul's catalogue, under the scope's name, with
	// its role as a tag: Consul DNS then answers primary.SCOPE.service.consul. Needs the right to
	// write that service.
	RegisterService bool `mapstructure:"register_service"`
	// ServiceTags are further tags of that service.
	ServiceTags []string `mapstructure:"service_tags"`
	// ServiceCheckInterval is how often Consul checks that service by the member's REST API, with a
	// unit. Default: 5s.
	ServiceCheckInterval string `mapstructure:"service_check_interval"`
	// ServiceCheckTLSServerName is the name expected in the member's certificate by that check.
	ServiceCheckTLSServerName string `mapstructure:"service_check_tls_server_name"`
}

// String shows the section without its token.
func (c Consul) String() string { return Dump(c) }

// GoString does, too.
func (c Consul) GoString() string { return Dump(c) }

// FillFromEnvironment takes from HashiCorp's own variables what is not set yet.
// get returns a variable's value, empty when there is none.
func (c *Consul) FillFromEnvironment(get func(name string) string) error {
	fill := func(field *string, name string) {
		if *field == "" {
			*field = get(name)
		}
	}
	if c.Host == "" && len(c.Hosts) == 0 && c.URL == "" {
		c.Host = get("CONSUL_HTTP_ADDR")
	}
	if c.Token == "" && c.TokenFile == "" {
		// A file that can be rotated goes before a token that cannot, as in
		// HashiCorp's own programs.
		c.TokenFile = get("CONSUL_HTTP_TOKEN_FILE")
		if c.TokenFile == "" {
			c.Token = get("CONSUL_HTTP_TOKEN")
		}
	}
	fill(&c.CACert, "CONSUL_CACERT")
	if c.Cert == "" && c.Key == "" {
		c.Cert, c.Key = get("CONSUL_CLIENT_CERT"), get("CONSUL_CLIENT_KEY")
	}
	fill(&c.TLSServerName, "CONSUL_TLS_SERVER_NAME")
	var errs []error
	boolean := func(name string, use func(on bool)) {
		value := get(name)
		if value == "" {
			return
		}
		on, err := cluster.ParseBoolean(value)
		if err != nil {
			errs = append(errs, cluster.Problem{Path: name, Value: strconv.Quote(value), Rule: err.Error()})
			return
		}
		use(on)
	}
	boolean("CONSUL_HTTP_SSL", func(on bool) {
		if on && c.Scheme == "" {
			c.Scheme = "https"
		}
	})
	boolean("CONSUL_HTTP_SSL_VERIFY", func(on bool) {
		if c.Verify == nil {
			c.Verify = &on
		}
	})
	return errors.Join(errs...)
}

// Address is one way to reach Consul.
type Address struct {
	Scheme string // http, https or unix
	Host   string // host:port, or the path of the socket
}

func (a Address) String() string { return a.Scheme + "://" + a.Host }

// Addresses are the ways to reach Consul, to be tried in order. url goes before
// hosts, hosts before host; without any it is the local Consul agent.
func (c Consul) Addresses() ([]Address, error) {
	field, texts := "consul.host", SplitList(c.Host)
	switch {
	case c.URL != "":
		field, texts = "consul.url", []string{c.URL}
	case len(c.Hosts) > 0:
		field, texts = "consul.hosts", c.Hosts
	case len(texts) == 0:
		texts = []string{"127.0.0.1"}
	}
	scheme, err := c.scheme()
	if err != nil {
		return nil, err
	}
	var (
		all  []Address
		errs []error
	)
	for i, text := range texts {
		path := field
		if len(c.Hosts) > 0 && field == "consul.hosts" {
			path = fmt.Sprintf("%s[%d]", field, i)
		}
		a, problem := c.address(strings.TrimSpace(text), scheme)
		if problem != "" {
			errs = append(errs, cluster.Problem{Path: path, Value: strconv.Quote(withoutUser(text)), Rule: problem})
			continue
		}
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return all, nil
}

func (c Consul) scheme() (string, error) {
	switch scheme := strings.ToLower(c.Scheme); scheme {
	case "":
		return "http", nil
	case "http", "https":
		return scheme, nil
	}
	return "", cluster.Problem{Path: "consul.scheme", Value: strconv.Quote(c.Scheme), Rule: "must be http or https"}
}

const addressForms = "must be host, host:port, http://host:port, https://host:port or unix:///path"

func (c Consul) address(text, scheme string) (a Address, problem string) {
	port := c.Port
	if port == 0 {
		port = DefaultConsulPort
	}
	if path, ok := strings.CutPrefix(text, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return Address{}, "the path of the socket must be absolute: unix:///path"
		}
		return Address{Scheme: "unix", Host: path}, ""
	}
	if before, _, isURL := strings.Cut(text, "://"); isURL {
		u, err := url.Parse(text)
		scheme = strings.ToLower(before)
		switch {
		case err != nil:
			return Address{}, addressForms
		case scheme != "http" && scheme != "https":
			return Address{}, "the scheme must be http, https or unix"
		case u.User != nil:
			return Address{}, "must not contain a user; Consul's secret is consul.token or consul.token_file"
		case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
			return Address{}, "must end after host and port"
		}
		// The port of a URL is its own; without one it is Consul's, not the web's.
		if u.Port() != "" {
			port = 0
		}
		text = u.Host
	} else if c.Port != 0 {
		// As in Patroni, the key port goes before a port behind the host.
		if host, p, err := net.SplitHostPort(text); err == nil && isPort(p) {
			text = bracketed(host)
		}
	}
	host, p, err := net.SplitHostPort(text)
	if err != nil {
		host, p = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"), strconv.Itoa(port)
	}
	if host == "" || !isPort(p) || strings.ContainsAny(host, " \t\r\n/@?#[]") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return Address{}, addressForms
	}
	return Address{Scheme: scheme, Host: net.JoinHostPort(host, p)}, ""
}

func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// withoutUser hides the user part of a URL, which may hold a password.
func withoutUser(text string) string {
	scheme, rest, isURL := strings.Cut(text, "://")
	if !isURL {
		scheme, rest = "", text
	} else {
		scheme += "://"
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		return scheme + "xxxxx" + rest[i:]
	}
	return text
}

func isPort(text string) bool {
	n, err := strconv.Atoi(text)
	return err == nil && n >= 1 && n <= 65535
}

// Validate checks the section. Every problem is a cluster.Problem.
func (c Consul) Validate() ([]cluster.Warning, error) {
	var (
		errs     []error
		warnings []cluster.Warning
	)
	fail := func(key, value, rule string) {
		if value != "" {
			value = strconv.Quote(value)
		}
		errs = append(errs, cluster.Problem{Path: "consul." + key, Value: value, Rule: rule})
	}
	addresses, err := c.Addresses()
	errs = append(errs, err)
	if c.Port < 0 || c.Port > 65535 {
		fail("port", strconv.Itoa(c.Port), "must be from 1 to 65535")
	}
	switch c.Consistency {
	case "", "default", "consistent", "stale":
	default:
		fail("consistency", c.Consistency, "must be one of default, consistent, stale")
	}
	if c.Node != "" {
		if err := cluster.CheckName(c.Node); err != nil {
			fail("node", c.Node, err.Error())
		}
	}
	if c.Token != "" && c.TokenFile != "" {
		fail("token_file", c.TokenFile, "must not be set together with consul.token")
	}
	if strings.TrimSpace(c.Token) != c.Token || strings.ContainsAny(c.Token, "\r\n") {
		fail("token", "", "must not begin or end with a blank or have several lines")
	}
	switch {
	case c.Cert == "" && c.Key != "":
		fail("cert", "", "must be set together with consul.key")
	case c.Cert != "" && c.Key == "":
		// Patroni takes a certificate file that holds the key as well.
		if err := hasKey(c.Cert); err != nil {
			fail("key", "", "must be set, or consul.cert must hold the key as well")
		}
	}
	for _, file := range []struct{ key, path string }{{"token_file", c.TokenFile}, {"cert", c.Cert}, {"key", c.Key}} {
		if file.path != "" {
			if err := CheckFile(file.path); err != nil {
				fail(file.key, file.path, err.Error())
			}
		}
	}
	if c.CACert != "" {
		if info, err := os.Stat(c.CACert); err != nil || !info.IsDir() {
			if err := CheckFile(c.CACert); err != nil {
				fail("cacert", c.CACert, err.Error())
			}
		}
	}
	if c.ServiceCheckInterval != "" {
		if d, err := time.ParseDuration(c.ServiceCheckInterval); err != nil || d <= 0 {
			fail("service_check_interval", c.ServiceCheckInterval, "must be a time with its unit, like 5s")
		}
	}
	https := slices.ContainsFunc(addresses, func(a Address) bool { return a.Scheme == "https" })
	if errors.Join(errs...) == nil && https {
		// What a client would refuse is better known before anything starts.
		if _, err := c.tls(c.TLSServerName); err != nil {
			errs = append(errs, cluster.Problem{Path: "consul", Rule: err.Error()})
		}
	}
	if (c.CACert != "" || c.Cert != "" || c.TLSServerName != "" || c.RemoteTLSServerName != "") && len(addresses) > 0 && !https {
		warnings = append(warnings, cluster.Warning{
			Path: "consul", Text: "certificates are configured, but Consul is reached over " + addresses[0].Scheme + ": set scheme: https, or write host as an https:// URL",
		})
	}
	if c.Verify != nil && !*c.Verify && https {
		warnings = append(warnings, cluster.Warning{
			Path: "consul.verify", Text: "Consul's certificate is not checked: whoever is between can read the token and decide who leads",
		})
	}
	if plain := c.PlainToken(); len(plain) > 0 {
		warnings = append(warnings, cluster.Warning{Path: "consul", Text: plainTokenText(plain)})
	}
	return warnings, errors.Join(errs...)
}

// PlainToken are the addresses at which the token is told without TLS: to whoever is
// between, or, on this host, to whoever listens there while Consul is restarted.
func (c Consul) PlainToken() []Address {
	if c.Token == "" && c.TokenFile == "" {
		return nil
	}
	addresses, _ := c.Addresses() // those that are wrong get no token
	return slices.DeleteFunc(addresses, func(a Address) bool { return a.Scheme != "http" })
}

func plainTokenText(plain []Address) string {
	all := make([]string, len(plain))
	for i, a := range plain {
		all[i] = a.String()
	}
	return "the token goes to " + strings.Join(all, ", ") + " without TLS: whoever is between, and any user of a host who takes the port while its Consul is restarted, gets it; write https:// there (Consul's ports.https) and set consul.cacert"
}
