package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// Two sites, each with a Consul of its own, take turns: both live, one cannot see the other, one is lost. At no
// time do two of them accept commits if they can see each other, and between two that live no
// commit is lost.
func TestTwoSites(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the hosts of one site are to have one port: that takes network namespaces, and they take root")
	}
	hosts := map[string]string{}
	l := labtest.New(t, lab.Options{
		Substrate: lab.Netns, Shards: 2, Members: 2, Bouncers: -1, Sites: true,
		Database: lab.Lictor{Edit: func(m *lab.Member, c map[string]any) {
			host, _, err := net.SplitHostPort(m.Postgres)
			must(t, err)
			hosts[m.Shard.Name] = strings.TrimPrefix(hosts[m.Shard.Name]+","+host, ",")
			if m.Shard.Name == "shard2" {
				dcs := c["bootstrap"].(map[string]any)["dcs"].(map[string]any)
				dcs["standby_cluster"] = map[string]any{"host": hosts["shard1"], "port": 5432}
			}
		}},
	})
	ctx := within(t)
	must(t, l.StartConsul(ctx))
	zurich, geneva := &site{t, l, l.Shard(0), hosts["shard1"]}, &site{t, l, l.Shard(1), hosts["shard2"]}
	zurich.start(ctx)
	primary := got(zurich.AwaitHealthy(ctx))(t)
	rows := &siteRows{t: t}
	rows.create(ctx, primary)
	ctx = within(t)
	geneva.start(ctx)
	awaitStandby(ctx, t, geneva.Shard)
	zurich.must("edit-config", "--force", "-s", `other_site={"host": "`+geneva.hosts+`"}`)

	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			zurich.t, geneva.t, rows.t = t, t, t
			f(t)
		})
	}
	run("no promotion beside a primary that lives", func(t *testing.T) {
		geneva.ends(operator.ExitRefused, "accepts commits", "promote-cluster", "--force")
		status, answer, err := awaitStandby(within(t), t, geneva.Shard).Patch(within(t), "/config", map[string]any{"standby_cluster": nil})
		if err != nil || status != http.StatusBadRequest || !strings.Contains(answer, "accepts commits") {
			t.Errorf("%d %s %v", status, answer, err)
		}
	})

	run("nor by a key that is written past the API", func(t *testing.T) {
		ctx := within(t)
		leader := awaitStandby(ctx, t, geneva.Shard)
		before := geneva.config(ctx)
		geneva.configure(ctx, regexp.MustCompile(`"standby_cluster":\{[^}]*\},?`).ReplaceAllString(before, ""))
		await(ctx, t, "the refusal", func() error {
			_, body, err := leader.Get(ctx, "/patroni")
			if err == nil && !strings.Contains(string(body), "accepts commits") {
				err = fmt.Errorf("%.600s", body)
			}
			return err
		})
		if status := got(leader.Status(ctx))(t); status.Primary() {
			t.Errorf("%s is %s", leader.Name, status.Role)
		}
		geneva.configure(ctx, before)
		awaitStandby(ctx, t, geneva.Shard)
	})

	run("no demotion for a site that does not answer", func(t *testing.T) {
		zurich.ends(operator.ExitRefused, "not stopped for it", "demote-cluster", "--force", "--host", "10.77.0.250")
		rows.write(within(t), got(zurich.AwaitHealthy(within(t)))(t), 1)
	})

	run("nor for a member of the same shard", func(t *testing.T) {
		ctx := within(t)
		primary := got(zurich.AwaitHealthy(ctx))(t)
		before := zurich.config(ctx)
		for _, m := range zurich.Members() {
			host, _, err := net.SplitHostPort(m.Postgres)
			must(t, err)
			zurich.ends(operator.ExitRefused, host+":5432 is "+m.Name+", a member of this shard", "demote-cluster", "--force", "--host", host)
			zurich.ends(operator.ExitRefused, host+":5432 is "+m.Name+", a member of this shard", "edit-config", "--force", "-s", `other_site={"host": "`+host+`"}`)
			status, answer, err := primary.Patch(ctx, "/config", map[string]any{"standby_cluster": map[string]any{"host": host, "port": 5432}})
			if err != nil || status != http.StatusBadRequest || !strings.Contains(answer, "a member of this shard") {
				t.Errorf("%d %s %v", status, answer, err)
			}
		}
		if after := zurich.config(ctx); after != before {
			t.Errorf("the configuration was %s and is %s", before, after)
		}
		rows.write(ctx, primary, 1)
	})

	for range 2 { // there, and back again
		run("both live: "+zurich.Name+" hands over to "+geneva.Name, func(t *testing.T) {
			handOver(t, rows, zurich, geneva)
		})
		zurich, geneva = geneva, zurich
	}

	run("a site that was cut off and succeeded fences itself, and follows when it is demoted", func(t *testing.T) {
		ctx := within(t)
		primary := got(zurich.AwaitHealthy(ctx))(t)
		leader := awaitStandby(ctx, t, geneva.Shard)
		rows.write(ctx, primary, 10)
		rows.await(ctx, geneva.Shard, rows.count(ctx, primary))
		for _, a := range zurich.Members() {
			for _, b := range geneva.Members() {
				must(t, a.CutTo(ctx, b.Host))
				must(t, b.CutTo(ctx, a.Host))
			}
		}
		rows.write(ctx, primary, 7) // which Geneva never gets
		geneva.must("promote-cluster", "--force")
		promoted := got(geneva.AwaitHealthy(ctx))(t)
		if promoted != leader {
			t.Errorf("%s was promoted, want %s", promoted.Name, leader.Name)
		}
		rows.write(ctx, promoted, 3)
		want := rows.count(ctx, promoted)
		for _, m := range append(zurich.Members(), geneva.Members()...) {
			must(t, m.Heal(ctx))
		}
		zurich.awaitFenced(ctx)
		if err := rows.exec(ctx, promoted, "INSERT INTO site_rows DEFAULT VALUES"); err != nil {
			t.Errorf("the site that took over: %v", err)
		}
		zurich.ends(operator.ExitRefused, "has taken over", "promote-cluster", "--force")
		zurich.must("demote-cluster", "--force", "--host", geneva.hosts)
		awaitStandby(ctx, t, zurich.Shard)
		rows.await(ctx, zurich.Shard, want+1)
		if n := rows.count(ctx, zurich.Members()[0]); n != want+1 {
			t.Errorf("%d rows, want %d: those that only the old site had are gone", n, want+1)
		}
		zurich, geneva = geneva, zurich
	})

	run("a site that was lost and comes back accepts nothing, and follows when it is demoted", func(t *testing.T) {
		ctx := within(t)
		primary := got(zurich.AwaitHealthy(ctx))(t)
		stop := rows.writeOn(ctx, primary)
		rows.await(ctx, geneva.Shard, rows.count(ctx, primary)+20)
		for _, m := range zurich.Members() {
			must(t, m.PowerOff(ctx))
		}
		stop()
		geneva.must("promote-cluster", "--force")
		promoted := got(geneva.AwaitHealthy(ctx))(t)
		rows.write(ctx, promoted, 5)
		stopped := zurich.neverPrimary(ctx)
		for _, m := range zurich.Members() {
			must(t, m.Start(ctx))
		}
		zurich.awaitFenced(ctx)
		stopped()
		zurich.must("demote-cluster", "--force", "--host", geneva.hosts)
		awaitStandby(ctx, t, zurich.Shard)
		rows.await(ctx, zurich.Shard, rows.count(ctx, promoted))
	})
}

