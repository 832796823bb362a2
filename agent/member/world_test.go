package member

import (
	"cmp"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// call is what the member has asked of the world. It waits for its answer.
type call struct {
	name string // "Consul.Beat"
	args []any  // without done
	w    *Work
	done any
}

// answer calls done. What is left out is nothing: no error, first of all.
func (c *call) answer(values ...any) {
	f := reflect.ValueOf(c.done)
	in := make([]reflect.Value, f.Type().NumIn())
	for i := range in {
		in[i] = reflect.Zero(f.Type().In(i))
		if i < len(values) && values[i] != nil {
			in[i] = reflect.ValueOf(values[i]).Convert(f.Type().In(i))
		}
	}
	f.Call(in)
}

// fail answers with an error, which is done's last word.
func (c *call) fail(err error) {
	values := make([]any, reflect.TypeOf(c.done).NumIn())
	values[len(values)-1] = err
	c.answer(values...)
}

// silent is what a member's PostgreSQL is asked for, if it does not answer.
func silent(answers bool) error {
	if answers {
		return nil
	}
	return errBoom
}

// world is everything around one member: it takes each call down and answers when the
// test says so. Its time passes by pass alone.
type world struct {
	*Member
	t       *testing.T
	clock   cluster.Instant
	wall    time.Time
	timers  []timer
	pending []*call
	asked   []string // the names of all calls, in their order
	// always are answers that are given at once (when settle is called).
	always map[string]func(*call)

	copying, copied                                      string
	running, useSlots, syncsSlots, cloneAlone, keepsData bool
	startedPrimary, startedKnown                         bool
	pid                                                  int
	upstream                                             string
	commit                                               string // configured; empty: on
	fsyncOff, held                                       bool
	watchdogProblem                                      string
	mayRewind                                            bool
	mayRemove                                            string
	shownProblems                                        []string
	scheduled                                            map[string]any
	accepted                                             int
	kicked                                               map[string]int
	poked                                                []cluster.Route
	decided                                              []ha.Decision
}

type timer struct {
	at cluster.Instant
	f  func()
}

const (
	start   = cluster.Instant(1000 * time.Second)
	systemA = "7000000000000000001"
	mib     = int64(1 << 20)
)

var errBoom = errors.New("boom")

// newWorld is a world with member a of the shard a, b, c, which b leads.
func newWorld(t *testing.T) *world {
	t.Helper()
	dynamic, _, err := cluster.ParseDynamic(nil)
	if err != nil {
		t.Fatal(err)
	}
	dynamic.TTL, dynamic.LoopWait, dynamic.RetryTimeout = 30*time.Second, 10*time.Second, 10*time.Second
	w := &world{
		t: t, clock: start, wall: time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC),
		always: map[string]func(*call){}, kicked: map[string]int{}, pid: 77, running: true, mayRewind: true,
	}
	w.Member = New(Settings{
		Name: "a", SessionName: "lictor a", Keys: cluster.NewKeys("service", "shard", ""),
		ConnURL: "postgres://a:5432/postgres", APIURL: "http://a:8008/patroni", Host: "a", Port: 5432, Version: "1.2.3",
		PrimaryWord: cluster.RolePrimary, ScriptLimit: 5 * time.Second,
		Margins: func(ttl time.Duration) ha.FenceMargins {
			return ha.FenceMargins{DemoteBefore: ttl / 3, KillBefore: ttl / 10}
		},
		MayRewind: func() bool { return w.mayRewind }, MayRemove: func(cluster.Dynamic) string { return w.mayRemove },
		Decided: func(_ ha.View, d ha.Decision) { w.decided = append(w.decided, d) },
		Log:     zerolog.Nop(),
	}, Ports{
		Clock: w, Later: laterPort{w}, Consul: consulPort{w}, Postgres: postgresPort{w}, Guard: guardPort{w},
		Watchdog: watchdogPort{w}, Peers: peersPort{w}, Watches: watchesPort{w}, Bouncers: bouncersPort{w},
	}, shellPort{w}, dynamic)
	w.Session = "sa"
	w.Snapshot = w.shard("b")
	w.Read, w.FirstRead, w.StatusSeen = w.clock, w.clock, w.clock
	w.Data = Data{State: ha.DataValid, SystemIdentifier: systemA, Timeline: 3}
	w.sawReplica(100*mib, "b")
	return w
}

