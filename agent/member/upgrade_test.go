package member

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

const systemB = "8000000000000000002"

// upgradable is a leader of a shard whose members know of major upgrades.
func upgradable(t *testing.T) *world {
	t.Helper()
	w := newWorld(t).leading()
	for i := range w.Snapshot.Members {
		w.Snapshot.Members[i].Value.Lictor = &cluster.MemberLictor{Succession: true}
	}
	return w
}

// placed is an upgrade up to where its data are in place, and what becomes of it.
func placed(t *testing.T) (w *world, ended *error) {
	t.Helper()
	w, ended = upgradable(t), new(error)
	*ended = errNotSaid
	w.Upgrades.To(17, func(err error) { *ended = err })
	w.answer("Postgres.BeginUpgrade")
	w.answer("Postgres.Checkpoint")
	w.answer("Bouncers.Hold")
	w.take("Consul.WriteAsLeader").answer(uint64(104), nil)
	w.waiters.tell()
	w.answer("Postgres.BeforeStop")
	w.running = false
	w.answer("Postgres.Stop")
	w.answer("Postgres.UpgradeData")
	w.take("Postgres.PlaceUpgraded").answer(Upgraded{From: systemA, To: systemB, Timeline: 4}, nil)
	w.always["Guard.Arm"], w.always["Guard.Mark"], w.always["Guard.Shorten"] = yes, yes, yes
	return w, ended
}

var errNotSaid = errors.New("nothing was said")

// lookedAt ends the task of an upgrade with a look at its data.
func (w *world) lookedAt(index uint64, fits bool) {
	w.t.Helper()
	w.take("Postgres.Look").answer(Found{
		Data:    Data{State: ha.DataUpgrading, SystemIdentifier: systemA, WasPrimary: true},
		Upgrade: &ha.Upgrade{From: systemA, To: systemB, Index: index, Fits: fits},
	}, true)
	w.settle()
	w.wantTask(ha.TaskNone)
}

// Clients are held before PostgreSQL is stopped, and it is noted what the announcement replaces before it is sent.
// Everything that it says is one transaction.
func TestUpgrade(t *testing.T) {
	w := upgradable(t)
	ended := errNotSaid
	w.Upgrades.To(17, func(err error) { ended = err })
	w.wantTask(ha.TaskUpgrade)
	begin := w.take("Postgres.BeginUpgrade")
	if begin.args[0] != 17 || begin.args[1] != 3 {
		t.Errorf("begun as %v", begin.args)
	}
	if state := w.route.state(); state != cluster.RouteOpen {
		t.Errorf("while the new cluster is made the route is %s", state)
	}
	begin.answer(nil)
	w.answer("Postgres.Checkpoint")
	w.none("Consul.WriteAsLeader")
	w.answer("Bouncers.Hold")
	held := w.take("Consul.WriteAsLeader")
	if r, is := held.args[4].(cluster.Route); !is || r.State != cluster.RouteDown || r.SystemIdentifier != systemA {
		t.Errorf("clients are held by %v", held.args)
	}
	w.none("Postgres.BeforeStop")
	held.answer(uint64(104), nil)
	w.waiters.tell()
	w.answer("Postgres.BeforeStop")
	w.running = false
	w.answer("Postgres.Stop")
	w.answer("Postgres.UpgradeData")
	w.take("Postgres.PlaceUpgraded").answer(Upgraded{From: systemA, To: systemB, Timeline: 4}, nil)

	w.always["Guard.Arm"], w.always["Guard.Mark"], w.always["Guard.Shorten"] = yes, yes, yes
	note := w.take("Postgres.NoteAnnouncement")
	if note.args[0] != uint64(101) {
		t.Errorf("noted: %v", note.args)
	}
	w.beat(false)
	w.none("Consul.Beat")
	w.none("Consul.Announce")
	note.answer(nil)
	w.beat(false)
	said := w.take("Consul.Announce")
	a := said.args[1].(cluster.Announcement)
	if a.From != systemA || a.To != systemB || a.Session != "sa" || a.StatusIndex != 101 || a.InitializeIndex != 5 || a.SyncIndex != w.Snapshot.Sync.ModifyIndex || a.RouteIndex != 104 {
		t.Errorf("announced: %+v", a)
	}
	if b := a.Status.Lictor; b.Timeline != 4 || b.Discarded != 3 || b.DiscardedBefore != 0 || b.Owner != "a" || a.Status.OpTime != 0 {
		t.Errorf("with the beat %+v, %+v", a.Status, b)
	}
	if r := a.Route; r.SystemIdentifier != systemB || !slices.Equal(r.Succeeds, []string{systemA}) || r.State != cluster.RouteDown || r.Timeline != 4 || r.Leader.Name != "a" || len(r.Replicas) > 0 || r.Validate() != nil {
		t.Errorf("with the route %+v, %v", r, r.Validate())
	}
	if a.Sync.Leader != "a" || len(a.Sync.Standbys()) > 0 {
		t.Errorf("with %+v", a.Sync)
	}
	said.answer(cluster.Indexes{w.Keys.Status(): 120, w.Keys.Initialize(): 121, w.Keys.Sync(): 122, w.Keys.Route(): 123}, nil)
	w.waiters.tell()
	w.settle()
	if ended != nil || !w.Leads() {
		t.Fatalf("%v, leads %v", ended, w.Leads())
	}
	w.lookedAt(101, false)
	if !w.Upgrades.BeginsAnew() {
		t.Error("the agent goes on with the old programs")
	}
	if timeline, _ := w.beatsDiscarded(130); timeline != 3 {
		t.Errorf("the next beat says that what was discarded ends with timeline %d", timeline)
	}
	if _, writes := w.route.wanted(); writes {
		t.Error("a route is written with the old identifier")
	}
	if err := w.Reinitialize(false, false); err == nil {
		t.Error("the data can be made anew while the note is there")
	}
}

