package agent

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// refusing is a port that refuses: it is taken, so that nobody else gets it, and nobody listens.
func refusing(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	testkit.Must(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	at, err := syscall.Getsockname(fd)
	testkit.Must(t, err)
	return at.(*syscall.SockaddrInet4).Port
}

// answering is a port that answers what it is asked with text, or nothing where there is none.
func answering(t *testing.T, text string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	ended := make(chan struct{})
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer func() { _ = conn.Close() }()
				if text == "" {
					<-ended
					return
				}
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = conn.Write([]byte(text))
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); close(ended); serving.Wait() })
	return l.Addr().(*net.TCPAddr).Port
}

// A host is there when its agent or its PostgreSQL answers, or when one of the two alone is refused: both
// are where no process runs any more, and nobody answers for a host that is lost.
func TestIsThere(t *testing.T) {
	const alive = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	peers, err := api.NewClient(config.Ctl{}, config.RestAPI{})
	testkit.Must(t, err)
	silent, refuses := "", "refuses"
	for _, c := range []struct {
		agent, postgres string
		want            bool
	}{
		{alive, "N", true},
		{alive, silent, true},
		{alive, refuses, true},
		{silent, "N", true},
		{refuses, "N", true},
		{refuses, silent, true},
		{silent, refuses, true},
		{silent, silent, false},
		{refuses, refuses, false},
	} {
		t.Run(fmt.Sprintf("%.8q %q", c.agent, c.postgres), func(t *testing.T) {
			t.Parallel()
			at := func(answer string) int {
				if answer == refuses {
					return refusing(t)
				}
				return answering(t, answer)
			}
			to := cluster.Member{
				Name: "b", ConnURL: fmt.Sprintf("postgres://127.0.0.1:%d/postgres", at(c.postgres)),
				APIURL: fmt.Sprintf("http://127.0.0.1:%d/patroni", at(c.agent)), Lictor: &cluster.MemberLictor{},
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if got := isThere(ctx, peers, to); got != c.want {
				t.Errorf("it is there: %t", got)
			}
		})
	}
}
