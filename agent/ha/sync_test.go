package ha

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// quorumKey is a key as Patroni 4 writes it.
func quorumKey(leader string, quorum int, standbys ...string) func(*View) {
	return func(v *View) {
		value := cluster.NewSync(leader, standbys)
		value.Quorum = quorum
		v.Cluster.Sync = cluster.Entry[cluster.Sync]{Value: value, ModifyIndex: 47}
	}
}

// standby adds a member that streams, as far as flush.
func standby(name string, sync bool, flush int64) func(*View) {
	return func(v *View) {
		v.Postgres.Standbys = append(v.Postgres.Standbys, Standby{Name: name, Streaming: true, Sync: sync, FlushLSN: flush, WriteLSN: flush, ReplayLSN: flush})
		if _, found := v.member(name); !found {
			v.Cluster.Members = append(v.Cluster.Members, cluster.Entry[cluster.Member]{Value: cluster.Member{Name: name, State: cluster.StateRunning}, ModifyIndex: 1})
		}
	}
}

func tagged(name, tag string, value any) func(*View) {
	return func(v *View) {
		for i := range v.Cluster.Members {
			if m := &v.Cluster.Members[i].Value; m.Name == name {
				m.Tags = map[string]any{tag: value}
			}
		}
	}
}

// zone is the leader's own; leaderAt is how far it is.
func zone(name string) func(*View) {
	return func(v *View) { v.Tags = map[string]any{"zone": name} }
}

func leaderAt(lsn int64) func(*View) { return func(v *View) { v.Postgres.LSN = lsn } }

func lagLimit(n int64) func(*View) { return func(v *View) { v.Config.MaximumLagOnFailover = n } }

// waitsForAll, waitsForAny: what PostgreSQL certainly waits for, since position 100.
func waitsForAll(names ...string) func(*View) { return waitsForAny(0, names...) }

func waitsForAny(n int, names ...string) func(*View) {
	return func(v *View) { v.Postgres.SyncNames, v.Postgres.SyncAny, v.Postgres.SyncSince = names, n, 100 }
}

