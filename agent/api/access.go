package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
)

// lookupLimit bounds the resolving of names in the allowlist.
const lookupLimit = 2 * time.Second

// access decides who may change something: everybody may read, but POST, PUT,
// PATCH and DELETE are checked as Patroni checks them.
type access struct {
	// credentials are the hashes of user name and password, hashed so that
	// comparing takes the same time whatever their length.
	username, password [sha256.Size]byte
	demandLogin        bool
	demandCert         bool

	// networks and names are the allowlist; both empty and members false: all.
	networks []netip.Prefix
	names    []string
	members  bool

	// onHost says why a request does not come from a process on this host whose
	// user may change something where nothing was configured.
	onHost func(*http.Request) error
}

// open reports whether nothing was configured that says who may change something.
func (a access) open() bool {
	return !a.demandLogin && !a.demandCert && len(a.networks) == 0 && len(a.names) == 0 && !a.members
}

// openText is for people: nothing is compared with it, as Patroni lets such a
// request pass.
const openText = "changes are taken from root and the agent's user on this host only; for others add to this member's file " +
	"`restapi: {authentication: {username: ..., password: ...}}`, or for the hosts of the shard's members " +
	"`restapi: {allowlist_include_members: true}`"

func newAccess(cfg config.RestAPI, demandCert bool) access {
	a := access{
		username:    sha256.Sum256([]byte(cfg.Authentication.Username)),
		password:    sha256.Sum256([]byte(cfg.Authentication.Password)),
		demandLogin: cfg.Authentication.Username != "" && cfg.Authentication.Password != "",
		demandCert:  demandCert,
		members:     cfg.AllowlistIncludeMembers,
		onHost:      func(r *http.Request) error { return fromHost(r, []uint32{0, uint32(os.Geteuid())}) },
	}
	for _, entry := range cfg.Allowlist {
		entry = strings.TrimSpace(entry)
		if p, err := netip.ParsePrefix(entry); err == nil {
			a.networks = append(a.networks, p.Masked())
		} else if addr, err := netip.ParseAddr(entry); err == nil {
			addr = addr.Unmap()
			a.networks = append(a.networks, netip.PrefixFrom(addr, addr.BitLen()))
		} else if entry != "" {
			a.names = append(a.names, entry)
		}
	}
	return a
}

// denial is why a request is refused.
type denial struct {
	status int
	text   string
}

// check returns nil when the request may change something.
func (a access) check(r *http.Request, state State) *denial {
	if a.open() && !a.betweenMembers(r, state) {
		if err := a.onHost(r); err != nil {
			return &denial{http.StatusForbidden, openText + " (" + err.Error() + ")"}
		}
	}
	if !a.listed(r.Context(), r.RemoteAddr, state) {
		return &denial{http.StatusForbidden, "Access is denied"}
	}
	// A browser names the page that makes it send such a request, and can be made to
	// send it from any page, with its own address and certificate. Programs name none.
	if !a.demandLogin && r.Header.Get("Origin") != "" {
		return &denial{http.StatusForbidden, "changes are not taken from web pages without restapi.authentication"}
	}
	if a.demandCert && (r.TLS == nil || len(r.TLS.PeerCertificates) == 0) {
		return &denial{http.StatusForbidden, "client certificate required"}
	}
	if !a.demandLogin {
		return nil
	}
	if r.Header.Get("Authorization") == "" {
		return &denial{http.StatusUnauthorized, "no auth header received"}
	}
	username, password, _ := r.BasicAuth()
	u, p := sha256.Sum256([]byte(username)), sha256.Sum256([]byte(password))
	if subtle.ConstantTimeCompare(u[:], a.username[:])&subtle.ConstantTimeCompare(p[:], a.password[:]) != 1 {
		return &denial{http.StatusUnauthorized, "not authenticated"}
	}
	return nil
}

// betweenMembers reports whether a request is what members tell each other without
// an operator, and comes from a member's address.
func (a access) betweenMembers(r *http.Request, state State) bool {
	switch segmentOf(r) {
	case "failsafe", "deposed", "part":
		return access{members: true}.listed(r.Context(), r.RemoteAddr, state)
	}
	return false
}

// listed tells whether a client's address is in the allowlist.
func (a access) listed(ctx context.Context, client string, state State) bool {
	if len(a.networks) == 0 && len(a.names) == 0 && !a.members {
		return true
	}
	source, err := netip.ParseAddrPort(client)
	if err != nil {
		return false
	}
	addr := source.Addr().Unmap().WithZone("")
	if slices.ContainsFunc(a.networks, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return true
	}
	names := slices.Clone(a.names)
	if a.members {
		for _, m := range state.Cluster.Members {
			if u, err := url.Parse(m.Value.APIURL); err == nil && u.Hostname() != "" {
				names = append(names, u.Hostname())
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	for _, name := range names {
		// A name that cannot be resolved lets nobody in and says no more.
		found, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		for _, f := range found {
			if f.Unmap() == addr {
				return true
			}
		}
	}
	return false
}

// parseListen turns Patroni's HOST:PORT, where the host may be * or empty, into
// the address to listen at.
func parseListen(listen string) (string, error) {
	host, port, err := net.SplitHostPort(strings.TrimSpace(listen))
	if err != nil {
		return "", fmt.Errorf("restapi.listen: %q, must be HOST:PORT: %w", listen, err)
	}
	if host == "*" {
		host = ""
	}
	return net.JoinHostPort(host, port), nil
}
