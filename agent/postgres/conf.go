package postgres

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// confFiles are PostgreSQL's configuration files, and what they are made of.
type confFiles struct {
	*installation
	*credentials

	// settings guards what Apply and the loop's tasks change.
	settings  sync.Mutex
	dynamic   cluster.Dynamic
	syncNames string // value of synchronous_standby_names
	runs      as     // how PostgreSQL was started or adopted
	judged    judged // which parameters it takes
	held      held   // what of them would weaken what others rest on

	files sync.Mutex // held while the configuration files are written
}

// defaults are parameters that Lictor sets unless the configuration does.
// wal_retrieve_retry_interval: a replica that turns to a new primary must not
// wait 5 s when it comes a moment before its slot.
var defaults = map[string]string{ //nolint:gochecknoglobals // a table that nothing changes
	"wal_keep_size":               "128MB",
	"wal_retrieve_retry_interval": "500ms",
	"password_encryption":         "scram-sha-256",
}

// renamed are parameters with another name or none in some versions, from the
// release notes of each.
var renamed = []struct { //nolint:gochecknoglobals // a table that nothing changes
	name  string
	since int // first version that has it
	until int // last version that has it; 0: still there
}{
	{"wal_keep_segments", 0, 12},
	{"wal_keep_size", 13, 0},
	{"promote_trigger_file", 0, 15},
	{"vacuum_defer_cleanup_age", 0, 15},
	{"force_parallel_mode", 0, 15},
	{"old_snapshot_threshold", 0, 16},
	{"db_user_namespace", 0, 16},
}

// reloadableConninfo is the first version in which a standby takes a new
// primary_conninfo without a restart (release notes of 13).
const reloadableConninfo = 13

// Apply takes a new dynamic configuration. It takes effect with the next
// Rewrite or start.
func (p *confFiles) Apply(d cluster.Dynamic) {
	p.settings.Lock()
	defer p.settings.Unlock()
	p.dynamic = d
}

// Reconfigure takes the local section of a configuration file that was read
// anew. Addresses and directories stay: they need a new agent.
func (p *confFiles) Reconfigure(local config.Postgres) {
	now := p.local.Load()
	local.Listen, local.DataDir, local.ConfigDir, local.BinDir, local.BinName = now.Listen, now.DataDir, now.ConfigDir, now.BinDir, now.BinName
	p.useLocal(p.fit(local))
}

// UsePgRewind tells whether a diverged data directory may be rewound.
func (p *confFiles) UsePgRewind() bool {
	p.settings.Lock()
	defer p.settings.Unlock()
	return flag(p.local.Load().UsePgRewind, p.dynamic.Postgres.UsePgRewind, false)
}

// standbyCluster says of which shard this one is the standby, if it is.
func (p *confFiles) standbyCluster() cluster.StandbyCluster {
	p.settings.Lock()
	defer p.settings.Unlock()
	return p.dynamic.StandbyCluster
}

// UseSlots tells whether replicas hold replication slots.
func (p *confFiles) UseSlots() bool {
	p.settings.Lock()
	defer p.settings.Unlock()
	return p.useSlots()
}

func (p *confFiles) useSlots() bool {
	return flag(p.dynamic.Postgres.UseSlots, p.local.Load().UseSlots, true)
}

func flag(first, second *bool, fallback bool) bool {
	switch {
	case first != nil:
		return *first
	case second != nil:
		return *second
	}
	return fallback
}

// as is in which role, and after whom, PostgreSQL runs or is to run.
type as struct {
	role     Role
	upstream *Upstream
	// recovery is that of a bootstrap from a backup: parameters of a recovery from an
	// archive; nil: there is none.
	recovery map[string]string
	// archivesNothing: what it writes stays out of the archive until it runs otherwise.
	archivesNothing bool
	// alone: a replica that has detached for a takeover by quorum gets nothing from the archive either.
	alone bool
}

