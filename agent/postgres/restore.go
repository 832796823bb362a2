package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file puts a shard back to an earlier moment (design 5.25): the data directory is moved
// aside, never removed, and another one is restored in its place. A note beside it says so
// until that one is the shard's; until then the old one can be put back.

const (
	// beforeRestore stands between the data directory's name and the time.
	beforeRestore = ".before-restore."
	// restoredTablespaces does for the tablespaces of the restored data: they are the shard's,
	// and must not pass for a part of what may be removed one day.
	restoredTablespaces = ".tablespaces."
	// restoredWAL does for the WAL of the restored data, where that of the old ones lies on another disk: beside it.
	restoredWAL = ".restored-wal."
)

// restorer puts a shard back to an earlier moment.
type restorer struct {
	*installation
	*dataDirectory
	*walDir
	*processes
	*customMethods
	*bootstrapper
}

// RestoreNote says beside the data directory that a restore has not ended.
type RestoreNote struct {
	// Discarded and Before are as in pg.Restore.
	Discarded int `json:"discarded"`
	Before    int `json:"before"`
	// Aside is where the old data directory goes, and ID its identity, which a rename does
	// not change.
	Aside string `json:"aside"`
	ID    string `json:"id"`
	// Made is the identity of the restored directory; empty: it is still marked as unfinished
	// work of our own, if there is one.
	Made string `json:"made,omitempty"`
}

// dir is the data directory that was moved aside, as it was called before: what the
// configured one leads to, if that is a link.
func (n *RestoreNote) dir() string {
	dir, _ := n.cut()
	return dir
}

func (n *RestoreNote) tablespaces() string {
	dir, at := n.cut()
	return dir + restoredTablespaces + at
}

func (n *RestoreNote) cut() (dir, at string) {
	i := strings.LastIndex(n.Aside, beforeRestore)
	return n.Aside[:i], n.Aside[i+len(beforeRestore):]
}

