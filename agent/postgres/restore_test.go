package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/testkit"
)

func wantState(ctx context.Context, t *testing.T, p *Instance, want DataState) {
	t.Helper()
	if d, err := p.DataDir(ctx); err != nil || d.State != want {
		t.Errorf("the data directory is %+v, %v, want %s", d, err, want)
	}
}

// Wherever a restore is cut short, the old data are put back, and nothing is removed.
func TestPutBack(t *testing.T) {
	begun := func(t *testing.T, p *Instance) {
		must(t, p.BeginRestore(t.Context(), pg.Restore{Discarded: 3, Before: 2}))
	}
	aside := func(t *testing.T, p *Instance) {
		begun(t, p)
		must(t, p.SetAside())
		wantState(within(t), t, p, SetAside)
	}
	for name, cut := range map[string]func(t *testing.T, p *Instance){
		"before anything was moved": begun,
		"with nothing in its place": aside,
		"with half a backup in its place": func(t *testing.T, p *Instance) {
			aside(t, p)
			must(t, p.mark(markCustom, ""))
			put(t, p.inData("half"), "x")
		},
		"with a whole one in its place": func(t *testing.T, p *Instance) {
			aside(t, p)
			put(t, p.inData("PG_VERSION"), "another")
			note, err := p.RestoreNote()
			must(t, err)
			note.Made, err = identity(note.dir())
			must(t, err)
			must(t, p.writeRestoreNote(*note))
		},
		"before the target of a link was made again": func(t *testing.T, p *Instance) {
			aside(t, p)
			note, err := p.RestoreNote()
			must(t, err)
			if err := os.Remove(note.dir()); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		},
		"while it was put back": func(t *testing.T, p *Instance) {
			aside(t, p)
			must(t, p.PutBack(within(t)))
		},
	} {
		for _, linked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, a link: %v", name, linked), func(t *testing.T) {
				t.Parallel()
				ctx := within(t)
				dir := newDir(t)
				p := newInstance(t, settings(t, dir, "a"))
				real := p.dataDir
				if linked {
					real = filepath.Join(dir, "disk", "a")
					must(t, os.Mkdir(filepath.Dir(real), 0o755))
					give(t, p, filepath.Dir(real))
					must(t, os.Symlink(real, p.dataDir))
				}
				put(t, filepath.Join(real, "precious"), "x")
				give(t, p, real)
				cut(t, p)
				must(t, p.PutBack(ctx))
				must(t, p.PutBack(ctx)) // it may be repeated
				if _, err := os.Stat(p.inData("precious")); err != nil {
					t.Fatal(err, listing(t, dir))
				}
				if left, err := filepath.Glob(real + beforeRestore + "*"); err != nil || len(left) > 0 {
					t.Errorf("there is still %v, %v", left, err)
				}
				if note, err := p.RestoreNote(); err != nil || note == nil || note.Discarded != 3 || note.Before != 2 {
					t.Errorf("the note is %+v, %v", note, err)
				}
				if half, err := filepath.Glob(real + ".failed.*/half"); err != nil || strings.HasPrefix(name, "with half") && len(half) != 1 {
					t.Errorf("the half is not moved aside: %v, %v", listing(t, dir), err)
				}
				must(t, p.EndRestore())
				if note, err := p.RestoreNote(); err != nil || note != nil {
					t.Errorf("the note is %+v, %v", note, err)
				}
			})
		}
	}
}

