package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file makes data of a later major version out of this member's (design 5.31, steps 1 and 3 to 5): in a
// directory beside them, of hard links. No data directory is removed: the old one is moved aside, and until the new
// cluster was started it can be put back. A note beside the data says where what is. Nothing but this file's
// functions may start anything while there is one.
//
//	BeginUpgrade    the note, and an empty cluster beside the data, while PostgreSQL serves
//	UpgradeData     pg_upgrade, and the next timeline; PostgreSQL was shut down
//	PlaceUpgraded   the old directory moves aside, the new one takes its place
//	NoteAnnouncement  Consul is about to be told of the new cluster
//	UndoUpgrade     all of that is taken back, wherever it was cut short
//	EndUpgrade      the note goes; the old directory stays where it is
//
// Where one of them fails, UndoUpgrade is to be called: it is what a later run of the agent does, too.

const (
	// beforeUpgrade and upgradedInfix stand between the data directory's name and the time.
	beforeUpgrade = ".before-upgrade."
	upgradedInfix = ".upgraded."
	// upgradeWork begins the name of pg_upgrade's working directory.
	upgradeWork = "lictor-upgrade-"
	// undoneControl is the control file of a new cluster that is not to be started any more.
	undoneControl = "pg_control.undone"
	// initdbConf is the new cluster's postgresql.conf as initdb made it, while pg_upgrade has another one.
	initdbConf = "postgresql.conf.initdb"
	// upgradedBy begins the reason in the history of a timeline that an upgrade began.
	upgradedBy = "major upgrade by lictor"
)

// dataUpgrader makes data of a later major version.
type dataUpgrader struct {
	*installation
	*dataDirectory
	*processes
	*customMethods
	*upgrader
}

// UpgradeNote says beside the data directory that a major upgrade has not ended.
type UpgradeNote struct {
	From int `json:"from"`
	To   int `json:"to"`
	// BinDir has the programs of the new version.
	BinDir string `json:"bin_dir"`
	// Aside is where the old data directory goes, and ID its identity, which a rename does not change.
	Aside string `json:"aside"`
	ID    string `json:"id"`
	// Next is where the new cluster is made, and NextID the identity of that directory; empty: it is not
	// made yet.
	Next   string `json:"next"`
	NextID string `json:"next_id,omitempty"`
	// SystemIdentifier is the old cluster's, Timeline the new one's.
	SystemIdentifier string `json:"system_identifier"`
	Timeline         int    `json:"timeline"`
	// Archives: PostgreSQL archived its WAL.
	Archives bool `json:"archives,omitempty"`
	// Stopped: PostgreSQL was shut down for it. What runs in the data directory since then was started by
	// pg_upgrade, and before that it is the shard's primary.
	Stopped bool `json:"stopped,omitempty"`
	// Work is pg_upgrade's working directory, with the superuser's password in it, and WorkID its identity.
	Work   string `json:"work,omitempty"`
	WorkID string `json:"work_id,omitempty"`
	// Upgraded is the new cluster's system identifier; empty: it is not whole yet.
	Upgraded string `json:"upgraded,omitempty"`
	// Index is that of the status which the announcement of the new cluster replaces; zero: none was sent.
	Index uint64 `json:"index,omitempty"`
}

// dir is the data directory, whatever link leads there.
func (n *UpgradeNote) dir() string { return n.Aside[:strings.LastIndex(n.Aside, beforeUpgrade)] }

// valid reports whether the note names directories beside the data, and nothing else.
func (n *UpgradeNote) valid() bool {
	if n.ID == "" || n.SystemIdentifier == "" || !filepath.IsAbs(n.Aside) || !strings.Contains(n.Aside, beforeUpgrade) {
		return false
	}
	if n.Work != "" && (!filepath.IsAbs(n.Work) || !strings.HasPrefix(filepath.Base(n.Work), upgradeWork)) {
		return false
	}
	at, fits := strings.CutPrefix(n.Next, n.dir()+upgradedInfix)
	return fits && at != "" && !strings.Contains(at, "/") && n.Aside == n.dir()+beforeUpgrade+at
}

