package cluster

import (
	"strings"
	"testing"
)

func TestCheckRecoveryTarget(t *testing.T) {
	for _, test := range []struct{ name, value, want string }{
		{"recovery_target_time", "2026-11-29 10:00:00+00", ""},
		{"recovery_target_time", "2026-11-29 10:00+00", ""},
		{"recovery_target_time", "2026-11-29T10:00:00.123Z", ""},
		{"recovery_target_time", "2026-11-29 10:00:00 -03:30", ""},
		{"recovery_target_time", "2026-11-29 10:00:00 Europe/Berlin", ""},
		{"recovery_target_time", "2026-11-29 10:00:00 UTC", ""},
		{"recovery_target_time", "2026-11-29 10:00:00", "its zone"},
		{"recovery_target_time", "2026-11-29 10:00", "its zone"},
		{"recovery_target_time", "2026-11-29 10:00 PM", "its zone"},
		{"recovery_target_time", "2026-11-29", "its zone"},
		{"recovery_target_time", "yesterday", "its zone"},
		{"recovery_target_name", "before the drop", ""},
		{"recovery_target_name", strings.Repeat("x", 64), "63 bytes"},
		{"recovery_target_xid", "742", ""},
		{"recovery_target_xid", "x", "number of a transaction"},
		{"recovery_target_xid", "0", "number of a transaction"},
		{"recovery_target_lsn", "0/3000060", ""},
		{"recovery_target_lsn", "50331744", "position in the WAL"},
		{"recovery_target", "immediate", ""},
		{"recovery_target", "now", "must be immediate"},
		{"recovery_target_timeline", "latest", ""},
		{"recovery_target_timeline", "0x3", ""},
		{"recovery_target_timeline", "newest", "number of a timeline"},
		{"recovery_target_inclusive", "off", ""},
		{"recovery_target_inclusive", "perhaps", "recovery_target_inclusive"},
		{"recovery_target_action", "Pause", ""},
		{"recovery_target_action", "stop", "must be promote"},
	} {
		got := strings.Join(CheckRecoveryTarget(map[string]string{test.name: test.value}), "; ")
		if test.want == "" && got != "" || !strings.Contains(got, test.want) || got != "" && !strings.HasPrefix(got, test.name+": ") {
			t.Errorf("%s = %s: %q, want %q", test.name, test.value, got, test.want)
		}
	}
	two := map[string]string{"recovery_target_name": "a", "recovery_target_lsn": "0/1"}
	if got := CheckRecoveryTarget(two); len(got) != 1 || !strings.Contains(got[0], "recovery_target_name and recovery_target_lsn: PostgreSQL takes one") {
		t.Errorf("%q", got)
	}
}
