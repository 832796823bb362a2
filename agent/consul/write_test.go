package consul

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// What a write does to a shard, and when Consul refuses it.
func TestWrites(t *testing.T) {
	consul := startConsul(t)
	for name, test := range map[string]func(*testing.T, shard){
		"beat":                      testBeat,
		"takeover of a held lock":   testTakeOverHeld,
		"takeover of a moved shard": testTakeOverMoved,
		"takeover, same route":      testTakeOverSameRoute,
		"takeover, late sync write": testTakeOverLateSync,
		"release":                   testRelease,
		"bootstrap":                 testBootstrap,
		"bootstrap given up":        testBootstrapGivenUp,
		"rebuild":                   func(t *testing.T, s shard) { testRebuild(t, s, consul.address) },
		"first start on data":       testInitializeAndConfig,
		"touch":                     testTouch,
		"write as leader":           testWriteAsLeader,
		"write":                     testWrite,
		"handover":                  testHandover,
		"session":                   testSession,
		"permission denied":         func(t *testing.T, s shard) { testDenied(t, s, consul.address) },
		"read":                      testRead,
		"watch":                     testWatch,
		"watch the route":           testWatchRoute,
		"service":                   func(t *testing.T, s shard) { testService(t, s, consul.dns) },
	} {
		t.Run(name, func(t *testing.T) { test(t, newShard(t, consul.address)) })
	}
}

func testBeat(t *testing.T, s shard) {
	session, first := s.leader("a")
	second, err := s.Beat(s.ctx, session, first, status("a", 2))
	must(t, err)
	if got := s.read().Status; second <= first || got.ModifyIndex != second || got.Value.Lictor.Number != 2 {
		t.Errorf("after the beat: index %d after %d, status %+v", second, first, got)
	}
	third, err := s.Beat(s.ctx, session, second, status("a", 3))
	must(t, err)

	for what, index := range map[string]uint64{"an older index": first, "no index": 0, "an index to come": third + 1} {
		_, err := s.Beat(s.ctx, session, index, status("a", 9))
		wants(t, "beat on "+what, err, ErrConflict)
	}
	_, err = s.Beat(s.ctx, s.session("b"), third, status("b", 9))
	wants(t, "beat of another session", err, ErrConflict)

	must(t, s.Write(s.ctx, s.keys.Status(), third, []byte(`{"optime":1}`)))
	_, err = s.Beat(s.ctx, session, third, status("a", 9))
	wants(t, "beat after somebody wrote the status", err, ErrConflict)

	moved := s.read().Status
	must(t, s.DestroySession(s.ctx, session))
	_, err = s.Beat(s.ctx, session, moved.ModifyIndex, status("a", 9))
	wants(t, "beat without the lock", err, ErrConflict)
	if got := s.read().Status; got.ModifyIndex != moved.ModifyIndex || got.Value.OpTime != 1 {
		t.Errorf("a refused beat has written: %+v", got)
	}
}

func testTakeOverHeld(t *testing.T, s shard) {
	a, last := s.leader("a")
	b := s.session("b")
	written, err := s.TakeOver(s.ctx, s.takeover(b, "b"))
	must(t, err)
	index := written[s.keys.Status()]
	s.wantLeader("b", b)
	now := s.read()
	for key, got := range map[string]uint64{
		"leader": now.Leader.ModifyIndex, "status": now.Status.ModifyIndex, "sync": now.Sync.ModifyIndex, "route": now.Route.ModifyIndex,
	} {
		if got != index {
			t.Errorf("%s has index %d: not written by the transaction %d", key, got, index)
		}
	}
	if now.Status.Value.Lictor.Owner != "b" || now.Route.Value.Leader.Name != "b" || now.Sync.Value.Leader != "b" {
		t.Errorf("after the takeover: %+v", now)
	}

	must(t, s.RenewSession(s.ctx, a)) // the old leader's session lives, and helps it nothing
	_, err = s.Beat(s.ctx, a, last, status("a", 2))
	wants(t, "beat of the old leader", err, ErrConflict)
	_, err = s.Beat(s.ctx, a, index, status("a", 2))
	wants(t, "beat of the old leader on the new status", err, ErrConflict)
	_, err = s.Release(s.ctx, a, index, status("a", 2))
	wants(t, "release by the old leader", err, ErrConflict)
	s.wantLeader("b", b)

	again := s.session("b") // a restarted agent takes its own lock over
	_, err = s.TakeOver(s.ctx, s.takeover(again, "b"))
	must(t, err)
	s.wantLeader("b", again)
}

