package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/pg"
)

// nextBin are the programs of a later version than binDir's: POSTGRES_NEXT_BIN, when set.
func nextBin(t *testing.T, major int) (dir string, next int) {
	t.Helper()
	dirs := []string{os.Getenv("POSTGRES_NEXT_BIN")}
	named := dirs[0] != ""
	if !named {
		dirs, _ = filepath.Glob("/usr/lib/postgresql/*/bin")
		more, _ := filepath.Glob("/var/cache/lictor/versions-*/usr/lib/postgresql/*/bin")
		dirs = append(dirs, more...)
	}
	for _, dir := range dirs {
		if next, err := strconv.Atoi(filepath.Base(filepath.Dir(dir))); err == nil && next > major && (named || dumps(t, dir, next)) {
			return dir, next
		}
	}
	t.Skipf("no programs of a later version than %d: name them in POSTGRES_NEXT_BIN", major)
	return "", 0
}

// dumps reports whether a version's pg_dump can dump what PostgreSQL makes here.
func dumps(t *testing.T, dir string, major int) bool {
	t.Helper()
	why, err := programsOf(binDir(t), 0).undumpable(programsOf(dir, major))
	must(t, err)
	return why == ""
}

// programsOf is a version's programs, and nothing else.
func programsOf(dir string, major int) *installation {
	i := &installation{major: major}
	i.local.Store(&config.Postgres{BinDir: dir})
	return i
}

// A pg_dump that does not know what this version notes in its columns stands in the way, as pg_upgrade's own check
// does not find out.
func TestUndumpable(t *testing.T) {
	dir := func(postgres, dump string) string {
		dir := t.TempDir()
		for name, content := range map[string]string{"postgres": postgres, "pg_dump": dump} {
			put(t, filepath.Join(dir, name), content)
			must(t, os.Chmod(filepath.Join(dir, name), 0o755))
		}
		return dir
	}
	for name, test := range map[string]struct {
		from, to string
		refused  bool
	}{
		"neither knows":             {dir("x", "x"), dir("x", "x"), false},
		"both know":                 {dir("x\x00pg_attver\x00", "x"), dir("x", "y\x00pg_attver\x00"), false},
		"the new one does not":      {dir("x\x00pg_attver\x00", "pg_attver"), dir("pg_attver", "y"), true},
		"the new one does, in vain": {dir("x", "x"), dir("x", "pg_attver"), false},
	} {
		why, err := programsOf(test.from, 15).undumpable(programsOf(test.to, 18))
		if err != nil || (why != "") != test.refused {
			t.Errorf("%s: %q, %v", name, why, err)
		}
	}
	if _, err := programsOf(t.TempDir(), 15).undumpable(programsOf(t.TempDir(), 18)); err == nil {
		t.Error("programs that cannot be read pass")
	}
}

