package config

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/agnivade/levenshtein"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/environ"
	"github.com/lictor-ha/lictor/agent/fence"
)

// postgres checks the section postgresql beside the dynamic configuration with which a
// shard begins.
func (v *validation) postgres(c Config, dynamic cluster.Dynamic) {
	p := c.Postgres
	if v.required("postgresql.listen", p.Listen, "0.0.0.0:5432") {
		v.listen("postgresql.listen", p.Listen, true)
		v.connect("postgresql.connect_address", p.ConnectAddress, "postgresql.listen", p.Listen)
	}
	if p.ProxyAddress != "" {
		v.connect("postgresql.proxy_address", p.ProxyAddress, "", "")
	}
	if v.required("postgresql.data_dir", p.DataDir, "/var/lib/postgresql/15/shard1") {
		v.dataDir(p.DataDir)
	}
	v.configDir(p)
	if p.BinDir != "" {
		if info, err := os.Stat(p.BinDir); err != nil || !info.IsDir() {
			v.fail("postgresql.bin_dir", p.BinDir, "must be the directory of PostgreSQL's programs")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.BinName)) {
		if !slices.Contains(programs(), name) {
			v.fail("postgresql.bin_name."+name, p.BinName[name], "must be for one of %s", strings.Join(programs(), ", "))
		}
		if name == "postgres" && !strings.Contains(filepath.Base(p.BinName[name]), fence.PostgresName) {
			v.fail("postgresql.bin_name.postgres", p.BinName[name], "must have %s in it, as edb-postgres: by that the agent and the guard find the processes that they must end", fence.PostgresName)
		}
	}
	if p.PgPass != "" && p.PgPass == p.DataDir {
		v.fail("postgresql.pgpass", p.PgPass, "must be the path of a file")
	}
	// They would go with the data, or keep the directory from being filled.
	for key, path := range map[string]string{"lictor.state_dir": c.Lictor.StateDir, "postgresql.pgpass": p.PgPass} {
		if path != "" && path != p.DataDir && p.DataDir != "" && SocketsInside(path, p.DataDir) != "" || key == "lictor.state_dir" && path != "" && filepath.Clean(path) == filepath.Clean(p.DataDir) {
			v.fail(key, path, "must not lie in postgresql.data_dir: it would be removed with the data, and a directory that is not empty is not filled")
		}
	}
	v.authentication(p)
	v.identifier("postgresql.database", p.Database)
	if strings.ContainsFunc(p.CustomConf, unicode.IsControl) {
		v.fail("postgresql.custom_conf", p.CustomConf, "must not contain control characters")
	}
	v.unusedPostgres(p)
	if len(c.Bootstrap.PgHBA) > 0 && has(p.Parameters, "hba_file") {
		v.warn("bootstrap.pg_hba", "has no effect: the parameter hba_file names a file of yours")
	}
	if len(c.Bootstrap.PgHBA) > 0 && len(p.PgHBA)+len(dynamic.Postgres.PgHBA) > 0 {
		v.warn("bootstrap.pg_hba", "has no effect: postgresql.pg_hba is the whole file")
	}
	if len(p.PgHBA) > 0 && has(p.Parameters, "hba_file") {
		v.warn("postgresql.pg_hba", "has no effect: the parameter hba_file names a file of yours")
	}
	if len(p.PgIdent) > 0 && has(p.Parameters, "ident_file") {
		v.warn("postgresql.pg_ident", "has no effect: the parameter ident_file names a file of yours")
	}
	v.errs = append(v.errs, cluster.CheckParameters("postgresql.parameters", p.Parameters)...)
	v.errs = append(v.errs, cluster.CheckParameters("postgresql.recovery_conf", p.RecoveryConf)...)
	v.warnings = append(v.warnings, cluster.UnusedParameters("postgresql.parameters", p.Parameters, false)...)
	v.warnings = append(v.warnings, cluster.UnusedRecovery("postgresql.recovery_conf", p.RecoveryConf)...)
	if dynamic.SynchronousMode.On() {
		v.warnings = append(v.warnings, cluster.Unsynchronous("postgresql.parameters", p.Parameters)...)
	}
	for _, layer := range []struct {
		path       string
		parameters map[string]any
	}{{"postgresql.parameters", p.Parameters}, {"bootstrap.dcs.postgresql.parameters", dcsParameters(c.Bootstrap.DCS)}} {
		if value, ok := layer.parameters["unix_socket_directories"].(string); ok {
			if inside := SocketsInside(value, p.DataDir); inside != "" {
				v.warn(layer.path+".unix_socket_directories", "%s lies in the data directory: pg_rewind cannot read a socket, so no member can be rewound from this one", inside)
			}
		}
	}
	v.errs = append(v.errs, cluster.CheckHBA("postgresql.pg_hba", p.PgHBA)...)
	v.errs = append(v.errs, cluster.CheckHBA("bootstrap.pg_hba", c.Bootstrap.PgHBA)...)
	for key, command := range map[string]string{
		"callbacks.on_start": p.Callbacks.OnStart, "callbacks.on_stop": p.Callbacks.OnStop,
		"callbacks.on_restart": p.Callbacks.OnRestart, "callbacks.on_reload": p.Callbacks.OnReload,
		"callbacks.on_role_change": p.Callbacks.OnRoleChange,
		"pre_promote":              p.PrePromote, "before_stop": p.BeforeStop,
	} {
		v.command("postgresql."+key, command)
	}
	if p.PgCtlTimeout < 1 {
		v.fail("postgresql.pg_ctl_timeout", fmt.Sprint(p.PgCtlTimeout), "must be at least 1 s")
	}
	v.baseBackup(p.BaseBackup)
	v.methods(c)
	for i, name := range c.Lictor.PassEnvironment {
		if err := environ.CheckName(name); err != nil {
			v.fail(fmt.Sprintf("lictor.pass_environment[%d]", i), name, "%v", err)
		}
	}
	if u := c.Lictor.OSUser; u != "" && os.Geteuid() == 0 {
		account, err := user.Lookup(u)
		switch {
		case err != nil:
			v.fail("lictor.os_user", u, "must be a user of this host")
		case account.Uid == "0":
			v.fail("lictor.os_user", u, "must not be root: PostgreSQL refuses to run as root")
		}
	}
}

