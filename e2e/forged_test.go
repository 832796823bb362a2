package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	memberapi "github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/proof"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// What members tell each other moves nobody when somebody else says it; and of a member
// that lies no more is believed than Consul has shown.
func TestForgedRequests(t *testing.T) {
	l := start(t, lab.Options{Bouncers: -1})
	s := l.Shard(0)
	ctx := within(t)
	must(t, s.Prepare(ctx))
	leader := got(s.AwaitHealthy(ctx))(t)
	replica := got(s.Replicas(ctx))(t)[0]
	for _, m := range got(s.Snapshot(ctx))(t).Members {
		if memberapi.PeerOf(m.Value).Patroni {
			t.Errorf("%s (%s) is taken for a member of Patroni's, which proves nothing", m.Value.Name, m.Value.Role)
		}
	}
	pm, before := got(leader.Postmaster())(t), got(leader.Status(ctx))(t)
	const never = uint64(1) << 60
	forged := []struct {
		to   *lab.Member
		path string
		body map[string]any
	}{
		{leader, "/deposed", map[string]any{"leader": replica.Name, "index": never}},
		{leader, "/deposed", map[string]any{"leader": replica.Name, "index": never, "forced": true}},
		{replica, "/part", map[string]any{"candidate": leader.Name, "index": never}},
		{replica, "/failsafe", map[string]any{"name": leader.Name, "lictor": map[string]any{"lease_ms": int64(253 * 365 * 24 * 3600_000), "index": never}}},
		{replica, "/failsafe", map[string]any{"name": replica.Name + "x", "lictor": map[string]any{"lease_ms": 1000, "index": never}}},
	}
	unmoved := func(t *testing.T) {
		t.Helper()
		now := got(leader.Status(ctx))(t)
		if got(leader.Postmaster())(t).PID != pm.PID || now.Timeline != before.Timeline || !now.Primary() {
			t.Errorf("the leader is %s on timeline %d", now.Role, now.Timeline)
		}
		_ = got(s.AwaitHealthy(ctx))(t)
	}
	for _, f := range forged {
		t.Run("anybody: "+f.path, func(t *testing.T) {
			for range 40 {
				if status, answer, err := f.to.Post(ctx, f.path, f.body); err != nil || status != http.StatusForbidden {
					t.Fatalf("%d %q %v", status, answer, err)
				}
			}
			unmoved(t)
		})
	}

	keys := cluster.NewKeys("", s.Name, "")
	read := func(t *testing.T) proof.Secret {
		var value []byte
		must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
			pair, _, err := c.KV().Get(keys.Secret(), (&api.QueryOptions{}).WithContext(ctx))
			if pair != nil {
				value = pair.Value
			}
			return err
		}))
		return got(proof.Parse(value))(t)
	}
	var keeper proof.Keeper
	keeper.Keep(read(t))
	prover := proof.Prover{Keeper: &keeper}
	tell := func(t *testing.T, to *lab.Member, path string, body map[string]any) (int, string) {
		t.Helper()
		content := got(json.Marshal(body))(t)
		for {
			r := got(http.NewRequestWithContext(ctx, http.MethodPost, "http://"+to.REST+path, bytes.NewReader(content)))(t)
			asked := prover.Sign(r, to.Name, content)
			resp := got(l.HTTP().Do(r))(t) //nolint:bodyclose // below
			answer := got(io.ReadAll(resp.Body))(t)
			resp.Body.Close()
			if prover.Again(asked, resp) {
				continue
			}
			if name, proved := asked.ProvedBy(resp, answer); !proved || name != to.Name {
				t.Errorf("%s: the answer is proved: %v, by %q", path, proved, name)
			}
			return resp.StatusCode, string(answer)
		}
	}
	for _, f := range forged {
		t.Run("a member that lies: "+f.path, func(t *testing.T) {
			if status, answer := tell(t, f.to, f.path, f.body); status < 400 || strings.Contains(answer, "proof") {
				t.Errorf("%d %q", status, answer)
			}
			unmoved(t)
		})
	}

	t.Run("a secret that is deleted, and then Consul fails", func(t *testing.T) {
		before := read(t)
		remove := func() {
			must(t, l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
				_, err := c.KV().Delete(keys.Secret(), (&api.WriteOptions{}).WithContext(ctx))
				return err
			}))
		}
		remove()
		await(ctx, t, "the secret was not written back", func() error {
			var value []byte
			err := l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
				pair, _, err := c.KV().Get(keys.Secret(), (&api.QueryOptions{}).WithContext(ctx))
				if pair != nil {
					value = pair.Value
				}
				return err
			})
			if err != nil {
				return err
			}
			_, err = proof.Parse(value)
			return err
		})
		if !read(t).Equal(before) {
			t.Error("it is another one than the members know")
		}
		for range 5 { // whatever each of them has seen of it when Consul goes
			remove()
		}
		for _, c := range l.ConsulServers() {
			must(t, c.Kill(ctx))
		}
		awaitFailsafe(ctx, t, leader)
		must(t, l.StartConsul(ctx))
		awaitConsulLease(ctx, t, leader)
		unmoved(t)
	})

	t.Run("another secret, while Consul is there and after it has gone", func(t *testing.T) {
		command := l.Command(ctx, os.Getenv("LICTOR_BIN"), "rotate-secret", s.Name, "--force", "--consul", l.ConsulServers()[0].HTTP)
		if out, err := command.CombinedOutput(); err != nil || strings.Contains(string(out), "warning") {
			t.Fatalf("%v\n%s", err, out)
		}
		if old, _ := keeper.Secret(); slices.Contains(read(t).Fingerprints(), proof.Fingerprint(old.Current)) {
			t.Error("the old secret is still taken")
		}
		if status, _, err := leader.Post(ctx, "/part", map[string]any{"candidate": replica.Name, "index": 1}); err != nil || status != http.StatusForbidden {
			t.Errorf("%d, %v", status, err)
		}
		for _, c := range l.ConsulServers() {
			must(t, c.Kill(ctx))
		}
		awaitFailsafe(ctx, t, leader)
		// A member whose agent is restarted has its secret from beside the data.
		must(t, replica.Processes()[0].Kill(ctx))
		must(t, replica.Start(ctx))
		holdFor(ctx, t, 2*8*time.Second)
		awaitFailsafe(ctx, t, leader)
		must(t, l.StartConsul(ctx))
		awaitConsulLease(ctx, t, leader)
		unmoved(t)
	})

	// The word of the command does where Consul does not answer the leader.
	t.Run("an operator's force, while Consul is away", func(t *testing.T) {
		keeper.Keep(read(t))
		for _, c := range l.ConsulServers() {
			must(t, c.Kill(ctx))
		}
		awaitFailsafe(ctx, t, leader)
		if status, answer := tell(t, leader, "/deposed", map[string]any{"leader": replica.Name, "index": never, "forced": true}); status != http.StatusOK {
			t.Errorf("%d %q", status, answer)
		}
		await(ctx, t, "the leader was not fenced", func() error {
			now, err := leader.Status(ctx)
			if err == nil && now.Primary() {
				err = errors.New("it is a primary")
			}
			return err
		})
		must(t, l.StartConsul(ctx))
		_ = got(s.AwaitHealthy(ctx))(t)
	})
}
