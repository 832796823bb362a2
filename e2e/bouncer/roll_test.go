package bouncer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// visitors are clients that come and go as those of a pool do: each works on a
// connection for a while and leaves by itself.
type visitors struct {
	acked  atomic.Int64
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu   sync.Mutex
	errs []error
}

const (
	visitorsAtOnce = 20
	visitStays     = 30 // statements
)

func visit(ctx context.Context, s *lab.Shard) *visitors {
	ctx, cancel := context.WithCancel(ctx)
	v := &visitors{cancel: cancel}
	for range visitorsAtOnce {
		v.done.Go(func() {
			for ctx.Err() == nil {
				if err := v.once(ctx, s); err != nil && ctx.Err() == nil {
					v.mu.Lock()
					v.errs = append(v.errs, err)
					v.mu.Unlock()
				}
			}
		})
	}
	return v
}

func (v *visitors) once(ctx context.Context, s *lab.Shard) (err error) {
	conn, err := s.ConnectClient(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	for range visitStays {
		var one int
		if err := conn.QueryRow(ctx, "SELECT 1 FROM pg_sleep(0.01)").Scan(&one); err != nil {
			return err
		}
		v.acked.Add(1)
	}
	return nil
}

func (v *visitors) stop() error {
	v.cancel()
	v.done.Wait()
	return errors.Join(v.errs...)
}

// A bouncer.yml that is wrong when it is read again changes nothing.
func wrongConfiguration(t *testing.T, l *lab.Lab, _ *lab.Shard) {
	ctx, b := within(t), l.BouncerHosts()[0]
	path := filepath.Join(b.Dir, "bouncer.yml")
	good, err := os.ReadFile(path)
	must(t, err)
	t.Cleanup(func() { must(t, os.WriteFile(path, good, 0o600)) })
	must(t, os.WriteFile(path, append(good[:len(good):len(good)], "\nno_such_setting: 1\n"...), 0o600))
	p := b.Process("bouncer")
	must(t, p.Signal(syscall.SIGHUP))
	await(ctx, t, "the bouncer does not say so", func() error {
		text, err := os.ReadFile(p.LogPath())
		if err == nil && !strings.Contains(string(text), "the configuration stays as it was") {
			err = errors.New("not yet")
		}
		return err
	})
	must(t, b.Healthy(ctx))
}

// Two bouncers and their PgBouncers are restarted one after the other, as
// docs/bouncer.md says, and no client sees an error.
func rolling(t *testing.T, l *lab.Lab, s *lab.Shard) {
	ctx := within(t)
	v := visit(ctx, s)
	t.Cleanup(func() { _ = v.stop() })
	for _, b := range l.BouncerHosts() {
		busy(ctx, t, l, b)
		command(ctx, t, l, b, "drain", "--wait", "1m")
		must(t, b.Process("pgbouncer").Kill(ctx))
		must(t, b.Process("bouncer").Stop(ctx))
		must(t, b.Start(ctx))
		await(ctx, t, b.Name+" does not answer", func() error { _, err := statusOf(ctx, l, b); return err })
		command(ctx, t, l, b, "undrain")
		await(ctx, t, b.Name+" is not healthy", func() error { return b.Healthy(ctx) })
		busy(ctx, t, l, b)
	}
	if err := v.stop(); err != nil {
		t.Errorf("clients saw errors: %v", err)
	}
	t.Logf("%d statements", v.acked.Load())
}

// busy waits until the load balancer sends clients to a pooler.
func busy(ctx context.Context, t *testing.T, l *lab.Lab, b *lab.Bouncer) {
	t.Helper()
	await(ctx, t, b.Name+" has no clients", func() error {
		one, err := statusOf(ctx, l, b)
		if err == nil && (one.Clients == nil || *one.Clients == 0) {
			err = errors.New("none yet")
		}
		return err
	})
}

// command runs one of `lictor bouncer`'s on the pooler's host.
func command(ctx context.Context, t *testing.T, l *lab.Lab, b *lab.Bouncer, args ...string) {
	t.Helper()
	args = append([]string{"bouncer"}, args...)
	args = append(args, filepath.Join(b.Dir, "bouncer.yml"))
	p, err := b.Run(lab.Spec{Name: fmt.Sprintf("%s-%d", args[1], time.Now().UnixNano()), Path: l.Options.Programs.Lictor, Args: args})
	must(t, err)
	select {
	case <-p.Done():
	case <-ctx.Done():
		t.Fatalf("lictor %v: %v", args, ctx.Err())
	}
	if err := p.ExitError(); err != nil {
		output, _ := os.ReadFile(p.LogPath()) // the error alone says enough
		t.Fatalf("lictor %v: %v: %s", args, err, output)
	}
}

// A replica that falls behind in replaying takes no more readers, until it is close
// again.
func laggingReplica(t *testing.T, _ *lab.Lab, s *lab.Shard) {
	ctx := within(t)
	leader := healthy(ctx, t, s)
	replicas, err := s.Replicas(ctx)
	must(t, err)
	late := replicas[0]
	readers := func(complaint string, want ...string) {
		t.Helper()
		await(ctx, t, complaint, func() error {
			snapshot, err := s.Snapshot(ctx)
			var names []string
			for _, r := range snapshot.Route.Value.Replicas {
				names = append(names, r.Name)
			}
			slices.Sort(names)
			slices.Sort(want)
			if err == nil && !slices.Equal(names, want) {
				err = fmt.Errorf("%v take them", names)
			}
			return err
		})
	}
	readers("not all replicas take readers", late.Name, replicas[1].Name)
	execute(ctx, t, late, "SELECT pg_wal_replay_pause()")
	execute(ctx, t, leader, "CREATE TABLE much AS SELECT repeat('x', 1000) FROM generate_series(1, 25000)")
	readers("the replica still takes readers", replicas[1].Name)
	execute(ctx, t, late, "SELECT pg_wal_replay_resume()")
	readers("the replica does not come back", late.Name, replicas[1].Name)
}

func execute(ctx context.Context, t *testing.T, m *lab.Member, sql string) {
	t.Helper()
	conn, err := m.Connect(ctx, "postgres")
	must(t, err)
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql)
	must(t, err)
}