// A check tells of primary and replica whether their data could be upgraded, and leaves nothing.
func TestUpgradeCheck(t *testing.T) {
	ctx := within(t)
	dir := newDir(t)
	s := settings(t, dir, "a")
	a := newInstance(t, s)
	bin, next := nextBin(t, a.Major())
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, a, "answers", func(s State) bool { return s.Accepting })
	b := newInstance(t, settings(t, dir, "b"))
	control, err := a.control(ctx)
	must(t, err)
	up := upstream(a)
	must(t, b.MakeReplica(ctx, &up, control.SystemIdentifier, nil))
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	observe(ctx, t, b, "is a replica", func(s State) bool { return s.Accepting && s.InRecovery })
	check := func(p *Instance) pg.UpgradeCheck {
		t.Helper()
		before, started := top(t, dir), observe(ctx, t, p, "runs", func(s State) bool { return s.Accepting }).StartTime
		found, err := p.CheckUpgrade(ctx, next, bin)
		must(t, err)
		if after := top(t, dir); !slices.Equal(before, after) {
			t.Errorf("left behind: %v, was %v", after, before)
		}
		if s := observe(ctx, t, p, "still runs", func(s State) bool { return s.Accepting }); !s.StartTime.Equal(started) {
			t.Error("PostgreSQL was restarted")
		}
		if found.From != p.Major() || found.To != next {
			t.Errorf("from %d to %d", found.From, found.To)
		}
		return found
	}
	for _, p := range []*Instance{a, b} {
		if found := check(p); len(found.Problems)+len(found.Warnings) > 0 {
			t.Errorf("%s: %+v", p.name, found)
		}
	}
	// What pg_upgrade finds is told, with the list that it has written.
	sql(ctx, t, a, "CREATE TABLE public.unfit (a regprocedure)")
	sql(ctx, t, a, "CREATE TABLESPACE elsewhere LOCATION '"+ownDir(t, a, "elsewhere")+"'")
	found := strings.Join(check(a).Problems, "\n")
	for _, want := range []string{"tablespaces (elsewhere)", "pg_upgrade: ", "public.unfit.a"} {
		if !strings.Contains(found, want) {
			t.Errorf("%s is missing in %q", want, found)
		}
	}
	sql(ctx, t, a, "ALTER SYSTEM SET work_mem = '5MB'")
	if found := check(a).Warnings; len(found) != 1 || !strings.Contains(found[0], "ALTER SYSTEM has set work_mem") {
		t.Errorf("%q", found)
	}
	sql(ctx, t, a, "ALTER SYSTEM RESET work_mem")
	sql(ctx, t, a, "DROP TABLE public.unfit")
	sql(ctx, t, a, "DROP TABLESPACE elsewhere")
	if found := check(a); len(found.Problems) > 0 {
		t.Errorf("%+v", found)
	}
}

// Values that the new version does not take are told, and parameters that it does not have; they
// would be left out.
func TestUpgradeCheckOfParameters(t *testing.T) {
	ctx := within(t)
	s := settings(t, newDir(t), "a")
	a := newInstance(t, s)
	bin, next := nextBin(t, a.Major())
	var want []string
	for name, last := range map[string]int{"vacuum_defer_cleanup_age": 15, "old_snapshot_threshold": 16} {
		if s.Postgres.Parameters[name] = "0"; a.Major() <= last && next > last {
			want = append(want, fmt.Sprintf("parameter %s: PostgreSQL %d does not have it", name, next))
		}
	}
	for name, gone := range map[string]struct { // of these no table of ours knows
		last  int
		value string
	}{"stats_temp_directory": {14, "pg_stat_tmp"}, "trace_recovery_messages": {16, "log"}} {
		if a.Major() <= gone.last {
			s.Postgres.Parameters[name] = gone.value
		}
		if a.Major() <= gone.last && next > gone.last {
			want = append(want, fmt.Sprintf("parameter %s: PostgreSQL %d does not take %q", name, next, gone.value))
		}
	}
	programs, why := a.nextInstallation(ctx, next, bin)
	if why != "" {
		t.Fatal(why)
	}
	warnings := a.refusedByNext(ctx, programs)
	for _, want := range want {
		if !slices.ContainsFunc(warnings, func(w string) bool { return strings.HasPrefix(w, want) }) {
			t.Errorf("%s is missing in %q", want, warnings)
		}
	}
	if len(warnings) != len(want) {
		t.Errorf("%q, want %q", warnings, want)
	}
	// What the present version refuses is told already.
	a.judged.refused = map[[2]string]string{}
	for name, value := range a.wantedValues() {
		a.judged.refused[[2]string{name, value}] = "no"
	}
	if warnings := a.refusedByNext(ctx, programs); len(warnings) > 0 {
		t.Errorf("%q", warnings)
	}
}

