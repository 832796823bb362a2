package api

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/agent/config"
)

// access decides who may change something: everybody may read, but POST, PUT,
// PATCH and DELETE are checked as Patroni checks them.
type access struct{ httpserver.Access }

// openText is for people: nothing is compared with it, as Patroni lets such a
// request pass.
const openText = "changes are taken from root and the agent's user on this host only; for others add to this member's file " +
	"`restapi: {authentication: {username: ..., password: ...}}`, or for the hosts of the shard's members " +
	"`restapi: {allowlist_include_members: true}`"

func newAccess(cfg config.RestAPI, demandCert bool) access {
	return access{httpserver.NewAccess(httpserver.AccessSettings{
		Username: cfg.Authentication.Username, Password: cfg.Authentication.Password,
		Certificate: demandCert, Allowlist: cfg.Allowlist, Members: cfg.AllowlistIncludeMembers,
		Hosts: []string{cfg.ConnectAddress, cfg.Listen}, Remedy: openText, Section: "restapi.",
	})}
}

// check returns nil when the request may change something. Who has proved to know the
// shard's secret may: he can write the shard's keys in Consul as well.
func (a access) check(r *http.Request, state State, proved bool) *httpserver.Denial {
	switch {
	case proved:
		return a.CheckConnection(r)
	case a.Open() && betweenMembers(r, state):
		return a.CheckProof(r)
	}
	return a.Check(r, func() []string { return memberHosts(state) })
}

// betweenMembers reports whether a request is what a member of Patroni's asks the others
// without an operator, and comes from a member's address. Members of Lictor's prove
// themselves.
func betweenMembers(r *http.Request, state State) bool {
	return segmentOf(r) == "failsafe" && httpserver.IsOneOf(r.Context(), r.RemoteAddr, memberHosts(state))
}

// memberHosts are the hosts of the members' REST APIs.
func memberHosts(state State) (hosts []string) {
	for _, m := range state.Cluster.Members {
		if u, err := url.Parse(m.Value.APIURL); err == nil && u.Hostname() != "" {
			hosts = append(hosts, u.Hostname())
		}
	}
	return hosts
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