// handOver is a handover between two sites that live, with a client that writes.
func handOver(t *testing.T, rows *siteRows, from, to *site) {
	t.Helper()
	ctx := within(t)
	primary := got(from.AwaitHealthy(ctx))(t)
	acked, stop := rows.acked(ctx, primary)
	rows.await(ctx, to.Shard, rows.count(ctx, primary)+50)
	said := from.must("demote-cluster", "--force", "--host", to.hosts)
	position := regexp.MustCompile(`--lsn (\S+)`).FindStringSubmatch(said)
	if len(position) < 2 {
		t.Fatalf("no position in %q", said)
	}
	to.must("promote-cluster", "--force", "--lsn", position[1])
	promoted := got(to.AwaitHealthy(ctx))(t)
	stop()
	missing := rows.missing(ctx, promoted, *acked)
	if len(*acked) < 50 || len(missing) > 0 {
		t.Errorf("of %d acknowledged rows %d are gone: %v", len(*acked), len(missing), missing)
	}
	t.Logf("%d rows were acknowledged", len(*acked))
	awaitStandby(ctx, t, from.Shard)
	rows.write(ctx, promoted, 5)
	rows.await(ctx, from.Shard, rows.count(ctx, promoted))
}

// site is one site: a shard, and an operator who sits there.
type site struct {
	t   *testing.T
	lab *lab.Lab
	*lab.Shard
	hosts string
}

func (s *site) start(ctx context.Context) {
	s.t.Helper()
	for _, m := range s.Members() {
		must(s.t, m.Start(ctx))
	}
}

