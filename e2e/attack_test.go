package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)


func TestAttackClonefrom(t *testing.T) {
	l := labtest.New(t, lab.Options{
		Members: 3, Bouncers: -1, ConsulServers: 1, Async: true,
		Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) {
			config["tags"] = map[string]any{"clonefrom": true}
			dcs := config["bootstrap"].(map[string]any)["dcs"].(map[string]any)
			dcs["postgresql"] = map[string]any{"use_slots": false, "parameters": map[string]any{"wal_keep_size": 0, "max_wal_size": "32MB"}}
		}},
	})
	ctx := within(t)
	must(t, l.Start(ctx))
	s := l.Shard(0)
	leader := got(s.AwaitHealthy(ctx))(t)
	replicas := got(s.Replicas(ctx))(t)
	for _, m := range replicas {
		must(t, m.Process("agent").Stop(ctx))
	}
	writes(ctx, t, leader)
	for _, m := range replicas {
		must(t, m.Process("agent").Start())
	}
	for _, m := range replicas {
		await(ctx, t, "the word of "+m.Name, func() error {
			out, _ := l.Command(ctx, os.Getenv("LICTOR_BIN"), "doctor", s.Name, "--consul", l.ConsulServers()[0].HTTP).CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, m.Name) && strings.Contains(line, "must be made anew") {
					return nil
				}
			}
			return fmt.Errorf("lictor doctor says\n%s", out)
		})
	}
	status, answer, err := leader.Patch(ctx, "/config", map[string]any{"rebuild": "auto"})
	if err != nil || status != http.StatusOK {
		t.Fatalf("PATCH /config: %d %s %v", status, answer, err)
	}
	begun := time.Now()
	for time.Since(begun) < 100*time.Second {
		time.Sleep(10 * time.Second)
		for _, m := range replicas {
			log, _ := os.ReadFile(m.Process("agent").LogPath())
			st, _ := m.Status(ctx)
			t.Logf("%3.0f s: %s %s: copies begun so far %d, from %v", time.Since(begun).Seconds(), m.Name, st.State, strings.Count(string(log), "a copy is made anew"), regexp.MustCompile(`"from":"[^"]*"[^\n]*a copy is made anew`).FindAllString(string(log), 2))
		}
		must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
			pair, _, err := c.KV().Get("service/"+s.Name+"/rebuild", (&api.QueryOptions{}).WithContext(ctx))
			if pair != nil { t.Logf("the turn: %s", pair.Value) }
			return err
		}))
	}
	out, _ := l.Command(ctx, os.Getenv("LICTOR_BIN"), "list", s.Name, "--consul", l.ConsulServers()[0].HTTP).CombinedOutput()
	t.Logf("%s", out)
}

func TestAttackTwoAtOnce(t *testing.T) {
	for _, how := range []string{"session lost"} {
		t.Run(how, func(t *testing.T) {
			l := labtest.New(t, lab.Options{
				Substrate: lab.Netns, Members: 3, Bouncers: -1, ConsulServers: 1, Async: true,
				Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) {
					pgc := config["postgresql"].(map[string]any)
					pgc["create_replica_methods"] = []string{"slow", "basebackup"}
					pgc["slow"] = map[string]any{"command": "sh -c 'if test -e /tmp/attack-slow; then sleep 90; fi; false'", "no_params": true}
					dcs := config["bootstrap"].(map[string]any)["dcs"].(map[string]any)
					dcs["postgresql"] = map[string]any{"use_slots": false, "parameters": map[string]any{"wal_keep_size": 0, "max_wal_size": "32MB"}}
				}},
			})
			ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
			defer cancel()
			must(t, l.Start(ctx))
			s := l.Shard(0)
			leader := got(s.AwaitHealthy(ctx))(t)
			replicas := got(s.Replicas(ctx))(t)
			for _, m := range replicas {
				must(t, m.Process("agent").Stop(ctx))
			}
			writes(ctx, t, leader)
			must(t, os.WriteFile("/tmp/attack-slow", nil, 0o644))
			defer os.Remove("/tmp/attack-slow")
			status, answer, err := leader.Patch(ctx, "/config", map[string]any{"rebuild": "auto"})
			if err != nil || status != http.StatusOK {
				t.Fatalf("PATCH /config: %d %s %v", status, answer, err)
			}
			for _, m := range replicas {
				must(t, m.Process("agent").Start())
			}
			var session, holder string
			await(ctx, t, "a copy", func() error {
				return l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
					pair, _, err := c.KV().Get("service/"+s.Name+"/rebuild", (&api.QueryOptions{}).WithContext(ctx))
					if err != nil { return err }
					if pair == nil { return fmt.Errorf("nobody has the turn") }
					session, holder = pair.Session, string(pair.Value)
					st, err := s.Member(holder).Status(ctx)
					if err != nil || st.State != "creating replica" { return fmt.Errorf("%s %v", st.State, err) }
					return nil
				})
			})
			t.Logf("%s is made anew by policy", holder)
			begun, last := time.Now(), ""
			if how == "session lost" {
				must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error { _, err := c.Session().Destroy(session, nil); return err }))
			} else {
				must(t, s.Member(holder).Process("agent").Kill(ctx))
				must(t, s.Member(holder).Process("agent").Start())
			}
			for time.Since(begun) < 75*time.Second {
				n, states := 0, ""
				for _, m := range replicas {
					st, _ := m.Status(ctx)
					states += m.Name + " " + st.State + "; "
					if st.State == "creating replica" { n++ }
				}
				if n > 1 {
					t.Errorf("FINDING: after %v two are made anew at once: %s", time.Since(begun), states)
					return
				}
				if states != last { t.Logf("%3.0f s: %s", time.Since(begun).Seconds(), states); last = states }
				time.Sleep(500 * time.Millisecond)
			}
		})
	}
}
