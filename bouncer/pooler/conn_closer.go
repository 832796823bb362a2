package pooler

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

const (
	// lingerFor is how long connections to a deposed primary are looked for.
	lingerFor = 3 * time.Second
	// lingerPace is when they are looked for once more: an attempt that was under way
	// may have succeeded meanwhile.
	lingerPace = time.Second
)

// Deposed is a place that a database led to until now.
type Deposed struct {
	Database string
	Host     string
	Port     int
}

// ConnCloser closes PgBouncer's connections to deposed primaries. PgBouncer itself
// closes them only when their transaction ends, and that of a host which fell
// silent never does: its client would wait for minutes.
type ConnCloser struct {
	log     zerolog.Logger
	targets map[Deposed]time.Time // until when
	again   time.Time
	// powerless: sockets cannot be closed here.
	powerless bool
	// notify is called when an address was found.
	notify  func()
	lookups sync.WaitGroup

	mu sync.Mutex
	// found are the addresses of targets' hosts, looking the hosts that are looked for.
	found   map[string][]netip.Addr
	looking map[string]bool
	late    bool
	// resolve is addressesOf, close closeSockets.
	resolve func(context.Context, string) ([]netip.Addr, error)
	close   func(context.Context, func(tcpSocket) bool) (int, error)
}

func NewConnCloser(c config.Config, log zerolog.Logger, notify func()) *ConnCloser {
	can, known := c.Closing()
	return &ConnCloser{
		log: log, targets: map[Deposed]time.Time{}, close: closeSockets, resolve: addressesOf,
		powerless: known && !can,
		notify:    notify, found: map[string][]netip.Addr{}, looking: map[string]bool{},
	}
}

// Depose adds targets; they are cut by the next cut and, a moment later, once
// more.
func (c *ConnCloser) Depose(list []Deposed) {
	for _, d := range list {
		c.targets[d] = time.Now().Add(lingerFor)
	}
	if len(list) > 0 {
		c.again = time.Now()
	}
}

// Next is when to cut again; zero: there is nothing to cut.
func (c *ConnCloser) Next() time.Time { return c.again }

// Wait waits for lookups that are under way.
func (c *ConnCloser) Wait() { c.lookups.Wait() }

// CloseLost closes what is there of the targets.
func (c *ConnCloser) CloseLost(ctx context.Context, console *Console, standing map[string]pgbouncer.Database) {
	now := time.Now()
	for d, until := range c.targets {
		// Back again: these are connections to the primary.
		if s := standing[d.Database]; now.After(until) || s.Host == d.Host && s.Port == d.Port {
			delete(c.targets, d)
		}
	}
	if len(c.targets) == 0 {
		c.again = time.Time{}
		return
	}
	if now.Before(c.again) && !c.isLate() {
		return
	}
	c.again = now.Add(lingerPace)
	if err := c.closeAll(ctx, console); err != nil {
		c.log.Warn().Err(err).Msg("closing connections to a deposed primary failed; they end by TCP's timeouts")
	}
}

func (c *ConnCloser) closeAll(ctx context.Context, console *Console) error {
	conn, err := console.use(ctx)
	if err != nil {
		return err
	}
	servers, err := bounded(ctx, conn.Servers)
	if err != nil {
		return err
	}
	gone := c.places(ctx)
	lost := gone.servers(servers)
	if c.powerless {
		return c.killClients(ctx, conn, lost)
	}
	closed, err := c.close(ctx, lostSockets(lost, gone))
	if closed > 0 {
		c.log.Info().Int("connections", closed).Msg("closed connections to a deposed primary")
	}
	if err != nil {
		return errors.Join(err, c.killClients(ctx, conn, lost))
	}
	return nil
}

// resolveBound is how long a pass waits for the addresses of deposed primaries; those
// that are found later, by a resolver that is slow, wake the reconciler.
const resolveBound = 50 * time.Millisecond

// place is a database at an address.
type place struct {
	database string
	at       netip.AddrPort
}

// places are the targets with their addresses.
type places struct {
	databases map[place]bool
	addresses map[netip.AddrPort]bool
}

