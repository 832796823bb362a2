package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
)

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
			client.Close()
			for way, find := range ways {
				if user, err := find(far, near); !errors.Is(err, errNoPeer) {
					t.Errorf("%s: closed: %d, %v", way, user, err)
				}
			}
		})
	}
}

// A plain patroni.yml has no restapi.authentication: root changes things from this
// host, whatever address is used, and other users do not.
func TestChangesFromThisHost(t *testing.T) {
	node := fixed(primaryState(time.Now()))
	node.reload = func(context.Context) error { return nil }
	server := start(t, config.RestAPI{}, node)
	if got := ask(t, "POST", server.url+"/reload", ""); got.status != 202 {
		t.Errorf("ours: %d %s", got.status, got.body)
	}
	for _, header := range []string{"X-Forwarded-For", "Forwarded", "Via"} {
		got := ask(t, "POST", server.url+"/reload", "", func(r *http.Request) { r.Header.Set(header, "10.9.9.9") })
		if got.status != 403 || !strings.Contains(got.body, "a proxy sent it") {
			t.Errorf("by a proxy: %d %s", got.status, got.body)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	host, port, _ := strings.Cut(strings.TrimPrefix(server.url, "http://"), ":")
	cmd := exec.Command("bash", "-c", `exec 3<>/dev/tcp/$0/$1; printf 'POST /reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n' >&3; cat <&3`, host, port)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	if err != nil || !bytes.HasPrefix(out, []byte("HTTP/1.1 403")) || !bytes.Contains(out, []byte("the user with the number 65534 sent it")) {
		t.Errorf("another user: %v %s", err, out)
	}
}
