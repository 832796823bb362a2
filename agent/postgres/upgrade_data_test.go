package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/pg"
)

// shutDownWell ends PostgreSQL as an upgrade wants it.
func shutDownWell(ctx context.Context, t *testing.T, p *Instance) {
	t.Helper()
	must(t, p.Stop(ctx, Fast))
}

func restarted(ctx context.Context, t *testing.T, p *Instance) State {
	t.Helper()
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	return observe(ctx, t, p, "answers", func(s State) bool { return s.Accepting })
}

// rows is how many rows the table of the tests has.
func rows(ctx context.Context, t *testing.T, p *Instance) (n int) {
	t.Helper()
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer conn.Close(ctx)
	must(t, conn.QueryRow(ctx, "SELECT count(*) FROM public.kept").Scan(&n))
	return n
}

// Data become those of a later version beside themselves, and are what they were when that is taken back at any
// step; once the new cluster was started nothing is taken back.
func TestUpgradeData(t *testing.T) {
	if os.Getenv("POSTGRES_NEXT_BIN") == "" {
		// It takes minutes: not to any version that happens to lie on this machine.
		t.Skip("make test-upgrade runs it, from one major version to another")
	}
	ctx := within(t)
	dir := newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.Parameters["shared_preload_libraries"] = "pg_prewarm" // has a worker that writes a file
	a := newInstance(t, s)
	bin, next := nextBin(t, a.Major())
	bootstrapped(ctx, t, a)
	restarted(ctx, t, a)
	sql(ctx, t, a, "CREATE TABLE public.kept AS SELECT g AS id, repeat('x', 200) AS text FROM generate_series(1, 5000) g")
	control, err := a.control(ctx)
	must(t, err)
	refused := func(what, why string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", what, err, why)
		}
	}
	begun := func() *UpgradeNote {
		t.Helper()
		must(t, a.BeginUpgrade(ctx, next, bin, 4))
		note, err := a.UpgradeNote()
		must(t, err)
		return note
	}
	asBefore := func(when string) {
		t.Helper()
		must(t, a.UndoUpgrade(ctx))
		must(t, a.UndoUpgrade(ctx)) // it may be repeated
		if !a.Running() {
			restarted(ctx, t, a)
		}
		if n := rows(ctx, t, a); n != 5000 {
			t.Errorf("%s: %d rows", when, n)
		}
		if c, err := a.control(ctx); err != nil || c.SystemIdentifier != control.SystemIdentifier || c.Timeline != control.Timeline {
			t.Errorf("%s: %+v, %v", when, c, err)
		}
		if left, err := filepath.Glob(a.dataDir + upgradedInfix + "*/global/pg_control"); err != nil || len(left) > 0 {
			t.Errorf("%s: the new cluster can be started on the files of the old data: %v, %v", when, left, err)
		}
		for infix, want := range map[string]int{asideInfix: 1, beforeUpgrade: 0} {
			if found, err := filepath.Glob(a.dataDir + "*" + infix + "*"); err != nil || len(found) != want {
				t.Errorf("%s: %v, %v", when, found, err)
			}
		}
	}

	refused("to the same version", "is no later version", a.BeginUpgrade(ctx, a.Major(), bin, 0))
	refused("nothing begun", "nobody has noted", a.UpgradeData(ctx))
	refused("nothing begun", "nobody has noted", a.PlaceUpgraded())
	refused("nothing begun", "nobody has noted", a.NoteAnnouncement(7))
	started := observe(ctx, t, a, "answers", func(s State) bool { return s.Accepting }).StartTime
	begun()
	refused("twice", "has not ended", a.BeginUpgrade(ctx, next, bin, 4))
	refused("a restore meanwhile", "has not ended", a.BeginRestore(t.Context(), pg.Restore{Discarded: 1}))
	refused("while it runs", "only data that were shut down", a.UpgradeData(ctx))
	refused("before it was made", "stays", a.PlaceUpgraded())
	asBefore("begun")
	if s := observe(ctx, t, a, "still runs", func(s State) bool { return s.Accepting }); !s.StartTime.Equal(started) {
		t.Error("PostgreSQL was restarted")
	}

	begun()
	must(t, a.Kill(ctx))
	refused("after a crash", "only data that were shut down", a.UpgradeData(ctx))
	asBefore("crashed")

	sql(ctx, t, a, "CREATE TABLE public.unfit (a regprocedure)")
	begun()
	shutDownWell(ctx, t, a)
	refused("data that cannot be carried over", "public.unfit.a", a.UpgradeData(ctx))
	asBefore("refused by pg_upgrade")
	sql(ctx, t, a, "DROP TABLE public.unfit")

	for when, file := range map[string]string{"its server runs": "postmaster.pid", "the old cluster is disabled": "../" + filepath.Base(a.dataDir) + "/global/pg_control.old"} {
		note := begun()
		shutDownWell(ctx, t, a)
		cut, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- a.UpgradeData(cut) }()
		came := make(chan struct{})
		go func() { defer close(came); awaitPath(cut, filepath.Join(note.Next, file)) }()
		select {
		case <-came:
			if now, err := a.UpgradeNote(); err != nil || !strings.HasPrefix(filepath.Base(now.Work), upgradeWork) || a.isAt(now.Work, now.WorkID) != nil || !now.Stopped {
				t.Errorf("%s: it is not noted where pg_upgrade works: %+v, %v", when, now, err)
			}
			cancel()
			if err := <-ended; err == nil {
				t.Errorf("%s: not cut short", when)
			}
		case err := <-ended:
			cancel()
			t.Fatalf("%s: it has ended before: %v", when, err)
		}
		asBefore(when)
	}

	begun()
	shutDownWell(ctx, t, a)
	wantState(ctx, t, a, Valid) // nothing has become of it yet
	untouched := func() {
		t.Helper()
		refused("start", "has not ended", a.Start(ctx, StartAs{Role: Primary}))
		refused("removed to be cloned anew", "has not ended", a.RemoveForReinit(ctx, allowed(t, a)))
	}
	untouched()
	prewarmed, err := os.Stat(a.inData(prewarmFile))
	must(t, err)
	must(t, a.UpgradeData(ctx))
	wantState(ctx, t, a, Upgrading)
	untouched()
	if now, err := os.Stat(a.inData(prewarmFile)); err != nil || !now.ModTime().Equal(prewarmed.ModTime()) {
		t.Errorf("a library's worker has written in the server that pg_upgrade has started of the old version: %v", err)
	}
	if made, err := filepath.Glob(a.dataDir + upgradedInfix + "*/" + prewarmFile); err != nil || len(made) > 0 {
		t.Errorf("a library's worker has written in the server that pg_upgrade has started of the new version: %v, %v", made, err)
	}
	if _, err := os.Stat(a.inData("global/pg_control")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old cluster can still be started: %v", err)
	}
	asBefore("upgraded")

	begun()
	shutDownWell(ctx, t, a)
	must(t, a.UpgradeData(ctx))
	refused("announced before it is in place", "is not the directory", a.NoteAnnouncement(7))
	must(t, a.PlaceUpgraded())
	must(t, a.NoteAnnouncement(7))
	refused("placed twice", "is not the directory", a.PlaceUpgraded())
	asBefore("placed")

	note := begun()
	shutDownWell(ctx, t, a)
	must(t, a.UpgradeData(ctx))
	must(t, a.PlaceUpgraded())
	refused("by the old programs", "runs the programs of", a.EndUpgrade(ctx))
	must(t, a.NoteAnnouncement(7))
	b := newInstance(t, s) // of the new version, by the note
	if b.Major() != next {
		t.Fatalf("programs of version %d", b.Major())
	}
	refused("the new one, before its time", "has not ended", b.Start(ctx, StartAs{Role: Primary}))
	must(t, b.EndUpgrade(ctx))
	must(t, b.EndUpgrade(ctx))
	restarted(ctx, t, b)
	if n := rows(ctx, t, b); n != 5000 {
		t.Errorf("%d rows after the upgrade", n)
	}
	made, err := b.control(ctx)
	must(t, err)
	if made.SystemIdentifier == control.SystemIdentifier || made.Timeline != 5 {
		t.Errorf("the new cluster: %+v", made)
	}
	if fsync := scalar(ctx, t, b, "SHOW shared_buffers"); fsync == "16MB" {
		t.Error("it has pg_upgrade's configuration")
	}
	c := newInstance(t, func() Settings { s := settings(t, dir, "c"); s.Postgres.BinDir = bin; return s }())
	up := upstream(b)
	must(t, c.MakeReplica(ctx, &up, made.SystemIdentifier, nil))
	must(t, c.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	sql(ctx, t, b, "INSERT INTO public.kept VALUES (0, 'new')")
	observe(ctx, t, c, "streams", func(s State) bool { return s.Accepting && s.ReplicationState == pg.Streaming })
	if _, err := os.Stat(filepath.Join(note.Aside, "global", "pg_control.old")); err != nil {
		t.Errorf("the old data: %v", err)
	}

	// There is no way back any more, also when the note is still there, whether it runs, was killed, or was shut down.
	note, err = a.UpgradeNote()
	if err != nil || note != nil {
		t.Fatalf("%+v, %v", note, err)
	}
	note = newestAside(ctx, t, a, made.SystemIdentifier, bin, next)
	for what, end := range map[string]func(){"": func() {}, "killed": func() { must(t, b.Kill(ctx)) }, "shut down": func() { restarted(ctx, t, b); shutDownWell(ctx, t, b) }} {
		if what != "" {
			must(t, b.dropUpgradeNote())
			end()
		}
		must(t, a.writeUpgradeNote(*note))
		ran := b.Running()
		refused(what, "there is no way back", a.UndoUpgrade(ctx))
		if ran && !b.Running() {
			t.Error("the new cluster was ended")
		}
		if err := a.isAt(note.Aside, note.ID); err != nil {
			t.Error(err)
		}
	}
}

