package cluster

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
)

// Defaults and limits of the timing rules, in seconds (design 5.12).
const (
	DefaultTTL      = 8
	MinTTL          = 3
	MaxTTL          = 86400 // Consul's limit for a session
	MinLoopWait     = 1
	MinRetryTimeout = 1
	// costlyTTL is the ttl from which on a warning says what it costs.
	costlyTTL = 15
)

// Defaults of the other dynamic settings, which are Patroni's but for
// failsafe_mode: Lictor's leader survives an outage of Consul unless that is
// switched off.
const (
	DefaultMaximumLagOnFailover = 1 << 20
	DefaultMaximumLagOnSyncNode = -1
	DefaultMaximumLagForReaders = 16 << 20
	DefaultPrimaryStartTimeout  = 300 * time.Second
	DefaultMemberSlotsTTL       = 30 * time.Minute
	DefaultSuspectAfter         = time.Second
)

// DynamicKeys are all keys that ParseDynamic reads.
func DynamicKeys() []string {
	return []string{
		"ttl", "loop_wait", "retry_timeout", "maximum_lag_on_failover", "maximum_lag_on_syncnode", "maximum_lag_for_readers", "maximum_delay_for_readers",
		"max_timelines_history", "check_timeline", "primary_start_timeout", "master_start_timeout",
		"primary_stop_timeout", "master_stop_timeout", "synchronous_mode", "synchronous_mode_strict",
		"synchronous_node_count", "failsafe_mode", "pause", "slots", "permanent_slots", "ignore_slots",
		"member_slots_ttl", "rebuild", "takeover", "suspect_after", "maintenance_windows", "standby_cluster", "other_site", "postgresql",
	}
}

// ParseDynamicJSON reads the value of the Consul key `config`. Whoever watches
// the key keeps the last good configuration when this fails.
func ParseDynamicJSON(value []byte) (Dynamic, []Warning, error) {
	return Rules{}.ParseJSON(value)
}

// Rules say how a dynamic configuration is read. By the zero value loop_wait and
// retry_timeout must fit into ttl.
type Rules struct {
	// LowerTiming takes loop_wait and retry_timeout that do not fit into ttl, and
	// lowers them as Patroni 4.1 does: for agents whose file says lictor.compat,
	// and for programs that read what such an agent has taken.
	LowerTiming bool
}

// ParseJSON is ParseDynamicJSON by these rules.
func (rules Rules) ParseJSON(value []byte) (Dynamic, []Warning, error) {
	raw, err := DecodeObject(value)
	if err != nil {
		return Dynamic{}, nil, err
	}
	d, warnings, err := rules.Parse(raw)
	if path := RepeatedKey(value); path != "" {
		warnings = append(warnings, Warning{Path: path, Text: "is there twice, and the last one counts"})
	}
	return d, warnings, err
}

// ParseDynamic checks a dynamic configuration and fills in the defaults. All
// problems are reported at once, each a Problem with setting, value and rule;
// nothing is clamped. Keys that Lictor does not know stay in Raw as they are.
// The argument is neither changed nor kept.
func ParseDynamic(raw map[string]any) (Dynamic, []Warning, error) { return Rules{}.Parse(raw) }

