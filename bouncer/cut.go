package bouncer

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/pgbouncer"
)

// lingerFor is how long connections to a deposed primary are looked for.
const lingerFor = 3 * time.Second

// deposed is a place that a database led to until now.
type deposed struct {
	database string
	host     string
	port     int
}

// moved lists what the databases of views led to before, where that is no
// longer so.
func moved(views []*ShardView, before map[string]pgbouncer.Database) (list []deposed) {
	for _, v := range views {
		for _, d := range v.Databases {
			old, had := before[d.Name]
			if !had || old.Host == "" || old.Host == v.route.Leader.Host && old.Port == v.route.Leader.Port {
				continue
			}
			for _, name := range []string{d.Name, d.ReadOnlyName()} {
				if b := before[name]; b.Host == old.Host && b.Port == old.Port {
					list = append(list, deposed{name, old.Host, old.Port})
				}
			}
		}
	}
	return list
}

// cutter closes PgBouncer's connections to deposed primaries. PgBouncer itself
// closes them only when their transaction ends, and that of a host which fell
// silent never does: its client would wait for minutes.
type cutter struct {
	log     zerolog.Logger
	targets map[deposed]time.Time // until when
	again   time.Time
	// powerless: sockets cannot be closed here.
	powerless bool
	// close is closeSockets.
	close func(context.Context, func(tcpSocket) bool) (int, error)
}

func newCutter(c Config, log zerolog.Logger) *cutter {
	return &cutter{
		log: log, targets: map[deposed]time.Time{}, close: closeSockets,
		powerless: c.closesSockets != nil && !*c.closesSockets,
	}
}

// deposed adds targets; they are cut by the next cut and, a moment later, once
// more.
func (c *cutter) deposed(list []deposed) {
	for _, d := range list {
		c.targets[d] = time.Now().Add(lingerFor)
	}
	if len(list) > 0 {
		c.again = time.Now()
	}
}

// cut closes what is there of the targets.
func (c *cutter) cut(ctx context.Context, console *console, standing map[string]pgbouncer.Database) {
	now := time.Now()
	for d, until := range c.targets {
		// Back again: these are connections to the primary.
		if s := standing[d.database]; now.After(until) || s.Host == d.host && s.Port == d.port {
			delete(c.targets, d)
		}
	}
	if len(c.targets) == 0 {
		c.again = time.Time{}
		return
	}
	if now.Before(c.again) {
		return
	}
	c.again = now.Add(lingerPace)
	if err := c.cutAll(ctx, console); err != nil {
		c.log.Warn().Err(err).Msg("closing connections to a deposed primary failed; they end by TCP's timeouts")
	}
}

func (c *cutter) cutAll(ctx context.Context, console *console) error {
	conn, err := console.use(ctx)
	if err != nil {
		return err
	}
	servers, err := bounded(ctx, conn.Servers)
	if err != nil {
		return err
	}
	addresses := map[deposed][]netip.Addr{}
	for d := range c.targets {
		resolve, cancel := context.WithTimeout(ctx, lingerPace)
		all, err := addressesOf(resolve, d.host)
		cancel()
		if err != nil {
			c.log.Debug().Err(err).Msg("a deposed primary cannot be resolved")
			continue
		}
		addresses[d] = all
	}
	lost := lostServers(servers, addresses)
	if c.powerless {
		return c.killClients(ctx, conn, lost)
	}
	closed, err := c.close(ctx, func(s tcpSocket) bool { return isLost(s, lost, addresses) })
	if closed > 0 {
		c.log.Info().Int("connections", closed).Msg("closed connections to a deposed primary")
	}
	if err != nil {
		return errors.Join(err, c.killClients(ctx, conn, lost))
	}
	return nil
}

// lostServers picks PgBouncer's connections to the targets.
func lostServers(servers []pgbouncer.Server, addresses map[deposed][]netip.Addr) (lost []pgbouncer.Server) {
	for _, s := range servers {
		addr, err := netip.ParseAddr(s.Addr)
		if err != nil {
			continue // a unix socket
		}
		for d, all := range addresses {
			if s.Database == d.database && s.Port == d.port && slices.Contains(all, addr.Unmap()) {
				lost = append(lost, s)
				break
			}
		}
	}
	return lost
}

// isLost tells whether a socket is one of PgBouncer's lost connections, by its
// local port. Attempts to connect have none yet in SHOW SERVERS: there the
// target alone decides, and whoever else is knocking there loses nothing.
func isLost(s tcpSocket, lost []pgbouncer.Server, addresses map[deposed][]netip.Addr) bool {
	remote := s.remote.Addr().Unmap()
	if s.connecting() {
		for d, all := range addresses {
			if int(s.remote.Port()) == d.port && slices.Contains(all, remote) {
				return true
			}
		}
		return false
	}
	return slices.ContainsFunc(lost, func(l pgbouncer.Server) bool {
		addr, err := netip.ParseAddr(l.Addr)
		return err == nil && addr.Unmap() == remote && l.Port == int(s.remote.Port()) && l.LocalPort == int(s.local.Port())
	})
}

// killClients frees the clients of lost connections by PgBouncer's own command,
// which 1.24 brought.
func (c *cutter) killClients(ctx context.Context, conn *pgbouncer.Conn, lost []pgbouncer.Server) error {
	if len(lost) == 0 {
		return nil
	}
	version, err := bounded(ctx, conn.Version)
	if err != nil || !version.AtLeast(1, 24) {
		return err
	}
	clients, err := bounded(ctx, conn.Clients)
	if err != nil {
		return err
	}
	var errs []error
	for _, client := range clients {
		if client.ID != "" && slices.ContainsFunc(lost, func(s pgbouncer.Server) bool { return s.Link != "" && s.Link == client.Ptr }) {
			_, err := bounded(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, conn.KillClient(ctx, client.ID) })
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