// UpgradeNote is the note of a major upgrade that has not ended; nil: there is none.
func (p *dataDirectory) UpgradeNote() (*UpgradeNote, error) {
	content, err := p.disk.ReadFile(p.stateFile("upgrade"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // no note is no failure
	}
	if err != nil {
		return nil, fmt.Errorf("the note of a major upgrade: %w", err)
	}
	var note UpgradeNote
	if err := json.Unmarshal(content, &note); err != nil || !note.valid() {
		return nil, fmt.Errorf("the note of a major upgrade, %s, is damaged: put the data directory back by hand if it lies at %s%s*, then remove the note",
			p.stateFile("upgrade"), p.dataDir, beforeUpgrade)
	}
	return &note, nil
}

func (p *dataDirectory) writeUpgradeNote(note UpgradeNote) error {
	content, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("the note of a major upgrade: %w", err)
	}
	if err := p.disk.Replace(p.stateFile("upgrade"), content, 0o600); err != nil {
		return fmt.Errorf("the note of a major upgrade (set lictor.state_dir to a writable directory): %w", err)
	}
	return p.syncDir(p.stateDir)
}

// refuseUpgrading fails while the note of a major upgrade is there: only this file's functions may start, replace or
// remove anything then.
func (p *dataDirectory) refuseUpgrading() error {
	switch note, err := p.UpgradeNote(); {
	case err != nil:
		return err
	case note != nil:
		return fmt.Errorf("a major upgrade to PostgreSQL %d has not ended, as %s says", note.To, p.stateFile("upgrade"))
	}
	return nil
}

// analyzesMissingSince is the version that can make the statistics alone that are missing: pg_upgrade carries the rest over.
const analyzesMissingSince = 18

// Analyze makes the statistics of all databases, coarse ones first, as an upgraded cluster has none.
func (p *dataUpgrader) Analyze(ctx context.Context) error {
	work, err := p.temporaryDir(upgradeWork)
	if err != nil {
		return fmt.Errorf("statistics: %w", err)
	}
	defer p.disk.RemoveAll(work)
	super, env := p.local.Load().Authentication.Superuser, []string{"LC_ALL=C"}
	if super.Password != "" {
		passfile := filepath.Join(work, "pgpass")
		if err := p.writeFile(passfile, "*:*:*:*:"+strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(super.Password)+"\n"); err != nil {
			return err
		}
		env = append(env, "PGPASSFILE="+passfile)
	}
	args := []string{"--all", "--analyze-in-stages", "--no-password", "--host=" + p.upgrader.address(), "--port=" + strconv.Itoa(p.port), "--username=" + super.Username}
	if p.major >= analyzesMissingSince {
		args = append(args, "--missing-stats-only")
	}
	if _, _, err := p.runIn(ctx, work, env, "vacuumdb", args...); err != nil {
		return fmt.Errorf("statistics: %w", err)
	}
	return nil
}

// programsOfData are the programs of the version that the data are of, or are to be copied from, where the shard was
// upgraded to a later one than that of the configuration's: no line of it has to change in the middle of an upgrade. nil:
// those of the configuration are used.
func (p *dataUpgrader) programsOfData(ctx context.Context) *installation {
	note, err := p.UpgradeNote()
	major, majorErr := p.dataMajor()
	said := p.laterBin
	switch {
	case err != nil:
		return nil // a look at the data directory tells
	case errors.Is(majorErr, fs.ErrNotExist):
		major = p.notedVersion()
	case majorErr != nil:
		return nil
	case note != nil && (note.Index == 0 || p.isAt(note.dir(), note.NextID) != nil): // it is taken back
		return nil
	case note != nil:
		said = note.BinDir
	}
	if major <= p.major {
		return nil
	}
	later, why := p.nextInstallation(ctx, major, said)
	if why != "" {
		p.log.Warn().Int("version", major).Str("reason", why).Msg("the data are of a later version than the programs")
		return nil
	}
	p.log.Info().Int("version", major).Str("bin_dir", later.local.Load().BinDir).Msg("the shard was upgraded: its version's programs are used; name them in postgresql.bin_dir")
	return later
}

// notedVersion is the major version of which the data are to be that are copied into the empty place; zero: that of the
// configuration's programs.
func (p *records) notedVersion() int {
	content, err := p.disk.ReadFile(p.stateFile("version"))
	if err != nil {
		return 0
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0
	}
	return major
}

func (p *records) noteVersion(major int) error {
	if err := p.disk.Replace(p.stateFile("version"), []byte(strconv.Itoa(major)+"\n"), 0o600); err != nil {
		return fmt.Errorf("noting of which version the data will be (set lictor.state_dir to a writable directory): %w", err)
	}
	return p.syncDir(p.stateDir)
}