// Parse is ParseDynamic by these rules.
func (rules Rules) Parse(raw map[string]any) (Dynamic, []Warning, error) {
	r := reader{raw: raw, rules: rules}
	d := Dynamic{Raw: cloneTree(raw), Timing: r.timing()}
	if d.Raw == nil {
		d.Raw = map[string]any{}
	}
	d.MaximumLagOnFailover = r.bytes("maximum_lag_on_failover", DefaultMaximumLagOnFailover, 0)
	d.MaximumLagOnSyncNode = r.bytes("maximum_lag_on_syncnode", DefaultMaximumLagOnSyncNode, -1)
	d.MaximumLagForReaders = r.bytes("maximum_lag_for_readers", DefaultMaximumLagForReaders, 0)
	d.MaximumDelayForReaders = r.duration("maximum_delay_for_readers", 0)
	d.MaxTimelinesHistory = int(r.number("max_timelines_history", 0, 0, math.MaxInt32))
	d.CheckTimeline = r.boolean("check_timeline", false)
	d.PrimaryStartTimeout = r.duration(r.pick("primary_start_timeout", "master_start_timeout"), DefaultPrimaryStartTimeout)
	d.PrimaryStopTimeout = r.duration(r.pick("primary_stop_timeout", "master_stop_timeout"), 0)
	d.SynchronousMode = r.syncMode()
	d.SynchronousStrict = r.boolean("synchronous_mode_strict", false)
	d.SynchronousNodeCount = int(r.number("synchronous_node_count", 1, 1, math.MaxInt32))
	d.Takeover = r.takeover(d.SynchronousMode)
	if d.SuspectAfter = r.duration("suspect_after", DefaultSuspectAfter); d.SuspectAfter < time.Second {
		r.fail("suspect_after", r.raw["suspect_after"], "must be at least 1")
	}
	d.FailsafeMode = r.boolean("failsafe_mode", true)
	d.Pause = r.boolean("pause", false)
	d.Slots = r.slots(r.pick("slots", "permanent_slots"))
	d.IgnoreSlots = r.matchers("ignore_slots")
	d.MemberSlotsTTL = r.duration("member_slots_ttl", DefaultMemberSlotsTTL)
	d.Rebuild = r.rebuild()
	d.MaintenanceWindows = r.windows("maintenance_windows")
	d.StandbyCluster = r.standbyCluster()
	d.OtherSite = r.otherSite()
	d.Postgres = r.postgres()
	r.consider(d)
	if err := errors.Join(r.errs...); err != nil {
		return Dynamic{}, r.warnings, err
	}
	return d, r.warnings, nil
}

// timing applies design 5.12: what is not set follows ttl, and a set of values that
// breaks a rule is refused with its numbers.
func (r *reader) timing() Timing {
	before := len(r.errs)
	ttl := r.seconds("ttl", DefaultTTL, MinTTL, MaxTTL)
	loopWait := int64(2)
	if ttl < DefaultTTL {
		loopWait = 1
	}
	loopWait = r.seconds("loop_wait", loopWait, MinLoopWait, MaxTTL)
	retry := max(MinRetryTimeout, min(10, (ttl-loopWait)/2))
	retry = r.seconds("retry_timeout", retry, MinRetryTimeout, MaxTTL)
	switch sum := loopWait + 2*retry; {
	case len(r.errs) > before || sum <= ttl:
	case r.rules.LowerTiming:
		given := fmt.Sprintf("loop_wait %d and retry_timeout %d", loopWait, retry)
		loopWait, retry = lower(ttl, retry)
		r.warn("ttl", "%s do not fit into ttl %d; in force: ttl %d, loop_wait %d, retry_timeout %d", given, ttl, ttl, loopWait, retry)
	default:
		r.errs = append(r.errs, Problem{
			Path: "ttl", Value: fmt.Sprint(ttl),
			Rule: fmt.Sprintf("loop_wait + 2 x retry_timeout must not be more than ttl, but %d + 2 x %d = %d: a leader could not try Consul twice before its lease ends; give all three, or write `lictor: {compat: patroni-4}` into the agents' files, and they are lowered as Patroni does",
				loopWait, retry, sum),
		})
	}
	return Timing{
		TTL: time.Duration(ttl) * time.Second, LoopWait: time.Duration(loopWait) * time.Second,
		RetryTimeout: time.Duration(retry) * time.Second,
	}
}

// lower makes loop_wait and retry_timeout fit into ttl as Patroni 4.1 does: the
// first before the second.
func lower(ttl, retry int64) (lowerWait, lowerRetry int64) {
	if MinLoopWait+2*retry > ttl {
		return MinLoopWait, (ttl - MinLoopWait) / 2
	}
	return ttl - 2*retry, retry
}

// WithTiming is a configuration whose loop_wait and retry_timeout are those in
// force, where they were lowered.
func (d Dynamic) WithTiming(raw map[string]any) map[string]any {
	given := reader{raw: raw}
	if given.timing(); len(given.errs) == 0 {
		return raw
	}
	out := cloneTree(raw)
	out["loop_wait"], out["retry_timeout"] = int(d.LoopWait/time.Second), int(d.RetryTimeout/time.Second)
	return out
}

