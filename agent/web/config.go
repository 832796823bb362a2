package web

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/certfiles"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/printable"
)

// Config is the file of the fleet page after all layers have been merged and the defaults filled
// in. Make one with Load.
type Config struct {
	// Listen is where the page is served, host:port. Default: 127.0.0.1:8010.
	Listen string `mapstructure:"listen"`
	// ConnectAddress is how browsers call the page where it is neither an address nor the host's own
	// name, host or host:port. By any other name nothing is shown without authentication: another site's page
	// could have a browser read it.
	ConnectAddress string `mapstructure:"connect_address"`
	// Authentication is what browsers have to show; without it, everybody who reaches the page reads it.
	Authentication Credentials `mapstructure:"authentication"`
	// CertFile is the file of the page's certificate; with it the page speaks https only. A renewed
	// file is picked up without a restart.
	CertFile string `mapstructure:"certfile"`
	// KeyFile is the file of the certificate's key, if certfile does not hold it as well.
	KeyFile string `mapstructure:"keyfile"`
	// KeyFilePassword is the pass phrase of the key file, where it has one.
	KeyFilePassword string `mapstructure:"keyfile_password"`
	// CAFile is the file of the authorities whose client certificates are taken.
	CAFile string `mapstructure:"cafile"`
	// VerifyClient says whether browsers must show a client certificate: none or required. Default:
	// none.
	VerifyClient string `mapstructure:"verify_client"`
	// Namespace is the first part of the shards' keys in Consul, as in the agents' files. Default:
	// service.
	Namespace string `mapstructure:"namespace"`
	// RoutesPrefix is the first part of Lictor's own keys, as in the agents' lictor.routes_prefix.
	RoutesPrefix string          `mapstructure:"routes_prefix"`
	Consul       settings.Consul `mapstructure:"consul"`
	// Ctl is how leaders' REST APIs are asked what is left of their leases, and for backups.
	Ctl Ctl `mapstructure:"ctl"`
	// ZoneTag is the tag that names a member's zone. Default: zone.
	ZoneTag string `mapstructure:"zone_tag"`
	Log     Log    `mapstructure:"log"`
}

// Credentials are a user name and its password.
type Credentials struct {
	// Username is the name to log in with.
	Username string `mapstructure:"username"`
	// Password is its password.
	Password string `mapstructure:"password"`
}

// Ctl is how the members' REST API is reached, as in the agents' section of that name.
type Ctl struct {
	// Insecure takes any certificate from a member's API.
	Insecure bool `mapstructure:"insecure"`
	// CertFile is the file of the client certificate that members are shown.
	CertFile string `mapstructure:"certfile"`
	// KeyFile is the file of its key, if certfile does not hold it as well.
	KeyFile string `mapstructure:"keyfile"`
	// KeyFilePassword is the pass phrase of the key file, where it has one.
	KeyFilePassword string `mapstructure:"keyfile_password"`
	// CACert is the file of the authorities by which members' certificates are checked.
	CACert string `mapstructure:"cacert"`
	// VerifyNames compares the names in a member's certificate with the host that is asked. Default:
	// true.
	VerifyNames *bool `mapstructure:"verify_names"`
}

// Log says what is logged and how; the command that makes the logger reads it.
type Log struct {
	// Level is the least severity that is logged: debug, info, warning, error. Default: info.
	Level string `mapstructure:"level"`
	// Format is how lines look: console or json. Default: auto, which is console on a terminal and
	// JSON elsewhere.
	Format string `mapstructure:"format"`
}

// DefaultListen is where the page is served unless listen says otherwise.
const DefaultListen = "127.0.0.1:8010"

// Load reads the settings: the file, LICTOR_* variables over it, and HashiCorp's CONSUL_* variables
// for what both leave empty. Without a file they come from the environment alone. Every problem is
// reported at once.
func Load(source settings.Source) (Config, []cluster.Warning, error) {
	if source.Path == "" && source.Get("LICTOR_CONFIGURATION") == "" {
		source.Environ = append(source.Environ[:len(source.Environ):len(source.Environ)], "LICTOR_CONFIGURATION={}")
	}
	var c Config
	warnings, err := settings.Load(source, settings.Schema{}, &c, func() ([]cluster.Warning, error) {
		filled := c.Consul.FillFromEnvironment(source.Get)
		c.complete()
		warnings, invalid := c.validate()
		return warnings, errors.Join(filled, invalid)
	})
	if err != nil {
		return Config{}, warnings, err
	}
	return c, warnings, nil
}

func (c *Config) complete() {
	c.Listen = cmp.Or(c.Listen, DefaultListen)
	c.Namespace = cmp.Or(strings.Trim(c.Namespace, "/"), cluster.DefaultNamespace)
	c.RoutesPrefix = cmp.Or(c.RoutesPrefix, cluster.DefaultRoutesPrefix)
	c.ZoneTag = cmp.Or(c.ZoneTag, operator.DefaultZoneTag)
	c.VerifyClient = cmp.Or(c.VerifyClient, "none")
}