// A leader takes its own lock again in synchronous mode, and a write of the key sync
// that it sent before, whose answer was lost, lands afterwards.
func testTakeOverLateSync(t *testing.T, s shard) {
	session, _ := s.leader("a")
	_, err := s.WriteAsLeader(s.ctx, session, s.keys.Sync(), s.read().Sync.ModifyIndex, cluster.NewSync("a", nil))
	must(t, err)
	before := s.read().Sync.ModifyIndex
	plan := s.takeover(session, "a")
	alone := cluster.NewSync("a", nil)
	plan.Sync, plan.SyncIndex = &alone, before
	_, err = s.TakeOver(s.ctx, plan)
	must(t, err)
	_, err = s.WriteAsLeader(s.ctx, session, s.keys.Sync(), before, cluster.NewSync("a", []string{"c"}))
	wants(t, "a write of the key sync from before the takeover", err, ErrConflict)
	if now := s.read().Sync; now.ModifyIndex == before || len(now.Value.Standbys()) != 0 {
		t.Errorf("the key sync: %+v, before %d", now, before)
	}
}

// A restarted agent takes its own lock again, and the route is what it was:
// Consul leaves its index as it is then, and so must whoever writes it next.
func testTakeOverSameRoute(t *testing.T, s shard) {
	s.leader("a")
	before := s.read().Route.ModifyIndex
	again := s.session("a")
	plan := s.takeover(again, "a")
	plan.Route = new(s.read().Route.Value)
	written, err := s.TakeOver(s.ctx, plan)
	must(t, err)
	now := s.read()
	if written[s.keys.Status()] != s.read().Status.ModifyIndex || written[s.keys.Route()] != now.Route.ModifyIndex || now.Route.ModifyIndex != before {
		t.Errorf("told %v; the route has index %d and had %d", written, now.Route.ModifyIndex, before)
	}
	_, err = s.WriteAsLeader(s.ctx, again, s.keys.Route(), written[s.keys.Route()], route("b"))
	must(t, err)
}

func testTakeOverMoved(t *testing.T, s shard) {
	a, index := s.leader("a")
	b := s.session("b")
	refused := func(what string, plan TakeOver) {
		t.Helper()
		before := s.read()
		_, err := s.TakeOver(s.ctx, plan)
		wants(t, "takeover though "+what, err, ErrConflict)
		after := s.read()
		if after.Leader.Session != a || after.Status.ModifyIndex != before.Status.ModifyIndex ||
			after.Route.ModifyIndex != before.Route.ModifyIndex || after.Sync.ModifyIndex != before.Sync.ModifyIndex {
			t.Errorf("takeover though %s has written: %+v", what, after)
		}
	}

	plan := s.takeover(b, "b")
	index, err := s.Beat(s.ctx, a, index, status("a", 2))
	must(t, err)
	refused("a beat slipped in", plan)

	plan = s.takeover(b, "b")
	_, err = s.WriteAsLeader(s.ctx, a, s.keys.Failsafe(), 0, map[string]string{"a": "http://a/patroni"})
	must(t, err)
	refused("the failsafe key appeared", plan)
	plan = s.takeover(b, "b")
	_, err = s.WriteAsLeader(s.ctx, a, s.keys.Failsafe(), plan.FailsafeIndex, nil)
	must(t, err)
	refused("the failsafe key vanished", plan)

	plan = s.takeover(b, "b")
	_, err = s.WriteAsLeader(s.ctx, a, s.keys.Route(), plan.RouteIndex, route("c"))
	must(t, err)
	refused("the route moved", plan)

	plan = s.takeover(b, "b")
	_, err = s.WriteAsLeader(s.ctx, a, s.keys.Sync(), plan.SyncIndex, cluster.NewSync("a", []string{"c"}))
	must(t, err)
	refused("the sync key moved", plan)
	plan = s.takeover(b, "b")
	plan.Sync, plan.SyncIndex = nil, plan.SyncIndex-1
	refused("the sync key, which it does not replace, moved", plan)

	plan = s.takeover(b, "b")
	plan.LeaderIndex = 0
	refused("the lock is held", plan)
	plan = s.takeover(b, "b")
	plan.LeaderIndex = index
	refused("the lock was taken anew", plan)
	plan = s.takeover(b, "b")
	must(t, s.DestroySession(s.ctx, b))
	refused("the session is gone", plan)

	c := s.session("c")
	_, err = s.TakeOver(s.ctx, s.takeover(c, "c"))
	must(t, err)
	s.wantLeader("c", c)
}