// shard is what Consul shows of the shard a, b, c with a leader; empty: none.
func (w *world) shard(leader string) cluster.Snapshot {
	s := cluster.Snapshot{
		Index:      100,
		Initialize: cluster.Entry[string]{Value: systemA, ModifyIndex: 5},
		Status:     cluster.Entry[cluster.Status]{ModifyIndex: 90, Value: cluster.Status{OpTime: 100 * mib, Lictor: &cluster.Beat{LeaseMS: 30000, Number: 8, Owner: leader, Timeline: 3}}},
		Route: cluster.Entry[cluster.Route]{ModifyIndex: 60, Value: cluster.Route{
			Version: cluster.RouteVersion, SystemIdentifier: systemA, State: cluster.RouteOpen, Timeline: 3,
			Leader: cluster.RouteMember{Name: leader, Host: leader, Port: 5432}, Replicas: []cluster.RouteMember{}, Since: w.wall,
		}},
	}
	s.Config.Value, s.Config.ModifyIndex = []byte("{}"), 6
	if leader != "" {
		s.Leader = cluster.Entry[string]{Value: leader, Session: "s" + leader, ModifyIndex: 50}
	}
	for i, name := range []string{"a", "b", "c"} {
		role := cluster.RoleReplica
		if name == leader {
			role = cluster.RolePrimary
		}
		s.Members = append(s.Members, cluster.Entry[cluster.Member]{Session: "s" + name, ModifyIndex: uint64(70 + i), Value: cluster.Member{
			Name: name, ConnURL: "postgres://" + name + ":5432/postgres", APIURL: "http://" + name + ":8008/patroni",
			State: cluster.StateRunning, Role: role, Timeline: 3, Version: "1.2.3", Lictor: &cluster.MemberLictor{},
		}})
	}
	return s
}

// leading makes the member the leader, with a primary that serves and a lease that counts
// from now. The guard has its deadline.
func (w *world) leading() *world {
	w.t.Helper()
	w.Snapshot = w.shard("a")
	w.sawPrimary(200 * mib)
	w.always["Guard.Arm"], w.always["Guard.Mark"] = yes, yes
	w.takeOver(ha.TakeOver{Status: 90, Leader: 50}, false)
	w.settle()
	w.take("Consul.TakeOver").answer(cluster.Indexes{w.Keys.Status(): 101, w.Keys.Leader(): 102, w.Keys.Route(): 103}, nil)
	w.settle()
	s := w.shard("a")
	s.Index, s.Status.ModifyIndex, s.Leader.ModifyIndex = 110, 101, 102
	s.Status.Value.Lictor.Number = 9
	s.Route = w.Snapshot.Route
	w.take("Consul.Read").answer(s, nil)
	w.settle()
	if !w.Leads() || !w.Idle() {
		w.t.Fatal("the member does not lead")
	}
	delete(w.always, "Guard.Arm")
	delete(w.always, "Guard.Mark")
	w.asked, w.kicked, w.poked = nil, map[string]int{}, nil
	return w
}

// sawReplica has PostgreSQL looked at: a replica that has got WAL up to lsn.
func (w *world) sawReplica(lsn int64, upstream string) {
	w.running = true
	w.startedPrimary, w.startedKnown = false, true
	state := pg.State{Running: true, Accepting: true, InRecovery: true, Timeline: 3, ReceivedLSN: lsn, ReplayedLSN: lsn}
	if upstream != "" {
		state.ReplicationState = pg.Streaming
	}
	w.Upstream = upstream
	w.pass(time.Millisecond)
	w.Saw(Look{Began: w.clock, State: state})
	w.pass(time.Millisecond)
}

// sawPrimary has PostgreSQL looked at: a primary that has written WAL up to lsn.
func (w *world) sawPrimary(lsn int64) {
	w.running = true
	w.startedPrimary, w.startedKnown = true, true
	w.Upstream = ""
	w.pass(time.Millisecond)
	w.Saw(Look{Began: w.clock, State: pg.State{Running: true, Accepting: true, Timeline: 3, WriteLSN: lsn}})
	w.pass(time.Millisecond)
}