// prewarmFile is what the worker of pg_prewarm writes.
const prewarmFile = "autoprewarm.blocks"

// awaitPath waits until there is a file, or ctx ends.
func awaitPath(ctx context.Context, path string) {
	for ctx.Err() == nil {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(time.Millisecond) // nothing tells of a file that another program makes
	}
}

// newestAside is the note of the upgrade that was placed last, as it would be if it had not been dropped.
func newestAside(ctx context.Context, t *testing.T, a *Instance, upgraded, bin string, next int) *UpgradeNote {
	t.Helper()
	found, err := filepath.Glob(a.dataDir + beforeUpgrade + "*")
	must(t, err)
	if len(found) != 1 {
		t.Fatal(found)
	}
	note := &UpgradeNote{From: a.major, To: next, BinDir: bin, Aside: found[0], Next: strings.Replace(found[0], beforeUpgrade, upgradedInfix, 1), SystemIdentifier: "1", Timeline: 5, Upgraded: upgraded}
	note.ID, err = identity(found[0])
	must(t, err)
	note.NextID, err = identity(a.dataDir)
	must(t, err)
	return note
}

// scalar is the one value that a statement gives.
func scalar(ctx context.Context, t *testing.T, p *Instance, statement string) (value string) {
	t.Helper()
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer conn.Close(ctx)
	must(t, conn.QueryRow(ctx, statement).Scan(&value))
	return value
}

