package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/shlex"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/certfiles"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/fence"
)

// Validate checks what decoding cannot: what must be there, forms, ranges, and
// how settings go together. All problems are reported at once, each one a
// cluster.Problem.
func (c Config) Validate() ([]Warning, error) {
	v := &validation{}
	v.names(c)
	v.restAPI(c.RestAPI, c.Ctl)
	v.add(c.Consul.Validate())
	dynamic := v.bootstrap(c.Bootstrap, c.Lictor.Rules())
	v.postgres(c, dynamic)
	v.apart(c.Postgres.Listen, c.RestAPI.Listen)
	v.tags(c.Tags)
	v.noStream(c)
	v.oneOf("log.level", c.Log.Level, "debug", "info", "warning", "error")
	v.oneOf("log.format", c.Log.Format, "auto", "console", "json", "patroni")
	v.oneOf("log.type", strings.ToLower(c.Log.Type), "plain", "json")
	if c.Log.Dir != "" && !filepath.IsAbs(c.Log.Dir) {
		v.fail("log.dir", c.Log.Dir, "must be an absolute path")
	}
	if n := c.Lictor.ScriptTimeout; n < 0 {
		v.fail("lictor.script_timeout", strconv.Itoa(n), "must be at least 1 s")
	}
	v.backup(c.Lictor.Backup)
	v.oneOf("lictor.compat", c.Lictor.Compat, "patroni-3", "patroni-4")
	if timing := dynamic.Timing; timing.TTL > 0 { // else its own problem has been reported
		v.fence(c.Lictor.Fence, timing)
		v.watchdog(c, timing)
	}
	slices.SortStableFunc(v.warnings, func(a, b Warning) int { return strings.Compare(a.Path, b.Path) })
	return v.warnings, errors.Join(v.errs...)
}

// validation collects what is wrong.
type validation struct {
	errs     []error
	warnings []Warning
}

// problem says that a value breaks a rule. Values that are not set are not
// shown, and secrets never come here.
func problem(path, value, rule string) cluster.Problem {
	p := cluster.Problem{Path: path, Rule: rule}
	if value != "" {
		p.Value = strconv.Quote(settings.Redact(value))
	}
	return p
}

func (v *validation) fail(path, value, format string, args ...any) {
	v.errs = append(v.errs, problem(path, value, fmt.Sprintf(format, args...)))
}

func (v *validation) warn(path, format string, args ...any) {
	v.warnings = append(v.warnings, Warning{Path: path, Text: fmt.Sprintf(format, args...)})
}

func (v *validation) add(warnings []Warning, err error) {
	v.warnings = append(v.warnings, warnings...)
	v.errs = append(v.errs, err)
}

// oneOf checks a choice; what is not set is the default.
func (v *validation) oneOf(path, value string, choices ...string) {
	if value != "" && !slices.Contains(choices, value) {
		v.fail(path, value, "must be one of %s", strings.Join(choices, ", "))
	}
}

func (v *validation) required(path, value, example string) bool {
	if value == "" {
		v.fail(path, "", "must be set, e.g. %s", example)
	}
	return value != ""
}

// file checks a file that must be there already.
func (v *validation) file(path, name string) {
	if name == "" {
		return
	}
	if err := settings.CheckFile(name); err != nil {
		v.fail(path, name, "%v", err)
	}
}

// command checks that a command can be split into words: no shell runs it.
func (v *validation) command(path, text string) {
	if text == "" {
		return
	}
	if words, err := shlex.Split(text); err != nil || len(words) == 0 {
		v.fail(path, text, "must be a command with its arguments, quoted as in a shell")
	}
}

// names checks what becomes part of Consul's keys. PostgreSQL's application_name
// is the member's name; synchronous standbys are listed with commas.
func (v *validation) names(c Config) {
	if v.required("scope", c.Scope, "shard1") {
		v.rule("scope", c.Scope, cluster.CheckName(c.Scope))
		if len(c.Scope) > maxName || !isASCII(c.Scope) {
			v.warn("scope", "is cut or changed where PostgreSQL shows it as cluster_name, which has at most 63 ASCII characters")
		}
	}
	if v.required("name", c.Name, "db1") {
		v.rule("name", c.Name, cluster.CheckName(c.Name))
		if len(c.Name) > maxName {
			v.fail("name", c.Name, "must not be longer than 63 bytes, which is all that PostgreSQL keeps of it")
		}
		if !isASCII(c.Name) {
			v.fail("name", c.Name, "must have ASCII characters only: PostgreSQL replaces others in application_name, and the member could not be a synchronous standby")
		}
	}
	v.rule("namespace", c.Namespace, cluster.CheckNamespace(c.Namespace))
	v.rule("lictor.routes_prefix", c.Lictor.RoutesPrefix, cluster.CheckNamespace(c.Lictor.RoutesPrefix))
	if strings.Trim(c.Lictor.RoutesPrefix, "/") == strings.Trim(c.Namespace, "/") {
		v.fail("lictor.routes_prefix", c.Lictor.RoutesPrefix, "must differ from namespace: a shard named routes would mix with the routes")
	}
}

