package bouncer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// pausing asks the bouncer as the commands do.
func (w *world) pausing(what Pausing, shard string) PauseAnswer {
	w.t.Helper()
	answer, err := what.Do(w.ctx, w.config, shard, "alice@pooler1")
	if err != nil {
		w.t.Fatal(err)
	}
	return answer
}

// standing is which databases are paused.
func (w *world) standing() string {
	w.t.Helper()
	all, err := w.admin().Databases(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	var paused []string
	for _, name := range []string{"s1", "s1_ro", "s2", "s2_ro"} {
		if all[name].Paused {
			paused = append(paused, name)
		}
	}
	return strings.Join(paused, " ")
}

// An operator's pause holds all databases of its shard and no other's, says who wants it, and
// ends by its own command only: not with the bouncer, not with PgBouncer, not with a route.
func TestOperatorPause(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.HoldTimeout = 1
		c.Shards = []config.Shard{{Scope: "s1", Databases: []string{"s1=postgres"}}, {Scope: "s2", Databases: []string{"s2=postgres"}}}
	})
	for _, scope := range []string{"s1", "s2"} {
		w.put(cluster.NewKeys("", scope, w.config.RoutesPrefix).Route(), w.route(0, cluster.RouteOpen))
	}
	stop := w.bouncer()
	kill := w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	if _, err := Resume.Do(w.ctx, w.config, "s1", "x"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "nobody has paused it") {
		t.Errorf("resume of what is not paused: %v", err)
	}
	if _, err := Release.Do(w.ctx, w.config, "s1", "x"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "do not wait") {
		t.Errorf("release of what is not held: %v", err)
	}
	if _, err := Pause.Do(w.ctx, w.config, "s3", "x"); err == nil || !strings.Contains(err.Error(), `no shard "s3" is offered here`) {
		t.Errorf("pause of no shard: %v", err)
	}
	conn := w.connect("s1")
	first := w.pausing(Pause, "service/s1")
	if got := w.standing(); got != "s1 s1_ro" || first.Paused == nil || first.Paused.By != "alice@pooler1" {
		t.Fatalf("paused is %s, by %+v", got, first.Paused)
	}
	waits := w.awaitMember1(conn)
	// check looks that it is still there as it was.
	check := func(when string) {
		t.Helper()
		w.await("the pause "+when, func() error {
			s, err := w.status()
			if err != nil {
				return err
			}
			one := s.Shards["service/s1"]
			if one.Operator == nil || one.Operator.By != first.Paused.By || !one.Operator.Since.Equal(first.Paused.Since) || !one.Paused || one.Held {
				return fmt.Errorf("%+v by %+v", one, one.Operator)
			}
			return nil
		})
		if got := w.standing(); got != "s1 s1_ro" {
			t.Errorf("%s: paused is %s", when, got)
		}
	}
	check("at once")
	w.await("what operators elsewhere see of it", func() error {
		_, b, err := w.presence()
		if pause := b.Applied["service/s1"].Paused; err == nil && (pause == nil || pause.By != "alice@pooler1" || b.Applied["service/s2"].Paused != nil) {
			err = fmt.Errorf("%+v", b)
		}
		return err
	})
	w.awaitHealthy()
	stop()
	if got := w.standing(); got != "s1 s1_ro" {
		t.Errorf("the bouncer's end leaves paused %s", got)
	}
	stop = w.bouncer()
	w.awaitHealthy()
	check("after a restart of the bouncer")
	w.changes <- w.config
	check("after SIGHUP")
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	check("after a failover")
	w.pausing(Resume, "s1")
	if got := w.standing(); got != "" {
		t.Errorf("after resume paused is %s", got)
	}
	if err := <-waits; err != nil {
		t.Error(err)
	}
	stop()
	stop = w.bouncer()
	w.awaitHealthy()
	if got := w.standing(); got != "" {
		t.Errorf("a pause that has ended is back: %s", got)
	}
	w.pausing(Pause, "s1")
	kill()
	w.pgbouncer()
	w.awaitPaused(true) // it may still be starting, and the status may be that of the one before
	w.awaitHealthy()
	w.await("the pause after a restart of PgBouncer", func() error {
		if got := w.standing(); got != "s1 s1_ro" {
			return errors.New(got)
		}
		return nil
	})
	stop()
}