// yes answers that all is well.
func yes(c *call) { c.answer() }

// no answers with an error.
func no(c *call) { c.fail(errBoom) }

// agree has these calls answered with yes from now on.
func (w *world) agree(names ...string) {
	for _, name := range names {
		w.always[name] = yes
	}
}

// settle gives the answers that are given at once, until nothing is left.
func (w *world) settle() {
	for range 1000 {
		i := slices.IndexFunc(w.pending, func(c *call) bool { return w.always[c.name] != nil })
		if i < 0 {
			return
		}
		c := w.pending[i]
		w.pending = slices.Delete(w.pending, i, i+1)
		w.always[c.name](c)
	}
	w.t.Fatal("the member never stops asking")
}

// pass lets time pass, and the timers fire that are due by then.
func (w *world) pass(d time.Duration) {
	until := w.clock.Add(d)
	for range 1000 {
		next := -1
		for i, one := range w.timers {
			if !until.Before(one.at) && (next < 0 || one.at.Before(w.timers[next].at)) {
				next = i
			}
		}
		if next < 0 {
			w.wall = w.wall.Add(until.Sub(w.clock))
			w.clock = until
			return
		}
		due := w.timers[next]
		w.timers = slices.Delete(w.timers, next, next+1)
		if w.clock.Before(due.at) {
			w.wall = w.wall.Add(due.at.Sub(w.clock))
			w.clock = due.at
		}
		due.f()
		w.settle()
	}
	w.t.Fatal("timers never stop")
}

// find is the first call of this name that waits for its answer, nil: there is none.
func (w *world) find(name string) *call {
	for _, c := range w.pending {
		if c.name == name {
			return c
		}
	}
	return nil
}

// take is the first call of this name that waits for its answer.
func (w *world) take(name string) *call {
	w.t.Helper()
	w.settle()
	c := w.find(name)
	if c == nil {
		w.t.Fatalf("%s was not asked for; pending: %v, all: %v", name, w.names(), w.asked)
	}
	w.pending = slices.DeleteFunc(w.pending, func(other *call) bool { return other == c })
	return c
}

// answer takes a call, answers it, and settles.
func (w *world) answer(name string, values ...any) {
	w.t.Helper()
	w.take(name).answer(values...)
	w.settle()
}

// deny takes a call, answers it with an error, and settles.
func (w *world) deny(name string, err error) {
	w.t.Helper()
	w.take(name).fail(err)
	w.settle()
}

// none says that no call of these names waits.
func (w *world) none(names ...string) {
	w.t.Helper()
	w.settle()
	for _, name := range names {
		if w.find(name) != nil {
			w.t.Fatalf("%s was asked for; all: %v", name, w.asked)
		}
	}
}

func (w *world) names() []string {
	var names []string
	for _, c := range w.pending {
		names = append(names, c.name)
	}
	return names
}

// wantAsked compares all calls of these parts of the world since the last time, in their
// order, and forgets them.
func (w *world) wantAsked(parts string, want ...string) {
	w.t.Helper()
	w.settle()
	var got []string
	for _, name := range w.asked {
		if part, _, _ := strings.Cut(name, "."); slices.Contains(strings.Fields(parts), part) {
			got = append(got, name)
		}
	}
	w.asked = nil
	if !slices.Equal(got, want) {
		w.t.Fatalf("asked for\n%v\nwant\n%v", got, want)
	}
}

func (w *world) wantTask(want ha.TaskKind) {
	w.t.Helper()
	if got := w.TaskKind(); got != want {
		w.t.Fatalf("the task under way is %q, want %q; pending: %v", got, want, w.names())
	}
}

func (w *world) ask(work *Work, name string, done any, args ...any) {
	w.asked = append(w.asked, name)
	w.pending = append(w.pending, &call{name: name, args: args, w: work, done: done})
}

// The world is member.Clock.
func (w *world) Now() cluster.Instant { return w.clock }
func (w *world) Wall() time.Time      { return w.wall }

type laterPort struct{ *world }

