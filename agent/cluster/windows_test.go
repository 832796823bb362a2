package cluster

import (
	"strings"
	"testing"
	"time"
)

func TestWindows(t *testing.T) {
	const (
		saturday = "2026-11-28T"
		sunday   = "2026-11-29T"
		monday   = "2026-11-30T"
	)
	for _, c := range []struct {
		windows string
		what    Maintenance
		at      string
		open    bool
		next    string
	}{
		{"", MaintenanceHandover, monday + "12:00:00Z", true, ""},
		{"02:00-05:00", MaintenanceHandover, monday + "02:00:00Z", true, ""},
		{"02:00-05:00", MaintenanceHandover, monday + "04:59:59Z", true, ""},
		{"02:00-05:00", MaintenanceHandover, monday + "05:00:00Z", false, "2026-12-01T02:00:00Z"},
		{"02:00-05:00", MaintenanceHandover, monday + "01:59:59Z", false, monday + "02:00:00Z"},
		{"Sat,Sun 02:00-05:00", MaintenanceRestart, sunday + "03:00:00Z", true, ""},
		{"Sat,Sun 02:00-05:00", MaintenanceRestart, monday + "03:00:00Z", false, "2026-12-05T02:00:00Z"},
		{"sat-mon 02:00-05:00", MaintenanceRestart, monday + "03:00:00Z", true, ""},
		{"Fri-Mon 02:00-05:00", MaintenanceRestart, "2026-12-01T03:00:00Z", false, "2026-12-04T02:00:00Z"},
		{"Saturday 00:00-24:00", MaintenanceRestart, saturday + "23:59:59Z", true, ""},
		{"Saturday 00:00-24:00", MaintenanceRestart, sunday + "00:00:00Z", false, "2026-12-05T00:00:00Z"},
		// Beyond midnight: the day is that on which it begins.
		{"Sat 23:00-01:00", MaintenanceHandover, sunday + "00:59:00Z", true, ""},
		{"Sat 23:00-01:00", MaintenanceHandover, saturday + "00:59:00Z", false, saturday + "23:00:00Z"},
		// In a zone: 02:00 in Zurich is 01:00 in winter, midnight in summer.
		{"Mon 02:00-03:00 Europe/Zurich", MaintenanceHandover, monday + "01:30:00Z", true, ""},
		{"Mon 02:00-03:00 Europe/Zurich", MaintenanceHandover, monday + "02:30:00Z", false, "2026-12-07T01:00:00Z"},
		{"Mon 02:00-03:00 Europe/Zurich", MaintenanceHandover, "2026-07-06T00:30:00Z", true, ""},
		// The clocks are set: from 02:00 to 03:00 there is nothing in spring, two hours in autumn.
		{"Sun 02:00-03:00 Europe/Zurich", MaintenanceHandover, "2026-03-29T01:00:00Z", false, "2026-04-05T00:00:00Z"},
		{"Sun 01:00-04:00 Europe/Zurich", MaintenanceHandover, "2026-10-25T02:59:00Z", true, ""},
		{"Sun 01:00-04:00 Europe/Zurich", MaintenanceHandover, "2026-10-25T03:00:00Z", false, "2026-11-01T00:00:00Z"},
		// What it is for.
		{"02:00-05:00 for repack", MaintenanceRepack, monday + "12:00:00Z", false, "2026-12-01T02:00:00Z"},
		{"02:00-05:00 for handover, restart", MaintenanceRepack, monday + "12:00:00Z", true, ""},
		{"02:00-05:00 for Restart", MaintenanceRestart, monday + "12:00:00Z", false, "2026-12-01T02:00:00Z"},
		{"02:00-05:00 for repack", MaintenanceRepack, monday + "12:00:00Z", false, "2026-12-01T02:00:00Z"},
		{"02:00-05:00 for handover, restart", MaintenanceRepack, monday + "12:00:00Z", true, ""},
		{"02:00-05:00 for Restart", MaintenanceHandover, monday + "12:00:00Z", true, ""},
		{"02:00-05:00 for restart, handover", MaintenanceHandover, monday + "12:00:00Z", false, "2026-12-01T02:00:00Z"},
		{"02:00-05:00 for restart, handover", MaintenanceHandover, monday + "02:00:00Z", true, ""},
		// Several: the first that comes.
		{"Sat 02:00-05:00|Wed 22:00-23:00 for handover|Tue 01:00-02:00 for restart", MaintenanceHandover, monday + "12:00:00Z", false, "2026-12-02T22:00:00Z"},
		{"02:00-05:00 Nowhere/Atall", MaintenanceHandover, monday + "03:00:00Z", false, ""},
	} {
		var all Windows
		for text := range strings.SplitSeq(c.windows, "|") {
			if text == "" {
				continue
			}
			w, err := ParseWindow(text)
			if err != nil || w.String() != text {
				t.Fatalf("%s: %v, %v", text, w, err)
			}
			all = append(all, w)
		}
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		open, next := all.Open(c.what, at)
		shown := ""
		if !next.IsZero() {
			shown = next.UTC().Format(time.RFC3339)
		}
		if open != c.open || shown != c.next {
			t.Errorf("%s for %s at %s: %v, next %s; want %v, next %s", c.windows, c.what, c.at, open, shown, c.open, c.next)
		}
		if refusal := all.Refusal(c.what, at); (refusal == "") != c.open || c.next != "" && !strings.Contains(refusal, "one begins at ") {
			t.Errorf("%s: %q", c.windows, refusal)
		}
	}
}

