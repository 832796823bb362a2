// Package environ decides which variables of Lictor's environment the programs get that
// it starts. Tokens and passwords reach a service in variables, too, and whoever may run a
// program as PostgreSQL or PgBouncer, or look at one (/proc), would read them: nothing is
// handed on that is not known or named.
//
// Its one file is environ.go.
package environ

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
)

// passedOn are the variables that every program gets.
func passedOn() []string {
	return []string{
		"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "TMPDIR", "LD_*", "MALLOC_*", "GLIBC_TUNABLES",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "OPENSSL_CONF",
	}
}

// matches reports whether one of the names is a variable's; one may end with * for any end.
func matches(variable string, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		begin, open := strings.CutSuffix(n, "*")
		return variable == n || open && strings.HasPrefix(variable, begin)
	})
}

// isOwn reports whether a variable is never handed on: libpq's could lead programs
// elsewhere, messages that can be parsed need one language, and it is for Lictor alone to
// talk to systemd.
func isOwn(name string) bool {
	return isLibpq(name) || strings.HasPrefix(name, "LC_") || name == "LANG" || name == "NOTIFY_SOCKET"
}

func isLibpq(name string) bool { return strings.HasPrefix(name, "PG") && !strings.Contains(name, "_") }

// For is the environment of a program, with the variables that names names besides the
// usual ones. A name may end with * for any end.
func For(names []string, extra ...string) []string {
	env := []string{"LC_ALL=C.UTF-8", "LANG=C.UTF-8"}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !isOwn(name) && (matches(name, passedOn()) || matches(name, names)) {
			env = append(env, kv)
		}
	}
	return append(env, extra...)
}

// Withheld are the names of variables that For leaves out and that somebody may miss:
// none of Lictor's own, and none that say how Lictor was started.
func Withheld(names []string) []string {
	var left []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		known := []string{
			"LICTOR_*", "PATRONI_*", "CONSUL_*", "PWD", "OLDPWD", "SHLVL", "_", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID",
			"MAINPID", "MANAGERPID", "WATCHDOG_*", "CREDENTIALS_DIRECTORY", "MEMORY_PRESSURE_*", "LISTEN_*", "GO*", "SSH_*", "XDG_*", "SUDO_*", "MAIL",
		}
		if !isOwn(name) && !matches(name, passedOn()) && !matches(name, names) && !matches(name, known) {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	return left
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*\*?$`)

// CheckName reports what is wrong with a name for For.
func CheckName(name string) error {
	switch {
	case !variableName.MatchString(name):
		return errors.New("must be the name of a variable, or the beginning of one with * after it")
	case isLibpq(name):
		return errors.New("must not be one of libpq's: it would lead PostgreSQL's programs elsewhere (PGBACKREST_* is fine)")
	}
	return nil
}