func (l laterPort) After(d time.Duration, f func()) {
	l.timers = append(l.timers, timer{l.clock.Add(d), f})
}
func (l laterPort) Jitter(low, _ time.Duration) time.Duration { return low }
func (l laterPort) ID() string                                { return "id" }

type consulPort struct{ w *world }

func (p consulPort) Beat(limit time.Duration, session string, index uint64, status cluster.Status, done func(uint64, error)) {
	p.w.ask(nil, "Consul.Beat", done, limit, session, index, status)
}

func (p consulPort) TakeOver(limit time.Duration, t cluster.TakeOver, done func(cluster.Indexes, error)) {
	p.w.ask(nil, "Consul.TakeOver", done, limit, t)
}

func (p consulPort) Announce(limit time.Duration, a cluster.Announcement, done func(cluster.Indexes, error)) {
	p.w.ask(nil, "Consul.Announce", done, limit, a)
}

func (p consulPort) Release(limit time.Duration, session string, index uint64, status cluster.Status, done func(uint64, error)) {
	p.w.ask(nil, "Consul.Release", done, limit, session, index, status)
}

func (p consulPort) Read(limit time.Duration, done func(cluster.Snapshot, error)) {
	p.w.ask(nil, "Consul.Read", done, limit)
}

func (p consulPort) WriteAsLeader(limit time.Duration, session, key string, index uint64, value any, done func(uint64, error)) {
	p.w.ask(nil, "Consul.WriteAsLeader", done, limit, session, key, index, value)
}

func (p consulPort) Touch(limit time.Duration, session string, index uint64, value cluster.Member, done func(uint64, error)) {
	p.w.ask(nil, "Consul.Touch", done, limit, session, index, value)
}

func (p consulPort) BeginBootstrap(work *Work, limit time.Duration, session string, done func(error)) {
	p.w.ask(work, "Consul.BeginBootstrap", done, limit, session)
}

func (p consulPort) BeginRebuild(limit time.Duration, session, member, host string, done func(error)) {
	p.w.ask(nil, "Consul.BeginRebuild", done, limit, session, member, host)
}

func (p consulPort) EndRebuild(limit time.Duration, session, host string, hostOnly bool, done func(error)) {
	p.w.ask(nil, "Consul.EndRebuild", done, limit, session, host, hostOnly)
}

func (p consulPort) EndBootstrap(limit time.Duration, session string, done func(error)) {
	p.w.ask(nil, "Consul.EndBootstrap", done, limit, session)
}

func (p consulPort) EndSession(limit time.Duration, session, name string, done func(error)) {
	p.w.ask(nil, "Consul.EndSession", done, limit, session, name)
}

type postgresPort struct{ w *world }

func (p postgresPort) Running() bool             { return p.w.running }
func (p postgresPort) Major() int                { return 15 }
func (p postgresPort) PID() int                  { return p.w.pid }
func (p postgresPort) StartedAs() (bool, bool)   { return p.w.startedPrimary, p.w.startedKnown }
func (p postgresPort) Upstream() string          { return p.w.upstream }
func (p postgresPort) ClonesWithoutLeader() bool { return p.w.cloneAlone }
func (p postgresPort) KeepsData() bool           { return p.w.keepsData }
func (p postgresPort) SynchronousCommit() string { return cmp.Or(p.w.commit, "on") }
func (p postgresPort) Fsync() bool               { return !p.w.fsyncOff }
func (p postgresPort) HoldCommits(hold bool)     { p.w.held = hold }
func (p postgresPort) UseSlots() bool            { return p.w.useSlots }
func (p postgresPort) SyncsSlots() bool          { return p.w.syncsSlots }

func (p postgresPort) Kill(work *Work, limit time.Duration, done func(error)) {
	p.w.ask(work, "Postgres.Kill", done, limit)
}

func (p postgresPort) Stop(work *Work, limit time.Duration, quick bool, done func(error)) {
	p.w.ask(work, "Postgres.Stop", done, limit, quick)
}

func (p postgresPort) StopFor(work *Work, served func(int64, func(error)), done func(error)) {
	p.w.ask(work, "Postgres.StopFor", done, served)
}

