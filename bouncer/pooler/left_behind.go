package pooler

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Whom a RELOAD has left behind is not only known to who has seen it: the bouncer may have been killed
// between RELOAD and the closing, or somebody else has had PgBouncer read the file. PgBouncer itself says so:
// it is about to close a connection (close_needed), and that leads to where its database does not.
//
// Of a database that leads to a primary those are closed: the old one is deposed, as whenever a primary
// moves. What else may be the reason is told apart by the kernel: readers' hosts come and go, and one that
// only lags keeps its queries; a template's own database may have led to a replica; a name may lead elsewhere by
// DNS alone. Of these only the connections are closed on which the host leaves things unanswered.

// silentLeast is how many times in a row a host must have left something unanswered, so that one lost
// packet is no reason.
const silentLeast = 2

// Look asks for a look at the connections that PgBouncer is about to close, once it is verified where its
// databases lead.
func (c *ConnCloser) Look() {
	c.mu.Lock()
	c.asked = true
	c.mu.Unlock()
	c.hurry()
}

// role is what a database is for.
type role struct {
	leader pgbouncer.Address
	writes bool
}

// behind is a connection to where its database does not lead.
type behind struct {
	pgbouncer.Server
	// silent: only if the host is.
	silent bool
}

// leftBehind picks them of the connections that PgBouncer is about to close. unknown: of some it cannot be
// told yet.
func (c *ConnCloser) leftBehind(ctx context.Context, databases map[string]pgbouncer.Database, closing []pgbouncer.Server) (list []behind, unknown bool) {
	hosts := map[string]bool{}
	for _, s := range closing {
		for host := range strings.SplitSeq(databases[s.Database].Host, ",") {
			hosts[host] = true
		}
	}
	c.mu.Lock()
	c.hosts = hosts
	c.mu.Unlock()
	// leaders are the primaries, and whether databases that no shard has follow them.
	roles, leaders := map[string]role{}, map[pgbouncer.Address]bool{}
	for _, p := range c.Primaries() {
		leader := pgbouncer.Address{Host: p.Leader.Host, Port: p.Leader.Port}
		leaders[leader] = leaders[leader] || p.Fallback
		for _, name := range p.Offered {
			roles[name] = role{}
		}
		for _, d := range p.Writers {
			roles[d.Name] = role{leader, true}
		}
	}
	c.lookUp(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range closing {
		d, stands := databases[s.Database]
		if !stands || d.Host == "" {
			continue
		}
		at := pgbouncer.Address{Host: d.Host, Port: d.Port}
		is, offered := roles[s.Database]
		follows, leads := leaders[at]
		if !offered && !leads || is.writes && at != is.leader {
			continue // it is no shard's, or RELOAD is still to come
		}
		writes := is.writes || !offered && follows
		addr, err := netip.ParseAddr(s.Addr)
		if err != nil {
			continue // a unix socket
		}
		there, named, known := c.leadsTo(at, netip.AddrPortFrom(addr.Unmap(), uint16(s.Port)))
		if unknown = unknown || !known; known && !there {
			list = append(list, behind{s, !writes || named})
		}
	}
	return list, unknown
}

// leadsTo reports whether hosts with a port are where a connection leads, and whether any of them is a name.
// known: all have an address.
func (c *ConnCloser) leadsTo(at pgbouncer.Address, to netip.AddrPort) (there, named, known bool) {
	for host := range strings.SplitSeq(at.Host, ",") {
		if _, err := netip.ParseAddr(host); err != nil {
			named = true
		}
		if len(c.found[host]) == 0 {
			return false, named, false
		}
		for _, a := range c.found[host] {
			there = there || netip.AddrPortFrom(a, uint16(at.Port)) == to
		}
	}
	return there, named, true
}

// nothingBehind has the names forgotten that were looked up for what was left behind: until the next look they may
// lead elsewhere.
func (c *ConnCloser) nothingBehind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts = nil
	needed := c.hostsNeeded()
	maps.DeleteFunc(c.found, func(host string, _ []netip.Addr) bool { return !needed[host] })
}

// closeBehind closes what is left behind and is lost. more: something is left, which may be lost later.
func (c *ConnCloser) closeBehind(ctx context.Context, console *Console) (more bool, err error) {
	conn, err := console.use(ctx)
	if err != nil {
		return true, err
	}
	c.mu.Lock()
	reloads := c.reloads
	c.mu.Unlock()
	stands := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.reloads == reloads
	}
	servers, err := bounded(ctx, conn.Servers)
	if err != nil {
		return true, err
	}
	servers = slices.DeleteFunc(servers, func(s pgbouncer.Server) bool { return !s.CloseNeeded })
	if len(servers) == 0 {
		c.nothingBehind()
		return false, nil
	}
	databases, err := bounded(ctx, conn.Databases)
	if err != nil {
		return true, err
	}
	list, unknown := c.leftBehind(ctx, databases, servers)
	if len(list) == 0 {
		return unknown, nil
	}
	silent := map[connection]bool{}
	if _, err := anySocket(ctx, func(s tcpSocket) bool {
		if s.state == tcpEstablished && s.unanswered >= silentLeast {
			silent[connectionOf(s)] = true
		}
		return false
	}); err != nil {
		c.log.Debug().Err(err).Msg("connections cannot be looked at")
	}
	var lost []pgbouncer.Server
	for _, b := range list {
		if at, ok := connectionTo(b.Server); ok && (!b.silent || silent[at]) {
			lost = append(lost, b.Server)
		}
	}
	return true, c.free(ctx, conn, lost, lostSockets(slices.Values(lost), places{}, nil), stands)
}

// connection is one as both the kernel and PgBouncer name it.
type connection struct {
	remote netip.AddrPort
	local  uint16
}

func connectionOf(s tcpSocket) connection {
	return connection{netip.AddrPortFrom(s.remote.Addr().Unmap(), s.remote.Port()), s.local.Port()}
}

func connectionTo(s pgbouncer.Server) (connection, bool) {
	addr, err := netip.ParseAddr(s.Addr)
	return connection{netip.AddrPortFrom(addr.Unmap(), uint16(s.Port)), uint16(s.LocalPort)}, err == nil
}

// lookWait is how long a look that is asked for has to wait after the last one.
func lookWait(last time.Time) time.Duration { return max(0, time.Until(last.Add(lingerPace))) }