// run is a command of the operator's.
func (s *site) run(args ...string) (out, errs string, code int) {
	s.t.Helper()
	cmd := s.lab.Command(within(s.t), s.lab.Options.Programs.Lictor, args...)
	cmd.Env = append(os.Environ(), operator.ConfigVariable+"="+filepath.Join(s.Members()[0].Dir, "agent.yml"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("lictor %v: %v", args, err)
	}
	s.t.Logf("%s$ lictor %s  # %d\n%s%s", s.Name, strings.Join(args, " "), cmd.ProcessState.ExitCode(), &stdout, &stderr)
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

func (s *site) must(args ...string) string {
	s.t.Helper()
	out, _, code := s.run(args...)
	if code != operator.ExitDone {
		s.t.Fatalf("lictor %v: exit code %d", args, code)
	}
	return out
}

func (s *site) ends(code int, say string, args ...string) {
	s.t.Helper()
	_, errs, got := s.run(args...)
	if got != code || !strings.Contains(errs, say) {
		s.t.Errorf("lictor %v: exit code %d and %q, want %d and %q", args, got, errs, code, say)
	}
}

// config is the dynamic configuration as it stands in the site's Consul, and configure replaces it there.
func (s *site) config(ctx context.Context) string {
	s.t.Helper()
	snapshot := got(s.Snapshot(ctx))(s.t)
	return string(snapshot.Config.Value)
}

func (s *site) configure(ctx context.Context, value string) {
	s.t.Helper()
	server := s.lab.ConsulServers()[slices.Index(s.lab.Shards(), s.Shard)]
	_, err := server.Client().KV().Put(&api.KVPair{Key: s.Keys.Config(), Value: []byte(value)}, new(api.WriteOptions).WithContext(ctx))
	must(s.t, err)
}

// awaitFenced waits until no member of the site accepts commits, as the other site has taken over, and its
// leader says so and serves readers.
func (s *site) awaitFenced(ctx context.Context) {
	s.t.Helper()
	await(ctx, s.t, "the fence of "+s.Name, func() error {
		leader, err := s.Leader(ctx)
		if err != nil {
			return err
		}
		_, body, err := leader.Get(ctx, "/patroni")
		if err == nil && !strings.Contains(string(body), "has succeeded this one") {
			err = fmt.Errorf("%s says %.700s", leader.Name, body)
		}
		if err != nil {
			return err
		}
		for _, m := range s.Members() {
			var recovering bool
			conn, err := m.Connect(ctx, "postgres")
			if err != nil {
				return err
			}
			err = conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering)
			if err := errors.Join(err, conn.Close(ctx)); err != nil {
				return err
			}
			if !recovering {
				return fmt.Errorf("%s is a primary", m.Name)
			}
		}
		snapshot, err := s.Snapshot(ctx)
		switch b := snapshot.Status.Value.Lictor; {
		case err != nil:
		case snapshot.Route.Value.State != cluster.RouteDown:
			err = fmt.Errorf("the route is %s", snapshot.Route.Value.State)
		case b == nil || b.Succeeded == 0:
			err = fmt.Errorf("the status says %+v", b)
		}
		return err
	})
}

// neverPrimary fails the test when a member of the site serves as a primary before the function that it returns is
// called.
func (s *site) neverPrimary(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			for _, m := range s.Members() {
				if status, _, err := m.Get(ctx, "/primary"); err == nil && status == http.StatusOK {
					s.t.Errorf("%s serves as a primary", m.Name)
				}
			}
		}
	})
	return func() { cancel(); asking.Wait() }
}

// acked writes row after row until stop is called, and keeps the ids that were acknowledged.
func (r *siteRows) acked(ctx context.Context, m *lab.Member) (ids *[]int64, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ids = new([]int64)
	var writing sync.WaitGroup
	writing.Go(func() {
		conn, err := m.Connect(ctx, "postgres")
		if err != nil {
			return
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		for err == nil {
			var id int64
			if err = conn.QueryRow(ctx, "INSERT INTO site_rows DEFAULT VALUES RETURNING id").Scan(&id); err == nil {
				*ids = append(*ids, id)
			}
		}
	})
	return ids, func() { cancel(); writing.Wait() }
}

// missing are the ids that a member does not have.
func (r *siteRows) missing(ctx context.Context, m *lab.Member, ids []int64) (missing []int64) {
	r.t.Helper()
	conn := got(m.Connect(ctx, "postgres"))(r.t)
	defer conn.Close(ctx)
	rows := got(conn.Query(ctx, "SELECT id FROM unnest($1::bigint[]) AS wanted(id) WHERE NOT EXISTS (SELECT FROM site_rows AS s WHERE s.id = wanted.id)", ids))(r.t)
	defer rows.Close()
	for rows.Next() {
		var id int64
		must(r.t, rows.Scan(&id))
		missing = append(missing, id)
	}
	must(r.t, rows.Err())
	return missing
}
