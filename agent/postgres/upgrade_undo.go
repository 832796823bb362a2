package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/lictor-ha/lictor/agent/fence"
)

// UndoUpgrade takes back whatever an upgrade has done, wherever it was cut short: the old data come back when the new
// cluster cannot be started any more, and not before. It must not have been
// started but by pg_upgrade: both have the same files. (pg_upgrade's own documentation counts its starts as none: in its mode
// for upgrades nothing writes to the tables.) It is moved aside as a bootstrap that failed is.
func (p *dataUpgrader) UndoUpgrade(ctx context.Context) error {
	note, err := p.UpgradeNote()
	if err != nil || note == nil {
		return err
	}
	dir := note.dir()
	if real, err := p.realDataDir(); err == nil && real != dir {
		return fmt.Errorf("the data directory is %s, noted in %s is %s: nothing is moved", real, p.stateFile("upgrade"), dir)
	}
	newInPlace, err := p.whereIsWhat(note)
	if err != nil {
		return err
	}
	switch { // before anything is ended
	case newInPlace:
		err = p.unstarted(ctx, note, dir)
	case note.Upgraded != "":
		err = p.unstarted(ctx, note, note.Next)
	}
	if err != nil {
		return err
	}
	if err := p.endUpgradePrograms(ctx, note); err != nil {
		return err
	}
	if err := p.removeWork(note); err != nil { // nothing of that is needed any more
		p.log.Error().Err(err).Str("path", note.Work).Msg("pg_upgrade's working directory is left where it is: remove it, a password may be in it")
	}
	made := note.Next
	if newInPlace {
		made = dir
	}
	if err := p.disableUpgraded(note, made); err != nil {
		return err
	}
	if newInPlace {
		if err := p.move(dir, note.Next); err != nil {
			return err
		}
	}
	if err := p.isAt(note.Aside, note.ID); err == nil {
		if err := p.move(note.Aside, dir); err != nil {
			return err
		}
	}
	if err := errors.Join(p.isAt(dir, note.ID), p.keepUpgradeNames(dir)); err != nil {
		return err
	}
	if err := p.giveControlBack(note); err != nil {
		return err
	}
	if err := p.setUpgradedAside(note); err != nil { // nothing of that is needed any more
		p.log.Warn().Err(err).Str("path", note.Next).Msg("what a major upgrade has made is left where it is: remove it when nobody needs it")
	}
	p.log.Warn().Str("data_dir", p.dataDir).Msg("the major upgrade was undone: the data directory is what it was")
	return p.dropUpgradeNote()
}

// whereIsWhat reports whether the new cluster is in the place of the data. Whatever else than the old data or the new
// cluster is there, or is where they should be, somebody else has put there.
func (p *dataUpgrader) whereIsWhat(note *UpgradeNote) (newInPlace bool, err error) {
	dir := note.dir()
	inPlace, err := identity(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist): // between the two renames
		return false, p.isAt(note.Aside, note.ID)
	case err != nil:
		return false, err
	}
	if old, err := sameIdentity(note.ID, inPlace); err != nil || old {
		return false, err
	}
	if new, err := sameIdentity(note.NextID, inPlace); err != nil || !new {
		return false, errors.Join(err, fmt.Errorf("%s is neither the data directory that was upgraded nor the new one, noted in %s: move it elsewhere; the old data were to lie at %s",
			dir, p.stateFile("upgrade"), note.Aside))
	}
	if _, err := p.disk.Lstat(note.Next); !errors.Is(err, fs.ErrNotExist) {
		return true, errors.Join(err, fmt.Errorf("%s is in the way of the new cluster, which has to go back there: move it elsewhere", note.Next))
	}
	return true, p.isAt(note.Aside, note.ID)
}

// endUpgradePrograms ends what an upgrade that was cut short may have left running: pg_upgrade and its children, and
// the servers that it has started.
func (p *dataUpgrader) endUpgradePrograms(ctx context.Context, note *UpgradeNote) error {
	dirs := []string{note.Next}
	if note.Stopped { // else what runs in the old data serves
		dirs = append(dirs, note.dir(), note.Aside)
	}
	for {
		if err := p.killMethods(ctx); err != nil {
			return err
		}
		killed := false
		for _, dir := range dirs {
			if info, err := p.disk.Lstat(dir); err != nil || !info.IsDir() {
				continue
			}
			pids, err := fence.Processes(dir, p.writers()...)
			if err != nil {
				return err
			}
			if len(pids) == 0 {
				continue
			}
			killed = true
			if err := fence.KillProcesses(ctx, dir, p.writers()...); err != nil {
				return fmt.Errorf("the servers of a major upgrade: %w", err)
			}
		}
		if !killed {
			return nil
		}
	}
}

