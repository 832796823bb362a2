package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// One lab for what ends as it began: a whole shard with poolers, under clients.
func TestShard(t *testing.T) {
	l := start(t, lab.Options{})
	s := l.Shard(0)
	ctx := within(t)
	must(t, s.Prepare(ctx))
	must(t, l.AwaitServing(ctx))
	must(t, l.AwaitPoolers(ctx))

	t.Run("three members started at once made one cluster", func(t *testing.T) {
		ctx := within(t)
		ids := map[string]bool{}
		for _, m := range s.Members() {
			ids[got(m.Status(ctx))(t).SystemIdentifier] = true
		}
		if len(ids) != 1 {
			t.Errorf("system identifiers: %v", ids)
		}
	})

	t.Run("bouncers that may close sockets free the clients of a lost primary by that", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		must(t, l.Consul(within(t), func(ctx context.Context, c *api.Client) error {
			pairs, _, err := c.KV().List(cluster.NewKeys("", "", "").Bouncers(), new(api.QueryOptions).WithContext(ctx))
			for _, pair := range pairs {
				var b cluster.Bouncer
				if err := json.Unmarshal(pair.Value, &b); err != nil || b.Frees != cluster.FreesBySockets {
					t.Errorf("%s frees them by %q, %v", pair.Key, b.Frees, err)
				}
			}
			if len(pairs) == 0 {
				t.Error("no bouncers")
			}
			return err
		}))
	})

	t.Run("switchover", func(t *testing.T) {
		ctx := within(t)
		old := got(s.Leader(ctx))(t)
		var next *lab.Member
		clients(t, s, func(ctx context.Context) {
			snapshot := got(s.Snapshot(ctx))(t)
			next = s.Member(snapshot.Sync.Value.Standbys()[0])
			must(t, s.Switchover(ctx, old, next))
		})
		if leader := got(s.Leader(ctx))(t); leader != next {
			t.Errorf("leader: got %s, want %s", leader.Name, next.Name)
		}
		h := got(s.Snapshot(ctx))(t).History.Value
		if len(h) == 0 || h[len(h)-1].NewLeader != next.Name {
			t.Errorf("history: %+v", h)
		}
	})

	t.Run("switchover to a member that does not exist is refused", func(t *testing.T) {
		ctx := within(t)
		leader := got(s.Leader(ctx))(t)
		status, answer, err := leader.Post(ctx, "/switchover", map[string]string{"leader": leader.Name, "candidate": "ghost"})
		must(t, err)
		if status != 412 || !strings.Contains(answer, "candidate") {
			t.Errorf("got %d %q", status, answer)
		}
	})

	t.Run("PostgreSQL killed: the leader starts it again", func(t *testing.T) {
		ctx := within(t)
		leader := got(s.AwaitHealthy(ctx))(t)
		before := got(leader.Status(ctx))(t)
		clients(t, s, func(ctx context.Context) {
			pm := got(leader.Postmaster())(t)
			must(t, pm.Signal(syscall.SIGKILL))
		})
		after := got(leader.Status(ctx))(t)
		if now := got(s.Leader(ctx))(t); now != leader || after.Timeline != before.Timeline {
			t.Errorf("leader %s on timeline %d, was %s on %d", now.Name, after.Timeline, leader.Name, before.Timeline)
		}
	})

	t.Run("agent killed and restarted within its lease: nothing happens", func(t *testing.T) {
		ctx := within(t)
		leader := got(s.AwaitHealthy(ctx))(t)
		pid := got(leader.PostmasterPID())(t)
		w := clients(t, s, func(ctx context.Context) {
			must(t, leader.Process("agent").Kill(ctx))
			must(t, leader.Process("agent").Start())
			await(ctx, t, "the agent is not back as the leader", func() error {
				status, body, err := leader.Get(ctx, "/primary")
				if err == nil && status != 200 {
					err = fmt.Errorf("GET /primary: %d %.200s", status, body)
				}
				return err
			})
		})
		if n := w.Writes.ErrorCount(); n > 0 {
			t.Errorf("clients saw %d errors: %v", n, w.Writes.Errors(time.Time{}, time.Now()))
		}
		if now := got(leader.PostmasterPID())(t); now != pid {
			t.Errorf("PostgreSQL was restarted: pid %d, was %d", now, pid)
		}
	})

	t.Run("agent killed for good: its guard ends PostgreSQL before another member leads", func(t *testing.T) {
		ctx := within(t)
		old := got(s.AwaitHealthy(ctx))(t)
		must(t, s.AwaitSync(ctx))
		postmaster := got(old.Postmaster())(t)
		clients(t, s, func(ctx context.Context) {
			must(t, old.Process("agent").Kill(ctx))
			got(s.AwaitLeader(ctx, old))(t)
			if err := postmaster.Signal(syscall.Signal(0)); err == nil {
				t.Error("the old primary still runs while another member leads")
			}
			must(t, old.Start(ctx))
		})
	})

	t.Run("host lost: another member leads, the lost one comes back", func(t *testing.T) {
		ctx := within(t)
		old := got(s.AwaitHealthy(ctx))(t)
		must(t, s.AwaitSync(ctx))
		clients(t, s, func(ctx context.Context) {
			must(t, old.Kill(ctx))
			got(s.AwaitLeader(ctx, old))(t)
			must(t, old.Start(ctx))
		})
	})

	t.Run("data directory lost: the member is cloned anew", func(t *testing.T) {
		ctx := within(t)
		leader := got(s.AwaitHealthy(ctx))(t)
		replica := got(s.Replicas(ctx))(t)[0]
		must(t, replica.Kill(ctx))
		must(t, os.RemoveAll(replica.DataDir))
		must(t, replica.Start(ctx))
		if now := got(s.AwaitHealthy(ctx))(t); now != leader {
			t.Errorf("leader: %s, was %s", now.Name, leader.Name)
		}
	})

	t.Run("dynamic configuration reaches every member", func(t *testing.T) {
		ctx := within(t)
		leader := got(s.AwaitHealthy(ctx))(t)
		status, answer, err := leader.Patch(ctx, "/config", map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"work_mem": "7MB"}}})
		must(t, err)
		if status != 200 {
			t.Fatalf("PATCH /config: %d %s", status, answer)
		}
		for _, m := range s.Members() {
			await(ctx, t, m.Name+" does not have the new setting", func() error { return showIs(ctx, m, "work_mem", "7MB") })
		}
		status, answer, err = leader.Patch(ctx, "/config", map[string]any{"ttl": 2})
		must(t, err)
		if status/100 == 2 {
			t.Errorf("a ttl of 2 was accepted: %d %s", status, answer)
		}
	})

	t.Run("values in Consul that make no sense harm nothing", func(t *testing.T) {
		ctx := within(t)
		leader := got(s.AwaitHealthy(ctx))(t)
		good := got(s.Snapshot(ctx))(t)
		clients(t, s, func(ctx context.Context) {
			put(ctx, t, l, s.Keys.Config(), "{not json")
			put(ctx, t, l, s.Keys.Route(), "no json either")
			put(ctx, t, l, s.Keys.Member("ghost"), "[1]")
			put(ctx, t, l, s.Keys.Failover(), "{\"leader\": 7}")
			await(ctx, t, "the leader does not mend the route", func() error {
				return got(s.Snapshot(ctx))(t).Route.Err
			})
			await(ctx, t, "the leader does not clear the request", func() error {
				return got(s.Snapshot(ctx))(t).Failover.Err
			})
		})
		if now := got(s.AwaitHealthy(ctx))(t); now != leader {
			t.Errorf("leader: %s, was %s", now.Name, leader.Name)
		}
		put(ctx, t, l, s.Keys.Config(), string(good.Config.Value))
		must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
			_, err := c.KV().Delete(s.Keys.Member("ghost"), (&api.WriteOptions{}).WithContext(ctx))
			return err
		}))
	})

	t.Run("everything restarted", func(t *testing.T) {
		clients(t, s, func(ctx context.Context) {
			for _, m := range s.Members() {
				must(t, m.Kill(ctx))
			}
			for _, m := range s.Members() {
				must(t, m.Start(ctx))
			}
			got(s.AwaitHealthy(ctx))(t)
		})
	})

	t.Run("stopped in an orderly way: the next one leads at once", func(t *testing.T) {
		ctx := within(t)
		old := got(s.AwaitHealthy(ctx))(t)
		must(t, s.AwaitSync(ctx))
		clients(t, s, func(ctx context.Context) {
			must(t, old.Process("agent").Stop(ctx))
			if pid, err := old.PostmasterPID(); err == nil {
				t.Errorf("PostgreSQL still runs: pid %d", pid)
			}
			got(s.AwaitLeader(ctx, old))(t)
			must(t, old.Start(ctx))
		})
	})
}

