package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// One shard is the standby of another one. It has a leader that is no primary, which follows the
// other's primary whoever that is, and replicas that follow it. When the other shard is lost and
// standby_cluster is removed, the leader is promoted with every row that the shard had received.
func TestStandbyCluster(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the hosts of one shard are to have one port: that takes network namespaces, and they take root")
	}
	var remote string
	l := labtest.New(t, lab.Options{
		Substrate: lab.Netns, Shards: 2, Members: 2, Bouncers: -1, ConsulServers: 1,
		Database: lab.Lictor{Edit: func(m *lab.Member, c map[string]any) {
			if m.Shard.Name == "shard1" {
				host, _, err := net.SplitHostPort(m.Postgres)
				must(t, err)
				remote = strings.TrimPrefix(remote+","+host, ",")
				return
			}
			dcs := c["bootstrap"].(map[string]any)["dcs"].(map[string]any)
			dcs["standby_cluster"] = map[string]any{"host": remote, "port": 5432}
		}},
	})
	ctx := within(t)
	must(t, l.StartConsul(ctx))
	first, second := l.Shard(0), l.Shard(1)
	for _, m := range first.Members() {
		must(t, m.Start(ctx))
	}
	got(first.AwaitLeader(ctx))(t)
	ctx = within(t)
	primary := got(first.AwaitHealthy(ctx))(t)
	must(t, first.AwaitSync(ctx))
	ctx = within(t)
	for _, m := range second.Members() {
		must(t, m.Start(ctx))
	}
	leader := awaitStandby(ctx, t, second)
	rows := &siteRows{t: t}
	rows.create(ctx, primary)
	rows.write(ctx, primary, 10)
	rows.await(ctx, second, 10)

	t.Run("nobody is a primary, and the routes lead no writer there", func(t *testing.T) {
		ctx := within(t)
		for path, want := range map[string]int{
			"/": http.StatusServiceUnavailable, "/primary": http.StatusServiceUnavailable, "/standby-leader": http.StatusOK, "/standby_leader": http.StatusOK,
			"/leader": http.StatusOK, "/replica": http.StatusServiceUnavailable, "/read-only": http.StatusOK, "/health": http.StatusOK,
		} {
			if status, body, err := leader.Get(ctx, path); err != nil || status != want {
				t.Errorf("GET %s: %d %s %v, want %d", path, status, body, err, want)
			}
		}
		if status := got(leader.Status(ctx))(t); status.Role != cluster.RoleStandbyLeader {
			t.Errorf("GET /patroni: role %s", status.Role)
		}
		members := got(leader.Cluster(ctx))(t)
		if !slices.ContainsFunc(members, func(m lab.ClusterMember) bool { return m.Name == leader.Name && m.Role == cluster.RoleStandbyLeader }) {
			t.Errorf("GET /cluster: %+v", members)
		}
		if _, body, err := leader.Get(ctx, "/metrics"); err != nil || !strings.Contains(string(body), "patroni_standby_leader{") || !strings.Contains(string(body), "} 1\n") {
			t.Errorf("GET /metrics: %.300s %v", body, err)
		}
		await(ctx, t, "the route", func() error {
			snapshot, err := second.Snapshot(ctx)
			route := snapshot.Route
			if err == nil && (!route.OK() || route.Value.State != cluster.RouteDown || len(route.Value.Replicas) != 1) {
				err = fmt.Errorf("%+v", route)
			}
			return err
		})
	})

	t.Run("the standby leader's host is lost", func(t *testing.T) {
		ctx := within(t)
		must(t, leader.PowerOff(ctx))
		next := awaitStandby(ctx, t, second, leader)
		rows.write(ctx, primary, 10)
		rows.await(ctx, second, 20, leader)
		must(t, leader.Start(ctx))
		if again := awaitStandby(ctx, t, second); again != next {
			t.Errorf("%s leads, want %s", again.Name, next.Name)
		}
		rows.await(ctx, second, 20)
		leader = next
	})

	t.Run("a switchover in the standby shard", func(t *testing.T) {
		ctx := within(t)
		other := second.Members()[0]
		if other == leader {
			other = second.Members()[1]
		}
		must(t, second.Switchover(ctx, leader, other))
		if leader = awaitStandby(ctx, t, second); leader != other {
			t.Fatalf("%s leads", leader.Name)
		}
	})

	t.Run("a switchover in the other shard", func(t *testing.T) {
		ctx := within(t)
		other := first.Members()[0]
		if other == primary {
			other = first.Members()[1]
		}
		must(t, first.Switchover(ctx, primary, other))
		primary = got(first.AwaitHealthy(ctx))(t)
		rows.write(ctx, primary, 10)
		rows.await(ctx, second, 30)
	})

	t.Run("the other shard is lost", func(t *testing.T) {
		ctx := within(t)
		stop := rows.writeOn(ctx, primary)
		rows.await(ctx, second, 60)
		for _, m := range first.Members() {
			must(t, m.PowerOff(ctx))
		}
		stop()
		had := rows.settled(ctx, leader)
		status, answer, err := leader.Patch(ctx, "/config", map[string]any{"standby_cluster": nil})
		if must(t, err); status != http.StatusOK || strings.Contains(answer, "standby_cluster") {
			t.Fatalf("%d %s", status, answer)
		}
		if promoted := got(second.AwaitHealthy(ctx))(t); promoted != leader {
			t.Errorf("%s was promoted, want the standby leader %s", promoted.Name, leader.Name)
		}
		must(t, second.AwaitSync(ctx))
		if has := rows.count(ctx, leader); has < had {
			t.Errorf("%d rows of %d that were received", has, had)
		}
		rows.write(ctx, leader, 5)
		rows.await(ctx, second, rows.count(ctx, leader))
	})
}