// setSuperseded moves data aside that are from before the shard's upgrade to a major version: they may be the last ones of
// the old cluster as it was. What is copied into their place needs that version's programs.
func (p *Instance) setSuperseded(ctx context.Context, to int) error {
	if _, why := p.nextInstallation(ctx, to, p.laterBin); to != p.major && why != "" {
		return errors.New(why)
	}
	dir, err := p.realDataDir()
	if err != nil {
		return fmt.Errorf("the data directory: %w", err)
	}
	if err := movable(dir); err != nil {
		return err
	}
	if err := p.noteVersion(to); err != nil {
		return err
	}
	aside := dir + beforeUpgrade + time.Now().UTC().Format("20060102T150405.000000")
	if err := p.move(dir, aside); err != nil {
		return err
	}
	p.log.Warn().Str("moved_to", aside).Msg("the data directory of before the major upgrade was moved aside; it is never removed")
	if dir != p.dataDir { // of a link it is the target that was renamed
		if err := p.disk.For(func() error { return p.disk.Mkdir(dir, 0o700) }, p.dataDir, dir); err != nil {
			return fmt.Errorf("making the data directory: %w", err)
		}
		if err := p.restrict(dir); err != nil {
			return err
		}
	}
	return p.keepUpgradeNames(dir)
}

// notedUpgrade is the note, which must be there.
func (p *dataDirectory) notedUpgrade() (*UpgradeNote, error) {
	note, err := p.UpgradeNote()
	if err == nil && note == nil {
		err = errors.New("nobody has noted a major upgrade of these data")
	}
	return note, err
}

// upgradeObstacles are what about the data directory stands in the way of an upgrade.
func (p *upgrader) upgradeObstacles() (why []string, err error) {
	dir, err := p.realDataDir()
	if err != nil {
		return nil, fmt.Errorf("the data directory: %w", err)
	}
	if err := movable(dir); err != nil {
		why = append(why, err.Error())
	}
	switch info, err := p.disk.Lstat(p.inData("pg_wal")); {
	case err != nil:
		return nil, fmt.Errorf("the data directory: %w", err)
	case info.Mode()&fs.ModeSymlink != 0:
		why = append(why, "pg_wal is a link: the new data would have their WAL beside themselves, on another disk; bring pg_wal back into the data directory first")
	}
	if p.configDir != p.dataDir {
		why = append(why, "postgresql.config_dir: pg_upgrade looks for the configuration beside the data")
	}
	return why, nil
}

// lostByUpgrade are the parameters of ALTER SYSTEM, which pg_upgrade does not carry over.
func (p *upgrader) lostByUpgrade() (warning string, err error) {
	lines, err := p.readConf(p.inData("postgresql.auto.conf"))
	if err != nil {
		return "", err
	}
	var names []string
	for _, line := range lines {
		names = append(names, line.Name)
	}
	if len(names) == 0 {
		return "", nil
	}
	return fmt.Sprintf("ALTER SYSTEM has set %s: pg_upgrade does not carry that over; set it in the dynamic configuration, or again afterwards", strings.Join(names, ", ")), nil
}

