package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// The replicas stream again soon after the primary's postmaster was killed: a
// synchronous one that does not makes commits wait. LICTOR_ROUNDS asks for so many
// rounds, and for what docs/reliability.md promises of a machine that is not busy; else
// only what PostgreSQL does by itself, after wal_retrieve_retry_interval (5 s) and more, is too late.
func TestReplicasStreamAgain(t *testing.T) {
	rounds, limit := 2, 4*time.Second
	if text := os.Getenv("LICTOR_ROUNDS"); text != "" {
		rounds, limit = got(strconv.Atoi(text))(t), 2*time.Second
	}
	l := start(t, lab.Options{})
	s := l.Shard(0)
	longest := time.Duration(0)
	for round := range rounds {
		ctx := within(t)
		leader := got(s.AwaitHealthy(ctx))(t)
		must(t, s.AwaitSync(ctx))
		replicas := len(s.Members()) - 1
		forgetCrashes(ctx, t, leader)
		postmaster := got(leader.Postmaster())(t)
		must(t, postmaster.Signal(syscall.SIGKILL))
		await(ctx, t, "the postmaster still runs", func() error {
			if postmaster.Signal(syscall.Signal(0)) == nil {
				return fmt.Errorf("pid %d", postmaster.PID)
			}
			return nil
		})
		took := got(streamAgain(ctx, leader, replicas))(t)
		longest = max(longest, took)
		t.Logf("round %d: %d replicas stream %s after %s accepts connections", round+1, replicas, took.Round(time.Millisecond), leader.Name)
		if took > limit {
			t.Errorf("round %d: that is more than %s", round+1, limit)
		}
	}
	t.Logf("%d rounds, longest %s", rounds, longest.Round(time.Millisecond))
}

// forgetCrashes upgrades an agent in place: it would give the lease up otherwise when
// PostgreSQL ends for the third time within minutes.
func forgetCrashes(ctx context.Context, t *testing.T, m *lab.Member) {
	t.Helper()
	agent := m.Processes()[0]
	upgrades := func() int {
		log := got(os.ReadFile(agent.LogPath()))(t)
		return strings.Count(string(log), "going on with the lease of the agent's earlier run")
	}
	before := upgrades()
	must(t, agent.Signal(syscall.SIGUSR2))
	await(ctx, t, "the agent did not take up its own lease", func() error {
		if upgrades() == before {
			return errors.New("its log does not say so")
		}
		return nil
	})
	await(ctx, t, "the agent does not answer", func() error {
		status, body, err := m.Get(ctx, "/primary")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("GET /primary: %d %.200s", status, body)
		}
		return err
	})
}

// streamAgain waits until the restarted primary accepts connections and until that many
// replicas stream from it, and is the time between.
func streamAgain(ctx context.Context, m *lab.Member, replicas int) (time.Duration, error) {
	var accepts time.Time
	for ctx.Err() == nil {
		streaming, err := standbys(ctx, m)
		switch {
		case err != nil: // it does not accept yet
		case accepts.IsZero():
			accepts = time.Now()
			fallthrough
		default:
			if streaming == replicas {
				return time.Since(accepts), nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return 0, ctx.Err()
}

func standbys(ctx context.Context, m *lab.Member) (n int, err error) {
	conn, err := m.ConnectLocal(ctx, "postgres", nil)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").Scan(&n)
	return n, err
}

// A replica that follows a replica streams from it, by a slot there; after a switchover,
// too. A replica that may lead has spare slots for those that would stream from it then, one that
// may not has none: it would hold WAL back for ever.
func TestReplicaOfAReplica(t *testing.T) {
	l := labtest.New(t, lab.Options{
		Members: 3, Bouncers: -1, ConsulServers: 1, Async: true,
		Database: lab.Lictor{Edit: func(m *lab.Member, config map[string]any) {
			if m == m.Shard.Members()[2] {
				config["tags"] = map[string]any{"replicatefrom": m.Shard.Members()[1].Name, "nofailover": true}
			}
		}},
	})
	ctx := within(t)
	must(t, l.StartConsul(ctx))
	s := l.Shard(0)
	a, b, c := s.Members()[0], s.Members()[1], s.Members()[2]
	must(t, a.Start(ctx)) // it makes the shard
	got(s.AwaitLeader(ctx))(t)
	must(t, b.Start(ctx))
	must(t, c.Start(ctx))
	slots := func(m *lab.Member, streaming []*lab.Member, spare ...*lab.Member) {
		t.Helper()
		names := func(members []*lab.Member) string {
			var names []string
			for _, w := range members {
				names = append(names, cluster.SlotName(w.Name))
			}
			slices.Sort(names)
			return strings.Join(names, ",")
		}
		await(ctx, t, "the slots of "+m.Name, func() error {
			conn, err := m.ConnectLocal(ctx, "postgres", nil)
			if err != nil {
				return err
			}
			defer conn.Close(ctx)
			var active, all string
			err = conn.QueryRow(ctx, "SELECT COALESCE(string_agg(slot_name, ',' ORDER BY slot_name) FILTER (WHERE active), ''), "+
				"COALESCE(string_agg(slot_name, ',' ORDER BY slot_name), '') FROM pg_replication_slots").Scan(&active, &all)
			if wanted, total := names(streaming), names(append(spare, streaming...)); err == nil && (active != wanted || all != total) {
				err = fmt.Errorf("active %q of %q, want %q of %q", active, all, wanted, total)
			}
			return err
		})
	}
	of := func(members ...*lab.Member) []*lab.Member { return members }
	slots(a, of(b))
	slots(b, of(c), a)
	slots(c, nil)
	must(t, s.Switchover(ctx, a, b))
	slots(b, of(a, c))
	slots(a, nil, b, c)
	_ = got(s.AwaitHealthy(ctx))(t) // its key says that it runs
	must(t, s.Switchover(ctx, b, a))
	slots(a, of(b))
	slots(b, of(c), a)
	slots(c, nil)
}