func showIs(ctx context.Context, m *lab.Member, name, want string) error {
	conn, err := m.Connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var value string
	if err := conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&value); err != nil {
		return err
	}
	if value != want {
		return fmt.Errorf("%s is %s, not %s", name, value, want)
	}
	return nil
}

// A leader key that names nobody who exists blocks the shard only until its
// holder is gone; here it has no holder at all.
func TestLeaderThatDoesNotExist(t *testing.T) {
	l := labtest.New(t, lab.Options{Bouncers: -1})
	s := l.Shard(0)
	ctx := within(t)
	must(t, l.StartConsul(ctx))
	put(ctx, t, l, s.Keys.Leader(), "ghost")
	for _, m := range s.Members() {
		must(t, m.Start(ctx))
	}
	got(s.AwaitHealthy(ctx))(t)
}

// A bootstrap that is killed on the way is cleared away and made again.
func TestBootstrapInterrupted(t *testing.T) {
	l := labtest.New(t, lab.Options{Bouncers: -1})
	s := l.Shard(0)
	ctx := within(t)
	must(t, l.StartConsul(ctx))
	first := s.Members()[0]
	must(t, first.Start(ctx))
	await(ctx, t, "the bootstrap does not begin", func() error {
		_, err := os.Stat(filepath.Join(first.DataDir, "PG_VERSION"))
		return err
	})
	must(t, first.Kill(ctx))
	snapshot := got(s.Snapshot(ctx))(t)
	if snapshot.Initialize.Value != "" {
		t.Fatalf("the bootstrap was over already: initialize holds %q", snapshot.Initialize.Value)
	}
	for _, m := range s.Members() {
		must(t, m.Start(ctx))
	}
	got(s.AwaitHealthy(ctx))(t)
}