// RestoreNote is the note of a restore that has not ended; nil: there is none.
func (p *dataDirectory) RestoreNote() (*RestoreNote, error) {
	content, err := p.disk.ReadFile(p.stateFile("restore"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // no note is no failure
	}
	if err != nil {
		return nil, fmt.Errorf("the note of a restore: %w", err)
	}
	var note RestoreNote
	if err := json.Unmarshal(content, &note); err != nil || note.ID == "" || !strings.Contains(note.Aside, beforeRestore) {
		return nil, fmt.Errorf("the note of a restore, %s, is damaged: put the data directory back by hand if it lies at %s%s*, then remove the note",
			p.stateFile("restore"), p.dataDir, beforeRestore)
	}
	return &note, nil
}

// setAside reports whether what is in the data directory is not what the note is about: the
// old data lie beside it.
func (p *dataDirectory) setAside(note *RestoreNote) (bool, error) {
	if note == nil {
		return false, nil
	}
	about, err := p.isAbout(p.dataDir, note.ID, p.stateFile("restore"))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	return !about, err
}

// RestoreDir is where what is restored will lie: beside the data directory, on its disk.
func (p *dataDirectory) RestoreDir() (string, error) {
	dir, err := p.realDataDir()
	if err != nil {
		return "", fmt.Errorf("the data directory: %w", err)
	}
	return filepath.Dir(dir), nil
}

// BeginRestore notes what a restore is about to do. What an earlier one that failed has left goes
// now, while the shard is served: where this one fails too there is no time for it. Once ctx has ended nothing
// more is removed or noted.
func (p *dataDirectory) BeginRestore(ctx context.Context, r pg.Restore) error {
	dir, err := p.realDataDir()
	if err != nil {
		return fmt.Errorf("the data directory: %w", err)
	}
	if err := movable(dir); err != nil {
		return err
	}
	if _, err := walBeside(p, dir, "x"); err != nil {
		return err
	}
	if upgrade, err := p.UpgradeNote(); err != nil || upgrade != nil {
		return errors.Join(err, errors.New("a major upgrade has not ended"))
	}
	note := RestoreNote{Discarded: r.Discarded, Before: r.Before, Aside: dir + beforeRestore + time.Now().UTC().Format("20060102T150405.000000")}
	if note.ID, err = identity(dir); err != nil {
		return err
	}
	if err := p.removeAsides(ctx, ""); err != nil {
		p.log.Warn().Err(err).Msg("what an earlier restore has left could not be removed")
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the restore was not begun: %w", err)
	}
	return p.writeRestoreNote(note)
}

// walBeside is where the WAL of restored data goes: beside the directory that pg_wal of the old data in dir leads to, on its disk.
// Empty: it is in the data.
func walBeside(p *dataDirectory, dir, at string) (string, error) {
	link := filepath.Join(dir, "pg_wal")
	if !isLink(link) {
		return "", nil
	}
	to, err := p.disk.EvalSymlinks(link)
	switch {
	case errors.Is(err, os.ErrNotExist):
		p.log.Warn().Str("link", link).Msg("the link leads nowhere; the restored WAL will be in the data directory")
		return "", nil
	case err != nil:
		return "", fmt.Errorf("what %s leads to: %w", link, err)
	case beneath(to, dir):
		return "", nil
	}
	mounts, err := mountPoints()
	if err != nil {
		return "", err
	}
	if slices.Contains(mounts, to) || !p.makesFilesIn(filepath.Dir(to)) {
		return "", fmt.Errorf("%s leads to %s, and PostgreSQL's user can make no directory beside that, on its disk, for the restored WAL: let it be a directory below that, or restore beside the shard (--as)", link, to)
	}
	if i := strings.LastIndex(to, restoredWAL); i > 0 {
		to = to[:i]
	}
	return to + restoredWAL + at, nil
}

// placeWAL moves the restored WAL to where walBeside says, unless the restore has made a link itself.
func (p *restorer) placeWAL(note *RestoreNote) error {
	_, at := note.cut()
	to, err := walBeside(p.dataDirectory, note.Aside, at)
	wal := p.inData("pg_wal")
	if err != nil || to == "" || isLink(wal) {
		return err
	}
	switch _, err := p.disk.Lstat(to); {
	case err == nil:
		return fmt.Errorf("moving the restored WAL to %s: that is there already", to)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("moving the restored WAL to %s: %w", to, err)
	}
	if err := p.copyTo(to, wal); err != nil {
		// The old data, which are put back, need the room.
		return fmt.Errorf("moving the restored WAL to %s: %w", to, errors.Join(err, p.disk.Do(func() error { return p.disk.RemoveAll(to) })))
	}
	if err := p.disk.Do(func() error { return errors.Join(p.disk.RemoveAll(wal), os.Symlink(to, wal)) }); err != nil {
		return fmt.Errorf("moving the restored WAL to %s: %w", to, err)
	}
	p.log.Warn().Str("pg_wal", to).Msg("the restored WAL is beside the old one, on its disk")
	if err := p.disk.Sync(to); err != nil {
		return fmt.Errorf("moving the restored WAL to %s: %w", to, err)
	}
	return p.syncDir(p.dataDir)
}

// copyTo copies a directory of PostgreSQL's user's to another disk.
func (p *restorer) copyTo(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target, mode := to+strings.TrimPrefix(path, from), info.Mode().Perm() // which may let the group read
		switch {
		case d.IsDir():
			return p.disk.Mkdir(target, mode)
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is no file", path)
		}
		in, err := p.disk.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := p.disk.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		return errors.Join(err, out.Sync(), out.Close())
	})
}

// outside is what the restored data have outside of them, or would have had, had nobody ended their agent.
func (p *restorer) outside(note *RestoreNote) outsideOfRestore {
	out := outsideOfRestore{tablespaces: note.tablespaces()}
	_, at := note.cut()
	if to, err := p.disk.EvalSymlinks(filepath.Join(note.dir(), "pg_wal")); err == nil && strings.HasSuffix(to, restoredWAL+at) {
		out.wal = to
	} else if to, err := walBeside(p.dataDirectory, note.Aside, at); err == nil {
		out.wal = to
	}
	return out
}

