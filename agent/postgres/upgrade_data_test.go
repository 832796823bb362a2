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
		// Not to any version that happens to lie on this machine: sid's 18 does not take 15's schemas here.
		t.Skip("make test-upgrade runs it, from one major version to another")
	}
	ctx := within(t)
	dir := newDir(t)
	s := settings(t, dir, "a")
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
		for infix, want := range map[string]int{asideInfix: 1, beforeUpgrade: 0} {
			if found, err := filepath.Glob(a.dataDir + "*" + infix + "*"); err != nil || len(found) != want {
				t.Errorf("%s: %v, %v", when, found, err)
			}
		}
	}

	refused("to the same version", "is no later version", a.BeginUpgrade(ctx, a.Major(), bin, 0))
	refused("nothing begun", "nobody has noted", a.UpgradeData(ctx))
	refused("nothing begun", "nobody has noted", a.PlaceUpgraded())
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
	wantState(ctx, t, a, Foreign)
	refused("start", "has not ended", a.Start(ctx, StartAs{Role: Primary}))
	must(t, a.UpgradeData(ctx))
	if _, err := os.Stat(a.inData("global/pg_control")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old cluster can still be started: %v", err)
	}
	asBefore("upgraded")

	begun()
	shutDownWell(ctx, t, a)
	must(t, a.UpgradeData(ctx))
	must(t, a.PlaceUpgraded())
	refused("placed twice", "is not the directory", a.PlaceUpgraded())
	asBefore("placed")

	note := begun()
	shutDownWell(ctx, t, a)
	must(t, a.UpgradeData(ctx))
	must(t, a.PlaceUpgraded())
	s.Postgres.BinDir = bin
	b := newInstance(t, s)
	refused("the new one, before its time", "has not ended", b.Start(ctx, StartAs{Role: Primary}))
	must(t, b.EndUpgrade())
	must(t, b.EndUpgrade())
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
		refused(what, "there is no way back", a.UndoUpgrade(ctx))
		if what == "" && !b.Running() {
			t.Error("the new cluster was ended")
		}
		if err := a.isAt(note.Aside, note.ID); err != nil {
			t.Error(err)
		}
	}
}

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
			must(t, os.Remove(filepath.Join(note.Next, "made")))
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
			if d, err := p.DataDir(ctx); err != nil || d.State != Foreign {
				t.Errorf("%+v, %v", d, err)
			}
			if err := p.PlaceUpgraded(); err == nil {
				t.Error("placed")
			}
			if err := p.EndUpgrade(); err == nil {
				t.Error("ended")
			}
			if after := listing(t, dir); !slices.Equal(before, after) {
				t.Errorf("changed: %v, was %v", after, before)
			}
		})
	}
}
