package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/fence"
)

// This file keeps the last bootstrap that failed beside the data directory, for an
// operator to look at, and no more than one: what fails again and again must not fill
// the disk.

// asideInfix stands between the data directory's name and the time.
const asideInfix = ".failed."

// aside is a directory that was moved aside.
type aside struct {
	Path string `json:"path"`
	ID   string `json:"id"` // identity, which a rename does not change
	// Tablespaces are where a restore has put those of the directory, and go with it; empty: there
	// are none.
	Tablespaces   string `json:"tablespaces,omitempty"`
	TablespacesID string `json:"tablespaces_id,omitempty"`
	// WAL is where it has put that, on the disk of the WAL before; empty: it is in the directory.
	WAL   string `json:"wal,omitempty"`
	WALID string `json:"wal_id,omitempty"`
}

// outsideOfRestore is where a restore has put what does not lie in the data directory; empty: there is none.
type outsideOfRestore struct{ tablespaces, wal string }

// moveAside renames the data directory and removes those that were moved aside
// before. Of a link it is the target that is renamed, so that the next one is made on
// the same disk. WAL and tablespaces outside of it are emptied if owns says that they
// are its own: where they are the next one has to be.
func (p *dataDirectory) moveAside(ctx context.Context, systemIdentifier string, owns func(path string) bool) (string, error) {
	dir, err := p.realDataDir()
	if err != nil {
		return "", fmt.Errorf("moving the data directory aside: %w", err)
	}
	out, err := p.outsides(systemIdentifier, owns)
	if err != nil { // nothing of that is needed to make room for the data directory
		p.log.Warn().Err(err).Msg("what the data directory leads to is left as it is")
	}
	defer closeOutsides(out)
	path, err := p.renameAside(dir, "", true)
	if err != nil {
		return "", err
	}
	if err := p.removeAsides(ctx, path); err != nil {
		return "", err
	}
	if err := p.emptyOutside(out); err != nil {
		return "", err
	}
	if dir != p.dataDir {
		make := func() error { return p.disk.Mkdir(dir, 0o700) }
		if err := p.disk.For(make, p.dataDir, dir); err != nil && !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("making the data directory: %w", err)
		}
		if err := p.restrict(dir); err != nil {
			return "", err
		}
	}
	return path, nil
}

// renameAside renames a directory to where those that failed lie. It is noted before it is done: one that is not noted would stay for ever. noted: where that fails
// nothing is done. tablespaces are where a restore has put those of the directory, if there are any:
// they stay there, and are removed with it.
func (p *dataDirectory) renameAside(dir, tablespaces string, noted bool) (string, error) {
	return renameRestored(p, dir, outsideOfRestore{tablespaces: tablespaces}, noted)
}

