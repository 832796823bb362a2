package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/pg"
)

// dataUpgrader makes data of a later major version out of this member's (design 5.31, steps 1 and 3 to 5): in a
// directory beside them, of hard links. No data directory is removed: the old one is moved aside, and until the new
// cluster was started it can be put back. A note beside the data says where what is. Nothing but its
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
