package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dataDirectory is the data directory as files, while no PostgreSQL runs in it.
type dataDirectory struct {
	*installation
	*records
}

// DataState says what is in the data directory.
type DataState string

// The states of a data directory.
const (
	Empty      DataState = "empty" // missing or empty
	Incomplete DataState = "incomplete"
	// Bootstrapped: our own bootstrap has ended well, FinishBootstrap is still to come.
	Bootstrapped DataState = "bootstrapped"
	Foreign      DataState = "foreign"
	Valid        DataState = "valid"
	// SetAside: a restore has not ended, and the data that it was to replace lie beside.
	SetAside DataState = "set aside"
	// Upgrading: a major upgrade has not ended, and PostgreSQL was stopped for it.
	Upgrading DataState = "upgrading"
)

// DataDir is what is in the data directory.
type DataDir struct {
	State DataState
	// Problem says why a foreign directory cannot be used, and what to do.
	Problem string
	Control Control
	// Standby says that it holds a signal file: it would start in recovery.
	Standby bool
	// Clone says that what is incomplete is a clone.
	Clone bool
}

// The kinds of unfinished work that a marker can stand for.
const (
	markBootstrap = "bootstrap"
	markClone     = "clone"
	// markCustom is a bootstrap by the operator's own method: unlike initdb it may
	// bring a cluster that was made long ago.
	markCustom = "custom bootstrap"
)

