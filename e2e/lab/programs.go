package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// Find fills in the programs whose path is empty, from the environment
// (LICTOR_BIN, CONSUL_BIN, POSTGRES_BIN), from where Debian and the Makefile put
// them, and from $PATH. Its error lists everything that is missing and says how
// to get it.
func (p Programs) Find() (Programs, error) {
	var errs []error
	find := func(field *string, help string, candidates ...string) {
		if *field != "" {
			candidates = []string{*field}
		}
		for _, c := range candidates {
			if c == "" {
				continue
			}
			if path, err := exec.LookPath(c); err == nil {
				// Processes are started in other directories than this one.
				if path, err = filepath.Abs(path); err == nil {
					*field = path
					return
				}
			}
		}
		errs = append(errs, errors.New(help))
	}
	if p.Lictor == "" { // a lab of other software needs none: see lictor
		p.Lictor = os.Getenv("LICTOR_BIN")
	}
	find(&p.Consul, "consul: not found; run `make deps`, which builds it once, or name the binary in CONSUL_BIN",
		os.Getenv("CONSUL_BIN"), cachedConsul(), "consul")
	find(&p.PgBouncer, "pgbouncer: not found; install the Debian package pgbouncer", "pgbouncer", "/usr/sbin/pgbouncer")
	find(&p.HAProxy, "haproxy: not found; install the Debian package haproxy", "haproxy", "/usr/sbin/haproxy")

	postgres := ""
	if p.PostgresBin != "" {
		postgres = filepath.Join(p.PostgresBin, "postgres")
	}
	find(&postgres, "postgres: no PostgreSQL 12 or newer found; install the Debian package postgresql-15, or name the directory of its programs in POSTGRES_BIN",
		append([]string{binOf(os.Getenv("POSTGRES_BIN"))}, debianPostgres()...)...)
	if postgres != "" {
		p.PostgresBin = filepath.Dir(postgres)
	}
	if len(errs) > 0 {
		return p, fmt.Errorf("programs are missing:\n%w", errors.Join(errs...))
	}
	return p, nil
}

// lictor is the path of Lictor's own binary.
func (p Programs) lictor() (string, error) {
	path, err := exec.LookPath(p.Lictor)
	if p.Lictor == "" || err != nil {
		return "", fmt.Errorf("lictor: %q is not a program; run `make build`, and name the binary in LICTOR_BIN", p.Lictor)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", fmt.Errorf("lictor: %w", err)
	}
	return path, nil
}

func binOf(dir string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, "postgres")
}

// consulVersion is the one that e2e/tools/consul.sh builds.
const consulVersion = "1.20.1"

func cachedConsul() string {
	cache, err := os.UserCacheDir() // $XDG_CACHE_HOME, else ~/.cache
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "lictor", "consul-"+consulVersion)
}

// debianPostgres lists the installed servers, the newest that Lictor supports
// first, then the one on $PATH.
func debianPostgres() []string {
	var found []string
	for major := 18; major >= 12; major-- {
		found = append(found, filepath.Join("/usr/lib/postgresql", strconv.Itoa(major), "bin/postgres"))
	}
	return append(found, "postgres")
}