// movable says why a data directory cannot be moved aside.
func movable(dir string) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	if slices.Contains(mounts, dir) {
		return fmt.Errorf("the data directory, %s, is a mount point, and cannot be moved aside: let postgresql.data_dir be a directory below it", dir)
	}
	if err := mountedIn(dir); err != nil {
		return fmt.Errorf("the data directory cannot be moved aside: %w", err)
	}
	return nil
}

func (p *dataDirectory) writeRestoreNote(note RestoreNote) error {
	content, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("the note of a restore: %w", err)
	}
	if err := p.disk.Replace(p.stateFile("restore"), content, 0o600); err != nil {
		return fmt.Errorf("the note of a restore (set lictor.state_dir to a writable directory): %w", err)
	}
	return p.syncDir(p.stateDir)
}

// SetAside moves the data directory to where the note says.
func (p *restorer) SetAside() error {
	note, err := p.RestoreNote()
	if err != nil || note == nil {
		return errors.Join(err, errors.New("nobody has noted that the data directory is to be moved aside"))
	}
	if p.Running() {
		return errors.New("the data directory stays: PostgreSQL runs in it")
	}
	dir, err := p.realDataDir()
	if err != nil {
		return fmt.Errorf("the data directory: %w", err)
	}
	if err := p.disk.For(func() error { return p.disk.Rename(dir, note.Aside) }, p.dataDir, dir); err != nil {
		return fmt.Errorf("moving the data directory aside: %w", err)
	}
	p.log.Warn().Str("moved_to", note.Aside).Msg("the data directory was moved aside for a restore; it is never removed")
	if dir != p.dataDir { // of a link it is the target that was renamed
		if err := p.disk.For(func() error { return p.disk.Mkdir(dir, 0o700) }, p.dataDir, dir); err != nil {
			return fmt.Errorf("making the data directory: %w", err)
		}
		if err := p.restrict(dir); err != nil {
			return err
		}
	}
	return p.keepNames(note)
}

// keepNames makes durable what the directories beside the data are called. The note lies on
// another disk, perhaps: without this it could be gone after a crash, and the new data, too.
func (p *restorer) keepNames(note *RestoreNote) error {
	parent := filepath.Dir(note.dir())
	if err := p.disk.For(func() error { return p.disk.Sync(parent) }, p.dataDir, parent); err != nil {
		return fmt.Errorf("the names in %s: %w", parent, err)
	}
	return nil
}

// Restore makes a data directory out of a backup, recovers it to the target where nobody can
// reach it, promotes it on a timeline above r.Discarded, and stops it.
func (p *restorer) Restore(ctx context.Context, b config.Backup, r pg.Restore) error {
	note, err := p.RestoreNote()
	aside, asideErr := p.setAside(note)
	if err = errors.Join(err, asideErr); err != nil || !aside {
		return errors.Join(err, errors.New("nothing is restored: the data directory was not moved aside"))
	}
	if err := p.killMethods(ctx); err != nil {
		return err
	}
	m := method{name: "pgbackrest", command: b.Command}
	args := []string{
		"--stanza=" + b.Stanza, "--set=" + r.Label, "--pg1-path=" + p.dataDir, "--tablespace-map-all=" + note.tablespaces(),
		"--type=time", "--target=" + r.Target.UTC().Format("2006-01-02 15:04:05.999999+00"), "--target-timeline=" + strconv.Itoa(r.Timeline), "restore",
	}
	if err := p.fill(ctx, "lictor.backup", m, args, marker{Kind: markCustom}); err != nil {
		return err
	}
	control, err := p.restored(ctx)
	if err == nil {
		err = p.refuseBorrowed()
	}
	if err == nil && r.SystemIdentifier != "" && control.SystemIdentifier != r.SystemIdentifier {
		err = fmt.Errorf("the backup is of another cluster (system identifier %s) than the shard's (%s): see lictor.backup.stanza", control.SystemIdentifier, r.SystemIdentifier)
	}
	if err == nil {
		err = p.placeWAL(note)
	}
	if err == nil {
		err = p.skipTimelines(r.Timeline, r.Discarded)
	}
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	run, err := p.prepareRecovery(nil, true)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	// A restore that is undone must leave no timeline in the archive: standbys would follow it.
	run.archivesNothing = true
	if err := p.privately(ctx, control, run, func(string) error {
		if err := p.awaitTarget(ctx, run.recovery, control.Timeline); err != nil {
			return err
		}
		return p.firstCommit(ctx)
	}); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if control, err = p.control(ctx); err != nil {
		return err
	}
	if control.Timeline <= r.Discarded {
		return fmt.Errorf("restore: PostgreSQL was promoted on timeline %d, which is not above %d: it would pass for what is discarded", control.Timeline, r.Discarded)
	}
	if err := p.keepNames(note); err != nil {
		return err
	}
	if note.Made, err = identity(p.dataDir); err != nil {
		return err
	}
	if err := p.writeRestoreNote(*note); err != nil {
		return err
	}
	return p.unmark()
}