// pretended notes an upgrade of a data directory that no PostgreSQL has made, with its new directory.
func pretended(t *testing.T, p *Instance) UpgradeNote {
	t.Helper()
	dir, err := p.realDataDir()
	must(t, err)
	const at = "20261201T010000.000000"
	note := UpgradeNote{From: p.major, To: p.major + 1, BinDir: "/nowhere", Aside: dir + beforeUpgrade + at, Next: dir + upgradedInfix + at, SystemIdentifier: "7", Timeline: 2}
	note.ID, err = identity(dir)
	must(t, err)
	put(t, filepath.Join(note.Next, "made"), "x")
	put(t, filepath.Join(note.Next, "global", "pg_control"), "another control")
	give(t, p, note.Next)
	note.NextID, err = identity(note.Next)
	must(t, err)
	must(t, p.writeUpgradeNote(note))
	return note
}

// Wherever an upgrade is cut short before the new cluster is whole, the old data are what and where they were.
func TestUndoUpgradeCutShort(t *testing.T) {
	for name, test := range map[string]struct {
		cut    func(t *testing.T, p *Instance, note UpgradeNote)
		failed bool // what was made is kept
	}{
		"made, and nothing else": {func(*testing.T, *Instance, UpgradeNote) {}, true},
		"nothing made":           {func(t *testing.T, _ *Instance, note UpgradeNote) { must(t, os.RemoveAll(note.Next)) }, false},
		"a directory that is not noted yet": {func(t *testing.T, p *Instance, note UpgradeNote) {
			must(t, os.RemoveAll(note.Next))
			must(t, os.Mkdir(note.Next, 0o700))
			give(t, p, note.Next)
			note.NextID = ""
			must(t, p.writeUpgradeNote(note))
		}, false},
		"the control file was renamed": {func(t *testing.T, p *Instance, _ UpgradeNote) {
			must(t, os.Rename(p.inData("global/pg_control"), p.inData("global/pg_control.old")))
		}, true},
		"between two renames": {func(t *testing.T, p *Instance, note UpgradeNote) {
			must(t, os.Rename(p.inData("global/pg_control"), p.inData("global/pg_control.old")))
			must(t, os.Rename(note.dir(), note.Aside))
		}, true},
	} {
		for _, linked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, a link: %v", name, linked), func(t *testing.T) {
				t.Parallel()
				ctx, dir := within(t), newDir(t)
				p := newInstance(t, settings(t, dir, "a"))
				real := p.dataDir
				if linked {
					real = filepath.Join(dir, "disk", "a")
					must(t, os.Mkdir(filepath.Dir(real), 0o755))
					give(t, p, filepath.Dir(real))
					must(t, os.Symlink(real, p.dataDir))
				}
				put(t, filepath.Join(real, "global", "pg_control"), "control")
				put(t, filepath.Join(real, "precious"), "x")
				give(t, p, real)
				test.cut(t, p, pretended(t, p))
				must(t, p.UndoUpgrade(ctx))
				must(t, p.UndoUpgrade(ctx))
				for file, want := range map[string]string{"precious": "x", "global/pg_control": "control"} {
					if content, err := os.ReadFile(p.inData(file)); err != nil || string(content) != want {
						t.Errorf("%s: %q, %v, %v", file, content, err, listing(t, dir))
					}
				}
				if kept, err := filepath.Glob(real + upgradedInfix + "*.failed.*/made"); err != nil || (len(kept) == 1) != test.failed {
					t.Errorf("what was made: %v, %v", kept, err)
				}
				if left, err := filepath.Glob(real + upgradedInfix + "*/global/pg_control"); err != nil || len(left) > 0 {
					t.Errorf("what was made can be started, on the files of the old data: %v, %v", left, err)
				}
				if note, err := p.UpgradeNote(); err != nil || note != nil {
					t.Errorf("the note is %+v, %v", note, err)
				}
			})
		}
	}
}