func TestBadWindows(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "must be like",
		"always":                        `"always" is no day`,
		"Sat":                           "must be like",
		"Caturday 02:00-05:00":          `"Caturday" is no day`,
		"Sat- 02:00-05:00":              `"Sat-" is no day`,
		"02:00":                         `"02:00" is no two times of a day`,
		"2-5":                           "is no day",
		"02:00-25:00":                   "is no two times",
		"02:60-03:00":                   "is no two times",
		"02:0-03:00":                    "is no two times",
		"24:00-03:00":                   "is no two times",
		"-1:00-03:00":                   "is no two times",
		"02:00-02:00":                   "begins when it ends",
		"02:00-05:00 Local":             `"Local" is no time zone`,
		"02:00-05:00 ../../etc/passwd":  "is no time zone",
		"02:00-05:00 Europe/Zurich x":   "must be like",
		"02:00-05:00 for ":              `"" is none of handover; restart; repack`,
		"02:00-05:00 for vacuum":        `"vacuum" is none of`,
		"02:00-05:00 for handover, all": `" all" is none of`,
	} {
		if w, err := ParseWindow(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %q", text, w, err, want)
		}
	}
	_, _, err := ParseDynamic(map[string]any{"maintenance_windows": []any{"02:00-05:00", 7, "x"}})
	for _, want := range []string{"maintenance_windows[1]: 7: must be like", `maintenance_windows[2]: "x": must be like`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, _, err := ParseDynamic(map[string]any{"maintenance_windows": "02:00-05:00"}); err == nil || !strings.Contains(err.Error(), "maintenance_windows: \"02:00-05:00\": must be a list") {
		t.Errorf("%v", err)
	}
	d, _, err := ParseDynamic(map[string]any{"maintenance_windows": []any{"02:00-05:00", "03:00-05:00 Nowhere/Atall"}})
	if err != nil {
		t.Fatal(err) // a host with an older list of zones takes it
	}
	if err := d.MaintenanceWindows.CheckZones(); err == nil || !strings.Contains(err.Error(), `maintenance_windows[1]: "03:00-05:00 Nowhere/Atall": Nowhere/Atall is not a time zone that this host knows`) {
		t.Errorf("%v", err)
	}
}
