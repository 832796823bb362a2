package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The alert rules are valid and do what their tests say, and every expression of
// the dashboards is one that Prometheus takes: promtool judges.
func TestMonitoring(t *testing.T) {
	ctx := within(t)
	path, err := exec.CommandContext(ctx, "tools/promtool.sh").Output()
	if err != nil {
		t.Skipf("there is no promtool and Debian's package cannot be had; set PROMTOOL: %v", err)
	}
	promtool := strings.TrimSpace(string(path))
	check := func(dir string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	check("../docs/monitoring", "check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")
	check("../docs/monitoring", "test", "rules", "alerts_test.yml")

	for _, name := range []string{"grafana-lictor.json", "grafana-poolers.json"} {
		checkDashboard(t, name, check)
	}
}

// checkDashboard has promtool judge the expressions of a dashboard.
func checkDashboard(t *testing.T, name string, check func(dir string, args ...string)) {
	t.Helper()
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var dashboard struct {
		Annotations struct {
			List []struct{ Name, Expr string }
		}
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr string }
		}
	}
	must(t, json.Unmarshal(got(os.ReadFile(filepath.Join("../docs/monitoring", name)))(t), &dashboard))
	var rules []rule
	add := func(where, expr string) {
		if expr == "" {
			t.Errorf("%s: %s has no expression", name, where)
		}
		expr = strings.NewReplacer("$__rate_interval", "1m", `"$scope"`, `".*"`, `"$instance"`, `".*"`, `"$database"`, `".*"`).Replace(expr)
		rules = append(rules, rule{Record: "dashboard:expression", Expr: expr})
	}
	for _, a := range dashboard.Annotations.List {
		add(a.Name, a.Expr)
	}
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%s: panel %q: id %d is not its own, or it is nowhere", name, p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s: panel %q shows nothing", name, p.Title)
		}
		for _, target := range p.Targets {
			add(p.Title, target.Expr)
		}
	}
	dir := t.TempDir()
	content := got(yaml.Marshal(map[string]any{"groups": []map[string]any{{"name": "dashboard", "rules": rules}}}))(t)
	must(t, os.WriteFile(filepath.Join(dir, "dashboard.yml"), content, 0o600))
	check(dir, "check", "rules", "--lint=none", "dashboard.yml")
}
