package config

import (
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/certfiles"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// ClientAuth turns verify_client into what TLS asks of clients.
func (c Config) ClientAuth() (tls.ClientAuthType, error) {
	switch strings.ToLower(c.VerifyClient) {
	case "", "none":
		return tls.NoClientCert, nil
	case "optional":
		return tls.VerifyClientCertIfGiven, nil
	case "required":
		return tls.RequireAndVerifyClientCert, nil
	}
	return 0, fmt.Errorf("verify_client: %q, must be none, optional or required", c.VerifyClient)
}

// Certificates are those of the listener and of the commands that ask listeners.
func (c Config) Certificates(problem func(error)) (*certfiles.Files, error) {
	return certfiles.New(certfiles.Paths{Cert: c.CertFile, Key: c.KeyFile, CA: c.CAFile, Password: c.KeyFilePassword}, problem)
}

// Scheme is that of the listener's URL.
func (c Config) Scheme() string {
	if c.CertFile != "" {
		return "https"
	}
	return "http"
}

// PasswordIsKnownTo reports whether a user of this host can read the password of
// authentication in the file of this configuration. Where that is not known, as this
// process is not root's and cannot try, it is false.
func (c Config) PasswordIsKnownTo(uid uint32) bool {
	if os.Geteuid() != 0 || c.path == "" {
		return false
	}
	var read Config
	err := osuser.Numbered(uid).Do(func() error {
		read, _, _ = load(settings.Source{Path: c.path}) // one that is refused has been read, too
		return nil
	})
	there, own := []byte(read.Authentication.Password), []byte(c.Authentication.Password)
	return err == nil && len(own) > 0 && subtle.ConstantTimeCompare(there, own) == 1
}

// namespaces are those of the shards that are listed.
func (c Config) namespaces() (all []string) {
	for _, s := range c.Shards {
		all = append(all, s.Namespace)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// WebLogin is what browsers have to show for the fleet page.
func (c Config) WebLogin() Credentials {
	if c.WebAuthentication.Username != "" {
		return c.WebAuthentication
	}
	return c.Authentication
}

// validateWeb checks what the fleet page shows.
func (c Config) validateWeb(bad *problems) {
	if err := cluster.CheckCredentials(c.WebAuthentication.Username, c.WebAuthentication.Password); err != nil {
		bad.add("web_authentication", nil, "%v", err)
	}
	switch {
	case !c.Web && c.WebAuthentication.Username != "":
		bad.add("web_authentication", nil, "has no effect: set web as well")
	case !c.Web && c.WebNamespace != "":
		bad.add("web_namespace", c.WebNamespace, "has no effect: set web as well")
	case !c.Web:
	case c.WebNamespace == "":
		bad.add("web_namespace", nil, "must be set: shards are of several namespaces (%s), and the fleet page shows one", strings.Join(c.namespaces(), ", "))
	default:
		if err := cluster.CheckNamespace(c.WebNamespace); err != nil {
			bad.add("web_namespace", c.WebNamespace, "%v", err)
		}
	}
}

// webWarnings says who may read the fleet page that perhaps should not.
func (c Config) webWarnings() []cluster.Warning {
	host, _, err := net.SplitHostPort(c.Listen)
	if ip := net.ParseIP(host); !c.Web || err != nil || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	auth, _ := c.ClientAuth() // a wrong one has been refused
	switch {
	case c.WebLogin().Username == "" && auth == tls.NoClientCert && len(c.Allowlist) == 0:
		return []cluster.Warning{{Path: "web", Text: "everybody who reaches " + c.Listen + " sees all shards: set web_authentication, verify_client or allowlist"}}
	case c.WebLogin().Username != "" && c.CertFile == "":
		return []cluster.Warning{{Path: "web", Text: "browsers send the password in clear text: set certfile"}}
	}
	return nil
}

// validateListener checks how the listener is protected.
func (c Config) validateListener(bad *problems) {
	auth, err := c.ClientAuth()
	if err != nil {
		bad.add("verify_client", c.VerifyClient, "must be one of none, optional, required")
	}
	if auth != tls.NoClientCert && c.CertFile == "" {
		bad.add("certfile", nil, "must be set: verify_client is %s, and only TLS can verify a client", c.VerifyClient)
	}
	if auth != tls.NoClientCert && c.CAFile == "" {
		bad.add("cafile", nil, "must be set: verify_client is %s, and without a file of the authorities whose certificates clients show, those of every public one would be taken", c.VerifyClient)
	}
	if c.KeyFile != "" && c.CertFile == "" {
		bad.add("certfile", nil, "must be set together with keyfile")
	}
	for i, entry := range c.Allowlist {
		if _, _, err := net.ParseCIDR(entry); err != nil && strings.Contains(entry, "/") {
			bad.add(fmt.Sprintf("allowlist[%d]", i), entry, "must be an address, a network like 10.0.0.0/8, or a host name")
		}
	}
	if _, err := c.Certificates(func(error) {}); err != nil && (c.KeyFile == "" || c.CertFile != "") {
		path := "certfile"
		if c.CertFile == "" || errors.Is(err, certfiles.ErrAuthorities) {
			path = "cafile"
		}
		bad.add(path, nil, "cannot be used: %v", err)
	}
}
