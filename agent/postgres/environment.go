package postgres

import (
	"os"
	"slices"
	"strings"
)

// passedOn are the variables that PostgreSQL, its programs and scripts get of the agent's
// environment. Tokens and passwords reach a service in variables, too, and whoever may
// run a program as PostgreSQL (a superuser's COPY FROM PROGRAM, an archive_command) would
// read them: nothing is handed on that is not known or named.
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

// ownsVariable reports whether a variable is never handed on: libpq's could lead programs
// elsewhere, and messages that can be parsed need one language.
func ownsVariable(name string) bool {
	return strings.HasPrefix(name, "PG") && !strings.Contains(name, "_") || strings.HasPrefix(name, "LC_") || name == "LANG" || name == "NOTIFY_SOCKET"
}

// environment is that of PostgreSQL's programs, with the agent's variables that names
// names besides.
func environment(names []string, extra ...string) []string {
	env := []string{"LC_ALL=C.UTF-8", "LANG=C.UTF-8"}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !ownsVariable(name) && (matches(name, passedOn()) || matches(name, names)) {
			env = append(env, kv)
		}
	}
	return append(env, extra...)
}

func (p *Instance) environ(extra ...string) []string { return environment(p.pass, extra...) }

// unpassed are the names of the agent's variables that PostgreSQL would have had before
// they had to be named.
func (p *Instance) unpassed() []string {
	var left []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		known := []string{
			"LICTOR_*", "PATRONI_*", "CONSUL_*", "PWD", "OLDPWD", "SHLVL", "_", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID",
			"MAINPID", "MANAGERPID", "WATCHDOG_*", "CREDENTIALS_DIRECTORY", "MEMORY_PRESSURE_*", "LISTEN_*", "GO*", "SSH_*", "XDG_*", "SUDO_*", "MAIL",
		}
		if !ownsVariable(name) && !matches(name, passedOn()) && !matches(name, p.pass) && !matches(name, known) {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	return left
}
