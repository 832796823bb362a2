package bouncer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// announcement is a leader's side of a handover.
type announcement struct {
	w       *world
	value   cluster.Handover
	session string
}

// shortHold is the hold_timeout, in seconds, of tests that wait for it: long enough
// for a busy machine to see the clients held before they are released.
const shortHold = 10

// announce writes a handover of shard s1 as its leader does.
func (w *world) announce(id string, deadline time.Duration) *announcement {
	w.t.Helper()
	session, _, err := w.site.client.Session().CreateNoChecks(&api.SessionEntry{LockDelay: time.Millisecond}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	a := &announcement{w: w, session: session, value: cluster.Handover{
		ID: id, Leader: "db1", Successor: "db2", Timeline: 1, DeadlineMS: deadline.Milliseconds(), State: cluster.HandoverAnnounced,
	}}
	w.t.Cleanup(a.destroySession)
	a.write(cluster.HandoverAnnounced)
	return a
}

func (a *announcement) destroySession() { _, _ = a.w.site.client.Session().Destroy(a.session, nil) }

func (a *announcement) write(state cluster.HandoverState) {
	a.w.t.Helper()
	a.value.State = state
	value, err := json.Marshal(a.value)
	if err != nil {
		a.w.t.Fatal(err)
	}
	ok, _, err := a.w.site.client.KV().Acquire(&api.KVPair{Key: a.w.keys.Handover(), Value: value, Session: a.session}, nil)
	if err != nil || !ok {
		a.w.t.Fatalf("writing the handover: %v %v", ok, err)
	}
}

// held asks the bouncer until it holds the clients. The answer to a leader that does
// not wait may be that PgBouncer has not accepted PAUSE yet.
func (a *announcement) held() (answer cluster.HandoverAnswer) {
	a.w.t.Helper()
	a.w.await("clients held for the handover", func() error {
		var (
			code int
			err  error
		)
		if code, answer, err = a.post(0); err == nil && (code != http.StatusOK || !answer.Paused) {
			err = fmt.Errorf("answer is %d %+v", code, answer)
		}
		return err
	})
	return answer
}

// ask posts the handover to the bouncer.
func (a *announcement) ask(wait time.Duration) (int, cluster.HandoverAnswer) {
	a.w.t.Helper()
	code, answer, err := a.post(wait)
	if err != nil {
		a.w.t.Fatal(err)
	}
	return code, answer
}

func (a *announcement) post(wait time.Duration) (int, cluster.HandoverAnswer, error) {
	var answer cluster.HandoverAnswer
	code, err := a.w.post("/handover", cluster.HandoverRequest{
		Namespace: "service", Scope: "s1", Handover: a.value, WaitMS: wait.Milliseconds(),
	}, &answer)
	return code, answer, err
}

func (w *world) post(path string, body, into any) (int, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	request, err := http.NewRequestWithContext(w.ctx, http.MethodPost, "http://"+w.config.Listen+path, bytes.NewReader(text))
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	return response.StatusCode, json.NewDecoder(response.Body).Decode(into)
}

// awaitPaused waits until PgBouncer, which may still be starting, holds the clients
// of shard s1 or does not.
func (w *world) awaitPaused(want bool) {
	w.t.Helper()
	options, err := w.config.Admin()
	if err != nil {
		w.t.Fatal(err)
	}
	w.await(fmt.Sprintf("paused: %v", want), func() error {
		conn, err := pgbouncer.Connect(w.ctx, options)
		if err != nil {
			return err
		}
		defer conn.Close()
		all, err := conn.Databases(w.ctx)
		if d, found := all["s1"]; err == nil && (!found || d.Paused != want) {
			err = fmt.Errorf("%+v", d)
		}
		return err
	})
}

// serving starts a world whose shard s1 is led by member 0.
func serving(t *testing.T, edit func(*config.Config)) *world {
	w := newWorld(t, edit)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	return w
}

// The whole of a planned switchover, under load and without an error.
func TestAcknowledgedHandover(t *testing.T) {
	w := serving(t, nil)
	count, stop := w.load(8)
	w.await("load", func() error {
		if count(0) < 20 {
			return errors.New("too few queries yet")
		}
		return nil
	})
	a := w.announce("h1", 30*time.Second)
	code, answer := a.ask(20 * time.Second)
	if code != http.StatusOK || !answer.Quiet() || answer.ID != "h1" || answer.Bouncer != "b1" || answer.Problem != "" {
		t.Fatalf("answer is %d %+v", code, answer)
	}
	w.await("all clients waiting", func() error {
		if _, answer := a.ask(0); answer.ClientsWaiting != 8 {
			return fmt.Errorf("%+v", answer)
		}
		return nil
	})
	before := count(0) // only now: a client counts its answer when it has it
	w.awaitHealthy()
	w.put(w.keys.Route(), w.route(1, cluster.RoutePromoting))
	w.awaitShard("promoting", func(s ShardStatus) bool { return s.Held && s.Leader == "db2" && s.VerifiedAt != nil })
	if got := count(0); got != before || count(1) > 0 {
		t.Fatalf("queries ran while clients were held: %d -> %d, %d", before, got, count(1))
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	a.write(cluster.HandoverDone)
	w.await("queries at the new primary", func() error {
		if count(1) < 20 {
			return errors.New("too few queries yet")
		}
		return nil
	})
	if err := stop(); err != nil {
		t.Fatalf("clients saw an error: %v", err)
	}
}

// A leader that cannot reach the bouncer over HTTP has its clients held all the same.
func TestHandoverByConsulAlone(t *testing.T) {
	w := serving(t, nil)
	w.announce("h1", 30*time.Second)
	w.awaitPaused(true)
}

func TestHandoverEnds(t *testing.T) {
	for name, end := range map[string]func(*announcement){
		"cancelled": func(a *announcement) { a.write(cluster.HandoverCancelled) },
		"told": func(a *announcement) {
			a.write(cluster.HandoverCancelled)
			if code, answer := a.ask(0); code != http.StatusOK || answer.Paused {
				a.w.t.Errorf("answer is %d %+v", code, answer)
			}
		},
		"deleted": func(a *announcement) {
			if _, err := a.w.site.client.KV().Delete(a.w.keys.Handover(), nil); err != nil {
				a.w.t.Fatal(err)
			}
		},
		"leader lost": (*announcement).destroySession,
	} {
		t.Run(strings.ReplaceAll(name, " ", ""), func(t *testing.T) {
			w := serving(t, nil)
			client := w.connect("s1")
			w.exec(client, "SELECT 1") // in a pool without a server, even a login waits
			a := w.announce("h1", 5*time.Minute)
			a.held()
			end(a)
			if got := w.where(client); got != 0 {
				t.Fatalf("query went to member %d", got)
			}
			w.awaitPaused(false)
		})
	}
}

// A leader that hangs leaves its announcement where it is: nobody waits longer
// than it said.
func TestHandoverDeadline(t *testing.T) {
	t.Parallel() // it waits
	w := serving(t, nil)
	a := w.announce("h1", shortHold*time.Second)
	a.held()
	if got := w.where(w.connect("s1")); got != 0 {
		t.Fatalf("query went to member %d", got)
	}
	if code, answer := a.ask(0); code != http.StatusConflict {
		t.Fatalf("after the deadline the answer is %d %+v", code, answer)
	}
}

func TestDeadMansTimerEndsHandover(t *testing.T) {
	t.Parallel() // it waits
	w := serving(t, func(c *config.Config) { c.HoldTimeout = shortHold })
	a := w.announce("h1", 5*time.Minute)
	a.held()
	if got := w.where(w.connect("s1")); got != 0 {
		t.Fatalf("query went to member %d", got)
	}
	w.await("the answer saying so", func() error {
		_, answer, err := a.post(0)
		if err == nil && (answer.Paused || !strings.Contains(answer.Problem, "hold_timeout")) {
			err = fmt.Errorf("%+v", answer)
		}
		return err
	})
}

// The leader learns how many transactions it would cut off, and when they end.
func TestHandoverAwaitsTransactions(t *testing.T) {
	w := serving(t, nil)
	busy := w.connect("s1")
	w.exec(busy, "BEGIN; SELECT 1")
	a := w.announce("h1", 30*time.Second)
	if answer := a.held(); answer.Busy != 1 || answer.Quiet() {
		t.Fatalf("answer is %+v", answer)
	}
	if code, answer := a.ask(300 * time.Millisecond); code != http.StatusOK || answer.Busy != 1 {
		t.Fatalf("answer is %d %+v", code, answer)
	}
	waited := make(chan error, 1)
	go func() {
		code, answer, err := a.post(20 * time.Second)
		if err == nil && (code != http.StatusOK || !answer.Quiet()) {
			err = fmt.Errorf("answer is %d %+v", code, answer)
		}
		waited <- err
	}()
	w.exec(busy, "SELECT 2")
	w.exec(busy, "COMMIT")
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
}

// Whoever reaches the listener can say what he likes.
func TestHandoverIsNotBelievedUnread(t *testing.T) {
	w := serving(t, nil)
	forged := &announcement{w: w, value: cluster.Handover{ID: "x", Leader: "db1", DeadlineMS: 60000, State: cluster.HandoverAnnounced}}
	if code, answer := forged.ask(0); code != http.StatusConflict || answer.Paused || answer.Problem == "" {
		t.Fatalf("answer is %d %+v", code, answer)
	}
	if w.paused() {
		t.Fatal("a forged handover paused the shard")
	}
	forged.value.ID = ""
	if code, answer := forged.ask(0); code != http.StatusBadRequest {
		t.Fatalf("answer is %d %+v", code, answer)
	}
}

// The bouncer's local Consul agent hangs: neither poke nor handover may wait for it.
func TestHandoverReadsThroughAnotherAddress(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Consul.Hosts = []string{newHangingServer(t), c.Consul.Host}
		c.Consul.Host = ""
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.await("listener", func() error { _, err := w.status(); return err })
	var body map[string]string
	if code, err := w.post("/poke", cluster.Poke{Namespace: "service", Scope: "s1", Index: 1}, &body); err != nil || code != http.StatusAccepted {
		t.Fatalf("poke: %d %v", code, err)
	}
	w.awaitLeader(0)
	w.announce("h1", 30*time.Second).held()
}

func TestHandoverWithoutPgBouncer(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	kill := w.pgbouncer()
	w.awaitLeader(0)
	kill()
	w.await("the loss being noticed", func() error {
		s, err := w.status()
		if err == nil && s.PgBouncer.Answers {
			err = errors.New("it is still thought to be there")
		}
		return err
	})
	if code, answer := w.announce("h1", 30*time.Second).ask(0); code != http.StatusServiceUnavailable || answer.Paused || answer.Problem == "" {
		t.Fatalf("answer is %d %+v", code, answer)
	}
	// The next PgBouncer holds the clients from its start on.
	w.pgbouncer()
	w.await("the new one", func() error {
		if s, err := w.status(); err != nil || !s.PgBouncer.Answers {
			return fmt.Errorf("%+v %w", s.PgBouncer, err)
		}
		return nil
	})
	w.awaitPaused(true)
}

// A bouncer that dies in a handover leaves the clients held; the next one goes on
// with it, or releases them when it is over.
func TestBouncerRestartedInHandover(t *testing.T) {
	for name, cancelled := range map[string]bool{"goes on": false, "is over": true} {
		t.Run(strings.ReplaceAll(name, " ", ""), func(t *testing.T) {
			w := newWorld(t, nil)
			w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
			stop := w.bouncer()
			w.pgbouncer()
			w.awaitLeader(0)
			a := w.announce("h1", 5*time.Minute)
			a.held()
			stop()
			if cancelled {
				a.write(cluster.HandoverCancelled)
			}
			w.bouncer()
			if !cancelled {
				w.await("the answer of the new one", func() error {
					_, answer, err := a.post(0)
					if err == nil && !answer.Paused {
						err = fmt.Errorf("%+v", answer)
					}
					return err
				})
				a.write(cluster.HandoverCancelled)
			}
			w.awaitPaused(false)
			if got := w.where(w.connect("s1")); got != 0 {
				t.Fatalf("query went to member %d", got)
			}
		})
	}
}

// A bouncer that ends in a handover leaves no client waiting for a primary that serves:
// nobody would release it when the handover is called off. One that only takes up another
// configuration goes on holding.
func TestEndReleasesClientsOfPrimaryThatServes(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	w.exec(client, "SELECT 1")
	a := w.announce("h1", 5*time.Minute)
	a.held()
	changed := w.config
	changed.AllowEmpty = true
	w.changes <- changed
	w.await("the other configuration", func() error {
		if strings.Count(w.log.String(), "bouncer starts") != 2 {
			return errors.New("not yet")
		}
		return nil
	})
	a.held()
	if !w.paused() || strings.Contains(w.log.String(), "the bouncer ends: clients") {
		t.Fatal("another configuration released the clients")
	}
	answer := make(chan error, 1)
	go func() {
		_, err := client.Exec(w.ctx, "SELECT 1").ReadAll()
		answer <- err
	}()
	w.awaitPool("a client that waits", func(p pgbouncer.Pool) bool { return p.Database == "s1" && p.ClientsWaiting > 0 })
	stop()
	if w.paused() {
		t.Error("it is still paused")
	}
	if err := <-answer; err != nil {
		t.Errorf("the client that waited: %v", err)
	}
}

// presence is what the keys of the bouncer say.
func (w *world) presence() (*api.KVPair, cluster.Bouncer, error) {
	pairs := make([]*api.KVPair, 2)
	for i, key := range []string{w.keys.Bouncers(), w.keys.BouncersApplied()} {
		pair, _, err := w.site.client.KV().Get(key+w.config.Name, nil)
		if err != nil || pair == nil || pair.Session == "" {
			return nil, cluster.Bouncer{}, fmt.Errorf("key %s: %+v %w", key, pair, err)
		}
		pairs[i] = pair
	}
	if strings.Contains(string(pairs[0].Value), "applied") {
		return nil, cluster.Bouncer{}, fmt.Errorf("agents read what is applied: %s", pairs[0].Value)
	}
	b, err := cluster.ParseBouncer(w.config.Name, pairs[0].Value)
	return pairs[0], b.WithApplied(pairs[1].Value), err
}

// An agent finds in a bouncer's key how to reach it and whom it serves.
func TestPresence(t *testing.T) {
	w := serving(t, func(c *config.Config) { c.Shards = []config.Shard{{Scope: "s1"}} })
	var b cluster.Bouncer
	w.await("the key", func() (err error) {
		if _, b, err = w.presence(); err != nil {
			return err
		}
		if s := b.Applied["service/s1"]; s.Leader != "db1" || s.VerifiedAt == nil || s.State != cluster.RouteOpen {
			return fmt.Errorf("%+v", b)
		}
		return nil
	})
	if b.URL != "http://"+w.config.Listen || b.All || !b.Serves("service", "s1") || b.Serves("service", "s2") {
		t.Fatalf("%+v", b)
	}
}

// A key that somebody else holds, a bouncer of the same name maybe, is left alone,
// and said so of, until it is free.
func TestPresenceOfTheSameName(t *testing.T) {
	w := newWorld(t, nil)
	key := w.config.Keys().Bouncers() + w.config.Name
	session, _, err := w.site.client.Session().CreateNoChecks(&api.SessionEntry{LockDelay: time.Millisecond}, nil)
	if err != nil {
		t.Fatal(err)
	}
	destroy := func() error { _, err := w.site.client.Session().Destroy(session, nil); return err }
	t.Cleanup(func() { _ = destroy() })
	if ok, _, err := w.site.client.KV().Acquire(&api.KVPair{Key: key, Value: []byte("another's"), Session: session}, nil); err != nil || !ok {
		t.Fatalf("taking the key: %v %v", ok, err)
	}
	w.bouncer()
	logged := func(text string) {
		t.Helper()
		w.await("a word on it", func() error {
			if !strings.Contains(w.log.String(), text) {
				return errors.New("none yet")
			}
			return nil
		})
	}
	logged("agents do not see this bouncer")
	if pair, _, err := w.site.client.KV().Get(key, nil); err != nil || pair == nil || pair.Session != session || string(pair.Value) != "another's" {
		t.Fatalf("the key is %+v, %v", pair, err)
	}
	if err := destroy(); err != nil {
		t.Fatal(err)
	}
	logged("agents see this bouncer again")
}

// PAUSE would cut off a login, which PgBouncer remembers as a failed one and tells
// clients of after RESUME: it waits for logins, though not for ever.
func TestHandoverAwaitsLogins(t *testing.T) {
	silent := newHangingServer(t) // takes connections and never answers
	w := newWorld(t, func(c *config.Config) {
		c.PgBouncer.Settings = map[string]any{"server_connect_timeout": 40}
	})
	host, port, err := net.SplitHostPort(silent)
	if err != nil {
		t.Fatal(err)
	}
	r := w.route(0, cluster.RouteOpen)
	r.Leader.Name, r.Leader.Host = "db1", host
	if r.Leader.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), r)
	w.bouncer()
	w.pgbouncer()
	w.awaitShard("leader", func(s ShardStatus) bool { return s.Port == r.Leader.Port && s.VerifiedAt != nil })
	ctx, cancel := context.WithCancel(w.ctx)
	var client sync.WaitGroup
	client.Go(func() { // it will never have a server
		if conn, err := pgconn.Connect(ctx, w.dsn("s1")); err == nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	})
	w.awaitPool("a login", func(p pgbouncer.Pool) bool { return p.ServersIn > 0 })
	a := w.announce("h1", 30*time.Second)
	if code, answer := a.ask(20 * time.Second); code != http.StatusOK || !answer.Quiet() || answer.TookMS < loginPatience.Milliseconds() {
		t.Errorf("answer is %d %+v", code, answer)
	}
	cancel()
	client.Wait()
}

