package pg

import (
	"testing"
	"time"
)

// What PostgreSQL writes of why a timeline was left.
func TestDiscards(t *testing.T) {
	at := time.Date(2026, 11, 29, 10, 0, 0, 123000000, time.UTC)
	for reason, want := range map[string]struct {
		from     time.Time
		discards bool
	}{
		"no recovery target specified":            {},
		"skipped by lictor":                       {},
		"":                                        {},
		"before 2026-11-29 10:00:00.123+00":       {at, true},
		"before 2026-11-29 15:30:00.123+05:30":    {at, true},
		"before 2026-11-29 10:19:32.123+00:19:32": {at, true},
		"after transaction 742":                   {discards: true},
		"before transaction 742":                  {discards: true},
		"after LSN 0/3000060":                     {discards: true},
		`at restore point "10:00"`:                {discards: true},
		"reached consistency":                     {discards: true},
	} {
		if from, discards := Discards(reason); discards != want.discards || !from.Equal(want.from) {
			t.Errorf("%q: %s %v", reason, from, discards)
		}
	}
}