// requireAuthRule says what is wrong with a value of require_auth.
func requireAuthRule(value string) string {
	if value == "" {
		return ""
	}
	words, not := strings.Split(value, ","), 0
	for _, word := range words {
		word, negative := strings.CutPrefix(strings.TrimSpace(word), "!")
		if !slices.Contains([]string{"password", "md5", "gss", "sspi", "scram-sha-256", "none"}, word) {
			return "must be a list of password, md5, gss, sspi, scram-sha-256 and none, or of these with ! before each"
		}
		if negative {
			not++
		}
	}
	if not != 0 && not != len(words) {
		return "must have ! before each method, or before none"
	}
	return ""
}

// unusedPostgres tells of settings that Patroni has and that do nothing here.
func (v *validation) unusedPostgres(p Postgres) {
	if p.UseUnixSocketRepl {
		v.warn("postgresql.use_unix_socket_repl", "has no effect: replication connections use TCP")
	}
	if p.PgCtlTimeout != DefaultPgCtlTimeout {
		v.warn("postgresql.pg_ctl_timeout", "has no effect: starts are watched, and stops are bounded by the lease")
	}
}

// has reports whether a parameter is set; PostgreSQL's names have no case.
func has(parameters map[string]any, name string) bool {
	for key, value := range parameters {
		if value != nil && strings.EqualFold(key, name) {
			return true
		}
	}
	return false
}