// A hold and an operator's pause begin and end beside each other.
func TestOperatorPauseAndHold(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	held := func(want bool) {
		t.Helper()
		w.awaitShard("the hold", func(s ShardStatus) bool { return s.Held == want })
	}
	// The pause ends first: the hold stays.
	w.put(w.keys.Route(), w.route(0, cluster.RouteHandover))
	held(true)
	w.pausing(Pause, "s1")
	if a := w.pausing(Resume, "s1"); !a.Held || !w.paused() {
		t.Fatalf("resume has ended the hold: %+v, paused %v", a, w.paused())
	}
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	held(false)
	w.awaitPaused(false)
	// The hold ends first: the pause stays.
	w.pausing(Pause, "s1")
	w.put(w.keys.Route(), w.route(1, cluster.RouteHandover))
	held(true)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	held(false)
	if got := w.standing(); got != "s1 s1_ro" {
		t.Errorf("the end of the hold leaves paused %s", got)
	}
	w.pausing(Resume, "s1")
	w.awaitPaused(false)
	// A release ends a hold whose primary does not come, and what somebody has paused by hand.
	w.put(w.keys.Route(), w.route(1, cluster.RouteHandover))
	held(true)
	w.pausing(Pause, "s1")
	if a := w.pausing(Release, "s1"); a.Held || a.Paused == nil || !w.paused() {
		t.Errorf("release: %+v, paused %v", a, w.paused())
	}
	w.pausing(Resume, "s1")
	w.awaitPaused(false)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	held(false)
	if err := w.admin().Pause(w.ctx, "s1"); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen)) // has it look
	w.awaitReason("paused, though no shard is held: s1")
	w.pausing(Release, "s1")
	w.awaitPaused(false)
	w.awaitHealthy()
}

// A pause that cannot be written down is none: nobody would know of it after a restart.
func TestOperatorPauseThatIsNotKept(t *testing.T) {
	full, changes := errors.New("no space left on device"), 0
	unkept := func(map[config.ShardID]OperatorPause) error { return full }
	var remembered map[config.ShardID]OperatorPause
	p := &operatorPauses{
		keep: unkept, changed: func() { changes++ },
		remember: func(pauses map[config.ShardID]OperatorPause) { remembered = pauses },
	}
	if err := p.set("service/s1", &OperatorPause{By: "alice"}); !errors.Is(err, full) || len(p.all()) > 0 || changes > 0 || remembered != nil {
		t.Errorf("error %v, pauses %v, told %d times", err, p.all(), changes)
	}
	p.keep = func(map[config.ShardID]OperatorPause) error { return nil }
	for _, by := range []string{"alice", "bob"} { // the first one stays
		if err := p.set("service/s1", &OperatorPause{By: by}); err != nil || p.all()["service/s1"].By != "alice" || changes != 1 {
			t.Errorf("error %v, pauses %v, told %d times", err, p.all(), changes)
		}
	}
	// One that ends has ended: clients wait for nothing else.
	p.keep = unkept
	var late unwrittenError
	if err := p.set("service/s1", nil); !errors.As(err, &late) || !errors.Is(err, full) || len(p.all()) > 0 || changes != 2 || remembered == nil || len(remembered) > 0 {
		t.Errorf("error %v, pauses %v, told %d times, to be written %v", err, p.all(), changes, remembered)
	}
}