// BeginUpgrade notes an upgrade to a major version, whose programs are in said, and makes the empty cluster for it
// beside the data, while PostgreSQL serves. above is a timeline that the shard has come to: the new cluster begins
// above it.
func (p *dataUpgrader) BeginUpgrade(ctx context.Context, to int, said string, above int) error {
	if to <= p.major {
		return fmt.Errorf("PostgreSQL %d is no later version than the %d that runs", to, p.major)
	}
	earlier, err := p.UpgradeNote()
	restore, restoreErr := p.RestoreNote()
	if err := errors.Join(err, restoreErr); err != nil {
		return err
	}
	if earlier != nil || restore != nil {
		return errors.New("an earlier major upgrade, or a restore, has not ended")
	}
	next, why := p.nextInstallation(ctx, to, said)
	if why != "" {
		return errors.New(why)
	}
	// While the shard is served: where this one fails too there is no time for it.
	if err := p.removeAsides(ctx, ""); err != nil {
		p.log.Warn().Err(err).Msg("what an earlier attempt has left could not be removed")
	}
	conn, err := p.upgrader.dedicated(ctx)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	old, err := p.describe(ctx, conn)
	if err != nil {
		return fmt.Errorf("asking PostgreSQL what the new cluster must be like: %w", err)
	}
	obstacles, err := p.upgradeObstacles()
	if err != nil {
		return err
	}
	if len(old.tablespaces) > 0 {
		obstacles = append(obstacles, "tablespaces: "+strings.Join(old.tablespaces, ", "))
	}
	undumpable, err := p.upgrader.undumpable(next)
	if err != nil {
		return err
	}
	for _, why := range []string{old.unarchived, undumpable} {
		if why != "" {
			obstacles = append(obstacles, why)
		}
	}
	if len(obstacles) > 0 {
		return errors.New(strings.Join(obstacles, "; "))
	}
	control, err := p.control(ctx)
	if err != nil {
		return err
	}
	dir, err := p.realDataDir()
	if err != nil {
		return fmt.Errorf("the data directory: %w", err)
	}
	at := time.Now().UTC().Format("20060102T150405.000000")
	note := UpgradeNote{
		From: p.major, To: to, BinDir: next.local.Load().BinDir, Aside: dir + beforeUpgrade + at, Next: dir + upgradedInfix + at,
		SystemIdentifier: control.SystemIdentifier, Timeline: max(control.Timeline, above) + 1, Archives: old.archives,
	}
	if note.ID, err = identity(dir); err != nil {
		return err
	}
	if err := p.writeUpgradeNote(note); err != nil {
		return err
	}
	if err := p.disk.For(func() error { return p.disk.Mkdir(note.Next, 0o700) }, p.dataDir, note.Next); err != nil {
		return fmt.Errorf("making the directory of the new cluster: %w", err)
	}
	if note.NextID, err = identity(note.Next); err != nil {
		return err
	}
	if err := errors.Join(p.writeUpgradeNote(note), p.restrict(note.Next)); err != nil {
		return err
	}
	return p.makeEmptyCluster(ctx, next, note, old)
}

// makeEmptyCluster has initdb fill the directory of the new cluster.
func (p *dataUpgrader) makeEmptyCluster(ctx context.Context, next *installation, note UpgradeNote, old oldCluster) error {
	p.placeNext(next, note)
	args := append([]string{"--pgdata=" + next.dataDir, "--username=" + p.local.Load().Authentication.Superuser.Username}, old.initdb(note.To)...)
	if info, err := p.disk.Stat(p.dataDir); err == nil && info.Mode().Perm()&groupAccess == groupAccess {
		args = append(args, "--allow-group-access")
	}
	if _, _, err := next.runIn(ctx, "/", p.upgradeMark(), "initdb", args...); err != nil {
		return fmt.Errorf("making the new cluster: %w", err)
	}
	content, err := p.disk.ReadFile(next.inData("postgresql.conf"))
	if err != nil {
		return fmt.Errorf("making the new cluster: %w", err)
	}
	if err := next.writeFile(next.inData(initdbConf), string(content)); err != nil {
		return err
	}
	return p.furnishUpgrade(next, old)
}

// upgradeMark is the variable by which the programs of an upgrade are found that have outlived their agent, and their
// language: their words are read.
func (p *dataUpgrader) upgradeMark() []string {
	return []string{methodMark + "=" + p.dataDir, "LC_ALL=C"}
}

func (p *dataUpgrader) placeNext(next *installation, note UpgradeNote) {
	next.dataDir, next.configDir, next.stateDir = note.Next, note.Next, p.stateDir
}