// An old primary that was cut off and wrote on alone is rewound when it comes
// back: what only it had is gone, what the shard has acknowledged is there.
func TestDivergedPrimaryIsRewound(t *testing.T) {
	labtest.RequireNetns(t)
	l := start(t, lab.Options{Substrate: lab.Netns, Async: true, Bouncers: -1, ConsulServers: 3})
	s := l.Shard(0)
	ctx := within(t)
	old := got(s.Leader(ctx))(t)
	must(t, execute(ctx, old, "CREATE TABLE t (who text)"))
	must(t, execute(ctx, old, "INSERT INTO t VALUES ('before')"))
	got(s.AwaitHealthy(ctx))(t)
	// Replicas stop hearing of it before Consul does: WAL that nobody has.
	for _, r := range got(s.Replicas(ctx))(t) {
		must(t, old.CutTo(ctx, r.Host))
	}
	must(t, execute(ctx, old, "INSERT INTO t VALUES ('only here')"))
	must(t, old.Isolate(ctx))
	next := got(s.AwaitLeader(ctx, old))(t)
	must(t, execute(ctx, next, "INSERT INTO t VALUES ('after')"))
	must(t, old.Heal(ctx))
	got(s.AwaitHealthy(ctx))(t)
	rows := got(column(ctx, old, "SELECT who FROM t ORDER BY 1"))(t)
	if !slices.Equal(rows, []string{"after", "before"}) {
		t.Errorf("the old primary holds %v", rows)
	}
}

