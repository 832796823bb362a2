package backup

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// targetForm is a date, a time of day and a zone, as a regular expression.
const targetForm = `^(\d{4}-\d{2}-\d{2})[T ]+(\d{1,2}:\d{2})(:\d{2}(?:\.\d{1,6})?)? *(Z|z|UTC|utc|[+-]\d{2}(?::?\d{2})?)?$`

// targetRule says what a target must be. A zone's name may mean two moments (an hour in
// autumn), or several zones (CST, IST).
const targetRule = "must be a date and a time of day with its offset from UTC, like 2026-11-29 10:00+00 or 2026-11-29T10:00:00Z"

// ParseTarget reads the moment that a shard is to be restored to.
func ParseTarget(text string) (time.Time, error) {
	parts := regexp.MustCompile(targetForm).FindStringSubmatch(strings.TrimSpace(text))
	switch {
	case parts == nil:
		return time.Time{}, fmt.Errorf("%q: %s; a zone's name may stand for several offsets", text, targetRule)
	case parts[4] == "":
		return time.Time{}, fmt.Errorf("%q: has no zone: %s", text, targetRule)
	}
	day, clock, seconds, zone := parts[1], parts[2], parts[3], strings.ToUpper(strings.ReplaceAll(parts[4], ":", ""))
	if len(clock) == len("9:00") {
		clock = "0" + clock
	}
	if seconds == "" {
		seconds = ":00"
	}
	switch {
	case zone == "Z", zone == "UTC":
		zone = "+0000"
	case len(zone) == len("+00"):
		zone += "00"
	}
	at, err := time.Parse("2006-01-02T15:04:05-0700", day+"T"+clock+seconds+zone)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q: is no moment: %s", text, targetRule)
	}
	if _, offset := at.Zone(); offset <= -16*3600 || offset >= 16*3600 { // PostgreSQL's limit
		return time.Time{}, fmt.Errorf("%q: the offset from UTC must be less than 16 hours", text)
	}
	return at.UTC(), nil
}

// TargetText is a target as pgBackRest and PostgreSQL take it.
func TargetText(target time.Time) string { return target.UTC().Format("2006-01-02 15:04:05.999999+00") }

// consistent is from when on a recovery from the backup can end: pgBackRest tells the end in
// whole seconds.
func (b Backup) consistent() time.Time { return b.Stop.Add(time.Second) }

// labelled is the backup with a label.
func (i Info) labelled(label string) (Backup, error) {
	var labels []string
	for _, b := range i.Backups {
		if b.Label == label {
			return b, nil
		}
		labels = append(labels, b.Label)
	}
	if len(labels) == 0 {
		return Backup{}, ErrNoBackup
	}
	return Backup{}, fmt.Errorf("there is no good backup %s of this cluster; there are %s", label, strings.Join(labels, ", "))
}

// Before is the backup that a recovery to target begins with, which follows a line: the newest of
// it that had ended before the target, or the one with a label.
func (i Info) Before(target time.Time, label string, line Line) (Backup, error) {
	if label != "" {
		b, err := i.labelled(label)
		switch {
		case err != nil:
			return b, err
		case target.Before(b.consistent()):
			return b, fmt.Errorf("the backup %s ended at %s, and a recovery from it ends later: name an earlier one", b.Label, b.Stop.UTC().Format(time.RFC3339))
		case !line.has(b):
			return b, fmt.Errorf("the backup %s is of timeline %d, from which timeline %d does not come: name another one", b.Label, b.Timeline, line.Timeline)
		}
		return b, nil
	}
	var first *Backup
	for n := len(i.Backups) - 1; n >= 0; n-- {
		b := i.Backups[n]
		if !line.has(b) {
			continue
		}
		if !target.Before(b.consistent()) {
			return b, nil
		}
		first = &b
	}
	switch {
	case len(i.Backups) == 0:
		return Backup{}, ErrNoBackup
	case first == nil:
		return Backup{}, fmt.Errorf("there is no good backup from which timeline %d can be recovered", line.Timeline)
	}
	return Backup{}, fmt.Errorf("it is earlier than the end of the first good backup, %s, at %s", first.Label, first.Stop.UTC().Format(time.RFC3339))
}