// UpgradeData makes the new cluster out of the data of a primary that was shut down: pg_upgrade gives their files second
// names, and the new cluster gets a timeline above the old one's. From then on only one of the two may ever be
// started.
func (p *dataUpgrader) UpgradeData(ctx context.Context) error {
	note, err := p.notedUpgrade()
	if err != nil {
		return err
	}
	dir := note.dir()
	if err := errors.Join(p.isAt(dir, note.ID), p.isAt(note.Next, note.NextID)); err != nil {
		return err
	}
	control, err := p.control(ctx)
	standby, standbyErr := p.hasSignalFile()
	switch {
	case err != nil || standbyErr != nil:
		return errors.Join(err, standbyErr)
	case p.Running() || control.State != shutDown:
		return fmt.Errorf("PostgreSQL is %s: only data that were shut down are upgraded", control.State)
	case standby:
		return errors.New("the data are a standby's: only a primary's are upgraded")
	case control.SystemIdentifier != note.SystemIdentifier || control.Timeline >= note.Timeline:
		return fmt.Errorf("the data are those of system identifier %s on timeline %d, noted are %s, and %d for the new cluster",
			control.SystemIdentifier, control.Timeline, note.SystemIdentifier, note.Timeline)
	}
	if err := p.archivedAll(note); err != nil {
		return err
	}
	next, why := p.nextInstallation(ctx, note.To, note.BinDir)
	if why != "" {
		return errors.New(why)
	}
	p.placeNext(next, *note)
	note.Stopped = true
	if err := p.writeUpgradeNote(*note); err != nil {
		return err
	}
	if err := p.linkCluster(ctx, next, note); err != nil {
		return err
	}
	if err := p.carryConfiguration(ctx, next); err != nil {
		return err
	}
	if err := p.beginTimeline(ctx, next, *note, control); err != nil {
		return err
	}
	made, err := next.control(ctx)
	switch {
	case err != nil:
		return err
	case made.SystemIdentifier == note.SystemIdentifier || made.Timeline != note.Timeline || made.State != shutDown:
		return fmt.Errorf("the new cluster has system identifier %s, is on timeline %d and %s: it was to have another one than the old cluster, and timeline %d",
			made.SystemIdentifier, made.Timeline, made.State, note.Timeline)
	}
	if err := p.disk.Remove(next.inData(startedBefore)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the new cluster: %w", err)
	}
	if err := errors.Join(p.disk.Sync(next.dataDir), p.disk.Sync(filepath.Dir(next.dataDir))); err != nil {
		return fmt.Errorf("the new cluster: %w", err)
	}
	note.Upgraded = made.SystemIdentifier
	return p.writeUpgradeNote(*note)
}

// shutDown is the state of a cluster that has ended as it should, in pg_controldata's words.
const shutDown = "shut down"

// isAt fails where a directory is not the one that was noted.
func (p *installation) isAt(path, id string) error {
	now, err := identity(path)
	if err != nil {
		return err
	}
	same, err := sameIdentity(id, now)
	if err != nil {
		return err
	}
	if id == "" || !same {
		return fmt.Errorf("%s is not the directory that a major upgrade has noted in %s: nothing is done with it", path, p.stateFile("upgrade"))
	}
	return nil
}

// archivedAll fails where WAL waits for the archive: the servers that pg_upgrade starts do not archive, and remove it.
func (p *dataUpgrader) archivedAll(note *UpgradeNote) error {
	if !note.Archives {
		return nil
	}
	waiting, err := p.disk.Glob(p.inData("pg_wal/archive_status/*.ready"))
	if err != nil {
		return fmt.Errorf("what waits for the archive: %w", err)
	}
	if len(waiting) > 0 {
		return fmt.Errorf("%s, and %d more files, is not archived: see why the archive does not take it",
			strings.TrimSuffix(filepath.Base(waiting[0]), ".ready"), len(waiting)-1)
	}
	return nil
}

// workIn makes pg_upgrade's working directory. Where it is is noted before there is anything in it.
func (p *dataUpgrader) workIn(note *UpgradeNote) (err error) {
	if note.Work, err = p.temporaryDir(upgradeWork); err != nil {
		return fmt.Errorf("major upgrade: %w", err)
	}
	if note.WorkID, err = identity(note.Work); err != nil {
		return err
	}
	return p.writeUpgradeNote(*note)
}

// removeWork removes pg_upgrade's working directory, if it is still that one. The superuser's password may be in it.
func (p *dataUpgrader) removeWork(note *UpgradeNote) error {
	if note.Work == "" {
		return nil
	}
	switch info, err := p.disk.Lstat(note.Work); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("pg_upgrade's working directory: %w", err)
	case !info.IsDir():
		return fmt.Errorf("%s is not the directory in which pg_upgrade worked: nothing is done with it", note.Work)
	}
	if err := errors.Join(p.isAt(note.Work, note.WorkID), mayRemove(note.Work)); err != nil {
		return err
	}
	// Root removes nothing that only a note names.
	if err := p.disk.Do(func() error { return p.disk.RemoveAll(note.Work) }); err != nil {
		return fmt.Errorf("pg_upgrade's working directory: %w", err)
	}
	return nil
}

