package api

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// connLimit is a listener that holds at most max connections open. When one
// more comes, the oldest connection that no operation is waiting on is closed
// in its favour: clients that send or read slowly, or say nothing at all, can
// then never keep a health check out.
type connLimit struct {
	net.Listener
	max int

	mu   sync.Mutex
	open []*limitedConn // oldest first
}

// limitedConn is one connection of a connLimit.
type limitedConn struct {
	net.Conn
	limit *connLimit
	// waiting counts the operations in progress; guarded by limit.mu.
	waiting int
}

// Accept waits for the next connection that there is room for.
func (l *connLimit) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &limitedConn{Conn: conn, limit: l}
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

// admit registers c and returns the connection that must go, which is c itself
// when every other one has an operation waiting.
func (l *connLimit) admit(c *limitedConn) *limitedConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, c)
	if len(l.open) <= l.max {
		return nil
	}
	for _, o := range l.open {
		if o.waiting == 0 {
			return o
		}
	}
	return c
}

// Close closes the connection and makes room for another one.
func (c *limitedConn) Close() error {
	c.limit.mu.Lock()
	for i, o := range c.limit.open {
		if o == c {
			c.limit.open = append(c.limit.open[:i], c.limit.open[i+1:]...)
			break
		}
	}
	c.limit.mu.Unlock()
	return c.Conn.Close()
}

// hold keeps the connection from being closed for a newer one until release is
// called.
func (c *limitedConn) hold() (release func()) {
	add := func(n int) {
		c.limit.mu.Lock()
		defer c.limit.mu.Unlock()
		c.waiting += n
	}
	add(1)
	return func() { add(-1) }
}

type connKey struct{}

// withConn lets handlers find the connection that a request came on.
func withConn(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, conn)
}

// holdConn holds the connection of a request, if it is a limited one.
func holdConn(ctx context.Context) (release func()) {
	if c, ok := ctx.Value(connKey{}).(*limitedConn); ok {
		return c.hold()
	}
	return func() {}
}