// What is not noted is not announced, and what is not sent in time is not sent any more.
func TestUpgradeThatIsNotAnnounced(t *testing.T) {
	for name, test := range map[string]struct {
		fail  func(w *world)
		sent  bool
		index uint64
	}{
		"the note cannot be written": {func(w *world) { w.deny("Postgres.NoteAnnouncement", errBoom) }, false, 0},
		"the status has moved meanwhile": {func(w *world) {
			w.Snapshot.Status.ModifyIndex = 107
			w.answer("Postgres.NoteAnnouncement")
			w.beat(false)
		}, false, 101},
		"another cluster is named": {func(w *world) {
			w.Snapshot.Initialize.Value = "9"
			w.answer("Postgres.NoteAnnouncement")
			w.beat(false)
		}, false, 101},
		"nothing beats": {func(w *world) {
			w.answer("Postgres.NoteAnnouncement")
			w.pass(w.Dynamic.TTL + 1)
		}, false, 101},
		"it is broken off while it is noted": {func(w *world) {
			note := w.take("Postgres.NoteAnnouncement")
			w.task.work.breakOff(ErrBroken)
			note.fail(ErrBroken)
			w.beat(false) // an ordinary one
			w.take("Consul.Beat").answer(uint64(108), nil)
		}, false, 101},
		"Consul refuses it": {func(w *world) {
			w.answer("Postgres.NoteAnnouncement")
			w.beat(false)
			w.take("Consul.Announce").fail(cluster.ErrConflict)
		}, true, 101},
		"its answer is lost": {func(w *world) {
			w.answer("Postgres.NoteAnnouncement")
			w.beat(false)
			w.take("Consul.Announce").fail(cluster.ErrUncertain)
		}, true, 101},
	} {
		t.Run(name, func(t *testing.T) {
			w, ended := placed(t)
			test.fail(w)
			w.waiters.tell()
			w.settle()
			if *ended == nil || errors.Is(*ended, errNotSaid) {
				t.Fatalf("it has ended with %v", *ended)
			}
			if sent := slices.Contains(w.asked, "Consul.Announce"); sent != test.sent {
				t.Errorf("sent: %v", sent)
			}
			if w.announcing != nil || w.held {
				t.Error("the next beat announces it, or clients are held")
			}
			w.lookedAt(test.index, false)
			if w.Upgrades.BeginsAnew() {
				t.Error("the agent begins anew")
			}
			w.begin(ha.UndoUpgrade{})
			w.answer("Postgres.UndoUpgrade")
			w.take("Postgres.Look").answer(Found{Data: Data{State: ha.DataValid, SystemIdentifier: systemA, Timeline: 3, WasPrimary: true}}, true)
			w.settle()
			if w.upgradeUnfinished() || w.Upgrades.BeginsAnew() {
				t.Error("it is not taken back")
			}
		})
	}
}

// An agent that has begun anew with the new version's programs, and takes the upgrade back, begins anew once more.
func TestUpgradeTakenBackByTheNewPrograms(t *testing.T) {
	w := upgradable(t)
	w.running = false
	w.Adopt(Found{Data: Data{State: ha.DataUpgrading, SystemIdentifier: systemA, WasPrimary: true}, Upgrade: &ha.Upgrade{From: systemA, To: systemB, Index: 90, Fits: true}}, false)
	w.begin(ha.UndoUpgrade{})
	w.answer("Postgres.UndoUpgrade")
	w.take("Postgres.Look").answer(Found{Data: Data{State: ha.DataForeign}}, true)
	w.settle()
	if !w.Upgrades.BeginsAnew() {
		t.Error("it goes on with the new version's programs")
	}
}