// DataDir looks at the data directory.
//
// A directory counts as Incomplete only if the marker, made before the work
// began in a directory that was empty, still names this very directory and
// nothing in it is older or of another cluster: what was put there since is not
// ours to touch.
func (p *dataDirectory) DataDir(ctx context.Context) (DataDir, error) {
	note, err := p.RestoreNote()
	if err != nil {
		return DataDir{State: Foreign, Problem: err.Error()}, nil //nolint:nilerr // that is what is wrong with it
	}
	switch aside, err := p.setAside(note); {
	case err != nil:
		return DataDir{State: Foreign, Problem: fmt.Sprintf("it cannot be read: %v", err)}, nil
	case aside:
		return DataDir{State: SetAside}, nil
	}
	switch upgrade, err := p.UpgradeNote(); {
	case err != nil:
		return DataDir{State: Foreign, Problem: err.Error()}, nil //nolint:nilerr // that is what is wrong with it
	case upgrade != nil && (upgrade.Stopped || p.isAt(upgrade.dir(), upgrade.ID) != nil):
		// Of old and new cluster only one may ever be started.
		return DataDir{State: Upgrading, Control: Control{SystemIdentifier: upgrade.SystemIdentifier}}, nil //nolint:nilerr // what is there instead the way back tells
	}
	entries, err := p.disk.ReadDir(p.dataDir)
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
	switch found, control, err := p.unfinished(ctx); {
	case errors.Is(err, errNotOurs):
		return DataDir{State: Foreign, Problem: err.Error()}, nil
	case err != nil:
		return DataDir{}, err
	case found != nil && found.Kind == markClone:
		// What a clone has copied so far says nothing about the clone.
		return DataDir{State: Incomplete, Clone: true}, nil
	case found != nil && found.Finished && control.SystemIdentifier == found.SystemIdentifier:
		return p.whole(DataDir{State: Bootstrapped, Control: control}), nil
	case found != nil:
		return DataDir{State: Incomplete, Control: control}, nil
	}
	major, err := p.dataMajor()
	switch {
	case errors.Is(err, os.ErrPermission):
		return DataDir{State: Foreign, Problem: fmt.Sprintf("PostgreSQL's user cannot read it: %v", err)}, nil
	case err != nil:
		//nolint:nilerr // that there is no PG_VERSION is the finding
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
	return p.whole(DataDir{State: Valid, Control: control}), nil
}

// whole is a data directory with all that belongs to one. Where nobody can tell whether it is a standby's, nothing
// is started on it.
func (p *dataDirectory) whole(d DataDir) DataDir {
	standby, err := p.hasSignalFile()
	if err != nil {
		return DataDir{State: Foreign, Problem: err.Error()}
	}
	d.Standby = standby
	return d
}

// hasSignalFile reports whether PostgreSQL would start in recovery.
func (p *dataDirectory) hasSignalFile() (bool, error) {
	standby, err := p.exists("standby.signal")
	if err != nil || standby {
		return standby, err
	}
	return p.exists("recovery.signal")
}

func (p *dataDirectory) markerPath() string { return p.stateFile("unfinished") }

// marker says whose unfinished work a data directory holds.
type marker struct {
	Kind    string    `json:"kind"`
	DataDir string    `json:"data_dir"`
	ID      string    `json:"id"` // identity; empty: a method has still to make it
	Made    time.Time `json:"made"`
	// SystemIdentifier is that of the cluster which is cloned, or was bootstrapped.
	SystemIdentifier string `json:"system_identifier,omitempty"`
	// Finished: the bootstrap has ended well.
	Finished bool `json:"finished,omitempty"`
	// Method: a program of the operator's has filled it, or was to.
	Method bool `json:"method,omitempty"`
	// Began is when the data directory was seen empty, or its content was left to a
	// method that keeps it.
	Began time.Time `json:"began,omitzero"`
	// Own are the directories to which it led at that time.
	Own []string `json:"own,omitempty"`
}

// owns reports whether a directory to which the data directory leads is its own.
// PostgreSQL's own programs put WAL and tablespaces only where nothing was; a program of
// the operator's may have copied the links of a data directory that lives elsewhere.
func (m marker) owns(path string) bool {
	return !m.Method && m.Kind != markCustom || slices.Contains(m.Own, path)
}

// everything: nobody but this member has made the links of the data directory.
func everything(string) bool { return true }

// errNotOurs: there is a marker, but what is in the directory contradicts it.
var errNotOurs = errors.New("it does not hold what its marker says")

// clockSlack is how far the clock may have been set back between the writing of
// a marker and the initdb after it.
const clockSlack = 10 * time.Minute

// clocksDiffer is how far a file system's clock may be behind.
const clocksDiffer = time.Second

// mark checks that the data directory is empty, makes it if need be, and notes
// on disk that what will be in it is our own unfinished work.
func (p *dataDirectory) mark(kind, systemIdentifier string) error {
	return p.markAs(marker{Kind: kind, SystemIdentifier: systemIdentifier})
}

func (p *dataDirectory) markAs(m marker) error {
	// First of all: what is somebody else's must not even change its owner.
	entries, err := p.disk.ReadDir(p.dataDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return fmt.Errorf("the data directory %s is not empty (%s): nothing is put into it", p.dataDir, e.Name())
		}
	}
	if err := p.makeDataDir(); err != nil {
		return err
	}
	m.Made = time.Now().UTC()
	m.Began = m.Made
	return p.keepMarker(m)
}

// makeDataDir makes the data directory, or the one that a link of this name
// points at, PostgreSQL's own.
func (p *dataDirectory) makeDataDir() error {
	if err := p.disk.MkdirAll(filepath.Dir(p.dataDir), 0o755); err != nil {
		return fmt.Errorf("making the data directory's parent: %w", err)
	}
	if err := p.disk.Mkdir(p.dataDir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making the data directory (make it yourself, or set postgresql.data_dir): %w", err)
	}
	return p.restrict(p.dataDir)
}

// realDataDir is the data directory without links.
func (p *dataDirectory) realDataDir() (dir string, err error) {
	err = p.disk.For(func() (err error) { dir, err = filepath.EvalSymlinks(p.dataDir); return err }, p.dataDir)
	return dir, err
}

func (p *dataDirectory) writeMarker(kind, systemIdentifier string) error {
	return p.keepMarker(marker{Kind: kind, Made: time.Now().UTC(), SystemIdentifier: systemIdentifier})
}