// What is not what was moved aside is not put back, and a note that makes no sense lets
// nothing be started.
func TestPutBackNothingElse(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	put(t, p.inData("precious"), "x")
	must(t, p.BeginRestore(t.Context(), pg.Restore{Discarded: 3}))
	must(t, p.SetAside())
	note, err := p.RestoreNote()
	must(t, err)
	must(t, os.Rename(note.Aside, note.Aside+".kept"))
	put(t, filepath.Join(note.Aside, "another"), "x")
	refused := func(why string) {
		t.Helper()
		before := listing(t, dir)
		if err := p.PutBack(ctx); err == nil || !strings.Contains(err.Error(), why) {
			t.Error(err)
		}
		if after := listing(t, dir); strings.Join(after, " ") != strings.Join(before, " ") {
			t.Errorf("changed: %v", after)
		}
	}
	refused("is not the data directory that a restore has moved there")
	must(t, os.RemoveAll(note.Aside))
	must(t, os.Rename(note.Aside+".kept", note.Aside))
	put(t, p.inData("PG_VERSION"), "an operator's copy")
	refused("holds what the restore has not made")
	must(t, os.RemoveAll(p.dataDir))
	must(t, p.PutBack(ctx))
	if _, err := os.Stat(p.inData("precious")); err != nil {
		t.Error(err)
	}
	must(t, os.WriteFile(p.stateFile("restore"), []byte("{"), 0o600))
	wantState(ctx, t, p, Foreign)
}

// The tablespaces of a restore that was undone go with its data when the next one takes their place, and
// stay wherever somebody may use them.
func TestTablespacesOfUndoneRestores(t *testing.T) {
	for name, c := range map[string]struct {
		meddle func(t *testing.T, p *Instance, failed, made string)
		stay   bool
	}{
		"nobody uses them": {meddle: func(*testing.T, *Instance, string, string) {}},
		"the data were moved away, into use perhaps": {stay: true, meddle: func(t *testing.T, p *Instance, failed, _ string) {
			must(t, os.Rename(failed, p.dataDir+".mine"))
		}},
		"there are others in their place": {stay: true, meddle: func(t *testing.T, _ *Instance, _, made string) {
			must(t, os.Rename(made, made+".kept"))
			put(t, filepath.Join(made, "elsewhere", "precious"), "x")
		}},
		"there is a link in their place": {stay: true, meddle: func(t *testing.T, p *Instance, _, made string) {
			must(t, os.Rename(made, p.dataDir+".kept"))
			must(t, os.Symlink(p.dataDir+".kept", made))
		}},
		"the shard's data lead there": {stay: true, meddle: func(t *testing.T, p *Instance, _, made string) {
			must(t, os.MkdirAll(p.inData("pg_tblspc"), 0o700))
			must(t, os.Symlink(filepath.Join(made, "elsewhere"), p.inData("pg_tblspc/16384")))
		}},
		"another cluster's data directory is in them": {stay: true, meddle: func(t *testing.T, _ *Instance, _, made string) {
			put(t, filepath.Join(made, "elsewhere", "other", "global", "pg_control"), "x")
		}},
		"a note names what no restore has made": {stay: true, meddle: func(t *testing.T, p *Instance, _, made string) {
			list, err := p.asides()
			must(t, err)
			moved := p.dataDir + ".precious"
			must(t, os.Rename(made, moved))
			list[0].Tablespaces = moved
			must(t, p.noteAsides(list))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, dir := within(t), newDir(t)
			p := newInstance(t, settings(t, dir, "a"))
			put(t, p.inData("precious"), "x")
			undone := func() {
				t.Helper()
				must(t, p.BeginRestore(t.Context(), pg.Restore{Discarded: 3}))
				must(t, p.SetAside())
				must(t, p.mark(markCustom, ""))
				put(t, p.inData("half"), "x")
				note, err := p.RestoreNote()
				must(t, err)
				put(t, filepath.Join(note.tablespaces(), "elsewhere", "file"), note.Aside)
				give(t, p, dir)
				must(t, p.PutBack(ctx))
				must(t, p.EndRestore())
			}
			undone()
			failed, made := matches(t, dir, "a.failed.*"), matches(t, dir, "a"+restoredTablespaces+"*")
			if len(failed) != 1 || len(made) != 1 {
				t.Fatal(listing(t, dir))
			}
			first, err := os.ReadFile(filepath.Join(made[0], "elsewhere", "file"))
			must(t, err)
			c.meddle(t, p, failed[0], made[0])
			give(t, p, dir)
			undone()
			stayed := false
			must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.Name() == "file" {
					content, err := os.ReadFile(path)
					stayed = stayed || err == nil && string(content) == string(first)
				}
				return err
			}))
			if stayed != c.stay {
				t.Errorf("they stayed: %v, want %v: %v", stayed, c.stay, listing(t, dir))
			}
			if content, err := os.ReadFile(p.inData("precious")); err != nil || string(content) != "x" {
				t.Errorf("the data: %s, %v", content, err)
			}
		})
	}
}