func testRelease(t *testing.T, s shard) {
	a, index := s.leader("a")
	given := status("a", 2)
	given.Lictor.Released, given.Lictor.Successor = true, "b"
	_, err := s.Release(s.ctx, a, index-1, given)
	wants(t, "release on an older index", err, ErrConflict)
	s.wantLeader("a", a)
	released, err := s.Release(s.ctx, a, index, given)
	must(t, err)
	now := s.read()
	if now.Leader.Exists() || now.Status.ModifyIndex != released || !now.Status.Value.Lictor.Released || now.Status.Value.Lictor.Successor != "b" {
		t.Fatalf("released: %+v", now)
	}
	_, err = s.Beat(s.ctx, a, released, status("a", 3))
	wants(t, "beat after the release", err, ErrConflict)
	b := s.session("b")
	_, err = s.TakeOver(s.ctx, s.takeover(b, "b"))
	must(t, err)
	s.wantLeader("b", b)
}

const systemIdentifier = "7300000000000000001"

func testBootstrap(t *testing.T, s shard) {
	const members = 8
	race := func() (winner string) {
		t.Helper()
		sessions, errs := make([]string, members), make([]error, members)
		for i := range sessions {
			sessions[i] = s.session("m")
		}
		var all sync.WaitGroup
		for i := range sessions {
			all.Go(func() { errs[i] = s.BeginBootstrap(s.ctx, sessions[i]) })
		}
		all.Wait()
		for i, err := range errs {
			switch {
			case err == nil && winner != "":
				t.Error("two have won")
			case err == nil:
				winner = sessions[i]
			default:
				wants(t, "loser", err, ErrConflict)
			}
		}
		got := s.read().Initialize
		if winner == "" || got.Session != winner || got.Value != "" {
			t.Fatalf("winner %q, key %+v", winner, got)
		}
		return winner
	}

	must(t, s.DestroySession(s.ctx, race()))
	if got := s.read().Initialize; got.Exists() {
		t.Fatalf("outlives its session: %+v", got)
	}

	winner := race()
	other := s.session("other")
	plan := s.takeover(other, "other")
	plan.Bootstrapped, plan.Initialize = true, systemIdentifier
	_, err := s.TakeOver(s.ctx, plan)
	wants(t, "takeover by one who does not hold the key", err, ErrConflict)

	plan = s.takeover(winner, "a")
	plan.Bootstrapped, plan.Initialize, plan.Config = true, systemIdentifier, []byte(`{"ttl":8}`)
	_, err = s.TakeOver(s.ctx, plan)
	must(t, err)
	if now := s.read(); now.Initialize.Value != systemIdentifier || now.Initialize.Session != "" || string(now.Config.Value) != `{"ttl":8}` {
		t.Errorf("bootstrapped: %+v", now)
	}
	must(t, s.DestroySession(s.ctx, winner))
	if now := s.read(); now.Initialize.Value != systemIdentifier || now.Leader.Exists() {
		t.Errorf("after the end of the session: %+v", now)
	}
	wants(t, "a second bootstrap", s.BeginBootstrap(s.ctx, other), ErrConflict)
}