// maxName is how many bytes of a name PostgreSQL keeps (NAMEDATALEN - 1).
const maxName = 63

func isASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII })
}

// identifier checks the name of a role or database: PostgreSQL cuts a longer one, and
// files such as pgpass have one line for each.
func (v *validation) identifier(path, name string) {
	switch {
	case len(name) > maxName:
		v.fail(path, name, "must not be longer than 63 bytes, which is all that PostgreSQL keeps of it")
	case strings.ContainsFunc(name, unicode.IsControl):
		v.fail(path, name, "must not contain control characters")
	}
}

// rule reports an error that states the rule which a value breaks.
func (v *validation) rule(path, value string, err error) {
	if err != nil {
		v.fail(path, value, "%v", err)
	}
}

func (v *validation) restAPI(r RestAPI, ctl Ctl) {
	if v.required("restapi.listen", r.Listen, "0.0.0.0:8008") {
		v.listen("restapi.listen", r.Listen, false)
		v.connect("restapi.connect_address", r.ConnectAddress, "restapi.listen", r.Listen)
	}
	v.oneOf("restapi.verify_client", r.VerifyClient, "none", "optional", "required")
	v.oneOf("restapi.server_tokens", strings.ToLower(r.ServerTokens), "original", "minimal", "productonly")
	for path, set := range map[string]bool{
		"restapi.request_queue_size": r.RequestQueueSize != 0, "restapi.server_tokens": r.ServerTokens != "",
	} {
		if set {
			v.warn(path, "has no effect: the server queues nothing and does not tell its version")
		}
	}
	_, notes, err := ParseCiphers(r.Ciphers)
	for _, note := range notes {
		v.warn("restapi.ciphers", "%s", note)
	}
	switch {
	case err != nil:
		v.fail("restapi.ciphers", r.Ciphers, "%v", err)
	case r.Ciphers != "" && r.CertFile == "":
		v.warn("restapi.ciphers", "has no effect without restapi.certfile: nothing is encrypted")
	}
	if (r.VerifyClient == "optional" || r.VerifyClient == "required") && r.CertFile == "" {
		v.fail("restapi.certfile", "", "must be set: restapi.verify_client is %s, and only TLS can verify a client", r.VerifyClient)
	}
	if (r.VerifyClient == "optional" || r.VerifyClient == "required") && r.CAFile == "" {
		v.fail("restapi.cafile", "", "must be set: restapi.verify_client is %s, and without a file of the authorities whose certificates clients show, those of every public one would be taken", r.VerifyClient)
	}
	if r.CertFile != "" && (ctl.VerifyNames == nil || *ctl.VerifyNames) {
		if err := certfiles.CheckName(r.CertFile, r.ConnectAddress); err != nil {
			v.warn("restapi.certfile", "other members and commands refuse it: it is not for the host of restapi.connect_address (%v); add that to its subjectAltName, or set ctl.verify_names: false where it is asked from", err)
		}
	}
	if r.KeyFile != "" && r.CertFile == "" {
		v.fail("restapi.certfile", "", "must be set together with restapi.keyfile")
	}
	for path, name := range map[string]string{
		"restapi.certfile": r.CertFile, "restapi.keyfile": r.KeyFile, "restapi.cafile": r.CAFile,
		"ctl.certfile": ctl.CertFile, "ctl.keyfile": ctl.KeyFile, "ctl.cacert": ctl.CACert,
	} {
		v.file(path, name)
	}
	if ctl.KeyFile != "" && ctl.CertFile == "" {
		v.fail("ctl.certfile", "", "must be set together with ctl.keyfile")
	}
	v.credentials("restapi.authentication", r.Authentication)
	v.credentials("ctl.authentication", ctl.Authentication)
	for i, entry := range r.Allowlist {
		if _, _, err := net.ParseCIDR(entry); err != nil && strings.Contains(entry, "/") {
			v.fail(fmt.Sprintf("restapi.allowlist[%d]", i), entry, "must be an address, a network like 10.0.0.0/8, or a host name")
		}
	}
}

func (v *validation) credentials(path string, c Credentials) {
	if err := cluster.CheckCredentials(c.Username, c.Password); err != nil {
		v.fail(path, "", "%v", err)
	}
	v.password(path+".password", c.Password)
}

// Placeholder stands in the sample configuration where a password belongs.
const Placeholder = "CHANGE-ME"

