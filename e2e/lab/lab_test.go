package lab_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// plainPooler routes every shard to the member that is its first.
func plainPooler() lab.PlainPgBouncer {
	return lab.PlainPgBouncer{Route: func(s *lab.Shard) string { return s.Members()[0].Postgres }}
}

// idle is database software that starts nothing.
type idle struct{}

func (idle) Install(*lab.Lab, *lab.Member) ([]lab.Spec, error) { return nil, nil }

// substrates runs f on both.
func substrates(t *testing.T, f func(t *testing.T, substrate lab.Substrate)) {
	t.Run("loopback", func(t *testing.T) { f(t, lab.Loopback) })
	t.Run("netns", func(t *testing.T) {
		labtest.RequireNetns(t)
		f(t, lab.Netns)
	})
}

func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestInfrastructure: Consul, PgBouncer and HAProxy come up, lose a host and
// come back, on both substrates.
func TestInfrastructure(t *testing.T) {
	substrates(t, func(t *testing.T, substrate lab.Substrate) {
		ctx := timeout(t, 2*time.Minute)
		l := labtest.New(t, lab.Options{Substrate: substrate, Database: idle{}, Pooler: plainPooler()})
		if err := l.Start(ctx); err != nil {
			t.Fatal(err)
		}
		conn, err := l.Dial(ctx, "tcp", l.Balancer().Listen)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()

		// Two of three servers are enough, and the third comes back.
		lost := l.ConsulServers()[0]
		if err := lost.PowerOff(ctx); err != nil {
			t.Fatal(err)
		}
		if lost.Process("consul").Running() {
			t.Fatal("the server runs after its host lost power")
		}
		if err := l.AwaitConsul(ctx); err != nil {
			t.Fatal(err)
		}
		if err := lost.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err := l.AwaitConsul(ctx); err != nil {
			t.Fatal(err)
		}

		processes := l.Hosts()
		if err := l.Close(ctx); err != nil {
			t.Fatal(err)
		}
		for _, h := range processes {
			for _, p := range h.Processes() {
				if p.Running() {
					t.Errorf("%s on %s runs after Close", p.Name, h.Name)
				}
			}
		}
		if _, err := os.Stat(l.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("directory after Close: %v", err)
		}
	})
}

// TestPatroniFailsOver proves the lab itself on software whose behaviour is
// known: a shard comes up, its primary's host is lost, another member takes
// over, the lost host comes back as a replica, and the clients' records say
// what happened.
func TestPatroniFailsOver(t *testing.T) {
	if _, err := os.Stat("/usr/bin/patroni"); err != nil {
		t.Skip("Patroni is not installed")
	}
	substrates(t, func(t *testing.T, substrate lab.Substrate) {
		ctx := timeout(t, 5*time.Minute)
		l := labtest.New(t, lab.Options{
			Substrate: substrate, TTL: 20, LoopWait: 2, RetryTimeout: 3,
			Database: lab.Patroni{}, Pooler: plainPooler(),
		})
		if err := l.Start(ctx); err != nil {
			t.Fatal(err)
		}
		shard := l.Shard(0)
		leader, err := shard.AwaitHealthy(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := shard.Prepare(ctx); err != nil {
			t.Fatal(err)
		}
		clients := shard.StartWorkload(ctx, lab.WorkloadOptions{Address: leader.Postgres})
		defer clients.Stop()
		awaitAcks(ctx, t, clients.Writes, 50)

		begun := time.Now()
		if err := leader.PowerOff(ctx); err != nil {
			t.Fatal(err)
		}
		for _, p := range leader.Processes() {
			if p.Running() {
				t.Fatalf("%s runs after its host lost power", p.Name)
			}
		}
		successor, err := shard.AwaitLeader(ctx, leader)
		if err != nil {
			t.Fatal(err)
		}
		if err := leader.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := shard.AwaitHealthy(ctx); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		if gap := clients.Writes.LongestGap(begun, now); gap < time.Second {
			t.Errorf("a lost host cost a write gap of %v only: it was not lost", gap)
		}
		if n := len(clients.Writes.Errors(begun, now)); n == 0 {
			t.Error("the clients saw no error, though nobody led them to the new primary")
		}
		loss, err := clients.LostAcked(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if loss.Acked < 50 || loss.Lost != 0 {
			t.Errorf("acknowledged %d, lost %d (%v)", loss.Acked, loss.Lost, loss.IDs)
		}
		if status, _, err := successor.Get(ctx, "/primary"); err != nil || status != http.StatusOK {
			t.Errorf("GET /primary of the successor: %d, %v", status, err)
		}
	})
}

// awaitAcks waits until a client got n acknowledgements.
func awaitAcks(ctx context.Context, t *testing.T, h *lab.History, n int64) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for h.Acked() < n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d of %d operations acknowledged, %d errors", h.Acked(), n, h.ErrorCount())
		}
	}
}

