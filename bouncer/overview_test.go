package bouncer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler"
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
		{key: cluster.Bouncer{Name: "b1"}, status: &Status{Name: "b1", Shards: map[config.ShardID]ShardStatus{"service/s1": shard("db2")}}},
		{key: cluster.Bouncer{Name: "b2"}, status: &Status{Name: "b2", Shards: map[config.ShardID]ShardStatus{"service/s1": held}}},
		{key: cluster.Bouncer{Name: "b3", Applied: map[string]cluster.BouncerShard{"service/s1": {Leader: "db2", Timeline: 2, State: cluster.RouteOpen}}}, err: errors.New("no answer")},
	}
	rows := overview(cluster.NewKeys("", "", ""), pairs, bouncers)
	row := func(shard, bouncer string) RouteRow {
		return RouteRow{Shard: shard, Bouncer: bouncer, Leader: "db2", Address: "10.0.0.2:5432", Timeline: 2, State: cluster.RouteOpen, Since: route.Since}
	}
	first, second, third := row("service/s1", "b1"), row("service/s1", "b2"), row("service/s1", "b3")
	first.Answers, first.VerifiedAt = true, &verified
	second.Answers, second.Leader, second.Behind, second.Paused, second.ClientsWaiting = true, "db1", true, true, 7
	third.Address, third.Since, third.Problem = "", time.Time{}, "no answer"
	nobody := row("service/s2", "")
	nobody.Problem = "no bouncer has it"
	malformed := RouteRow{Shard: "service/s3", Problem: "route is not JSON of the expected shape: unexpected end of JSON input"}
	for i, want := range []RouteRow{first, second, third, nobody, malformed} {
		if i >= len(rows) || !reflect.DeepEqual(rows[i], want) {
			t.Fatalf("rows are %+v; number %d is to be %+v", rows, i, want)
		}
	}
	if len(rows) != 5 {
		t.Errorf("rows are %+v", rows)
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
	w := serving(t, func(c *config.Config) { c.Authentication = config.Credentials{Username: "op", Password: "secret"} })
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
	before24 := !pooler.AskVersion(w.ctx, w.config).AtLeast(1, 24)
	if note := RightsNote(w.ctx, w.config); strings.Contains(note, "tcp_user_timeout depends on that") != before24 {
		t.Errorf("of the rights it says %q", note)
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

// A bouncer that writes another's name into its own key is shown by its own, and is not asked.
func TestBouncersNameIsItsKeys(t *testing.T) {
	value := []byte(`{"name":"pooler1","url":"http://127.0.0.1:1","all":true}`)
	all := askAll(t.Context(), nil, cluster.NewKeys("", "", ""), api.KVPairs{{Key: "lictor/bouncers/evil", Value: value}, {Key: "lictor/bouncers/x/pooler1", Value: value}}, nil)
	for i, name := range []string{"evil", "x/pooler1"} {
		if got := all[i]; got.key.Name != name || got.err == nil || got.status != nil {
			t.Errorf("%+v, want the name %s and an error", got, name)
		}
	}
}

// Nor does it pass for another by what it answers.
func TestBouncersAnswerIsInItsKeysName(t *testing.T) {
	says := `{"name":"pooler1","shards":{"service/s1":{"leader":"db9"}},"refused":["s2"],"problems":{"service/s3":"x","s2":"x"}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, says) }))
	defer server.Close()
	client, err := clientFor(config.Config{}, "")
	if err != nil {
		t.Fatal(err)
	}
	keys := cluster.NewKeys("", "", "")
	value := []byte(`{"name":"evil","url":"` + server.URL + `","all":true}`)
	all := askAll(t.Context(), client, keys, api.KVPairs{{Key: "lictor/bouncers/evil", Value: value}}, nil)
	rows := overview(keys, api.KVPairs{{Key: "lictor/routes/service/s3", Value: []byte("{")}}, all)
	if len(rows) != 3 {
		t.Errorf("%+v, want three rows", rows)
	}
	for _, row := range rows {
		if row.Bouncer != "evil" {
			t.Errorf("%+v is shown as another bouncer's", row)
		}
	}
}

// Of many bouncers a command asks some at a time.
func TestBouncersAreAskedInTurns(t *testing.T) {
	const bouncers = 5 * bouncersAtOnce
	var mu sync.Mutex
	inside, most, asked := 0, 0, 0
	full := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		inside++
		asked++
		most = max(most, inside)
		if asked == bouncersAtOnce {
			close(full)
		}
		mu.Unlock()
		<-full
		_, _ = io.WriteString(w, "{}")
		mu.Lock()
		inside--
		mu.Unlock()
	}))
	defer server.Close()
	client, err := clientFor(config.Config{}, "")
	if err != nil {
		t.Fatal(err)
	}
	var keys api.KVPairs
	for i := range bouncers {
		name := fmt.Sprintf("pooler%d", i)
		keys = append(keys, &api.KVPair{Key: "lictor/bouncers/" + name, Value: fmt.Appendf(nil, `{"name":%q,"url":%q,"all":true}`, name, server.URL)})
	}
	for _, one := range askAll(t.Context(), client, cluster.NewKeys("", "", ""), keys, nil) {
		if one.err != nil || one.status == nil {
			t.Errorf("%s: %v", one.key.Name, one.err)
		}
	}
	if most != bouncersAtOnce || asked != bouncers {
		t.Errorf("%d were asked, at most %d at a time", asked, most)
	}
}

// Nor does it fill a screen with a number that cannot be taken, which a JSON decoder repeats.
func TestBouncersAnswerIsCut(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"clients":`+strings.Repeat("1", 1<<20)+`}`)
	}))
	defer server.Close()
	client, err := clientFor(config.Config{}, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := askStatus(t.Context(), client, server.URL); err == nil || len(err.Error()) > 2*printable.MaxText {
		t.Errorf("an error of %d bytes", len(fmt.Sprint(err)))
	}
}