// PutBack puts the old data directory back. What a restore has left in its place is moved
// aside, as a bootstrap that failed is.
func (p *restorer) PutBack(ctx context.Context) error {
	note, err := p.RestoreNote()
	if err != nil {
		return err
	}
	switch aside, err := p.setAside(note); {
	case err != nil:
		return err
	case !aside:
		return nil
	}
	now, err := identity(note.Aside)
	old := false
	if err == nil {
		old, err = sameIdentity(note.ID, now)
	}
	switch {
	case errors.Is(err, errUnsureIdentity):
		return fmt.Errorf("%s: %w: if these are the data that a restore has moved there, put them back to %s by hand, then remove %s", note.Aside, err, p.dataDir, p.stateFile("restore"))
	case err != nil || !old:
		return errors.Join(err, fmt.Errorf("%s is not the data directory that a restore has moved there: put that back to %s by hand, then remove %s",
			note.Aside, p.dataDir, p.stateFile("restore")))
	}
	if err := p.Kill(ctx); err != nil {
		return err
	}
	if err := errors.Join(p.killWriters(ctx), p.killMethods(ctx)); err != nil {
		return err
	}
	if err := p.clearPlace(note); err != nil {
		return err
	}
	dir := note.dir()
	if err := p.disk.For(func() error { return p.disk.Rename(note.Aside, dir) }, p.dataDir, dir); err != nil {
		return fmt.Errorf("putting the data directory back: %w", err)
	}
	if err := p.keepNames(note); err != nil {
		return err
	}
	p.log.Warn().Str("data_dir", p.dataDir).Msg("the restore was undone: the data directory was put back")
	return p.unmark()
}

// clearPlace moves aside what a restore has left where the old data were, as a bootstrap that
// failed is. It needs no room: a disk that is full may be why the restore has failed. What is there
// and is neither the old data nor a restore's, somebody else has put there.
func (p *restorer) clearPlace(note *RestoreNote) error {
	dir := note.dir()
	entries, err := p.disk.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("putting the data directory back: %w", err)
	case len(entries) == 0: // where a link leads to there is a new one
		if err := p.disk.For(func() error { return p.disk.Remove(dir) }, p.dataDir, dir); err != nil {
			return fmt.Errorf("putting the data directory back: %w", err)
		}
		return nil
	}
	now, err := identity(dir)
	if err != nil {
		return err
	}
	made, err := sameIdentity(note.Made, now)
	if err != nil {
		return fmt.Errorf("%s: %w: move it elsewhere, and the data that it was to replace are put back from %s; or, if these are the shard's data, remove %s",
			dir, err, note.Aside, p.stateFile("restore"))
	}
	if ours, err := p.marked(); err != nil || ours == nil && !made {
		return errors.Join(err, fmt.Errorf("%s holds what the restore has not made, and the data that it was to replace lie at %s: move it elsewhere, and they are put back; "+
			"or, if these are the shard's data, remove %s", dir, note.Aside, p.stateFile("restore")))
	}
	failed, err := renameRestored(p.dataDirectory, dir, p.outside(note), false)
	if err != nil {
		return err
	}
	p.log.Warn().Str("moved_to", failed).Msg("what the restore has left was moved aside; the next restore removes it")
	return nil
}

// EndRestore drops the note: what is in the data directory is the shard's.
func (p *dataDirectory) EndRestore() error {
	if err := p.disk.Remove(p.stateFile("restore")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("dropping the note of a restore: %w", err)
	}
	return p.syncDir(p.stateDir)
}