// A shard that an operator has paused stays so when the bouncer starts with an entry of it that cannot be
// followed, also in a PgBouncer that is started anew, until resume.
func TestOperatorPauseOfARefusedShard(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Shards = []config.Shard{{Scope: "s1", Databases: []string{"s1=postgres"}}, {Scope: "s2", Databases: []string{"s2=postgres"}}}
	})
	for _, scope := range []string{"s1", "s2"} {
		w.put(cluster.NewKeys("", scope, w.config.RoutesPrefix).Route(), w.route(0, cluster.RouteOpen))
	}
	stop := w.bouncer()
	kill := w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	w.pausing(Pause, "service/s1")
	stop()
	w.loadShards(`[{scope: s1, databases: ["s1=postgres"], patroni: perhaps}, {scope: s2, databases: ["s2=postgres"]}]`)
	w.bouncer()
	follows := func() { // the bouncer has looked at everything
		t.Helper()
		w.put(cluster.NewKeys("", "s2", w.config.RoutesPrefix).Route(), w.route(1, cluster.RouteOpen))
		w.await("shard s2", func() error {
			s, err := w.status()
			if err == nil && (s.Shards["service/s2"].VerifiedAt == nil || s.Shards["service/s2"].Leader != w.site.members[1].Name) {
				err = fmt.Errorf("%+v", s.Shards)
			}
			return err
		})
	}
	follows()
	if got := w.standing(); got != "s1 s1_ro" {
		t.Errorf("paused is %q", got)
	}
	kill()
	w.pgbouncer()
	w.awaitConsole()
	w.await("the pause in the new PgBouncer", func() error {
		if got := w.standing(); got != "s1 s1_ro" {
			return fmt.Errorf("paused is %q", got)
		}
		return nil
	})
	w.pausing(Resume, "service/s1")
	w.await("the end of the pause", func() error {
		if got := w.standing(); got != "" {
			return fmt.Errorf("paused is %q", got)
		}
		return nil
	})
}

// A pause is written down before anything waits, which may take as long as the disk likes: the loops, which look
// at the pauses in each pass, do not wait for that, nor does another shard's failover.
func TestPauseOfOneShardDelaysNoOther(t *testing.T) {
	writing, written := make(chan config.ShardID, 2), make(chan error)
	p := &operatorPauses{
		keep: func(pauses map[config.ShardID]OperatorPause) error {
			for id := range pauses {
				writing <- id
			}
			return <-written
		},
		releases: make([][]config.ShardID, 1), changed: func() {},
	}
	set := make(chan error, 2)
	go func() { set <- p.set("service/s1", &OperatorPause{By: "alice"}) }()
	<-writing
	passed := make(chan map[config.ShardID]OperatorPause, 1)
	go func() {
		p.release("service/s2")
		if ids := p.takeReleases(0); len(ids) != 1 {
			t.Errorf("releases %v", ids)
		}
		passed <- p.all()
	}()
	select {
	case pauses := <-passed:
		if len(pauses) > 0 {
			t.Errorf("%v stands before it is written down", pauses)
		}
	case <-time.After(10 * time.Second):
		t.Error("a pass waits for the disk")
	}
	go func() { set <- p.set("service/s2", &OperatorPause{By: "bob"}) }() // it comes after the first, with both
	written <- nil
	for range 2 {
		<-writing
	}
	written <- nil
	for range 2 {
		if err := <-set; err != nil {
			t.Error(err)
		}
	}
	if pauses := p.all(); len(pauses) != 2 {
		t.Errorf("paused is %v", pauses)
	}
}

// Databases that somebody else has paused are written down beside the passes. One that was on that list is
// paused by the bouncer once it is written down, or that was tried, that it is there no more.
func TestStrangersDelayNoOther(t *testing.T) {
	writes := make(chan []string, 10)
	kept := map[string]bool{"a": true}
	c := &reconciler{
		strangers: []string{"a", "b"}, keepStrangers: func(names []string) { writes <- names },
		strangerKept: func(name string) bool { return kept[name] },
	}
	if names := c.pausable([]string{"a", "c"}); !slices.Equal(names, []string{"c"}) || !c.unheld {
		t.Errorf("%v are paused, the others tried again: %v", names, c.unheld)
	}
	if names := <-writes; !slices.Equal(names, []string{"b"}) {
		t.Errorf("written is %v", names)
	}
	kept, c.unheld = map[string]bool{}, false
	if names := c.pausable([]string{"a", "c"}); !slices.Equal(names, []string{"a", "c"}) || c.unheld || len(writes) > 0 {
		t.Errorf("%v are paused, tried again: %v", names, c.unheld)
	}
}