func (c Config) validate() ([]cluster.Warning, error) {
	var bad []error
	add := func(path, value, rule string, args ...any) {
		if value != "" {
			value = printable.Quote(value)
		}
		bad = append(bad, cluster.Problem{Path: path, Value: value, Rule: fmt.Sprintf(rule, args...)})
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if n, wrong := strconv.Atoi(port); err != nil || wrong != nil || n < 0 || n > 65535 {
		add("listen", c.Listen, "must be host:port")
	}
	for _, name := range []struct {
		path, value string
		rule        func(string) error
	}{{"namespace", c.Namespace, cluster.CheckNamespace}, {"routes_prefix", c.RoutesPrefix, cluster.CheckNamespace}, {"zone_tag", c.ZoneTag, cluster.CheckName}} {
		if err := name.rule(name.value); err != nil {
			add(name.path, name.value, "%v", err)
		}
	}
	if err := cluster.CheckCredentials(c.Authentication.Username, c.Authentication.Password); err != nil {
		add("authentication", "", "%v", err)
	}
	switch c.VerifyClient {
	case "none":
	case "required":
		if c.CertFile == "" {
			add("certfile", "", "must be set: verify_client is required, and only TLS can verify a client")
		}
		if c.CAFile == "" {
			add("cafile", "", "must be set: verify_client is required, and without a file of the authorities whose certificates clients show, those of every public one would be taken")
		}
	default:
		add("verify_client", c.VerifyClient, "must be one of none, required")
	}
	if c.KeyFile != "" && c.CertFile == "" {
		add("certfile", "", "must be set together with keyfile")
	}
	if _, err := c.certificates(func(error) {}); err != nil && (c.KeyFile == "" || c.CertFile != "") {
		path := "certfile"
		if c.CertFile == "" || errors.Is(err, certfiles.ErrAuthorities) {
			path = "cafile"
		}
		add(path, "", "cannot be used: %v", err)
	}
	if ctl := c.Ctl; ctl.KeyFile != "" && ctl.CertFile == "" {
		add("ctl.certfile", "", "must be set together with ctl.keyfile")
	} else if _, err := certfiles.New(certfiles.Paths{Cert: ctl.CertFile, Key: ctl.KeyFile, CA: ctl.CACert, Password: ctl.KeyFilePassword}, func(error) {}); err != nil {
		path := "ctl.certfile"
		if ctl.CertFile == "" || errors.Is(err, certfiles.ErrAuthorities) {
			path = "ctl.cacert"
		}
		add(path, "", "cannot be used: %v", err)
	}
	switch c.Log.Format {
	case "", "auto", "console", "json":
	default:
		add("log.format", c.Log.Format, "must be one of auto, console, json")
	}
	warnings, invalid := c.Consul.Validate()
	if ip := net.ParseIP(host); err == nil && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		switch {
		case c.Authentication.Username == "" && c.VerifyClient == "none":
			warnings = append(warnings, cluster.Warning{Path: "authentication", Text: "everybody who reaches " + c.Listen + " sees all shards: set authentication or verify_client"})
		case c.CertFile == "":
			warnings = append(warnings, cluster.Warning{Path: "certfile", Text: "the password crosses the network in clear text: set certfile"})
		}
	}
	return warnings, errors.Join(append(bad, invalid)...)
}

func (c Config) certificates(problem func(error)) (*certfiles.Files, error) {
	return certfiles.New(certfiles.Paths{Cert: c.CertFile, Key: c.KeyFile, CA: c.CAFile, Password: c.KeyFilePassword}, problem)
}

// tls is what the page speaks; nil: plain HTTP.
func (c Config) tls(problem func(error)) (*tls.Config, error) {
	if c.CertFile == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	certs, err := c.certificates(problem)
	if err != nil {
		return nil, fmt.Errorf("certfile: %w", err)
	}
	auth := tls.NoClientCert
	if c.VerifyClient == "required" {
		auth = tls.RequireAndVerifyClientCert
	}
	return certs.ServerConfig(auth, nil)
}

// site is what the commands know of the same Consul.
func (c Config) site() operator.Settings {
	return operator.Settings{
		Namespace: c.Namespace, Prefix: c.RoutesPrefix, Consul: c.Consul,
		Ctl: config.Ctl{
			Insecure: c.Ctl.Insecure, CertFile: c.Ctl.CertFile, KeyFile: c.Ctl.KeyFile, KeyFilePassword: c.Ctl.KeyFilePassword,
			CACert: c.Ctl.CACert, VerifyNames: c.Ctl.VerifyNames,
		},
	}
}
