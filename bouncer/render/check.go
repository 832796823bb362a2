package render

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Checker checks one rendered pgbouncer.ini after the other, for one configuration: what it
// has found of a database is kept as long as its line stands. It runs on one goroutine.
type Checker struct {
	config  config.Config
	version pgbouncer.Version
	parser  pgbouncer.Parser
	// values are settings whose values PgBouncer reads.
	values map[string]string
}

// NewChecker makes a checker for a configuration.
func NewChecker(c config.Config) *Checker { return &Checker{config: c} }

// Check is a checker's for one time.
func Check(text []byte, views []*Shard, c config.Config, version pgbouncer.Version) (pgbouncer.File, error) {
	return NewChecker(c).Check(text, views, version)
}

// Check reads a rendered pgbouncer.ini and reports whether it may be installed:
// it can be parsed, every shard is in it with the primary that is known, and
// the bouncer does not lock itself out, and PgBouncer could start with it.
func (k *Checker) Check(text []byte, views []*Shard, version pgbouncer.Version) (pgbouncer.File, error) {
	return k.check(text, views, version, k.checkStart)
}

// CheckTaken is Check for a text whose settings PgBouncer has taken once: what it needs at a start may
// have gone since, a certificate for one, and no shard waits for that.
func (k *Checker) CheckTaken(text []byte, views []*Shard, version pgbouncer.Version) (pgbouncer.File, error) {
	return k.check(text, views, version, func(pgbouncer.File) error { return nil })
}

func (k *Checker) check(
	text []byte, views []*Shard, version pgbouncer.Version, start func(pgbouncer.File) error,
) (pgbouncer.File, error) {
	if k.parser.Check == nil || k.version != version {
		k.version = version
		k.parser = pgbouncer.Parser{Check: func(e pgbouncer.Entry, params map[string]string) error { return checkEntry(e, params, version) }}
	}
	file, errs, err := k.parser.Parse(text)
	if err != nil {
		return pgbouncer.File{}, fmt.Errorf("the rendered file is not a pgbouncer.ini: %w", err)
	}
	found := finder{file, -1}
	for _, v := range views {
		for _, d := range v.Databases {
			if err := checkDatabase(&found, v, d); err != nil {
				errs = append(errs, err)
			}
		}
	}
	errs = append(errs, checkAccess(file, k.config), start(file))
	if err := errors.Join(errs...); err != nil {
		return pgbouncer.File{}, fmt.Errorf("the rendered file is refused: %w", err)
	}
	return file, nil
}

// checkEntry tells what of a database's line PgBouncer would not understand. It takes in
// nothing that comes after such a line, and before 1.25 it does not tell.
func checkEntry(e pgbouncer.Entry, params map[string]string, version pgbouncer.Version) error {
	var errs []error
	if e.Name != "*" {
		errs = append(errs, pgbouncer.CheckName(e.Name, version))
	}
	var wrong []string
	for name, value := range params {
		switch name {
		case "host", "port", "dbname":
			continue // looked at beside the routes
		case "reserve_pool":
			name = "reserve_pool_size" // newer ones take both
		default:
			written, known := pgbouncer.DatabaseOptions.Written(name, version)
			if version != (pgbouncer.Version{}) && known && written != name {
				known = false
			}
			if since := pgbouncer.DatabaseOptions.Since(name); !known && since != "" && version != (pgbouncer.Version{}) {
				wrong = append(wrong, fmt.Sprintf("%s: PgBouncer has this option from %s on, here it is %s", name, since, version))
				continue
			}
		}
		if err := pgbouncer.DatabaseOptions.Check(name, value); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", name, err))
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		errs = append(errs, fmt.Errorf("%q: %s", e.Name, strings.Join(wrong, "; ")))
	}
	return errors.Join(errs...)
}

// finder finds one database of a file after the other.
type finder struct {
	file pgbouncer.File
	last int
}

