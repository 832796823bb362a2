package postgres

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// keepSlots makes the slots of these members, and drops those of nobody.
func keepSlots(ctx context.Context, t *testing.T, p *Instance, members ...string) {
	t.Helper()
	var o pg.SlotOrders
	for _, m := range members {
		o.Wanted = append(o.Wanted, wantedSlot(cluster.SlotName(m)))
	}
	must(t, syncSlots(ctx, p, o.Wanted...))
}

func wantedSlot(name string) pg.WantedSlot {
	return pg.WantedSlot{Slot: cluster.Slot{Name: name, Type: cluster.SlotPhysical}}
}

// syncSlots leaves those alone whose names begin with "mine".
func syncSlots(ctx context.Context, p *Instance, wanted ...pg.WantedSlot) error {
	return p.SyncSlots(ctx, pg.SlotOrders{Wanted: wanted, Keep: func(s cluster.Slot) bool { return strings.HasPrefix(s.Name, "mine") }})
}

// decodingPair is a primary and a replica that streams from it, which have enough in their WAL
// for logical slots.
func decodingPair(ctx context.Context, t *testing.T) (a, b *Instance) {
	t.Helper()
	dir := newDir(t)
	a, b = newInstance(t, settings(t, dir, "a")), newInstance(t, settings(t, dir, "b"))
	for _, p := range []*Instance{a, b} {
		applied(t, p, `{"postgresql":{"parameters":{"wal_level":"logical","hot_standby_feedback":"on","wal_receiver_status_interval":"1s"}}}`)
	}
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	keepSlots(ctx, t, a, "b")
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	return a, b
}

func applied(t *testing.T, p *Instance, dynamic string) {
	t.Helper()
	d, _, err := cluster.ParseDynamicJSON([]byte(dynamic))
	must(t, err)
	p.Apply(d)
}

