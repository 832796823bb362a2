package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Those that are refused each alone are found in few trials, and none for what is refused only together.
func TestRefusedAlone(t *testing.T) {
	t.Parallel()
	names := strings.Fields("a b c d e f g h i j k l m n o p q r s t u v w x y z")
	for bad, most := range map[string]int{"": 2, "k": 10, "a z": 18, "m n": 18, "c+d": 26} {
		trials, want := 0, map[string]string{}
		try := func(some []string) (string, error) {
			trials++
			why := ""
			for name := range strings.FieldsSeq(bad) {
				if first, second, both := strings.Cut(name, "+"); slices.Contains(some, first) && (!both || slices.Contains(some, second)) {
					why = name + " is bad"
				}
			}
			return why, nil
		}
		for name := range strings.FieldsSeq(bad) {
			if len(name) == 1 {
				want[name] = name + " is bad"
			}
		}
		refused := map[string]string{}
		if err := refusedAlone(names, "some is", try, refused); err != nil || !maps.Equal(refused, want) {
			t.Errorf("%q: refused are %v, %v", bad, refused, err)
		}
		if trials > most {
			t.Errorf("%q: %d trials, at most %d are wanted", bad, trials, most)
		}
	}
	if err := refusedAlone(names, "some is", func([]string) (string, error) { return "", errNoTrial }, nil); !errors.Is(err, errNoTrial) {
		t.Errorf("it could not be asked: %v", err)
	}
}