// What is not where an upgrade has put it is neither moved nor removed, and nothing beside it; a note that makes no
// sense lets nothing be started.
func TestUndoUpgradeNothingElse(t *testing.T) {
	const whole = "the old data are in their place: it is undone, and the rest is left"
	for name, test := range map[string]struct {
		abuse func(t *testing.T, p *Instance, note UpgradeNote, precious string)
		why   string
	}{
		"another directory in the place of the data": {func(t *testing.T, p *Instance, note UpgradeNote, _ string) {
			must(t, os.Rename(p.dataDir, note.Aside))
			put(t, p.inData("PG_VERSION"), "an operator's copy")
		}, "is neither the data directory that was upgraded nor the new one"},
		"another directory aside": {func(t *testing.T, p *Instance, note UpgradeNote, _ string) {
			must(t, os.Rename(p.dataDir, note.Aside+".kept"))
			put(t, filepath.Join(note.Aside, "another"), "x")
		}, "is not the directory that a major upgrade has noted"},
		"nothing anywhere": {func(t *testing.T, p *Instance, note UpgradeNote, _ string) {
			must(t, os.Rename(p.dataDir, note.Aside+".kept"))
		}, "no such file"},
		"another directory where the new one was": {func(t *testing.T, _ *Instance, note UpgradeNote, _ string) {
			must(t, os.Rename(note.Next, note.Next+".kept"))
			put(t, filepath.Join(note.Next, "another"), "x")
		}, whole},
		"a link where the new one was": {func(t *testing.T, _ *Instance, note UpgradeNote, precious string) {
			must(t, os.RemoveAll(note.Next))
			must(t, os.Symlink(precious, note.Next))
		}, whole},
		"a full directory that is not noted": {func(t *testing.T, p *Instance, note UpgradeNote, _ string) {
			note.NextID = ""
			must(t, p.writeUpgradeNote(note))
		}, whole},
		"a note of another directory": {func(t *testing.T, p *Instance, note UpgradeNote, precious string) {
			note.Aside, note.Next = precious+beforeUpgrade+"1", precious+upgradedInfix+"1"
			must(t, p.writeUpgradeNote(note))
		}, "nothing is moved"},
		"a note that leads elsewhere": {func(t *testing.T, p *Instance, note UpgradeNote, precious string) {
			note.Next = precious
			must(t, p.writeUpgradeNote(note))
		}, "is damaged"},
		"a note of a working directory elsewhere": {func(t *testing.T, p *Instance, note UpgradeNote, precious string) {
			note.Work = precious
			note.WorkID, _ = identity(precious)
			must(t, p.writeUpgradeNote(note))
		}, "is damaged"},
		"half a note": {func(t *testing.T, p *Instance, _ UpgradeNote, _ string) {
			put(t, p.stateFile("upgrade"), `{"aside":"/x`)
			give(t, p, p.stateFile("upgrade"))
		}, "is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, dir := within(t), newDir(t)
			p := newInstance(t, settings(t, dir, "a"))
			precious := filepath.Join(dir, "precious")
			put(t, filepath.Join(precious, "kept"), "x")
			put(t, p.inData("global/pg_control"), "control")
			give(t, p, dir)
			test.abuse(t, p, pretended(t, p), precious)
			give(t, p, dir)
			before := listing(t, dir)
			err := p.UndoUpgrade(ctx)
			if test.why == whole {
				must(t, err)
				before = slices.DeleteFunc(before, func(path string) bool { return path == p.stateFile("upgrade") })
				if after := listing(t, dir); !slices.Equal(before, after) {
					t.Errorf("changed: %v, was %v", after, before)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.why) {
				t.Error(err)
			}
			if after := listing(t, dir); !slices.Equal(before, after) {
				t.Errorf("changed: %v, was %v", after, before)
			}
			if d, err := p.DataDir(ctx); err != nil || d.State != Foreign && d.State != Upgrading {
				t.Errorf("%+v, %v", d, err)
			}
			if err := p.RemoveForReinit(ctx, allowed(t, p)); err == nil {
				t.Error("removed to be cloned anew")
			}
			if err := p.PlaceUpgraded(); err == nil {
				t.Error("placed")
			}
			if err := p.EndUpgrade(ctx); err == nil {
				t.Error("ended")
			}
			if after := listing(t, dir); !slices.Equal(before, after) {
				t.Errorf("changed: %v, was %v", after, before)
			}
		})
	}
}