func (r *reader) syncMode() SyncMode {
	value := r.raw["synchronous_mode"]
	if value == nil {
		return SyncOff
	}
	if on, err := ParseBoolean(value); err == nil {
		if on {
			return SyncOn
		}
		return SyncOff
	}
	if text, ok := value.(string); ok && strings.EqualFold(strings.TrimSpace(text), string(SyncQuorum)) {
		return SyncQuorum
	}
	r.fail("synchronous_mode", value, `must be true, false or "quorum"`)
	return SyncOff
}

func (r *reader) takeover(mode SyncMode) TakeoverPolicy {
	value := r.raw["takeover"]
	if value == nil {
		return TakeoverLease
	}
	text, _ := value.(string)
	switch p := TakeoverPolicy(strings.ToLower(strings.TrimSpace(text))); {
	case p == TakeoverLease:
		return p
	case p != TakeoverQuorum:
		r.fail("takeover", value, "must be lease or quorum")
	case !mode.On():
		r.fail("takeover", value, "quorum needs synchronous_mode: only standbys that commits wait for can stand in for the lease")
	default:
		return p
	}
	return TakeoverLease
}

func (r *reader) rebuild() RebuildPolicy {
	value := r.raw["rebuild"]
	if value == nil {
		return RebuildAsk
	}
	text, _ := value.(string)
	if p := RebuildPolicy(strings.ToLower(strings.TrimSpace(text))); p == RebuildAsk || p == RebuildAuto {
		return p
	}
	r.fail("rebuild", value, "must be ask or auto")
	return RebuildAsk
}

// slots reads the permanent slots: a name with type, database and plugin, or
// with nothing for a physical one.
func (r *reader) slots(key string) map[string]any {
	slots := r.object(key)
	for _, name := range slices.Sorted(maps.Keys(slots)) {
		path := key + "." + name
		if !isSlotName(name) {
			r.fail(path, nil, slotNameRule)
		}
		slot, isMap := slots[name].(map[string]any)
		if !isMap {
			if off, err := ParseBoolean(slots[name]); slots[name] != nil && slots[name] != "" && (err != nil || off) {
				r.fail(path, slots[name], "must be a map of type, database and plugin")
			}
			continue
		}
		switch kind := slot["type"]; kind {
		case nil, "physical":
		case "logical":
			for _, need := range []string{"database", "plugin"} {
				if text, ok := slot[need].(string); !ok || text == "" {
					r.fail(path+"."+need, nil, "must be set for a logical slot")
				}
			}
		default:
			r.fail(path+".type", kind, "must be physical or logical")
		}
	}
	return cloneTree(slots)
}

// slotNameRule is PostgreSQL's for the names of replication slots.
const slotNameRule = "a slot's name has lower-case letters, digits and _ only, at most 63"

func isSlotName(name string) bool {
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" && len(name) <= 63 && name != ""
}

func (r *reader) matchers(key string) []map[string]any {
	var all []map[string]any
	for i, item := range r.list(key) {
		m, ok := item.(map[string]any)
		if !ok {
			r.fail(fmt.Sprintf("%s[%d]", key, i), item, "must be a map of name, type, database and plugin")
			continue
		}
		all = append(all, cloneTree(m))
	}
	return all
}

func (r *reader) postgres() DynamicPostgres {
	below := reader{raw: r.object("postgresql"), prefix: "postgresql."}
	p := DynamicPostgres{
		Parameters:         cloneTree(below.object("parameters")),
		PgHBA:              below.lines("pg_hba"),
		PgIdent:            below.lines("pg_ident"),
		UsePgRewind:        below.optional("use_pg_rewind"),
		UseSlots:           below.optional("use_slots"),
		RecoveryConf:       cloneTree(below.object("recovery_conf")),
		RemoveOnRewindFail: below.optional("remove_data_directory_on_rewind_failure"),
		RemoveOnDiverged:   below.optional("remove_data_directory_on_diverged_timelines"),
	}
	for key, values := range map[string]map[string]any{"parameters": p.Parameters, "recovery_conf": p.RecoveryConf} {
		r.errs = append(r.errs, CheckParameters("postgresql."+key, values)...)
	}
	r.warnings = append(r.warnings, UnusedParameters("postgresql.parameters", p.Parameters, true)...)
	r.warnings = append(r.warnings, UnusedRecovery("postgresql.recovery_conf", p.RecoveryConf)...)
	r.errs = append(r.errs, below.errs...)
	return p
}

