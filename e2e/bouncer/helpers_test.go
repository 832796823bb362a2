package bouncer

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// patience bounds every wait in these tests. It says nothing about how fast things
// are: that is measured by `make bench ONLY=bouncer`.
const patience = 2 * time.Minute

// serving builds a shard with two poolers, whose balancer does not cut the
// connections of a pooler that is draining, as docs/bouncer.md asks for.
func serving(t *testing.T) (*lab.Lab, *lab.Shard) {
	t.Helper()
	labtest.RequireNetns(t)
	l := labtest.New(t, lab.Options{Substrate: lab.Netns, TTL: 5})
	path := filepath.Join(l.Balancer().Dir, "haproxy.cfg")
	config, err := os.ReadFile(path)
	must(t, err)
	lenient := strings.ReplaceAll(string(config), " on-marked-down shutdown-sessions", "")
	must(t, os.WriteFile(path, []byte(lenient), 0o644))
	ctx, s := within(t), l.Shard(0)
	must(t, l.Start(ctx))
	healthy(ctx, t, s)
	must(t, s.Prepare(ctx))
	must(t, l.AwaitServing(ctx))
	must(t, l.AwaitPoolers(ctx))
	return l, s
}

func healthy(ctx context.Context, t *testing.T, s *lab.Shard) *lab.Member {
	t.Helper()
	leader, err := s.AwaitHealthy(ctx)
	must(t, err)
	must(t, s.AwaitSync(ctx))
	return leader
}

func within(t *testing.T) context.Context { t.Helper(); return testkit.Within(t, patience) }

func must(t *testing.T, err error) { t.Helper(); testkit.Must(t, err) }

func await(ctx context.Context, t *testing.T, what string, probe func() error) {
	t.Helper()
	testkit.Await(ctx, t, what, probe)
}

// status is a bouncer's word on itself and on its shard.
type status struct {
	Clients *int `json:"clients"`
	Shards  map[string]struct {
		Leader   string `json:"leader"`
		Held     bool   `json:"held"`
		Paused   bool   `json:"paused"`
		Handover string `json:"handover"`
	} `json:"shards"`
}

func statusOf(ctx context.Context, l *lab.Lab, b *lab.Bouncer) (s status, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.API+"/status", nil)
	if err != nil {
		return s, err
	}
	response, err := l.HTTP().Do(request)
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	return s, json.NewDecoder(response.Body).Decode(&s)
}
