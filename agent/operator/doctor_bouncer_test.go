package operator

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/api"
)

func TestExamineBouncer(t *testing.T) {
	many := map[string]string{}
	for i := range 2 * problemsShown {
		many[fmt.Sprintf("service/s%03d", i)] = "permission denied"
	}
	const open = "PgBouncer's console lets everybody in"
	for name, test := range map[string]struct {
		status   api.BouncerStatus
		findings int
		level    Level // of the last one
		has, do  string
	}{
		"healthy":  {api.BouncerStatus{Health: api.BouncerHealth{Healthy: true}}, 1, Fine, "healthy", ""},
		"draining": {api.BouncerStatus{Health: api.BouncerHealth{Reasons: []string{"draining"}}}, 1, Worth, "draining", "undrain"},
		"no clients are taken": {
			api.BouncerStatus{Health: api.BouncerHealth{Reasons: []string{"PgBouncer takes no client: too many"}}}, 1, Worth, "too many", "load balancer",
		},
		"a warning that is a problem, too, is told once": {
			api.BouncerStatus{Health: api.BouncerHealth{Healthy: true, Warnings: []string{open}}, Problems: map[string]string{"userlist.txt": open}}, 1, Worth, open, "correct",
		},
		"a healthy one with a problem": {
			api.BouncerStatus{Health: api.BouncerHealth{Healthy: true}, Problems: map[string]string{"service/a": "the name is another shard's\x1b[2J"}}, 1, Wrong, `another shard's\x1b`, "lictor routes",
		},
		"a thousand reasons": {
			api.BouncerStatus{Health: api.BouncerHealth{Reasons: slices.Repeat([]string{"x"}, 2*problemsShown), Warnings: slices.Repeat([]string{"y"}, 2*problemsShown)}}, problemsShown + 1, Worth, "more", "bouncer status",
		},
		"a thousand problems": {api.BouncerStatus{Health: api.BouncerHealth{Healthy: true}, Problems: many}, problemsShown + 1, Worth, "more", "bouncer status"},
	} {
		var d diagnosis
		examineBouncer(&d, "pooler1", test.status)
		if len(d.findings) != test.findings {
			t.Errorf("%s: %v", name, d.findings)
			continue
		}
		f := d.findings[len(d.findings)-1]
		if f.Level != test.level || f.Subject != "pooler1" || !strings.Contains(f.What, test.has) || !strings.Contains(f.Do, test.do) {
			t.Errorf("%s: %v", name, f)
		}
	}
}