// The old data come back only when the new cluster, which has the same files, cannot be started any more.
func TestUndoUpgradeOnlyOneCanBeStarted(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	put(t, p.inData("global/pg_control"), "control")
	give(t, p, p.dataDir)
	note := pretended(t, p)
	note.Stopped = true
	must(t, p.writeUpgradeNote(note))
	must(t, os.Rename(p.inData("global/pg_control"), p.inData("global/pg_control.old")))
	put(t, filepath.Join(note.Next, "global", undoneControl, "in the way"), "x")
	give(t, p, note.Next)
	if err := p.UndoUpgrade(ctx); err == nil || !strings.Contains(err.Error(), "control file") {
		t.Errorf("undone: %v", err)
	}
	if _, err := os.Stat(p.inData("global/pg_control")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("both clusters can be started: %v", err)
	}
	wantState(ctx, t, p, Upgrading)
	must(t, os.RemoveAll(filepath.Join(note.Next, "global", undoneControl)))
	must(t, p.UndoUpgrade(ctx))
	if _, err := os.Stat(p.inData("global/pg_control")); err != nil {
		t.Error(err)
	}
}

// What runs in the data directory is the shard's primary until the note says that it was stopped, and pg_upgrade's
// server from then on, for an agent that has just begun, too.
func TestUndoUpgradeKnowsWhoRuns(t *testing.T) {
	ctx := within(t)
	a := serving(ctx, t)
	again := func() *Instance {
		p, err := New(Settings{Scope: "shard", Name: "a", Postgres: *a.local.Load(), Launcher: &directLauncher{}, Log: zerolog.Nop()})
		must(t, err)
		return p
	}
	pretended(t, a)
	started := observe(ctx, t, a, "answers", func(s State) bool { return s.Accepting }).StartTime
	must(t, again().UndoUpgrade(ctx))
	if s := observe(ctx, t, a, "serves", func(s State) bool { return s.Accepting }); !s.StartTime.Equal(started) {
		t.Error("a primary that serves was ended")
	}
	note := pretended(t, a)
	if adopted, err := again().Adopt(ctx); err != nil || !adopted {
		t.Errorf("a primary that serves: %v, %v", adopted, err)
	}
	note.Stopped = true
	must(t, a.writeUpgradeNote(note))
	b := again()
	if adopted, err := b.Adopt(ctx); err != nil || adopted || b.Stray() {
		t.Errorf("pg_upgrade's server: %v, %v", adopted, err)
	}
	must(t, b.UndoUpgrade(ctx))
	select {
	case <-a.Exited():
	case <-ctx.Done():
		t.Error("pg_upgrade's server is left running")
	}
	if pids, err := fence.Processes(a.dataDir); err != nil || len(pids) > 0 {
		t.Errorf("pg_upgrade's server still runs: %v, %v", pids, err)
	}
	wantState(ctx, t, b, Valid)
}