// systemDirs hold more than one program's files.
func systemDirs() []string {
	return []string{
		"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root",
		"/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/local", "/var", "/var/lib", "/var/run", "/var/tmp",
	}
}

// dataDir refuses a directory that is not PostgreSQL's alone: a reinitialisation
// would remove it.
func (v *validation) dataDir(dir string) {
	const path = "postgresql.data_dir"
	dir = filepath.Clean(dir)
	switch info, err := os.Stat(dir); {
	case slices.Contains(systemDirs(), dir):
		v.fail(path, dir, "must be a directory of its own: a new replica replaces all that is in it")
	case slices.Contains(homes(), dir):
		v.fail(path, dir, "must be a directory of its own, not a user's home: a new replica replaces all that is in it")
	case err == nil && !info.IsDir():
		v.fail(path, dir, "must be a directory")
	case err != nil && !errors.Is(err, os.ErrNotExist):
		v.fail(path, dir, "cannot be looked at: %v", errors.Unwrap(err))
	case err == nil && !tellsBirth(dir):
		v.warn(path, "lies on a file system that does not tell when a directory was made: if its device has another number after a boot, "+
			"a clone, rewind or restore that was not finished before waits for an operator")
	}
}

// tellsBirth reports whether the file system knows when a directory was made. One that cannot be asked counts as such.
func tellsBirth(dir string) bool {
	var st unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_BTIME, &st) != nil || st.Mask&unix.STATX_BTIME != 0
}

// configDir refuses a directory that other programs' files are in, or that goes with the data.
func (v *validation) configDir(p Postgres) {
	const path = "postgresql.config_dir"
	if p.ConfigDir == "" {
		return
	}
	dir, data := filepath.Clean(p.ConfigDir), filepath.Clean(p.DataDir)
	switch info, err := os.Stat(dir); {
	case slices.Contains(systemDirs(), dir) || slices.Contains(homes(), dir):
		v.fail(path, dir, "must be a directory of its own: postgresql.conf and pg_hba.conf are written there")
	case p.DataDir != "" && strings.HasPrefix(dir, data+"/"):
		v.fail(path, dir, "must not lie in postgresql.data_dir: it would be removed with the data")
	case err == nil && !info.IsDir():
		v.fail(path, dir, "must be a directory")
	}
}

// homes lists the home directories of this host's users.
func homes() []string {
	var dirs []string
	if home, err := os.UserHomeDir(); err == nil {
		dirs = append(dirs, filepath.Clean(home))
	}
	passwd, err := os.Open("/etc/passwd")
	if err != nil {
		return dirs
	}
	defer passwd.Close()
	for lines := bufio.NewScanner(passwd); lines.Scan(); {
		if fields := strings.Split(lines.Text(), ":"); len(fields) > 5 && fields[5] != "" {
			dirs = append(dirs, filepath.Clean(fields[5]))
		}
	}
	return dirs
}

// namedUser is a role and the section that it is in.
type namedUser struct {
	path string
	user PgUser
}