func (p postgresPort) EndShutDown(work *Work, limit time.Duration, done func(error)) {
	p.w.ask(work, "Postgres.EndShutDown", done, limit)
}

func (p postgresPort) Start(work *Work, limit time.Duration, as StartAs, done func(error)) {
	p.w.ask(work, "Postgres.Start", done, limit, as)
}

func (p postgresPort) Adopt(work *Work, done func(error)) { p.w.ask(work, "Postgres.Adopt", done) }

func (p postgresPort) TryStart(work *Work, done func(string, error)) {
	p.w.ask(work, "Postgres.TryStart", done)
}

func (p postgresPort) Observe(work *Work, done func(pg.State, error)) {
	p.w.ask(work, "Postgres.Observe", done)
}

func (p postgresPort) Look(work *Work, limit time.Duration, done func(Found, bool)) {
	p.w.ask(work, "Postgres.Look", done, limit)
}

func (p postgresPort) Follow(work *Work, limit time.Duration, up pg.Upstream, done func(error)) {
	p.w.ask(work, "Postgres.Follow", done, limit, up)
}

func (p postgresPort) Unfollow(work *Work, limit time.Duration, done func(error)) {
	p.w.ask(work, "Postgres.Unfollow", done, limit)
}

func (p postgresPort) Promote(work *Work, above int, last func(func(error)), done func(error)) {
	p.w.ask(work, "Postgres.Promote", done, above, last)
}

func (p postgresPort) SetSynchronous(limit time.Duration, s ha.SetSync, done func(pg.SyncInForce, error)) {
	p.w.ask(nil, "Postgres.SetSynchronous", done, limit, s)
}

func (p postgresPort) Checkpoint(work *Work, done func(error)) {
	p.w.ask(work, "Postgres.Checkpoint", done)
}

func (p postgresPort) TimelineHistory(timeline int, done func(cluster.History, error)) {
	p.w.ask(nil, "Postgres.TimelineHistory", done, timeline)
}

func (p postgresPort) SyncSlots(limit time.Duration, o pg.SlotOrders, done func(error)) {
	p.w.ask(nil, "Postgres.SyncSlots", done, limit, o)
}

func (p postgresPort) AdvanceLogical(limit time.Duration, timeline int, slots []pg.WantedSlot, done func(error)) {
	p.w.ask(nil, "Postgres.AdvanceLogical", done, limit, timeline, slots)
}

func (p postgresPort) FetchSlots(work *Work, from pg.Upstream, slots []cluster.Slot, done func([]pg.SlotFile, error)) {
	p.w.ask(work, "Postgres.FetchSlots", done, from, slots)
}

func (p postgresPort) PlaceSlots(work *Work, files []pg.SlotFile, done func(error)) {
	p.w.ask(work, "Postgres.PlaceSlots", done, files)
}

func (p postgresPort) Bootstrap(work *Work, done func(error)) {
	p.w.ask(work, "Postgres.Bootstrap", done)
}

func (p postgresPort) FinishBootstrap(work *Work, done func(error)) {
	p.w.ask(work, "Postgres.FinishBootstrap", done)
}

func (p postgresPort) DiscardIncomplete(work *Work, done func(error)) {
	p.w.ask(work, "Postgres.DiscardIncomplete", done)
}

func (p postgresPort) MakeReplica(work *Work, from *pg.Upstream, systemIdentifier string, done func(error)) {
	p.w.ask(work, "Postgres.MakeReplica", done, from, systemIdentifier)
}

func (p postgresPort) Rewind(work *Work, up pg.Upstream, allowed bool, done func(error)) {
	p.w.ask(work, "Postgres.Rewind", done, up, allowed)
}

func (p postgresPort) RemoveForReinit(work *Work, allowed pg.Permission, done func(error)) {
	p.w.ask(work, "Postgres.RemoveForReinit", done, allowed)
}

func (p postgresPort) BeginRestore(work *Work, r pg.Restore, done func(error)) {
	p.w.ask(work, "Postgres.BeginRestore", done, r)
}

func (p postgresPort) SetAside(work *Work, done func(error)) {
	p.w.ask(work, "Postgres.SetAside", done)
}

func (p postgresPort) Restore(work *Work, r pg.Restore, done func(error)) {
	p.w.ask(work, "Postgres.Restore", done, r)
}

