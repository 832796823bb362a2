package pooler

import (
	"context"
	"errors"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
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

// Deposed is where a database led until now, and where it leads.
type Deposed struct {
	Database string
	From, To pgbouncer.Address
}

// target is where connections of a database are looked for.
type target struct {
	database string
	from     pgbouncer.Address
}

// ConnCloser closes PgBouncer's connections to deposed primaries. PgBouncer itself
// closes them only when their transaction ends, and that of a host which fell
// silent never does: its client would wait for minutes. It works beside the passes of the
// reconciler: to close a thousand connections takes longer than one.
type ConnCloser struct {
	config config.Config
	log    zerolog.Logger
	// powerless: sockets cannot be closed here.
	powerless bool
	// wake asks for a look at once.
	wake    chan struct{}
	lookups sync.WaitGroup

	mu sync.Mutex
	// targets are what is looked for, and until when; leads is where their databases lead by now.
	targets map[target]time.Time
	leads   map[string]pgbouncer.Address
	// spared counts how often some of them were none any more.
	spared int
	// leaveConsole: PgBouncer waits for its console to be left.
	leaveConsole bool
	// asked: a look at what PgBouncer is about to close is due. reloads counts those that were
	// about to come, hosts are those that databases of such connections lead to.
	asked   bool
	reloads int
	hosts   map[string]bool
	// Primaries are those of all shards.
	Primaries func() []Primary
	// found are the addresses of targets' hosts, looking the hosts that are looked for.
	found   map[string][]netip.Addr
	looking map[string]bool
	// resolve is addressesOf, close closeSockets.
	resolve func(context.Context, string) ([]netip.Addr, error)
	close   func(context.Context, func(tcpSocket) bool) (int, error)
}

func NewConnCloser(c config.Config, log zerolog.Logger) *ConnCloser {
	can, known := c.Closing()
	return &ConnCloser{
		config: c, log: log, wake: make(chan struct{}, 1), targets: map[target]time.Time{}, leads: map[string]pgbouncer.Address{}, close: closeSockets, resolve: addressesOf,
		powerless: known && !can, Primaries: func() []Primary { return nil }, found: map[string][]netip.Addr{}, looking: map[string]bool{},
	}
}

// Depose adds targets; what is there of them is closed at once and, a moment later, once
// more.
func (c *ConnCloser) Depose(list []Deposed) {
	if len(list) == 0 {
		return
	}
	c.mu.Lock()
	for _, d := range list {
		c.targets[target{d.Database, d.From}] = time.Now().Add(lingerFor)
		c.leads[d.Database] = d.To
	}
	c.mu.Unlock()
	c.hurry()
}

// Spare gives those targets up to which a file leads again: PgBouncer's next connections there
// are to the primary. It comes before the RELOAD of that file.
func (c *ConnCloser) Spare(file pgbouncer.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reloads++
	before := len(c.targets)
	maps.DeleteFunc(c.targets, func(t target, _ time.Time) bool {
		to, found := file.Database(t.database)
		if !found {
			to, found = file.Database("*")
		}
		return found && to.Host() == t.from.Host && to.Port() == t.from.Port
	})
	if len(c.targets) < before {
		c.spared++
		c.hurry()
	}
}

// Forget lets the console of a PgBouncer go that may wait for that.
func (c *ConnCloser) Forget() {
	c.mu.Lock()
	c.leaveConsole = true
	c.mu.Unlock()
	c.hurry()
}

func (c *ConnCloser) hurry() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run closes what is there of the targets until ctx is done.
func (c *ConnCloser) Run(ctx context.Context) {
	defer c.lookups.Wait()
	console := NewConsole(c.config)
	defer console.Close()
	var (
		again  <-chan time.Time
		looked time.Time
		more   bool // something is left behind
		failed bool // and it was said
	)
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-again:
		}
		again = nil
		remain, leaveConsole := c.remain()
		if leaveConsole {
			console.Close()
			again, more = time.After(lingerPace), false
			continue
		}
		var err error
		if remain {
			err = c.closeAll(ctx, console)
			again = time.After(lingerPace)
		}
		if due := c.takeAsked() || more; due {
			if wait := lookWait(looked); wait > 0 {
				more, again = true, time.After(wait)
			} else {
				var e error
				more, e = c.closeBehind(ctx, console)
				err, looked = errors.Join(err, e), time.Now()
				if more {
					again = time.After(lingerPace)
				}
			}
		}
		if err == nil {
			failed = failed && (remain || more)
			continue
		}
		if ctx.Err() == nil && !failed {
			failed = true
			c.log.Warn().Err(err).Msg("closing connections to a deposed primary failed; trying again, else they end by TCP's timeouts")
		}
	}
}