// writeConfig writes all of PostgreSQL's configuration files for a role, one
// caller at a time: a slower one must not put back what an earlier moment wanted,
// least of all whom commits wait for.
func (p *confFiles) writeConfig(a as) error {
	p.files.Lock()
	defer p.files.Unlock()
	return p.writeFiles(a)
}

// writeConfigToRun writes them for what PostgreSQL runs as from now on. The two belong
// together: rewriteConfig would put back what was there before.
func (p *confFiles) writeConfigToRun(a as) error {
	p.files.Lock()
	defer p.files.Unlock()
	if err := p.writeFiles(a); err != nil {
		return err
	}
	p.setRuns(a)
	return nil
}

// rewriteConfig writes them anew for what PostgreSQL runs as.
func (p *confFiles) rewriteConfig() error {
	p.files.Lock()
	defer p.files.Unlock()
	return p.writeFiles(p.getRuns())
}

// writeFiles is called with the files locked.
func (p *confFiles) writeFiles(a as) error {
	if err := p.keepBaseConf(); err != nil {
		return err
	}
	if a.upstream != nil {
		if n := len(p.primaryConninfo(*a.upstream)); n > maxConninfo {
			return fmt.Errorf("postgresql.authentication.replication: with its files and settings primary_conninfo has %d bytes, of which PostgreSQL cuts off all beyond %d: give the files shorter paths", n, maxConninfo)
		}
		if err := p.writePgpass(*a.upstream); err != nil {
			return err
		}
	}
	base, err := p.readConf(p.baseConf())
	if err != nil {
		return err
	}
	now, err := p.readConf(p.inConf("postgresql.conf"))
	if err != nil {
		return err
	}
	if len(now) == 0 {
		now = base // as there is none of the agent's yet
	}
	auto, autoErr := p.readConf(p.inData("postgresql.auto.conf"))
	if a.role == Replica {
		if _, err := p.disk.Stat(p.stateFile(detachmentNote)); err == nil {
			a.alone = true
		}
	}
	p.settings.Lock() // which the loop takes: no file is touched under it
	hba, ident := p.hbaFile(base), p.identFile(base)
	parameters := p.parameters()
	if names := p.held.replace(a.role, parameters, base, now); len(names) > 0 {
		p.log.Warn().Strs("parameters", names).Msg("held back while another member may take over on the strength of them")
	}
	conf := p.postgresqlConf(a, parameters, base, hba, ident)
	p.tellSettings()
	if autoErr == nil { // else PostgreSQL itself tells what is wrong with it
		p.tellOwn(base, auto)
	}
	var ours []string
	if p.ownsSyncNames() {
		ours = append(ours, syncNames)
	}
	p.settings.Unlock()
	if err := p.writeConf(p.inConf("postgresql.conf"), conf); err != nil {
		return err
	}
	for _, file := range []accessFile{hba, ident} {
		if len(file.lines) == 0 {
			continue
		}
		ours = append(ours, file.parameter)
		head := "# Written by Lictor from postgresql." + file.section + "; changes here are lost.\n"
		if err := p.writeConf(file.path, head+strings.Join(file.lines, "\n")+"\n"); err != nil {
			return err
		}
	}
	if err := p.keepCopies(base, hba, ident); err != nil {
		return err
	}
	return p.cleanAutoConf(ours)
}

// accessFile is pg_hba.conf or pg_ident.conf: which file PostgreSQL reads, and what
// the agent writes into it.
type accessFile struct {
	parameter string // hba_file or ident_file
	section   string // pg_hba or pg_ident
	path      string
	base      bool     // the operator's own configuration file names it
	lines     []string // none: the file is left alone
}

func (p *confFiles) hbaFile(base []confSetting) accessFile {
	local, dynamic := p.local.Load().PgHBA, p.dynamic.Postgres.PgHBA
	return p.accessFile(accessFile{parameter: "hba_file", section: "pg_hba"}, base, local, dynamic)
}

func (p *confFiles) identFile(base []confSetting) accessFile {
	local, dynamic := p.local.Load().PgIdent, p.dynamic.Postgres.PgIdent
	return p.accessFile(accessFile{parameter: "ident_file", section: "pg_ident"}, base, local, dynamic)
}

