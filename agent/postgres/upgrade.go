package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/pg"
)

// This file finds out whether the data could become those of a later major version (design
// 5.31), while PostgreSQL runs and without changing anything of it.

// upgrader looks at a major upgrade.
type upgrader struct {
	*installation
	*dataDirectory
	*confFiles
	*session
}

const (
	// upgradeScratch and upgradeMark are the directory of a check, beside the data, and the file
	// in it that says so: without it nothing is removed.
	upgradeScratch = "upgrade-check"
	upgradeMark    = "made-by-lictor-for-an-upgrade-check"
	// upgradeCleanLimit bounds the end of a check, whatever became of its context.
	upgradeCleanLimit = 30 * time.Second
	// livePort is pg_upgrade's own default for the new cluster. It has no TCP, so nothing else
	// can have taken it; pg_upgrade only wants it to differ from the old one.
	livePort = 50432

	replicatesSlotsSince   = 17 // pg_upgrade carries logical slots over
	checksumsByDefaultFrom = 18
	localeProvidersSince   = 15
)

// upgradePrograms are those of the new version that an upgrade runs.
func upgradePrograms() []string {
	return []string{"postgres", "pg_upgrade", "initdb", "pg_ctl", "pg_dump", "pg_dumpall", "pg_restore", "psql", "vacuumdb", "pg_resetwal", "pg_controldata", "pg_basebackup"}
}

// oldCluster is what a new cluster must be like.
type oldCluster struct {
	encoding, collate, ctype string
	provider, locale         string // c, i or b; of i and b the locale
	icuRules                 string
	checksums                bool
	walSegmentMB             int
	preloaded                string
	walLevel                 string
	slots                    int // max_replication_slots
	tablespaces, logical     []string
	archives                 bool
	unarchived               string // why WAL does not get into the archive; empty: it does, or is not to
}

// CheckUpgrade tries whether the data could become those of another major version, whose
// programs are in said; empty: where this version's are, with that number in place of this one's.
// An error says that it could not be tried.
func (p *upgrader) CheckUpgrade(ctx context.Context, to int, said string) (found pg.UpgradeCheck, err error) {
	found = pg.UpgradeCheck{From: p.major, To: to}
	problem := func(format string, args ...any) {
		found.Problems = append(found.Problems, fmt.Sprintf(format, args...))
	}
	if to <= p.major {
		problem("PostgreSQL %d is no later version than the %d that runs", to, p.major)
		return found, nil
	}
	next, why := p.nextInstallation(ctx, to, said)
	if why != "" {
		problem("%s", why)
		return found, nil
	}
	conn, err := p.dedicated(ctx)
	if err != nil {
		return found, err
	}
	defer hangUpOn(conn)
	old, err := p.describe(ctx, conn)
	if err != nil {
		return found, fmt.Errorf("asking PostgreSQL what the new cluster must be like: %w", err)
	}
	obstacles, err := p.upgradeObstacles()
	if err != nil {
		return found, err
	}
	found.Problems = append(found.Problems, obstacles...)
	if len(old.tablespaces) > 0 {
		problem("tablespaces (%s): the replicas could not be made anew, as the old version's files are where the copies would have to go", strings.Join(old.tablespaces, ", "))
	}
	if old.unarchived != "" {
		problem("%s", old.unarchived)
	}
	if why, err := p.undumpable(next); err != nil {
		return found, err
	} else if why != "" {
		problem("%s", why)
	}
	if len(old.logical) > 0 && p.major < replicatesSlotsSince {
		found.Warnings = append(found.Warnings, fmt.Sprintf("logical slots (%s) are lost: pg_upgrade carries them over from PostgreSQL %d on; their readers must begin anew",
			strings.Join(old.logical, ", "), replicatesSlotsSince))
	}
	lost, err := p.lostByUpgrade()
	if err != nil {
		return found, fmt.Errorf("what ALTER SYSTEM has set: %w", err)
	}
	if lost != "" {
		found.Warnings = append(found.Warnings, lost)
	}
	found.Warnings = append(found.Warnings, p.refusedByNext(ctx, next)...)
	problems, warnings, err := p.tryUpgrade(ctx, next, old)
	found.Problems, found.Warnings = append(found.Problems, problems...), append(found.Warnings, warnings...)
	return found, err
}