func testBootstrapGivenUp(t *testing.T, s shard) {
	a, b := s.session("a"), s.session("b")
	must(t, s.BeginBootstrap(s.ctx, a))
	wants(t, "given up by another", s.EndBootstrap(s.ctx, b), ErrConflict)
	must(t, s.EndBootstrap(s.ctx, a))
	must(t, s.BeginBootstrap(s.ctx, b))
	wants(t, "given up by one who has lost it", s.EndBootstrap(s.ctx, a), ErrConflict)
}

// One member of a shard, and of a host, has the turn to be made anew; it goes with its session,
// or when it is given up. That of the host is taken with the other, or none.
func testRebuild(t *testing.T, s shard, address string) {
	a, b := s.session("a"), s.session("b")
	host := "h-" + s.keys.Scope()
	must(t, s.BeginRebuild(s.ctx, a, "a", host))
	must(t, s.BeginRebuild(s.ctx, a, "a", host))
	if got := s.read().Rebuild; got.Value != "a" || got.Session != a {
		t.Errorf("rebuild: %+v", got)
	}
	wants(t, "the turn of another", s.BeginRebuild(s.ctx, b, "b", host+"2"), ErrConflict)
	must(t, s.EndRebuild(s.ctx, b, host, false)) // not its own: nothing
	wants(t, "given up by another", s.BeginRebuild(s.ctx, b, "b", ""), ErrConflict)

	other := newStore(t, cluster.NewKeys("", s.keys.Scope()+"-other", ""), address)
	err := other.BeginRebuild(s.ctx, b, "b", host)
	wants(t, "of another shard on the host", err, ErrConflict)
	if !strings.Contains(err.Error(), s.keys.Scope()+"/a") {
		t.Errorf("who has it is not said: %v", err)
	}
	if key, _, err := s.Get(s.ctx, other.keys.Rebuild()); err != nil || len(key) > 0 {
		t.Errorf("half of it was taken: %q, %v", key, err)
	}
	must(t, s.EndRebuild(s.ctx, a, host, true))
	wants(t, "the shard's is kept", s.BeginRebuild(s.ctx, b, "b", ""), ErrConflict)
	must(t, other.BeginRebuild(s.ctx, b, "b", host))

	must(t, s.EndRebuild(s.ctx, a, host, false))
	must(t, s.BeginRebuild(s.ctx, b, "b", host))
	must(t, s.DestroySession(s.ctx, b))
	testkit.Await(s.ctx, t, "a takes the turn of one whose session has ended", func() error { return s.BeginRebuild(s.ctx, a, "a", host) }) // after Consul's lock delay
	must(t, s.EndRebuild(s.ctx, a, host, false))
}

func testInitializeAndConfig(t *testing.T, s shard) {
	a := s.session("a")
	plan := s.takeover(a, "a")
	plan.Initialize = systemIdentifier
	_, err := s.TakeOver(s.ctx, plan)
	must(t, err)
	must(t, s.DestroySession(s.ctx, a))
	if got := s.read().Initialize; got.Value != systemIdentifier || got.Session != "" {
		t.Errorf("initialize: %+v", got)
	}

	b := s.session("b")
	plan = s.takeover(b, "b")
	plan.Initialize = "1"
	_, err = s.TakeOver(s.ctx, plan)
	wants(t, "another system identifier", err, ErrConflict)
	must(t, s.Write(s.ctx, s.keys.Config(), 0, []byte(`{"ttl":9}`)))
	plan = s.takeover(b, "b")
	plan.Config = []byte(`{"ttl":8}`)
	_, err = s.TakeOver(s.ctx, plan)
	wants(t, "a configuration over another", err, ErrConflict)
	if got := s.read(); got.Initialize.Value != systemIdentifier || string(got.Config.Value) != `{"ttl":9}` || got.Leader.Exists() {
		t.Errorf("refused, and yet: %+v", got)
	}
}

