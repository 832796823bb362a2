package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// A replica whose replay stands still gets no readers and says why; one that only a
// restart helps is restarted by its agent.
func TestReplayStandsStill(t *testing.T) {
	l := start(t, lab.Options{})
	s := l.Shard(0)
	ctx := within(t)
	leader := got(s.AwaitHealthy(ctx))(t)
	replicas := slices.DeleteFunc(slices.Clone(s.Members()), func(m *lab.Member) bool { return m == leader })

	t.Run("paused by an operator", func(t *testing.T) {
		ctx := within(t)
		m := replicas[0]
		ask(ctx, t, m, "SELECT pg_wal_replay_pause()::text")
		awaitReaders(ctx, t, s, m, false)
		const why = "paused by pg_wal_replay_pause()"
		status := string(second(m.Get(ctx, "/patroni"))(t))
		if !strings.Contains(status, `"replay_stands_still":"`+why+`"`) {
			t.Errorf("GET /patroni does not say why: %s", status)
		}
		if metrics := string(second(m.Get(ctx, "/metrics"))(t)); !slices.ContainsFunc(strings.Split(metrics, "\n"), func(line string) bool {
			return strings.HasPrefix(line, "lictor_replay_stands_still{") && strings.HasSuffix(line, " 1")
		}) {
			t.Error("GET /metrics does not say it")
		}
		if list := string(second(leader.Get(ctx, "/cluster"))(t)); !strings.Contains(list, why) {
			t.Errorf("GET /cluster of the leader does not say why: %s", list)
		}
		ask(ctx, t, m, "SELECT pg_wal_replay_resume()::text")
		awaitReaders(ctx, t, s, m, true)
	})

	t.Run("the primary has more of something", func(t *testing.T) {
		ctx := within(t)
		status, answer, err := leader.Patch(ctx, "/config", map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"max_connections": "131"}}})
		must(t, err)
		if status != http.StatusOK {
			t.Fatalf("PATCH /config: %d %s", status, answer)
		}
		await(ctx, t, "the leader does not know of it", func() error {
			if body := string(second(leader.Get(ctx, "/patroni"))(t)); !strings.Contains(body, `"pending_restart":true`) {
				return fmt.Errorf("%.300s", body)
			}
			return nil
		})
		if status, answer, err = leader.Post(ctx, "/restart", map[string]any{}); err != nil || status != http.StatusOK {
			t.Fatalf("POST /restart: %d %s %v", status, answer, err)
		}
		for _, m := range replicas {
			await(ctx, t, m.Name+" was not restarted", func() error {
				conn, err := m.ConnectLocal(ctx, "postgres", nil)
				if err != nil {
					return err
				}
				defer conn.Close(ctx)
				var value string
				if err := conn.QueryRow(ctx, "SHOW max_connections").Scan(&value); err != nil || value != "131" {
					return fmt.Errorf("max_connections is %s: %w", value, err)
				}
				return nil
			})
			awaitReaders(ctx, t, s, m, true)
		}
		if now := got(s.AwaitHealthy(ctx))(t); now != leader {
			t.Errorf("%s leads, %s did", now.Name, leader.Name)
		}
	})
}

// awaitReaders waits until a replica gets readers, or none, by its own check and by the
// route.
func awaitReaders(ctx context.Context, t *testing.T, s *lab.Shard, m *lab.Member, some bool) {
	t.Helper()
	await(ctx, t, fmt.Sprintf("readers of %s, %v,", m.Name, some), func() error {
		status, _, err := m.Get(ctx, "/replica")
		if err != nil {
			return err
		}
		snapshot, err := s.Snapshot(ctx)
		if err != nil {
			return err
		}
		routed := slices.ContainsFunc(snapshot.Route.Value.Replicas, func(r cluster.RouteMember) bool { return r.Name == m.Name })
		if (status == http.StatusOK) != some || routed != some {
			return fmt.Errorf("GET /replica: %d, in the route: %v", status, routed)
		}
		return nil
	})
}

// ask asks a member's PostgreSQL for one text.
func ask(ctx context.Context, t *testing.T, m *lab.Member, statement string) (answer string) {
	t.Helper()
	conn := got(m.ConnectLocal(ctx, "postgres", nil))(t)
	defer conn.Close(ctx)
	must(t, conn.QueryRow(ctx, statement).Scan(&answer))
	return answer
}

// second is got for functions with a first value that does not matter.
func second[A, B any](_ A, value B, err error) func(*testing.T) B { return got(value, err) }