// Where WAL is archived, all of it has to be before it goes.
func TestUpgradeDataOfWhatIsNotArchived(t *testing.T) {
	ctx := within(t)
	s := settings(t, newDir(t), "a")
	s.Postgres.Parameters["archive_mode"], s.Postgres.Parameters["archive_command"] = "on", "false"
	a := newInstance(t, s)
	bootstrapped(ctx, t, a)
	restarted(ctx, t, a)
	described := func() (old oldCluster) {
		t.Helper()
		conn, err := a.dedicated(ctx)
		must(t, err)
		defer hangUpOn(conn)
		old, err = a.describe(ctx, conn)
		must(t, err)
		return old
	}
	sql(ctx, t, a, "CREATE TABLE public.a ()")
	sql(ctx, t, a, "SELECT pg_switch_wal()")
	for described().unarchived == "" {
		select {
		case <-ctx.Done():
			t.Fatal("an archiver that fails stands in nobody's way")
		case <-time.After(100 * time.Millisecond): // the archiver tries again when it likes
		}
	}
	must(t, a.Stop(ctx, Fast))
	control, err := a.control(ctx)
	must(t, err)
	note := pretended(t, a)
	note.SystemIdentifier = control.SystemIdentifier
	note.Archives = true
	must(t, a.writeUpgradeNote(note))
	if err := a.UpgradeData(ctx); err == nil || !strings.Contains(err.Error(), "is not archived") {
		t.Error(err)
	}
	note.Archives = false
	must(t, a.writeUpgradeNote(note))
	if err := a.UpgradeData(ctx); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("nothing archives, and it is asked for: %v", err)
	}
}