// slotNames are those of all slots, sorted.
func slotNames(ctx context.Context, t *testing.T, p *Instance) []string {
	t.Helper()
	var names []string
	for name := range slotsNow(ctx, t, p) {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func slotsNow(ctx context.Context, t *testing.T, p *Instance) map[string]slotNow {
	t.Helper()
	s, err := p.seeSlots(ctx)
	must(t, err)
	all := map[string]slotNow{}
	for _, slot := range s.slots {
		all[slot.Name] = slot
	}
	return all
}

// A primary keeps the slots that are wanted, those that the operator names, and logical ones,
// whose readers may come back. One of another kind under a wanted name is told, and stays.
func TestSlotsOfAPrimary(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, _ := decodingPair(ctx, t)
	for _, statement := range []string{
		"SELECT pg_create_physical_replication_slot('stray')", "SELECT pg_create_physical_replication_slot('mine_physical')",
		"SELECT pg_create_logical_replication_slot('own', 'test_decoding')",
	} {
		sql(ctx, t, a, statement)
	}
	must(t, syncSlots(ctx, a, wantedSlot("b"), wantedSlot("c")))
	if got, want := slotNames(ctx, t, a), []string{"b", "c", "mine_physical", "own"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if err := syncSlots(ctx, a, wantedSlot("b"), wantedSlot("own"), wantedSlot("archive")); err == nil || !strings.Contains(err.Error(), "own is logical, and is to be physical") {
		t.Errorf("of a slot of another kind: %v", err)
	}
	if got, want := slotNames(ctx, t, a), []string{"archive", "b", "mine_physical", "own"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Slots are looked at every few seconds, and mostly nothing is to be changed: that takes no login.
func TestSlotsThatAreRightTakeNoLogin(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	must(t, syncSlots(ctx, p, wantedSlot("b"), wantedSlot("c")))
	sql(ctx, t, p, "CREATE DATABASE other")
	conn, err := p.connect(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, "other", "test")
	must(t, err)
	defer hangUpOn(conn)
	_, err = conn.Exec(ctx, "ALTER DATABASE postgres ALLOW_CONNECTIONS false")
	must(t, err)
	must(t, syncSlots(ctx, p, wantedSlot("b"), wantedSlot("c")))
	if err := syncSlots(ctx, p, wantedSlot("b")); err == nil || !strings.Contains(err.Error(), "not currently accepting connections") {
		t.Errorf("a slot that is dropped without a login: %v", err)
	}
	_, err = conn.Exec(ctx, "ALTER DATABASE postgres ALLOW_CONNECTIONS true")
	must(t, err)
	must(t, syncSlots(ctx, p, wantedSlot("b")))
	if got, want := slotNames(ctx, t, p), []string{"b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A replica has the slots of the members that are to stream from it when it leads, moved to
// where these are by now.
func TestSpareSlots(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := decodingPair(ctx, t)
	spare := func(name string, to int64) pg.WantedSlot {
		s := wantedSlot(name)
		s.Spare, s.To = true, to
		return s
	}
	checkpoint := spare("a", 0)
	checkpoint.KeepsCheckpoint = true
	wanted := func(to int64) []pg.WantedSlot {
		return []pg.WantedSlot{checkpoint, spare("c", to), spare("archive", 0)}
	}
	must(t, syncSlots(ctx, b, wanted(0)...))
	made := slotsNow(ctx, t, b)
	for _, name := range []string{"a", "c", "archive"} {
		if made[name].RestartLSN == 0 {
			t.Errorf("%s keeps no WAL: %+v", name, made[name])
		}
	}
	sql(ctx, t, a, "CREATE TABLE public.t AS SELECT generate_series(1, 1000)")
	caughtUp(ctx, t, a, b)
	s, err := b.Observe(ctx)
	must(t, err)
	must(t, syncSlots(ctx, b, wanted(s.ReplayedLSN)...))
	now := slotsNow(ctx, t, b)
	if now["c"].RestartLSN != s.ReplayedLSN || now["a"].RestartLSN != made["a"].RestartLSN || now["archive"].RestartLSN != made["archive"].RestartLSN {
		t.Errorf("after its reader has come to %s: %+v", pg.FormatLSN(s.ReplayedLSN), now)
	}
	must(t, syncSlots(ctx, b, wanted(s.ReplayedLSN+1<<30)...)) // the reader is ahead of this replica
	must(t, syncSlots(ctx, b, wanted(made["c"].RestartLSN)...))
	if now := slotsNow(ctx, t, b)["c"].RestartLSN; now < s.ReplayedLSN {
		t.Errorf("moved back to %s", pg.FormatLSN(now))
	}
	must(t, a.Checkpoint(ctx))
	caughtUp(ctx, t, a, b)
	must(t, b.Checkpoint(ctx))
	must(t, syncSlots(ctx, b, wanted(0)...))
	if now := slotsNow(ctx, t, b); now["a"].RestartLSN <= made["a"].RestartLSN {
		t.Errorf("it stays behind the last checkpoint: %+v", now["a"])
	}
}

// What a primary has kept for others it keeps as a replica no longer than they need it: no rows
// for its standbys, and nothing for the readers of logical slots.
func TestSlotsAfterADemotion(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := decodingPair(ctx, t)
	sql(ctx, t, a, "SELECT pg_create_logical_replication_slot('own', 'test_decoding')")
	sql(ctx, t, a, "SELECT pg_create_logical_replication_slot('mine', 'test_decoding')")
	sql(ctx, t, a, "CREATE TABLE public.t AS SELECT 1")
	observe(ctx, t, a, "b's slot holds rows", func(State) bool { return slotsNow(ctx, t, a)["b"].HoldsRows })
	must(t, a.Stop(ctx, Fast))
	must(t, b.Promote(ctx, 0))
	keepSlots(ctx, t, b, "a")
	if outcome, err := a.Rewind(ctx, upstream(b), false); err != nil || outcome != NotNeeded {
		t.Fatalf("%s %v", outcome, err)
	}
	follow(ctx, t, a, b)
	before := slotsNow(ctx, t, a)["b"]
	if !before.HoldsRows {
		t.Fatal("b's slot holds no rows: this test frees none")
	}
	s := wantedSlot("b")
	s.Spare = true
	must(t, syncSlots(ctx, a, s))
	if got, want := slotNames(ctx, t, a), []string{"b", "mine"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if now := slotsNow(ctx, t, a)["b"]; now.HoldsRows || now.RestartLSN == 0 {
		t.Errorf("%+v, was %+v", now, before)
	}
}