// takeAsked reports whether a look was asked for.
func (c *ConnCloser) takeAsked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := c.asked
	c.asked = false
	return asked
}

// remain forgets the targets whose time is over, and reports whether there are others, and whether
// the console is to be let go.
func (c *ConnCloser) remain() (remain, leaveConsole bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	leaveConsole, c.leaveConsole = c.leaveConsole, false
	maps.DeleteFunc(c.targets, func(_ target, until time.Time) bool { return time.Now().After(until) })
	if len(c.targets) == 0 {
		clear(c.leads)
	}
	return len(c.targets) > 0, leaveConsole
}

// closeAll closes what is there of the targets now.
func (c *ConnCloser) closeAll(ctx context.Context, console *Console) error {
	conn, err := console.use(ctx)
	if err != nil {
		return err
	}
	gone := c.places(ctx)
	servers, err := bounded(ctx, conn.Servers)
	if err != nil {
		return err
	}
	lost := gone.servers(servers)
	if len(lost) == 0 {
		return nil // nor is there an attempt to connect: these are among the servers, too
	}
	// Asked for after the sockets were listed, it has all of those that are PgBouncer's.
	own := sync.OnceValues(func() (map[uint32]bool, error) { return ownSockets(ctx, conn) })
	var unseen error
	is := lostSockets(slices.Values(lost), gone, func(inode uint32) bool {
		sockets, err := own()
		unseen = err
		return sockets[inode]
	})
	err = c.free(ctx, conn, lost, is, func() bool { return c.stands(gone) })
	return errors.Join(err, unseen)
}

// errElsewhere says that PgBouncer's connections are not to be found here.
var errElsewhere = errors.New("PgBouncer's connections are not among those of this network namespace: run the bouncer in PgBouncer's, or take PgBouncer 1.24")

// free ends lost connections, of which is picks the sockets, as long as they are that (stands). What the kernel does
// not have here, as PgBouncer runs in another network namespace, PgBouncer itself has to end.
func (c *ConnCloser) free(ctx context.Context, conn *pgbouncer.Conn, lost []pgbouncer.Server, is func(tcpSocket) bool, stands func() bool) error {
	if len(lost) == 0 {
		return nil
	}
	if c.powerless {
		return c.killClients(ctx, conn, lost, stands)
	}
	seen := map[connection]bool{}
	closed, err := c.close(ctx, func(s tcpSocket) bool {
		if !is(s) || !stands() {
			return false
		}
		seen[connectionOf(s)] = true
		return true
	})
	if closed > 0 {
		c.log.Info().Int("connections", closed).Msg("closed connections to a deposed primary")
	}
	if err != nil {
		return errors.Join(err, c.killClients(ctx, conn, lost, stands))
	}
	missed := map[connection]bool{}
	for _, s := range lost {
		if at, ok := connectionTo(s); ok && s.LocalPort > 0 && !seen[at] {
			missed[at] = true
		}
	}
	if len(missed) == 0 || !stands() {
		return nil
	}
	servers, err := bounded(ctx, conn.Servers) // they may have ended
	if err != nil {
		return err
	}
	servers = slices.DeleteFunc(servers, func(s pgbouncer.Server) bool { at, ok := connectionTo(s); return !ok || !missed[at] })
	if len(servers) == 0 {
		return nil
	}
	if version, err := bounded(ctx, conn.Version); err == nil && !version.AtLeast(1, 24) {
		return errElsewhere
	}
	return c.killClients(ctx, conn, servers, stands)
}

// stands reports whether all places are still those of targets.
func (c *ConnCloser) stands(p places) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spared == p.spared
}

// resolveBound is how long the addresses of deposed primaries are waited for; those that are
// found later, by a resolver that is slow, are dealt with then.
const resolveBound = 50 * time.Millisecond

// place is a database at an address.
type place struct {
	database string
	at       netip.AddrPort
}

// namedPlace is a database at some address with a port.
type namedPlace struct {
	database string
	port     int
}

// places are the targets with their addresses.
type places struct {
	databases map[place]bool
	addresses map[netip.AddrPort]bool
	// leads are where the databases lead by now: it may be the same host by another name.
	leads map[place]bool
	// named are the databases, with the port, that led to a host by a name. When the host is lost
	// the name may lead nowhere, or to another one.
	named map[namedPlace]bool
	// spared is the closer's when they were targets.
	spared int
}

