package cli

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// repackSeat is where a person sits who repacks tables of the postgres database.
type repackSeat struct {
	*operatorSeat
	leader *lab.Member
	conn   *pgx.Conn
}

// TestRepack repacks tables of a real PostgreSQL with the real pg_repack, and has it stopped by what it must stop for.
func TestRepack(t *testing.T) {
	if repackProgram(t) == "" {
		t.Skip("pg_repack of this PostgreSQL is not installed: make deps")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l := labtest.Serving(ctx, t, lab.Options{TTL: 5, Members: 2, Bouncers: -1, ConsulServers: 1})
	o := &repackSeat{operatorSeat: &operatorSeat{t: t, lab: l, shard: l.Shard(0)}}
	o.leader = o.healthy()
	var err error
	o.conn, err = o.leader.Connect(ctx, "postgres")
	testkit.Must(t, err)
	defer o.conn.Close(ctx)
	for _, step := range []struct {
		name string
		run  func(*repackSeat)
	}{
		{"what cannot be", testRepackUsage},
		{"a table and its index", testRepackTable},
		{"a table that is in use", testRepackInUse},
		{"a long transaction", testRepackTransaction},
		{"a transaction grows old", testRepackGrowsOld},
		{"what a killed run has left", testRepackLeftovers},
		{"its window", testRepackWindow},
		{"a replica that is away", testRepackAway},
	} {
		t.Run(step.name, func(t *testing.T) {
			o.t = t
			step.run(o)
		})
	}
}

// repackProgram is pg_repack of the PostgreSQL that the tests run; empty: there is none.
func repackProgram(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(cmp.Or(os.Getenv("POSTGRES_BIN"), "/usr/lib/postgresql/*/bin"), "pg_repack"))
	testkit.Must(t, err)
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

func (o *repackSeat) exec(sql string) {
	o.t.Helper()
	if _, err := o.conn.Exec(o.ctx(), sql); err != nil {
		o.t.Fatalf("%s: %v", sql, err)
	}
}

func (o *repackSeat) ask(sql string) (got string) {
	o.t.Helper()
	if err := o.conn.QueryRow(o.ctx(), "SELECT ("+sql+")::text").Scan(&got); err != nil {
		o.t.Fatalf("%s: %v", sql, err)
	}
	return got
}

// bloat makes a table of which most is empty.
func (o *repackSeat) bloat(table string) {
	o.t.Helper()
	o.exec("CREATE TABLE " + table + " (id bigint PRIMARY KEY, what text)")
	o.exec("INSERT INTO " + table + " SELECT n, repeat('x', 100) FROM generate_series(1, 60000) n")
	o.exec("DELETE FROM " + table + " WHERE id % 10 <> 0")
	o.exec("VACUUM " + table)
}

// held opens a transaction that has a table in use.
func (o *repackSeat) held(table string) *pgx.Conn {
	o.t.Helper()
	conn, err := o.leader.Connect(o.ctx(), "postgres")
	testkit.Must(o.t, err)
	o.t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(o.t.Context())) })
	_, err = conn.Exec(o.ctx(), "BEGIN; SELECT FROM "+table+" LIMIT 1")
	testkit.Must(o.t, err)
	return conn
}

// nothingLeft: neither triggers nor tables of pg_repack are there, nor its extension.
func (o *repackSeat) nothingLeft() {
	o.t.Helper()
	if got := o.ask("SELECT string_agg(t, ', ') FROM (SELECT tgrelid::regclass::text t FROM pg_trigger WHERE tgname = 'repack_trigger' " +
		"UNION ALL SELECT nspname FROM pg_namespace WHERE nspname IN ('repack', 'lictor_measures') UNION ALL SELECT extname FROM pg_extension WHERE extname = 'pgstattuple') x" +
		" HAVING count(*) > 0 UNION ALL SELECT '' LIMIT 1"); got != "" {
		o.t.Errorf("left: %s", got)
	}
}

func repack(table string, more ...string) []string {
	return append([]string{"repack", "--database", "postgres", "--force", "--table", table}, more...)
}