// accessFile finds out which file it is: the one that the parameters name, which is
// the operator's own and left alone; else, where lines are configured, the one in the
// data directory; else the one that the operator's own configuration file names. A
// file of the operator's may reject whom another one lets in, so none is passed over
// without a word.
func (p *confFiles) accessFile(f accessFile, base []confSetting, local, dynamic []string) accessFile {
	f.path, f.lines = p.inConf(f.section+".conf"), local
	if len(f.lines) == 0 {
		f.lines = dynamic
	}
	if named, set := p.parameters()[f.parameter]; set {
		if filepath.Clean(p.fromData(named)) != f.path {
			if len(f.lines) > 0 {
				p.tell("postgresql."+f.section, "not used: the parameter "+f.parameter+" names a file of yours, "+named)
			}
			f.path, f.lines = named, nil
		}
		return f
	}
	if line, set := lastOf(base, f.parameter); set {
		if len(f.lines) == 0 {
			f.path, f.base = line.Value, true
		} else if filepath.Clean(p.fromData(line.Value)) != f.path {
			p.tell(f.parameter, line.where()+": not used: postgresql."+f.section+" has lines, which are written to "+f.path)
		}
	}
	return f
}

// keepBaseConf renames the postgresql.conf that was there before Lictor, once.
func (p *confFiles) keepBaseConf() error {
	base := p.inConf("postgresql.base.conf")
	if kept, err := there(p.disk.Stat, base); err != nil || kept {
		return err
	}
	content, err := p.disk.ReadFile(p.inConf("postgresql.conf"))
	if err != nil && !errors.Is(err, os.ErrNotExist) { // it may be the agent's own
		return fmt.Errorf("keeping the original postgresql.conf: %w", err)
	}
	if strings.HasPrefix(string(content), confHead) {
		p.log.Warn().Str("file", base).Msg("the original postgresql.conf is missing: what it has set is not in force")
		return p.writeConf(base, "") // the agent's own would include itself
	}
	err = p.disk.Rename(p.inConf("postgresql.conf"), base)
	if errors.Is(err, os.ErrNotExist) {
		return p.writeConf(base, "")
	}
	if err != nil {
		return fmt.Errorf("keeping the original postgresql.conf: %w", err)
	}
	return nil
}

// parameters are those of the file, without the ones of the command line, as far as
// PostgreSQL takes them.
func (p *confFiles) parameters() map[string]string {
	out := p.usable(p.wantedParameters())
	if p.ownsSyncNames() {
		delete(out, syncNames)
	}
	if p.ownsStandbySlots() {
		delete(out, standbySlots)
	}
	return out
}

// wantedParameters are parameters as they are configured.
func (p *confFiles) wantedParameters() map[string]string {
	out := maps.Clone(defaults)
	if p.major < 13 {
		out["wal_keep_segments"] = "8"
	}
	for _, layer := range []map[string]any{p.dynamic.Postgres.Parameters, p.local.Load().Parameters} {
		for name, value := range layer {
			name = strings.ToLower(name)
			if value == nil { // as in the dynamic configuration: back to the default
				delete(out, name)
				continue
			}
			out[name] = cluster.ParameterText(value)
		}
	}
	if segments, ok := out["wal_keep_segments"]; ok && p.major >= 13 && !p.configured("wal_keep_size") {
		if n, err := strconv.Atoi(segments); err == nil {
			out["wal_keep_size"] = strconv.Itoa(n*16) + "MB"
		}
	}
	for name := range out {
		if !supported(name, p.major) || cluster.PathRefusal(name) != "" || slices.Contains(cluster.AddressParameters(), name) || isRecovery(name) && name != "restore_command" {
			delete(out, name)
		}
	}
	for _, c := range cluster.SharedParameters() {
		delete(out, c.Name)
	}
	if p.needsFeedback(out) != "" {
		out[feedback] = "on" // or the primary removes rows of its catalogs that a copied slot needs
	}
	return out
}

