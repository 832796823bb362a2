package bouncer

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// However many shards are held at once, each with a transaction that does not end and
// keeps PAUSE from being answered: all wait, and nothing stays paused that no hold needs.
func TestManyPauses(t *testing.T) {
	const shards = 66 // two in a transaction more than there were connections for PAUSE
	w := newWorld(t, nil)
	keys := make([]cluster.Keys, shards)
	routes := make([]cluster.Route, shards)
	for i := range keys {
		keys[i] = cluster.NewKeys("", fmt.Sprintf("n%d", i), w.config.RoutesPrefix)
		w.config.Shards = append(w.config.Shards, config.Shard{Namespace: "service", Scope: fmt.Sprintf("n%d", i), Databases: []string{fmt.Sprintf("n%d=postgres", i)}})
		routes[i] = w.route(i%2, cluster.RouteOpen)
	}
	all := func(state cluster.RouteState) {
		for i := range keys {
			routes[i].State = state
			w.put(keys[i].Route(), routes[i])
		}
	}
	all(cluster.RouteOpen)
	w.bouncer()
	w.pgbouncer()
	w.awaitHealthy()
	busy := make([]*pgconn.PgConn, shards)
	for i := range busy {
		busy[i] = w.connect(fmt.Sprintf("n%d", i))
		w.exec(busy[i], "BEGIN; SELECT 1")
	}
	paused := func(want int) {
		t.Helper()
		w.await(fmt.Sprint(want, " paused databases"), func() error {
			standing, err := w.admin().Databases(w.ctx)
			if err != nil {
				return err
			}
			n := 0
			for name, d := range standing {
				if d.Paused && !strings.HasSuffix(name, "_ro") {
					n++
				}
			}
			if n != want {
				return fmt.Errorf("%d are", n)
			}
			return nil
		})
	}
	for range 2 {
		all(cluster.RouteHandover)
		paused(shards)
		w.awaitHealthy()
		all(cluster.RouteOpen)
		paused(0)
		w.await("the end of all holds", func() error {
			s, err := w.status()
			for id, one := range s.Shards {
				if one.Held || one.Paused {
					err = fmt.Errorf("%s: %+v", id, one)
				}
			}
			return err
		})
	}
	for _, conn := range busy {
		w.exec(conn, "COMMIT")
	}
	paused(0)
	w.awaitHealthy()
}

// An operator's PAUSE stays when PgBouncer was silent for a while.
func TestPauseOfAnOperatorSurvivesSilence(t *testing.T) {
	t.Parallel() // it waits
	w, pid := supervised(t)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.awaitLeader(0)
	if err := w.admin().Pause(w.ctx, "s1"); err != nil {
		t.Fatal(err)
	}
	answers := func(want bool) {
		t.Helper()
		w.await("PgBouncer answering or not", func() error {
			s, err := w.status()
			if err == nil && s.PgBouncer.Answers != want {
				err = fmt.Errorf("%+v", s.PgBouncer)
			}
			return err
		})
	}
	if err := syscall.Kill(pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answers(false)
	if err := syscall.Kill(pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	answers(true)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if !w.paused() {
		t.Error("an operator's PAUSE was lifted")
	}
}

// What somebody else has paused is left alone, and told: its clients wait for nothing that
// is known here.
func TestPausedWithoutHold(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	if err := w.admin().Pause(w.ctx, "s1"); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if !w.paused() {
		t.Fatal("an operator's PAUSE was lifted")
	}
	told := func() error {
		var h Health
		code, err := w.http(http.MethodGet, "/health", &h)
		if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(strings.Join(h.Reasons, " "), "paused, though no shard is held: s1")) {
			err = errors.New(strings.Join(h.Reasons, " "))
		}
		return err
	}
	w.await("the reason", told)
	if n := strings.Count(w.log.String(), `"alarm":true`); n != 1 {
		t.Errorf("alarmed %d times", n)
	}
	if err := w.admin().Resume(w.ctx, "s1"); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.awaitLeader(0)
	w.awaitHealthy()
}

// A PAUSE that is none of the bouncer's outlasts it, and a hold on the same database afterwards is
// not taken for one.
func TestPausedWithoutHoldStays(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	if err := w.admin().Pause(w.ctx, "s1"); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen)) // has it look
	w.awaitReason("paused, though no shard is held: s1")
	stop()
	stop = w.bouncer()
	w.awaitReason("paused, though no shard is held: s1")
	w.changes <- w.config
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.awaitLeader(0)
	w.awaitReason("paused, though no shard is held: s1")
	if !w.paused() {
		t.Fatal("an operator's PAUSE was lifted")
	}
	if err := w.admin().Resume(w.ctx, "s1"); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteHandover))
	w.awaitPaused(true)
	if s, err := loadState(w.config.StateFile, w.config.RoutesPrefix); err != nil || len(s.Strangers) > 0 {
		t.Errorf("what the bouncer holds is written down as paused by %v, %v", s.Strangers, err)
	}
	stop()
	w.bouncer()
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.awaitPaused(false)
	w.awaitHealthy()
}