// What stands in the place of data that a restore has moved aside may be what somebody has put
// there: a member is not made anew over it.
func TestReinitLeavesARestoreAlone(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	put(t, p.inData("precious"), "x")
	give(t, p, dir)
	must(t, p.BeginRestore(t.Context(), pg.Restore{Discarded: 3}))
	must(t, p.SetAside())
	put(t, p.inData("copied back by hand"), "x")
	give(t, p, dir)
	if err := p.RemoveForReinit(ctx, allowed(t, p)); err == nil || !strings.Contains(err.Error(), "a restore has not ended") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(p.inData("copied back by hand")); err != nil {
		t.Error(err)
	}
	wantState(ctx, t, p, SetAside)
}

// The shard is down while a restore is undone: what an earlier one has left is not removed then,
// but when the next begins.
func TestWhatUndoneRestoresLeave(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	put(t, p.inData("precious"), "x")
	give(t, p, dir)
	begin := func() {
		t.Helper()
		must(t, p.BeginRestore(t.Context(), pg.Restore{Discarded: 3}))
		must(t, p.SetAside())
		must(t, p.mark(markCustom, ""))
		put(t, p.inData("half"), "x")
		give(t, p, dir)
	}
	begin()
	must(t, p.PutBack(ctx))
	must(t, p.EndRestore())
	begin()
	if left := matches(t, dir, "a.failed.*"); len(left) > 0 {
		t.Errorf("of the first there is still %v", left)
	}
	// One that could not be removed then waits for the next.
	earlier := p.dataDir + asideInfix + "19990101T000000.000000"
	put(t, filepath.Join(earlier, "half"), "x")
	give(t, p, dir)
	id, err := identity(earlier)
	must(t, err)
	must(t, p.noteAsides([]aside{{Path: earlier, ID: id}}))
	must(t, p.PutBack(ctx))
	if left := matches(t, dir, "a.failed.*"); len(left) != 2 {
		t.Errorf("after it is undone there is %v", left)
	}
	must(t, p.EndRestore())
	begin()
	if left := matches(t, dir, "a.failed.*"); len(left) > 0 {
		t.Errorf("of those before there is still %v", left)
	}
}

