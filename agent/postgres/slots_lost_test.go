package postgres

import (
	"slices"
	"testing"

	"github.com/lictor-ha/lictor/agent/pg"
)

// A slot that has lost its WAL (max_slot_wal_keep_size) is made anew. By the old one a member
// that has been cloned anew could not stream from PostgreSQL 18.
func TestSlotThatHasLostItsWAL(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	if a.major < 13 {
		t.Skip("max_slot_wal_keep_size is of 13")
	}
	caughtUp(ctx, t, a, b)
	must(t, b.Stop(ctx, Fast))
	status := func() (status string) {
		conn, err := a.dedicated(ctx)
		must(t, err)
		defer hangUpOn(conn)
		must(t, conn.QueryRow(ctx, "SELECT COALESCE(wal_status, '') FROM pg_replication_slots WHERE slot_name = 'b'").Scan(&status))
		return status
	}
	for _, s := range []string{
		"ALTER SYSTEM SET max_slot_wal_keep_size = '48MB'", "ALTER SYSTEM SET wal_keep_size = 0", "SELECT pg_reload_conf()",
		"CREATE TABLE public.more (n int)",
	} {
		sql(ctx, t, a, s)
	}
	for range 6 {
		sql(ctx, t, a, "INSERT INTO public.more VALUES (1)")
		sql(ctx, t, a, "SELECT pg_switch_wal()")
		must(t, a.Checkpoint(ctx))
	}
	if got := status(); got != "lost" {
		t.Fatalf("the slot is %q: this test loses nothing", got)
	}
	observe(ctx, t, a, "its slot has lost its WAL", func(s State) bool {
		return slices.ContainsFunc(s.Slots, func(s pg.Slot) bool { return s.Name == "b" && s.Lost })
	})
	must(t, b.RemoveForReinit(ctx, allowed(t, b)))
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	keepSlots(ctx, t, a, "b")
	if got := status(); got == "lost" {
		t.Error("the slot is lost still")
	}
	observe(ctx, t, a, "the new slot has lost nothing", func(s State) bool { return !slices.ContainsFunc(s.Slots, func(s pg.Slot) bool { return s.Lost }) })
	follow(ctx, t, b, a)
	sql(ctx, t, a, "INSERT INTO public.more VALUES (2)")
	caughtUp(ctx, t, a, b)
	if got := status(); got == "lost" {
		t.Error("the slot by which the new clone streams is lost")
	}
}