func testRepackUsage(o *repackSeat) {
	o.exec("CREATE TABLE keyless (n int); CREATE TABLE parts (n int PRIMARY KEY) PARTITION BY RANGE (n); CREATE VIEW seen AS SELECT 1 AS one")
	o.ends(operator.ExitUsage, "never all of them", "", "repack", "--database", "postgres", "--force")
	o.ends(operator.ExitUsage, "there is no such table", "", repack("none")...)
	o.ends(operator.ExitUsage, "invalid name syntax", "", repack("x'; DROP TABLE keyless; --")...)
	o.ends(operator.ExitUsage, "has no primary key", "", repack("keyless")...)
	o.ends(operator.ExitUsage, "name its partitions", "", repack("parts")...)
	o.ends(operator.ExitUsage, "is no table", "", repack("seen")...)
	o.ends(operator.ExitUsage, "is no table", "", repack("pg_catalog.pg_class")...)
	o.ends(operator.ExitRefused, "pg_repack cannot be run", "", repack("keyless", "--program", "/nowhere/pg_repack")...)
	o.nothingLeft()
}

func testRepackTable(o *repackSeat) {
	o.bloat(`"Or ders"`)
	o.exec("CREATE TABLE full_one (id bigint PRIMARY KEY, what text); INSERT INTO full_one SELECT n, repeat('x', 100) FROM generate_series(1, 60000) n")
	before := o.ask(`pg_total_relation_size('"Or ders"')`)
	args := repack(`"Or ders"`, "--table", "full_one")
	o.ends(operator.ExitFindings, "1 of 2 tables would be repacked", "", append(args, "--check")...)
	if now := o.ask(`pg_total_relation_size('"Or ders"')`); now != before {
		o.t.Errorf("a check has changed its size from %s to %s", before, now)
	}
	o.nothingLeft()
	file := o.ask("pg_relation_filenode('full_one')")
	o.must(args...)
	if got := o.ask(`pg_total_relation_size('"Or ders"') * 5 < ` + before); got != "true" {
		o.t.Errorf("it was %s bytes and is %s", before, o.ask(`pg_total_relation_size('"Or ders"')`))
	}
	if got := o.ask(`(SELECT count(*) FROM "Or ders")`); got != "6000" {
		o.t.Errorf("%s rows are left", got)
	}
	if now := o.ask("pg_relation_filenode('full_one')"); now != file {
		o.t.Error("a table that was full was repacked, too")
	}
	o.nothingLeft()
	o.must(append(args, "--check")...) // a second time there is nothing to do
	o.must(args...)
	o.healthy()
}

// A table whose lock is not had in time is given up; nobody's session is ended for it.
func testRepackInUse(o *repackSeat) {
	o.bloat("used")
	file := o.ask("pg_relation_filenode('used')")
	user := o.held("used")
	began := time.Now()
	o.ends(operator.ExitFailed, "used was not repacked, 0 of 1 were", "", repack("used", "--wait-timeout", "2s", "--max-transaction", "5m")...)
	o.t.Logf("given up after %s", time.Since(began).Round(100*time.Millisecond))
	if _, err := user.Exec(o.ctx(), "COMMIT"); err != nil {
		o.t.Errorf("who used it: %v", err)
	}
	if now := o.ask("pg_relation_filenode('used')"); now != file {
		o.t.Error("it was repacked all the same")
	}
	o.must(repack("used")...) // and takes away what it could not, as long as the table was in use
	o.nothingLeft()
}

func testRepackTransaction(o *repackSeat) {
	o.bloat("waits")
	user := o.held("waits")
	o.await(func() error {
		if r := o.run("", repack("waits", "--max-transaction", "1s", "--check")...); r.code != operator.ExitRefused || !strings.Contains(r.err, "a transaction has been running for") {
			return context.DeadlineExceeded
		}
		return nil
	})
	_, err := user.Exec(o.ctx(), "COMMIT")
	testkit.Must(o.t, err)
	o.nothingLeft()
}

// A transaction that grows old while pg_repack waits for it, with its trigger in place, stops it.
func testRepackGrowsOld(o *repackSeat) {
	user := o.held("full_one")
	o.ends(operator.ExitFailed, "pg_repack was stopped: a transaction has been running for", "", repack("waits", "--wait-timeout", "3s", "--max-transaction", "4s")...)
	o.nothingLeft()
	_, err := user.Exec(o.ctx(), "COMMIT")
	testkit.Must(o.t, err)
	o.must(repack("waits")...)
	o.nothingLeft()
}