// What PostgreSQL refuses of parameters is not written: it would not start with that.
// The value before stays.
func TestRefusedValues(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	var log strings.Builder
	p := newInstance(t, s)
	p.log = p.log.Output(&log)
	apply := func(parameters map[string]any) {
		p.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: parameters}})
	}
	show := func(name string) (value string) {
		conn, err := p.dedicated(ctx)
		must(t, err)
		defer hangUpOn(conn)
		must(t, conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&value))
		return value
	}
	apply(map[string]any{"timezone": "Nowhere", "work_mem": "7MB"})
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	if got := show("work_mem"); got != "7MB" {
		t.Errorf("work_mem %s", got)
	}
	if !strings.Contains(log.String(), `"parameter":"timezone","value":"Nowhere"`) {
		t.Errorf("not told: %s", log.String())
	}
	if told := p.Refused(); len(told) != 1 || !strings.Contains(told[0], "timezone: Nowhere: ") {
		t.Errorf("refused: %q", told)
	}
	apply(map[string]any{"timezone": "Europe/Rome", "xmloption": "document"})
	_, err := p.Rewrite(ctx)
	must(t, err)
	if told := p.Refused(); len(told) != 0 {
		t.Errorf("refused still: %q", told)
	}
	apply(map[string]any{"timezone": "Nowhere/Else", "xmloption": "strange", "log_destination": "stdout", "work_mem": "9MB"})
	_, err = p.Rewrite(ctx)
	must(t, err)
	must(t, p.Stop(ctx, Fast))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	for name, want := range map[string]string{"timezone": "Europe/Rome", "xmloption": "document", "log_destination": "stderr", "work_mem": "9MB"} {
		if got := show(name); got != want {
			t.Errorf("%s is %s, not %s", name, got, want)
		}
	}
	// What is written for replicas would keep one from starting as well.
	recovery := func(delay string) {
		p.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{RecoveryConf: map[string]any{"recovery_min_apply_delay": delay}}})
		_, err := p.Rewrite(ctx)
		must(t, err)
	}
	recovery("3s")
	recovery("soon")
	if content, err := os.ReadFile(p.inData("postgresql.conf")); err != nil || !strings.Contains(string(content), "recovery_min_apply_delay = '3s'") {
		t.Errorf("%v\n%s", err, content)
	}
	if told := p.Refused(); len(told) != 1 || !strings.Contains(told[0], "recovery_min_apply_delay: soon") {
		t.Errorf("refused: %q", told)
	}
	p.Apply(cluster.Dynamic{})
	_, err = p.Rewrite(ctx)
	must(t, err)
	if told := p.Refused(); len(told) > 0 { // it is not for ever
		t.Errorf("refused: %q", told)
	}
	apply(map[string]any{"timezone": "Nowhere/Else", "xmloption": "strange", "log_destination": "stdout", "work_mem": "9MB"})
	_, err = p.Rewrite(ctx)
	must(t, err)
	// An agent that starts anew takes the value before from the file.
	again := newInstance(t, s)
	again.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: map[string]any{"timezone": "Nowhere/Else"}}})
	again.judge(ctx)
	if got := again.parameters()["timezone"]; got != "Europe/Rome" {
		t.Errorf("after a restart of the agent: %q", got)
	}

	t.Run("PostgreSQL could not be asked", func(t *testing.T) {
		apply(map[string]any{"timezone": "Europe/Rome", "work_mem": "7MB"})
		p.judge(ctx)
		apply(map[string]any{"timezone": "Nowhere", "log_timezone": "Nowhere", "work_mem": "8MB"})
		late, cancel := context.WithCancel(ctx)
		cancel()
		if p.judge(late); !p.Unasked() || p.parameters()["timezone"] != "Nowhere" {
			t.Errorf("unasked %t, used is %v", p.Unasked(), p.parameters())
		}
		p.judge(ctx)
		now := p.parameters()
		if _, used := now["log_timezone"]; p.Unasked() || used || now["timezone"] != "Europe/Rome" || now["work_mem"] != "8MB" {
			t.Errorf("unasked %t, used is %v", p.Unasked(), now)
		}
		if told := p.Refused(); len(told) != 2 {
			t.Errorf("refused: %q", told)
		}
	})

	t.Run("values that are not taken together", func(t *testing.T) {
		refused, err := p.RefusedValues(ctx, map[string]string{"recovery_target_time": "2030-01-01", "recovery_target_xid": "5", "work_mem": "7MB"})
		must(t, err)
		if len(refused) != 1 || !strings.Contains(refused["recovery_target_xid"], "multiple recovery targets") {
			t.Errorf("%q", refused)
		}
	})

	t.Run("a file", func(t *testing.T) {
		file := s.Postgres
		file.Parameters = map[string]any{"TimeZone": "Nope", "work_mem": "7MB", "auto_explain.log_analyze": true, "Archive_Command": strings.Repeat("x", maxCommand+1)}
		file.RecoveryConf = map[string]any{"recovery_min_apply_delay": "later", "primary_conninfo": 1}
		dcs := map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"datestyle": "foo", "port": 1}}}
		warnings, problems, unasked := CheckFile(ctx, file, dcs)
		must(t, unasked)
		if cut := strings.Contains(fmt.Sprint(warnings), "postgresql.parameters.Archive_Command: PostgreSQL"); cut != (p.Major() <= 15) {
			t.Errorf("a command that is cut off: %v", warnings)
		}
		if all := cluster.Problems(problems); len(all) != 3 || !strings.Contains(problems.Error(), "postgresql.recovery_conf.recovery_min_apply_delay") || !strings.Contains(problems.Error(), "bootstrap.dcs.postgresql.parameters.datestyle") ||
			!strings.Contains(problems.Error(), "postgresql.parameters.TimeZone") {
			t.Errorf("%v", problems)
		}
		file.BinDir = "/nowhere"
		if _, _, unasked := CheckFile(ctx, file, nil); unasked == nil {
			t.Error("there is no program that could have judged")
		}
	})

	t.Run("a change", func(t *testing.T) {
		for _, test := range []struct{ name, value, want string }{
			{"timezone", "Nope", "timezone: Nope: PostgreSQL says: invalid value for parameter"},
			{"datestyle", "foo", `Unrecognized key word: "foo"`},
			{"log_destination", "stdout", "Unrecognized key word"},
			{"log_timezone", "Nope", "invalid value"},
			{"lc_messages", "xx_YY", "invalid value"},
			{"search_path", "a,,b", "List syntax is invalid"},
			{"synchronous_standby_names", "FIRST (a", "syntax error"},
			{"timezone_abbreviations", "Nope", "invalid value"},
			{"backtrace_functions", "a%b", "nvalid character"}, // from 17 on: Invalid
			{"shared_preload_libraries", "auto_explain, nosuch", `would not start with this: could not access file "nosuch"`},
			{"shared_preload_libraries", "a,,b", "invalid list syntax"},
			{"ssl", "on", "could not load server certificate file"},
			{"unix_socket_directories", "/nosuch, /proc", "would not start with this: unix_socket_directories: PostgreSQL's user can make no socket in /nosuch, /proc"},
			{"unix_socket_directories", "/nosuch, " + dir, ""},
			{"unix_socket_directories", "", ""},
			{"shared_preload_libraries", "auto_explain", ""},
			{"auto_explain.log_min_duration", "5s", ""},
			{"search_path", `"$user", public`, ""},
			{"log_line_prefix", "%m [%p] ", ""},
			{"lc_messages", "C", ""},
			{"synchronous_standby_names", "ANY 1 (a, b)", ""},
			{"archive_command", "cp %p /somewhere/%f # it's", ""},
		} {
			after := cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: map[string]any{test.name: test.value}}}
			err := p.CheckChange(ctx, cluster.Dynamic{}, after)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s = %s: %v, not %q", test.name, test.value, err, test.want)
			}
		}
		logs := map[string]any{"logging_collector": true, "log_directory": "/nosuch/log"}
		err := p.CheckChange(ctx, cluster.Dynamic{}, cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: logs}})
		if err == nil || !strings.Contains(err.Error(), "log_directory: PostgreSQL's user can write no log in /nosuch/log") {
			t.Errorf("%v", err)
		}
		logs["log_directory"] = "log" // it makes that itself
		must(t, p.CheckChange(ctx, cluster.Dynamic{}, cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: logs}}))
		hba := func(lines ...string) cluster.Dynamic {
			return cluster.Dynamic{Postgres: cluster.DynamicPostgres{PgHBA: lines}}
		}
		must(t, p.CheckChange(ctx, cluster.Dynamic{}, hba("local all all trust", "host all all 127.0.0.1/32 trust")))
		if err := p.CheckChange(ctx, cluster.Dynamic{}, hba("local all all ldap ldapserver=x ldapbasedn=y ldapport=abc")); err == nil || !strings.Contains(err.Error(), `"abc"`) {
			t.Errorf("pg_hba: %v", err)
		}
	})
}