// authentication checks the roles. Nobody has a default password; without one
// pg_hba must let the role in by other means, or a passfile has it.
func (v *validation) authentication(p Postgres) {
	a := p.Authentication
	first := map[string]namedUser{} // by the name of the role, of those with a password
	for _, role := range []struct {
		name string
		user PgUser
	}{{"superuser", a.Superuser}, {"replication", a.Replication}, {"rewind", a.Rewind}} {
		path, u := "postgresql.authentication."+role.name, role.user
		if other, again := first[u.Username]; again && u.Password != "" && u.Password != other.user.Password {
			v.fail(path+".password", "", "must be that of %s: both are the role %s, which has one password", other.path, u.Username)
		} else if !again && u.Password != "" {
			first[u.Username] = namedUser{path, u}
		}
		v.identifier(path+".username", u.Username)
		v.password(path+".password", u.Password)
		v.oneOf(path+".sslmode", u.SSLMode, "disable", "allow", "prefer", "require", "verify-ca", "verify-full")
		v.oneOf(path+".sslnegotiation", u.SSLNegotiation, "postgres", "direct")
		v.tls(path, u)
		v.oneOf(path+".gssencmode", u.GSSEncMode, "disable", "prefer", "require")
		v.oneOf(path+".channel_binding", u.ChannelBinding, "disable", "prefer", "require")
		if rule := requireAuthRule(u.RequireAuth); rule != "" {
			v.fail(path+".require_auth", u.RequireAuth, "%s", rule)
		}
		v.file(path+".sslcert", u.SSLCert)
		v.file(path+".sslkey", u.SSLKey)
		v.file(path+".sslcrl", u.SSLCRL)
		if u.SSLRootCert != "system" {
			v.file(path+".sslrootcert", u.SSLRootCert)
		}
		if role.name == "rewind" && u.Username == "" && u.Password != "" {
			v.fail(path+".username", "", "must be set together with the password")
		}
	}
	v.required("postgresql.authentication.replication.username", a.Replication.Username, "replicator")
	if a.Superuser.Password == "" && a.Superuser.SSLCert == "" && !p.UseUnixSocket {
		v.warn("postgresql.authentication.superuser.password",
			"is not set: the agent can only connect where pg_hba demands no password, or the passfile of its user (~/.pgpass) has one")
	}
	if a.Replication.Username != "" && a.Replication.Password == "" && a.Replication.SSLCert == "" {
		v.warn("postgresql.authentication.replication.password", "is not set: replicas can only connect where pg_hba demands no password, or the passfile of the agent's user (~/.pgpass) has one")
	}
	if a.Rewind.Username != "" && a.Rewind.Password == "" && a.Rewind.SSLCert == "" {
		v.warn("postgresql.authentication.rewind.password", "is not set: pg_rewind can only connect where pg_hba demands no password, or the passfile of the agent's user (~/.pgpass) has one")
	}
}

// tls checks settings that go together.
func (v *validation) tls(path string, u PgUser) {
	if (u.SSLCert == "") != (u.SSLKey == "") {
		v.fail(path+".sslkey", "", "must be set together with sslcert")
	}
	if u.SSLNegotiation == "direct" && !slices.Contains([]string{"require", "verify-ca", "verify-full"}, u.SSLMode) {
		v.fail(path+".sslmode", u.SSLMode, "must be require, verify-ca or verify-full beside sslnegotiation: direct")
	}
	if (u.SSLMode == "verify-ca" || u.SSLMode == "verify-full") && u.SSLRootCert == "" {
		v.warn(path+".sslrootcert", "is not set: sslmode %s verifies by ~/.postgresql/root.crt of the agent's user, and of PostgreSQL's user on replicas", u.SSLMode)
	}
	if (u.SSLCRL != "" || u.SSLCRLDir != "") && u.SSLRootCert == "" {
		v.warn(path+".sslcrl", "has no effect without sslrootcert: no certificate is verified")
	}
	if u.GSSEncMode == "require" {
		v.fail(path+".gssencmode", u.GSSEncMode, "is not supported: the agent itself cannot encrypt with GSSAPI; use sslmode, or gssencmode: prefer")
	}
	if u.SSLPassword != strings.TrimRight(u.SSLPassword, " \t\r\n\v\f") || strings.ContainsAny(u.SSLPassword, "\r\n\x00") {
		v.fail(path+".sslpassword", "", "must be one line without blanks at its end: libpq reads it from a file")
	}
}