// password refuses what is no secret.
func (v *validation) password(path, password string) {
	switch {
	case strings.Contains(password, Placeholder):
		v.fail(path, "", "is still the placeholder of the sample configuration: choose a password")
	case strings.ContainsAny(password, "\r\n\x00"):
		v.fail(path, "", "must be one line")
	case slices.Contains([]string{"zalando", "rep-pass", "rewind_password"}, password):
		v.warn(path, "is the password of Patroni's published examples: choose another one")
	}
}

// apart checks that PostgreSQL and the REST API do not listen at one address: whoever is second could not start.
func (v *validation) apart(postgres, api string) {
	hosts, port, ok := SplitAddress(postgres)
	others, at, both := SplitAddress(api)
	if !ok || !both || port != at {
		return
	}
	for _, host := range others {
		if isWildcard(host) || slices.ContainsFunc(hosts, func(h string) bool { return isWildcard(h) || strings.EqualFold(h, host) }) {
			v.fail("restapi.listen", api, "must have another port than postgresql.listen, which is %s", postgres)
			return
		}
	}
}

// listen checks host:port; PostgreSQL may listen on several hosts.
func (v *validation) listen(path, value string, several bool) {
	hosts, _, ok := SplitAddress(value)
	switch {
	case !ok:
		v.fail(path, value, "must be host:port")
	case len(hosts) > 1 && !several:
		v.fail(path, value, "must be one host:port")
	}
}

// connect checks where others connect to. It is derived from where is listened,
// if that is an address.
func (v *validation) connect(path, value, listenPath, listen string) {
	if value == "" {
		if _, _, ok := SplitAddress(listen); ok {
			v.fail(path, "", "must be set: %s is %s, and other hosts cannot connect to that", listenPath, listen)
		}
		return
	}
	hosts, _, ok := SplitAddress(value)
	switch {
	case !ok || len(hosts) > 1:
		v.fail(path, value, "must be host:port")
	case isWildcard(hosts[0]):
		v.fail(path, value, "must be an address or name that other hosts can connect to")
	case cluster.CheckHost(hosts[0]) != nil:
		v.fail(path, value, "its host "+cluster.HostRule)
	}
}

// SplitAddress takes host:port apart as Patroni does: there may be several hosts,
// with commas and blanks, and those that are IPv6 addresses may be in brackets.
func SplitAddress(text string) (hosts []string, port string, ok bool) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return nil, "", false
	}
	port = strings.TrimSpace(text[i+1:])
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return nil, "", false
	}
	for host := range strings.SplitSeq(text[:i], ",") {
		host = strings.TrimSpace(host)
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
		if strings.ContainsAny(host, " \t\r\n/@?#[]'\"=;") {
			return nil, "", false
		}
		if _, err := netip.ParseAddr(host); err != nil && strings.Contains(host, ":") {
			return nil, "", false
		}
		hosts = append(hosts, host)
	}
	return hosts, port, true
}

func isWildcard(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || host == "*" || ip != nil && ip.IsUnspecified()
}

func (v *validation) tags(tags map[string]any) {
	for _, name := range []string{"nofailover", "clonefrom", "noloadbalance", "nosync", "nostream"} {
		if value := tags[name]; value != nil {
			if _, err := cluster.ParseBoolean(value); err != nil {
				v.fail("tags."+name, fmt.Sprint(value), "%v", err)
			}
		}
	}
	for _, name := range []string{"failover_priority", "sync_priority"} {
		if value := tags[name]; value != nil {
			if n, err := cluster.ParseInteger(value); err != nil || n < 0 {
				v.fail("tags."+name, fmt.Sprint(value), "must be a whole number, 0 or more")
			}
		}
	}
	if host := cluster.TextTag(tags, "host"); tags["host"] != nil && cluster.CheckHost(host) != nil && cluster.CheckName(host) != nil {
		v.warn("tags.host", "is not the name of a host, nor an address: lictor evacuate and rebalance take the member's address for its host")
	}
	if tags["zone"] != nil && cluster.TextTag(tags, "zone") == "" {
		v.warn("tags.zone", "is neither a word nor a number: the member counts as one without a zone")
	}
	if value := tags["replicatefrom"]; value != nil {
		if _, ok := value.(string); !ok {
			v.fail("tags.replicatefrom", fmt.Sprint(value), "must be the name of a member")
		}
	}
	if on, err := cluster.ParseBoolean(tags["nofailover"]); err == nil && on && cluster.FailoverPriority(map[string]any{"failover_priority": tags["failover_priority"]}) > 0 && tags["failover_priority"] != nil {
		v.warn("tags.failover_priority", "has no effect beside nofailover: true")
	}
}