// A trial finds what keeps PostgreSQL from starting, also past the agent's own checks,
// and changes nothing.
func TestTryStart(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	t.Setenv("TMPDIR", dir)
	p := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	try := func(want string) {
		t.Helper()
		why, err := p.TryStart(ctx, Changed{})
		if err != nil || (why == "") != (want == "") || !strings.Contains(why, want) {
			t.Errorf("%q %v, not %q", why, err, want)
		}
	}
	try("")
	pid := p.PID()
	sql(ctx, t, p, "ALTER SYSTEM SET shared_preload_libraries = 'nosuch'")
	try(`could not access file "nosuch"`)
	sql(ctx, t, p, "ALTER SYSTEM RESET ALL")
	sql(ctx, t, p, "ALTER SYSTEM SET ssl = on")
	try("could not load server certificate file")
	sql(ctx, t, p, "ALTER SYSTEM RESET ALL")
	put(t, p.inData("pg_hba.conf"), "local all all nope\n")
	readable(t, p.inData("pg_hba.conf"))
	try(`invalid authentication method "nope"`)
	if p.PID() != pid || !p.Running() {
		t.Error("the trial has ended PostgreSQL")
	}
	left, err := filepath.Glob(filepath.Join(dir, "lictor-try-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// ALTER SYSTEM does not have PostgreSQL read another file than the one that is configured.
func TestAlterSystemNamesNoOtherFile(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	s.Postgres.PgHBA = []string{"local all all trust", "host all all 127.0.0.1/32 trust"}
	var log strings.Builder
	p := newInstance(t, s)
	p.log = p.log.Output(&log)
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, p, "ALTER SYSTEM SET hba_file = '/nowhere/hba'")
	sql(ctx, t, p, "ALTER SYSTEM SET work_mem = '5MB'")
	must(t, p.Stop(ctx, Fast))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	var hba, mem string
	must(t, conn.QueryRow(ctx, "SELECT current_setting('hba_file'), current_setting('work_mem')").Scan(&hba, &mem))
	if hba != p.inData("pg_hba.conf") || mem != "5MB" || !strings.Contains(log.String(), `"value":"/nowhere/hba","message":"removed`) {
		t.Errorf("hba_file %s, work_mem %s: %s", hba, mem, log.String())
	}
}
