package bouncer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func TestOverview(t *testing.T) {
	now := time.Unix(100000, 0).UTC()
	verified := now.Add(-3 * time.Second)
	route := cluster.Route{
		Version: 1, SystemIdentifier: "7", State: cluster.RouteOpen, Timeline: 2, Since: now.Add(-time.Minute),
		Leader: cluster.RouteMember{Name: "db2", Host: "10.0.0.2", Port: 5432},
	}
	value, err := json.Marshal(route)
	if err != nil {
		t.Fatal(err)
	}
	pairs := api.KVPairs{
		{Key: "lictor/routes/service/s1", Value: value},
		{Key: "lictor/routes/service/s2", Value: value},
		{Key: "lictor/routes/service/s3", Value: []byte("{")},
	}
	shard := func(leader string) ShardStatus {
		return ShardStatus{Leader: leader, Host: "10.0.0.2", Port: 5432, Timeline: 2, State: cluster.RouteOpen, Since: route.Since, VerifiedAt: &verified}
	}
	held := shard("db1")
	held.Paused, held.ClientsWaiting, held.VerifiedAt = true, 7, nil
	bouncers := []asked{
		{key: cluster.Bouncer{Name: "b1"}, status: &Status{Name: "b1", Shards: map[shardID]ShardStatus{"service/s1": shard("db2")}}},
		{key: cluster.Bouncer{Name: "b2"}, status: &Status{Name: "b2", Shards: map[shardID]ShardStatus{"service/s1": held}}},
		{key: cluster.Bouncer{Name: "b3", Applied: map[string]cluster.BouncerShard{"service/s1": {Leader: "db2", Timeline: 2, State: cluster.RouteOpen}}}, err: errors.New("no answer")},
	}
	rows := overview(cluster.NewKeys("", "", ""), pairs, bouncers)
	var table bytes.Buffer
	if err := formatRoutes(&table, rows, now); err != nil {
		t.Fatal(err)
	}
	want := `
SHARD       BOUNCER  PRIMARY  ADDRESS        TL  STATE  SINCE     VERIFIED  PAUSED  WAITING  PROBLEM
service/s1  b1       db2      10.0.0.2:5432  2   open   1m0s ago  3s ago            0        
service/s1  b2       db1      10.0.0.2:5432  2   open   1m0s ago  no        yes     7        Consul's route is newer
service/s1  b3       db2                     2   open             no                0        no answer
service/s2  -        db2      10.0.0.2:5432  2   open   1m0s ago  no                0        no bouncer has it
service/s3  -                                0                    no                0        route is not JSON of the expected shape: unexpected end of JSON input
`
	if got := "\n" + table.String(); got != want {
		t.Errorf("table is %s", got)
	}
}