// unstarted fails where the new cluster may have been started since pg_upgrade made it: it would have written to the
// files of the old one.
func (p *dataUpgrader) unstarted(ctx context.Context, note *UpgradeNote, dir string) error {
	switch _, err := p.disk.Lstat(dir); {
	case errors.Is(err, fs.ErrNotExist): // moved away by somebody
		return nil
	case err != nil:
		return fmt.Errorf("the new cluster: %w", err)
	}
	next, why := p.nextInstallation(ctx, note.To, note.BinDir)
	if why != "" {
		return errors.New(why)
	}
	next.dataDir = dir
	if disabled, err := p.disabled(dir); err != nil || disabled { // by a way back that was cut short, after this
		return err
	}
	control, err := next.control(ctx)
	if err != nil {
		return err
	}
	if _, err := p.disk.Lstat(filepath.Join(dir, startedBefore)); err == nil || !errors.Is(err, fs.ErrNotExist) || control.State != shutDown {
		return errors.Join(err, fmt.Errorf("the new cluster in %s was started (it is %s), and has written to the files that it shares with the old data at %s: there is no way back to these. "+
			"If it is the shard's, remove %s", dir, control.State, note.Aside, p.stateFile("upgrade")))
	}
	return nil
}

// startedBefore is a file that each start of PostgreSQL leaves, and that pg_upgrade's are made to forget.
const startedBefore = "postmaster.opts"

// disabled reports whether the control file of a new cluster was put out of the way, and is not back.
func (p *dataUpgrader) disabled(dir string) (bool, error) {
	has, err := there(p.disk.Lstat, filepath.Join(dir, "global", "pg_control"))
	if err != nil || has {
		return false, err
	}
	return there(p.disk.Lstat, filepath.Join(dir, "global", undoneControl))
}

// disableUpgraded puts the control file of the new cluster out of the way: its files are those of the old one, which
// comes back. What pg_upgrade has not worked on yet shares nothing, and what is not there was moved away by somebody.
func (p *dataUpgrader) disableUpgraded(note *UpgradeNote, dir string) error {
	if note.NextID == "" || p.isAt(dir, note.NextID) != nil {
		return nil //nolint:nilerr // whatever is there is not the new cluster
	}
	global := filepath.Join(dir, "global")
	err := p.disk.Rename(filepath.Join(global, "pg_control"), filepath.Join(global, undoneControl))
	switch {
	case err == nil:
		err = p.disk.Sync(global)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	if err != nil && !note.Stopped {
		p.log.Warn().Err(err).Str("path", dir).Msg("what a major upgrade has made can still be started: remove it")
		return nil
	}
	if err != nil {
		return fmt.Errorf("putting the new cluster's control file out of the way, as its files are those of the old data: %w", err)
	}
	return nil
}

// giveControlBack gives the old cluster's control file its name back: pg_upgrade has renamed it, so that nobody starts
// the old one any more.
func (p *dataUpgrader) giveControlBack(note *UpgradeNote) error {
	control := filepath.Join(note.dir(), "global", "pg_control")
	switch _, err := p.disk.Lstat(control); {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the control file: %w", err)
	}
	if err := p.disk.Rename(control+".old", control); err != nil {
		return fmt.Errorf("giving the control file its name back: %w", err)
	}
	if err := p.disk.Sync(filepath.Dir(control)); err != nil {
		return fmt.Errorf("giving the control file its name back: %w", err)
	}
	return nil
}

// setUpgradedAside moves the new cluster to where bootstraps that failed are kept. Its files are links: with it go names,
// and no data.
func (p *dataUpgrader) setUpgradedAside(note *UpgradeNote) error {
	info, err := p.disk.Lstat(note.Next)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("the new cluster: %w", err)
	case note.NextID == "": // it was just made
		if err := p.disk.For(func() error { return p.disk.Remove(note.Next) }, p.dataDir, note.Next); err != nil {
			return fmt.Errorf("%s is in the way of a major upgrade, and was not made by it: move it away: %w", note.Next, err)
		}
		return nil
	case !info.IsDir():
		return fmt.Errorf("%s is not the directory of a major upgrade: move it away", note.Next)
	}
	if err := p.isAt(note.Next, note.NextID); err != nil {
		return err
	}
	_, err = p.renameAside(note.Next, "", false)
	return err
}