// markFinished notes on disk that the bootstrap has ended well: whoever looks next has
// only Consul to tell.
func (p *dataDirectory) markFinished(systemIdentifier string) error {
	m, err := p.marked()
	if err != nil {
		return err
	}
	if m == nil {
		return fmt.Errorf("the marker of unfinished work %s has gone, or the data directory is another one now", p.markerPath())
	}
	m.SystemIdentifier, m.Finished = systemIdentifier, true
	return p.keepMarker(*m)
}

// keepMarker writes a marker for the data directory that is there.
func (p *dataDirectory) keepMarker(m marker) error {
	id, err := identity(p.dataDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	m.DataDir, m.ID = p.dataDir, id
	content, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("marker of unfinished work: %w", err)
	}
	if err := p.makeStateDir(); err != nil {
		return err
	}
	if m.Kind == markClone {
		if err := p.noteLoss(); err != nil {
			return err
		}
	}
	if err := p.disk.Replace(p.markerPath(), content, 0o600); err != nil {
		return fmt.Errorf("writing the marker of unfinished work (set lictor.state_dir to a writable directory): %w", err)
	}
	// A rewind that was cut short concerned what was here before.
	if err := p.forgetRewind(); err != nil {
		return err
	}
	return p.syncDir(p.stateDir)
}

// marked reads the marker; nil if there is none, or if it is another
// directory's.
func (p *dataDirectory) marked() (*marker, error) {
	content, err := p.disk.ReadFile(p.markerPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // no marker is no failure
	}
	if err != nil {
		return nil, fmt.Errorf("marker of unfinished work: %w", err)
	}
	var m marker
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, fmt.Errorf("the marker of unfinished work %s is damaged; remove it if the data directory is in order: %w", p.markerPath(), err)
	}
	if m.DataDir != p.dataDir {
		return nil, nil //nolint:nilnil // another directory's marker
	}
	about, err := p.isAbout(p.dataDir, m.ID, p.markerPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // what it was about is gone
	}
	if err != nil {
		return nil, err
	}
	if m.ID == "" {
		born, err := birth(p.dataDir)
		if err != nil {
			return nil, err
		}
		if born.Before(m.Made.Add(-clocksDiffer)) {
			return nil, nil //nolint:nilnil // it was moved there
		}
		return &m, nil
	}
	if !about || !slices.Contains([]string{markBootstrap, markClone, markCustom}, m.Kind) {
		return nil, nil //nolint:nilnil // another directory's marker
	}
	return &m, nil
}

// unfinished tells what unfinished work of ours the data directory holds, nil
// for none. A cluster that was made before the marker of its bootstrap, or that
// is not the one of which the marker says that it was being cloned, is somebody's
// data: an operator has put it there.
func (p *dataDirectory) unfinished(ctx context.Context) (*marker, Control, error) {
	m, err := p.marked()
	if err != nil || m == nil {
		return nil, Control{}, err
	}
	control, err := p.control(ctx)
	if err != nil {
		return m, Control{}, ctx.Err() // there may be none yet
	}
	older := m.Kind == markBootstrap && control.made().Before(m.Made.Add(-clockSlack))
	other := m.SystemIdentifier != "" && m.SystemIdentifier != control.SystemIdentifier
	if older || other {
		return nil, control, fmt.Errorf("%w: %s says that a %s was left unfinished in %s, where there is another cluster (system identifier %s) now: "+
			"remove that file if the cluster is to be used, or else empty the directory", errNotOurs, p.markerPath(), m.Kind, p.dataDir, control.SystemIdentifier)
	}
	return m, control, nil
}

// unmark says that the work is finished: the data directory is from now on as
// sacred as any.
func (p *dataDirectory) unmark() error {
	if err := p.disk.Remove(p.markerPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the marker of unfinished work %s: %w", p.markerPath(), err)
	}
	return p.syncDir(p.stateDir)
}

