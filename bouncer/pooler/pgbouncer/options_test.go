package pgbouncer_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// installed is the version of the PgBouncer in the path.
func installed(t *testing.T) pgbouncer.Version {
	t.Helper()
	out, err := exec.Command("pgbouncer", "--version").Output()
	if err != nil {
		t.Skipf("pgbouncer is needed: %v", err)
	}
	v, err := pgbouncer.ParseVersion(string(out))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// goodValue is a value for an option, with all that PgBouncer's grammar has for texts.
func goodValue(name string) string {
	switch name {
	case "host":
		return "127.0.0.1,/run/a dir"
	case "port":
		return "5433"
	case "pool_mode":
		return "Session"
	case "load_balance_hosts":
		return "disable"
	case "dbname", "auth_dbname", "user", "auth_user":
		return "it's a = \"b\" ; # [x] é"
	case "password", "application_name", "auth_query", "connect_query", "client_encoding", "datestyle", "timezone":
		return "SELECT 'a', \"b\" -- ; # %include [x] = é\\"
	}
	return "7"
}

// The PgBouncer here starts with exactly those options that its version is said to know.
func TestOptionsAreKnown(t *testing.T) {
	version := installed(t)
	for _, section := range []pgbouncer.OptionSection{pgbouncer.DatabaseOptions, pgbouncer.UserOptions} {
		for _, name := range section.Names() {
			t.Run(fmt.Sprintf("%s/%s", section, name), func(t *testing.T) {
				value := goodValue(name)
				if err := section.Check(name, value); err != nil {
					t.Fatal(err)
				}
				written, known := section.Written(name, version)
				try := written
				if !known {
					try = name
				}
				out, err := bouncertest.StartsWith(t, fmt.Sprintf("[%s]\nx =%s\n[pgbouncer]\n", section, pgbouncer.FormatOptions([]pgbouncer.Option{{Name: try, Value: value}})))
				if started := err == nil; started != known || strings.Contains(out, "ERROR") == known {
					t.Errorf("PgBouncer %s knows %s: %v; it says %v\n%s", version, try, known, err, out)
				}
			})
		}
	}
}

// Values that PgBouncer refuses, or takes for something else, are refused here.
func TestOptionValues(t *testing.T) {
	for _, c := range []struct {
		section     pgbouncer.OptionSection
		name, value string
		want        string // empty: good
	}{
		{pgbouncer.DatabaseOptions, "pool_size", "20", ""},
		{pgbouncer.DatabaseOptions, "pool_size", "0", `"0" must be a whole number from 1 on`},
		{pgbouncer.DatabaseOptions, "pool_size", "20x", `"20x" must be a whole number from 1 on`},
		{pgbouncer.DatabaseOptions, "pool_size", "99999999999", `"99999999999" must be a whole number from 1 on`},
		{pgbouncer.DatabaseOptions, "server_lifetime", "0.5", `"0.5" must be a whole number from 0 on`},
		{pgbouncer.DatabaseOptions, "pool_mode", "transactions", `"transactions" must be one of session, transaction, statement`},
		{pgbouncer.DatabaseOptions, "load_balance_hosts", "random", `"random" must be one of disable, round-robin`},
		{pgbouncer.DatabaseOptions, "application_name", "", "must not be empty: PgBouncer refuses that"},
		{pgbouncer.DatabaseOptions, "connect_query", "a\nb", `"a\nb" must be one line without control characters`},
		{pgbouncer.DatabaseOptions, "password", "secret\n", "must be one line without control characters"},
		{pgbouncer.DatabaseOptions, "auth_dbname", "pgbouncer", `"pgbouncer" is PgBouncer's own console`},
		{pgbouncer.DatabaseOptions, "user", strings.Repeat("u", 64), `"` + strings.Repeat("u", 64) + `" must not be longer than 63 bytes`},
		{pgbouncer.DatabaseOptions, "reserve_pool", "5", "PgBouncer's section [databases] has no such option, did you mean reserve_pool_size?"},
		{pgbouncer.DatabaseOptions, "max_db_conections", "5", "PgBouncer's section [databases] has no such option, did you mean max_db_connections?"},
		{pgbouncer.UserOptions, "max_user_connections", "5", ""},
		{pgbouncer.UserOptions, "connect_query", "x", "PgBouncer's section [users] has no such option"},
	} {
		err := c.section.Check(c.name, c.value)
		if got := fmt.Sprint(err); err == nil && c.want != "" || err != nil && got != c.want {
			t.Errorf("%s %s=%q: %v, want %s", c.section, c.name, c.value, err, c.want)
		}
	}
}
