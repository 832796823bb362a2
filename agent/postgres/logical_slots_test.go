package postgres

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

func feed() cluster.Slot {
	return cluster.Slot{Name: "feed", Type: cluster.SlotLogical, Database: "postgres", Plugin: "test_decoding"}
}

// read is what the reader of the slot feed gets now, as far as it is of the table public.t, and
// has then.
func read(ctx context.Context, t *testing.T, p *Instance) []string {
	t.Helper()
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	var rows []string
	must(t, conn.QueryRow(ctx, `SELECT COALESCE(array_agg(substring(data FROM '''(.*)''')) FILTER (WHERE data LIKE 'table public.t: INSERT%'), '{}')
		FROM pg_logical_slot_get_changes('feed', NULL, NULL)`).Scan(&rows))
	return rows
}

// feedPair is a primary with the logical slot feed, and a replica.
func feedPair(ctx context.Context, t *testing.T) (a, b *Instance) {
	t.Helper()
	a, b = decodingPair(ctx, t)
	sql(ctx, t, a, "CREATE TABLE public.t (row text)")
	must(t, syncSlots(ctx, a, wantedSlot("b"), pg.WantedSlot{Slot: feed()}))
	must(t, syncSlots(ctx, a, wantedSlot("b"), pg.WantedSlot{Slot: feed()}))
	return a, b
}

// A reader of a logical slot gets from the next primary what it has not got yet, and nothing
// that it has.
func TestLogicalSlotOutlivesItsPrimary(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := feedPair(ctx, t)
	write := func(p *Instance, row string) { sql(ctx, t, p, "INSERT INTO public.t VALUES ('"+row+"')") }
	write(a, "one")
	if got := read(ctx, t, a); !slices.Equal(got, []string{"one"}) {
		t.Fatalf("%q", got)
	}

	files, err := b.FetchSlots(ctx, upstream(a), []cluster.Slot{feed()})
	must(t, err)
	if err := b.PlaceSlots(ctx, files); err == nil || !strings.Contains(err.Error(), "PostgreSQL runs") {
		t.Errorf("while it runs: %v", err)
	}
	must(t, b.Stop(ctx, Fast))
	// What another attempt has left when the host failed.
	must(t, os.Mkdir(b.inData("pg_replslot/feed.tmp"), 0o700))
	put(t, b.inData("pg_replslot/feed.tmp/state"), "half")
	give(t, b, b.inData("pg_replslot/feed.tmp/state"))
	give(t, b, b.inData("pg_replslot/feed.tmp"))
	must(t, b.PlaceSlots(ctx, files))
	if err := b.PlaceSlots(ctx, files); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("placed twice: %v", err)
	}
	follow(ctx, t, b, a)
	// Up to where its reader has come is in the file with the next checkpoint; from where on it
	// needs WAL and rows is there at once.
	if got, want := slotsNow(ctx, t, b)["feed"], slotsNow(ctx, t, a)["feed"]; got.Slot.Slot != feed() || got.RestartLSN != want.RestartLSN || got.ConfirmedLSN > want.ConfirmedLSN {
		t.Fatalf("%+v, the primary's is %+v", got, want)
	}

	write(a, "two")
	if got := read(ctx, t, a); !slices.Equal(got, []string{"two"}) {
		t.Fatalf("%q", got)
	}
	write(a, "three")
	caughtUp(ctx, t, a, b)
	before, confirmed := slotsNow(ctx, t, b)["feed"].ConfirmedLSN, slotsNow(ctx, t, a)["feed"].ConfirmedLSN
	moved := []pg.WantedSlot{{Slot: feed(), Spare: true, To: confirmed}}
	must(t, b.AdvanceLogical(ctx, 2, moved))
	if now := slotsNow(ctx, t, b)["feed"].ConfirmedLSN; now != before {
		t.Errorf("moved by the word of another timeline, from %s to %s", pg.FormatLSN(before), pg.FormatLSN(now))
	}
	must(t, b.AdvanceLogical(ctx, 1, moved))
	if now := slotsNow(ctx, t, b)["feed"].ConfirmedLSN; now != confirmed {
		t.Errorf("it is at %s, its reader at %s", pg.FormatLSN(now), pg.FormatLSN(confirmed))
	}
	must(t, syncSlots(ctx, b, moved...))

	must(t, a.Stop(ctx, Fast))
	if err := a.PlaceSlots(ctx, files); err == nil || !strings.Contains(err.Error(), "no replica's") {
		t.Errorf("into a primary's data: %v", err)
	}
	must(t, b.Promote(ctx, 0))
	write(b, "four")
	if got := read(ctx, t, b); !slices.Equal(got, []string{"three", "four"}) {
		t.Errorf("after the promotion its reader gets %q", got)
	}
	must(t, b.AdvanceLogical(ctx, 2, moved)) // a primary's is its reader's
}

