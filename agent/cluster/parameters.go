package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// SharedParameter is a parameter of PostgreSQL that must be the same on all members,
// or that others rely on. It comes from the dynamic configuration alone and is passed
// on the postmaster's command line, so that ALTER SYSTEM cannot change it (Patroni's
// list, design 3.1).
type SharedParameter struct {
	Name     string
	Fallback string
	// Accept brings a value that may be used into PostgreSQL's own form.
	Accept func(text string) (value string, ok bool)
	// Rule says what Accept takes.
	Rule string
}

// SharedParameters lists them.
func SharedParameters() []SharedParameter {
	return []SharedParameter{
		{"wal_level", "replica", walLevel, "must be replica or logical"},
		{"hot_standby", "on", fixed, "is always on in a shard"},
		{"max_connections", "100", atLeast(25), "must be a whole number, at least 25"},
		{"max_wal_senders", "10", atLeast(3), "must be a whole number, at least 3"},
		{"max_prepared_transactions", "0", atLeast(0), "must be a whole number, at least 0"},
		{"max_locks_per_transaction", "64", atLeast(32), "must be a whole number, at least 32"},
		{"track_commit_timestamp", "off", onOff, "must be on or off"},
		{"max_replication_slots", "10", atLeast(4), "must be a whole number, at least 4"},
		{"max_worker_processes", "8", atLeast(2), "must be a whole number, at least 2"},
		{"wal_log_hints", "on", fixed, "is always on in a shard: pg_rewind needs it"},
		{"track_activities", "on", fixed, "is always on in a shard: by pg_stat_activity Lictor knows whether replay has ended, and which transactions are long"},
		{"update_process_title", "on", fixed, "is always on in a shard: by their titles Lictor knows which WAL senders are stuck while PostgreSQL stops"},
	}
}

// fixed takes on alone, the only value that a member of a shard may have.
func fixed(text string) (string, bool) {
	value, ok := onOff(text)
	return value, ok && value == "on"
}

func atLeast(least int) func(string) (string, bool) {
	return func(text string) (string, bool) {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		return strconv.Itoa(n), err == nil && n >= least
	}
}

// walLevel takes hot_standby, the name that replica had before version 9.6.
func walLevel(text string) (string, bool) {
	switch text = strings.ToLower(strings.TrimSpace(text)); text {
	case "hot_standby":
		return "replica", true
	case "replica", "logical":
		return text, true
	}
	return "", false
}

// onOff takes the words for a truth value that PostgreSQL does.
func onOff(text string) (string, bool) {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "on", "true", "yes", "1", "t", "y":
		return "on", true
	case "off", "false", "no", "0", "f", "n":
		return "off", true
	}
	return "", false
}

// AddressParameters follow from the agent's own file.
func AddressParameters() []string { return []string{"listen_addresses", "port", "cluster_name"} }

// RecoveryParameters are those that say what a standby follows or how it recovers.
func RecoveryParameters() []string {
	return []string{
		"primary_conninfo", "primary_slot_name", "restore_command", "recovery_target", "recovery_target_name", "recovery_target_time",
		"recovery_target_xid", "recovery_target_lsn", "recovery_target_inclusive", "recovery_target_timeline", "recovery_target_action",
		"promote_trigger_file", "recovery_min_apply_delay", "archive_cleanup_command", "recovery_end_command",
	}
}

// AgentsRecovery are those of them that the agent alone sets.
func AgentsRecovery() []string {
	return []string{"primary_conninfo", "primary_slot_name", "promote_trigger_file"}
}

// PathRefusal says why a parameter that moves PostgreSQL away from where agent and
// guard look is refused; empty for any other parameter.
func PathRefusal(name string) string {
	switch strings.ToLower(name) {
	case "data_directory":
		return "must not be set: PostgreSQL would run where neither the agent nor the guard looks; the data directory is postgresql.data_dir of the agent's file"
	case "config_file":
		return "must not be set: the agent writes postgresql.conf in the data directory, or in postgresql.config_dir of its file; use postgresql.custom_conf to include a file of your own"
	}
	return ""
}

// ParameterText writes a value as PostgreSQL reads it.
func ParameterText(value any) string {
	switch v := value.(type) {
	case bool:
		if v {
			return "on"
		}
		return "off"
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case json.Number:
		return v.String()
	}
	return fmt.Sprint(value)
}