// bootstrap checks how a new shard is made, and returns the dynamic configuration with
// which it begins; zero when that is not valid.
func (v *validation) bootstrap(b Bootstrap, rules cluster.Rules) cluster.Dynamic {
	dynamic, warnings, err := rules.Parse(b.DCS)
	for _, p := range cluster.Problems(err) {
		p.Path = "bootstrap.dcs." + p.Path
		v.errs = append(v.errs, p)
	}
	for _, w := range warnings {
		v.warn("bootstrap.dcs."+w.Path, "%s", w.Text)
	}
	if err == nil {
		for _, p := range cluster.Problems(dynamic.MaintenanceWindows.CheckZones()) {
			p.Path = "bootstrap.dcs." + p.Path
			v.errs = append(v.errs, p)
		}
		if _, err := cluster.CanonicalJSON(b.DCS); err != nil {
			v.fail("bootstrap.dcs", "", "must be possible to write as JSON: %v", errors.Unwrap(err))
		}
		v.errs = append(v.errs, cluster.CheckHBA("bootstrap.dcs.postgresql.pg_hba", dynamic.Postgres.PgHBA)...)
	}
	for i, option := range b.InitDB {
		v.option(fmt.Sprintf("bootstrap.initdb[%d]", i), "initdb", option)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Users)) {
		v.identifier("bootstrap.users."+name, name)
		v.password("bootstrap.users."+name+".password", b.Users[name].Password)
		if b.Users[name].Password == "" {
			v.warn("bootstrap.users."+name, "has no password")
		}
		for i, o := range b.Users[name].Options {
			if !slices.Contains(RoleOptions(), strings.ToUpper(o)) {
				v.fail(fmt.Sprintf("bootstrap.users.%s.options[%d]", name, i), o, "must be one of %s", strings.Join(RoleOptions(), ", "))
			}
		}
	}
	v.command("bootstrap.post_bootstrap", b.PostBootstrap)
	return dynamic
}

// option checks one option of initdb or pg_basebackup: a name, or a map of one
// name to its value. Some are the agent's own.
func (v *validation) option(path, program string, option any) {
	name := ""
	switch o := option.(type) {
	case string:
		name = o
	case map[string]any:
		for key, value := range o {
			switch value.(type) {
			case map[string]any, []any, nil:
			default:
				name = key
			}
		}
		if len(o) != 1 {
			name = ""
		}
	}
	name, _, _ = strings.Cut(strings.TrimLeft(name, "-"), "=")
	switch {
	case name == "" || strings.ContainsAny(name, " \t\r\n"):
		v.fail(path, "", "must be the name of an option, or a map of one name to its value")
	case OwnOption(program, name):
		v.fail(path, name, "must not be set: Lictor sets this option itself")
	}
}

func (v *validation) baseBackup(options any) {
	switch o := options.(type) {
	case nil:
	case []any:
		for i, option := range o {
			v.option(fmt.Sprintf("postgresql.basebackup[%d]", i), "pg_basebackup", option)
		}
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(o)) {
			v.option("postgresql.basebackup."+name, "pg_basebackup", map[string]any{name: o[name]})
		}
	default:
		v.fail("postgresql.basebackup", "", "must be a list or a map of pg_basebackup's options")
	}
}

