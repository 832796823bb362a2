package postgres

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// From 17 on PostgreSQL itself keeps failover slots on replicas, so their reader goes on with the next primary;
// the one that a former primary has is in the way, and goes.
func TestFailoverSlots(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	dir := newDir(t)
	a, b := newInstance(t, settings(t, dir, "a")), newInstance(t, settings(t, dir, "b"))
	if a.major < syncsSlotsSince {
		t.Skip("needs PostgreSQL 17, which keeps slots on replicas itself: make test-versions DEBIAN=trixie runs it")
	}
	for _, p := range []*Instance{a, b} {
		applied(t, p, `{"synchronous_mode":true,"slots":{"feed":{"type":"logical","database":"postgres","plugin":"test_decoding"}},
			"postgresql":{"parameters":{"wal_level":"logical","sync_replication_slots":"on","hot_standby_feedback":"off","wal_receiver_status_interval":"1s"}}}`)
	}
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, a, "CREATE TABLE public.t (row text)")
	feedWanted := pg.WantedSlot{Slot: feed(), Native: true, Yields: true}
	must(t, syncSlots(ctx, a, wantedSlot("b"), feedWanted))
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	// A slot is kept from when its reader has come beyond what the replica has still.
	synced := func(p, primary *Instance) {
		t.Helper()
		testkit.Await(ctx, t, "the slot is kept", func() error {
			sql(ctx, t, primary, "INSERT INTO public.t VALUES ('more')")
			sql(ctx, t, primary, "CHECKPOINT")
			read(ctx, t, primary)
			if s := slotsNow(ctx, t, p)["feed"]; !s.Synced || !s.Failover {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	}
	synced(b, a)
	must(t, syncSlots(ctx, b, feedWanted)) // is PostgreSQL's

	// Its reader gets nothing that b does not have.
	if _, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}}); err != nil {
		t.Fatal(err)
	}
	conn, err := a.dedicated(ctx)
	must(t, err)
	var standbys string
	must(t, errors.Join(conn.QueryRow(ctx, "SELECT current_setting('synchronized_standby_slots')").Scan(&standbys), conn.Close(ctx)))
	if standbys != "b" {
		t.Errorf("synchronized_standby_slots: %q", standbys)
	}
	if _, err := b.FetchSlots(ctx, upstream(a), []cluster.Slot{feed()}); err == nil || !strings.Contains(err.Error(), "failover slot") {
		t.Errorf("it is copied: %v", err)
	}

	sql(ctx, t, a, "INSERT INTO public.t VALUES ('one')")
	if got := read(ctx, t, a); !slices.Equal(got, []string{"one"}) {
		t.Fatalf("%q", got)
	}
	sql(ctx, t, a, "INSERT INTO public.t VALUES ('two')")
	caughtUp(ctx, t, a, b)
	confirmed := slotsNow(ctx, t, a)["feed"].ConfirmedLSN
	testkit.Await(ctx, t, "the slot of b is as far", func() error {
		if at := slotsNow(ctx, t, b)["feed"].ConfirmedLSN; at < confirmed {
			return fmt.Errorf("it is at %s", pg.FormatLSN(at))
		}
		return nil
	})
	must(t, a.Stop(ctx, Fast))
	must(t, b.Promote(ctx, 0))
	if got := read(ctx, t, b); !slices.Equal(got, []string{"two"}) {
		t.Errorf("after the promotion its reader gets %q", got)
	}

	must(t, syncSlots(ctx, b, wantedSlot("a"), feedWanted))
	follow(ctx, t, a, b)
	caughtUp(ctx, t, b, a)
	must(t, syncSlots(ctx, a, feedWanted))
	synced(a, b)
}

// A primary on which some transaction runs at each moment helps a failover slot on for which a replica waits: by
// itself it needs the rows that it needed at first until a catalog is changed.
func TestFailoverSlotIsHelpedOn(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a := newInstance(t, settings(t, newDir(t), "a"))
	if a.major < syncsSlotsSince {
		t.Skip("needs PostgreSQL 17, which keeps slots on replicas itself: make test-versions DEBIAN=trixie runs it")
	}
	applied(t, a, `{"slots":{"feed":{"type":"logical","database":"postgres","plugin":"test_decoding"}},
		"postgresql":{"parameters":{"wal_level":"logical","sync_replication_slots":"on","autovacuum":"off"}}}`)
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, a, "CREATE TABLE public.t (row text)")
	must(t, syncSlots(ctx, a, pg.WantedSlot{Slot: feed()}))
	var open *pgx.Conn
	t.Cleanup(func() {
		if open != nil {
			hangUpOn(open)
		}
	})
	round := func(awaited bool) {
		t.Helper()
		next, err := a.dedicated(ctx)
		must(t, err)
		_, err = next.Exec(ctx, "BEGIN; INSERT INTO public.t VALUES ('open')")
		must(t, err)
		if open != nil {
			_, err := open.Exec(ctx, "COMMIT")
			must(t, errors.Join(err, open.Close(ctx)))
		}
		open = next
		must(t, syncSlots(ctx, a, pg.WantedSlot{Slot: feed(), Awaited: awaited}))
		sql(ctx, t, a, "SELECT pg_log_standby_snapshot()")
		read(ctx, t, a)
	}
	oldest := func() (xmin string) {
		t.Helper()
		conn, err := a.dedicated(ctx)
		must(t, err)
		must(t, errors.Join(conn.QueryRow(ctx, "SELECT catalog_xmin::text FROM pg_replication_slots WHERE slot_name = 'feed'").Scan(&xmin), conn.Close(ctx)))
		return xmin
	}
	round(false)
	round(false)
	before := oldest()
	for range 5 {
		round(false)
	}
	if now := oldest(); now != before {
		t.Logf("PostgreSQL has moved it from %s to %s by itself", before, now)
		before = now
	}
	for range 5 {
		round(true)
	}
	if oldest() == before {
		t.Errorf("it needs rows from %s on, as before", before)
	}
	var objects int
	conn, err := a.dedicated(ctx)
	must(t, err)
	must(t, errors.Join(conn.QueryRow(ctx, "SELECT count(*) FROM pg_largeobject_metadata").Scan(&objects), conn.Close(ctx)))
	if objects != 0 {
		t.Errorf("%d large objects are left", objects)
	}
}

