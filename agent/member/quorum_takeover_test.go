package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// A primary that was started is led to only after a look and a beat since, and when enough standbys have flushed what it has
// recovered. An agent that begins anew meanwhile knows of it.
func TestOpening(t *testing.T) {
	w := newWorld(t).leading()
	w.Dynamic.Takeover = cluster.TakeoverQuorum
	w.commits.names, w.commits.any, w.commits.value, w.commits.set, w.commits.ever = []string{"b", "c"}, 1, `ANY 1 ("b","c")`, true, true
	looks := func(flushed int64) {
		w.pass(time.Millisecond)
		w.Saw(Look{Began: w.clock, State: pg.State{
			Running: true, Accepting: true, Timeline: 3, WriteLSN: 300 * mib, SyncNames: w.commits.value,
			Standbys: []pg.StandbyState{{ApplicationName: "b", FlushLSN: flushed}, {ApplicationName: "b", FlushLSN: flushed}, {ApplicationName: "x", FlushLSN: 400 * mib}},
		}})
		w.opener.mind()
	}
	open := func(want bool) {
		t.Helper()
		if got := w.route.state() == cluster.RouteOpen; got != want || w.Opening() == want {
			t.Fatalf("the route is %s, opening: %t", w.route.state(), w.Opening())
		}
	}
	open(true)
	w.opener.begins()
	if !w.PersistedState().Unopened {
		t.Fatal("an agent that begins anew would not know that nobody is to be led to it")
	}
	looks(300 * mib)
	open(false) // it accepts before its start is known to have ended
	w.PG.Running = false
	w.opener.started()
	w.opener.mind() // nothing was looked at since
	if !w.Opening() {
		t.Fatal("the end of the PostgreSQL before counts")
	}
	w.PG.Running = true
	looks(300 * mib)
	open(false) // there was no beat since
	w.LeaseState.BeginBeat(w.clock, 30*time.Second)
	if err := w.LeaseState.BeatSucceeded(w.clock, w.clock, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	looks(300*mib - 1)
	open(false)
	looks(300 * mib)
	open(true)
	if w.PersistedState().Unopened {
		t.Fatal("it is open, and an agent that begins anew would not know")
	}

	persisted := w.PersistedState()
	persisted.Unopened = true
	state := w.PG.Observed
	if !w.AdoptRunning(state, "", Recalled{PersistedState: &persisted, Until: w.clock.Add(20 * time.Second)}) || !w.Opening() {
		t.Error("the agent that has begun anew leads to a primary that was not opened")
	}
	if !w.PersistedState().Unopened {
		t.Error("the next agent that begins anew would lead to it")
	}
}

// A standby's connection must come from an address of its member's host, which may be a name.
func TestForeign(t *testing.T) {
	w := newWorld(t).leading()
	w.Dynamic.Takeover = cluster.TakeoverQuorum
	w.Snapshot.Members[2].Value.ConnURL = "postgres://[fd00::1]:5432/postgres"
	foreign := func(name, addr string) bool {
		return w.quorum.hosts.foreign(pg.StandbyState{ApplicationName: name, ClientAddr: addr})
	}
	if !foreign("b", "10.0.0.2") || foreign("c", "FD00::1") || !foreign("c", "") || !foreign("x", "10.0.0.2") {
		t.Fatal("before names are looked up")
	}
	w.quorum.hosts.mind()
	w.quorum.hosts.mind()
	for range 2 { // of a and b, once each
		if c := w.take("Peers.LookUp"); c.args[1] == "b" {
			c.answer([]string{"10.0.0.2", "fd00::2"}, nil)
		} else {
			c.fail(errBoom)
		}
	}
	w.none("Peers.LookUp")
	if foreign("B", "10.0.0.2") || foreign("b", "FD00::2") || !foreign("b", "10.0.0.3") || !foreign("a", "10.0.0.2") {
		t.Error("after names were looked up")
	}
	w.pass(lookUpEvery)
	w.quorum.hosts.mind()
	w.deny("Peers.LookUp", errBoom)
	w.deny("Peers.LookUp", errBoom)
	if foreign("b", "10.0.0.2") {
		t.Error("a name server that does not answer makes a standby foreign")
	}
}

// Without Consul a primary that was started is led to when all members have promised since, which none does that has a takeover
// under way, and when enough standbys have flushed what it has recovered.
func TestOpeningWithoutConsul(t *testing.T) {
	w := newWorld(t).leading()
	w.Dynamic.Takeover = cluster.TakeoverQuorum
	w.commits.names, w.commits.value, w.commits.ever = []string{"b"}, `"b"`, true // as it was set before the start
	w.LeaseState.ListKnown(104, map[string]string{"a": "http://a", "b": "http://b", "c": "http://c"})
	round := func() (answered func(bool)) {
		t0 := w.clock
		lease := w.LeaseState.BeginFailsafe(t0)
		return func(agreed bool) {
			if err := w.LeaseState.FailsafeAnswered(w.clock, t0, lease, agreed); err != nil {
				t.Fatal(err)
			}
		}
	}
	look := func(names string, flushed int64) {
		w.pass(time.Millisecond)
		w.Saw(Look{Began: w.clock, State: pg.State{
			Running: true, Accepting: true, Timeline: 3, WriteLSN: 300 * mib, SyncNames: names,
			Standbys: []pg.StandbyState{{ApplicationName: "b", FlushLSN: flushed}},
		}})
		w.opener.mind()
	}
	stays := func(why string) {
		t.Helper()
		if !w.Opening() {
			t.Fatal("it is led to: " + why)
		}
	}
	before := round()
	w.opener.begins()
	w.pass(time.Millisecond)
	w.opener.started()
	before(true)
	look(`"b"`, 300*mib)
	stays("all have promised, in a round that began before the start")
	round()(false)
	look(`"b"`, 300*mib)
	stays("not all have promised")
	round()(true)
	look(`"b"`, 300*mib-1)
	stays("b has not flushed what was recovered")
	look(`"c"`, 300*mib)
	stays("commits wait for others than b")
	w.commits.ever = false
	look(`"b"`, 300*mib)
	stays("an agent that has set nothing does not know for how many of them")
	w.commits.ever = true
	look(`"b"`, 300*mib)
	if w.Opening() || w.route.state() != cluster.RouteOpen {
		t.Fatalf("it is not led to, though all have promised and b has flushed: %s", w.route.state())
	}
}

// That takeovers by quorum are switched off opens a primary that was started when no status consents any more, and not before.
func TestOpeningWhileConsentStands(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Arm", "Guard.Mark")
	w.Dynamic.Takeover = cluster.TakeoverLease
	w.LeaseState.BeginConsent(true)
	w.opener.begins()
	w.opener.started()
	w.opener.mind()
	if !w.Opening() {
		t.Fatal("it is led to while a status may stand that consents to a takeover by quorum")
	}
	w.beat(false)
	w.answer("Consul.Beat", uint64(120), nil)
	if w.opener.mind(); w.Opening() {
		t.Fatal("it is not led to, though nobody takes over by quorum any more")
	}
	w.opener.begins()
	if w.opener.started(); w.Opening() {
		t.Fatal("with the lease alone nobody waits for standbys after a start")
	}
}

// However an attempt has ended, the next one has to wait, longer each time, until there was none for some time.
func TestEveryAttemptCounts(t *testing.T) {
	w := newWorld(t)
	w.Dynamic.Takeover, w.Dynamic.SuspectAfter = cluster.TakeoverQuorum, time.Second
	w.quorum.mind()
	waits := func(end func(), want time.Duration) {
		t.Helper()
		w.quorum.begin(90)
		end()
		v := w.quorum.view()
		if v.Attempt != "" {
			t.Fatal("it has not ended")
		}
		if got := v.NotBefore.Sub(w.clock); got != want {
			t.Errorf("the next one has to wait for %s, want %s", got, want)
		}
	}
	ends := func() { w.quorum.end(ha.EndAttempt{}) }
	first := 2 * w.Dynamic.BeatInterval()
	waits(ends, first)
	waits(func() { w.quorum.promised(ha.FailsafeRequest{Leader: "b"}) }, first+first/2)
	waits(ends, 2*first+first/2)
	w.quorum.promised(ha.FailsafeRequest{Leader: "b"}) // without an attempt
	if got := w.quorum.view().NotBefore.Sub(w.clock); got != 2*first+first/2 {
		t.Errorf("a promise alone has it wait for %s", got)
	}
	w.clock = w.clock.Add(2*first + first/2 + 3*w.Dynamic.TTL)
	waits(ends, first)
}

// What L consents by is not weakened before a beat without consent is confirmed.
func TestHoldCommits(t *testing.T) {
	w := newWorld(t).leading()
	w.agree("Guard.Arm", "Guard.Mark")
	held := func(want bool, when string) {
		t.Helper()
		if w.held != want {
			t.Fatalf("%s: held back: %t", when, w.held)
		}
	}
	held(false, "nobody has consented")
	w.beat(true)
	w.settle()
	held(true, "before it is known what becomes of a beat that consents")
	w.answer("Consul.Beat", uint64(120), nil)
	held(true, "a status stands that consents")
	w.beat(false)
	w.settle()
	held(true, "a beat without consent is under way")
	w.deny("Consul.Beat", cluster.ErrUncertain)
	held(true, "its outcome is unknown")
	w.beat(false)
	w.answer("Consul.Beat", uint64(121), nil)
	held(false, "it is confirmed")

	w.beat(true)
	w.answer("Consul.Beat", uint64(122), nil)
	w.takeOver(ha.TakeOver{Status: 122, Leader: 102}, false)
	w.settle()
	held(true, "a takeover of its own is under way")
	w.answer("Consul.TakeOver", cluster.Indexes{w.Keys.Status(): 130, w.Keys.Leader(): 131, w.Keys.Route(): 132}, nil)
	held(false, "its own takeover consents to nothing")

	anew := newWorld(t)
	anew.startedPrimary, anew.startedKnown = true, true
	primary := pg.State{Running: true, Accepting: true, Timeline: 3, WriteLSN: 100 * mib}
	if anew.AdoptRunning(primary, "", Recalled{}); !anew.held || !anew.LeaseState.Consented() {
		t.Fatal("an agent that begins anew with a primary weakens what the earlier one may have consented by")
	}
	replica := newWorld(t)
	if replica.AdoptRunning(pg.State{Running: true, Accepting: true, InRecovery: true, Timeline: 3}, "b", Recalled{}); replica.held {
		t.Fatal("a replica holds something back")
	}
}

// What is configured will be shown.
func TestConfiguredFsync(t *testing.T) {
	w := newWorld(t).leading()
	w.PG.Observed.Fsync = true
	if !w.View().Postgres.Durable.Fsync {
		t.Fatal("fsync is on")
	}
	if w.fsyncOff = true; w.View().Postgres.Durable.Fsync {
		t.Error("it will be off, and counts as on")
	}
}

// Where no member can be a witness bouncers are, which are asked before there is an attempt.
func TestBouncerAsWitness(t *testing.T) {
	w := newWorld(t)
	w.Snapshot.Members = w.Snapshot.Members[:2]
	w.Dynamic.Takeover, w.Dynamic.SuspectAfter = cluster.TakeoverQuorum, time.Second
	w.Snapshot.Status.Value.Lictor.Takeover = cluster.TakeoverQuorum
	w.Snapshot.Sync = cluster.Entry[cluster.Sync]{ModifyIndex: 91, Value: cluster.NewSync("b", []string{"a"})}
	silent := func(probes int) {
		t.Helper()
		for range probes {
			w.quorum.mind()
			w.pass(250 * time.Millisecond)
			w.answer("Peers.Probe", false)
		}
		w.quorum.mind()
	}
	silent(1)
	w.none("Bouncers.Misses")
	silent(1)
	c := w.take("Bouncers.Misses")
	if hosts := c.args[2].([]string); c.args[1] != "b" || len(hosts) != 2 || hosts[0] != "a" || hosts[1] != "b" || c.args[3] != time.Second {
		t.Fatalf("asked %v", c.args)
	}
	silent(3)
	w.none("Bouncers.Misses") // it is asked already
	w.quorum.begin(90)
	if v := w.quorum.view(); v.Witness != "" || v.WitnessesDone {
		t.Fatalf("it waits for nobody: %+v", v)
	}
	c.answer("p1", nil)
	if v := w.quorum.view(); v.Witness != "p1" || !v.WitnessesDone {
		t.Fatalf("p1 is no witness: %+v", v)
	}

	// Its word is there before the attempt, once, and not for long.
	again := func(before time.Duration, want string) {
		t.Helper()
		w.quorum.end(ha.EndAttempt{})
		w.clock = w.quorum.notBefore
		w.quorum.poolers = poolerWitness{leader: "b", since: w.quorum.since, misses: "p2", at: w.clock.Add(-before)}
		w.quorum.begin(90)
		w.settle()
		if v := w.quorum.view(); v.Witness != want {
			t.Fatalf("the witness is %q, want %q", v.Witness, want)
		}
	}
	again(time.Second, "p2")
	again(2*time.Second, "")
	w.deny("Bouncers.Misses", errBoom)
	if v := w.quorum.view(); v.Witness != "" || !v.WitnessesDone {
		t.Fatalf("a failure is a witness: %+v", v)
	}

	// A member is preferred, and one of the leader's host is none.
	w.quorum.end(ha.EndAttempt{})
	w.Snapshot = w.shard("b")
	w.quorum.begin(90)
	w.take("Peers.Misses")
	w.none("Bouncers.Misses")
	w.quorum.end(ha.EndAttempt{})
	w.Snapshot.Members[2].Value.ConnURL = w.Snapshot.Members[1].Value.ConnURL
	w.quorum.begin(90)
	w.none("Peers.Misses")
	w.take("Bouncers.Misses")
}