// needsFeedback says why hot_standby_feedback is on, whatever is configured, with these parameters; empty: it need not be.
func (p *confFiles) needsFeedback(parameters map[string]string) string {
	switch {
	case p.copiesSlots():
		return "it is on, as replicas have copies of the logical slots (slots)"
	case p.major >= syncsSlotsSince && isOn(parameters[slotSync]):
		return "it is on, as " + slotSync + " is"
	}
	return ""
}

// copiesSlots reports whether replicas have copies of the primary's logical slots.
func (p *confFiles) copiesSlots() bool {
	return p.useSlots() && !p.dynamic.StandbyCluster.On() &&
		slices.ContainsFunc(p.dynamic.PermanentSlots(), func(s cluster.Slot) bool { return s.Type == cluster.SlotLogical })
}

// wantedRecovery are the replicas' parameters of recovery as they are configured.
func (p *confFiles) wantedRecovery() map[string]string {
	out := map[string]string{}
	for _, layer := range []map[string]any{p.dynamic.Postgres.RecoveryConf, p.local.Load().RecoveryConf} {
		for name, value := range recoveryOf(layer) {
			if supported(name, p.major) {
				out[name] = value
			}
		}
	}
	return out
}

// recoveryOf are the parameters of a section recovery_conf that are for replicas, and not the agent's own.
func recoveryOf(section map[string]any) map[string]string {
	out := map[string]string{}
	for name, value := range section {
		name = strings.ToLower(name)
		if value != nil && isRecovery(name) && !cluster.OfTarget(name) && !slices.Contains(cluster.AgentsRecovery(), name) {
			out[name] = cluster.ParameterText(value)
		}
	}
	return out
}

// wantedValues are all that PostgreSQL must take. What recovery_conf says is in force
// where both sections have a parameter.
func (p *confFiles) wantedValues() map[string]string {
	all := p.wantedParameters()
	maps.Copy(all, p.wantedRecovery())
	return all
}

// configured reports whether one of the user's layers has a value for a parameter.
func (p *confFiles) configured(name string) bool {
	for _, layer := range []map[string]any{p.dynamic.Postgres.Parameters, p.local.Load().Parameters} {
		for key, value := range layer {
			if value != nil && strings.EqualFold(key, name) {
				return true
			}
		}
	}
	return false
}

const (
	syncNames   = "synchronous_standby_names"
	triggerFile = "promote_trigger_file"
	feedback    = "hot_standby_feedback"
)

// ownsSyncNames tells whether commits wait for whom the agent says, and not for
// whom the user's parameters say.
func (p *confFiles) ownsSyncNames() bool {
	return p.syncNames != "" || p.dynamic.SynchronousMode == cluster.SyncOn || p.dynamic.SynchronousMode == cluster.SyncQuorum
}

// isRecovery reports whether a parameter says what a standby follows: a leftover in
// postgresql.auto.conf would win over the file.
func isRecovery(name string) bool { return slices.Contains(cluster.RecoveryParameters(), name) }

func supported(name string, major int) bool {
	for _, r := range renamed {
		if r.name == name {
			return major >= r.since && (r.until == 0 || major <= r.until)
		}
	}
	return true
}

// quote writes a value as postgresql.conf wants it: in single quotes, those
// inside doubled, backslashes too.
func quote(value string) string {
	return "'" + strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(value) + "'"
}

