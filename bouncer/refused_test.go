package bouncer

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// loadShards writes bouncer.yml with these shards and reads it as a bouncer does that starts.
func (w *world) loadShards(shards string) {
	w.t.Helper()
	c := w.config
	w.write("bouncer.yml", fmt.Sprintf(`
name: %s
listen: %s
consul: {host: "%s"}
routes_prefix: %s
hold_timeout: 300
pgbouncer: {config: %s, admin: "%s", user: pooler, settings: {query_wait_timeout: 301}}
shards: %s
`, c.Name, c.Listen, c.Consul.Host, c.RoutesPrefix, c.PgBouncer.Config, c.PgBouncer.Admin, shards))
	loaded, _, err := config.LoadServable(settings.Source{Path: filepath.Join(w.dir, "bouncer.yml")})
	if err != nil {
		w.t.Fatal(err)
	}
	w.config = loaded
}

// A bouncer that starts with a file in which one shard is wrong serves the others, follows that
// one with what PgBouncer had of it, holds its clients as any, and tells.
func TestBadShardStopsNoOther(t *testing.T) {
	w := newWorld(t, nil)
	scopes := []string{"s2", "s3", "s4", "s5"}
	keys := map[string]string{"s1": w.keys.Route()}
	for _, scope := range scopes {
		keys[scope] = cluster.NewKeys("", scope, w.config.RoutesPrefix).Route()
	}
	for _, scope := range append(scopes, "s1") {
		w.put(keys[scope], w.route(0, cluster.RouteOpen))
	}
	const s3, s5 = `{scope: s3, databases: ["s3=s1"], readers: "off"}`, `{scope: s5, databases: ["s5=s1"], readers: "off"}`
	w.loadShards(`[{scope: s1}, {scope: s2, databases: ["s2=s1"], pool_size: 7, options: {application_name: two}}, ` + s3 + `, ` + s5 + `]`)
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitHealthy()
	client := w.connect("s2")
	w.exec(client, "SELECT 1")
	stop()

	// s2 has a bad option now, s3 and s5 nobody can follow, and s4 is new and wrong.
	bad := `[{scope: s1}, {scope: s2, databases: ["s2=s1"], pool_size: 8, options: {application_nam: two}}, {scope: s3, patroni: perhaps, databases: ["s3=s1"], readers: "off"}, {scope: s4, databases: ["s4=s1"], pool_mode: fast}, {scope: "--s5", databases: ["s5=s1"], readers: "off"}]`
	w.loadShards(bad)
	stop = w.bouncer()
	w.awaitLeader(0)
	w.put(keys["s1"], w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.put(keys["s2"], w.route(1, cluster.RouteHandover))
	w.await("hold of s2", func() error {
		all, err := w.admin().Databases(w.ctx)
		if err == nil && (!all["s2"].Paused || all["s3"].Paused) {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
	w.put(keys["s3"], w.route(1, cluster.RouteOpen))
	w.put(keys["s5"], w.route(1, cluster.RouteOpen))
	answer := w.awaitMember1(client)
	w.put(keys["s2"], w.route(1, cluster.RouteOpen))
	if err := <-answer; err != nil {
		t.Errorf("the client of s2: %v", err)
	}
	all, err := w.admin().Databases(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, offered := all["s4"]; all["s2"].PoolSize != 7 || all["s3"].Port != w.site.members[0].Port || all["s5"].Port != w.site.members[0].Port || offered {
		t.Errorf("databases are %+v", all)
	}
	installed, err := os.ReadFile(w.config.PgBouncer.Config)
	if err != nil || !strings.Contains(string(installed), "application_name=two") {
		t.Errorf("%v, the file is %s", err, installed)
	}

	const (
		s2is = "shard service/s2 is served with the options that "
		s3is = "shard service/s3 is not offered, and what PgBouncer has of it stays as it is: shards[2].patroni: "
		s5is = "shard shards[4] is not offered, and what PgBouncer has of it stays as it is: shards[4].scope: "
		s4is = "shard service/s4 is not offered, and what PgBouncer has of it stays as it is: shards[3].pool_mode: "
	)
	told := map[string]string{"service/s2": s2is, "service/s3": s3is, "service/s4": s4is, "shards[4]": s5is}
	w.await("what is wrong being told", func() error {
		s, err := w.status()
		if err != nil {
			return err
		}
		if !slices.Equal(s.Refused, []string{"service/s2", "service/s3", "service/s4", "shards[4]"}) || len(s.Problems) != 4 {
			return fmt.Errorf("refused %q, problems %v", s.Refused, s.Problems)
		}
		for name, text := range told {
			if !strings.HasPrefix(s.Problems[name], text) {
				return fmt.Errorf("%s: %s", name, s.Problems[name])
			}
		}
		if !strings.HasPrefix(s.Shards["service/s2"].Error, s2is) || s.Shards["service/s1"].Error != "" {
			return fmt.Errorf("%+v", s.Shards)
		}
		return nil
	})
	var h Health // all bouncers may have got this file: nobody is taken out of the balancer for it
	if code, err := w.http(http.MethodGet, "/health", &h); err != nil || code != http.StatusOK || len(h.Reasons) > 0 || len(h.Warnings) != 4 {
		t.Errorf("/health answers %d %+v %v", code, h, err)
	}
	rows, err := Overview(w.ctx, w.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if row.Shard == "service/s5" && row.Problem == "no bouncer has it" {
			continue // its route; what is wrong stands at its place in bouncer.yml
		}
		if !strings.HasPrefix(row.Problem, told[row.Shard]) || row.Bouncer != "b1" || row.Shard == "service/s1" && row.Problem != "" {
			t.Errorf("lictor routes shows %+v", row)
		}
		delete(told, row.Shard)
	}
	if len(told) > 0 {
		t.Errorf("lictor routes tells nothing of %v", told)
	}
	for _, text := range []string{s2is, s3is, s4is, s5is} {
		if n := strings.Count(w.log.String(), `"message":"`+text); n != 1 {
			t.Errorf("the log has %d times %s", n, text)
		}
	}
	_, presence, err := w.presence()
	if err != nil || !slices.Equal(presence.Shards, []string{"service/s1", "service/s2"}) || presence.All {
		t.Errorf("leaders hear of %v, all %v, %v", presence.Shards, presence.All, err)
	}
	stop()

	// As long as it is wrong the next bouncer does the same, and once it is not, everything is served.
	w.loadShards(bad)
	stop = w.bouncer()
	w.awaitLeader(1)
	if all, err = w.admin().Databases(w.ctx); err != nil || all["s2"].PoolSize != 7 || all["s3"].Name == "" || all["s5"].Name == "" {
		t.Errorf("%v, databases are %+v", err, all)
	}
	w.loadShards(`[{scope: s1}, {scope: s2, databases: ["s2=s1"], pool_size: 8}, ` + s3 + `, {scope: s4, databases: ["s4=s1"]}, ` + s5 + `]`)
	w.changes <- w.config
	w.awaitHealthy()
	w.await("s2 as it is wanted", func() error {
		all, err := w.admin().Databases(w.ctx)
		there := w.site.members[1].Port // where s3 and s5 have gone while nobody followed them
		if err == nil && (all["s2"].PoolSize != 8 || all["s4"].Name == "" || all["s3"].Port != there || all["s5"].Port != there) {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
	if s, err := w.status(); err != nil || len(s.Problems)+len(s.Refused) > 0 {
		t.Error(errors.Join(err, fmt.Errorf("%v", s.Problems)))
	}
	stop()
}

// On a new host a shard that is wrong may be one that clients find on the others.
func TestBadShardOnNewHost(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.put(cluster.NewKeys("", "s2", w.config.RoutesPrefix).Route(), w.route(0, cluster.RouteOpen))
	unhealthy := func() {
		t.Helper()
		w.awaitLeader(0)
		w.await("the reason", func() error {
			var h Health
			code, err := w.http(http.MethodGet, "/health", &h)
			if err == nil && (code != http.StatusServiceUnavailable || len(h.Reasons) != 1 || !strings.HasPrefix(h.Reasons[0], "shard service/s2 is not offered")) {
				err = fmt.Errorf("%d %+v", code, h)
			}
			return err
		})
	}
	for start := range 2 { // nor is it right for having been restarted
		w.loadShards(`[{scope: s1}, {scope: s2, databases: ["s2=s1"], pool_mode: fast}]`)
		stop := w.bouncer()
		if start == 0 {
			w.pgbouncer()
		}
		unhealthy()
		stop()
	}
	w.loadShards(`[{scope: s1}, {scope: s2, databases: ["s2=s1"]}]`)
	w.bouncer()
	w.awaitHealthy()
}