// nextInstallation is PostgreSQL's other version on this host, or why there is none.
func (p *installation) nextInstallation(ctx context.Context, to int, said string) (next *installation, why string) {
	dir := said
	if dir == "" {
		own, err := p.program("postgres")
		if err != nil {
			return nil, err.Error()
		}
		if own, err = filepath.EvalSymlinks(own); err != nil {
			return nil, err.Error()
		}
		if dir = otherBinDir(filepath.Dir(own), p.major, to); dir == "" {
			return nil, fmt.Sprintf("where the programs of PostgreSQL %d are cannot be told from %s: set lictor.upgrade_bin_dir", to, filepath.Dir(own))
		}
	}
	var missing []string
	for _, name := range upgradePrograms() {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.IsDir() || info.Mode().Perm()&0o111 == 0 {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Sprintf("PostgreSQL %d: %s has no %s: install its packages, or set lictor.upgrade_bin_dir", to, dir, strings.Join(missing, ", "))
	}
	next = &installation{
		scope: p.scope, name: p.name, credential: p.credential, disk: p.disk, pass: p.pass, log: p.log, port: p.port, major: to,
	}
	next.local.Store(&config.Postgres{BinDir: dir})
	out, err := next.run(ctx, "postgres", "--version")
	if err != nil {
		return nil, fmt.Sprintf("PostgreSQL %d: %s", to, err)
	}
	if found, err := parseMajor(out); err != nil || found != to {
		return nil, fmt.Sprintf("PostgreSQL %d: the programs in %s say %s", to, dir, strings.TrimSpace(out))
	}
	return next, ""
}

// columnMark is what PostgreSQL 15.20 and 17.12 note in pg_attribute.attoptions of each column that they make. A pg_dump
// that does not know it takes it for an option of the user's, which no version accepts.
const columnMark = "pg_attver"

// undumpable says why the new version's pg_dump cannot dump what this version makes: pg_upgrade would find out when
// clients wait, as its check does not restore schemas.
func (p *installation) undumpable(next *installation) (why string, err error) {
	knows := func(i *installation, name string) (bool, error) {
		path, err := i.program(name)
		if err != nil {
			return false, err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return false, fmt.Errorf("what PostgreSQL %d notes in its columns: %w", i.major, err)
		}
		return bytes.Contains(content, []byte(columnMark)), nil
	}
	if marks, err := knows(p, "postgres"); err != nil || !marks {
		return "", err
	}
	if reads, err := knows(next, "pg_dump"); err != nil || reads {
		return "", err
	}
	return fmt.Sprintf("this minor release of PostgreSQL %d notes %s in each column that it makes, which the pg_dump of PostgreSQL %d does not know: "+
		"pg_upgrade would fail while it restores schemas; install a later minor release of PostgreSQL %d", p.major, columnMark, next.major, next.major), nil
}

// otherBinDir is a directory of programs with one version's number in place of another's:
// /usr/lib/postgresql/15/bin, /usr/pgsql-15/bin. Empty: its path has no such number, or several.
func otherBinDir(dir string, from, to int) string {
	number := regexp.MustCompile(`(^|[^0-9.])` + strconv.Itoa(from) + `($|[^0-9.])`)
	if len(number.FindAllString(dir, -1)) != 1 {
		return ""
	}
	return number.ReplaceAllString(dir, "${1}"+strconv.Itoa(to)+"${2}")
}

// describe asks what a new cluster must be like.
func (p *upgrader) describe(ctx context.Context, conn *pgx.Conn) (old oldCluster, err error) {
	provider, locale, rules := "'c'", "''", "''"
	switch {
	case p.major >= 17:
		provider, locale, rules = "datlocprovider::text", "COALESCE(datlocale, '')", "COALESCE(daticurules, '')"
	case p.major >= 16:
		provider, locale, rules = "datlocprovider::text", "COALESCE(daticulocale, '')", "COALESCE(daticurules, '')"
	case p.major >= localeProvidersSince:
		provider, locale = "datlocprovider::text", "COALESCE(daticulocale, '')"
	}
	err = conn.QueryRow(ctx, `SELECT pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype, `+provider+`, `+locale+`, `+rules+`,
			current_setting('data_checksums') = 'on', (pg_catalog.pg_size_bytes(current_setting('wal_segment_size')) / 1048576)::int,
			current_setting('shared_preload_libraries'), current_setting('wal_level'), current_setting('max_replication_slots')::int,
			ARRAY(SELECT spcname::text FROM pg_catalog.pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1),
			ARRAY(SELECT slot_name::text FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical' ORDER BY 1),
			current_setting('archive_mode') <> 'off'
		FROM pg_catalog.pg_database WHERE datname = 'template0'`).
		Scan(&old.encoding, &old.collate, &old.ctype, &old.provider, &old.locale, &old.icuRules, &old.checksums, &old.walSegmentMB,
			&old.preloaded, &old.walLevel, &old.slots, &old.tablespaces, &old.logical, &old.archives)
	if err != nil || !old.archives {
		return old, err
	}
	archiver, err := p.Archiver(ctx)
	if err == nil && archiver.On && archiver.Waiting > 0 && archiver.FailedAt.After(archiver.ArchivedAt) {
		old.unarchived = fmt.Sprintf("WAL is not archived (%s since %s, %d files wait): what the archive does not have would be lost",
			archiver.LastFailed, archiver.FailedAt.UTC().Format(time.DateTime), archiver.Waiting)
	}
	return old, err
}

// initdb are the arguments that make such a cluster with a version's programs.
func (o oldCluster) initdb(major int) []string {
	args := []string{
		"--no-sync", "--auth=trust", "--encoding=" + o.encoding, "--lc-collate=" + o.collate, "--lc-ctype=" + o.ctype,
		"--lc-messages=C", "--lc-monetary=C", "--lc-numeric=C", "--lc-time=C", "--wal-segsize=" + strconv.Itoa(o.walSegmentMB),
	}
	switch {
	case o.provider == "i":
		args = append(args, "--locale-provider=icu", "--icu-locale="+o.locale)
		if o.icuRules != "" {
			args = append(args, "--icu-rules="+o.icuRules)
		}
	case o.provider == "b":
		args = append(args, "--locale-provider=builtin", "--builtin-locale="+o.locale)
	case major >= localeProvidersSince:
		args = append(args, "--locale-provider=libc")
	}
	switch {
	case o.checksums:
		args = append(args, "--data-checksums")
	case major >= checksumsByDefaultFrom:
		args = append(args, "--no-data-checksums")
	}
	return args
}

// refusedByNext are the values in force that the other version does not take. The agent leaves such
// values out, so they stand in nobody's way.
func (p *upgrader) refusedByNext(ctx context.Context, next *installation) (warnings []string) {
	p.settings.Lock()
	values, refused := p.wantedValues(), maps.Clone(p.judged.refused)
	p.settings.Unlock()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if _, already := refused[[2]string{name, values[name]}]; already {
			delete(values, name)
		} else if !supported(strings.ToLower(name), next.major) {
			warnings = append(warnings, fmt.Sprintf("parameter %s: PostgreSQL %d does not have it: it would be left out", name, next.major))
			delete(values, name)
		}
	}
	why, err := assemble(next, nil).refusedValues(ctx, values)
	if err != nil {
		return append(warnings, fmt.Sprintf("PostgreSQL %d could not be asked whether it takes the parameters: %s", next.major, err))
	}
	for _, name := range slices.Sorted(maps.Keys(why)) {
		warnings = append(warnings, fmt.Sprintf("parameter %s: PostgreSQL %d does not take %q (%s): it would be left out", name, next.major, values[name], why[name]))
	}
	return warnings
}

