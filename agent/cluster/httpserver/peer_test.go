package httpserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
)

// elsewhere is a connection to another host.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 8009} }

// Both ways to find a connection's user know the same, and that a connection which
// its process has closed is nobody's: the kernel shows it as root's.
func TestUserOfAConnection(t *testing.T) {
	for name, c := range map[string]struct{ listen, dial string }{
		"IPv4":   {"127.0.0.1:0", "127.0.0.1"},
		"IPv6":   {"[::1]:0", "::1"},
		"mapped": {"[::]:0", "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", c.listen)
			if err != nil {
				t.Skip(err)
			}
			defer l.Close()
			client, err := net.Dial("tcp", net.JoinHostPort(c.dial, fmt.Sprint(l.Addr().(*net.TCPAddr).Port)))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			near := plain(server.LocalAddr().(*net.TCPAddr).AddrPort())
			far := plain(server.RemoteAddr().(*net.TCPAddr).AddrPort())
			ways := map[string]func(client, server netip.AddrPort) (uint32, error){"sock_diag": diagUser, "/proc": procUser, "both": peerUser}
			for way, find := range ways {
				if user, err := find(far, near); err != nil || user != uint32(os.Geteuid()) {
					t.Errorf("%s: %d, %v", way, user, err)
				}
				if user, err := find(netip.AddrPortFrom(far.Addr(), 1), near); !errors.Is(err, errNoPeer) {
					t.Errorf("%s: no such connection: %d, %v", way, user, err)
				}
				if user, err := find(netip.AddrPortFrom(near.Addr(), near.Port()), netip.AddrPortFrom(far.Addr(), 1)); !errors.Is(err, errNoPeer) {
					t.Errorf("%s: a listener: %d, %v", way, user, err)
				}
			}
			for end, conn := range map[string]net.Conn{"who asks": server, "who answers": client} {
				if user, err := UserOf(conn); err != nil || user != uint32(os.Geteuid()) {
					t.Errorf("UserOf of %s: %d, %v", end, user, err)
				}
			}
			if user, err := UserOf(elsewhere{client}); !errors.Is(err, errNoPeer) {
				t.Errorf("UserOf another host's: %d, %v", user, err)
			}
			client.Close()
			for way, find := range ways {
				if user, err := find(far, near); !errors.Is(err, errNoPeer) {
					t.Errorf("%s: closed: %d, %v", way, user, err)
				}
			}
			if user, err := UserOf(server); !errors.Is(err, errNoPeer) {
				t.Errorf("UserOf, closed: %d, %v", user, err)
			}
		})
	}
}