func testTouch(t *testing.T, s shard) {
	member := cluster.Member{Name: "a", State: cluster.StateRunning, Role: cluster.RoleReplica, Version: "4.0.0"}
	before, after := s.session("a"), s.session("a")
	touch := func(session string, index uint64) error {
		_, err := s.Touch(s.ctx, session, index, member)
		return err
	}
	must(t, touch(before, 0))
	old, found := s.read().Member("a")
	if !found || old.Session != before {
		t.Fatalf("member: %+v", old)
	}
	wants(t, "over another session's key", touch(after, 0), ErrConflict)
	wants(t, "over a key that was written meanwhile", touch(after, old.ModifyIndex+1), ErrConflict)
	must(t, touch(after, old.ModifyIndex))
	member.State = cluster.StateStopping
	must(t, touch(after, 0))
	must(t, s.DestroySession(s.ctx, before))
	if got, _ := s.read().Member("a"); got.Session != after || got.Value.State != cluster.StateStopping {
		t.Errorf("replaced: %+v", got)
	}
	must(t, s.DestroySession(s.ctx, after))
	if got, found := s.read().Member("a"); found {
		t.Errorf("outlives its session: %+v", got)
	}
}

func testWriteAsLeader(t *testing.T, s shard) {
	a, _ := s.leader("a")
	b := s.session("b")
	key := s.keys.Failsafe()
	first, err := s.WriteAsLeader(s.ctx, a, key, 0, map[string]string{"a": "1"})
	must(t, err)
	if got := s.read().Failsafe; got.ModifyIndex != first || got.Value["a"] != "1" {
		t.Errorf("written: %+v, index %d", got, first)
	}
	second, err := s.WriteAsLeader(s.ctx, a, key, first, map[string]string{"a": "2"})
	must(t, err)
	if second <= first {
		t.Errorf("index %d after %d", second, first)
	}
	same, err := s.WriteAsLeader(s.ctx, a, key, second, map[string]string{"a": "2"})
	must(t, err)
	if got := s.read().Failsafe; same <= second || got.ModifyIndex != same {
		t.Errorf("the same value again: told index %d, is %d, was %d", same, got.ModifyIndex, second)
	}
	second = same
	for what, attempt := range map[string]func() (uint64, error){
		"an older index":           func() (uint64, error) { return s.WriteAsLeader(s.ctx, a, key, first, map[string]string{}) },
		"a key that exists":        func() (uint64, error) { return s.WriteAsLeader(s.ctx, a, key, 0, map[string]string{}) },
		"deletion, older index":    func() (uint64, error) { return s.WriteAsLeader(s.ctx, a, key, first, nil) },
		"another session":          func() (uint64, error) { return s.WriteAsLeader(s.ctx, b, key, second, map[string]string{}) },
		"deletion, other session":  func() (uint64, error) { return s.WriteAsLeader(s.ctx, b, key, second, nil) },
		"other key, other session": func() (uint64, error) { return s.WriteAsLeader(s.ctx, b, s.keys.History(), 0, cluster.History{}) },
	} {
		_, err := attempt()
		wants(t, what, err, ErrConflict)
	}
	if got := s.read(); got.Failsafe.ModifyIndex != second || got.History.Exists() {
		t.Errorf("a refused write has written: %+v", got)
	}
	_, err = s.WriteAsLeader(s.ctx, a, key, second, nil)
	must(t, err)
	if got := s.read().Failsafe; got.Exists() {
		t.Errorf("not deleted: %+v", got)
	}
	_, err = s.WriteAsLeader(s.ctx, a, key, 0, nil)
	must(t, err)
	if _, err = s.WriteAsLeader(s.ctx, a, key, 0, func() {}); err == nil || errors.Is(err, ErrUncertain) || errors.Is(err, ErrConflict) {
		t.Errorf("what is no JSON: %v", err)
	}
}

