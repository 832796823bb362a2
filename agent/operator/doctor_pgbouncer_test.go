package operator

import (
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func TestExaminePgBouncer(t *testing.T) {
	for version, want := range map[string]struct {
		level    Level
		has, not string
	}{
		"1.26.1": {Fine, "no vulnerability", "CVE"},
		"1.27.0": {Fine, "no vulnerability", "CVE"},
		"1.26.0": {Worth, "CVE-2026-107350", "CVE-2026-6664"},
		"1.25.1": {Worth, "CVE-2026-6667", "CVE-2025-12819"},
		"1.18.0": {Worth, "CVE-2025-2291", "CVE-2026-6667"}, // which has no KILL_CLIENT
		"1.16.0": {Worth, "CVE-2021-3935", "CVE-2026-107350"},
	} {
		d := diagnosis{}
		examinePgBouncer(&d, cluster.Bouncer{Name: "b", PgBouncer: version})
		if len(d.findings) != 1 {
			t.Fatalf("%s: %v", version, d.findings)
		}
		f := d.findings[0]
		if f.Level != want.level || !strings.Contains(f.What, want.has) || strings.Contains(f.What, want.not) || (f.Level == Worth) != strings.Contains(f.Do, "distribution") {
			t.Errorf("%s: %v", version, f)
		}
		if f.Level == Worth && !strings.HasPrefix(f.Do, "use 1.26.1,") {
			t.Errorf("%s: %s", version, f.Do)
		}
	}
	for _, unknown := range []string{"", "devel"} {
		d := diagnosis{}
		if examinePgBouncer(&d, cluster.Bouncer{PgBouncer: unknown}); len(d.findings) != 0 {
			t.Errorf("%q: %v", unknown, d.findings)
		}
	}
}