// DiscardIncomplete clears away what a bootstrap or clone of our own left
// unfinished: a clone is removed, for its source has everything; a bootstrap is
// moved aside, in the place of the one before. A directory without our marker is
// never touched.
func (p *Instance) DiscardIncomplete(ctx context.Context) error {
	m, control, err := p.unfinished(ctx)
	switch {
	case err != nil:
		return err
	case m == nil:
		return fmt.Errorf("%s holds no unfinished work of ours and is left alone", p.dataDir)
	}
	if err := p.Kill(ctx); err != nil {
		return err
	}
	if err := errors.Join(p.killWriters(ctx), p.killMethods(ctx)); err != nil {
		return err
	}
	if err := p.disk.Remove(p.stateFile("pwfile")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing what initdb was given: %w", err)
	}
	if m.Kind != markClone || m.ID == "" { // nobody has seen who made that one
		aside, err := p.moveAside(ctx, cmp.Or(m.SystemIdentifier, control.SystemIdentifier), m.owns)
		if err == nil {
			p.log.Warn().Str("moved_to", aside).Msg("an unfinished data directory was moved aside; the next one that fails takes its place")
			return p.unmark()
		}
		if stuck := new(os.LinkError); !errors.As(err, &stuck) || m.ID == "" {
			return err
		}
		// A mount point cannot be renamed: what our own initdb made is emptied.
	}
	if err := p.empty(cmp.Or(m.SystemIdentifier, control.SystemIdentifier), m.owns); err != nil {
		return err
	}
	p.log.Warn().Str("data_dir", p.dataDir).Str("unfinished", m.Kind).Msg("cleared away")
	return p.unmark()
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
	d, err := p.DataDir(ctx)
	switch {
	case err != nil:
		return err
	case d.State == Foreign:
		return fmt.Errorf("the data directory stays: %s", d.Problem)
	case d.State == SetAside:
		return errors.New("the data directory stays: a restore has not ended, and its old data are put back first")
	case d.State == Upgrading:
		return errors.New("the data directory stays: a major upgrade has not ended, and is undone first")
	case d.State == Empty:
		return nil
	case d.State == Valid && allowed.Version == 0 && d.Control.SystemIdentifier != allowed.Shard:
		return fmt.Errorf("the data directory stays: it has the data of another cluster (system identifier %s, that of the shard is %s); "+
			"if nobody needs them move them away by hand, and a copy is made", d.Control.SystemIdentifier, cmp.Or(allowed.Shard, "not known"))
	}
	if err := p.refuseUpgrading(); err != nil {
		return fmt.Errorf("the data directory stays: %w", err)
	}
	// Somebody else may have started one.
	if !p.Running() {
		if _, err := p.Adopt(ctx); err != nil {
			return err
		}
	}
	if pid := p.process.pid(); pid != 0 {
		return fmt.Errorf("the data directory stays: PostgreSQL (pid %d) runs in it", pid)
	}
	if err := p.killWriters(ctx); err != nil {
		return err
	}
	if p.major > p.configuredMajor { // the next run of the agent finds no data that say so
		if err := p.noteVersion(p.major); err != nil {
			return err
		}
	}
	switch {
	case allowed.Version != 0 && d.State == Valid:
		if err := p.setSuperseded(ctx, allowed.Version); err != nil {
			return fmt.Errorf("the data directory stays: %w", err)
		}
		return nil
	case d.Clone && p.KeepsData():
		p.log.Warn().Str("data_dir", p.dataDir).Str("allowed_by", allowed.AllowedBy).Msg("what an unfinished clone has left is used again")
		return p.killMethods(ctx)
	case d.State == Incomplete: // its marker knows what of it is ours
		return p.DiscardIncomplete(ctx)
	}
	own, err := p.mayEmpty(d.Control.SystemIdentifier)
	if err != nil {
		return fmt.Errorf("the data directory stays: %w", err)
	}
	now := time.Now().UTC()
	if err := p.keepMarker(marker{Kind: markClone, Made: now, SystemIdentifier: d.Control.SystemIdentifier, Began: now, Own: own}); err != nil {
		return err
	}
	if p.KeepsData() {
		p.log.Warn().Str("data_dir", p.dataDir).Str("allowed_by", allowed.AllowedBy).Msg("the data directory's content is left to a method of create_replica_methods that keeps it")
		return nil
	}
	p.log.Warn().Str("data_dir", p.dataDir).Str("allowed_by", allowed.AllowedBy).Msg("removing the data directory's content to clone it anew")
	if err := p.empty(d.Control.SystemIdentifier, everything); err != nil {
		return err
	}
	return p.unmark()
}

