package pooler

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// What the bouncer takes for a file of users PgBouncer reads to its end; and of one that it refuses PgBouncer
// reads what stands before the line that it names.
func TestUserlistAsPgBouncerReadsIt(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skip(err)
	}
	line := func(name, password string) string {
		if err := pgbouncer.CheckUser(name, password); err != nil {
			t.Fatal(err)
		}
		n, err := pgbouncer.QuoteUserlist(name)
		testkit.Must(t, err)
		p, err := pgbouncer.QuoteUserlist(password)
		testkit.Must(t, err)
		return n + " " + p + "\n"
	}
	last := line("last", "the last one")
	for name, test := range map[string]struct {
		middle string
		whole  bool
	}{
		"quotes":              {line("o'q\"ps", `a"b''c`), true},
		"the longest":         {line("ops", strings.Repeat("p", 2047)), true},
		"the longest, quoted": {line("ops", strings.Repeat(`"`, 1023)), true},
		"the longest name":    {line(strings.Repeat(`"`, 63), "x"), true},
		"a comment":           {"; \"ops\" \"x\"\n\n", true},
		"a word":              {"ops x\n", false},
		"another's comment":   {"# ops\n", false},
		"no end":              {"\"ops\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, port := bouncertest.Dir(t), bouncertest.FreePort(t)
			list := filepath.Join(dir, "userlist.txt")
			text := line("first", "the first one") + test.middle + last
			testkit.Must(t, os.WriteFile(list, []byte(text), 0o644))
			testkit.Must(t, os.WriteFile(filepath.Join(dir, "pgbouncer.ini"), []byte(fmt.Sprintf(
				"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nadmin_users = first, last\nauth_type = scram-sha-256\nauth_file = %s\n", port, list)), 0o644))
			said := runPgBouncer(t, dir)
			testkit.Await(t.Context(), t, "PgBouncer", func() error {
				if !strings.Contains(said.String(), "process up") {
					return errors.New(said.String())
				}
				return nil
			})
			users, err := pgbouncer.ParseUserlist([]byte(text))
			if _, found := users["last"]; found != test.whole || (err == nil) != test.whole {
				t.Errorf("read as %v, %v", users, err)
			}
			for user, want := range map[string]bool{"first": true, "last": test.whole} {
				conn, err := pgbouncer.Connect(t.Context(), pgbouncer.Options{Address: pgbouncer.Address{Host: "127.0.0.1", Port: port}, User: user, Password: "the " + user + " one"})
				if (err == nil) != want {
					t.Errorf("%s: %v, wanted in: %v\n%s", user, err, want, said)
				}
				if err == nil {
					conn.Close()
				}
			}
		})
	}
	for _, password := range []string{strings.Repeat("p", 2048), strings.Repeat(`"`, 1024)} {
		if err := pgbouncer.CheckUser("ops", password); err == nil {
			t.Errorf("a password of %d bytes is taken", len(password))
		}
	}
}