// Where a copy would keep PostgreSQL from starting, or is not what is configured, there is none.
func TestCopiesThatAreRefused(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := feedPair(ctx, t)
	refused := func(what, want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	fetch := func(s cluster.Slot) error {
		_, err := b.FetchSlots(ctx, upstream(a), []cluster.Slot{s})
		return err
	}
	other := feed()
	other.Plugin = "pgoutput"
	refused("another plugin", "there it is of plugin test_decoding in database postgres, and is to be of pgoutput", fetch(other))
	other.Name = "none"
	refused("a slot that is not there", "copying the logical slot none from a: no rows", fetch(other))
	other.Name = "b"
	refused("a physical one", "no rows", fetch(other))
	refused("on the primary", "and is to be of pgoutput in postgres: drop it", syncSlots(ctx, a, wantedSlot("b"), pg.WantedSlot{Slot: cluster.Slot{Name: "feed", Type: cluster.SlotLogical, Database: "postgres", Plugin: "pgoutput"}}))

	files, err := b.FetchSlots(ctx, upstream(a), []cluster.Slot{feed()})
	must(t, err)
	must(t, b.Stop(ctx, Fast))
	applied(t, b, `{"postgresql":{"parameters":{"wal_level":"replica"}}}`)
	refused("without wal_level", "wal_level is replica, and must be logical", b.PlaceSlots(ctx, files))
	applied(t, b, `{"postgresql":{"parameters":{"wal_level":"logical","max_replication_slots":4}}}`)
	many := slices.Repeat(files, 5)
	refused("too many", "max_replication_slots is 4", b.PlaceSlots(ctx, many))
	must(t, os.Rename(b.inData("pg_replslot"), b.inData("elsewhere")))
	must(t, os.Symlink(b.inData("elsewhere"), b.inData("pg_replslot")))
	refused("a link", "is no directory", b.PlaceSlots(ctx, files))
	must(t, os.Remove(b.inData("pg_replslot")))
	must(t, os.Rename(b.inData("elsewhere"), b.inData("pg_replslot")))
	broken := files[0]
	broken.State = broken.State[:len(broken.State)-1]
	refused("half of it", "is not that of a slot", b.PlaceSlots(ctx, []pg.SlotFile{broken}))
	if left, err := os.ReadDir(b.inData("pg_replslot")); err != nil || len(left) != 0 {
		t.Errorf("something is left: %v %v", left, err)
	}
	must(t, b.PlaceSlots(ctx, files))
	follow(ctx, t, b, a)

	// One that is of no use is dropped, to be copied anew.
	must(t, syncSlots(ctx, b, pg.WantedSlot{Slot: feed(), Spare: true}))
	other = feed()
	other.Plugin = "pgoutput"
	must(t, syncSlots(ctx, b, pg.WantedSlot{Slot: other, Spare: true}))
	if got := slotNames(ctx, t, b); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// A replica that has no room for a copy, or will not have when it is started the next time, is not restarted for it:
// none is fetched.
func TestCopiesNeedRoom(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := feedPair(ctx, t)
	fetch := func(want string) {
		t.Helper()
		if _, err := b.FetchSlots(ctx, upstream(a), []cluster.Slot{feed()}); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	fetch("")
	sql(ctx, t, b, "SELECT pg_create_physical_replication_slot('full' || n) FROM generate_series(1, current_setting('max_replication_slots')::int) AS n")
	fetch("there are 10 slots already, and max_replication_slots is 10")
	if running, err := b.Observe(ctx); err != nil || !running.Accepting {
		t.Errorf("%+v %v", running, err)
	}
	sql(ctx, t, b, "SELECT pg_drop_replication_slot('full1')")
	fetch("")
	applied(t, b, `{"postgresql":{"parameters":{"wal_level":"replica"}}}`) // with the next start
	fetch("wal_level is replica, and must be logical")
}

// A replica copies no slot that it could not read: the WAL from which it begins has to be here, and
// what its reader has.
func TestCopiesNeedWAL(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := feedPair(ctx, t)
	refused := func(ctx context.Context, want string) {
		t.Helper()
		if _, err := b.FetchSlots(ctx, upstream(a), []cluster.Slot{feed()}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
		}
	}
	must(t, b.Unfollow(ctx))
	sql(ctx, t, a, "INSERT INTO public.t VALUES ('one')")
	read(ctx, t, a)
	short, end := context.WithTimeout(ctx, 5*time.Second)
	defer end()
	refused(short, "this replica has received WAL up to ")

	must(t, b.Follow(ctx, upstream(a)))
	if _, err := b.FetchSlots(ctx, upstream(a), []cluster.Slot{feed()}); err != nil {
		t.Errorf("when it has received it: %v", err)
	}
	// The slot is left where it is, and the replica keeps no more than since its last checkpoint.
	sql(ctx, t, b, "ALTER SYSTEM SET wal_keep_size = 0")
	sql(ctx, t, b, "SELECT pg_reload_conf()")
	for range 4 {
		sql(ctx, t, a, "INSERT INTO public.t VALUES ('more')")
		sql(ctx, t, a, "SELECT pg_switch_wal()")
		must(t, a.Checkpoint(ctx))
		caughtUp(ctx, t, a, b)
		must(t, b.Checkpoint(ctx))
	}
	refused(ctx, "this replica has not kept the WAL from which it is read")
}

// A primary that has crashed with a logical slot, and a prepared transaction, is rewound: it recovers with
// the parameters that it had.
func TestCrashedPrimaryWithLogicalSlotIsRewound(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := feedPair(ctx, t)
	for _, p := range []*Instance{a, b} {
		applied(t, p, `{"postgresql":{"parameters":{"wal_level":"logical","max_prepared_transactions":5}}}`)
	}
	for _, p := range []*Instance{b, a} {
		must(t, p.Stop(ctx, Fast))
	}
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	follow(ctx, t, b, a)
	caughtUp(ctx, t, a, b)
	must(t, b.Unfollow(ctx))
	conn, err := a.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	for _, s := range []string{"BEGIN", "INSERT INTO public.t VALUES ('of one side')", "PREPARE TRANSACTION 'prepared'"} {
		_, err := conn.Exec(ctx, s)
		must(t, err)
	}
	must(t, a.Kill(ctx))
	must(t, b.Promote(ctx, 0))
	if how, err := a.Rewind(ctx, upstream(b), true); err != nil || how != Rewound {
		t.Fatal(how, err)
	}
	follow(ctx, t, a, b)
	if got := slotsNow(ctx, t, a); len(got) != 0 {
		t.Errorf("the rewind has left slots: %v", got)
	}
}

// hot_standby_feedback is on where replicas have copies of logical slots.
func TestFeedbackForCopies(t *testing.T) {
	t.Parallel()
	p := newInstance(t, settings(t, newDir(t), "a"))
	const slots = `"slots":{"feed":{"type":"logical","database":"d","plugin":"p"}}`
	for dynamic, want := range map[string]string{
		`{}`: "", `{"slots":{"p":null}}`: "", `{` + slots + `}`: "on", `{` + slots + `,"postgresql":{"use_slots":false}}`: "",
		`{` + slots + `,"postgresql":{"parameters":{"hot_standby_feedback":"off"}}}`: "on",
		`{"postgresql":{"parameters":{"hot_standby_feedback":"off"}}}`:               "off",
		`{` + slots + `,"standby_cluster":{"host":"10.1.0.11"}}`:                     "",
	} {
		applied(t, p, dynamic)
		if got := p.wantedParameters()["hot_standby_feedback"]; got != want {
			t.Errorf("%s: %q, want %q", dynamic, got, want)
		}
	}
}

// What PostgreSQL would end for when it starts is no slot.
func TestSlotState(t *testing.T) {
	t.Parallel()
	order := binary.NativeEndian
	state := func(change func(b []byte)) pg.SlotFile {
		b := make([]byte, 200)
		order.PutUint32(b, slotMagic)
		order.PutUint32(b[12:], 184)
		copy(b[slotHead:], "feed")
		order.PutUint64(b[restartLSNAt:], 0x1_2345_6789)
		change(b)
		order.PutUint32(b[4:], crc32.Checksum(b[slotSummed:], crc32.MakeTable(crc32.Castagnoli)))
		return pg.SlotFile{Slot: feed(), State: b}
	}
	whole := state(func([]byte) {})
	if err := checkSlotState(whole); err != nil {
		t.Fatal(err)
	}
	if got, want := snapshotFile(whole), "pg_logical/snapshots/1-23456789.snap"; got != want {
		t.Errorf("the snapshot is looked for in %s, want %s", got, want)
	}
	for name, change := range map[string]func([]byte){
		"magic":     func(b []byte) { b[0]++ },
		"length":    func(b []byte) { b[12]++ },
		"its name":  func(b []byte) { b[slotHead]++ },
		"temporary": func(b []byte) { b[84] = 2 },
		"begins":    func(b []byte) { order.PutUint64(b[restartLSNAt:], 0) },
	} {
		if checkSlotState(state(change)) == nil {
			t.Errorf("%s: taken", name)
		}
	}
	flipped := state(func([]byte) {})
	flipped.State[150]++
	if checkSlotState(flipped) == nil {
		t.Error("another checksum: taken")
	}
	for n := range 104 {
		short := state(func([]byte) {})
		short.State = short.State[:n]
		if checkSlotState(short) == nil {
			t.Errorf("%d bytes: taken", n)
		}
	}
}

// Where transactions overlap at the position from which a slot is read, PostgreSQL begins there with a snapshot
// that the primary has written to a file: without it, what was committed until all of them have
// ended would be left out, and nobody told.
func TestLogicalSlotIsCopiedWithItsSnapshot(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := feedPair(ctx, t)
	open := func(row string) *pgx.Conn {
		t.Helper()
		conn, err := a.dedicated(ctx)
		must(t, err)
		t.Cleanup(func() { hangUpOn(conn) })
		_, err = conn.Exec(ctx, "BEGIN; INSERT INTO public.t VALUES ('"+row+"')")
		must(t, err)
		return conn
	}
	commit := func(conn *pgx.Conn) {
		t.Helper()
		_, err := conn.Exec(ctx, "COMMIT")
		must(t, err)
	}
	one := open("one")
	sql(ctx, t, a, "CHECKPOINT") // which writes which transactions run
	two := open("two")
	commit(one)
	sql(ctx, t, a, "CHECKPOINT")
	// The slot is read from the first checkpoint on: "two" has begun behind it.
	for range 2 {
		read(ctx, t, a)
	}

	files, err := b.FetchSlots(ctx, upstream(a), []cluster.Slot{feed()})
	must(t, err)
	must(t, b.Stop(ctx, Fast))
	broken := files[0]
	broken.Snapshot = broken.Snapshot[:len(broken.Snapshot)-1]
	if err := b.PlaceSlots(ctx, []pg.SlotFile{broken}); err == nil || !strings.Contains(err.Error(), "its snapshot") {
		t.Errorf("half a snapshot: %v", err)
	}
	must(t, b.PlaceSlots(ctx, files))
	follow(ctx, t, b, a)
	sql(ctx, t, a, "INSERT INTO public.t VALUES ('three')")
	commit(two)
	caughtUp(ctx, t, a, b)
	must(t, a.Stop(ctx, Fast))
	must(t, b.Promote(ctx, 0))
	if got := read(ctx, t, b); !slices.Equal(got, []string{"three", "two"}) {
		t.Errorf("after the promotion its reader gets %q", got)
	}
}