// empty removes what is in the data directory but not the directory, which may
// be a mount point or a link. WAL and tablespaces to which it has links go with it
// (outside.go) if owns says so; other links are removed, not followed.
func (p *dataDirectory) empty(systemIdentifier string, owns func(path string) bool) error {
	if err := mayRemove(p.dataDir); err != nil {
		return err
	}
	out, err := p.outsides(systemIdentifier, owns)
	if err != nil {
		return err
	}
	defer closeOutsides(out)
	if err := p.emptyOutside(out); err != nil {
		return err
	}
	entries, err := p.disk.ReadDir(p.dataDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() == "lost+found" {
			continue
		}
		if err := p.disk.RemoveAll(filepath.Join(p.dataDir, e.Name())); err != nil {
			return fmt.Errorf("emptying the data directory: %w", err)
		}
	}
	return nil
}

// identity names a directory for as long as it exists: by its inode and, since
// file systems use a freed inode again at once, by when it was made. The device's
// number may be another one after a boot; it counts only where the file system
// does not know the time.
func identity(dir string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", fmt.Errorf("data directory %s: %w", dir, err)
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return fmt.Sprintf("%d:%d:%d", st.Dev_major, st.Dev_minor, st.Ino), nil
	}
	return fmt.Sprintf("%d@%d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec), nil
}

// errUnsureIdentity: a note is about the directory that is there, or about one that had its inode before.
var errUnsureIdentity = errors.New("it cannot be told whether a note is about the directory that is there now, as its file system does not tell when that was made, " +
	"and its device has another number than when the note was written")

// sameIdentity reports whether two identities are of one directory.
func sameIdentity(noted, now string) (bool, error) {
	inode := func(id string) (inode string, born bool) {
		if at := strings.IndexByte(id, '@'); at >= 0 {
			return id[:at], true
		}
		return id[strings.LastIndexByte(id, ':')+1:], false
	}
	before, bornBefore := inode(noted)
	after, bornAfter := inode(now)
	switch {
	case noted == now:
		return true, nil
	case before != after, bornBefore && bornAfter:
		return false, nil
	default:
		return false, errUnsureIdentity
	}
}

// isAbout reports whether a note, by the identity in it, is about a directory.
func (p *installation) isAbout(dir, noted, note string) (bool, error) {
	now, err := identity(dir)
	if err != nil {
		return false, err
	}
	same, err := sameIdentity(noted, now)
	if err != nil {
		return false, fmt.Errorf("%w: %s, %s there and %s at %s; remove that file if that directory is in order, or have it made anew", err, note, noted, now, dir)
	}
	return same, nil
}

// birth is when a directory was made.
func birth(dir string) (time.Time, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_BTIME, &st); err != nil {
		return time.Time{}, fmt.Errorf("data directory %s: %w", dir, err)
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return time.Time{}, fmt.Errorf("%w: a method was to make %s, and the file system does not tell when it was made: empty it", errNotOurs, dir)
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)), nil
}

// makeStandby makes the data directory that of a standby, for good.
func (p *dataDirectory) makeStandby() error {
	if err := p.setSignalFile(Replica); err != nil {
		return err
	}
	return p.syncDir(p.dataDir)
}

// setSignalFile makes the data directory that of a standby, or of a primary.
func (p *dataDirectory) setSignalFile(role Role) error {
	if role == Replica {
		return p.writeFile(p.inData("standby.signal"), "")
	}
	for _, name := range []string{"standby.signal", "recovery.signal"} {
		if err := p.disk.Remove(p.inData(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("making the data directory a primary's: %w", err)
		}
	}
	return nil
}
