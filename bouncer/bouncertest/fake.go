package bouncertest

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// FakePostgres answers every login with said.
func FakePostgres(t *testing.T, said pgproto3.BackendMessage) cluster.RouteMember {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if backend, err := FakeStartup(conn); err == nil {
				backend.Send(said)
				_ = backend.Flush()
			}
			_ = conn.Close()
		}
	})
	t.Cleanup(func() { _ = listener.Close(); served.Wait() })
	return cluster.RouteMember{Name: "db1", Host: "127.0.0.1", Port: listener.Addr().(*net.TCPAddr).Port}
}

// FakeStartup is a server's side until the client has said who it is: without TLS.
func FakeStartup(conn net.Conn) (*pgproto3.Backend, error) {
	backend := pgproto3.NewBackend(conn, conn)
	for {
		said, err := backend.ReceiveStartupMessage()
		if _, tls := said.(*pgproto3.SSLRequest); err != nil || !tls {
			return backend, err
		}
		if _, err := conn.Write([]byte("N")); err != nil {
			return nil, err
		}
	}
}

// Log collects output of several goroutines.
type Log struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