// What about the data directory stands in the way is told.
func TestUpgradeObstacles(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, p *Instance, elsewhere string)
		want    string
	}{
		"nothing":             {func(t *testing.T, p *Instance, _ string) { must(t, os.Mkdir(p.inData("pg_wal"), 0o700)) }, ""},
		"WAL on another disk": {func(t *testing.T, p *Instance, elsewhere string) { must(t, os.Symlink(elsewhere, p.inData("pg_wal"))) }, "pg_wal is a link"},
		"configuration elsewhere": {func(t *testing.T, p *Instance, elsewhere string) {
			must(t, os.Mkdir(p.inData("pg_wal"), 0o700))
			p.configDir = elsewhere
		}, "postgresql.config_dir"},
	} {
		p := newInstance(t, settings(t, newDir(t), "a"))
		must(t, os.Mkdir(p.dataDir, 0o700))
		test.prepare(t, p, ownDir(t, p, "elsewhere"))
		give(t, p, p.dataDir)
		why, err := p.upgradeObstacles()
		must(t, err)
		if (len(why) > 0) != (test.want != "") || !strings.Contains(strings.Join(why, "\n"), test.want) {
			t.Errorf("%s: %q, want %q", name, why, test.want)
		}
	}
}

// top is what is in a directory itself: within a data directory files come and go.
func top(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// ownDir is an empty directory of PostgreSQL's user, beside the data.
func ownDir(t *testing.T, p *Instance, name string) string {
	t.Helper()
	dir := filepath.Join(newDir(t), name)
	must(t, os.Mkdir(dir, 0o700))
	give(t, p, dir)
	return dir
}

// While a check is at work PostgreSQL is killed, as a guard does: nothing of the old version is
// started by it.
func TestUpgradeCheckStartsNothingOfTheOldVersion(t *testing.T) {
	ctx := within(t)
	a := serving(ctx, t)
	bin, next := nextBin(t, a.Major())
	conn, err := a.dedicated(ctx)
	must(t, err)
	old, err := a.describe(ctx, conn)
	must(t, err)
	hangUpOn(conn)
	programs, why := a.nextInstallation(ctx, next, bin)
	if why != "" {
		t.Fatal(why)
	}
	must(t, a.Kill(ctx)) // and postmaster.pid stays
	before, err := a.control(ctx)
	must(t, err)
	problems, _, err := a.tryUpgrade(ctx, programs, old)
	must(t, err)
	if len(problems) == 0 {
		t.Error("a PostgreSQL that does not run passes the check")
	}
	if after, err := a.control(ctx); err != nil || after.State != before.State || after.CheckpointLSN != before.CheckpointLSN {
		t.Errorf("the control file was %+v, is %+v, %v: PostgreSQL was started", before, after, err)
	}
	if pids, err := fence.Processes(a.dataDir); err != nil || len(pids) > 0 {
		t.Errorf("there run %v, %v", pids, err)
	}
}

// What a check may not remove stays: what no check has made, what others have mounted there, what
// a link leads to.
func TestUpgradeCheckRemovesOnlyItsOwn(t *testing.T) {
	ctx := within(t)
	for name, test := range map[string]struct {
		prepare func(t *testing.T, scratch, precious string)
		gone    bool
	}{
		"of a check that was killed": {func(t *testing.T, scratch, _ string) { put(t, filepath.Join(scratch, upgradeMark), "") }, true},
		"of one that had just begun": {func(t *testing.T, scratch, _ string) { must(t, os.Mkdir(scratch, 0o700)) }, true},
		"a directory of somebody's":  {func(t *testing.T, scratch, _ string) { put(t, filepath.Join(scratch, "data", "PG_VERSION"), "15") }, false},
		"a file":                     {func(t *testing.T, scratch, _ string) { put(t, scratch, "x") }, false},
		"a link to somebody's data":  {func(t *testing.T, scratch, precious string) { must(t, os.Symlink(precious, scratch)) }, false},
		"a link within it, as its cluster's": {func(t *testing.T, scratch, precious string) {
			put(t, filepath.Join(scratch, upgradeMark), "")
			must(t, os.Symlink(precious, filepath.Join(scratch, "data")))
		}, true},
		"with something mounted in it": {func(t *testing.T, scratch, precious string) {
			put(t, filepath.Join(scratch, upgradeMark), "")
			must(t, os.Mkdir(filepath.Join(scratch, "mnt"), 0o755))
			if err := unix.Mount(precious, filepath.Join(scratch, "mnt"), "", unix.MS_BIND, ""); err != nil {
				t.Skipf("no right to mount: %v", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(filepath.Join(scratch, "mnt"), unix.MNT_DETACH) })
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			p := newInstance(t, settings(t, dir, "a"))
			must(t, os.Mkdir(p.dataDir, 0o700))
			precious := filepath.Join(dir, "precious")
			put(t, filepath.Join(precious, upgradeMark), "")
			put(t, filepath.Join(precious, "kept"), "x")
			scratch, err := p.upgradeScratch()
			must(t, err)
			test.prepare(t, scratch, precious)
			give(t, p, dir)
			err = p.clearUpgradeScratch(ctx, scratch)
			if _, left := os.Lstat(scratch); os.IsNotExist(left) != test.gone || (err == nil) != test.gone {
				t.Errorf("%v, %v", err, left)
			}
			if _, err := os.Stat(filepath.Join(precious, "kept")); err != nil {
				t.Error(err)
			}
		})
	}
}

// A host without the other version, or with another one under its name, says so, and PostgreSQL is
// not even asked.
func TestUpgradeCheckNeedsThePrograms(t *testing.T) {
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	own, next := binDir(t), p.Major()+1
	empty := t.TempDir()
	for name, test := range map[string]struct {
		to   int
		said string
		want string
	}{
		"the same version":      {p.Major(), own, "is no later version than"},
		"an older version":      {p.Major() - 1, own, "is no later version than"},
		"nothing there":         {next, empty, "has no postgres, pg_upgrade, initdb"},
		"no such directory":     {next, filepath.Join(empty, "x"), "install its packages"},
		"another one's place":   {next, own, "the programs in " + own + " say postgres (PostgreSQL)"},
		"one that is not there": {99, "", "install its packages"},
	} {
		found, err := p.CheckUpgrade(ctx, test.to, test.said)
		if err != nil || len(found.Problems) != 1 || !strings.Contains(found.Problems[0], test.want) {
			t.Errorf("%s: %q, %v", name, found.Problems, err)
		}
	}
}

// A disk that is nearly full is not filled: the PostgreSQL that serves is on it.
func TestUpgradeCheckLeavesRoom(t *testing.T) {
	p := newInstance(t, settings(t, newDir(t), "a"))
	dir := filepath.Dir(p.dataDir)
	free, err := p.disk.Room(dir)
	must(t, err)
	for walSegmentMB, refused := range map[int]bool{16: false, 1024 + int((free-upgradeRoom)>>22): true, int(free >> 20): true} {
		if why, err := p.noRoomForUpgrade(dir, oldCluster{walSegmentMB: walSegmentMB}); err != nil || (why != "") != refused {
			t.Errorf("segments of %d MB, %d MB free: %q, %v", walSegmentMB, free>>20, why, err)
		}
	}
}

func TestOtherBinDir(t *testing.T) {
	for dir, want := range map[string]string{
		"/usr/lib/postgresql/15/bin":    "/usr/lib/postgresql/17/bin",
		"/usr/pgsql-15/bin":             "/usr/pgsql-17/bin",
		"/opt/pg15/bin":                 "/opt/pg17/bin",
		"/usr/local/pgsql/bin":          "",
		"/opt/15/postgresql/15/bin":     "",
		"/opt/115/bin":                  "",
		"/opt/postgresql-15.4/bin":      "",
		"/nix/store/a15b-postgresql-15": "",
	} {
		if got := otherBinDir(dir, 15, 17); got != want {
			t.Errorf("%s: %q, want %q", dir, got, want)
		}
	}
}

func TestUpgradeWords(t *testing.T) {
	const out = `Performing Consistency Checks on Old Live Server
------------------------------------------------
Checking cluster versions                                   ok
Checking for prepared transactions                          fatal

The source cluster contains prepared transactions
Failure, exiting
`
	if got := upgradeWords(out); got != "Checking for prepared transactions fatal The source cluster contains prepared transactions" {
		t.Errorf("%q", got)
	}
	if got := upgradeWords("Checking cluster versions   ok\n\n*Clusters are compatible*\n"); got != "" {
		t.Errorf("%q", got)
	}
}