// consider warns of what is allowed.
func (r *reader) consider(d Dynamic) {
	if ttl := d.TTL / time.Second; ttl > costlyTTL {
		r.warn("ttl", "%d s: when a host is lost, its shard takes no writes for up to %d s; Lictor is safe from ttl %d up, its default is %d",
			ttl, ttl+1, MinTTL, DefaultTTL)
	}
	r.standbyAlone(d)
	if d.SynchronousMode.On() {
		r.warnings = append(r.warnings, Unsynchronous("postgresql.parameters", d.Postgres.Parameters)...)
	}
	if d.PrimaryStopTimeout != 0 {
		r.warn(r.pick("primary_stop_timeout", "master_stop_timeout"), "has no effect: the lease bounds how long a primary may take to stop")
	}
	for _, slot := range d.PermanentSlots() {
		if level, _ := walLevel(ParameterText(d.Postgres.Parameters["wal_level"])); slot.Type == SlotLogical && level != "logical" {
			r.warn(r.pick("slots", "permanent_slots")+"."+slot.Name, "is not made: postgresql.parameters.wal_level of the dynamic configuration must be logical for it, and takes effect with a restart")
		}
	}
	if use := d.Postgres.UseSlots; len(d.Slots) > 0 && use != nil && !*use {
		r.warn(r.pick("slots", "permanent_slots"), "has no effect without postgresql.use_slots")
	}
	r.unknown("", r.raw, DynamicKeys()...)
	r.unknown("postgresql.", asMap(r.raw["postgresql"]), PostgresKeys()...)
	for _, section := range []string{"slots", "permanent_slots"} {
		slots := asMap(r.raw[section])
		for _, name := range slices.Sorted(maps.Keys(slots)) {
			r.unknown(section+"."+name+".", asMap(slots[name]), slotKeys()...)
		}
	}
	matchers, _ := r.raw["ignore_slots"].([]any)
	for i, m := range matchers {
		r.unknown(fmt.Sprintf("ignore_slots[%d].", i), asMap(m), append(slotKeys(), "name")...)
	}
	for key, alias := range map[string]string{
		"primary_start_timeout": "master_start_timeout", "primary_stop_timeout": "master_stop_timeout", "slots": "permanent_slots",
	} {
		if r.raw[key] != nil && r.raw[alias] != nil {
			r.warn(alias, "has no effect beside %s", key)
		}
	}
}

// PostgresKeys are those of the section postgresql.
func PostgresKeys() []string {
	return []string{
		"parameters", "pg_hba", "pg_ident", "use_pg_rewind", "use_slots", "recovery_conf",
		"remove_data_directory_on_rewind_failure", "remove_data_directory_on_diverged_timelines",
	}
}

// slotKeys are those of a permanent slot.
func slotKeys() []string { return []string{"type", "database", "plugin"} }

// RoleKeys are Patroni's settings for one role alone, which Lictor does not know.
func RoleKeys() []string {
	var keys []string
	for _, setting := range []string{"parameters", "pg_hba", "pg_ident"} {
		for _, role := range []string{"primary", "replica", "standby_leader"} {
			keys = append(keys, setting+"_"+role)
		}
	}
	return keys
}

// RoleKeysText says what becomes of them.
const RoleKeysText = "has no effect so far: PostgreSQL gets the same settings in every role"

func asMap(value any) map[string]any {
	m, _ := value.(map[string]any)
	return m
}

// unknown warns of the keys of a section that are none of these.
func (r *reader) unknown(prefix string, section map[string]any, known ...string) {
	for _, key := range slices.Sorted(maps.Keys(section)) {
		if slices.Contains(known, key) {
			continue
		}
		if prefix == "postgresql." && slices.Contains(RoleKeys(), key) {
			r.warn(prefix+key, "%s", RoleKeysText)
			continue
		}
		text := "is not a known setting of the dynamic configuration and has no effect"
		for _, name := range known {
			if levenshtein.ComputeDistance(key, name) <= 2 {
				text = "is not a known setting and has no effect; did you mean " + name + "?"
				break
			}
		}
		r.warnings = append(r.warnings, Warning{Path: r.prefix + prefix + key, Text: text, Unknown: true})
	}
}