// tryUpgrade has pg_upgrade look at the running PostgreSQL and at an empty cluster of the other
// version that is made for it.
func (p *upgrader) tryUpgrade(ctx context.Context, next *installation, old oldCluster) (problems, warnings []string, err error) {
	scratch, err := p.upgradeScratch()
	if err != nil {
		return nil, nil, err
	}
	if err := p.clearUpgradeScratch(ctx, scratch); err != nil {
		return nil, nil, err
	}
	defer func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), upgradeCleanLimit)
		defer cancel()
		if left := p.clearUpgradeScratch(limit, scratch); left != nil {
			p.log.Error().Err(left).Str("path", scratch).Msg("an upgrade check could not remove its directory")
			err = errors.Join(err, left)
		}
	}()
	if why, err := p.noRoomForUpgrade(filepath.Dir(scratch), old); why != "" || err != nil {
		return []string{why}, nil, err
	}
	if err := p.makeUpgradeScratch(scratch); err != nil {
		return nil, nil, err
	}
	next.dataDir = filepath.Join(scratch, "data")
	next.configDir, next.stateDir = next.dataDir, scratch
	super := p.local.Load().Authentication.Superuser
	args := append([]string{"--pgdata=" + next.dataDir, "--username=" + super.Username}, old.initdb(next.major)...)
	if _, err := next.run(ctx, "initdb", args...); err != nil {
		if ctx.Err() != nil {
			return nil, nil, err
		}
		return []string{fmt.Sprintf("PostgreSQL %d cannot make a cluster like the present one: %s", next.major, err)}, nil, nil
	}
	if err := p.furnishUpgrade(next, old); err != nil {
		return nil, nil, err
	}
	// Its socket is in its working directory, whose path must be short.
	work, err := p.temporaryDir(upgradeWork)
	if err != nil {
		return nil, nil, fmt.Errorf("upgrade check: %w", err)
	}
	defer p.disk.RemoveAll(work)
	oldBin, err := p.oldBin(scratch)
	if err != nil {
		return nil, nil, err
	}
	env := []string{"LC_ALL=C"} // its words are read
	if super.Password != "" {
		passfile := filepath.Join(scratch, "pgpass")
		if err := p.writeFile(passfile, "*:*:*:*:"+strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(super.Password)+"\n"); err != nil {
			return nil, nil, err
		}
		env = append(env, "PGPASSFILE="+passfile)
	}
	newPort := livePort
	if p.port == livePort {
		newPort++
	}
	out, said, err := next.runIn(ctx, work, env, "pg_upgrade", "--check", "--link",
		"--old-bindir="+oldBin, "--new-bindir="+next.local.Load().BinDir, "--old-datadir="+p.dataDir, "--new-datadir="+next.dataDir,
		"--username="+super.Username, "--old-port="+strconv.Itoa(p.port), "--new-port="+strconv.Itoa(newPort))
	switch {
	case ctx.Err() != nil:
		return nil, nil, err
	case err != nil:
		words := cmp.Or(upgradeWords(said), err.Error())
		return []string{"pg_upgrade: " + strings.Join(append([]string{words}, p.upgradeLists(work, next.dataDir)...), "; ")}, nil, nil
	}
	if words := upgradeWords(out); words != "" {
		warnings = append(warnings, "pg_upgrade: "+words)
	}
	return nil, warnings, nil
}