func (p *confFiles) postgresqlConf(a as, parameters map[string]string, included []confSetting, hba, ident accessFile) string {
	var b strings.Builder
	b.WriteString(confHead + "; changes here are lost. Change the dynamic configuration, or postgresql.parameters.\n")
	base := "postgresql.base.conf" // beside this file, so that a copy of the directory is whole
	if custom := p.local.Load().CustomConf; custom != "" {
		base = custom
	}
	fmt.Fprintf(&b, "include %s\n\n", quote(base))
	write := func(name, value string) { fmt.Fprintf(&b, "%s = %s\n", name, quote(value)) }
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if name != hba.parameter && name != ident.parameter {
			write(name, parameters[name])
		}
	}
	if p.ownsSyncNames() {
		fmt.Fprintf(&b, "%s = %s %s\n", syncNames, quote(p.syncNames), syncNamesMark)
	}
	if a.role == Primary && p.ownsStandbySlots() {
		write(standbySlots, p.standbySlots())
	}
	for _, file := range []accessFile{hba, ident} {
		if !file.base {
			write(file.parameter, file.path)
		}
	}
	// A primary ignores these; were they left out after a promotion, PostgreSQL
	// would call for a restart because of them.
	b.WriteString("\n# recovery\n")
	if a.recovery != nil {
		p.recoveryLines(a.recovery, write)
		return b.String()
	}
	write("recovery_target_timeline", "latest")
	for _, name := range cluster.RecoveryTargets() {
		write(name, "")
	}
	if supported(triggerFile, p.major) {
		write(triggerFile, "") // of a file that is there PostgreSQL would promote itself, without a lease
	}
	recovery := p.usable(p.wantedRecovery())
	remote := a.upstream != nil && a.upstream.Remote
	if remote {
		maps.Copy(recovery, p.dynamic.StandbyCluster.Recovery())
	}
	for _, name := range recoveryCommands() {
		command, set := recovery[name]
		if !set {
			command = parameters[name]
		}
		if line, ok := lastOf(included, name); ok && command == "" && !set {
			command = line.Value
		}
		if command != "" {
			recovery[name] = command
			if shell := endable(name, command); !isCutOff(name, shell, p.major) {
				recovery[name] = shell
			}
		}
	}
	if a.alone {
		recovery[restoreCommand] = ""
	}
	for _, name := range slices.Sorted(maps.Keys(recovery)) {
		write(name, recovery[name])
	}
	conninfo, slot := "", "" // also of a standby that the included file was written for
	if a.upstream != nil && a.upstream.Host != "" && a.role != Primary {
		conninfo = p.primaryConninfo(*a.upstream)
		if remote {
			slot = p.dynamic.StandbyCluster.PrimarySlotName
		} else if p.useSlots() {
			slot = cluster.SlotName(p.name)
		}
	}
	write("primary_conninfo", conninfo)
	write("primary_slot_name", slot)
	return b.String()
}

// maxConninfo is how many bytes of primary_conninfo a WAL receiver gets (MAXCONNINFO in
// src/include/replication/walreceiver.h): what is beyond is lost without a word.
const maxConninfo = 1023

// primaryConninfo is how a replica connects to its upstream.
func (p *confFiles) primaryConninfo(u Upstream) string {
	replication := p.local.Load().Authentication.Replication
	database := ""
	if p.syncsSlots() {
		database = p.database() // whoever keeps slots like the primary's asks for them in SQL
	}
	conninfo := p.conninfo(u, replication, database, p.name)
	if strings.Contains(u.Host, ",") {
		conninfo += " target_session_attrs=read-write"
	}
	if replication.SSLPassword != "" && p.major >= 13 { // it has no file of its own, as passwords have
		conninfo += " sslpassword=" + conninfoValue(replication.SSLPassword)
	}
	return conninfo
}

// arguments are the postmaster's. A standby must not have less of some things
// than its primary had (control).
func (p *confFiles) arguments(a as, control Control) []string {
	p.settings.Lock()
	defer p.settings.Unlock()
	return argumentsOf(p, p.commandLineValues(a.role, control))
}

func argumentsOf(p *confFiles, values map[string]string) []string {
	args := []string{
		// What is guarded is this directory, whatever a configuration file says.
		"-D", p.dataDir, "--data_directory=" + p.dataDir, "--config_file=" + p.inConf("postgresql.conf"),
		"--listen_addresses=" + p.listenHosts, "--port=" + strconv.Itoa(p.port), "--cluster_name=" + p.scope,
	}
	for name, value := range values {
		args = append(args, "--"+name+"="+value)
	}
	slices.Sort(args[2:])
	return args
}

