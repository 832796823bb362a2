package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// DataState says what is in the data directory.
type DataState string

// The states of a data directory.
const (
	Empty      DataState = "empty" // missing or empty
	Incomplete DataState = "incomplete"
	Foreign    DataState = "foreign"
	Valid      DataState = "valid"
)

// DataDir is what is in the data directory.
type DataDir struct {
	State DataState
	// Problem says why a foreign directory cannot be used, and what to do.
	Problem string
	Control Control
	// Standby says that it holds a signal file: it would start in recovery.
	Standby bool
}

// The two kinds of unfinished work that a marker can stand for.
const (
	markBootstrap = "bootstrap"
	markClone     = "clone"
)

// DataDir looks at the data directory.
//
// A directory counts as Incomplete only if the marker, made before the work
// began in a directory that was empty, still names this very directory (by
// inode): a directory that was put there since is not ours to touch.
func (p *Instance) DataDir(ctx context.Context) (DataDir, error) {
	entries, err := os.ReadDir(p.dataDir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return DataDir{State: Empty}, nil
	case err != nil:
		return DataDir{State: Foreign, Problem: fmt.Sprintf("it cannot be read: %v", err)}, nil
	}
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Name() == "lost+found" })
	if len(entries) == 0 {
		return DataDir{State: Empty}, nil
	}
	if kind, err := p.marked(); err != nil {
		return DataDir{}, err
	} else if kind != "" {
		control, _ := p.control(ctx) // there may be none yet
		return DataDir{State: Incomplete, Control: control}, nil
	}
	major, err := p.dataMajor()
	switch {
	case err != nil:
		return DataDir{State: Foreign, Problem: p.dataDir + " is not empty and not a PostgreSQL data directory: " +
			"empty it or set postgresql.data_dir to another one"}, nil
	case major != p.major:
		return DataDir{State: Foreign, Problem: fmt.Sprintf("%s was made by PostgreSQL %d, the programs are %d: "+
			"set postgresql.bin_dir to version %d, or upgrade the data with pg_upgrade", p.dataDir, major, p.major, major)}, nil
	}
	control, err := p.control(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return DataDir{}, err
		}
		return DataDir{State: Foreign, Problem: fmt.Sprintf("its control file cannot be read: %v", err)}, nil
	}
	d := DataDir{State: Valid, Control: control}
	for _, name := range []string{"standby.signal", "recovery.signal"} {
		if _, err := os.Stat(filepath.Join(p.dataDir, name)); err == nil {
			d.Standby = true
		}
	}
	return d, nil
}

func (p *Instance) markerPath() string { return p.stateFile("unfinished") }

// mark makes the data directory if need be, checks that it is empty, and notes
// on disk that what will be in it is our own unfinished work.
func (p *Instance) mark(kind string) error {
	if err := os.MkdirAll(p.dataDir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	if err := os.Chmod(p.dataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := p.own(p.dataDir); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.dataDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return fmt.Errorf("the data directory %s is not empty (%s): nothing is put into it", p.dataDir, e.Name())
		}
	}
	id, err := inode(p.dataDir)
	if err != nil {
		return err
	}
	content := fmt.Sprintf("%s %s %s\n", kind, id, p.dataDir)
	if err := renameio.WriteFile(p.markerPath(), []byte(content), 0o600); err != nil {
		return fmt.Errorf("writing the marker of unfinished work (set lictor.state_dir to a writable directory): %w", err)
	}
	return syncDir(p.stateDir)
}

// marked tells what unfinished work of ours the data directory holds, empty for
// none. A marker of another directory does not count.
func (p *Instance) marked() (string, error) {
	content, err := os.ReadFile(p.markerPath())
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("marker of unfinished work: %w", err)
	}
	kind, rest, _ := strings.Cut(strings.TrimSpace(string(content)), " ")
	id, path, _ := strings.Cut(rest, " ")
	now, err := inode(p.dataDir)
	if err != nil {
		return "", err
	}
	if path != p.dataDir || id != now || kind != markBootstrap && kind != markClone {
		return "", nil
	}
	return kind, nil
}

