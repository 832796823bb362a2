package systemd

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen is systemd's end of the socket.
func listen(t *testing.T, watchdog string) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", watchdog)
	said := make(chan string, 100)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return // the test has ended
			}
			if n > 0 {
				said <- string(buf[:n])
			}
		}
	}()
	return said
}

func hear(t *testing.T, said <-chan string) string {
	t.Helper()
	select {
	case s := <-said:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("systemd heard nothing")
		return ""
	}
}

func TestNotifier(t *testing.T) {
	said := listen(t, "30000000")
	n, err := New()
	if err != nil || n == nil {
		t.Fatalf("%v, %v", n, err)
	}
	if n.KeepAliveEvery() != 10*time.Second {
		t.Errorf("keepalives every %s, want a third of 30 s", n.KeepAliveEvery())
	}
	// What is said while nobody sends is told in order, and once.
	n.Ready()
	n.Status("replica")
	n.Alive()
	n.Alive()
	n.Status("leader")
	n.Reloading()
	n.Ready()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	for _, want := range []string{"READY=1", "STATUS=leader", "WATCHDOG=1", "RELOADING=1\nMONOTONIC_USEC=", "READY=1"} {
		if got := hear(t, said); !strings.HasPrefix(got, want) {
			t.Fatalf("systemd heard %q, want %q", got, want)
		}
	}
	n.Status("leader") // nothing new
	n.Alive()
	if got := hear(t, said); got != "WATCHDOG=1" {
		t.Fatalf("systemd heard %q, want a keepalive", got)
	}
	n.MayHang(32 * time.Second)
	if got := hear(t, said); got != "WATCHDOG_USEC=62000000" || n.KeepAliveEvery() != 10*time.Second {
		t.Fatalf("systemd heard %q, want the unit's 30 s and 32 s; keepalives every %s", got, n.KeepAliveEvery())
	}
	n.Stopping()
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := hear(t, said); got != "STOPPING=1" {
		t.Fatalf("systemd heard %q, want the end", got)
	}
}

func TestNotStartedBySystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n, err := New()
	if n != nil || err != nil {
		t.Fatalf("%v, %v", n, err)
	}
	n.Ready()
	n.Status("replica")
	n.Alive()
	n.MayHang(time.Second)
	if err := n.Run(t.Context()); err != nil || n.KeepAliveEvery() != 0 {
		t.Fatal(err)
	}
}