// What `lictor routes` shows comes from the bouncers themselves.
func TestOverviewAsksBouncers(t *testing.T) {
	w := serving(t, nil)
	client := w.connect("s1")
	w.exec(client, "SELECT 1")
	row := func(what string, want func(RouteRow) bool) {
		t.Helper()
		w.await(what, func() error {
			rows, err := Overview(w.ctx, w.config)
			if err != nil || len(rows) != 1 || !want(rows[0]) {
				return fmt.Errorf("%+v %w", rows, err)
			}
			return nil
		})
	}
	row("open", func(r RouteRow) bool {
		return r.Shard == "service/s1" && r.Bouncer == "b1" && r.Answers && r.Leader == "db1" && r.VerifiedAt != nil && !r.Paused && !r.Behind
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
	w.awaitPaused(true)
	answer := make(chan error, 1)
	go func() {
		_, err := w.ask(w.ctx, client)
		answer <- err
	}()
	row("paused", func(r RouteRow) bool { return r.Paused && r.ClientsWaiting == 1 && r.State == cluster.RouteDown })
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	row("released", func(r RouteRow) bool { return !r.Paused && r.ClientsWaiting == 0 })
}

func TestDrainAwaitsClients(t *testing.T) {
	w := serving(t, nil)
	w.awaitHealthy()
	client := w.connect("s1")
	w.await("the client being counted", func() error {
		s, err := AskStatus(w.ctx, w.config)
		if err == nil && (s.Clients == nil || *s.Clients != 1) {
			err = errors.New("not yet")
		}
		return err
	})
	if err := Drain(w.ctx, w.config, true); err != nil {
		t.Fatal(err)
	}
	if s, err := AskStatus(w.ctx, w.config); err != nil || s.Health.Healthy || !s.Draining {
		t.Fatalf("%+v %v", s.Health, err)
	}
	var counts []int
	if err := AwaitClientsGone(w.ctx, w.config, func(n int) {
		if counts = append(counts, n); n == 1 {
			_ = client.Close(context.Background())
		}
	}); err != nil || !slices.Equal(counts, []int{1, 0}) {
		t.Fatalf("%v %v", counts, err)
	}
	if err := Drain(w.ctx, w.config, false); err != nil {
		t.Fatal(err)
	}
	w.awaitHealthy()
}

func TestDrainNeedsPassword(t *testing.T) {
	w := serving(t, func(c *Config) { c.Authentication = Credentials{"op", "secret"} })
	if err := Drain(w.ctx, w.config, true); err != nil {
		t.Fatal(err)
	}
	w.config.Authentication.Password = "wrong"
	if err := Drain(w.ctx, w.config, false); err == nil || !strings.Contains(err.Error(), "wrong") {
		t.Fatalf("error is %v", err)
	}
}

func TestDryRunShowsTheDifference(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	stop()
	var out bytes.Buffer
	if err := DryRun(w.ctx, w.config, &out); err != nil || out.Len() > 0 {
		t.Fatalf("nothing has changed: %v\n%s", err, out.String())
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	before, err := os.ReadFile(w.config.PgBouncer.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := DryRun(w.ctx, w.config, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("\n-s1 = host=127.0.0.1 port=%d ", w.site.members[0].Port), fmt.Sprintf("\n+s1 = host=127.0.0.1 port=%d ", w.site.members[1].Port),
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	after, err := os.ReadFile(w.config.PgBouncer.Config)
	if err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the file has changed: %v", err)
	}
	// All routes gone: said, and not applied without being allowed.
	if _, err := w.site.client.KV().DeleteTree(w.keys.Routes(), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(w.config.StateFile); err != nil {
		t.Fatal(err)
	}
	if err := DryRun(w.ctx, w.config, &out); err == nil || !strings.Contains(err.Error(), "allow_empty") {
		t.Fatalf("error is %v", err)
	}
	w.config.AllowEmpty = true
	if err := DryRun(w.ctx, w.config, &out); err != nil {
		t.Fatal(err)
	}
}

// formatRoutes writes rows as a table, to compare them. Times are ages before now.
func formatRoutes(w io.Writer, rows []RouteRow, now time.Time) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var errs []error
	line := func(format string, args ...any) {
		_, err := fmt.Fprintf(out, format, args...)
		errs = append(errs, err)
	}
	line("SHARD\tBOUNCER\tPRIMARY\tADDRESS\tTL\tSTATE\tSINCE\tVERIFIED\tPAUSED\tWAITING\tPROBLEM\n")
	for _, r := range rows {
		verified, paused, problem := "no", "", r.Problem
		if r.VerifiedAt != nil {
			verified = age(*r.VerifiedAt, now)
		}
		if r.Paused {
			paused = "yes"
		}
		if problem == "" && r.Behind {
			problem = "Consul's route is newer"
		}
		line("%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%d\t%s\n", r.Shard, cmp.Or(r.Bouncer, "-"), r.Leader, r.Address, r.Timeline, r.State,
			age(r.Since, now), verified, paused, r.ClientsWaiting, problem)
	}
	return errors.Join(append(errs, out.Flush())...)
}

func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := max(now.Sub(t), 0)
	switch {
	case d < 10*time.Second:
		return d.Round(100*time.Millisecond).String() + " ago"
	case d < 48*time.Hour:
		return d.Round(time.Second).String() + " ago"
	}
	return strconv.Itoa(int(d.Hours()/24)) + " days ago"
}