// unmark says that the work is finished: the data directory is from now on as
// sacred as any.
func (p *Instance) unmark() error {
	if err := unix.Unlink(p.markerPath()); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the marker of unfinished work %s: %w", p.markerPath(), err)
	}
	return syncDir(p.stateDir)
}

// DiscardIncomplete clears away what a bootstrap or clone of our own left
// unfinished: a clone is removed, for its source has everything; a bootstrap is
// moved aside. A directory without our marker is never touched.
func (p *Instance) DiscardIncomplete(ctx context.Context) error {
	kind, err := p.marked()
	switch {
	case err != nil:
		return err
	case kind == "":
		return fmt.Errorf("%s holds no unfinished work of ours and is left alone", p.dataDir)
	}
	if err := p.Kill(ctx); err != nil {
		return err
	}
	if kind == markBootstrap {
		aside := p.dataDir + ".failed." + time.Now().UTC().Format("20060102T150405.000")
		if err := os.Rename(p.dataDir, aside); err == nil {
			p.log.Warn().Str("moved_to", aside).Msg("an unfinished bootstrap was moved aside; delete it when you have looked at it")
			return p.unmark()
		}
		// A mount point cannot be renamed: what our own initdb made is emptied.
	}
	if err := p.empty(); err != nil {
		return err
	}
	p.log.Warn().Str("data_dir", p.dataDir).Str("unfinished", kind).Msg("cleared away")
	return p.unmark()
}

// Permission says why a data directory may be removed. Every field must be
// true, or named: the caller vouches for it (docs/design.md, I7).
type Permission struct {
	// NotLeader: the shard has another leader.
	NotLeader bool
	// LeaderReachable: its PostgreSQL has just answered.
	LeaderReachable bool
	// AllowedBy names the setting or the request that asks for it.
	AllowedBy string
}

// RemoveForReinit empties the data directory of a member that is to be cloned
// anew. From the first file on it is marked as unfinished.
func (p *Instance) RemoveForReinit(ctx context.Context, allowed Permission) error {
	switch {
	case !allowed.NotLeader:
		return errors.New("the data directory stays: this member is, or may be, the leader")
	case !allowed.LeaderReachable:
		return errors.New("the data directory stays: the leader does not answer, so there is nothing to clone from")
	case allowed.AllowedBy == "":
		return errors.New("the data directory stays: nobody asked for its removal")
	}
	if d, err := p.DataDir(ctx); err != nil {
		return err
	} else if d.State == Foreign {
		return fmt.Errorf("the data directory stays: %s", d.Problem)
	} else if d.State == Empty {
		return nil
	}
	if pid := p.process.pid(); pid != 0 {
		return fmt.Errorf("the data directory stays: PostgreSQL (pid %d) runs in it", pid)
	}
	if err := p.killLeftovers(ctx); err != nil {
		return err
	}
	id, err := inode(p.dataDir)
	if err != nil {
		return err
	}
	content := fmt.Sprintf("%s %s %s\n", markClone, id, p.dataDir)
	if err := renameio.WriteFile(p.markerPath(), []byte(content), 0o600); err != nil {
		return fmt.Errorf("writing the marker of unfinished work (set lictor.state_dir to a writable directory): %w", err)
	}
	p.log.Warn().Str("data_dir", p.dataDir).Str("allowed_by", allowed.AllowedBy).Msg("removing the data directory's content to clone it anew")
	if err := p.empty(); err != nil {
		return err
	}
	return p.unmark()
}

// empty removes what is in the data directory but not the directory, which may
// be a mount point or a link. Links inside are removed, not followed: what
// tablespaces point at stays.
func (p *Instance) empty() error {
	entries, err := os.ReadDir(p.dataDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() == "lost+found" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(p.dataDir, e.Name())); err != nil {
			return fmt.Errorf("emptying the data directory: %w", err)
		}
	}
	return nil
}

// inode names a directory for as long as it exists.
func inode(dir string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("data directory %s: %w", dir, err)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("state directory %s: %w", dir, err)
	}
	return nil
}