// commandLineValues checks the dynamic configuration's values; a bad one falls
// back to the default, as Patroni's users expect.
func (p *confFiles) commandLineValues(role Role, control Control) map[string]string {
	return sharedValues(p.dynamic.Postgres.Parameters, role, control)
}

// sharedValues are those of the parameters that all members have alike, by a dynamic configuration's.
func sharedValues(parameters map[string]any, role Role, control Control) map[string]string {
	out := map[string]string{}
	configured := map[string]any{}
	for name, value := range parameters {
		configured[strings.ToLower(name)] = value
	}
	for _, c := range cluster.SharedParameters() {
		value := c.Fallback
		if set := configured[c.Name]; set != nil {
			if text, ok := c.Accept(cluster.ParameterText(set)); ok {
				value = text
			}
		}
		if least, ok := control.Minima[c.Name]; ok && role == Replica {
			if n, err := strconv.Atoi(value); err == nil {
				value = strconv.Itoa(max(n, least))
			}
		}
		out[c.Name] = value
	}
	return out
}

// conninfo is how to connect to upstream as role, without its password, which
// is in the passfile. An empty database leaves it out.
func (p *confFiles) conninfo(u Upstream, role config.PgUser, database, applicationName string) string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+"="+conninfoValue(value))
		}
	}
	add("host", u.Host)
	add("port", strconv.Itoa(u.Port))
	add("user", role.Username)
	add("dbname", database)
	add("passfile", p.pgpassPath())
	add("application_name", applicationName)
	add("connect_timeout", "3")
	add("sslmode", role.SSLMode)
	add("sslcert", role.SSLCert)
	add("sslkey", role.SSLKey)
	add("sslrootcert", role.SSLRootCert)
	add("sslcrl", role.SSLCRL)
	if p.major >= 14 {
		add("sslcrldir", role.SSLCRLDir)
	}
	add("gssencmode", role.GSSEncMode)
	if p.major >= 13 {
		add("channel_binding", role.ChannelBinding)
	}
	if p.major >= 16 {
		add("require_auth", requireAuth(role, verifies(role)))
	}
	if p.major >= 17 {
		add("sslnegotiation", role.SSLNegotiation)
	}
	return strings.Join(parts, " ")
}

// programConninfo is conninfo for one of PostgreSQL's programs, and the environment
// that goes with it. The password of a key file must not stand among the arguments,
// where every user of the host can read it: it is in a service file.
func (p *confFiles) programConninfo(u Upstream, role config.PgUser, database, applicationName string) (conninfo string, env []string, err error) {
	conninfo, env = p.conninfo(u, role, database, applicationName), []string{"PGPASSFILE=" + p.pgpassPath()}
	if role.SSLPassword == "" || p.major < 13 {
		return conninfo, env, nil
	}
	file := p.stateFile("pgservice")
	if err := p.writeFile(file, "[lictor]\nsslpassword="+role.SSLPassword+"\n"); err != nil {
		return "", nil, err
	}
	return conninfo + " service=lictor", append(env, "PGSERVICEFILE="+file), nil
}

var plainConninfo = regexp.MustCompile(`^[A-Za-z0-9_./:@-]+$`)

func conninfoValue(value string) string {
	if plainConninfo.MatchString(value) {
		return value
	}
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}

// writePgpass writes the passwords for an upstream where libpq finds them: those of
// the configuration, else those of the agent's own passfile, which PostgreSQL's user
// may not be able to read. Where the configuration has none, a file that it names is
// the operator's.
func (p *confFiles) writePgpass(u Upstream) error {
	path := p.pgpassPath()
	auth := p.local.Load().Authentication
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace
	var b strings.Builder
	roles := []config.PgUser{auth.Replication, auth.Rewind}
	if auth.Rewind.Username == "" {
		roles = append(roles, auth.Superuser) // which rewinds then
	}
	none := !slices.ContainsFunc(roles, func(r config.PgUser) bool { return r.Password != "" })
	if none && p.local.Load().PgPass != "" {
		return nil
	}
	for i, role := range roles {
		if role.Username != "" && role.Password == "" {
			database := p.database()
			if i == 0 {
				database = replicationDatabase
			}
			if c, err := LoginConfig(u.Host, u.Port, config.PgUser{Username: role.Username}, database); err == nil {
				role.Password = c.Password
			}
		}
		if role.Username == "" || role.Password == "" {
			continue
		}
		for host := range strings.SplitSeq(u.Host, ",") {
			fmt.Fprintf(&b, "%s:%d:*:%s:%s\n", escape(host), u.Port, escape(role.Username), escape(role.Password))
		}
	}
	return p.writeFile(path, b.String())
}

