package bouncer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// matrix runs every fault in every phase: go test ./e2e/bouncer -run TestBouncer/faults-in-phases -matrix
var matrix = flag.Bool("matrix", false, "every fault in every phase of a handover, which takes some ten minutes")

// consulCut is for how long Consul is gone.
const consulCut = 2 * time.Second

// scene is a handover under way.
type scene struct {
	lab       *lab.Lab
	shard     *lab.Shard
	old, next *lab.Member
}

// phases of a handover, in order; each tells whether it has been reached.
var phases = []struct {
	name    string
	reached func(context.Context, *scene) (bool, error)
}{
	{"announced", func(ctx context.Context, s *scene) (bool, error) {
		var pair *api.KVPair
		err := s.lab.Consul(ctx, func(ctx context.Context, c *api.Client) (err error) {
			pair, _, err = c.KV().Get(s.shard.Keys.Handover(), new(api.QueryOptions).WithContext(ctx))
			return err
		})
		return pair != nil && pair.Session != "", err
	}},
	{"paused", func(ctx context.Context, s *scene) (bool, error) {
		for _, b := range s.lab.BouncerHosts() {
			one, err := statusOf(ctx, s.lab, b)
			if shard := one.Shards["service/"+s.shard.Name]; err != nil || !shard.Paused || shard.Handover == "" {
				return false, err
			}
		}
		return true, nil
	}},
	{"stopped", func(_ context.Context, s *scene) (bool, error) {
		_, err := s.old.PostmasterPID()
		return err != nil, nil
	}},
	{"released", func(ctx context.Context, s *scene) (bool, error) {
		snapshot, err := s.shard.Snapshot(ctx)
		return snapshot.LeaderName() != s.old.Name || snapshot.Leader.Session == "", err
	}},
	{"promoted", func(ctx context.Context, s *scene) (bool, error) {
		one, err := s.next.Status(ctx)
		return one.Role == cluster.RolePrimary, err
	}},
	{"routed", func(ctx context.Context, s *scene) (bool, error) {
		snapshot, err := s.shard.Snapshot(ctx)
		r := snapshot.Route.Value
		return r.Leader.Name == s.next.Name && r.State == cluster.RouteOpen, err
	}},
}

// faults strike and are mended again at once.
var faults = []struct {
	name   string
	strike func(context.Context, *scene) error
}{
	{"pgbouncer-killed", restart(func(s *scene) *lab.Process { return s.lab.BouncerHosts()[0].Process("pgbouncer") })},
	{"bouncer-killed", restart(func(s *scene) *lab.Process { return s.lab.BouncerHosts()[0].Process("bouncer") })},
	{"leader-killed", func(ctx context.Context, s *scene) error {
		return errors.Join(s.old.Kill(ctx), s.old.Start(ctx))
	}},
	{"successor-killed", func(ctx context.Context, s *scene) error {
		return errors.Join(s.next.Kill(ctx), s.next.Start(ctx))
	}},
	{"consul-cut", func(ctx context.Context, s *scene) error {
		var errs []error
		for _, c := range s.lab.ConsulServers() {
			errs = append(errs, c.Freeze(ctx))
		}
		// This is the length of the fault, nothing is awaited.
		timer := time.NewTimer(consulCut)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		for _, c := range s.lab.ConsulServers() {
			errs = append(errs, c.Thaw(ctx))
		}
		return errors.Join(errs...)
	}},
}

func restart(which func(*scene) *lab.Process) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		p := which(s)
		return errors.Join(p.Kill(ctx), p.Start())
	}
}

// chosen are the pairs that `make test` runs: each fault and each phase once.
var chosen = map[string]string{
	"announced": "bouncer-killed", "paused": "leader-killed", "stopped": "pgbouncer-killed",
	"released": "successor-killed", "promoted": "consul-cut", "routed": "leader-killed",
}

