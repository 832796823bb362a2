// Package labtest builds labs for tests.
package labtest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// closeTimeout bounds how long a lab that is being closed waits for killed
// processes.
const closeTimeout = 30 * time.Second

// New builds a lab, not yet started, that lives as long as the test: in a directory of its own
// when opts names none, closed when the test ends, panics, or the test binary
// is told to stop. When the test failed, the ends of all logs are shown; with
// LAB_KEEP set in the environment the files stay, too.
func New(t testing.TB, opts lab.Options) *lab.Lab {
	t.Helper()
	if opts.Dir == "" {
		dir, err := os.MkdirTemp("", "lictor-lab-")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL's user must get in
			t.Fatal(err)
		}
		opts.Dir = dir
	}
	if opts.Progress == nil {
		opts.Progress = func(line string) { t.Log(line) }
	}
	l, err := lab.New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	stopWatching := closeOnSignal(l)
	t.Cleanup(func() {
		stopWatching()
		for _, problem := range repeatedKeys(l.Dir) {
			t.Error(problem)
		}
		if t.Failed() {
			t.Log(l.LogTail(25))
		}
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		end := l.Close
		if t.Failed() && os.Getenv("LAB_KEEP") != "" {
			t.Logf("the lab's files stay in %s", l.Dir)
			end = l.Stop
		}
		if err := end(ctx); err != nil {
			t.Errorf("closing the lab: %v", err)
		}
	})
	return l
}

// Serving builds a lab and starts it, until every shard is whole and has the
// application's database; with bouncers, until clients are served through the
// load balancer, too.
func Serving(ctx context.Context, t testing.TB, opts lab.Options) *lab.Lab {
	t.Helper()
	l := New(t, opts)
	if err := l.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, s := range l.Shards() {
		if _, err := s.AwaitHealthy(ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.Prepare(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if l.Balancer() != nil {
		if err := l.AwaitServing(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// AwaitWrites waits until the clients have had some more rows acknowledged.
func AwaitWrites(ctx context.Context, t testing.TB, w *lab.Workload) {
	t.Helper()
	from := w.Writes.Acked()
	testkit.Await(ctx, t, "clients cannot write", func() error {
		if n := w.Writes.Acked(); n < from+20 {
			return fmt.Errorf("%d rows acknowledged since", n-from)
		}
		return nil
	})
}

// closeOnSignal closes the lab before the process dies of SIGINT or SIGTERM.
// The function that it returns ends that.
func closeOnSignal(l *lab.Lab) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case sig := <-signals:
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			defer cancel()
			_ = l.Close(ctx)
			signal.Reset(sig)
			_ = syscall.Kill(os.Getpid(), sig.(syscall.Signal))
		case <-quit:
		}
	}()
	return func() {
		signal.Stop(signals)
		close(quit)
		<-ended
	}
}

// RequireNetns skips the test where hosts cannot be network namespaces.
func RequireNetns(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("hosts that can be cut off are network namespaces, which only root can make")
	}
}