// parameterName is a name as postgresql.conf takes it: the letters of other alphabets
// are left out, no parameter has one.
var parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?$`)

// CheckParameter says what is wrong with a parameter's name or the form of its value,
// whatever PostgreSQL itself thinks of it: what could break out of its line in
// postgresql.conf, or moves PostgreSQL elsewhere. Empty: nothing.
func CheckParameter(name string, value any) string {
	switch v := value.(type) {
	case map[string]any, []any:
		return "must be a single value"
	case string:
		if strings.ContainsAny(v, "\r\n\x00") {
			return "must be one line"
		}
	}
	if !parameterName.MatchString(name) {
		return "is not the name of a parameter"
	}
	return PathRefusal(name)
}

// CheckParameters checks all of a map; path is its full name, for the problems.
func CheckParameters(path string, parameters map[string]any) []error {
	var errs []error
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if rule := CheckParameter(name, parameters[name]); rule != "" {
			p := Problem{Path: path + "." + name, Rule: rule}
			switch parameters[name].(type) {
			case []any:
				p.Value = "a list"
			case map[string]any:
				p.Value = "a map"
			}
			errs = append(errs, p)
			continue
		}
		// PostgreSQL's names have no case, the map's have: one value would win by chance.
		if other, twice := seen[strings.ToLower(name)]; twice {
			errs = append(errs, Problem{Path: path + "." + name, Rule: "is the same parameter as " + other + ": keep one of them"})
		}
		seen[strings.ToLower(name)] = name
	}
	return errs
}

// UnusedParameters tells of parameters that have no effect where they stand, or not
// the value that they are given. path is the map's full name; dynamic says that it is
// the one that all members share.
func UnusedParameters(path string, parameters map[string]any, dynamic bool) []Warning {
	var warnings []Warning
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		value := parameters[name]
		if value == nil {
			continue
		}
		if why := unusedParameter(strings.ToLower(name), ParameterText(value), dynamic); why != "" {
			warnings = append(warnings, Warning{Path: path + "." + name, Text: why})
		}
	}
	return warnings
}

func unusedParameter(name, value string, dynamic bool) string {
	switch {
	case slices.Contains(AddressParameters(), name):
		return "has no effect: it follows from postgresql.listen and scope of each agent's file"
	case name != "restore_command" && slices.Contains(RecoveryParameters(), name):
		if slices.Contains(AgentsRecovery(), name) {
			return "has no effect: the agent sets it"
		}
		if OfTarget(name) {
			return targetText
		}
		return "has no effect here: put it under postgresql.recovery_conf"
	}
	for _, s := range SharedParameters() {
		if s.Name != name {
			continue
		}
		if !dynamic {
			return "has no effect here: all members must have the same, so it is taken from postgresql.parameters of the dynamic configuration alone"
		}
		if _, ok := s.Accept(value); !ok {
			return fmt.Sprintf("%s: %s; %s is in force", value, s.Rule, s.Fallback)
		}
	}
	return ""
}

// Unsynchronous warns of parameters by which an acknowledged commit may be lost in spite of
// synchronous_mode. path is the map's full name.
func Unsynchronous(path string, parameters map[string]any) []Warning {
	var warnings []Warning
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		value := parameters[name]
		if value == nil {
			continue
		}
		text := ParameterText(value)
		if why := Unkept(strings.ToLower(name), text); why != "" {
			warnings = append(warnings, Warning{Path: path + "." + name, Text: text + ": " + why})
		}
	}
	return warnings
}

// Unkept says why a parameter's value does not keep what synchronous_mode promises, and what
// does; empty: it keeps it.
func Unkept(name, value string) string {
	word := strings.ToLower(strings.TrimSpace(value))
	if on, ok := onOff(value); ok {
		word = on
	}
	switch {
	case name == "synchronous_commit" && (word == "off" || word == "local"):
		return "commits wait for no standby in spite of synchronous_mode, so that what was acknowledged can be lost with the primary's host; " +
			"use on or remote_apply, and SET LOCAL synchronous_commit in transactions that may be lost"
	case name == "synchronous_commit" && word == "remote_write":
		return "commits do not wait until the standby has them on its disk, so that what was acknowledged can be lost when both hosts lose power; use on or remote_apply"
	case name == "fsync" && word == "off":
		return "what was acknowledged need not be on any disk, and a crash of the host can destroy the data; use on"
	}
	return ""
}

// unusedRecovery tells of what a section recovery_conf has that is no recovery
// parameter, is the agent's own, or is not for replicas.
func unusedRecovery(name, value string) string {
	switch name = strings.ToLower(name); {
	case name == "recovery_target_timeline" && value == "latest":
		return "" // as it is anyway
	case OfTarget(name):
		return targetText
	case slices.Contains(AgentsRecovery(), name):
		return "has no effect: the agent sets it"
	case slices.Contains([]string{"standby_mode", "trigger_file"}, name):
		return "has no effect: PostgreSQL has no such parameter since version 12"
	case !slices.Contains(RecoveryParameters(), name):
		return "has no effect: it is no parameter of recovery; put it under postgresql.parameters"
	}
	return ""
}

// UnusedRecovery is UnusedParameters for a section recovery_conf.
func UnusedRecovery(path string, parameters map[string]any) []Warning {
	var warnings []Warning
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if parameters[name] == nil {
			continue
		}
		if why := unusedRecovery(name, ParameterText(parameters[name])); why != "" {
			warnings = append(warnings, Warning{Path: path + "." + name, Text: why})
		}
	}
	return warnings
}