// upgradeScratch is where a check makes its cluster: beside the data, as links can be made to no
// other disk.
func (p *upgrader) upgradeScratch() (string, error) {
	dir, err := p.realDataDir()
	if err != nil {
		return "", fmt.Errorf("the data directory: %w", err)
	}
	return filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+".lictor-"+upgradeScratch), nil
}

// upgradeRoom is what must be free beside a check's cluster and its WAL: the PostgreSQL that serves
// is on the same disk, and ends when it finds no room for its WAL.
const upgradeRoom = 256 << 20

// noRoomForUpgrade says that the disk is too full for a check.
func (p *upgrader) noRoomForUpgrade(dir string, old oldCluster) (why string, err error) {
	const segments = 4
	need := int64(upgradeRoom) + segments*int64(old.walSegmentMB)<<20
	switch free, err := p.disk.Room(dir); {
	case err != nil:
		return "", fmt.Errorf("upgrade check: %w", err)
	case free < need:
		return fmt.Sprintf("%s has %d MB free, and a check wants %d MB: make room", dir, free>>20, need>>20), nil
	}
	return "", nil
}

// makeUpgradeScratch makes the directory of a check. It is marked before there is anything in it.
func (p *upgrader) makeUpgradeScratch(scratch string) error {
	if err := p.disk.Mkdir(scratch, 0o700); err != nil {
		return fmt.Errorf("an upgrade needs to make a directory beside the data directory: %w", err)
	}
	if err := p.own(scratch); err != nil {
		return err
	}
	return p.writeFile(filepath.Join(scratch, upgradeMark), "")
}

// clearUpgradeScratch ends what runs in the directory of a check, and removes it. What no check has
// made stays.
func (p *upgrader) clearUpgradeScratch(ctx context.Context, scratch string) error {
	info, err := p.disk.Lstat(scratch)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("the directory of an upgrade check: %w", err)
	case !info.IsDir():
		return fmt.Errorf("%s is in the way of an upgrade check, and was not made by one: move it away", scratch)
	}
	if _, err := p.disk.Lstat(filepath.Join(scratch, upgradeMark)); err != nil {
		// One that was just made, and not marked yet, is empty.
		if err := p.disk.For(func() error { return os.Remove(scratch) }, scratch); err != nil {
			return fmt.Errorf("%s is in the way of an upgrade check, and was not made by one: move it away: %w", scratch, err)
		}
		return nil
	}
	if err := mountedIn(scratch); err != nil {
		return fmt.Errorf("the directory of an upgrade check: %w", err)
	}
	data := filepath.Join(scratch, "data")
	if info, err := p.disk.Lstat(data); err == nil && info.IsDir() { // not what a link leads to
		if err := fence.KillProcesses(ctx, data, p.writers()...); err != nil {
			return fmt.Errorf("the cluster of an upgrade check: %w", err)
		}
	}
	if err := p.disk.RemoveAll(scratch); err != nil {
		return fmt.Errorf("the directory of an upgrade check: %w", err)
	}
	return nil
}