func TestSynchronousOn(t *testing.T) {
	lease := holdsLease(7 * time.Second)
	on := func(count int) func(*View) {
		return func(v *View) { v.Config.SynchronousMode, v.Config.SynchronousNodeCount = cluster.SyncOn, count }
	}
	strict := func(v *View) { v.Config.SynchronousStrict = true }
	maxLag := func(v *View) { v.Config.MaximumLagOnSyncNode = 1000 }
	commit := func(kind string) func(*View) { return func(v *View) { v.Postgres.SynchronousCommit = kind } }
	uneven := func(v *View) { // b has written most, c has flushed most, d has replayed most
		v.Postgres.Standbys = nil
		for i, name := range []string{"b", "c", "d"} {
			standby(name, false, 10)(v)
			s := &v.Postgres.Standbys[i]
			*[]*int64{&s.WriteLSN, &s.FlushLSN, &s.ReplayLSN}[i] = 20
		}
	}
	runSituations(t, []situationTest{
		{"two are waited for", view(lease, on(2), syncKey("a"), standby("b", false, 1), standby("c", false, 2)), "commits wait for [c b]", ""},
		{"one of two has caught up", view(lease, on(2), syncKey("a"), waitsForAll("b", "c"), standby("b", true, 100), standby("c", true, 99)), "sync key: a with [b]", "caught up"},
		{"and the other", view(lease, on(2), syncKey("a", "b"), waitsForAll("b", "c"), standby("b", true, 100), standby("c", true, 100)), "sync key: a with [b c]", "caught up"},
		{"one more is asked for", view(lease, on(2), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 100), standby("c", false, 100)), "commits wait for [b c]", ""},
		{"one less: key first", view(lease, on(1), syncKey("a", "b", "c"), waitsForAll("b", "c"), standby("b", true, 100), standby("c", true, 100)), "sync key: a with [b]", "changed"},
		{"one less: then PostgreSQL", view(lease, on(1), syncKey("a", "b"), waitsForAll("b", "c"), standby("b", true, 100), standby("c", true, 100)), "commits wait for [b]", ""},
		{"one of two gone: key first", view(lease, on(2), syncKey("a", "b", "c"), waitsForAll("b", "c"), standby("b", true, 100)), "sync key: a with [b]", "is gone"},
		{"names compare without case", view(lease, on(1), syncKey("A", "B"), waitsForAll("B"), standby("b", true, 100)), "", ""},

		// A standby that still streams is exchanged without a moment in which nobody
		// else may lead.
		{"nosync: both are waited for", view(lease, on(1), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 100), standby("c", false, 100), tagged("b", "nosync", true)), "commits wait for [c b]", ""},
		{"nosync: not before the other has caught up", view(lease, on(1), syncKey("a", "b"), waitsForAll("c", "b"), standby("b", true, 100), standby("c", true, 99), tagged("b", "nosync", true)), "", ""},
		{"nosync: then the key", view(lease, on(1), syncKey("a", "b"), waitsForAll("c", "b"), standby("b", true, 100), standby("c", true, 100), tagged("b", "nosync", true)), "sync key: a with [c]", "caught up"},
		{"nosync: then PostgreSQL", view(lease, on(1), syncKey("a", "c"), waitsForAll("c", "b"), standby("b", true, 100), standby("c", true, 100), tagged("b", "nosync", true)), "commits wait for [c]", ""},
		{"nostream: both are waited for", view(lease, on(1), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 100), standby("c", false, 100), tagged("b", "nostream", true)), "commits wait for [c b]", ""},
		{"nostream: then the key", view(lease, on(1), syncKey("a", "b"), waitsForAll("c", "b"), standby("b", true, 100), standby("c", true, 100), tagged("b", "nostream", true)), "sync key: a with [c]", "caught up"},
		{"nostream and nobody else: key first", view(lease, on(1), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 100), tagged("b", "nostream", true)), "sync key: a with []", "none is left"},
		{"nosync and nobody else: key first", view(lease, on(1), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 100), tagged("b", "nosync", true)), "sync key: a with []", "none is left"},
		{"sync_priority 0", view(lease, on(1), syncKey("a"), standby("b", false, 100), tagged("b", "sync_priority", 0)), "", ""},
		{"sync_priority before position", view(lease, on(1), syncKey("a"), standby("b", false, 900), standby("c", false, 100), tagged("c", "sync_priority", 2)), "commits wait for [c]", ""},
		{"sync_priority before the one promised", view(lease, on(1), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 900), standby("c", false, 100), tagged("c", "sync_priority", float64(2))), "commits wait for [c b]", ""},

		{"another zone before position", view(lease, on(1), zone("x"), syncKey("a"), standby("b", false, 900), standby("c", false, 100), tagged("b", "zone", "x"), tagged("c", "zone", "y")), "commits wait for [c]", ""},
		{"another zone before the one promised", view(lease, on(1), zone("x"), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 900), standby("c", false, 100), tagged("b", "zone", "x"), tagged("c", "zone", "y")), "commits wait for [c b]", ""},
		{"another zone, and the one promised is in one", view(lease, on(1), zone("x"), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 100), standby("c", false, 900), tagged("b", "zone", "z"), tagged("c", "zone", "y")), "", ""},
		{"sync_priority before zones", view(lease, on(1), zone("x"), syncKey("a"), standby("b", false, 900), standby("c", false, 100), tagged("b", "sync_priority", 2), tagged("c", "zone", "y")), "commits wait for [b]", ""},
		{"two in two zones", view(lease, on(2), zone("x"), syncKey("a"), standby("b", false, 900), standby("c", false, 800), standby("d", false, 100), tagged("b", "zone", "y"), tagged("c", "zone", "y"), tagged("d", "zone", 7.0)), "commits wait for [b d]", ""},
		{"more than there are zones", view(lease, on(2), zone("x"), syncKey("a"), standby("b", false, 900), standby("c", false, 800), standby("d", false, 100), tagged("b", "zone", "y"), tagged("c", "zone", "x"), tagged("d", "zone", "x")), "commits wait for [b c]", ""},
		{"the leader has no zone", view(lease, on(1), syncKey("a"), standby("b", false, 900), standby("c", false, 100), tagged("b", "zone", "x"), tagged("c", "zone", "y")), "commits wait for [b]", ""},
		{"a standby without a zone is a neighbour", view(lease, on(1), zone("x"), syncKey("a"), standby("b", false, 900), standby("c", false, 100), tagged("c", "zone", "y")), "commits wait for [c]", ""},
		{"another zone that lags is not waited for", view(lease, on(1), zone("x"), lagLimit(10), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 995), standby("c", false, 989), tagged("b", "zone", "x"), tagged("c", "zone", "y"), leaderAt(1000)), "", ""},
		{"another zone that has caught up is", view(lease, on(1), zone("x"), lagLimit(10), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 995), standby("c", false, 990), tagged("b", "zone", "x"), tagged("c", "zone", "y"), leaderAt(1000)), "commits wait for [c b]", ""},
		{"another zone that is promised and lags stays", view(lease, on(1), zone("x"), lagLimit(10), syncKey("a", "c"), waitsForAll("c"), standby("b", true, 995), standby("c", true, 100), tagged("b", "zone", "x"), tagged("c", "zone", "y"), leaderAt(1000)), "", ""},

		{"lags behind the others: exchanged", view(lease, on(1), maxLag, syncKey("a", "b"), waitsForAll("b"), standby("b", true, 1000), standby("c", false, 2001)), "commits wait for [c b]", ""},
		{"lags as much as it may", view(lease, on(1), maxLag, syncKey("a", "b"), waitsForAll("b"), standby("b", true, 1000), standby("c", false, 2000)), "", ""},
		{"alone it is measured by the primary", view(lease, on(1), maxLag, syncKey("a", "b"), waitsForAll("b"), standby("b", true, 3999)), "sync key: a with []", ""},
		{"alone and near enough", view(lease, on(1), maxLag, syncKey("a", "b"), waitsForAll("b"), standby("b", true, 4000)), "", ""},
		{"synchronous_commit on", view(lease, on(1), syncKey("a"), uneven, commit("on")), "commits wait for [c]", ""},
		{"synchronous_commit remote_write", view(lease, on(1), syncKey("a"), uneven, commit("remote_write")), "commits wait for [b]", ""},
		{"synchronous_commit remote_apply", view(lease, on(1), syncKey("a"), uneven, commit("remote_apply")), "commits wait for [d]", ""},

		{"two connections of one name: the slower counts", view(lease, on(1), syncKey("a"), waitsForAll("b"), standby("b", true, 100), standby("b", true, 99)), "", ""},
		{"strict: named again", view(lease, on(1), strict, syncKey("a"), waitsForAll("*"), standby("b", true, 100)), "commits wait for [b]", ""},
		{"strict: not for anybody while one is promised", view(lease, on(1), strict, syncKey("a", "b"), waitsForAll("b")), "sync key: a with []", ""},

		{"a write of the key is under way", view(lease, on(1), func(v *View) { v.SyncWriting = true }, syncKey("a"), standby("b", true, 100)), "", ""},
		{"setting unknown: set again", view(lease, on(1), func(v *View) { v.Postgres.SyncUnsure = true }, syncKey("a", "b"), waitsForAll("b"), standby("b", true, 100)), "commits wait for [b]", ""},
		{"setting unknown: no promise", view(lease, on(1), func(v *View) { v.Postgres.SyncUnsure = true }, syncKey("a"), waitsForAll("b"), standby("b", true, 100)), "commits wait for [b]", ""},
		{"setting unknown, nobody able", view(lease, on(1), func(v *View) { v.Postgres.SyncUnsure = true }, syncKey("a")), "commits wait for []", ""},
		{"off, setting unknown", view(lease, func(v *View) { v.Postgres.SyncUnsure = true }), "commits wait for []", ""},
		{"key not understood", view(lease, on(1), func(v *View) {
			v.Cluster.Sync = cluster.Entry[cluster.Sync]{ModifyIndex: 4, Err: fmt.Errorf("bad")}
		}), "sync key: a with []", ""},
	})
}

