package httpserver

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
)

// ownNames are the names by which this host is called, in lower case and without
// ports.
func ownNames(configured []string) []string {
	names := []string{"localhost"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
		if short, _, found := strings.Cut(host, "."); found {
			names = append(names, short)
		}
	}
	names = append(names, configured...)
	for i, n := range names {
		names[i] = hostOf(n)
	}
	return names
}

// hostOf is the host of HOST[:PORT], in lower case.
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(s, "[]"), "."))
}

// checkSite returns why a request must not be believed to come from whom its
// connection and credentials say: a browser sends it for a page of another site, with
// its own address, certificate and remembered password. Programs name no page.
//
// A page whose own name has been made to lead here (DNS rebinding) is of the same site
// to the browser; but it calls this server by that name.
func (a Access) checkSite(r *http.Request) error {
	origin, site := r.Header.Get("Origin"), r.Header.Get("Sec-Fetch-Site")
	switch {
	case !a.login && origin != "":
		return errors.New("changes are not taken from web pages without " + a.section + "authentication")
	case site != "" && site != "same-origin" && site != "none":
		return otherSite("the header Sec-Fetch-Site is", site, "")
	case origin != "":
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return otherSite("the header Origin is", origin, "")
		}
	}
	if (origin != "" || site != "" || !a.login && !a.certificate) && !a.called(r.Host) {
		return otherSite(otherName, r.Host, useItsOwn)
	}
	return nil
}

const otherName, useItsOwn = "this server is not called", "; use its address, or the name in connect_address"

// otherSite says what a page of another site is told.
func otherSite(what, said, remedy string) error {
	return errors.New("changes are not taken from web pages of other sites: " + quoted(what, said, remedy))
}

// quoted says what is wrong with what a request said, which is quoted and cut.
func quoted(what, said, remedy string) string {
	const most = 100
	if len(said) > most {
		said = said[:most] + "..."
	}
	return fmt.Sprintf("%s %q%s", what, said, remedy)
}

// called reports whether a header Host names this server: by an address, which no page
// can be the site of unless it is served from here, or by a name that is known.
func (a Access) called(host string) bool {
	host = hostOf(host)
	if host == "" || net.ParseIP(host) != nil {
		return true
	}
	return slices.Contains(a.hosts, host)
}