// furnishUpgrade adds to the new cluster's configuration what pg_upgrade or the old one's
// functions need of it, and that it be small. The libraries' own workers do not run in it.
func (p *upgrader) furnishUpgrade(next *installation, old oldCluster) error {
	path := next.inData("postgresql.conf")
	content, err := p.disk.ReadFile(path)
	if err != nil {
		return fmt.Errorf("upgrade check: %w", err)
	}
	const slots = 10 // PostgreSQL's own default
	conf := string(content) + "\n"
	for name, value := range map[string]string{
		"listen_addresses": "", "shared_buffers": "16MB", "huge_pages": "off", "fsync": "off", "logging_collector": "off", "lc_messages": "C",
		"wal_level": old.walLevel, "max_replication_slots": strconv.Itoa(max(old.slots, slots)), "shared_preload_libraries": old.preloaded, "max_worker_processes": "0",
	} {
		conf += name + " = " + quote(value) + "\n"
	}
	return p.writeFile(path, conf)
}

// oldBin makes a directory with what pg_upgrade runs of the old version. Its pg_ctl starts nothing:
// pg_upgrade starts the old cluster to see whether it runs, and where it has just been fenced
// that would be a PostgreSQL which no guard knows of.
func (p *upgrader) oldBin(scratch string) (string, error) {
	own, err := p.program("postgres")
	if err != nil {
		return "", err
	}
	if own, err = filepath.EvalSymlinks(own); err != nil {
		return "", fmt.Errorf("upgrade check: %w", err)
	}
	dir := filepath.Join(scratch, "bin")
	if err := p.disk.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("upgrade check: %w", err)
	}
	if err := p.own(dir); err != nil {
		return "", err
	}
	for _, name := range []string{"postgres", "pg_controldata", "pg_resetwal"} {
		if err := p.disk.Do(func() error { return os.Symlink(filepath.Join(filepath.Dir(own), name), filepath.Join(dir, name)) }); err != nil {
			return "", fmt.Errorf("upgrade check: %w", err)
		}
	}
	script := "#!/bin/sh\ncase \"$1\" in\n-V | --version) exec '" + strings.ReplaceAll(filepath.Join(filepath.Dir(own), "pg_ctl"), "'", `'\''`) + "'" + " --version ;;\nesac\n" +
		"echo 'an upgrade check starts and stops nothing of the old version' >&2\nexit 1\n"
	if err := p.disk.Replace(filepath.Join(dir, "pg_ctl"), []byte(script), 0o700); err != nil {
		return "", fmt.Errorf("upgrade check: %w", err)
	}
	return dir, nil
}

// upgradeWords are what pg_upgrade has said beyond what is well.
func upgradeWords(out string) string {
	var words []string
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[len(fields)-1] == "ok" || strings.HasPrefix(fields[0], "---") || fields[0] == "Performing" {
			continue
		}
		line = strings.Join(fields, " ")
		if line == "*Clusters are compatible*" || line == "Failure, exiting" {
			continue
		}
		words = append(words, line)
	}
	return tail(strings.Join(words, " "), upgradeWordsKept)
}

// upgradeWordsKept is how much of what pg_upgrade says, and of each list, is told.
const upgradeWordsKept = 2000

// upgradeLists are the lists that pg_upgrade has written of what stands in its way, and why its new
// PostgreSQL did not start.
func (p *upgrader) upgradeLists(work, data string) (lists []string) {
	var files []string
	for _, dir := range []string{work, p.upgradeOutput(data)} {
		found, err := p.disk.Glob(filepath.Join(dir, "*.txt"))
		if err == nil {
			files = append(files, found...)
		}
	}
	for _, file := range files {
		if content, err := p.disk.ReadFile(file); err == nil && len(content) > 0 {
			lists = append(lists, filepath.Base(file)+": "+tail(strings.Join(strings.Fields(string(content)), " "), upgradeWordsKept))
		}
	}
	for _, file := range []string{filepath.Join(work, "pg_upgrade_server.log"), filepath.Join(p.upgradeOutput(data), "log", "pg_upgrade_server.log")} {
		content, err := p.disk.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(content)) {
			if _, message, fatal := strings.Cut(line, "FATAL:  "); fatal {
				lists = append(lists, "its PostgreSQL said: "+strings.TrimSpace(message))
			}
		}
	}
	return lists
}

// upgradeOutput is where pg_upgrade writes from version 15 on.
func (p *upgrader) upgradeOutput(data string) string {
	const dir = "pg_upgrade_output.d"
	entries, err := p.disk.ReadDir(filepath.Join(data, dir))
	if err != nil || len(entries) == 0 {
		return filepath.Join(data, dir)
	}
	return filepath.Join(data, dir, entries[len(entries)-1].Name())
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