// noStream warns of a member that would get no WAL. The dynamic configuration, which this
// file does not show, may have what it needs.
func (v *validation) noStream(c Config) {
	if !cluster.NoStream(c.Tags) {
		return
	}
	ofShard, _ := c.Bootstrap.DCS["postgresql"].(map[string]any)
	layers := []any{c.Postgres.Parameters, c.Postgres.RecoveryConf, ofShard["parameters"], ofShard["recovery_conf"]}
	for _, layer := range layers {
		values, _ := layer.(map[string]any)
		for name, value := range values {
			if text, _ := value.(string); strings.EqualFold(name, "restore_command") && strings.TrimSpace(text) != "" {
				return
			}
		}
	}
	v.warn("tags.nostream", "this file has no restore_command: unless the dynamic configuration has one, the member gets no WAL; set postgresql.recovery_conf.restore_command")
}

// leastKillBefore is the shortest kill_before in seconds: the watcher comes 50 ms after
// the guard (agent/fence), and what is killed must be dead by the end of the lease.
const leastKillBefore = 0.2

// fence checks the moments, before the end of the lease, at which a leader that
// cannot renew it stops PostgreSQL (design 5.4).
func (v *validation) fence(f Fence, t cluster.Timing) {
	demote, kill := f.DemoteBefore, f.KillBefore
	if demote == 0 {
		demote = t.TTL.Seconds() / 4
	}
	if kill == 0 {
		kill = t.TTL.Seconds() / 10
	}
	// A lease is renewed every beat; with no more left than this it would be
	// fenced between two beats.
	room := (t.TTL - t.BeatInterval()).Seconds()
	show := func(n float64) string { return strconv.FormatFloat(n, 'g', -1, 64) }
	for _, field := range []struct {
		path  string
		value float64
	}{{"lictor.fence.demote_before", demote}, {"lictor.fence.kill_before", kill}} {
		switch {
		case !(field.value > 0): // NaN, too
			v.fail(field.path, show(field.value), "must be more than 0 s")
			return
		case field.value >= room:
			v.fail(field.path, show(field.value), "must be less than ttl - one beat = %s s, or the leader is fenced between two beats", show(room))
			return
		}
	}
	if kill < leastKillBefore {
		v.fail("lictor.fence.kill_before", show(kill), "must be at least %s s: the guard's watcher kills a moment after the guard, and a kill takes a while", show(leastKillBefore))
	}
	if demote <= kill {
		v.fail("lictor.fence.demote_before", show(demote), "must be more than lictor.fence.kill_before, which is %s s: PostgreSQL is stopped first and killed later", show(kill))
	}
}

// watchdog checks the device's settings against the lease.
func (v *validation) watchdog(c Config, t cluster.Timing) {
	w := c.Watchdog
	v.oneOf("watchdog.mode", w.Mode, "off", "automatic", "required")
	v.oneOf("watchdog.driver", w.Driver, "default", "testing")
	if w.SafetyMargin != nil && (*w.SafetyMargin < -1 || time.Duration(*w.SafetyMargin)*time.Second >= t.TTL) {
		v.fail("watchdog.safety_margin", strconv.Itoa(*w.SafetyMargin), "must be from 1 to less than ttl (%s), or -1 for half of ttl", t.TTL)
	}
	if w.Mode == "off" {
		return
	}
	demote, kill := c.Lictor.Fence.Margins(t.TTL)
	timing := fence.WatchdogTiming{TTL: t.TTL, DemoteBefore: demote, KillBefore: kill}
	if err := timing.Check(w.Mode == "required"); err != nil {
		v.errs = append(v.errs, err) // it names the field
	}
	if _, err := fence.WatchdogTimeout(t.TTL, w.SafetyMargin); err != nil {
		v.errs = append(v.errs, err) // it names the field
	}
}

func (v *validation) backup(b Backup) {
	if b.Every < 0 {
		v.fail("lictor.backup.every", strconv.Itoa(b.Every), "must be at least 1 s")
	}
	if b.Stanza == "" {
		if b.Command != "" || b.Every != 0 || b.MaxAge != 0 || b.MaxVerifiedAge != 0 || b.MaxRestore != 0 {
			v.fail("lictor.backup.stanza", "", "must be set: without it nothing is asked of backups")
		}
		return
	}
	if err := cluster.CheckName(b.Stanza); err != nil { // it is part of paths, command lines and messages
		v.fail("lictor.backup.stanza", b.Stanza, "must be the name of a stanza of pgBackRest: it %v", err)
	}
	if words, err := shlex.Split(b.Command); b.Command != "" && (err != nil || len(words) == 0) {
		v.fail("lictor.backup.command", b.Command, "must be a command that can be split into words")
	}
}
