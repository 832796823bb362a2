package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

	for _, name := range dashboards(t) {
		checkDashboard(t, name, check)
	}
}

// Grafana takes the dashboards: they have the fields of its own schema, of the types that these have,
// and no others. (None is rendered.)
func TestDashboardsFitGrafanasSchema(t *testing.T) {
	ctx := within(t)
	reader, err := exec.CommandContext(ctx, "tools/grafana.sh").Output()
	if err != nil {
		t.Skipf("the reader of Grafana's schema cannot be built: %v", err)
	}
	var paths []string
	for _, name := range dashboards(t) {
		paths = append(paths, filepath.Join("../docs/monitoring", name))
	}
	if out, err := exec.CommandContext(ctx, strings.TrimSpace(string(reader)), paths...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// dashboards are the names of the files.
func dashboards(t *testing.T) (names []string) {
	t.Helper()
	paths := got(filepath.Glob("../docs/monitoring/grafana-*.json"))(t)
	if len(paths) < 5 {
		t.Fatalf("too few dashboards: %v", paths)
	}
	for _, path := range paths {
		names = append(names, filepath.Base(path))
	}
	return names
}

// queries are the expressions of a dashboard, with all for each variable, by where they stand.
func (d dashboard) queries() map[string]string {
	all := map[string]string{}
	add := func(where, expr string) {
		for n := 2; all[where] != ""; n++ {
			where = fmt.Sprintf("%s (%d)", strings.TrimSuffix(where, fmt.Sprintf(" (%d)", n-1)), n)
		}
		all[where] = strings.NewReplacer("$__rate_interval", "1m", `"$scope"`, `".*"`, `"$instance"`, `".*"`, `"$database"`, `".*"`).Replace(expr)
	}
	for _, a := range d.Annotations.List {
		add(a.Name, a.Expr)
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			add(p.Title, target.Expr)
		}
	}
	for _, v := range d.Templating.List {
		if m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(v.Query.Query); m != nil {
			add("the variable "+v.Name, fmt.Sprintf("count by (%s) (%s)", m[2], m[1]))
		}
	}
	return all
}

// dashboard is what is checked of one of Grafana's.
type dashboard struct {
	Title, UID  string
	Annotations struct {
		List []struct{ Name, Expr string }
	}
	Templating struct {
		List []struct {
			Name  string
			Query variableQuery
		}
	}
	Panels []struct {
		ID      int
		Type    string
		Title   string
		GridPos struct{ H, W, X, Y int }
		Targets []struct{ Expr string }
	}
}

// variableQuery is a variable's query: an object, or, for a data source, its kind.
type variableQuery struct{ Query string }

func (q *variableQuery) UnmarshalJSON(text []byte) error {
	if kind := ""; json.Unmarshal(text, &kind) == nil {
		return nil
	}
	var object struct{ Query string }
	err := json.Unmarshal(text, &object)
	q.Query = object.Query
	return err
}

func readDashboard(t *testing.T, name string) (d dashboard) {
	t.Helper()
	must(t, json.Unmarshal(got(os.ReadFile(filepath.Join("../docs/monitoring", name)))(t), &d))
	return d
}

// checkDashboard has promtool judge the expressions of a dashboard.
func checkDashboard(t *testing.T, name string, check func(dir string, args ...string)) {
	t.Helper()
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	d := readDashboard(t, name)
	var rules []rule
	for where, expr := range d.queries() {
		if expr == "" {
			t.Errorf("%s: %s has no expression", name, where)
		}
		rules = append(rules, rule{Record: "dashboard:expression", Expr: expr})
	}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%s: panel %q: id %d is not its own, or it is nowhere", name, p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s: panel %q shows nothing", name, p.Title)
		}
	}
	dir := t.TempDir()
	content := got(yaml.Marshal(map[string]any{"groups": []map[string]any{{"name": "dashboard", "rules": rules}}}))(t)
	must(t, os.WriteFile(filepath.Join(dir, "dashboard.yml"), content, 0o600))
	check(dir, "check", "rules", "--lint=none", "dashboard.yml")
}