func (p postgresPort) PutBack(work *Work, done func(error)) { p.w.ask(work, "Postgres.PutBack", done) }

func (p postgresPort) EndRestore(work *Work, done func(error)) {
	p.w.ask(work, "Postgres.EndRestore", done)
}

func (p postgresPort) UndoUpgrade(work *Work, done func(error)) {
	p.w.ask(work, "Postgres.UndoUpgrade", done)
}

func (p postgresPort) BeginUpgrade(work *Work, to, above int, done func(error)) {
	p.w.ask(work, "Postgres.BeginUpgrade", done, to, above)
}

func (p postgresPort) UpgradeData(work *Work, done func(error)) {
	p.w.ask(work, "Postgres.UpgradeData", done)
}

func (p postgresPort) PlaceUpgraded(work *Work, done func(Upgraded, error)) {
	p.w.ask(work, "Postgres.PlaceUpgraded", done)
}

func (p postgresPort) NoteAnnouncement(work *Work, index uint64, done func(error)) {
	p.w.ask(work, "Postgres.NoteAnnouncement", done, index)
}

func (p postgresPort) EndUpgrade(work *Work, done func(error)) {
	p.w.ask(work, "Postgres.EndUpgrade", done)
}

func (p postgresPort) Answers(work *Work, up pg.Upstream, primary bool, systemIdentifier string, done func(error)) {
	p.w.ask(work, "Postgres.Answers", done, up, primary, systemIdentifier)
}

func (p postgresPort) WALGone(limit time.Duration, up pg.Upstream, systemIdentifier string, timeline int, lsn int64, done func(bool, error)) {
	p.w.ask(nil, "Postgres.WALGone", done, limit, up, systemIdentifier, timeline, lsn)
}

func (p postgresPort) CheckRemote(work *Work, limit time.Duration, up pg.Upstream, stops bool, done func(bool, error)) {
	p.w.ask(work, "Postgres.CheckRemote", done, limit, up, stops)
}

func (p postgresPort) AskSite(work *Work, limit time.Duration, up pg.Upstream, timeline int, done func(cluster.Site, error)) {
	p.w.ask(work, "Postgres.AskSite", done, limit, up, timeline)
}

func (p postgresPort) ArchiveLast(work *Work, limit time.Duration, done func(error)) {
	p.w.ask(work, "Postgres.ArchiveLast", done, limit)
}

func (p postgresPort) AimAt(limit time.Duration, l pg.Loss, up pg.Upstream, done func(pg.Loss, error)) {
	p.w.ask(nil, "Postgres.AimAt", done, limit, l, up)
}

func (p postgresPort) ForgetLoss(limit time.Duration, id string, done func(error)) {
	p.w.ask(nil, "Postgres.ForgetLoss", done, limit, id)
}

func (p postgresPort) BeforeStop(work *Work, limit time.Duration, done func(error)) {
	p.w.ask(work, "Postgres.BeforeStop", done, limit)
}

func (p postgresPort) PrePromote(work *Work, limit time.Duration, done func(error)) {
	p.w.ask(work, "Postgres.PrePromote", done, limit)
}

func (p postgresPort) KeepDetachment(work *Work, d pg.Detachment, done func(error)) {
	p.w.ask(work, "Postgres.KeepDetachment", done, d)
}

func (p postgresPort) DropDetachment(_ time.Duration, d pg.Detachment, done func(error)) {
	p.w.ask(nil, "Postgres.DropDetachment", done, d)
}

type guardPort struct{ w *world }

func (p guardPort) Arm(m PersistedState, grant bool, done func(error)) {
	p.w.ask(nil, "Guard.Arm", done, m, grant)
}
func (p guardPort) Disarm(done func(error)) { p.w.ask(nil, "Guard.Disarm", done) }
func (p guardPort) StandDown(m PersistedState, done func(error)) {
	p.w.ask(nil, "Guard.StandDown", done, m)
}