// What a run that was killed has left is removed, and nothing else that is there.
func testRepackLeftovers(o *repackSeat) {
	o.bloat("broken")
	o.exec("CREATE EXTENSION pg_repack")
	user := o.held("full_one") // pg_repack waits for who began before it, whatever they use
	config := o.conn.Config()
	cmd := exec.CommandContext(o.ctx(), repackProgram(o.t), "--no-kill-backend", "--wait-timeout=600", "--no-password", "--host="+config.Host,
		"--port="+strings.TrimSpace(o.ask("current_setting('port')")), "--username="+config.User, "--dbname=postgres", "--table=broken")
	cmd.Env = []string{"PGPASSWORD=" + config.Password, "PGSSLMODE=disable", "LC_ALL=C.UTF-8"}
	testkit.Must(o.t, cmd.Start())
	o.await(func() error {
		var n int
		err := o.conn.QueryRow(o.ctx(), "SELECT count(*) FROM pg_trigger WHERE tgname = 'repack_trigger'").Scan(&n)
		if err == nil && n == 0 {
			err = context.DeadlineExceeded
		}
		return err
	})
	o.ends(operator.ExitRefused, "another pg_repack is at work", "", repack("broken")...)
	testkit.Must(o.t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	_, err := user.Exec(o.ctx(), "COMMIT")
	testkit.Must(o.t, err)
	o.await(func() error {
		if o.ask("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_repack'") != "0" {
			return context.DeadlineExceeded
		}
		return nil
	})

	o.exec("CREATE TABLE repack.mine (n int); CREATE TABLE repack.log_of_mine (n int)")
	o.ends(operator.ExitRefused, "which did not make it", "", repack("broken")...)
	if got := o.ask("SELECT count(*) FROM pg_class WHERE relname IN ('mine', 'log_of_mine')"); got != "2" {
		o.t.Errorf("%s of 2 tables of somebody else's are left", got)
	}
	o.exec("DROP TABLE repack.mine, repack.log_of_mine")

	o.ends(operator.ExitFindings, "what broken runs have left: ", "", repack("broken", "--check")...)
	o.must(repack("broken")...)
	if got := o.ask("SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'repack' AND relkind IN ('r', 'c') AND relname ~ '_[0-9]+$'"); got != "0" {
		o.t.Errorf("%s things are left", got)
	}
	o.exec("DROP EXTENSION pg_repack") // it was there before, and stays
	o.nothingLeft()
}

func testRepackWindow(o *repackSeat) {
	o.must("edit-config", "--force", "-s", `maintenance_windows=["`+time.Now().UTC().Add(3*time.Hour).Format("15:04")+"-"+time.Now().UTC().Add(4*time.Hour).Format("15:04")+` for repack"]`)
	o.ends(operator.ExitRefused, "outside the maintenance windows of the shard for a repack", "", repack("broken", "--check")...)
	o.ends(operator.ExitRefused, "outside the maintenance windows of the shard for a repack", "", "windows", "--for", "repack")
	o.ends(operator.ExitUsage, "must be one of", "", "windows", "--for", "vacuum")
	o.must("windows", "--for", "restart")
	for _, row := range o.records("windows") {
		if open := row["Maintenance"] != "repack"; row["Now"] != open {
			o.t.Errorf("row: %v", row)
		}
	}
	o.must(repack("broken", "--outside-window")...)
	o.must("edit-config", "--force", "-s", "maintenance_windows=null")
}

func testRepackAway(o *repackSeat) {
	for _, m := range o.shard.Members() {
		if m.Name == o.leader.Name {
			continue
		}
		testkit.Must(o.t, m.Process("agent").Stop(o.ctx()))
		o.await(func() error { // with its session its key goes: then it is no member, and its slot keeps WAL
			r := o.run("", repack("broken", "--check")...)
			if r.code != operator.ExitRefused || !strings.Contains(r.err, "is away, and its slot keeps WAL") {
				return context.DeadlineExceeded
			}
			return nil
		})
	}
}
