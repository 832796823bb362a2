package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Maintenance is a kind of planned work that a shard's clients may notice.
type Maintenance string

// The kinds of maintenance that a window can be for.
const (
	MaintenanceHandover Maintenance = "handover" // a switchover
	MaintenanceRestart  Maintenance = "restart"  // of a member's PostgreSQL
	MaintenanceRepack   Maintenance = "repack"   // of tables
)

// MaintenanceKinds are all kinds.
func MaintenanceKinds() []Maintenance {
	return []Maintenance{MaintenanceHandover, MaintenanceRestart, MaintenanceRepack}
}

// Window is a maintenance window: a time that comes back every week.
type Window struct {
	text string
	// days are those on which it begins, Sunday first.
	days [7]bool
	// from and to are minutes of the day. Where to is not later, the window ends on the next day.
	from, to int
	// zone is the name of a time zone, which is looked up when it is needed: that reads files, which
	// nothing in the agent's loop may do.
	zone string
	only []Maintenance // none: all
}

// Windows are the maintenance windows of a shard.
type Windows []Window

const (
	dayMinutes = 24 * 60
	weekDays   = 7
)

var errWindow = errors.New(`must be like "02:00-05:00", "Sat,Sun 02:00-05:00 Europe/Zurich" or "Mon-Fri 23:00-01:00 UTC for restart"`)

// ParseWindow reads a window: days (default: all), from and to, a time zone (default: UTC), and what
// it is for (default: everything).
func ParseWindow(text string) (Window, error) {
	w := Window{text: text, zone: "UTC"}
	when, only, limited := strings.Cut(text, " for ")
	if limited {
		for word := range strings.SplitSeq(only, ",") {
			kind := Maintenance(strings.ToLower(strings.TrimSpace(word)))
			if !slices.Contains(MaintenanceKinds(), kind) {
				return Window{}, fmt.Errorf("%w: %q is none of %s", errWindow, word, list(MaintenanceKinds()))
			}
			w.only = append(w.only, kind)
		}
	}
	fields := strings.Fields(when)
	for day := range w.days {
		w.days[day] = true
	}
	if len(fields) > 0 && !strings.Contains(fields[0], ":") {
		var err error
		if w.days, err = parseDays(fields[0]); err != nil {
			return Window{}, err
		}
		fields = fields[1:]
	}
	if len(fields) == 0 || len(fields) > 2 {
		return Window{}, errWindow
	}
	from, to, both := strings.Cut(fields[0], "-")
	var ok, okay bool
	w.from, ok = minuteOf(from)
	w.to, okay = minuteOf(to)
	switch {
	case !both || !ok || !okay || w.from == dayMinutes:
		return Window{}, fmt.Errorf("%w: %q is no two times of a day", errWindow, fields[0])
	case w.from == w.to:
		return Window{}, fmt.Errorf("%w: %q begins when it ends; a whole day is 00:00-24:00", errWindow, fields[0])
	}
	if len(fields) == 2 {
		if w.zone = fields[1]; strings.EqualFold(w.zone, "local") || strings.Trim(w.zone, zoneLetters) != "" { // whose local time?
			return Window{}, fmt.Errorf("%w: %q is no time zone", errWindow, w.zone)
		}
	}
	return w, nil
}

const zoneLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-/"

// CheckZones returns which time zones are not known to this host. It reads files.
func (all Windows) CheckZones() error {
	for i, w := range all {
		if _, err := time.LoadLocation(w.zone); err != nil {
			return Problem{Path: fmt.Sprintf("maintenance_windows[%d]", i), Value: shown(w.text), Rule: fmt.Sprintf("%s is not a time zone that this host knows (tzdata)", w.zone)}
		}
	}
	return nil
}

// parseDays reads "Mon-Fri" or "Sat,Sun".
func parseDays(text string) (days [7]bool, err error) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, ok := weekday(first)
		to := from
		if isRange {
			var okay bool
			to, okay = weekday(last)
			ok = ok && okay
		}
		if !ok {
			return days, fmt.Errorf("%w: %q is no day (Mon, Tue, Wed, Thu, Fri, Sat, Sun)", errWindow, part)
		}
		for day := from; ; day = (day + 1) % weekDays {
			days[day] = true
			if day == to {
				break
			}
		}
	}
	return days, nil
}

func weekday(text string) (time.Weekday, bool) {
	for day := time.Sunday; day <= time.Saturday; day++ {
		if name := day.String(); strings.EqualFold(text, name[:3]) || strings.EqualFold(text, name) {
			return day, true
		}
	}
	return 0, false
}

// minuteOf reads "02:30"; 24:00 is the end of a day.
func minuteOf(text string) (int, bool) {
	hours, minutes, both := strings.Cut(text, ":")
	h, err := strconv.ParseUint(hours, 10, 8)
	m, wrong := strconv.ParseUint(minutes, 10, 8)
	minute := int(h)*60 + int(m)
	return minute, both && err == nil && wrong == nil && len(minutes) == 2 && m < 60 && minute <= dayMinutes
}

// on is when the window begins on the day of at, which is in its zone, so many days later, and when it ends then; ok: it
// begins on that day. Where the clocks are set it is their hands that count.
func (w Window) on(at time.Time, days int) (from, to time.Time, ok bool) {
	year, month, day := at.Date()
	day += days
	weekday := time.Date(year, month, day, 12, 0, 0, 0, at.Location()).Weekday()
	from = time.Date(year, month, day, 0, w.from, 0, 0, at.Location())
	if w.to <= w.from {
		day++
	}
	to = time.Date(year, month, day, 0, w.to, 0, 0, at.Location())
	return from, to, w.days[weekday] && to.After(from)
}

// String is the window as it was written.
func (w Window) String() string { return w.text }

// Open reports whether that kind of maintenance is allowed at a moment. Without a window for it that is always; next is when one begins
// otherwise, zero where none is known to. A window whose time zone this host does not know is closed. It reads files.
func (all Windows) Open(kind Maintenance, at time.Time) (open bool, next time.Time) {
	limited := false
	for _, w := range all {
		if len(w.only) > 0 && !slices.Contains(w.only, kind) {
			continue
		}
		limited = true
		zone, err := time.LoadLocation(w.zone)
		if err != nil {
			continue
		}
		for days := -1; days <= weekDays; days++ {
			from, to, ok := w.on(at.In(zone), days)
			switch {
			case !ok || !to.After(at):
			case !from.After(at):
				return true, time.Time{}
			case next.IsZero() || from.Before(next):
				next = from
			}
		}
	}
	return !limited, next
}

// Refusal says why that kind of maintenance is not allowed at a moment; empty: it is. It reads files.
func (all Windows) Refusal(kind Maintenance, at time.Time) string {
	open, next := all.Open(kind, at)
	if open {
		return ""
	}
	text := fmt.Sprintf("outside the maintenance windows of the shard for a %s (%s)", kind, list(all))
	if !next.IsZero() {
		text += ", of which one begins at " + next.Format("Mon 2006-01-02 15:04 MST")
	}
	return text
}

// list writes values one after another.
func list[T any](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, "; ")
}

// windows reads maintenance_windows.
func (r *reader) windows(key string) (all Windows) {
	for i, item := range r.list(key) {
		path := fmt.Sprintf("%s[%d]", key, i)
		text, ok := item.(string)
		if !ok {
			r.fail(path, item, errWindow.Error())
			continue
		}
		w, err := ParseWindow(text)
		if err != nil {
			r.fail(path, text, err.Error())
			continue
		}
		all = append(all, w)
	}
	return all
}