// What becomes of a logical slot that is wanted.
func TestLogicalSlotsThatGo(t *testing.T) {
	const stays, goes, told = "stays", "goes", "told"
	want := pg.WantedSlot{Slot: feed()}
	native := want
	native.Native = true
	yields := native
	yields.Yields = true
	other := feed()
	other.Plugin = "pgoutput"
	slot := func(edit func(*slotNow)) slotNow {
		s := slotNow{Slot: Slot{Slot: feed()}}
		if edit != nil {
			edit(&s)
		}
		return s
	}
	marked := func(s *slotNow) { s.Failover = true }
	synced := func(s *slotNow) { s.Failover, s.Synced = true, true }
	replica, primary := slotWork{replica: true, streams: true}, slotWork{}
	for name, c := range map[string]struct {
		at    slotWork
		syncs bool // sync_replication_slots
		want  pg.WantedSlot
		found slotNow
		is    string
	}{
		"a copy":                                   {replica, false, want, slot(nil), stays},
		"a copy of a slot that is not marked":      {replica, true, want, slot(nil), stays},
		"a copy of one that PostgreSQL keeps":      {replica, true, yields, slot(nil), goes},
		"and whose turn it is not":                 {replica, true, native, slot(nil), stays},
		"and that streams nothing":                 {slotWork{replica: true}, true, yields, slot(nil), stays},
		"and that is read":                         {replica, true, yields, slot(func(s *slotNow) { s.Active = true }), stays},
		"a former primary's":                       {replica, true, native, slot(marked), goes},
		"PostgreSQL's own":                         {replica, true, native, slot(synced), stays},
		"PostgreSQL's own, of no status":           {replica, true, want, slot(synced), stays},
		"PostgreSQL's own, which it keeps no more": {replica, false, want, slot(synced), told},
		"a lost copy":                              {replica, true, want, slot(func(s *slotNow) { s.Lost = true }), goes},
		"a copy of another plugin":                 {replica, false, pg.WantedSlot{Slot: other}, slot(nil), goes},
		"a primary's":                              {primary, false, want, slot(nil), stays},
		"a primary's that is not marked":           {primary, true, want, slot(nil), told},
		"a primary's that is":                      {primary, true, want, slot(marked), stays},
		"a primary's that is lost":                 {primary, true, want, slot(func(s *slotNow) { marked(s); s.Lost = true }), told},
		"one that was promoted with its slot":      {primary, true, want, slot(synced), stays},
	} {
		why, err := c.at.uselessLogical(c.want, c.found, c.syncs)
		is := stays
		switch {
		case err != nil:
			is = told
		case why != "":
			is = goes
		}
		if is != c.is || err != nil && why != "" {
			t.Errorf("%s %s (%q, %v), want %s", name, is, why, err, c.is)
		}
	}
}

// Where the agent says whom commits wait for, it says whose slots failover slots wait for.
func TestStandbySlots(t *testing.T) {
	t.Parallel()
	p := newInstance(t, settings(t, newDir(t), "a"))
	p.major = 17
	for names, want := range map[string]string{"": "", "*": "", `"B-1"`: "b_1", `2 ("b","c-d")`: "b,c_d", `ANY 1 ("b","c")`: "b,c", `ANY 1 (*)`: ""} {
		p.setSyncNames(names)
		if got := p.standbySlots(); got != want {
			t.Errorf("%s: %q, want %q", names, got, want)
		}
	}
	p.setSyncNames(`"b"`)
	line := func(role Role) string {
		return p.postgresqlConf(as{role: role}, p.parameters(), nil, accessFile{}, accessFile{})
	}
	applied(t, p, `{"synchronous_mode":true,"postgresql":{"parameters":{"synchronized_standby_slots":"mine"}}}`)
	if got := line(Primary); !strings.Contains(got, "synchronized_standby_slots = 'mine'") {
		t.Errorf("without sync_replication_slots: %s", got)
	}
	applied(t, p, `{"synchronous_mode":true,"postgresql":{"parameters":{"sync_replication_slots":"on","synchronized_standby_slots":"mine"}}}`)
	if got := line(Primary); !strings.Contains(got, "synchronized_standby_slots = 'b'") || strings.Contains(got, "mine") || !strings.Contains(got, "hot_standby_feedback = 'on'") {
		t.Errorf("on a primary: %s", got)
	}
	if got := line(Replica); strings.Contains(got, "synchronized_standby_slots") {
		t.Errorf("on a replica: %s", got)
	}
	// Where replicas stream without slots there are none to name, and readers would wait for them for ever.
	applied(t, p, `{"synchronous_mode":true,"postgresql":{"use_slots":false,"parameters":{"sync_replication_slots":"on"}}}`)
	if got := line(Primary); strings.Contains(got, "synchronized_standby_slots") {
		t.Errorf("without slots: %s", got)
	}
}

func TestIsOn(t *testing.T) {
	for value, want := range map[string]bool{
		"on": true, "ON": true, "true": true, "tr": true, "t": true, "yes": true, "y": true, "1": true,
		"": false, "o": false, "of": false, "off": false, "false": false, "no": false, "0": false, "2": false,
	} {
		if isOn(value) != want {
			t.Errorf("%q: %v", value, !want)
		}
	}
}