func execute(ctx context.Context, m *lab.Member, sql string) error {
	conn, err := m.Connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql)
	return err
}

func column(ctx context.Context, m *lab.Member, sql string) ([]string, error) {
	conn, err := m.Connect(ctx, "postgres")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var values []string
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, rows.Err()
}

// A host that falls silent, with the Consul server on it or not, is replaced;
// nothing acknowledged is lost.
func TestHostFallsSilent(t *testing.T) {
	labtest.RequireNetns(t)
	l := start(t, lab.Options{Substrate: lab.Netns, TTL: 5})
	s := l.Shard(0)
	ctx := within(t)
	must(t, s.Prepare(ctx))
	must(t, l.AwaitServing(ctx))
	old := got(s.Leader(ctx))(t)
	clients(t, s, func(ctx context.Context) {
		must(t, old.PowerOff(ctx))
		got(s.AwaitLeader(ctx, old))(t)
		must(t, old.Start(ctx))
	})
	if role := got(old.Status(ctx))(t).Role; role != cluster.RoleReplica {
		t.Errorf("the old primary is %s", role)
	}
}

// A member that follows a replica, and has diverged, is cloned anew though the one that it
// follows is no primary: it is the leader that must answer.
func TestDivergedFollowerOfAReplica(t *testing.T) {
	follower := func(m *lab.Member) bool { return m == m.Shard.Members()[2] }
	l := labtest.New(t, lab.Options{
		Members: 3, Bouncers: -1, ConsulServers: 1, Async: true,
		Database: lab.Lictor{Edit: func(m *lab.Member, config map[string]any) {
			postgres := config["postgresql"].(map[string]any)
			postgres["use_pg_rewind"], postgres["remove_data_directory_on_diverged_timelines"] = false, true
			dcs := config["bootstrap"].(map[string]any)["dcs"].(map[string]any)
			if section, ok := dcs["postgresql"].(map[string]any); ok {
				delete(section, "use_pg_rewind")
			}
			if follower(m) {
				config["tags"] = map[string]any{"replicatefrom": m.Shard.Members()[1].Name, "nofailover": true}
			}
		}},
	})
	ctx := within(t)
	must(t, l.StartConsul(ctx))
	s := l.Shard(0)
	m := s.Members()
	must(t, m[0].Start(ctx)) // it makes the shard
	got(s.AwaitLeader(ctx))(t)
	must(t, m[1].Start(ctx))
	must(t, m[2].Start(ctx))
	got(s.AwaitHealthy(ctx, m[2]))(t)
	follows := func() error {
		status, err := m[2].Status(ctx)
		if err == nil && (status.Primary() || status.Timeline != 1) {
			err = fmt.Errorf("%+v", status)
		}
		return err
	}
	await(ctx, t, "the follower is no replica", follows)
	must(t, m[2].Processes()[0].Stop(ctx))
	// It is promoted by hand.
	control := func(args ...string) {
		t.Helper()
		cmd := m[2].Command(ctx, filepath.Join(l.Options.Programs.PostgresBin, "pg_ctl"), append([]string{"-D", m[2].DataDir, "-w", "-l", "/dev/null"}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: ownerOf(t, m[2].DataDir)}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("pg_ctl %v: %v: %s", args, err, out)
		}
	}
	control("start")
	control("promote")
	control("stop")
	must(t, m[2].Start(ctx))
	await(ctx, t, "the follower is not cloned anew", follows)
}

// ownerOf is the user that a directory belongs to.
func ownerOf(t *testing.T, dir string) *syscall.Credential {
	t.Helper()
	owner := got(os.Stat(dir))(t).Sys().(*syscall.Stat_t)
	return &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
}