func testHandover(t *testing.T, s shard) {
	a, _ := s.leader("a")
	b := s.session("b")
	announced := func() *api.KVPair {
		t.Helper()
		pair, _, err := s.clients[0].KV().Get(s.keys.Handover(), nil)
		must(t, err)
		return pair
	}
	plan := cluster.Handover{ID: "1", Leader: "a", Successor: "b", DeadlineMS: 10000, State: cluster.HandoverAnnounced}
	wants(t, "announced by another", s.Announce(s.ctx, b, plan), ErrConflict)
	must(t, s.Announce(s.ctx, a, plan))
	got := announced()
	if h, err := cluster.ParseHandover(got.Value); err != nil || h != plan || got.Session != a {
		t.Errorf("announced %+v, held by %q: %v", h, got.Session, err)
	}
	plan.ID = "2" // what an earlier one left is replaced
	must(t, s.Announce(s.ctx, a, plan))
	must(t, s.EndHandover(s.ctx, b))
	if got := announced(); got == nil {
		t.Error("taken back by another")
	}
	must(t, s.EndHandover(s.ctx, a))
	if got := announced(); got != nil {
		t.Errorf("not taken back: %s", got.Value)
	}
	must(t, s.EndHandover(s.ctx, a)) // there is none

	bouncer := func(name, value string) {
		t.Helper()
		_, _, err := s.clients[0].KV().Acquire(&api.KVPair{Key: s.keys.Bouncers() + name, Value: []byte(value), Session: b}, nil)
		must(t, err)
	}
	bouncer("x", `{"name":"x","url":"http://10.0.0.9:8009","all":true}`)
	bouncer("y", `{`)
	bouncer("evil", `{"name":"x","url":"http://10.0.0.66:8009","all":true}`) // as it may write its own key
	list, err := s.Bouncers(s.ctx)
	must(t, err)
	if len(list) != 1 || list[0].Name != "x" || !list[0].Serves("service", "any") {
		t.Errorf("bouncers: %+v", list)
	}
}

func testWrite(t *testing.T, s shard) {
	must(t, s.Write(s.ctx, s.keys.Config(), 0, value(1)))
	wants(t, "create what exists", s.Write(s.ctx, s.keys.Config(), 0, value(2)), ErrConflict)
	index := s.read().Config.ModifyIndex
	must(t, s.Write(s.ctx, s.keys.Config(), index, value(3)))
	wants(t, "on an older index", s.Write(s.ctx, s.keys.Config(), index, value(4)), ErrConflict)
	if got := s.read().Config; string(got.Value) != string(value(3)) {
		t.Errorf("value: %s", got.Value)
	}
}

func testSession(t *testing.T, s shard) {
	id := s.session("shard-a")
	must(t, s.RenewSession(s.ctx, id))
	if name, err := s.SessionName(s.ctx, id); err != nil || name != "shard-a" {
		t.Errorf("name: %q %v", name, err)
	}
	must(t, s.DestroySession(s.ctx, id))
	wants(t, "renewing a session that is gone", s.RenewSession(s.ctx, id), ErrNoSession)
	wants(t, "renewing one that never was", s.RenewSession(s.ctx, "11111111-2222-3333-4444-555555555555"), ErrNoSession)
	if name, err := s.SessionName(s.ctx, id); err != nil || name != "" {
		t.Errorf("name of a session that is gone: %q %v", name, err)
	}
	must(t, s.DestroySession(s.ctx, id))
}

// testDenied: what Consul itself turned down took no effect, and must not make
// an agent wait for an effect that never comes.
func testDenied(t *testing.T, s shard, address string) {
	denied, err := New([]*api.Config{{Address: address, Token: "11111111-2222-3333-4444-555555555555"}}, s.keys)
	must(t, err)
	err = denied.Write(s.ctx, s.keys.Config(), 0, value(1))
	if err == nil || errors.Is(err, ErrUncertain) || errors.Is(err, ErrConflict) {
		t.Errorf("write with an unknown token: %v", err)
	}
	if _, err := denied.Read(s.ctx); err == nil {
		t.Error("read with an unknown token")
	}
	if got := s.read().Config; got.Exists() {
		t.Errorf("and yet written: %+v", got)
	}
}
