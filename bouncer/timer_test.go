package bouncer

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/templates"
)

// The dead man's timer releases clients also when there is a primary to which PgBouncer
// cannot be brought: here because its file cannot be written.
func TestTimerFiresWhateverFails(t *testing.T) {
	t.Parallel() // it waits
	w := newWorld(t, func(c *config.Config) { c.HoldTimeout = shortHold })
	w.manager.every = time.Hour // no pass for its sake
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
	w.awaitPaused(true)
	path := w.config.PgBouncer.Config
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil { // as a full disk
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitShard("hold at an open route", func(s ShardStatus) bool { return s.Leader == "db2" && s.Held && s.VerifiedAt == nil })
	passes := w.manager.alive.Load()
	if got := w.where(client); got != 0 { // waits for the timer
		t.Fatalf("query went to member %d", got)
	}
	if n := w.manager.alive.Load() - passes; n > 200 {
		t.Errorf("%d passes in one hold", n)
	}
	if w.paused() {
		t.Error("the database is still paused")
	}
	w.await("the reason being told", func() error {
		var h Health
		code, err := w.http(http.MethodGet, "/health", &h)
		if err == nil && (code != http.StatusServiceUnavailable || !strings.Contains(strings.Join(h.Reasons, " "), "is a directory")) {
			err = errors.New(strings.Join(h.Reasons, " "))
		}
		return err
	})
	// What was in the way goes: the hold ends as any.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.awaitHealthy()
	if got := w.where(client); got != 1 {
		t.Fatalf("query went to member %d", got)
	}
}

// hanging is a world whose bouncer renders a template of its own. hang has every read of it wait
// until release is called, or the test ends.
func hanging(t *testing.T) (w *world, hang, release func()) {
	t.Helper()
	w = newWorld(t, func(c *config.Config) { c.Template, c.HoldTimeout = c.PgBouncer.Config+".ctmpl", shortHold })
	text, err := templates.Read(templates.PgBouncer)
	if err != nil {
		t.Fatal(err)
	}
	w.write("pgbouncer.ini.ctmpl", string(text))
	release = func() { // whoever reads it goes on
		if f, err := os.OpenFile(w.config.Template, os.O_RDWR|syscall.O_NONBLOCK, 0); err == nil {
			_, _ = f.Write(text)
			_ = os.Remove(w.config.Template)
			_ = f.Close()
		}
	}
	hang = func() {
		if err := errors.Join(os.Remove(w.config.Template), syscall.Mkfifo(w.config.Template, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return w, hang, release
}

// It fires also when the loop that holds clients hangs, here on its template; and before the bouncer
// is started anew for that: the next one would hang as well, and hold them anew.
func TestTimerFiresWhenTheLoopHangs(t *testing.T) {
	t.Parallel() // it waits
	w, hang, release := hanging(t)
	w.manager.every = 300 * time.Millisecond // of a unit whose WatchdogSec is less than hold_timeout
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	t.Cleanup(release) // before the bouncer is stopped
	w.pgbouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	hang()
	w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
	w.awaitPaused(true)
	if got := w.where(client); got != 0 { // waits for the timer
		t.Fatalf("query went to member %d", got)
	}
	if late, allowed := w.manager.late(), w.manager.allowed(); late > allowed {
		t.Errorf("the timer fired when the loop had been away for %s, systemd ends the bouncer after %s", late, allowed)
	}
	if !strings.Contains(w.log.String(), "the loop that holds clients hangs") {
		t.Error("not told")
	}
}

// A change of the configuration takes the timer away no sooner than the loop has ended that holds clients,
// which may hang; nor does the bouncer's end.
func TestTimerFiresWhenTheLoopHangsOverSIGHUP(t *testing.T) {
	t.Parallel() // it waits
	for _, event := range []string{"SIGHUP", "SIGTERM"} {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			w, hang, release := hanging(t)
			w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
			stop := w.bouncer()
			t.Cleanup(release)
			w.pgbouncer()
			w.awaitLeader(0)
			client := w.connect("s1")
			hang()
			w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
			w.awaitPaused(true)
			if event == "SIGHUP" {
				w.changes <- w.config
			} else {
				go stop()
			}
			if got := w.where(client); got != 0 { // waits for the timer
				t.Fatalf("query went to member %d", got)
			}
		})
	}
}

// A change of the configuration neither makes a hold last longer nor begins one anew that is over: clients would
// wait for ever behind a file that is written all the time.
func TestSIGHUPRenewsNoHold(t *testing.T) {
	t.Parallel() // it waits
	w := newWorld(t, func(c *config.Config) { c.HoldTimeout = 4 })
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
	w.awaitPaused(true)
	change := func() {
		t.Helper()
		w.reloadedBy(func() { w.changes <- w.config })
	}
	w.askWhile(client, change)
	if change(); w.paused() {
		t.Error("the hold began anew")
	}
	if n := strings.Count(w.log.String(), "holding clients"); n != 1 {
		t.Errorf("%d holds", n)
	}
	// It is over, but not forgotten: the next primary ends it, and the hold after that is a new one.
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.put(w.keys.Route(), w.route(1, cluster.RouteDown))
	w.awaitPaused(true)
}

// reloadedBy has something done after which the bouncer has PgBouncer reload, and waits for that.
func (w *world) reloadedBy(do func()) {
	w.t.Helper()
	looked := strings.Count(w.log.String(), "RELOAD done")
	do()
	w.await("a RELOAD", func() error {
		if strings.Count(w.log.String(), "RELOAD done") == looked {
			return errors.New("not yet")
		}
		return nil
	})
}

// askWhile asks for a row that the timer has to release, with something done each second until then.
func (w *world) askWhile(client *pgconn.PgConn, do func()) {
	w.t.Helper()
	answer := make(chan error, 1)
	go func() {
		_, err := w.ask(w.ctx, client)
		answer <- err
	}()
	for {
		select {
		case err := <-answer:
			if err != nil {
				w.t.Fatal(err)
			}
			return
		case <-time.After(time.Second):
			do()
		}
	}
}

// Nor does a restart: a bouncer that falls again and again would hold clients for ever.
func TestRestartRenewsNoHold(t *testing.T) {
	t.Parallel() // it waits
	w := newWorld(t, func(c *config.Config) { c.HoldTimeout = 4 })
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	stop := w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	w.put(w.keys.Route(), w.route(0, cluster.RouteDown))
	w.awaitPaused(true)
	restart := func() {
		t.Helper()
		stop()
		w.reloadedBy(func() { stop = w.bouncer() })
	}
	w.askWhile(client, restart)
	// The end of it is written down soon.
	w.await("the hold that is over", func() error {
		s, err := loadState(w.config.StateFile, w.config.RoutesPrefix)
		if one := s.Holds[w.config.PgBouncer.Config]["service/s1"]; err == nil && !one.Over {
			err = fmt.Errorf("%+v", s.Holds)
		}
		return err
	})
	if restart(); w.paused() {
		t.Error("the hold began anew")
	}
	// It is over, but not forgotten: the next primary ends it, and the hold after that is a new one.
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	w.put(w.keys.Route(), w.route(1, cluster.RouteDown))
	w.awaitPaused(true)
}
