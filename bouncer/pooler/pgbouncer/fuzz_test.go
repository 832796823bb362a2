package pgbouncer

import (
	"strings"
	"testing"
)

// answerOf makes the console's answer of lines of values separated by |, the
// first of which names the columns.
func answerOf(text string) []row {
	lines := strings.Split(text, "\n")
	columns := map[string]int{}
	for i, c := range strings.Split(lines[0], "|") {
		columns[c] = i
	}
	var rows []row
	for _, line := range lines[1:] {
		r := row{columns: columns}
		for _, value := range strings.Split(line, "|") {
			r.values = append(r.values, []byte(value))
		}
		rows = append(rows, r)
	}
	return rows
}

// Whatever a console of another version answers, it is understood or refused: a
// column that is missing is never taken for a zero.
func FuzzAnswers(f *testing.F) {
	f.Add("name|host|port|database|paused\ns1|10.0.0.1|5432|s1|1\npgbouncer||6432|pgbouncer|0")
	f.Add("database|user|cl_active|cl_waiting|sv_active|sv_idle|sv_used|sv_tested|sv_login|maxwait\ns1|app|1|2|3|4|5|6|7|8")
	f.Add("type|database|user|state|addr|port|local_addr|local_port|link|ptr\nS|s1|app|active|10.0.0.1|x|127.0.0.1|-1||0x1")
	f.Add("key|value|default|changeable\nlisten_port|6432|6432|no")
	f.Add("name|port\n")
	f.Fuzz(func(t *testing.T, text string) {
		rows := answerOf(text)
		has := func(columns ...string) bool {
			for _, c := range columns {
				if len(rows) > 0 {
					if _, found := rows[0].columns[c]; !found {
						return false
					}
				}
			}
			return true
		}
		answer := newDatabases(map[string]Database{"s1": {Name: "s1", Host: "10.0.0.1"}})
		var err error
		for _, r := range rows {
			if err = answer.add(r); err != nil {
				break
			}
		}
		all := answer.all
		if want := has("name", "host", "port", "database", "paused"); (err == nil) != want {
			t.Errorf("databases: %v", err)
		}
		if _, found := all["pgbouncer"]; found {
			t.Error("the console is among the databases")
		}
		for name, d := range all {
			if d.Name != name {
				t.Errorf("database %q under %q", d.Name, name)
			}
		}
		list, err := pools(rows)
		if want := has("database", "user", "cl_waiting", "sv_active"); (err == nil) != want {
			t.Errorf("pools: %v", err)
		}
		if len(list) > len(rows) {
			t.Error("more pools than rows")
		}
		if s, err := servers(rows); err == nil && len(s) != len(rows) {
			t.Errorf("%d servers of %d rows", len(s), len(rows))
		}
		if c, err := clients(rows); err == nil && len(c) != len(rows) {
			t.Errorf("%d clients of %d rows", len(c), len(rows))
		}
		settings := map[string]Setting{}
		for _, r := range rows {
			if err = addSetting(settings, r); err != nil {
				break
			}
		}
		if len(rows) > 0 && (err == nil) != has("key", "value", "changeable") {
			t.Errorf("config: %v", err)
		}
	})
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"127.0.0.1:6432", "[::1]:6432", "/run/postgresql:6432", "/tmp/.s.PGSQL.6432", "host", "::1", "a:b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		if a.Host == "" || a.Port < 1 || a.Port > 65535 {
			t.Fatalf("%q became %+v", s, a)
		}
		if strings.Contains(a.Host, ":") && a.IsUnix() {
			return // a directory with a colon cannot be written back
		}
		if again, err := ParseAddress(a.String()); err != nil || again != a {
			t.Fatalf("%q became %+v, written %q, read as %+v, %v", s, a, a, again, err)
		}
	})
}

func FuzzParseVersion(f *testing.F) {
	for _, s := range []string{"PgBouncer 1.18.0", "1.24", "PgBouncer 1.25.0rc1", "99999999999999999999.1", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVersion(s)
		if err != nil {
			return
		}
		if v[0] < 0 || v[1] < 0 || v[2] < 0 || !v.AtLeast(v[0], v[1]) {
			t.Fatalf("%q became %v", s, v)
		}
	})
}
