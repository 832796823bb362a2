package bouncer

import (
	"net"
	"sync"
	"testing"
)

// proxy passes TCP connections on, until it is cut.
type proxy struct {
	address string
	target  string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
	// hung, when it is not nil, is closed when the proxy passes data on again.
	hung chan struct{}
}

// hang makes the proxy keep its connections and take new ones, but pass nothing
// on, as a process does that was stopped.
func (p *proxy) hang(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hung != nil {
		close(p.hung)
		p.hung = nil
	}
	if on {
		p.hung = make(chan struct{})
	}
}

func (p *proxy) awaitThaw() {
	p.mu.Lock()
	hung := p.hung
	p.mu.Unlock()
	if hung != nil {
		<-hung
	}
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), target: target, conns: map[net.Conn]bool{}}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.pass(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.hang(false)
		p.set(true)
		running.Wait()
	})
	return p
}

func (p *proxy) pass(conn net.Conn) {
	defer conn.Close()
	if !p.add(conn) {
		return
	}
	defer p.remove(conn)
	up, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer up.Close()
	if !p.add(up) {
		return
	}
	defer p.remove(up)
	var half sync.WaitGroup
	half.Go(func() { p.copyUntilEnd(up, conn) })
	half.Go(func() { p.copyUntilEnd(conn, up) })
	half.Wait()
}

func (p *proxy) copyUntilEnd(to, from net.Conn) {
	defer to.Close()
	buffer := make([]byte, 1<<15)
	for {
		n, err := from.Read(buffer)
		p.awaitThaw()
		if _, e := to.Write(buffer[:n]); err != nil || e != nil {
			return
		}
	}
}

func (p *proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cut {
		p.conns[c] = true
	}
	return !p.cut
}

func (p *proxy) remove(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// set cuts the proxy or mends it.
func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for c := range p.conns {
			_ = c.Close()
		}
	}
}

// newHangingServer listens at an address whose connections are never answered.
func newHangingServer(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}