// linkCluster runs pg_upgrade.
func (p *dataUpgrader) linkCluster(ctx context.Context, next *installation, note *UpgradeNote) error {
	own, err := p.program("postgres")
	if err != nil {
		return err
	}
	if own, err = filepath.EvalSymlinks(own); err != nil {
		return fmt.Errorf("major upgrade: %w", err)
	}
	// Its sockets are in its working directory, whose path must be short; the script by which it offers
	// to remove the old data is there, too, and goes with it.
	if err := p.workIn(note); err != nil {
		return err
	}
	defer func() {
		if err := p.removeWork(note); err != nil { // the way back tries it again
			p.log.Error().Err(err).Str("path", note.Work).Msg("pg_upgrade's working directory could not be removed")
		}
	}()
	work := note.Work
	super, env := p.local.Load().Authentication.Superuser, p.upgradeMark()
	if super.Password != "" {
		passfile := filepath.Join(work, "pgpass")
		if err := p.writeFile(passfile, "*:*:*:*:"+strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(super.Password)+"\n"); err != nil {
			return err
		}
		env = append(env, "PGPASSFILE="+passfile)
	}
	out, said, err := next.runIn(ctx, work, env, "pg_upgrade", "--link",
		"--old-bindir="+filepath.Dir(own), "--new-bindir="+next.local.Load().BinDir, "--old-datadir="+p.dataDir, "--new-datadir="+next.dataDir,
		"--username="+super.Username, "--old-port="+strconv.Itoa(p.port), "--new-port="+strconv.Itoa(p.port),
		// What it starts of the old version archives nothing, waits for no standby, and runs nobody's workers.
		"--old-options=-c synchronous_standby_names= -c archive_mode=off -c max_worker_processes=0")
	switch {
	case ctx.Err() != nil:
		return err
	case err != nil:
		words := cmp.Or(upgradeWords(said), err.Error())
		return fmt.Errorf("pg_upgrade: %s", strings.Join(append([]string{words}, p.upgradeLists(work, next.dataDir)...), "; "))
	}
	p.log.Info().Str("pg_upgrade", tail(strings.Join(strings.Fields(out), " "), upgradeWordsKept)).Msg("the new cluster was made of links to the data")
	if content, err := p.disk.ReadFile(filepath.Join(work, "update_extensions.sql")); err == nil {
		p.log.Warn().Str("sql", tail(string(content), upgradeWordsKept)).Msg("extensions have later versions: update them when the new cluster serves")
	}
	return nil
}

// carryConfiguration gives the new cluster the operator's own configuration, and who may log in. The agent's is written
// when it is started.
func (p *dataUpgrader) carryConfiguration(ctx context.Context, next *installation) error {
	if err := p.disk.Rename(next.inData(initdbConf), next.inData("postgresql.conf")); err != nil {
		return fmt.Errorf("the new cluster's configuration: %w", err)
	}
	for from, to := range map[string]string{"postgresql.base.conf": "postgresql.conf", "pg_hba.conf": "pg_hba.conf", "pg_ident.conf": "pg_ident.conf"} {
		content, err := p.disk.ReadFile(p.inConf(from))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("the configuration: %w", err)
		}
		if err := next.writeFile(next.inData(to), string(content)); err != nil {
			return err
		}
	}
	if _, err := next.run(ctx, "postgres", "-D", next.dataDir, "-C", "data_directory"); err != nil {
		return fmt.Errorf("PostgreSQL %d does not take the configuration in %s: %w", next.major, p.inConf("postgresql.base.conf"), err)
	}
	return nil
}

