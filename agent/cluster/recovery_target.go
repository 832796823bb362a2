package cluster

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// RecoveryTargets are the parameters that say where a recovery ends; PostgreSQL takes one at
// the most.
func RecoveryTargets() []string {
	return []string{"recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn"}
}

// OfTarget reports whether a parameter says where a recovery ends, on which timeline, or what becomes
// of PostgreSQL there. A replica's has no end: PostgreSQL would promote itself, without a lease, or
// leave out at its promotion what it has acknowledged beyond the target.
func OfTarget(parameter string) bool {
	return strings.HasPrefix(strings.ToLower(parameter), "recovery_target")
}

// targetText says what becomes of one that is set for replicas.
const targetText = "has no effect: a replica recovers to no target, and follows its leader's timeline; bootstrap.METHOD.recovery_conf says where the recovery of a new shard ends"

var (
	// withZone is a time of day with its zone after it: an offset, Z, or a name.
	withZone  = regexp.MustCompile(`\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?\s*(?:[+-]\d{1,2}(?::?\d{2}){0,2}|[A-Za-z][A-Za-z0-9_/+-]*)$`)
	isLSN     = regexp.MustCompile(`^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$`)
	halfOfDay = regexp.MustCompile(`(?i)\d\s*[ap]m$`)
)

// longestRestorePoint is how many bytes the name of a restore point may have (MAXFNAMELEN - 1).
const longestRestorePoint = 63

// CheckRecoveryTarget returns what would keep a recovery from ending where it is meant to.
// What it says begins with the parameter's name. The names in recovery are in lower case.
func CheckRecoveryTarget(recovery map[string]string) []string {
	var wrong []string
	fail := func(name, rule string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("%s: %q: ", name, recovery[name])+fmt.Sprintf(rule, args...))
	}
	var set []string
	for _, name := range RecoveryTargets() {
		if recovery[name] != "" {
			set = append(set, name)
		}
	}
	if len(set) > 1 {
		wrong = append(wrong, fmt.Sprintf("%s: PostgreSQL takes one target, leave one of them", strings.Join(set, " and ")))
	}
	if v := recovery["recovery_target"]; v != "" && v != "immediate" {
		fail("recovery_target", "must be immediate; a name, time, xid or LSN has a parameter of its own")
	}
	if v := recovery["recovery_target_name"]; len(v) > longestRestorePoint {
		fail("recovery_target_name", "must have at most %d bytes", longestRestorePoint)
	}
	if v := strings.TrimSpace(recovery["recovery_target_time"]); v != "" && (!withZone.MatchString(v) || halfOfDay.MatchString(v)) {
		fail("recovery_target_time", "must be a date and a time of day with its zone, 2026-11-29 10:00:00+00: without one it would be taken in PostgreSQL's timezone")
	}
	if v := recovery["recovery_target_xid"]; v != "" {
		if n, err := strconv.ParseUint(v, 0, 64); err != nil || n == 0 {
			fail("recovery_target_xid", "must be the number of a transaction")
		}
	}
	if v := recovery["recovery_target_lsn"]; v != "" && !isLSN.MatchString(v) {
		fail("recovery_target_lsn", "must be a position in the WAL, 0/3000060")
	}
	if v := recovery["recovery_target_timeline"]; v != "" && v != "latest" && v != "current" {
		if n, err := strconv.ParseUint(v, 0, 32); err != nil || n == 0 {
			fail("recovery_target_timeline", "must be latest, current or the number of a timeline")
		}
	}
	if v := recovery["recovery_target_inclusive"]; v != "" {
		if _, err := ParseBoolean(v); err != nil {
			fail("recovery_target_inclusive", "%v", err)
		}
	}
	if v := strings.ToLower(recovery["recovery_target_action"]); v != "" && !slices.Contains([]string{"promote", "pause", "shutdown"}, v) {
		fail("recovery_target_action", "must be promote; pause and shutdown are taken as promote")
	}
	return wrong
}
