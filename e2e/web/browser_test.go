package web

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// hostile is markup that a page must show, and not obey.
const hostile = `<img src=x onerror="window.obeyed=1"><script>window.obeyed=1</script>`

// chromium is what drives a browser, and the browser; the test is skipped where they are missing.
func chromium(ctx context.Context, t *testing.T) (playwright, browser string) {
	t.Helper()
	if testing.Short() {
		t.Skip("Chromium: make test-e2e")
	}
	out, err := exec.CommandContext(ctx, "../tools/browser.sh").Output()
	if err != nil {
		t.Skipf("playwright-core is not to be had: run `make browser`, or name its folder in PLAYWRIGHT: %v", err)
	}
	for _, name := range []string{os.Getenv("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return strings.TrimSpace(string(out)), path
		}
	}
	t.Skip("there is no Chromium: run `make browser`, or name one in CHROMIUM")
	return "", ""
}

// look runs a scenario of browser.js on the page.
func (s *site) look(ctx context.Context, scenario string) {
	s.t.Helper()
	t, ok := s.t.(*testing.T)
	if !ok {
		s.t.Fatal("browsers are for tests")
	}
	look(ctx, t, scenario, s.url, "CONSUL=http://"+s.address)
}

// look runs a scenario of browser.js on the page at an address.
func look(ctx context.Context, t *testing.T, scenario, page string, env ...string) {
	t.Helper()
	playwright, browser := chromium(ctx, t)
	pictures := os.Getenv("LICTOR_TEST_PICTURES")
	if pictures == "" {
		pictures = t.TempDir()
	}
	cmd := exec.CommandContext(ctx, "node", "browser.js", scenario)
	cmd.Env = append(append(cmd.Environ(), "PLAYWRIGHT="+playwright, "CHROMIUM="+browser, "PAGE="+page, "PICTURES="+pictures), env...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Errorf("the page is not as it should be: %v (pictures: %s)", err, filepath.Clean(pictures))
	} else {
		testkit.Must(t, err)
	}
}

// The page in a real browser: worst first, filters, a shard with its events, a change that is seen
// live, commands to copy, keys, a phone's width, and nobody's markup obeyed.
func TestPage(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	chromium(ctx, t)
	s := newSite(ctx, t, 12)
	s.spoil()
	s.look(ctx, "tour")
}

// A thousand shards in a real browser.
func TestPageOfThousandShards(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	chromium(ctx, t)
	s := newSite(ctx, t, manyShards)
	s.look(ctx, "many")
}

// spoil makes of healthy shards what operators meet.
func (s *site) spoil() {
	s.t.Helper()
	for i := range 12 {
		for j := range 3 {
			key := fmt.Sprintf("service/s%03d/members/s%03d-db%d", i+1, i+1, j+1)
			s.change(key, func(m map[string]any) {
				m["tags"] = map[string]any{"zone": []string{"a", "b", "c"}[j], "host": fmt.Sprintf("host%d", (i+j)%6+1)}
			})
		}
	}
	s.change("service/s003/members/s003-db2", func(m map[string]any) { m["state"] = "start failed"; delete(m, "replication_state") })
	s.change("service/s005/config", func(m map[string]any) { m["pause"] = true })
	s.change("service/s006/members/s006-db3", func(m map[string]any) { m["xlog_location"], m["replay_lsn"], m["receive_lsn"] = 4<<30, 4<<30, 4<<30 })
	s.change("service/s007/members/s007-db3", func(m map[string]any) { m["pending_restart"] = true })
	s.change("service/s009/members/s009-db3", func(m map[string]any) {
		m["version"], m["state"] = hostile, hostile
		m["tags"] = map[string]any{"zone": hostile, "host": "host3"}
	})
	s.change("service/s004/status", func(m map[string]any) {
		m["slots"] = map[string]any{"s004_db2": 5 << 30, "s004_db3": 5<<30 - 3<<20, "s004_db9": 4 << 30}
		m["retain_slots"] = []string{"s004_db9"}
	})
	_, err := s.consul.KV().Delete("service/s002/leader", nil)
	testkit.Must(s.t, err)
	now := time.Now().UTC().Add(-3 * time.Hour).Truncate(time.Millisecond)
	phases := func(ms ...int64) (list []events.Phase) {
		for i, name := range []string{events.Noticed, events.Elected, events.Promoted, events.Routed, events.FirstWrite}[:len(ms)] {
			list = append(list, events.Phase{Name: name, AtMS: ms[i]})
		}
		return list
	}
	log := events.Log{}.Merge([]events.Event{
		{At: now.Add(-20 * 24 * time.Hour), Kind: events.Bootstrap, By: "s004-db1", To: "s004-db1", Timeline: 1, Outcome: events.Done, Cause: "initdb"},
		{At: now.Add(-9 * 24 * time.Hour), Kind: events.Switchover, By: "s004-db2", From: "s004-db1", To: "s004-db2", Timeline: 2, Outcome: events.Done, Cause: "asked for by postgres@host1", TookMS: 412, Phases: phases(180, 190, 330, 412, 455)},
		{At: now.Add(-8 * 24 * time.Hour), Kind: events.Switchover, By: "s004-db2", From: "s004-db2", To: "s004-db1", Outcome: events.Refused, Cause: "s004-db1 lags 41 MB"},
		{At: now.Add(-2 * time.Hour), Kind: events.MemberLost, By: "s004-db2", To: "s004-db1", Cause: "its session has ended"},
		{At: now.Add(-2*time.Hour + time.Second), Kind: events.Failover, By: "s004-db1", From: "s004-db2", To: "s004-db1", Timeline: 3, Outcome: events.Done, Cause: "the lease of s004-db2 has run out: its host does not answer", TookMS: 10_020, Phases: phases(8_200, 8_460, 9_700, 10_020, 10_410)},
		{At: now.Add(-time.Hour), Kind: events.MemberBack, By: "s004-db1", To: "s004-db2"},
		{At: now, Kind: events.Configured, By: "s004-db1", Cause: "work_mem: 16MB -> 32MB " + hostile},
	})
	value := map[string]any{"version": 1, "events": log.Events}
	s.change("lictor/events/service/s004", func(m map[string]any) {
		for name, v := range value {
			m[name] = v
		}
	})
	session, _, err := s.consul.Session().CreateNoChecks(&api.SessionEntry{Name: "poolers", Behavior: api.SessionBehaviorDelete}, nil)
	testkit.Must(s.t, err)
	took, _, err := s.consul.KV().Acquire(&api.KVPair{
		Key: "lictor/bouncers/pooler99", Session: session,
		Value: fmt.Appendf(nil, `{"name":"pooler99","url":"http://pooler99:8009","version":%q,"pgbouncer":"1.25.2","shards":["service/s008","service/s009"],"applied":{"service/s009":{"leader":"s009-db2","timeline":1,"state":"open"},"service/s008":{"leader":"s008-db1","timeline":2,"state":"open","held":true}}}`, hostile),
	}, nil)
	if testkit.Must(s.t, err); !took {
		s.t.Fatal("pooler99 has no key")
	}
}