// methods checks the keys that are no settings: each must be a custom method
// that is in use, or it is most likely a slip.
func (v *validation) methods(c Config) {
	custom := func(section, name, used string, value any, inUse bool) {
		m, isMap := value.(map[string]any)
		if !inUse || !isMap {
			p := settings.Unknown(Config{}, section+"."+name)
			if isMap {
				p.Rule += "; a custom method must be named in " + used
			}
			v.errs = append(v.errs, p)
			return
		}
		if command, _ := m["command"].(string); command != "" {
			v.command(section+"."+name+".command", command)
		}
		if recovery, _ := m["recovery_conf"].(map[string]any); section == "bootstrap" {
			v.recoveryTarget(section+"."+name+".recovery_conf", recovery)
		}
		for _, key := range slices.Sorted(maps.Keys(m)) {
			for _, ours := range methodKeys(section) {
				if key != ours && m[ours] == nil && levenshtein.ComputeDistance(key, ours) <= 2 {
					v.warn(section+"."+name+"."+key, "is given to the command as an option, --%s=...; did you mean %s?", key, ours)
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Bootstrap.Methods)) {
		// Patroni's files keep the map of a method that is not in use now.
		inUse := name == c.Bootstrap.Method || hasCommand(c.Bootstrap.Methods[name])
		custom("bootstrap", name, "bootstrap.method", c.Bootstrap.Methods[name], inUse)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Postgres.Methods)) {
		inUse := slices.Contains(c.Postgres.CreateReplica, name) || hasCommand(c.Postgres.Methods[name])
		custom("postgresql", name, "postgresql.create_replica_methods", c.Postgres.Methods[name], inUse)
	}
	if m := c.Bootstrap.Method; m != "" && m != "initdb" {
		if m, ok := c.Bootstrap.Methods[m].(map[string]any); !ok || m["command"] == nil {
			v.fail("bootstrap.method", c.Bootstrap.Method, "must be initdb, or have a section bootstrap.%s with a command", c.Bootstrap.Method)
		}
	}
}

// recoveryTarget warns of a target that will be refused when a shard is made: one that exists
// goes on with it in its file.
func (v *validation) recoveryTarget(section string, recovery map[string]any) {
	words := map[string]string{}
	for name, value := range recovery {
		words[strings.ToLower(name)] = cluster.ParameterText(value)
	}
	for _, wrong := range cluster.CheckRecoveryTarget(words) {
		name, rule, _ := strings.Cut(wrong, ": ")
		v.warn(section+"."+name, "%s; a new shard would not be made", rule)
	}
}

// methodKeys are the keys of a method's section that are Lictor's own; the command gets all others.
func methodKeys(section string) []string {
	if section == "bootstrap" {
		return []string{"command", "no_params", "recovery_conf", "keep_existing_recovery_conf"}
	}
	return []string{"command", "no_params", "no_leader", "no_master", "keep_data"}
}

func hasCommand(value any) bool {
	m, _ := value.(map[string]any)
	return m["command"] != nil
}

func dcsParameters(dcs map[string]any) map[string]any {
	postgresql, _ := dcs["postgresql"].(map[string]any)
	parameters, _ := postgresql["parameters"].(map[string]any)
	return parameters
}

// SocketsInside is the first of the directories of unix_socket_directories that lies in
// the data directory, to which a relative one belongs; empty: none does.
func SocketsInside(directories, dataDir string) string {
	dataDir = filepath.Clean(dataDir)
	for _, dir := range SplitDirectories(directories) {
		if strings.HasPrefix(dir, "@") { // one without a file
			continue
		}
		clean := filepath.Clean(dir)
		if !filepath.IsAbs(clean) {
			clean = filepath.Join(dataDir, clean)
		}
		if clean == dataDir || strings.HasPrefix(clean, dataDir+"/") {
			return dir
		}
	}
	return ""
}

// SplitDirectories takes a list of directories apart as PostgreSQL does
// (SplitDirectoriesString in src/backend/utils/adt/varlena.c): at commas, blanks
// around a name being left out, a name in double quotes as it is.
func SplitDirectories(list string) []string {
	var dirs []string
	for list = strings.TrimLeft(list, " \t\n\r\f\v"); list != ""; {
		var dir string
		if rest, quoted := strings.CutPrefix(list, `"`); quoted {
			var b strings.Builder
			for {
				before, after, found := strings.Cut(rest, `"`)
				b.WriteString(before)
				if rest = after; !found || !strings.HasPrefix(rest, `"`) {
					break
				}
				b.WriteByte('"')
				rest = rest[1:]
			}
			dir = b.String()
			_, list, _ = strings.Cut(rest, ",")
		} else {
			dir, list, _ = strings.Cut(list, ",")
			dir = strings.TrimRight(dir, " \t\n\r\f\v")
		}
		if dir != "" {
			dirs = append(dirs, dir)
		}
		list = strings.TrimLeft(list, " \t\n\r\f\v")
	}
	return dirs
}
