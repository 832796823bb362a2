package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// fakeConsole lets in whoever comes, at a TCP port of this process.
func fakeConsole(t *testing.T) *pgbouncer.Conn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		backend, err := bouncertest.FakeStartup(conn)
		if err != nil {
			return
		}
		backend.Send(&pgproto3.AuthenticationOk{})
		backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		if backend.Flush() == nil {
			_, _ = backend.Receive() // until the client goes
		}
	}()
	address, err := pgbouncer.ParseAddress(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgbouncer.Connect(t.Context(), pgbouncer.Options{Address: address, User: "pooler"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); _ = listener.Close(); <-served })
	return conn
}

// fullListener is an address that answers no attempt to connect: nobody accepts there, and there
// is room for none.
func fullListener(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*unix.SockaddrInet4).Port))
	for full := false; !full; {
		conn, err := net.DialTimeout("tcp", at.String(), 100*time.Millisecond)
		if full = err != nil; !full {
			t.Cleanup(func() { _ = conn.Close() })
		}
	}
	return at
}

// connecting counts the attempts to connect to an address, and those of which own is true.
func connecting(t *testing.T, to netip.AddrPort, own map[uint32]bool) (all, ours int) {
	t.Helper()
	if _, err := anySocket(t.Context(), func(s tcpSocket) bool {
		if s.connecting() && s.remote == to {
			all++
			if own[s.inode] {
				ours++
			}
		}
		return false
	}); err != nil {
		t.Fatal(err)
	}
	return all, ours
}

// Of the attempts to connect to a deposed primary PgBouncer's are closed, and no other program's,
// a monitoring's for one: whoever has the console's other end is PgBouncer.
func TestAttemptsOfOthersAreNotClosed(t *testing.T) {
	if !canCloseSockets(t.Context()) {
		t.Skip("closing sockets is not permitted here")
	}
	console, at := fakeConsole(t), fullListener(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	other := exec.CommandContext(ctx, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", at.Addr(), at.Port()))
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	attempt := make(chan error, 1)
	go func() {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
		if err == nil {
			_ = conn.Close()
		}
		attempt <- err
	}()
	var own map[uint32]bool
	for all, ours := 0, 0; all != 2 || ours != 1; all, ours = connecting(t, at, own) {
		var err error
		if own, err = ownSockets(t.Context(), console); err != nil {
			t.Fatal(err)
		}
	}
	gone := places{addresses: map[netip.AddrPort]bool{at: true}}
	closed, err := closeSockets(t.Context(), lostSockets(slices.Values([]pgbouncer.Server(nil)), gone, func(inode uint32) bool { return own[inode] }))
	if err != nil || closed != 1 {
		t.Errorf("%d were closed, %v", closed, err)
	}
	if err := <-attempt; !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("PgBouncer's attempt: %v", err)
	}
	if all, _ := connecting(t, at, own); all != 1 {
		t.Errorf("%d attempts are left, not the other program's", all)
	}
	cancel()
	_ = other.Wait() // it was killed
}
