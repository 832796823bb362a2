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
}

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
	if tablespaces != "" {
		switch now.TablespacesID, err = identity(tablespaces); {
		case err == nil:
			now.Tablespaces = tablespaces
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
	if id, err := identity(a.Path); err != nil || id != a.ID {
		return err
	}
	if pids, err := fence.Processes(a.Path, p.writers()...); err != nil || len(pids) > 0 {
		return err
	}
	if err := mayRemove(a.Path); err != nil {
		return err
	}
	if err := p.removeTablespaces(a); err != nil {
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

// removeTablespaces removes those that a restore which was undone has made, before the data that lead
// to them: where these have been moved elsewhere nobody knows who uses them. They are left if they are
// others by now, or if a data directory that is in use leads there.
func (p *dataDirectory) removeTablespaces(a aside) error {
	if a.Tablespaces == "" {
		return nil
	}
	switch info, err := p.disk.Lstat(a.Tablespaces); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("the tablespaces of what was moved aside: %w", err)
	case !info.IsDir() || !strings.Contains(filepath.Base(a.Tablespaces), restoredTablespaces):
		return nil // not ours any more
	}
	if id, err := identity(a.Tablespaces); err != nil || id != a.TablespacesID {
		return err
	}
	entries, err := p.disk.ReadDir(a.Tablespaces)
	if err != nil {
		return fmt.Errorf("the tablespaces of what was moved aside: %w", err)
	}
	for _, path := range append([]string{a.Tablespaces}, below(a.Tablespaces, entries)...) {
		if why := p.usedByOthers(path); why != "" {
			return fmt.Errorf("the tablespaces of what was moved aside, %s: %s", path, why)
		}
	}
	// The data that are put back, and those of earlier restores, lie beside.
	dir, _, _ := strings.Cut(a.Tablespaces, restoredTablespaces)
	links, err := p.disk.Glob(dir + "*/pg_tblspc/*")
	if err != nil {
		return fmt.Errorf("the tablespaces of what was moved aside: %w", err)
	}
	for _, link := range links {
		if to, err := p.disk.EvalSymlinks(link); err == nil && beneath(to, a.Tablespaces) && !beneath(link, a.Path) {
			return fmt.Errorf("the tablespaces of what was moved aside, %s: %s leads there", a.Tablespaces, link)
		}
	}
	if err := mayRemove(a.Tablespaces); err != nil {
		return err
	}
	p.log.Info().Str("path", a.Tablespaces).Msg("removing the tablespaces of an earlier restore that was undone")
	// PostgreSQL's user has made them. Root removes nothing that only a note names.
	if err := p.disk.Do(func() error { return p.disk.RemoveAll(a.Tablespaces) }); err != nil {
		return fmt.Errorf("the tablespaces of what was moved aside: %w", err)
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