// In strict mode PostgreSQL waits for somebody before it is promoted.
func TestSyncBeforePromotion(t *testing.T) {
	strict := func(mode cluster.SyncMode) func(*View) {
		return func(v *View) { v.Config.SynchronousMode, v.Config.SynchronousStrict = mode, true }
	}
	for _, tt := range []struct {
		name string
		view View
		want string
	}{
		{"on", view(strict(cluster.SyncOn)), "[commits wait for [*]]"},
		{"quorum", view(strict(cluster.SyncQuorum)), "[commits wait for any 1 of [*]]"},
		{"done", view(strict(cluster.SyncOn), waitsForAll("*")), "[]"},
		{"done, perhaps", view(strict(cluster.SyncOn), waitsForAll("*"), func(v *View) { v.Postgres.SyncUnsure = true }), "[commits wait for [*]]"},
		{"off", view(strict(cluster.SyncOff)), "[]"},
		{"not strict", view(func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }), "[]"},
	} {
		d, first := tt.view.syncBeforePromotion()
		if got := fmt.Sprint(d.Actions); got != tt.want || first != (tt.want != "[]") {
			t.Errorf("%s: %v %s, want %s", tt.name, first, got, tt.want)
		}
	}
}

func TestSynchronousQuorum(t *testing.T) {
	lease := holdsLease(7 * time.Second)
	quorum := func(count int) func(*View) {
		return func(v *View) { v.Config.SynchronousMode, v.Config.SynchronousNodeCount = cluster.SyncQuorum, count }
	}
	runSituations(t, []situationTest{
		{"first: PostgreSQL", view(lease, quorum(1), syncKey("a"), standby("b", false, 1), standby("c", false, 1)), "commits wait for any 1 of [b c]", ""},
		{"first: nobody has caught up", view(lease, quorum(1), syncKey("a"), waitsForAny(1, "b", "c"), standby("b", true, 99), standby("c", true, 99)), "", ""},
		{"first: one has, which is enough", view(lease, quorum(1), syncKey("a"), waitsForAny(1, "b", "c"), standby("b", true, 99), standby("c", true, 100)), "sync key: a with [b c], quorum 1", "caught up"},
		{"first, of two: one is not enough", view(lease, quorum(2), syncKey("a"), waitsForAny(2, "b", "c", "d"), standby("b", true, 100), standby("c", true, 99), standby("d", true, 99)), "", ""},
		{"a single one", view(lease, quorum(1), syncKey("a"), standby("b", false, 1)), "commits wait for any 1 of [b]", ""},
		{"settled", view(lease, quorum(1), quorumKey("a", 1, "b", "c"), waitsForAny(1, "c", "b"), standby("b", true, 100), standby("c", true, 900)), "", ""},

		{"growth: more are waited for", view(lease, quorum(1), quorumKey("a", 0, "b"), waitsForAny(1, "b"), standby("b", true, 100), standby("c", false, 1)), "commits wait for any 2 of [b c]", ""},
		{"growth: the key", view(lease, quorum(1), quorumKey("a", 0, "b"), waitsForAny(2, "b", "c"), standby("b", true, 100), standby("c", true, 1)), "sync key: a with [b c], quorum 1", ""},
		{"growth: as many as asked for", view(lease, quorum(1), quorumKey("a", 1, "b", "c"), waitsForAny(2, "b", "c"), standby("b", true, 100), standby("c", true, 1)), "commits wait for any 1 of [b c]", ""},
		{"growth undone: the new one is gone again", view(lease, quorum(1), quorumKey("a", 0, "b"), waitsForAny(2, "b", "c"), standby("b", true, 100)), "commits wait for any 1 of [b]", ""},

		{"one gone: PostgreSQL first, as the quorum allows", view(lease, quorum(1), quorumKey("a", 1, "b", "c"), waitsForAny(1, "b", "c"), standby("b", true, 100)), "commits wait for any 1 of [b]", ""},
		{"one gone: not before the other has everything", view(lease, quorum(1), quorumKey("a", 1, "b", "c"), waitsForAny(1, "b"), standby("b", true, 99)), "", ""},
		{"one gone: then the key", view(lease, quorum(1), quorumKey("a", 1, "b", "c"), waitsForAny(1, "b"), standby("b", true, 100)), "sync key: a with [b]", "changed"},
		{"more gone than the quorum: key first", view(lease, quorum(2), quorumKey("a", 1, "b", "c", "d"), waitsForAny(2, "b", "c", "d"), standby("b", true, 100)), "sync key: a with [b c], quorum 1", "is gone"},
		{"all gone", view(lease, quorum(1), quorumKey("a", 1, "b", "c"), waitsForAny(1, "b", "c")), "sync key: a with []", "none is left"},
		{"all gone, then PostgreSQL", view(lease, quorum(1), syncKey("a"), waitsForAny(1, "b", "c")), "commits wait for []", ""},
		{"all gone, strict", view(lease, quorum(1), func(v *View) { v.Config.SynchronousStrict = true }, syncKey("a"), waitsForAny(1, "b")), "commits wait for any 1 of [*]", ""},

		{"more copies: PostgreSQL first", view(lease, quorum(2), quorumKey("a", 2, "b", "c", "d"), waitsForAny(1, "b", "c", "d"), standby("b", true, 9), standby("c", true, 8), standby("d", true, 7)), "commits wait for any 2 of [b c d]", ""},
		{"more copies: not before two have them", view(lease, quorum(2), quorumKey("a", 2, "b", "c", "d"), waitsForAny(2, "b", "c", "d"), standby("b", true, 100), standby("c", true, 8), standby("d", true, 7)), "", ""},
		{"more copies: then the key", view(lease, quorum(2), quorumKey("a", 2, "b", "c", "d"), waitsForAny(2, "b", "c", "d"), standby("b", true, 100), standby("c", true, 100), standby("d", true, 7)), "sync key: a with [b c d], quorum 1", ""},
		{"fewer copies: key first", view(lease, quorum(1), quorumKey("a", 1, "b", "c", "d"), waitsForAny(2, "b", "c", "d"), standby("b", true, 9), standby("c", true, 8), standby("d", true, 7)), "sync key: a with [b c d], quorum 2", ""},

		{"from on: more are waited for", view(lease, quorum(1), syncKey("a", "b"), waitsForAll("b"), standby("b", true, 100), standby("c", false, 1)), "commits wait for any 2 of [b c]", ""},
		{"from on, of Patroni 3", view(lease, quorum(1), syncKey("a", "b", "c"), waitsForAll("b", "c"), standby("b", true, 100), standby("c", true, 100)), "commits wait for any 2 of [b c]", ""},
		{"to on", view(lease, func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }, quorumKey("a", 1, "b", "c"), waitsForAny(1, "b", "c"), standby("b", true, 100), standby("c", true, 100)), "commits wait for [b]", ""},
		{"to on: then the key", view(lease, func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }, quorumKey("a", 1, "b", "c"), waitsForAll("b"), standby("b", true, 100), standby("c", false, 100)), "sync key: a with [b]", ""},
		{"to on with fewer copies: through all of them", view(lease, func(v *View) { v.Config.SynchronousMode = cluster.SyncOn }, quorumKey("a", 1, "b", "c", "d"), waitsForAny(2, "b", "c", "d"),
			standby("b", true, 9), standby("c", true, 8), standby("d", true, 7)), "commits wait for [b c d]", ""},
		{"off", view(lease, quorumKey("a", 1, "b", "c"), waitsForAny(1, "b", "c"), standby("b", true, 100)), "delete the sync key", ""},
		{"key of an earlier leader", view(lease, quorum(1), quorumKey("b", 1, "a", "c"), standby("b", false, 1)), "sync key: a with []", ""},
	})
}