func (p guardPort) Remember(m PersistedState, done func(error)) {
	p.w.ask(nil, "Guard.Remember", done, m)
}
func (p guardPort) Awake(work *Work, done func(error))  { p.w.ask(work, "Guard.Awake", done) }
func (p guardPort) CancelStarts(done func(bool, error)) { p.w.ask(nil, "Guard.CancelStarts", done) }

func (p guardPort) Unmark(done func()) {
	p.w.ask(nil, "Guard.Unmark", func(error) { done() })
}

func (p guardPort) Recall(done func(Recalled)) { p.w.ask(nil, "Guard.Recall", done) }
func (p guardPort) Mark(until cluster.Instant, paused bool, done func(error)) {
	p.w.ask(nil, "Guard.Mark", done, until, paused)
}

type watchdogPort struct{ w *world }

func (p watchdogPort) OK() (bool, string) { return p.w.watchdogProblem == "", p.w.watchdogProblem }

func (p watchdogPort) Activate(work *Work, until cluster.Instant, ttl time.Duration, margins ha.FenceMargins, done func(error)) {
	p.w.ask(work, "Watchdog.Activate", done, until, ttl, margins)
}

type peersPort struct{ w *world }

func (p peersPort) Failsafe(limit time.Duration, to ha.FailsafeMember, patroni bool, r ha.FailsafeRequest, done func(error)) {
	p.w.ask(nil, "Peers.Failsafe", done, limit, to, patroni, r.Lease, r.Index, r.Slots)
}

func (p peersPort) Detach(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	p.w.ask(nil, "Peers.Part", done, limit, to.Name, index)
}

func (p peersPort) Probe(limit time.Duration, to cluster.Member, done func(bool)) {
	p.w.ask(nil, "Peers.Probe", done, limit, to.Name)
}

func (p peersPort) Misses(limit time.Duration, to cluster.Member, index uint64, done func(bool, error)) {
	p.w.ask(nil, "Peers.Misses", done, limit, to.Name, index)
}

func (p peersPort) DetachFor(limit time.Duration, to cluster.Member, index uint64, attempt string, done func(error)) {
	p.w.ask(nil, "Peers.DetachFor", done, limit, to.Name, index, attempt)
}

func (p peersPort) Succeed(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	p.w.ask(nil, "Peers.Succeed", done, limit, to.Name, index)
}

func (p peersPort) LookUp(limit time.Duration, host string, done func([]string, error)) {
	p.w.ask(nil, "Peers.LookUp", done, limit, host)
}

func (p peersPort) Observe(limit time.Duration, to cluster.Member, done func(Seen, error)) {
	p.w.ask(nil, "Peers.Observe", done, limit, to.Name)
}

func (p peersPort) Depose(limit time.Duration, to cluster.Member, index uint64, done func(error)) {
	p.w.ask(nil, "Peers.Depose", done, limit, to.Name, index)
}

type watchesPort struct{ w *world }

func (p watchesPort) KickSession()  { p.w.kicked["session"]++ }
func (p watchesPort) KickPostgres() { p.w.kicked["postgres"]++ }

type bouncersPort struct{ w *world }

func (p bouncersPort) Poke(route cluster.Route, _ uint64) { p.w.poked = append(p.w.poked, route) }

func (p bouncersPort) Misses(limit time.Duration, leader string, notOn []string, silent time.Duration, done func(string, error)) {
	p.w.ask(nil, "Bouncers.Misses", done, limit, leader, notOn, silent)
}

func (p bouncersPort) EndHandover(limit time.Duration, session string, plan cluster.Handover, done func(error)) {
	p.w.ask(nil, "Bouncers.EndHandover", done, limit, session, plan)
}

func (p bouncersPort) Hold(work *Work, session string, plan cluster.Handover, onBusy string, done func(error)) {
	p.w.ask(work, "Bouncers.Hold", done, session, plan, onBusy)
}

type shellPort struct{ w *world }

func (p shellPort) InitialConfig() []byte            { return []byte(`{"ttl":30}`) }
func (p shellPort) Accepted(cluster.Snapshot)        { p.w.accepted++ }
func (p shellPort) Problems() []string               { return p.w.shownProblems }
func (p shellPort) Copying() (now, made string)      { return p.w.copying, p.w.copied }
func (p shellPort) ScheduledRestart() map[string]any { return p.w.scheduled }