// A restore that has filled the disk is undone all the same.
func TestPutBackOnAFullDisk(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	disk := filepath.Join(dir, "disk")
	must(t, os.Mkdir(disk, 0o755))
	if err := unix.Mount("lictor", disk, "tmpfs", 0, "size=1m"); errors.Is(err, unix.EPERM) {
		t.Skip("no right to mount")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	p := newInstance(t, settings(t, disk, "a"))
	give(t, p, disk)
	put(t, p.inData("precious"), "x")
	give(t, p, p.dataDir)
	must(t, p.BeginRestore(t.Context(), pg.Restore{Discarded: 3}))
	must(t, p.SetAside())
	must(t, p.mark(markCustom, ""))
	err := os.WriteFile(p.inData("half"), make([]byte, 2<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	must(t, p.PutBack(ctx))
	if _, err := os.Stat(p.inData("precious")); err != nil {
		t.Error(err, listing(t, disk))
	}
	must(t, p.EndRestore())
	wantState(ctx, t, p, Foreign)
}

// The real pgBackRest restores in the place of the data, to the moment, on a timeline above
// those that are discarded.
func TestRestoreToAMoment(t *testing.T) {
	if _, err := exec.LookPath("pgbackrest"); err != nil {
		t.Skip("pgbackrest is not installed")
	}
	ctx, dir := within(t), newDir(t)
	space := filepath.Join(dir, "space")
	p, id, options := backedUp(ctx, t, dir, func(p *Instance) {
		must(t, os.Mkdir(space, 0o700))
		give(t, p, space)
		sql(ctx, t, p, "CREATE TABLESPACE elsewhere LOCATION '"+space+"'")
	})
	wal := filepath.Join(dir, "wal")
	must(t, p.Stop(ctx, Fast))
	must(t, os.Rename(p.inData("pg_wal"), wal))
	must(t, os.Symlink(wal, p.inData("pg_wal")))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, p, "SELECT pg_sleep(1.1)") // pgBackRest counts in seconds
	sql(ctx, t, p, "CREATE TABLE public.kept TABLESPACE elsewhere AS SELECT 42 AS answer")
	target := time.Now()
	sql(ctx, t, p, "DROP TABLE public.kept")
	archived(ctx, t, p)
	must(t, p.Stop(ctx, Fast))
	r := pg.Restore{Target: target, Label: labelIn(ctx, t, p, options), Timeline: 1, Discarded: 3}
	b := config.Backup{Stanza: "main", Command: strings.ReplaceAll("pgbackrest "+options, "--stanza=main ", "")}
	if err := p.Restore(ctx, b, r); err == nil {
		t.Fatal("it restores over the data")
	}
	must(t, p.BeginRestore(t.Context(), r))
	must(t, p.SetAside())
	late := r
	late.Target = time.Now().Add(time.Hour)
	if err := p.Restore(ctx, b, late); err == nil {
		t.Error("a target that the archive does not reach")
	}
	wantState(ctx, t, p, SetAside)
	must(t, p.PutBack(ctx))
	wantState(ctx, t, p, Valid)
	must(t, p.EndRestore())
	must(t, p.BeginRestore(t.Context(), r))
	must(t, p.SetAside())
	other := r
	other.SystemIdentifier = "1" + id
	if err := p.Restore(ctx, b, other); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("the backup of another cluster: %v", err)
	}
	must(t, p.PutBack(ctx))
	must(t, p.EndRestore())
	r.SystemIdentifier = id
	must(t, p.BeginRestore(t.Context(), r))
	must(t, p.SetAside())
	must(t, p.Restore(ctx, b, r))
	// It can still be undone: a standby that asked the archive would follow its timeline.
	early := func() []string {
		return slices.Concat(matches(t, dir, "repo/archive/main/*/00000004.history*"), matches(t, dir, "repo/archive/main/*/00000004*/*"))
	}
	if has := early(); len(has) != 0 {
		t.Errorf("the archive has %v", has)
	}
	must(t, p.EndRestore())
	d, err := p.DataDir(ctx)
	if must(t, err); d.State != Valid || d.Standby || d.Control.SystemIdentifier != id || d.Control.Timeline != 4 || !d.Control.IsShutDown() {
		t.Errorf("%+v", d)
	}
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, p, "TABLE public.kept")
	testkit.Await(ctx, t, "the new timeline is archived", func() error {
		if len(early()) == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	// The WAL stays on its disk, and that of the old data with them.
	if to, err := os.Readlink(p.inData("pg_wal")); err != nil || !strings.HasPrefix(to, wal+restoredWAL) {
		t.Errorf("the restored WAL is in %q, %v", to, err)
	} else if segments := matches(t, to, "00000004????????????????"); len(segments) == 0 {
		t.Error("no WAL is written there")
	}
	if left := matches(t, wal, "00000001????????????????"); len(left) == 0 {
		t.Error("the WAL of the old data has gone")
	}
	// What may be removed one day has no part of the shard.
	if at := value(ctx, t, p, "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'elsewhere'"); !strings.HasPrefix(at, p.dataDir+restoredTablespaces) {
		t.Errorf("the restored tablespace is in %s", at)
	}
	if old, err := os.ReadDir(space); err != nil || len(old) == 0 {
		t.Errorf("the old tablespace: %v, %v", old, err)
	}
	if left, err := filepath.Glob(p.dataDir + beforeRestore + "*/PG_VERSION"); err != nil || len(left) != 1 {
		t.Errorf("the old data: %v, %v", left, err)
	}
}

// A restore for whose WAL there is no place on the disk of the WAL is refused before anything is done.
func TestRestoreWithoutAPlaceForItsWAL(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p, roots, as := attacked(t)
	bootstrapped(ctx, t, p)
	wal := filepath.Join(roots, "wal")
	as("mv", p.inData("pg_wal"), filepath.Join(filepath.Dir(p.dataDir), "wal"))
	must(t, os.Rename(filepath.Join(filepath.Dir(p.dataDir), "wal"), wal))
	as("ln", "-s", wal, p.inData("pg_wal"))
	if err := p.BeginRestore(t.Context(), pg.Restore{Discarded: 1}); err == nil || !strings.Contains(err.Error(), wal) {
		t.Errorf("%v", err)
	}
	if note, err := p.RestoreNote(); note != nil || err != nil {
		t.Errorf("%+v, %v", note, err)
	}
}

// archived waits until what was committed is in the archive: a stop does not wait for it.
func archived(ctx context.Context, t *testing.T, p *Instance) {
	t.Helper()
	segment := value(ctx, t, p, "SELECT pg_walfile_name(pg_switch_wal())")
	testkit.Await(ctx, t, segment+" is archived", func() error {
		if last := value(ctx, t, p, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver"); last < segment {
			return fmt.Errorf("the last one is %q", last)
		}
		return nil
	})
}

// labelIn is that of the only backup in a repository.
func labelIn(ctx context.Context, t *testing.T, p *Instance, options string) string {
	t.Helper()
	out, err := p.Output(ctx, patience, "test", "pgbackrest "+options+" --output=json info")
	must(t, err)
	_, label, _ := strings.Cut(string(out), `"label":"`)
	label, _, _ = strings.Cut(label, `"`)
	return label
}

// What a restore has discarded is reached by another one that follows the timeline which the first
// has left. On the present one PostgreSQL would end where the first restore did, and call that the
// target: that is no success, nor in a new shard that is made of the backup.
func TestRestoreToWhatARestoreHasDiscarded(t *testing.T) {
	if _, err := exec.LookPath("pgbackrest"); err != nil {
		t.Skip("pgbackrest is not installed")
	}
	ctx, dir := testkit.Within(t, 3*patience), newDir(t)
	p, _, options := backedUp(ctx, t, dir)
	b := config.Backup{Stanza: "main", Command: strings.ReplaceAll("pgbackrest "+options, "--stanza=main ", "")}
	label := labelIn(ctx, t, p, options)
	sql(ctx, t, p, "SELECT pg_sleep(1.1)") // pgBackRest counts in seconds
	var after [4]time.Time                 // after each table was made
	for i := 1; i < len(after); i++ {
		sql(ctx, t, p, fmt.Sprintf("CREATE TABLE public.kept%d ()", i))
		after[i] = time.Now()
	}
	archived(ctx, t, p)
	must(t, p.Stop(ctx, Fast))
	restore := func(r pg.Restore) error {
		t.Helper()
		must(t, p.BeginRestore(t.Context(), r))
		must(t, p.SetAside())
		err := p.Restore(ctx, b, r)
		if err != nil {
			must(t, p.PutBack(ctx))
		}
		must(t, p.EndRestore())
		return err
	}
	tables := func(p *Instance) string {
		t.Helper()
		must(t, p.Start(ctx, StartAs{Role: Primary}))
		return value(ctx, t, p, "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relname LIKE 'kept%'")
	}
	must(t, restore(pg.Restore{Target: after[1], Label: label, Timeline: 1, Discarded: 1}))
	if got := tables(p); got != "kept1" {
		t.Fatalf("the first restore has %s", got)
	}
	began := time.Now()
	sql(ctx, t, p, "CREATE TABLE public.kept4 ()")
	later := time.Now()
	sql(ctx, t, p, "CREATE TABLE public.kept5 ()")
	archived(ctx, t, p)
	must(t, p.Stop(ctx, Fast))

	const discarded = "an earlier restore has discarded"
	if err := restore(pg.Restore{Target: after[2], Label: label, Timeline: 2, Discarded: 2}); err == nil || !strings.Contains(err.Error(), discarded) {
		t.Fatalf("on the present timeline: %v", err)
	}
	// What the restored timeline had at its begin, and later, is not discarded.
	for to, want := range map[time.Time]string{began: "kept1", later: "kept1 kept4"} {
		latest := newInstance(t, settings(t, dir, "at"+to.Format("150405.000000")))
		must(t, made(ctx, latest, options, to, ""))
		if got := tables(latest); got != want {
			t.Errorf("the latest timeline at %s has %s, want %s", to, got, want)
		}
		must(t, latest.Stop(ctx, Fast))
	}
	archive := filepath.Join(dir, "archive")
	must(t, os.Mkdir(archive, 0o777))
	must(t, os.Chmod(archive, 0o777)) //nolint:gosec // another user writes into it
	set := settings(t, dir, "another")
	set.Postgres.Parameters["archive_mode"], set.Postgres.Parameters["archive_command"] = "on", "cp %p "+archive+"/%f"
	another := newInstance(t, set)
	if err := made(ctx, another, options, after[2], ""); err == nil || !strings.Contains(err.Error(), discarded) {
		t.Errorf("a new shard on the latest timeline: %v", err)
	}
	must(t, another.Kill(ctx))
	must(t, another.DiscardIncomplete(ctx))
	must(t, made(ctx, another, options, after[2], "--target-timeline=1"))
	// Consul may still know another cluster: until it does not, a standby must not follow this one.
	if early := matches(t, archive, "*"); len(early) > 0 {
		t.Errorf("it has archived %v", early)
	}
	if got := tables(another); got != "kept1 kept2" {
		t.Errorf("the new shard has %s", got)
	}
	must(t, another.Stop(ctx, Fast))

	must(t, restore(pg.Restore{Target: after[2], Label: label, Timeline: 1, Discarded: 2}))
	if got := tables(p); got != "kept1 kept2" {
		t.Errorf("the second restore has %s", got)
	}
	if d, err := p.DataDir(ctx); err != nil || d.Control.Timeline != 3 {
		t.Errorf("it is on timeline %d, %v", d.Control.Timeline, err)
	}
}

// made makes a new shard of a backup, as it was at a moment, and archives into the same stanza.
func made(ctx context.Context, p *Instance, options string, at time.Time, more string) error {
	_, err := p.Bootstrap(ctx, config.Bootstrap{Method: "pgbackrest", Methods: map[string]any{"pgbackrest": map[string]any{
		"command":   fmt.Sprintf("pgbackrest %s --pg1-path=%s --type=time '--target=%s' %s restore", options, p.dataDir, at.UTC().Format("2006-01-02 15:04:05.999999+00"), more),
		"no_params": true, "keep_existing_recovery_conf": true,
	}}})
	if err != nil {
		return err
	}
	return p.FinishBootstrap()
}

// A restore that is broken off while it begins has begun nothing: what earlier ones have left stays as well.
func TestBeginRestoreIsBrokenOff(t *testing.T) {
	p := newInstance(t, settings(t, newDir(t), "a"))
	put(t, p.inData("precious"), "x")
	must(t, p.BeginRestore(t.Context(), pg.Restore{Discarded: 3}))
	must(t, p.SetAside())
	must(t, p.markAs(marker{Kind: markCustom}))
	put(t, p.inData("half"), "x")
	must(t, p.PutBack(within(t)))
	must(t, p.EndRestore())
	left := matches(t, filepath.Dir(p.dataDir), "*"+asideInfix+"*")
	broken, breakOff := context.WithCancel(t.Context())
	breakOff()
	if err := p.BeginRestore(broken, pg.Restore{Discarded: 3}); !errors.Is(err, context.Canceled) {
		t.Errorf("a restore that was broken off has begun: %v", err)
	}
	if note, err := p.RestoreNote(); err != nil || note != nil {
		t.Errorf("the note is %+v, %v", note, err)
	}
	if still := matches(t, filepath.Dir(p.dataDir), "*"+asideInfix+"*"); len(left) != 1 || !slices.Equal(still, left) {
		t.Errorf("of %v there is %v", left, still)
	}
	must(t, p.BeginRestore(t.Context(), pg.Restore{Discarded: 3}))
	if still := matches(t, filepath.Dir(p.dataDir), "*"+asideInfix+"*"); len(still) > 0 {
		t.Errorf("%v is still there", still)
	}
}

// A backup program that hangs is ended by the restore's limit, and the old data are put back.
func TestRestoreThatHangs(t *testing.T) {
	p := newInstance(t, settings(t, newDir(t), "a"))
	put(t, p.inData("precious"), "x")
	must(t, p.BeginRestore(t.Context(), pg.Restore{Discarded: 3}))
	must(t, p.SetAside())
	limit, over := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer over()
	began := time.Now()
	err := p.Restore(limit, config.Backup{Stanza: "main", Command: "sh -c 'sleep 600' hangs"}, pg.Restore{Target: time.Now(), Label: "F", Timeline: 1, Discarded: 3})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > patience {
		t.Errorf("it took %s: %v", time.Since(began), err)
	}
	must(t, p.PutBack(within(t)))
	if _, err := os.Stat(p.inData("precious")); err != nil {
		t.Error(err)
	}
}

// A data directory that cannot be moved aside is refused before anything is noted.
func TestMountPointsStay(t *testing.T) {
	dir := newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	put(t, p.inData("precious"), "x")
	must(t, os.RemoveAll(p.dataDir))
	must(t, os.Symlink("/proc", p.dataDir))
	if err := p.BeginRestore(t.Context(), pg.Restore{Discarded: 3}); err == nil || !strings.Contains(err.Error(), "is a mount point") {
		t.Error(err)
	}
	must(t, os.Remove(p.dataDir))
	put(t, p.inData("pg_wal/wal"), "x")
	if err := unix.Mount("lictor", p.inData("pg_wal"), "tmpfs", 0, "size=1m"); errors.Is(err, unix.EPERM) {
		t.Skip("no right to mount")
	} else if err != nil {
		t.Fatal(err)
	}
	err := p.BeginRestore(t.Context(), pg.Restore{Discarded: 3})
	must(t, unix.Unmount(p.inData("pg_wal"), unix.MNT_DETACH))
	if err == nil || !strings.Contains(err.Error(), "pg_wal is a mount point in") {
		t.Errorf("one inside: %v", err)
	}
	if note, err := p.RestoreNote(); err != nil || note != nil {
		t.Errorf("the note is %+v, %v", note, err)
	}
}

// matches are the files in a directory of a pattern.
func matches(t *testing.T, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	must(t, err)
	return found
}

// A disk that has no room for the restored WAL has as much for that of the old data as before: these are put back. What an agent
// that was killed has left there is known, to be removed with the rest.
func TestRestoredWALThatHasNoRoom(t *testing.T) {
	p := filesOnly(t)
	dir := filepath.Dir(p.dataDir)
	wal, aside := filepath.Join(dir, "wal"), p.dataDir+beforeRestore+"1"
	must(t, os.Mkdir(wal, 0o700))
	must(t, os.Mkdir(aside, 0o700))
	must(t, os.Symlink(wal, filepath.Join(aside, "pg_wal")))
	must(t, os.WriteFile(p.inData("pg_wal/000000010000000000000001"), []byte("WAL"), 0o600))
	must(t, unix.Mkfifo(p.inData("pg_wal/x"), 0o600)) // is not copied
	note := &RestoreNote{Aside: aside, ID: "1"}
	if err := p.placeWAL(note); err == nil {
		t.Fatal("it was moved")
	}
	if left := matches(t, dir, "wal"+restoredWAL+"*"); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	if kept := matches(t, p.dataDir, "pg_wal/0*"); len(kept) != 1 {
		t.Errorf("the restored WAL: %v", kept)
	}
	must(t, os.Remove(p.inData("pg_wal/x")))
	must(t, p.placeWAL(note))
	at := wal + restoredWAL + "1"
	if to, err := os.Readlink(p.inData("pg_wal")); err != nil || to != at || p.outside(note).wal != at {
		t.Errorf("the WAL is in %s, %v; to be removed: %+v", to, err, p.outside(note))
	}
	must(t, os.Remove(p.inData("pg_wal"))) // as if the agent had ended before
	if out := p.outside(note); out.wal != at {
		t.Errorf("to be removed: %+v", out)
	}
}