// A write that may still land is made to fail by a later one, which must be a
// change: Consul lets a write pass that changes nothing, and moves no index.
func TestSynchronousUncertainWrite(t *testing.T) {
	v := view(holdsLease(7*time.Second), quorumKey("a", 1, "b", "c"), waitsForAny(1, "b", "c"), standby("b", true, 100), func(v *View) {
		v.Config.SynchronousMode, v.SyncUncertain = cluster.SyncQuorum, true
	})
	d := synchronous(v)
	if len(d.Actions) != 1 {
		t.Fatalf("%+v", d)
	}
	w, ok := d.Actions[0].(WriteSync)
	if !ok || w.Index != 47 || w.Value.After != 47 || w.Value.Quorum != 1 || !slices.Equal(w.Value.Standbys(), []string{"b", "c"}) {
		t.Errorf("%+v", d.Actions[0])
	}
}

func TestQuorumProblem(t *testing.T) {
	key := quorumKey("x", 1, "a", "b", "c")
	tests := []struct {
		name string
		view View
		want string // part of the problem; empty: none
	}{
		{"no key", view(), ""},
		{"every standby holds everything", view(syncKey("b", "a")), ""},
		{"key of Patroni 3", view(syncKey("b", "a", "c")), ""},
		{"not a standby", view(syncKey("b", "c")), "not a synchronous standby"},
		{"nobody seen", view(key), "sees 0"},
		{"one behind", view(key, asked(peer("b", 1, 4999))), ""},
		{"one at the same position", view(key, asked(peer("c", 1, 5000))), ""},
		{"one on an older timeline", view(key, asked(peer("c", 1, 9000)), func(v *View) { v.Postgres.Timeline = 2 }), ""},
		{"one ahead", view(key, asked(peer("b", 1, 5001))), "b is ahead"},
		{"one ahead by its timeline", view(key, asked(peer("b", 2, 1))), "b is ahead"},
		{"silent", view(key, asked(Peer{Name: "b"})), "sees 0"},
		{"does not say how far it is", view(key, asked(Peer{Name: "b", Answered: true, State: cluster.StateRunning, Timeline: 1})), "sees 0"},
		{"does not run", view(key, asked(Peer{Name: "b", Answered: true, State: cluster.StateStopped, Timeline: 1, LSN: 5})), "sees 0"},
		{"no voter", view(key, asked(peer("d", 1, 1))), "sees 0"},
		{"itself", view(key, asked(peer("A", 1, 1))), "sees 0"},
		{"one twice", view(quorumKey("x", 2, "a", "b", "c"), asked(peer("b", 1, 1), peer("B", 1, 1))), "sees 1"},
		{"two", view(quorumKey("x", 2, "a", "b", "c"), asked(peer("B", 1, 1), peer("C", 1, 1))), ""},
		{"the leader counts", view(quorumKey("X", 1, "A"), asked(peer("x", 1, 5000))), ""},
		{"the leader itself", view(quorumKey("A", 1, "b", "c")), ""},
		{"failover by an operator", view(key, request(cluster.Failover{Candidate: "a"})), ""},
		{"switchover whose leader died", view(key, request(cluster.Failover{Leader: "x", Candidate: "a"})), "sees 0"},
		{"not understood", view(func(v *View) { v.Cluster.Sync = cluster.Entry[cluster.Sync]{ModifyIndex: 4, Err: fmt.Errorf("bad")} }), "not understood"},
	}
	for _, tt := range tests {
		got := ""
		if tt.view.needsQuorum(tt.view.Name) {
			got = tt.view.quorumProblem()
		} else if !tt.view.forcedByOperator(tt.view.Name) {
			got = tt.view.syncForbids(tt.view.Name)
		}
		if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Answers count only from the moment on at which the old leader could
// acknowledge nothing any more.
func TestQuorumFirst(t *testing.T) {
	key := quorumKey("x", 1, "a", "b", "c")
	seen := asked(peer("b", 1, 4000))
	unfinished := func(v *View) { v.PeersDone = false }
	long := now.Add(-time.Minute)
	for _, tt := range []struct {
		name  string
		view  View
		ended cluster.Instant
		first bool
		want  string
	}{
		{"no quorum", view(syncKey("x", "a")), long, false, ""},
		{"not asked", view(key), long, true, "ask the other members"},
		{"enough", view(key, seen), long, false, ""},
		{"asked before the end of the lease", view(key, seen), now.Add(-50 * time.Millisecond), true, "ask the other members"},
		{"asked before the end of the promise", view(key, seen, func(v *View) { v.Promise = &Promise{Leader: "x", Until: now} }), long, true, "ask the other members"},
		{"not enough yet", view(key, asked(), unfinished), long, true, ""},
		{"enough before all have answered", view(key, seen, unfinished), long, false, ""},
		{"not enough", view(key, asked()), long, true, ""},
		{"forced", view(key, request(cluster.Failover{Candidate: "a"})), long, false, ""},
	} {
		d, first := tt.view.quorumFirst(tt.ended)
		var actions []string
		for _, a := range d.Actions {
			actions = append(actions, fmt.Sprint(a))
		}
		if got := strings.Join(actions, "; "); first != tt.first || got != tt.want {
			t.Errorf("%s: %v %q (%s), want %v %q", tt.name, first, got, d.Reason, tt.first, tt.want)
		}
	}
}

// syncWorld is a model of a leader, its standbys and the key sync, under random
// events: standbys come, go and lag, configuration and tags change, writes of the
// key fail or land late, changes of the setting fail half-way, the agent is
// restarted. After each event any crash of the leader must leave a key by which
// every member that it lets lead holds every acknowledged commit.
type syncWorld struct {
	r    *rand.Rand
	view View // as the agent has it

	lsn, acked int64
	flush      map[string]int64
	up         map[string]bool
	tags       map[string]map[string]any

	inForce  []SetSync // what commits may be waiting for: more than one while it changes
	setting  *SetSync  // a change under way
	key      cluster.Entry[cluster.Sync]
	index    uint64
	writing  *WriteSync
	late     []WriteSync // may still land
	distrust func(*View) // what a mutant leaves out of its view
	steps    []string
}

func newSyncWorld(seed uint64, members int) *syncWorld {
	w := &syncWorld{
		r: rand.New(rand.NewPCG(seed, 7)), lsn: 100, flush: map[string]int64{}, up: map[string]bool{}, tags: map[string]map[string]any{},
		inForce: []SetSync{{}}, index: 50, view: view(holdsLease(7 * time.Second)),
	}
	w.view.Cluster.Members = nil
	for i := range members {
		w.flush[string(rune('b'+i))] = 1
	}
	w.configure()
	w.observe()
	return w
}

func (w *syncWorld) names() []string {
	var out []string
	for i := range len(w.flush) {
		out = append(out, string(rune('b'+i)))
	}
	return out
}

// observe is the agent's look at PostgreSQL and at the members.
func (w *syncWorld) observe() {
	w.view.Postgres.Standbys, w.view.Cluster.Members, w.view.Postgres.LSN = nil, nil, w.lsn
	for _, n := range w.names() {
		m := cluster.Member{Name: n, State: cluster.StateRunning, Tags: w.tags[n]}
		w.view.Cluster.Members = append(w.view.Cluster.Members, cluster.Entry[cluster.Member]{Value: m, ModifyIndex: 1})
		if w.up[n] {
			s := w.inForce[len(w.inForce)-1]
			w.view.Postgres.Standbys = append(w.view.Postgres.Standbys, Standby{
				Name: n, Streaming: true, Sync: containsFold(s.Standbys, n) || containsFold(s.Standbys, "*"),
				WriteLSN: w.flush[n], FlushLSN: w.flush[n], ReplayLSN: w.flush[n],
			})
		}
	}
}

// acknowledge: the commit at the end of the WAL is acknowledged if anything that
// may be in force allows it.
func (w *syncWorld) acknowledge() {
	for _, s := range w.inForce {
		have, need := 0, s.Any
		if need == 0 {
			need = len(s.Standbys)
		}
		for _, n := range w.names() {
			if w.flush[n] >= w.lsn && (containsFold(s.Standbys, n) || containsFold(s.Standbys, "*")) {
				have++
			}
		}
		if have >= need {
			w.acked = w.lsn
		}
	}
}

// land carries a write of the key out as Consul does.
func (w *syncWorld) land(write WriteSync) bool {
	if write.Index != w.key.ModifyIndex {
		return false
	}
	switch {
	case write.Value == nil:
		w.key = cluster.Entry[cluster.Sync]{}
	case w.key.Exists() && fmt.Sprint(w.key.Value.Standbys(), w.key.Value.Quorum, w.key.Value.After) == fmt.Sprint(write.Value.Standbys(), write.Value.Quorum, write.Value.After):
		// An equal value: nothing moves.
	default:
		w.index++
		w.key = cluster.Entry[cluster.Sync]{Value: *write.Value, ModifyIndex: w.index}
	}
	return true
}

func (w *syncWorld) decide() {
	v := w.view
	v.SyncWriting = w.writing != nil
	if w.setting != nil {
		v.Postgres.SyncUnsure = true
	}
	if w.distrust != nil {
		w.distrust(&v)
	}
	for _, action := range synchronous(v).Actions {
		switch act := action.(type) {
		case WriteSync:
			if w.writing == nil {
				w.writing = &act
				w.note("begins: %v", act)
			}
		case SetSync:
			if w.setting == nil {
				w.setting = &act
				w.view.Postgres.SyncUnsure = true
				w.inForce = append(w.inForce, act)
				w.note("begins: %v", act)
			}
		}
	}
}

func (w *syncWorld) endSetting(ok bool) {
	if w.setting == nil {
		return
	}
	s := *w.setting
	w.setting = nil
	w.note("setting %v: %v", s, ok)
	if ok {
		w.inForce = []SetSync{s}
		pg := &w.view.Postgres
		pg.SyncNames, pg.SyncAny, pg.SyncSince, pg.SyncUnsure = s.Standbys, s.Any, w.lsn, false
		w.observe()
	}
}

func (w *syncWorld) endWriting(how int) {
	if w.writing == nil {
		return
	}
	write := *w.writing
	w.writing = nil
	switch {
	case how > 1:
		if w.land(write) {
			w.view.SyncUncertain = false
		}
	default: // the answer is lost; it has landed, or may land later
		w.view.SyncUncertain = true
		if how == 1 {
			w.land(write)
		} else {
			w.late = append(w.late, write)
		}
	}
	w.note("write %v: %d, now %v at %d", write, how, WriteSync{Value: &w.key.Value}, w.key.ModifyIndex)
	w.view.Cluster.Sync = w.key // the agent reads the key after every write
}

func (w *syncWorld) note(format string, args ...any) {
	w.steps = append(w.steps, fmt.Sprintf(format, args...))
}

func (w *syncWorld) configure() {
	c := &w.view.Config
	c.SynchronousMode = []cluster.SyncMode{cluster.SyncOff, cluster.SyncOn, cluster.SyncOn, cluster.SyncQuorum, cluster.SyncQuorum, cluster.SyncQuorum}[w.r.IntN(6)]
	c.SynchronousStrict, c.SynchronousNodeCount, c.MaximumLagOnSyncNode = w.r.IntN(3) == 0, 1+w.r.IntN(3), w.r.Int64N(3)*10-10
	w.note("mode %v, %d", c.SynchronousMode, c.SynchronousNodeCount)
}

func (w *syncWorld) step() {
	names := w.names()
	some := names[w.r.IntN(len(names))]
	switch w.r.IntN(24) {
	case 0, 1, 2, 3:
		w.lsn++
		w.acknowledge()
	case 4, 5, 6, 7, 8:
		if w.up[some] {
			w.flush[some] = min(w.lsn, w.flush[some]+1+w.r.Int64N(30))
			w.acknowledge()
		}
	case 9:
		w.up[some] = false
		w.note("%s goes", some)
	case 10, 11:
		w.up[some] = true
		w.note("%s comes", some)
	case 12:
		w.tags[some] = []map[string]any{nil, nil, {"nosync": true}, {"sync_priority": 2}, {"zone": "x"}, {"zone": "y"}, {"zone": "z"}}[w.r.IntN(7)]
		if w.r.IntN(8) == 0 {
			w.view.Tags = []map[string]any{nil, {"zone": "x"}, {"zone": "y"}}[w.r.IntN(3)]
		}
	case 13:
		if w.r.IntN(4) == 0 {
			w.configure()
		}
	case 14, 15:
		w.endSetting(w.r.IntN(4) > 0)
	case 16, 17:
		w.endWriting(w.r.IntN(6))
	case 18:
		if len(w.late) > 0 {
			i := w.r.IntN(len(w.late))
			if w.land(w.late[i]) {
				w.note("lands late: %v", w.late[i])
			}
			w.late = slices.Delete(w.late, i, i+1)
		}
	case 19:
		w.view.Cluster.Sync = w.key // a blocking query returns
	case 20:
		if w.r.IntN(5) == 0 { // the agent is restarted
			w.endSetting(false)
			w.endWriting(w.r.IntN(2))
			w.view.Postgres.SyncUnsure, w.view.SyncUncertain, w.view.Postgres.SyncNames = true, true, nil
			w.note("agent restarted")
		}
	default:
		w.observe()
	}
	w.decide()
}

// unsafe names a member that the key lets lead, though it lacks a commit.
func (w *syncWorld) unsafe() string {
	if !w.key.Exists() {
		return "" // asynchronous: nothing is promised
	}
	for _, x := range w.key.Value.Standbys() {
		seen := 0
		for _, y := range w.key.Value.Standbys() {
			if y != x && w.flush[y] <= w.flush[x] {
				seen++
			}
		}
		if seen >= w.key.Value.Quorum && w.flush[x] < w.acked {
			return fmt.Sprintf("%s is at %d and may lead by %v, but %d was acknowledged (positions %v)", x, w.flush[x], WriteSync{Value: &w.key.Value}, w.acked, w.flush)
		}
	}
	return ""
}

func (w *syncWorld) run(steps int) string {
	for range steps {
		w.step()
		if why := w.unsafe(); why != "" {
			return why
		}
	}
	return ""
}

func TestSynchronousNeverPromisesTooMuch(t *testing.T) {
	for seed := range uint64(1000) {
		w := newSyncWorld(seed, 1+int(seed%4))
		if why := w.run(400); why != "" {
			t.Fatalf("seed %d: %s\n%s", seed, why, strings.Join(w.steps, "\n"))
		}
	}
}

// When nothing goes wrong any more, the key soon names whom it should.
func TestSynchronousSettles(t *testing.T) {
	for seed := range uint64(600) {
		w := newSyncWorld(seed, 1+int(seed%4))
		w.run(100)
		w.view.Config.SynchronousMode = []cluster.SyncMode{cluster.SyncOff, cluster.SyncOn, cluster.SyncQuorum}[seed%3]
		w.view.Config.SynchronousNodeCount, w.view.Config.MaximumLagOnSyncNode = 1+w.r.IntN(3), -1
		w.late = nil
		for _, n := range w.names() {
			w.up[n], w.tags[n] = true, map[string]any{"zone": string(rune('x' + w.r.IntN(3)))}
		}
		for range 20 {
			w.lsn++
			for _, n := range w.names() {
				w.flush[n] = w.lsn
			}
			w.acknowledge()
			w.observe()
			w.endSetting(true)
			w.endWriting(2)
			w.decide()
			if why := w.unsafe(); why != "" {
				t.Fatalf("seed %d: %s", seed, why)
			}
		}
		able := w.names()
		count := min(len(able), max(1, w.view.Config.SynchronousNodeCount))
		wanted, quorum := count, 0
		switch w.view.Config.SynchronousMode {
		case cluster.SyncOff:
			wanted = 0
		case cluster.SyncQuorum:
			wanted, quorum = len(able), len(able)-count
		}
		if got := w.key.Value; len(got.Standbys()) != wanted || got.Quorum != quorum || w.writing != nil || w.setting != nil {
			t.Fatalf("seed %d: %s, %d: the key is %v, with %v in force; under way: %v %v\n%s", seed, w.view.Config.SynchronousMode, count,
				WriteSync{Value: &got}, w.inForce, w.writing, w.setting, strings.Join(w.steps, "\n"))
		}
	}
}

// The model has teeth: an agent that leaves one of the rules out is found out.
func TestMutantSynchronous(t *testing.T) {
	for name, distrust := range map[string]func(*View){
		"an uncertain write of the key is forgotten": func(v *View) { v.SyncUncertain = false },
		"the setting changes while the key does":     func(v *View) { v.SyncWriting = false },
		"a setting that failed counts":               func(v *View) { v.Postgres.SyncUnsure = false },
		"nobody need have caught up":                 func(v *View) { v.Postgres.SyncSince = min(v.Postgres.SyncSince, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(3000) {
				w := newSyncWorld(seed, 1+int(seed%4))
				w.distrust = distrust
				if w.run(400) != "" {
					return
				}
			}
			t.Error("no schedule shows that this is wrong")
		})
	}
}