// A leader that cannot take an upgrade back serves nobody, however often it tries, until its limit lets another member lead.
func TestUpgradeThatCannotBeTakenBack(t *testing.T) {
	w := upgradable(t)
	w.running = false
	w.Adopt(Found{Data: Data{State: ha.DataUpgrading, SystemIdentifier: systemA, WasPrimary: true}, Upgrade: &ha.Upgrade{From: systemA}}, false)
	w.noteService(true)
	since := w.unservedSince
	for _, err := range []error{errBoom, errBoom, nil} {
		w.pass(20 * time.Second)
		w.begin(ha.UndoUpgrade{})
		c := w.take("Postgres.UndoUpgrade")
		if err != nil {
			c.fail(err)
		} else {
			c.answer()
		}
		w.answer("Postgres.Look", Found{}, false)
		w.noteService(true)
		if same := w.unservedSince == since; same != (err != nil) || since.IsZero() {
			t.Fatalf("after %v it has served nobody since %v, before since %v", err, w.unservedSince, since)
		}
	}
}

func TestMayUpgrade(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"no leader":              func(w *world) { w.Snapshot.Leader.Value, w.Snapshot.Leader.Session = "b", "sb" },
		"an agent of before":     func(w *world) { w.Snapshot.Members[1].Value.Lictor = &cluster.MemberLictor{} },
		"a member of Patroni":    func(w *world) { w.Snapshot.Members[1].Value.Lictor = nil },
		"pause":                  func(w *world) { w.Dynamic.Pause = true },
		"another site":           func(w *world) { w.site.Known = true },
		"one that has not ended": func(w *world) { w.Upgrade = &ha.Upgrade{} },
		"a restore":              func(w *world) { w.Restore = &ha.Discard{} },
	} {
		w := upgradable(t)
		if err := w.Upgrades.May(); err != nil {
			t.Fatal(err)
		}
		change(w)
		if err := w.Upgrades.May(); err == nil {
			t.Errorf("%s: upgraded", name)
		}
		w.Upgrades.To(17, func(err error) {
			if err == nil {
				t.Errorf("%s: begun", name)
			}
		})
		w.wantTask(ha.TaskNone)
	}
}

// A member whose data are from before the shard's upgrade is made anew with the programs of the leader's version, by an
// agent that begins anew; while Consul's keys do not agree nothing is done.
func TestReinitializeAfterAnUpgrade(t *testing.T) {
	after := func() *world {
		w := newWorld(t)
		w.Snapshot.Initialize.Value = systemB
		w.Snapshot.Route.Value.SystemIdentifier, w.Snapshot.Route.Value.Succeeds = systemB, []string{systemA}
		w.Snapshot.Members[1].Value.Lictor = &cluster.MemberLictor{Postgres: 17}
		return w
	}
	for name, change := range map[string]func(w *world){
		"the route is of before": func(w *world) {
			w.Snapshot.Route.Value.SystemIdentifier, w.Snapshot.Route.Value.Succeeds = systemA, nil
		},
		"the route was deleted, and written anew": func(w *world) { w.Snapshot.Route.Value.Succeeds = nil },
		"the key is of before":                    func(w *world) { w.Snapshot.Initialize.Value = systemA },
		"the route is not known":                  func(w *world) { w.Snapshot.Route = cluster.Entry[cluster.Route]{} },
		"the leader does not say to what":         func(w *world) { w.Snapshot.Members[1].Value.Lictor = &cluster.MemberLictor{} },
		"the leader does not serve yet":           func(w *world) { w.Snapshot.Members[1].Value.Role = cluster.RoleReplica },
	} {
		w := after()
		change(w)
		if err := w.Reinitialize(false, false); err == nil {
			t.Errorf("%s: its data are made anew", name)
		}
	}
	w := after()
	if err := w.Reinitialize(false, false); err != nil {
		t.Fatal(err)
	}
	w.wantTask(ha.TaskReinit)
	w.always["Postgres.Answers"] = func(c *call) {
		if c.args[2] != systemB {
			t.Errorf("the leader is to have system identifier %v", c.args[2])
		}
		c.answer()
	}
	w.agree("Postgres.BeforeStop")
	w.settle()
	w.running = false
	w.answer("Postgres.Stop")
	w.settle()
	remove := w.take("Postgres.RemoveForReinit")
	if p := remove.args[0].(pg.Permission); p.Version != 17 || !p.NotLeader || !p.LeaderReachable {
		t.Errorf("%+v", p)
	}
	remove.answer(nil)
	w.settle()
	w.none("Postgres.MakeReplica")
	w.take("Postgres.Look").answer(Found{Data: Data{State: ha.DataEmpty}}, true)
	w.settle()
	if !w.Upgrades.BeginsAnew() {
		t.Error("the agent goes on with the old programs")
	}
	w.begin(ha.Clone{From: "b"})
	w.none("Postgres.MakeReplica")
}