// places finds the addresses of the targets, as far as they are known.
func (c *ConnCloser) places(ctx context.Context) places {
	hosts := map[string]bool{}
	for d := range c.targets {
		hosts[d.Host] = true
	}
	c.lookUp(ctx, hosts)
	c.mu.Lock()
	defer c.mu.Unlock()
	gone := places{map[place]bool{}, map[netip.AddrPort]bool{}}
	for d := range c.targets {
		for _, a := range c.found[d.Host] {
			at := netip.AddrPortFrom(a, uint16(d.Port))
			gone.databases[place{d.Database, at}], gone.addresses[at] = true, true
		}
	}
	return gone
}

// lookUp looks for the addresses of hosts, of all at once, and waits a moment.
func (c *ConnCloser) lookUp(ctx context.Context, hosts map[string]bool) {
	var begun sync.WaitGroup
	c.mu.Lock()
	maps.DeleteFunc(c.found, func(host string, _ []netip.Addr) bool { return !hosts[host] })
	for host := range hosts {
		if len(c.found[host]) > 0 || c.looking[host] {
			continue
		}
		if addr, err := netip.ParseAddr(host); err == nil { // there may be a thousand
			c.found[host] = []netip.Addr{addr.Unmap()}
			continue
		}
		c.looking[host] = true
		begun.Add(1)
		c.lookups.Go(func() {
			defer begun.Done()
			c.look(ctx, host)
		})
	}
	c.mu.Unlock()
	done := make(chan struct{})
	c.lookups.Go(func() { begun.Wait(); close(done) })
	select {
	case <-done:
	case <-time.After(resolveBound):
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = false
}

func (c *ConnCloser) look(ctx context.Context, host string) {
	ctx, cancel := context.WithTimeout(ctx, lingerFor)
	defer cancel()
	all, err := c.resolve(ctx, host)
	c.mu.Lock()
	delete(c.looking, host)
	if err == nil {
		c.found[host], c.late = all, true
	}
	c.mu.Unlock()
	if err != nil {
		c.log.Debug().Err(err).Msg("a deposed primary cannot be resolved")
		return
	}
	c.notify()
}

// isLate reports whether addresses were found that the last cut did not know.
func (c *ConnCloser) isLate() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.late
}

// servers picks PgBouncer's connections to the places.
func (p places) servers(servers []pgbouncer.Server) (lost []pgbouncer.Server) {
	for _, s := range servers {
		addr, err := netip.ParseAddr(s.Addr)
		if err != nil {
			continue // a unix socket
		}
		if p.databases[place{s.Database, netip.AddrPortFrom(addr.Unmap(), uint16(s.Port))}] {
			lost = append(lost, s)
		}
	}
	return lost
}

// lostSockets reports whether a socket is one of PgBouncer's lost connections, by its
// local port. Attempts to connect have none yet in SHOW SERVERS: there the
// target alone decides, and whoever else is knocking there loses nothing.
func lostSockets(lost []pgbouncer.Server, gone places) func(tcpSocket) bool {
	type connection struct {
		remote netip.AddrPort
		local  uint16
	}
	connections := make(map[connection]bool, len(lost))
	for _, l := range lost {
		if addr, err := netip.ParseAddr(l.Addr); err == nil {
			connections[connection{netip.AddrPortFrom(addr.Unmap(), uint16(l.Port)), uint16(l.LocalPort)}] = true
		}
	}
	return func(s tcpSocket) bool {
		remote := netip.AddrPortFrom(s.remote.Addr().Unmap(), s.remote.Port())
		return s.connecting() && gone.addresses[remote] || !s.connecting() && connections[connection{remote, s.local.Port()}]
	}
}

// killClients frees the clients of lost connections by PgBouncer's own command,
// which 1.24 brought.
func (c *ConnCloser) killClients(ctx context.Context, conn *pgbouncer.Conn, lost []pgbouncer.Server) error {
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
	linked := map[string]bool{}
	for _, s := range lost {
		if s.Link != "" {
			linked[s.Link] = true
		}
	}
	var errs []error
	for _, client := range clients {
		if client.ID != "" && linked[client.Ptr] {
			_, err := bounded(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, conn.KillClient(ctx, client.ID) })
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