// What runs still is told when the leader has waited for as long as it wants to, not later: it
// takes a late answer for none, and would break the transaction off.
func TestBusyIsToldInTime(t *testing.T) {
	w := serving(t, nil)
	client := w.connect("s1")
	w.exec(client, "BEGIN; SELECT 1")
	a := w.announce("h1", 30*time.Second)
	a.held()
	begun := time.Now()
	code, answer := a.ask(10 * time.Millisecond)
	if took := time.Since(begun); code != http.StatusOK || !answer.Paused || answer.Busy != 1 || took >= cluster.HandoverWaitLeast {
		t.Errorf("after %s the answer is %d %+v", took, code, answer)
	}
}

// A handover of a shard that has no route, and so no clients to hold, costs no passes once its deadline is over.
func TestHandoverThatNobodyHoldsCostsNothing(t *testing.T) {
	t.Parallel() // it waits
	w := newWorld(t, nil)
	w.manager.every = time.Hour
	other := cluster.NewKeys("", "s2", w.config.RoutesPrefix)
	w.put(other.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.await("the other shard is served", func() error {
		s, err := w.status()
		if err == nil && s.Shards["service/s2"].VerifiedAt == nil {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	w.announce("nobody", time.Millisecond)
	before := w.manager.alive.Load()
	time.Sleep(2 * time.Second) // what is counted is what happens meanwhile
	if n := w.manager.alive.Load() - before; n > 100 {
		t.Errorf("%d passes in two seconds", n)
	}
}