// cleanAutoConf takes out of postgresql.auto.conf, which wins over postgresql.conf, what
// is the agent's: recovery parameters, and ours, which it has just written: whom commits
// wait for, and the names of files.
func (p *confFiles) cleanAutoConf(ours []string) error {
	path := p.inData("postgresql.auto.conf")
	content, err := p.disk.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("postgresql.auto.conf: %w", err)
	}
	var b strings.Builder
	changed := false
	for line := range strings.Lines(string(content)) {
		name, value, ok := confLine(line)
		switch {
		case ok && slices.Contains(ours, name):
			p.log.Warn().Str("file", path).Str("parameter", name).Str("value", value).
				Msg("removed: what ALTER SYSTEM has set would win over what is configured")
			fallthrough
		case ok && isRecovery(name):
			changed = true
			continue
		}
		b.WriteString(line)
	}
	if !changed {
		return nil
	}
	return p.writeFile(path, b.String())
}

const (
	confHead      = "# Written by Lictor"
	syncNamesMark = "# synchronous_mode"
)

var conninfoPart = regexp.MustCompile(`(\w+) *= *('(?:[^'\\]|\\.)*'|[^\s']\S*)`)

// conninfoAddress finds host and port in a connection string, which may be a URI.
func conninfoAddress(conninfo string) (host string, port int, err error) {
	port = 5432
	if strings.HasPrefix(conninfo, "postgresql://") || strings.HasPrefix(conninfo, "postgres://") {
		u, err := url.Parse(conninfo)
		if err != nil {
			return "", 0, errors.New("primary_conninfo: it is no URI") // which may hold a password
		}
		conninfo = "host='" + u.Hostname() + "' port=" + cmp.Or(u.Port(), "5432")
		for _, name := range []string{"host", "hostaddr", "port"} {
			if value := u.Query().Get(name); value != "" {
				conninfo += " " + name + "=" + conninfoValue(value)
			}
		}
	}
	address := ""
	for _, m := range conninfoPart.FindAllStringSubmatch(conninfo, -1) {
		value := strings.NewReplacer(`\\`, `\`, `\'`, `'`).Replace(strings.TrimSuffix(strings.TrimPrefix(m[2], "'"), "'"))
		switch m[1] {
		case "host":
			host = value
		case "hostaddr":
			address = value
		case "port":
			if port, err = strconv.Atoi(value); err != nil {
				return "", 0, fmt.Errorf("primary_conninfo: port %q", value)
			}
		}
	}
	if host = cmp.Or(host, address); host == "" {
		return "", 0, errors.New("primary_conninfo: it has no host")
	}
	return host, port, nil
}

// readSyncNames takes synchronous_standby_names from the file that an earlier
// run, or Patroni, wrote: as long as the key `sync` promises it, commits must go
// on waiting. What the user's parameters set is not taken for that.
func (p *confFiles) readSyncNames() string {
	content, err := p.disk.ReadFile(p.inConf("postgresql.conf"))
	if err != nil {
		return ""
	}
	found := ""
	for line := range strings.Lines(string(content)) {
		name, value, ok := confLine(line)
		if !ok || name != syncNames {
			continue
		}
		found = value
		if strings.HasPrefix(string(content), confHead) && !strings.HasSuffix(strings.TrimSpace(line), syncNamesMark) {
			found = ""
		}
	}
	return found
}
