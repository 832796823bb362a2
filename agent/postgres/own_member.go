package postgres

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// siteName begins the application_name of connections to another site's hosts. The rest tells them from all
// others.
const siteName = agentName + " site "

// OwnMember returns a cluster.OwnMemberError if one of another site's hosts is a member of this shard. The
// system identifier is the same on both sites, and a member may be meant by another name or address. So what a
// host's name leads to is compared; then a connection is opened to each host, and looked for
// among those of each member. Who does not answer tells nothing.
func (p *upstreams) OwnMember(ctx context.Context, site Upstream, members []Upstream) error {
	hosts := strings.Split(site.Host, ",")
	own := make([][]string, len(members))
	for i, m := range members {
		own[i] = addresses(ctx, m.Host)
	}
	for _, host := range hosts {
		theirs := addresses(ctx, host)
		for i, m := range members {
			if m.Port == site.Port && slices.ContainsFunc(theirs, func(a string) bool { return slices.Contains(own[i], a) }) {
				return cluster.OwnMemberError{Address: cluster.SiteAddress(host, site.Port), Member: m.Name}
			}
		}
	}

	mark := siteName + rand.Text()
	marks := make([]string, len(hosts)) // what the connection to a host is called
	var opening sync.WaitGroup
	closing := make(chan struct{})
	var open sync.WaitGroup
	for i, host := range hosts {
		one := site
		one.Host = host
		opening.Add(1)
		open.Go(func() {
			name := fmt.Sprintf("%s/%d", mark, i)
			conn, err := p.replicationConnAs(ctx, one, p.local.Load().Authentication.Replication, name)
			if err == nil {
				marks[i] = name
			}
			opening.Done()
			if err != nil {
				return
			}
			<-closing
			hangUpOn(conn)
		})
	}
	opening.Wait()
	defer open.Wait()
	defer close(closing)
	if !slices.ContainsFunc(marks, func(m string) bool { return m != "" }) {
		return nil
	}
	found := make([]string, len(members))
	var asking sync.WaitGroup
	for i, m := range members {
		asking.Go(func() { found[i] = p.connectionAmong(ctx, m, mark) })
	}
	asking.Wait()
	for i, m := range members {
		if at := slices.Index(marks, cmp.Or(found[i], "none")); at >= 0 {
			return cluster.OwnMemberError{Address: cluster.SiteAddress(hosts[at], site.Port), Member: m.Name}
		}
	}
	return nil
}

// connectionAmong is the application_name of a connection to a member that begins as mark does; empty: there is none,
// or the member does not answer.
func (p *upstreams) connectionAmong(ctx context.Context, m Upstream, mark string) string {
	conn, err := p.connect(ctx, m.Host, m.Port, p.local.Load().Authentication.Superuser, p.database(), agentName)
	if err != nil {
		p.log.Debug().Err(err).Str("member", m.Name).Msg("cannot be asked whether it is called another site's")
		return ""
	}
	defer hangUpOn(conn)
	var name string
	if err := conn.QueryRow(ctx, "SELECT COALESCE(min(application_name), '') FROM pg_catalog.pg_stat_activity WHERE starts_with(application_name, $1)", mark).Scan(&name); err != nil {
		p.log.Debug().Err(err).Str("member", m.Name).Msg("cannot be asked whether it is called another site's")
		return ""
	}
	return name
}

// addresses are what a host's name leads to, or the name where it leads nowhere.
func addresses(ctx context.Context, host string) []string {
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return []string{strings.ToLower(host)}
	}
	return found
}
