package operator

import (
	"fmt"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// vulnerability is one of PgBouncer's that an operator should know of.
type vulnerability struct {
	id           string
	since, fixed [3]int // of PgBouncer's own releases
	what         string
}

// vulnerabilitiesKnown is when the list was last compared with its source.
const vulnerabilitiesKnown = "2026-11-29"

// vulnerabilities are those that PgBouncer's changelog names since 1.16, newest first
// (https://www.pgbouncer.org/changelog.html).
func vulnerabilities() []vulnerability {
	return []vulnerability{
		{"CVE-2026-107350", [3]int{1, 17, 0}, [3]int{1, 26, 1}, "a user who knows his password logs in as another one (SCRAM)"},
		{"CVE-2026-107349", [3]int{1, 20, 0}, [3]int{1, 26, 1}, "anybody makes it spin and serve nobody, with ignore_startup_parameters that lacks options"},
		{"CVE-2026-107348", [3]int{1, 21, 0}, [3]int{1, 26, 1}, "a client makes it hang, with max_packet_size above 2147483648"},
		{"CVE-2026-6664", [3]int{}, [3]int{1, 25, 2}, "anybody crashes it"},
		{"CVE-2026-6665", [3]int{}, [3]int{1, 25, 2}, "a malicious server overflows its stack"},
		{"CVE-2026-6666", [3]int{}, [3]int{1, 25, 2}, "a malicious server crashes it"},
		{"CVE-2026-6667", [3]int{1, 24, 0}, [3]int{1, 25, 2}, "stats_users may KILL_CLIENT"},
		{"CVE-2025-12819", [3]int{1, 20, 0}, [3]int{1, 25, 1}, "anybody runs SQL, with search_path in track_extra_parameters, auth_user and an auth_query of unqualified names"},
		{"CVE-2025-2291", [3]int{}, [3]int{1, 24, 1}, "expired passwords are taken, by the default auth_query"},
		{"CVE-2021-3935", [3]int{}, [3]int{1, 16, 1}, "who is in between puts text before a TLS session"},
	}
}

// examinePgBouncer tells of what is known to be wrong with a PgBouncer by its version.
func examinePgBouncer(d *diagnosis, b cluster.Bouncer) {
	var version [3]int
	if n, _ := fmt.Sscanf(b.PgBouncer, "%d.%d.%d", &version[0], &version[1], &version[2]); n != len(version) {
		return // its PgBouncer does not answer, or its Lictor is an older one
	}
	var found []string
	fixed := version // in all of them: a release in between has others
	for _, v := range vulnerabilities() {
		if before(fixed, v.fixed) {
			fixed = v.fixed
		}
		if before(version, v.fixed) && !before(version, v.since) {
			found = append(found, v.id+": "+v.what)
		}
	}
	if len(found) == 0 {
		d.fine(b.Name, "PgBouncer %s has no vulnerability that was known on %s", b.PgBouncer, vulnerabilitiesKnown)
		return
	}
	d.add(Worth, b.Name, fmt.Sprintf("use %d.%d.%d, or see that your distribution's package has the fixes: it keeps the number (Debian: apt changelog pgbouncer)", fixed[0], fixed[1], fixed[2]),
		"PgBouncer %s, by its number, has vulnerabilities (as known on %s): %s", b.PgBouncer, vulnerabilitiesKnown, strings.Join(found, "; "))
}

func before(a, b [3]int) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}
