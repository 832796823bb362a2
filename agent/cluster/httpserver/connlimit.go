package httpserver

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
)

// connLimit is a listener that holds at most max connections open, perSource of them
// from one address. When one more comes, the oldest connection of the address that has
// the most is closed in its favour, unless an operation waits on it: clients that send
// or read slowly, or say nothing at all, can then never keep out a health check, which
// comes from another address, nor for long one from their own. A quarter of all connections
// at the most, and half of one address's, are kept for operations: whoever has many of them wait
// leaves enough that may be closed.
type connLimit struct {
	net.Listener
	max, perSource int
	slots          *slots

	mu    sync.Mutex
	count int
	held  int
	taken uint64
	open  map[source][]*limitedConn // oldest first
}

func newConnLimit(l net.Listener, most, perSource int) *connLimit {
	return &connLimit{Listener: l, max: most, perSource: perSource, slots: newSlots(most), open: map[source][]*limitedConn{}}
}

// limitedConn is one connection of a connLimit.
type limitedConn struct {
	net.Conn
	limit  *connLimit
	source source
	// number grows with each connection.
	number uint64
	// waiting counts the operations in progress for which it is kept; guarded by limit.mu.
	waiting int
	// gone: it is closed; guarded by limit.mu.
	gone bool
}

// Accept waits for the next connection that there is room for.
func (l *connLimit) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &limitedConn{Conn: conn, limit: l, source: sourceOf(conn)}
		victim := l.admit(c)
		if victim != nil {
			// The error of closing a connection that is given up says nothing.
			_ = victim.Close()
		}
		if victim != c {
			return c, nil
		}
	}
}

// admit registers c and returns the connection that must go, which is c itself when
// none of the others can.
func (l *connLimit) admit(c *limitedConn) *limitedConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c.source] = append(l.open[c.source], c)
	l.count++
	l.taken++
	c.number = l.taken
	own := l.open[c.source]
	switch {
	case len(own) > l.perSource:
		return oldest(own)
	case l.count <= l.max:
		return nil
	}
	if victim := l.oldestOfMost(l.slots.of); victim != nil {
		return victim
	}
	// All are kept. Who has none of those that are kept for it takes one of whoever has the most:
	// friends are who Consul says, and keep no balancer out.
	if len(own) <= l.slots.of(c.source) {
		if victim := l.oldestOfMost(func(source) int { return 0 }); victim != nil {
			return victim
		}
	}
	return oldest(own)
}

// oldestOfMost is the oldest connection of the address that has the most, beyond what is kept
// for it; nil: nobody has more.
func (l *connLimit) oldestOfMost(kept func(source) int) (victim *limitedConn) {
	most := 0
	for from, conns := range l.open {
		if len(conns) < most {
			continue
		}
		one, n := oldest(conns), len(conns)-kept(from)
		if one != nil && n > 0 && (n > most || n == most && one.number < victim.number) {
			most, victim = n, one
		}
	}
	return victim
}

// oldest is the oldest of these connections on which no operation waits; nil: there is
// none. The newest of all is one, as nobody can wait on it yet.
func oldest(conns []*limitedConn) *limitedConn {
	for _, c := range conns {
		if c.waiting == 0 {
			return c
		}
	}
	return nil
}

// Close closes the connection and makes room for another one.
func (c *limitedConn) Close() error {
	l := c.limit
	l.mu.Lock()
	if i := slices.Index(l.open[c.source], c); i >= 0 {
		l.count--
		if c.gone = true; c.waiting > 0 {
			l.held--
		}
		if l.open[c.source] = slices.Delete(l.open[c.source], i, i+1); len(l.open[c.source]) == 0 {
			delete(l.open, c.source)
		}
	}
	l.mu.Unlock()
	return c.Conn.Close()
}

// hold keeps the connection from being closed for a newer one until release is
// called, unless so many are kept already that it must take its chance.
func (c *limitedConn) hold() (release func()) {
	l := c.limit
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.waiting == 0 {
		if c.gone || l.held >= max(1, l.max/4) || l.heldOf(c.source) >= max(1, l.perSource/2) {
			return func() {}
		}
		l.held++
	}
	c.waiting++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if c.waiting--; c.waiting == 0 && !c.gone {
			l.held--
		}
	}
}

// heldOf is how many connections of an address are kept for operations.
func (l *connLimit) heldOf(from source) (n int) {
	for _, c := range l.open[from] {
		if c.waiting > 0 {
			n++
		}
	}
	return n
}

type connKey struct{}

// withConn lets handlers find the connection that a request came on.
func withConn(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, conn)
}

// Hold keeps the connection of a request until release is called, whoever else comes:
// somebody who was let in waits for an operation to end. Of too many who wait the last
// ones are not kept.
func Hold(ctx context.Context) (release func()) {
	if c, ok := ctx.Value(connKey{}).(*limitedConn); ok {
		return c.hold()
	}
	return func() {}
}
