package backup

import (
	"strings"
	"testing"
	"time"
)

func TestParseTarget(t *testing.T) {
	ten := time.Date(2026, 11, 29, 10, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2026-11-29 10:00+00": ten, "2026-11-29T10:00:00Z": ten, "2026-11-29 10:00:00 UTC": ten, " 2026-11-29  9:00 -01 ": ten,
		"2026-11-29 15:30+05:30": ten, "2026-11-29 15:30+0530": ten, "2026-11-29 10:00:00.25+00": ten.Add(250 * time.Millisecond),
	} {
		if got, err := ParseTarget(text); err != nil || !got.Equal(want) {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"2026-11-29 10:00":               "has no zone",
		"2026-11-29 10:00:00":            "has no zone",
		"2026-10-25 02:30 Europe/Berlin": "a zone's name may stand for several offsets",
		"2026-11-29 10:00 CST":           "a zone's name may stand for several offsets",
		"2026-11-29 10:00 GMT+1":         "a zone's name may stand for several offsets",
		"2026-11-29":                     "must be a date and a time of day",
		"yesterday":                      "must be a date and a time of day",
		"":                               "must be a date and a time of day",
		"10:00+00":                       "must be a date and a time of day",
		"2026-02-30 10:00+00":            "is no moment",
		"2026-11-29 25:00+00":            "is no moment",
		"2026-11-29 10:00+17":            "less than 16 hours",
		"2026-11-29 10:00+00' x":         "must be a date and a time of day",
	} {
		if at, err := ParseTarget(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %s, %v, want %q", text, at, err, want)
		}
	}
	if text := TargetText(ten.Add(1234567 * time.Nanosecond)); text != "2026-11-29 10:00:00.001234+00" {
		t.Error(text)
	}
}

// A recovery ends after the end of its backup, which pgBackRest tells in whole seconds.
func TestBackupBeforeATarget(t *testing.T) {
	at := func(second int) time.Time { return time.Unix(int64(1000+second), 0) }
	info := Info{Backups: []Backup{{Label: "first", Stop: at(0)}, {Label: "second", Stop: at(100)}, {Label: "third", Stop: at(200)}}}
	for name, test := range map[string]struct {
		info      Info
		target    time.Time
		label     string
		want, why string
	}{
		"after all":                        {info: info, target: at(300), want: "third"},
		"between":                          {info: info, target: at(150), want: "second"},
		"in the second in which one ended": {info: info, target: at(200).Add(time.Second / 2), want: "second"},
		"a second later":                   {info: info, target: at(201), want: "third"},
		"before the first":                 {info: info, target: at(0), why: "earlier than the end of the first good backup, first, at 1970-01-01T00:16:40Z"},
		"an earlier one is named":          {info: info, target: at(300), label: "first", want: "first"},
		"a later one is named":             {info: info, target: at(150), label: "third", why: "the backup third ended at"},
		"another shard's is named":         {info: info, target: at(300), label: "other", why: "no good backup other of this cluster; there are first, second, third"},
		"there is none":                    {target: at(300), why: ErrNoBackup.Error()},
		"there is none, one is named":      {target: at(300), label: "first", why: ErrNoBackup.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := test.info.Before(test.target, test.label, Line{})
			if test.why == "" && (err != nil || b.Label != test.want) || test.why != "" && (err == nil || !strings.Contains(err.Error(), test.why)) {
				t.Errorf("%q, %v", b.Label, err)
			}
		})
	}
}