// renameRestored does that for what a restore has made, with all that lies outside of it.
func renameRestored(p *dataDirectory, dir string, out outsideOfRestore, noted bool) (string, error) {
	id, err := identity(dir)
	if err != nil {
		return "", err
	}
	if err := mayRemove(dir); err != nil { // the next one that fails takes its place
		return "", err
	}
	earlier, err := p.asides()
	if err != nil && noted {
		return "", err
	}
	now := aside{Path: dir + asideInfix + time.Now().UTC().Format("20060102T150405.000000"), ID: id}
	for _, o := range []struct {
		at       string
		path, id *string
	}{{out.tablespaces, &now.Tablespaces, &now.TablespacesID}, {out.wal, &now.WAL, &now.WALID}} {
		if o.at == "" {
			continue
		}
		switch id, err := identity(o.at); {
		case err == nil:
			*o.path, *o.id = o.at, id
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
	}
	note := func(list []aside) error {
		err := p.noteAsides(list)
		if err == nil || noted {
			return err
		}
		p.log.Warn().Err(err).Str("path", now.Path).Msg("it is not noted what was moved aside: remove it when nobody needs it")
		return nil
	}
	if err := note(append(earlier, now)); err != nil {
		return "", err
	}
	if err := p.disk.For(func() error { return p.disk.Rename(dir, now.Path) }, p.dataDir, dir); err != nil {
		return "", errors.Join(fmt.Errorf("moving the data directory aside: %w", err), note(earlier))
	}
	return now.Path, nil
}

// removeAsides removes what was moved aside, but for the one at the path, and for what is left when ctx ends.
func (p *dataDirectory) removeAsides(ctx context.Context, but string) error {
	list, err := p.asides()
	if err != nil {
		return err
	}
	var kept []aside
	for _, a := range list {
		if a.Path == but || ctx.Err() != nil {
			kept = append(kept, a)
		} else if err := p.removeAside(a); err != nil {
			p.log.Warn().Err(err).Str("path", a.Path).Msg("an earlier bootstrap that failed could not be removed")
			kept = append(kept, a)
		}
	}
	if len(kept) == len(list) {
		return nil
	}
	return p.noteAsides(kept)
}

// removeAside removes a directory that was moved aside, if it is still that very one and
// nobody has begun to use it.
func (p *dataDirectory) removeAside(a aside) error {
	switch info, err := p.disk.Lstat(a.Path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("what was moved aside: %w", err)
	case !info.IsDir() || !strings.Contains(filepath.Base(a.Path), asideInfix):
		return nil // not ours any more
	}
	if still, err := isStill(a.Path, a.ID); err != nil || !still {
		return err
	}
	if pids, err := fence.Processes(a.Path, p.writers()...); err != nil || len(pids) > 0 {
		return err
	}
	if err := mayRemove(a.Path); err != nil {
		return err
	}
	if err := p.removeLedTo(a); err != nil {
		return err
	}
	p.log.Info().Str("path", a.Path).Msg("removing an earlier bootstrap that failed")
	// Root removes nothing that only a note names.
	remove := p.disk.Do
	if dir, err := p.realDataDir(); err == nil && strings.HasPrefix(a.Path, dir+asideInfix) {
		remove = func(fn func() error) error { return p.disk.For(fn, p.dataDir, a.Path) }
	}
	if err := remove(func() error { return p.disk.RemoveAll(a.Path) }); err != nil {
		return fmt.Errorf("what was moved aside: %w", err)
	}
	return nil
}

// isStill reports whether a directory is the one that was noted. Where that cannot be told it stays, and its note.
func isStill(dir, noted string) (bool, error) {
	now, err := identity(dir)
	if err != nil {
		return false, err
	}
	still, err := sameIdentity(noted, now)
	if err != nil {
		return false, fmt.Errorf("%s: %w: remove it by hand when nobody needs it", dir, err)
	}
	return still, nil
}

// removeLedTo removes the tablespaces and the WAL that a restore which was undone has made, before the data that lead
// to them: where these have been moved elsewhere nobody knows who uses them. They are left if they are
// others by now, or if a data directory that is in use leads there.
func (p *dataDirectory) removeLedTo(a aside) error {
	// The data that are put back, and those of earlier restores, lie beside.
	dir, _, _ := strings.Cut(a.Path, asideInfix)
	if a.Tablespaces != "" {
		dir, _, _ = strings.Cut(a.Tablespaces, restoredTablespaces)
	}
	return errors.Join(
		removeOutside(p, "tablespaces", a.Tablespaces, a.TablespacesID, restoredTablespaces, dir+"*/pg_tblspc/*", a.Path),
		removeOutside(p, "WAL", a.WAL, a.WALID, restoredWAL, dir+"*/pg_wal", a.Path))
}

// removeOutside removes one of them, which has infix in its name. links are those that could lead there from other data than from's.
func removeOutside(p *dataDirectory, what, path, id, infix, links, from string) error {
	if path == "" {
		return nil
	}
	whose := "the " + what + " of what was moved aside"
	switch info, err := p.disk.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", whose, err)
	case !info.IsDir() || !strings.Contains(filepath.Base(path), infix):
		return nil // not ours any more
	}
	if still, err := isStill(path, id); err != nil || !still {
		return err
	}
	entries, err := p.disk.ReadDir(path)
	if err != nil {
		return fmt.Errorf("%s: %w", whose, err)
	}
	for _, used := range append([]string{path}, below(path, entries)...) {
		if why := p.usedByOthers(used); why != "" {
			return fmt.Errorf("%s, %s: %s", whose, used, why)
		}
	}
	found, err := p.disk.Glob(links)
	if err != nil {
		return fmt.Errorf("%s: %w", whose, err)
	}
	for _, link := range found {
		if to, err := p.disk.EvalSymlinks(link); err == nil && beneath(to, path) && !beneath(link, from) {
			return fmt.Errorf("%s, %s: %s leads there", whose, path, link)
		}
	}
	if err := mayRemove(path); err != nil {
		return err
	}
	p.log.Info().Str("path", path).Msg("removing the " + what + " of an earlier restore that was undone")
	// PostgreSQL's user has made them. Root removes nothing that only a note names.
	if err := p.disk.Do(func() error { return p.disk.RemoveAll(path) }); err != nil {
		return fmt.Errorf("%s: %w", whose, err)
	}
	return nil
}

func below(dir string, entries []fs.DirEntry) []string {
	paths := make([]string, 0, len(entries))
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths
}

// asides are the directories that were moved aside.
func (p *dataDirectory) asides() ([]aside, error) {
	content, err := p.disk.ReadFile(p.stateFile("failed"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("note of what was moved aside: %w", err)
	}
	var list []aside
	if err := json.Unmarshal(content, &list); err != nil {
		return nil, nil //nolint:nilerr // a damaged note names nothing that may be removed
	}
	return list, nil
}

func (p *dataDirectory) noteAsides(list []aside) error {
	content, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("note of what was moved aside: %w", err)
	}
	if err := p.disk.Replace(p.stateFile("failed"), content, 0o600); err != nil {
		return fmt.Errorf("note of what was moved aside (set lictor.state_dir to a writable directory): %w", err)
	}
	return nil
}