// places finds the addresses of the targets, as far as they are known.
func (c *ConnCloser) places(ctx context.Context) places {
	c.lookUp(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	gone := places{map[place]bool{}, map[netip.AddrPort]bool{}, map[place]bool{}, map[namedPlace]bool{}, c.spared}
	for t, until := range c.targets {
		if c.mayBeThere(t, until) {
			continue
		}
		for _, a := range c.found[t.from.Host] {
			at := netip.AddrPortFrom(a, uint16(t.from.Port))
			gone.databases[place{t.database, at}], gone.addresses[at] = true, true
		}
		if _, err := netip.ParseAddr(t.from.Host); err != nil {
			gone.named[namedPlace{t.database, t.from.Port}] = true
		}
	}
	for database, to := range c.leads {
		for host := range strings.SplitSeq(to.Host, ",") {
			for _, a := range c.found[host] {
				at := netip.AddrPortFrom(a, uint16(to.Port))
				gone.leads[place{database, at}] = true
				delete(gone.addresses, at)
			}
		}
	}
	return gone
}

// mayBeThere reports whether a target may be where its database leads by now, by a name that is still looked up. A
// resolver that is silent is not waited for longer than a moment.
func (c *ConnCloser) mayBeThere(t target, until time.Time) bool {
	if time.Until(until) < lingerFor-lingerPace {
		return false
	}
	for host := range strings.SplitSeq(c.leads[t.database].Host, ",") {
		if c.looking[host] {
			return true
		}
	}
	return false
}

// lookUp looks for the addresses of the targets' hosts, of all at once, and waits a moment.
func (c *ConnCloser) lookUp(ctx context.Context) {
	var begun sync.WaitGroup
	over := false // the wait is
	c.mu.Lock()
	hosts := c.hostsNeeded()
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
			if found := c.look(ctx, host); found {
				c.mu.Lock()
				late := over
				c.mu.Unlock()
				if late {
					c.hurry()
				}
			}
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
	over = true
	c.mu.Unlock()
}

// hostsNeeded are those whose addresses are needed.
func (c *ConnCloser) hostsNeeded() map[string]bool {
	hosts := map[string]bool{}
	for t := range c.targets {
		hosts[t.from.Host] = true
	}
	for _, to := range c.leads {
		for host := range strings.SplitSeq(to.Host, ",") {
			hosts[host] = true
		}
	}
	maps.Copy(hosts, c.hosts)
	delete(hosts, "")
	return hosts
}

// look looks for the addresses of one host, and reports whether there are any.
func (c *ConnCloser) look(ctx context.Context, host string) bool {
	ctx, cancel := context.WithTimeout(ctx, lingerFor)
	defer cancel()
	all, err := c.resolve(ctx, host)
	c.mu.Lock()
	delete(c.looking, host)
	if err == nil {
		c.found[host] = all
	}
	c.mu.Unlock()
	if err != nil {
		c.log.Debug().Err(err).Msg("a deposed primary cannot be resolved")
	}
	return err == nil
}

// servers picks PgBouncer's connections to the places.
func (p places) servers(servers []pgbouncer.Server) (lost []pgbouncer.Server) {
	for _, s := range servers {
		addr, err := netip.ParseAddr(s.Addr)
		if err != nil {
			continue // a unix socket
		}
		here := place{s.Database, netip.AddrPortFrom(addr.Unmap(), uint16(s.Port))}
		if !p.leads[here] && (p.databases[here] || s.CloseNeeded && p.named[namedPlace{s.Database, s.Port}]) {
			lost = append(lost, s)
		}
	}
	return lost
}

// lostSockets reports whether a socket is one of PgBouncer's lost connections, by its
// local port. Attempts to connect have none yet in SHOW SERVERS: there the target decides, and
// own, which reports whether a socket is PgBouncer's. Other programs knock there, too.
func lostSockets(lost iter.Seq[pgbouncer.Server], gone places, own func(inode uint32) bool) func(tcpSocket) bool {
	connections := map[connection]bool{}
	for l := range lost {
		if at, ok := connectionTo(l); ok {
			connections[at] = true
		}
	}
	return func(s tcpSocket) bool {
		if s.connecting() {
			return gone.addresses[connectionOf(s).remote] && own(s.inode)
		}
		return connections[connectionOf(s)]
	}
}

// killClients frees the clients of lost connections by PgBouncer's own command,
// which 1.24 brought.
func (c *ConnCloser) killClients(ctx context.Context, conn *pgbouncer.Conn, lost []pgbouncer.Server, stands func() bool) error {
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
		if client.ID != "" && linked[client.Ptr] && stands() {
			_, err := bounded(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, conn.KillClient(ctx, client.ID) })
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
