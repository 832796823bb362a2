package httpserver

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// AccessSettings say who may have something changed.
type AccessSettings struct {
	// Username and Password are the credentials to show; without both, none are.
	Username, Password string
	// Certificate: the client must show one (TLS has verified it then).
	Certificate bool
	// Allowlist are addresses, networks and host names that requests may come from.
	Allowlist []string
	// Members: the allowlist has the hosts that Check is given, too.
	Members bool
	// Hosts are the names, with or without a port, by which clients call this server,
	// besides its host's own.
	Hosts []string
	// Remedy says how others than root and the program's own user get in.
	Remedy string
	// Section is where authentication is configured, with a point at its end.
	Section string
}

// Access decides who may have something changed. Everybody may read.
type Access struct {
	// username and password are hashed, so that comparing takes the same time whatever
	// their length.
	username, password [sha256.Size]byte
	login, certificate bool

	// networks and names are the allowlist; both empty and members false: all.
	networks []netip.Prefix
	names    []string
	members  bool

	hosts   []string
	remedy  string
	section string

	// OnHost says why a request does not come from a process on this host whose user
	// may change something without credentials: root's or the program's own. Set in
	// tests.
	OnHost func(*http.Request) error
}

// NewAccess makes the rules of these settings.
func NewAccess(s AccessSettings) Access {
	a := Access{
		username:    sha256.Sum256([]byte(s.Username)),
		password:    sha256.Sum256([]byte(s.Password)),
		login:       s.Username != "" && s.Password != "",
		certificate: s.Certificate,
		members:     s.Members,
		hosts:       ownNames(s.Hosts),
		remedy:      s.Remedy,
		section:     s.Section,
		OnHost:      func(r *http.Request) error { return fromHost(r, []uint32{0, uint32(os.Geteuid())}) },
	}
	for _, entry := range s.Allowlist {
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

// Open reports whether nothing was configured that says who may change something.
func (a Access) Open() bool {
	return !a.login && !a.certificate && !a.restricted()
}

// restricted reports whether there is an allowlist.
func (a Access) restricted() bool { return len(a.networks) > 0 || len(a.names) > 0 || a.members }

// Denial is why a request is refused.
type Denial struct {
	Status int
	Text   string
}

// Check returns nil when a request may change something. members are the hosts of the
// shard's members, for an allowlist that includes them.
func (a Access) Check(r *http.Request, members func() []string) *Denial {
	if d := a.CheckSource(r, members); d != nil {
		return d
	}
	return a.CheckProof(r)
}

// CheckSource returns nil when a request comes from where it may. From this host that
// is a process of root's or of the program's own user, unless it has to show a
// certificate or credentials: an address of one's own says nothing about who has it.
func (a Access) CheckSource(r *http.Request, members func() []string) *Denial {
	if !a.login && !a.certificate && (!a.restricted() || fromOwnAddress(r)) {
		if err := a.OnHost(r); err != nil {
			return &Denial{http.StatusForbidden, a.remedy + " (" + err.Error() + ")"}
		}
		if !a.restricted() {
			return nil
		}
	}
	if !a.listed(r.Context(), r.RemoteAddr, members) {
		return &Denial{http.StatusForbidden, "Access is denied"}
	}
	return nil
}

// CheckConnection returns nil when a request is no browser's that another site's page
// made it send, and shows the certificate that it must.
func (a Access) CheckConnection(r *http.Request) *Denial {
	if err := a.checkSite(r); err != nil {
		return &Denial{http.StatusForbidden, err.Error()}
	}
	if a.certificate && (r.TLS == nil || len(r.TLS.PeerCertificates) == 0) {
		return &Denial{http.StatusForbidden, "client certificate required"}
	}
	return nil
}

// CheckProof returns nil when CheckConnection does, and the request shows the
// credentials that it must.
func (a Access) CheckProof(r *http.Request) *Denial {
	if d := a.CheckConnection(r); d != nil {
		return d
	}
	return a.checkLogin(r)
}

// CheckReader returns nil when a request may read what is not for everybody: it comes from the
// allowlist, where there is one, and shows the certificate and the credentials that it must. A link of another site's page may lead here,
// which changes nothing; but without credentials the server must be called by a name of its
// own, or the page of a site whose name has been made to lead here could read, too.
func (a Access) CheckReader(r *http.Request) *Denial {
	switch {
	case a.certificate && (r.TLS == nil || len(r.TLS.PeerCertificates) == 0):
		return &Denial{http.StatusForbidden, "client certificate required"}
	case !a.login && !a.called(r.Host):
		return &Denial{http.StatusForbidden, quoted(otherName, r.Host, useItsOwn)}
	case !a.listed(r.Context(), r.RemoteAddr, nil):
		return &Denial{http.StatusForbidden, "access is denied: the allowlist does not have this address"}
	}
	return a.checkLogin(r)
}

// checkLogin returns nil when a request shows the credentials that it must.
func (a Access) checkLogin(r *http.Request) *Denial {
	if !a.login {
		return nil
	}
	if r.Header.Get("Authorization") == "" {
		return &Denial{http.StatusUnauthorized, "no auth header received"}
	}
	username, password, _ := r.BasicAuth()
	u, p := sha256.Sum256([]byte(username)), sha256.Sum256([]byte(password))
	if subtle.ConstantTimeCompare(u[:], a.username[:])&subtle.ConstantTimeCompare(p[:], a.password[:]) != 1 {
		return &Denial{http.StatusUnauthorized, "not authenticated"}
	}
	return nil
}

// Friends are the addresses in the allowlist, as far as they are single ones.
func (a Access) Friends(ctx context.Context) []net.IP {
	all := Lookup(ctx, a.names)
	for _, p := range a.networks {
		if p.IsSingleIP() {
			all = append(all, net.IP(p.Addr().AsSlice()))
		}
	}
	return all
}

// listed reports whether a client's address is in the allowlist.
func (a Access) listed(ctx context.Context, client string, members func() []string) bool {
	if !a.restricted() {
		return true
	}
	from, err := netip.ParseAddrPort(client)
	if err != nil {
		return false
	}
	addr := from.Addr().Unmap().WithZone("")
	if slices.ContainsFunc(a.networks, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return true
	}
	names := slices.Clone(a.names)
	if a.members && members != nil {
		names = append(names, members()...)
	}
	return IsOneOf(ctx, client, names)
}

// IsOneOf reports whether a client's address is one of these hosts'.
func IsOneOf(ctx context.Context, client string, hosts []string) bool {
	from, err := netip.ParseAddrPort(client)
	if err != nil {
		return false
	}
	addr := from.Addr().Unmap().WithZone("")
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	is := false
	resolver{net.DefaultResolver.LookupNetIP}.each(ctx, hosts, func(one netip.Addr) bool {
		is = is || one == addr
		return !is
	})
	return is
}

// fromOwnAddress reports whether a request comes from one of this host's addresses.
func fromOwnAddress(r *http.Request) bool {
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && ownAddress(client.Addr())
}