// beginTimeline puts the new cluster on the noted timeline, with a history that says what it came from. The number
// goes up though it is another cluster: timelines are compared everywhere, and an archive that both use never gets
// two files of one name.
func (p *dataUpgrader) beginTimeline(ctx context.Context, next *installation, note UpgradeNote, old Control) error {
	if _, err := next.run(ctx, "pg_resetwal", "--pgdata="+next.dataDir, fmt.Sprintf("--next-wal-file=%08X%08X%08X", note.Timeline, 0, 1)); err != nil {
		return fmt.Errorf("beginning timeline %d: %w", note.Timeline, err)
	}
	control, err := next.control(ctx)
	if err != nil {
		return err
	}
	earlier := ""
	if old.Timeline > 1 {
		content, err := p.disk.ReadFile(p.inData(fmt.Sprintf("pg_wal/%08X.history", old.Timeline)))
		if err != nil {
			return fmt.Errorf("the history of timeline %d: %w", old.Timeline, err)
		}
		earlier = strings.TrimRight(string(content), "\n") + "\n"
	}
	history := earlier + fmt.Sprintf("%d\t%s\t%s from PostgreSQL %d, system identifier %s\n",
		old.Timeline, pg.FormatLSN(control.CheckpointLSN), upgradedBy, note.From, note.SystemIdentifier)
	if err := next.writeFile(next.inData(fmt.Sprintf("pg_wal/%08X.history", note.Timeline)), history); err != nil {
		return err
	}
	if err := p.disk.Sync(next.inData("pg_wal")); err != nil {
		return fmt.Errorf("beginning timeline %d: %w", note.Timeline, err)
	}
	return nil
}

// PlaceUpgraded moves the old data directory aside, and the new cluster into its place.
func (p *dataUpgrader) PlaceUpgraded() error {
	note, err := p.notedUpgrade()
	if err != nil {
		return err
	}
	dir := note.dir()
	if real, err := p.realDataDir(); err != nil || real != dir {
		return errors.Join(err, fmt.Errorf("the data directory is %s, noted is %s: nothing is moved", real, dir))
	}
	if err := errors.Join(p.isAt(dir, note.ID), p.isAt(note.Next, note.NextID), movable(dir), movable(note.Next)); err != nil {
		return err
	}
	switch _, err := p.disk.Lstat(note.Aside); {
	case err == nil:
		return fmt.Errorf("%s is there already: nothing is moved", note.Aside)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("where the data directory is to be moved to: %w", err)
	}
	if p.Running() || note.Upgraded == "" {
		return errors.New("the data directory stays: PostgreSQL runs in it, or the new cluster is not whole")
	}
	if err := p.move(dir, note.Aside); err != nil {
		return err
	}
	p.log.Warn().Str("moved_to", note.Aside).Msg("the data directory was moved aside for a major upgrade; it is never removed")
	if err := p.move(note.Next, dir); err != nil {
		return err
	}
	return p.keepUpgradeNames(dir)
}

// move renames a directory beside the data.
func (p *dataUpgrader) move(from, to string) error {
	if err := p.disk.For(func() error { return p.disk.Rename(from, to) }, p.dataDir, from); err != nil {
		return fmt.Errorf("moving %s to %s: %w", from, to, err)
	}
	return nil
}

// keepUpgradeNames makes durable what the directories beside the data are called.
func (p *dataUpgrader) keepUpgradeNames(dir string) error {
	parent := filepath.Dir(dir)
	if err := p.disk.For(func() error { return p.disk.Sync(parent) }, p.dataDir, parent); err != nil {
		return fmt.Errorf("the names in %s: %w", parent, err)
	}
	return nil
}

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

// NoteAnnouncement notes which status the announcement of the new cluster replaces, before it is sent.
func (p *dataUpgrader) NoteAnnouncement(index uint64) error {
	note, err := p.notedUpgrade()
	if err != nil {
		return err
	}
	if err := errors.Join(p.isAt(note.dir(), note.NextID), p.isAt(note.Aside, note.ID)); err != nil {
		return err
	}
	note.Index = index
	return p.writeUpgradeNote(*note)
}

// EndUpgrade drops the note: the new cluster is the shard's. The old data stay where they were moved to.
func (p *dataUpgrader) EndUpgrade(ctx context.Context) error {
	note, err := p.UpgradeNote()
	if err != nil || note == nil {
		return err
	}
	if err := p.isAt(note.dir(), note.NextID); err != nil {
		return err
	}
	if p.major != note.To {
		return fmt.Errorf("the upgraded data are those of PostgreSQL %d, and this agent runs the programs of %d", note.To, p.major)
	}
	control, err := p.control(ctx)
	if err != nil {
		return err
	}
	if control.SystemIdentifier != note.Upgraded {
		return fmt.Errorf("the upgraded data have system identifier %s, noted is %s", control.SystemIdentifier, note.Upgraded)
	}
	return p.dropUpgradeNote()
}

func (p *dataDirectory) dropUpgradeNote() error {
	if err := p.disk.Remove(p.stateFile("upgrade")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("dropping the note of a major upgrade: %w", err)
	}
	return p.syncDir(p.stateDir)
}