// pg_upgrade's working directory goes, with the password in it, also that of an agent that was killed; and nothing else.
func TestUndoUpgradeRemovesItsWork(t *testing.T) {
	for name, test := range map[string]struct {
		abuse func(t *testing.T, work, precious string)
		gone  bool
	}{
		"as it was left": {func(*testing.T, string, string) {}, true},
		"gone already":   {func(t *testing.T, work, _ string) { must(t, os.RemoveAll(work)) }, true},
		"a link in it":   {func(t *testing.T, work, precious string) { must(t, os.Symlink(precious, filepath.Join(work, "x"))) }, true},
		"another one of its name": {func(t *testing.T, work, _ string) {
			must(t, os.Rename(work, work+".kept"))
			put(t, filepath.Join(work, "kept"), "x")
		}, false},
		"a link in its place": {func(t *testing.T, work, precious string) {
			must(t, os.RemoveAll(work))
			must(t, os.Symlink(precious, work))
		}, false},
		"a data directory of somebody's in it": {func(t *testing.T, work, _ string) { put(t, filepath.Join(work, "x", "global", "pg_control"), "x") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, dir := within(t), newDir(t)
			p := newInstance(t, settings(t, dir, "a"))
			put(t, p.inData("global/pg_control"), "control")
			put(t, filepath.Join(dir, "precious", "kept"), "x")
			give(t, p, dir)
			note := pretended(t, p)
			var err error
			note.Work, err = p.temporaryDir(upgradeWork)
			must(t, err)
			t.Cleanup(func() { os.RemoveAll(note.Work); os.RemoveAll(note.Work + ".kept") })
			put(t, filepath.Join(note.Work, "pgpass"), "secret")
			note.WorkID, err = identity(note.Work)
			must(t, err)
			must(t, p.writeUpgradeNote(note))
			test.abuse(t, note.Work, filepath.Join(dir, "precious"))
			if _, err := os.Lstat(note.Work); err == nil {
				give(t, p, note.Work)
			}
			must(t, p.UndoUpgrade(ctx))
			if _, err := os.Lstat(note.Work); errors.Is(err, fs.ErrNotExist) != test.gone {
				t.Errorf("left: %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, "precious", "kept")); err != nil {
				t.Error(err)
			}
			if note, err := p.UpgradeNote(); err != nil || note != nil {
				t.Errorf("the old data do not come back: %+v, %v", note, err)
			}
		})
	}
}

// Data of before the shard's upgrade are moved aside, whoever asks for a copy in their place, and never removed; where
// the programs for a copy are missing nothing is done.
func TestSupersededData(t *testing.T) {
	for _, linked := range []bool{false, true} {
		ctx, dir := within(t), newDir(t)
		s := settings(t, dir, "a")
		p := newInstance(t, s)
		real := p.dataDir
		bootstrapped(ctx, t, p)
		if linked {
			real = filepath.Join(dir, "disk", "a")
			must(t, os.Mkdir(filepath.Dir(real), 0o755))
			give(t, p, filepath.Dir(real))
			must(t, os.Rename(p.dataDir, real))
			must(t, os.Symlink(real, p.dataDir))
		}
		put(t, filepath.Join(real, "precious"), "x")
		allowed := Permission{NotLeader: true, LeaderReachable: true, AllowedBy: "an operator", Version: 99}
		before := listing(t, dir)
		if err := p.RemoveForReinit(ctx, allowed); err == nil || !strings.Contains(err.Error(), "PostgreSQL 99") {
			t.Errorf("without programs: %v", err)
		}
		if after := listing(t, dir); !slices.Equal(before, after) {
			t.Errorf("changed: %v, was %v", after, before)
		}
		allowed.Version = p.Major() // its own: they are there
		must(t, p.RemoveForReinit(ctx, allowed))
		if kept, err := filepath.Glob(real + beforeUpgrade + "*/precious"); err != nil || len(kept) != 1 {
			t.Errorf("the data are gone: %v, %v", kept, err)
		}
		wantState(ctx, t, p, Empty)
		must(t, p.RemoveForReinit(ctx, allowed)) // nothing is left to do
		if v := p.notedVersion(); v != p.Major() {
			t.Errorf("noted: %d", v)
		}
		must(t, p.noteVersion(99)) // of which there are no programs
		if q := newInstance(t, s); q.Major() != p.Major() {
			t.Errorf("programs of %d", q.Major())
		}
	}
}
