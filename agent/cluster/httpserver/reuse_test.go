package httpserver

import (
	"context"
	"net"
	"net/http"
	"testing"
)

// A connection that its client has broken off, and that another process has made anew
// from the same port, is not the other process's: else a local user who fills the ports
// has his request taken for one of root's.
func TestPortThatAnotherHas(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := func(from net.Addr) (client, server net.Conn) {
		d := net.Dialer{LocalAddr: from}
		client, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		return client, server
	}
	asked := func(server net.Conn) error {
		ctx := context.WithValue(withConn(context.Background(), server), http.LocalAddrContextKey, server.LocalAddr())
		return NewAccess(AccessSettings{}).OnHost((&http.Request{RemoteAddr: server.RemoteAddr().String(), Header: http.Header{}}).WithContext(ctx))
	}
	// An address of this test's own: no other program gets the port when it is free.
	thief, theirs := open(&net.TCPAddr{IP: net.IPv4(127, 0, 77, 13)})
	if err := asked(theirs); err != nil {
		t.Fatal(err)
	}
	if err := thief.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	from := thief.LocalAddr()
	thief.Close()
	_, ours := open(from)
	if err := asked(ours); err != nil {
		t.Error(err)
	}
	if err := asked(theirs); err == nil {
		t.Error("a request is taken for one of whom has the port now")
	}
}