// database is that of the name; nil: there is none.
func (f *finder) database(name string) *pgbouncer.Entry {
	at := f.file.Find(name, f.last)
	if at < 0 {
		return nil
	}
	f.last = at
	return &f.file.Databases[at]
}

func checkDatabase(file *finder, v *Shard, d config.Database) error {
	leader := v.Route.Leader
	entry := file.database(d.Name)
	switch {
	case entry == nil:
		return fmt.Errorf("shard %s: database %q is missing", v.ID, d.Name)
	case entry.Host() != leader.Host || entry.Port() != leader.Port:
		return fmt.Errorf("shard %s: database %q leads to %q port %d, the primary is %s port %d",
			v.ID, d.Name, entry.Host(), entry.Port(), leader.Host, leader.Port)
	}
	if v.mode == config.ReadersOff {
		return nil // the name may be another's
	}
	// Whoever writes a template of their own may leave the readers out.
	if entry = file.database(d.ReadOnlyName()); entry == nil {
		return nil
	}
	if v.readers.unserved {
		to, _ := v.Readers()
		return fmt.Errorf("shard %s: database %q must not be there, its readers are %s: write it where (readers S).Host is not empty", v.ID, d.ReadOnlyName(), to)
	}
	if entry.Host() == v.readers.Host && entry.Port() == v.readers.Port {
		return nil // as they were chosen
	}
	members := v.Route.Replicas
	if v.mode != config.ReadersStrict {
		members = append([]cluster.RouteMember{leader}, members...)
	}
	for host := range strings.SplitSeq(entry.Host(), ",") {
		if !slices.ContainsFunc(members, func(m cluster.RouteMember) bool { return m.Host == host && m.Port == entry.Port() }) {
			return fmt.Errorf("shard %s: database %q leads to %q port %d, which is no member", v.ID, d.ReadOnlyName(), host, entry.Port())
		}
	}
	return nil
}

// CheckFallback looks whether the database * leads to the primary that it should follow. A
// template may have its own: that keeps no shard from its failover, and is no reason to refuse
// the file.
func CheckFallback(file pgbouncer.File, views ...*Shard) error {
	entry, found := file.Database("*")
	for _, v := range views {
		if leader := v.Route.Leader; found && v.Fallback && (entry.Host() != leader.Host || entry.Port() != leader.Port) {
			return fmt.Errorf("pgbouncer.fallback: database * leads to %q port %d, the primary of shard %s is %s port %d; "+
				"a template writes it by its function fallback", entry.Host(), entry.Port(), v.ID, leader.Host, leader.Port)
		}
	}
	return nil
}

// checkAccess makes sure that the bouncer still reaches PgBouncer afterwards.
func checkAccess(file pgbouncer.File, c config.Config) error {
	address, err := pgbouncer.ParseAddress(c.PgBouncer.Admin)
	if err != nil {
		return fmt.Errorf("pgbouncer.admin: %w", err)
	}
	var errs []error
	if port, set := file.Settings["listen_port"]; set && port != strconv.Itoa(address.Port) {
		errs = append(errs, fmt.Errorf("listen_port is %s, but pgbouncer.admin is %s", port, address))
	}
	if c.Listed() {
		if dir := file.Settings["unix_socket_dir"]; filepath.Clean(dir) != address.Host {
			errs = append(errs, fmt.Errorf("unix_socket_dir is %q, but admin of the process is %s", dir, address))
		}
		if !config.IsOn(file.Settings["so_reuseport"]) {
			errs = append(errs, errors.New("so_reuseport is not on, and only one of pgbouncer.processes could start"))
		}
	}
	// The user "pgbouncer" on a unix socket needs no entry.
	if user := c.PgBouncer.User; !address.IsUnix() || user != config.DefaultUser {
		admins := strings.FieldsFunc(file.Settings["admin_users"], func(r rune) bool { return r == ',' || r == ' ' })
		if !slices.Contains(admins, user) {
			errs = append(errs, fmt.Errorf("admin_users lacks pgbouncer.user %q", user))
		}
	}
	return errors.Join(errs...)
}