// awaitStandby waits until a standby shard is whole, without the members that are named: it has a
// standby leader, and the others stream from it.
func awaitStandby(ctx context.Context, t *testing.T, s *lab.Shard, except ...*lab.Member) *lab.Member {
	t.Helper()
	var leader *lab.Member
	await(ctx, t, "the standby shard", func() (err error) {
		if leader, err = s.Leader(ctx); err != nil {
			return err
		}
		if slices.Contains(except, leader) {
			return fmt.Errorf("%s still leads", leader.Name)
		}
		status, err := leader.Status(ctx)
		switch {
		case err != nil:
			return err
		case status.Role != cluster.RoleStandbyLeader || status.ReplicationState != "streaming":
			return fmt.Errorf("%s: %s, %s", leader.Name, status.Role, status.ReplicationState)
		}
		for _, m := range s.Members() {
			streams := slices.ContainsFunc(status.Replication, func(r lab.Replica) bool { return r.ApplicationName == m.Name && r.State == "streaming" })
			if m != leader && !slices.Contains(except, m) && !streams {
				return fmt.Errorf("%s does not stream from %s", m.Name, leader.Name)
			}
		}
		return nil
	})
	return leader
}

// siteRows are rows that one site writes and another one gets.
type siteRows struct{ t *testing.T }

func (r *siteRows) exec(ctx context.Context, m *lab.Member, sql string) error {
	conn, err := m.Connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

func (r *siteRows) create(ctx context.Context, m *lab.Member) {
	r.t.Helper()
	must(r.t, r.exec(ctx, m, "CREATE TABLE site_rows (id bigserial PRIMARY KEY)"))
}

func (r *siteRows) write(ctx context.Context, m *lab.Member, n int) {
	r.t.Helper()
	must(r.t, r.exec(ctx, m, fmt.Sprintf("INSERT INTO site_rows SELECT FROM generate_series(1, %d)", n)))
}

// writeOn writes until the function that it returns is called; errors are those of a lost host.
func (r *siteRows) writeOn(ctx context.Context, m *lab.Member) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := m.Connect(ctx, "postgres")
		if err != nil {
			return
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		for err == nil {
			_, err = conn.Exec(ctx, "INSERT INTO site_rows DEFAULT VALUES")
		}
	}()
	return func() { cancel(); <-ended }
}

func (r *siteRows) counted(ctx context.Context, m *lab.Member) (n int, err error) {
	conn, err := m.Connect(ctx, "postgres")
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	return n, conn.QueryRow(ctx, "SELECT count(*) FROM site_rows").Scan(&n)
}

func (r *siteRows) count(ctx context.Context, m *lab.Member) int {
	r.t.Helper()
	return got(r.counted(ctx, m))(r.t)
}

// await waits until every member of a shard has n rows at least.
func (r *siteRows) await(ctx context.Context, s *lab.Shard, n int, except ...*lab.Member) {
	r.t.Helper()
	await(ctx, r.t, fmt.Sprintf("%d rows", n), func() error {
		var errs []error
		for _, m := range s.Members() {
			if slices.Contains(except, m) {
				continue
			}
			has, err := r.counted(ctx, m)
			if err == nil && has < n {
				err = fmt.Errorf("%s has %d", m.Name, has)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// settled is how many rows a standby has when it has replayed all that it has received from a host
// that is lost.
func (r *siteRows) settled(ctx context.Context, m *lab.Member) int {
	r.t.Helper()
	var n int
	await(ctx, r.t, "the end of the replay", func() error {
		conn, err := m.Connect(ctx, "postgres")
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		var behind int64
		err = conn.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), (SELECT count(*) FROM site_rows)`).Scan(&behind, &n)
		if err == nil && behind > 0 {
			err = fmt.Errorf("it is %d bytes behind", behind)
		}
		return err
	})
	return n
}