// One lab for all: what each test leaves is a whole shard with two poolers.
func TestBouncer(t *testing.T) {
	l, s := serving(t)
	if tail := l.LogTail(1000); !strings.Contains(tail, "database system is ready") {
		t.Error("what is told of a failed test has nothing of PostgreSQL's log")
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *lab.Lab, *lab.Shard)
	}{
		{"wrong-configuration", wrongConfiguration}, {"on-busy-refuse", onBusyRefuse}, {"rolling", rolling}, {"lagging-replica", laggingReplica}, {"faults-in-phases", faultsInPhases},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, l, s) })
	}
}

// Whatever is lost in whatever phase of a handover: afterwards nothing is paused,
// the shard has one primary, and no acknowledged row is lost.
func faultsInPhases(t *testing.T, l *lab.Lab, s *lab.Shard) {
	for _, phase := range phases {
		for _, fault := range faults {
			if !*matrix && chosen[phase.name] != fault.name {
				continue
			}
			t.Run(phase.name+"/"+fault.name, func(t *testing.T) {
				ctx := within(t)
				var works []*lab.Workload
				for _, b := range l.BouncerHosts() { // each PgBouncer by itself
					w := s.StartWorkload(ctx, lab.WorkloadOptions{Address: b.PgBouncer, ReadEvery: -1})
					t.Cleanup(w.Stop)
					labtest.AwaitWrites(ctx, t, w)
					works = append(works, w)
				}
				strikeIn(ctx, t, l, s, phase.reached, fault.strike)
				healthy(ctx, t, s)
				for _, w := range works {
					labtest.AwaitWrites(ctx, t, w)
					w.Stop()
				}
				atRest(ctx, t, l, s, works)
			})
		}
	}
}

// strikeIn begins a handover and lets a fault strike when a phase is reached, or
// when the handover is over without it.
func strikeIn(ctx context.Context, t *testing.T, l *lab.Lab, s *lab.Shard, reached func(context.Context, *scene) (bool, error), strike func(context.Context, *scene) error) {
	t.Helper()
	old := healthy(ctx, t, s)
	snapshot, err := s.Snapshot(ctx)
	must(t, err)
	at := &scene{l, s, old, s.Member(snapshot.Sync.Value.Standbys()[0])}
	over := make(chan error, 1)
	go func() { over <- s.Switchover(ctx, at.old, at.next) }()
	ended := false
	await(ctx, t, "the phase is not reached", func() error {
		select {
		case err := <-over:
			ended = true
			t.Logf("the request is over: %v", err)
		default:
		}
		yes, err := reached(ctx, at)
		if !yes && !ended {
			return fmt.Errorf("not yet (%w)", err)
		}
		return nil
	})
	must(t, strike(ctx, at))
	if !ended {
		t.Logf("the request's answer: %v", <-over) // a fault may fail it
	}
}

// atRest checks what must hold after every handover.
func atRest(ctx context.Context, t *testing.T, l *lab.Lab, s *lab.Shard, works []*lab.Workload) {
	t.Helper()
	var primaries []string
	for _, m := range s.Members() {
		one, err := m.Status(ctx)
		must(t, err)
		if one.Role == cluster.RolePrimary {
			primaries = append(primaries, m.Name)
		}
	}
	if len(primaries) != 1 {
		t.Errorf("primaries: %v", primaries)
	}
	for _, b := range l.BouncerHosts() {
		await(ctx, t, b.Name+" is not at rest", func() error {
			one, err := statusOf(ctx, l, b)
			if err != nil {
				return err
			}
			shard := one.Shards["service/"+s.Name]
			if shard.Paused || shard.Held || shard.Handover != "" || len(primaries) == 1 && shard.Leader != primaries[0] {
				return fmt.Errorf("%+v", shard)
			}
			return b.Healthy(ctx)
		})
	}
	for _, w := range works {
		loss, err := w.LostAcked(ctx)
		must(t, err)
		if loss.Lost > 0 {
			t.Errorf("%d of %d acknowledged rows are gone: %v", loss.Lost, loss.Acked, loss.IDs)
		}
	}
}