// TestFaultsOfTheNetwork: an isolated host is silent in both directions, a cut
// in one only, and healing takes all back.
func TestFaultsOfTheNetwork(t *testing.T) {
	labtest.RequireNetns(t)
	ctx := timeout(t, 2*time.Minute)
	l := labtest.New(t, lab.Options{Substrate: lab.Netns, Database: idle{}, Bouncers: -1, ConsulServers: 3})
	if err := l.StartConsul(ctx); err != nil {
		t.Fatal(err)
	}
	server := l.ConsulServers()[0]
	reachable := func(ctx context.Context) error {
		conn, err := l.Dial(ctx, "tcp", server.HTTP)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := server.Isolate(ctx); err != nil {
		t.Fatal(err)
	}
	// Which of the two deadlines, the context's or the socket's, is seen first is
	// chance; both are timeouts, and a host that answers gives neither.
	var silent net.Error
	limited, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if err := reachable(limited); !errors.As(err, &silent) || !silent.Timeout() {
		t.Fatalf("an isolated host answers: %v", err)
	}
	if err := server.Heal(ctx); err != nil {
		t.Fatal(err)
	}
	if err := reachable(ctx); err != nil {
		t.Fatalf("a healed host does not answer: %v", err)
	}
	// What the first server says to the second is lost, so the leader that the
	// others elect, or are, stays reachable for writes.
	if err := server.CutTo(ctx, l.ConsulServers()[1].Host); err != nil {
		t.Fatal(err)
	}
	if err := reachable(ctx); err != nil {
		t.Fatalf("a cut between two others is felt: %v", err)
	}
	if err := l.AwaitConsul(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestFreeze: a frozen host answers nothing until it is thawed.
func TestFreeze(t *testing.T) {
	ctx := timeout(t, time.Minute)
	l := labtest.New(t, lab.Options{Database: idle{}, Bouncers: -1, ConsulServers: 1})
	if err := l.StartConsul(ctx); err != nil {
		t.Fatal(err)
	}
	server := l.ConsulServers()[0]
	ask := func(d time.Duration) error {
		return l.Consul(ctx, func(ctx context.Context, client *api.Client) error {
			ctx, cancel := context.WithTimeout(ctx, d)
			defer cancel()
			_, _, err := client.KV().Get("lab/ready", new(api.QueryOptions).WithContext(ctx))
			return err
		})
	}
	if err := server.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if err := ask(300 * time.Millisecond); err == nil {
		t.Fatal("a frozen server answers")
	}
	if err := server.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.AwaitConsul(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestProcessLifecycle: a process is started once at a time, is signalled, and
// can be started again.
func TestProcessLifecycle(t *testing.T) {
	ctx := timeout(t, time.Minute)
	l := labtest.New(t, lab.Options{Database: idle{}, Bouncers: -1, ConsulServers: 1})
	if err := l.StartConsul(ctx); err != nil {
		t.Fatal(err)
	}
	p := l.ConsulServers()[0].Process("consul")
	if err := p.Start(); err == nil {
		t.Error("a second start of a running process is no error")
	}
	first := p.PID()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if p.Running() || p.ExitError() == nil {
		t.Errorf("after SIGKILL: running %v, exit %v", p.Running(), p.ExitError())
	}
	if err := l.ConsulServers()[0].Start(ctx); err != nil {
		t.Fatal(err)
	}
	if !p.Running() || p.PID() == first {
		t.Errorf("after the second start: running %v, pid %d as before", p.Running(), p.PID())
	}
}
