package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// exporter is who answers the metrics whose names begin so.
func exporter(metric string) string {
	for prefix, job := range map[string]string{
		"lictor_bouncer_": "lictor-bouncer", "lictor_": "lictor-agent", "patroni_": "lictor-agent",
		"pgbouncer_": "pgbouncer", "pg_": "postgresql", "consul_": "consul",
	} {
		if strings.HasPrefix(metric, prefix) && (job != "lictor-agent" || !strings.HasPrefix(metric, "lictor_bouncer_")) {
			return job
		}
	}
	return ""
}

// elsewhere are metrics that a lab on one host has none of, and the test that has them.
func elsewhere() map[string]string {
	return map[string]string{
		"lictor_backup": "TestBackups",
	}
}

// What is shown and what raises an alarm has data: each expression of the dashboards and of the
// alarms finds some in a Prometheus that asks agents, a bouncer, PgBouncer, Consul and
// postgres_exporter, once its thresholds are lifted (nobody waits, nothing is late, while all is well).
func TestDashboardsHaveData(t *testing.T) {
	programs, err := exec.CommandContext(t.Context(), "tools/prometheus.sh").Output()
	if err != nil {
		t.Skipf("there is no Prometheus, and Debian's package cannot be had: %v", err)
	}
	l := labtest.New(t, lab.Options{
		Members: 2, Bouncers: 1, ConsulServers: 1, Database: lab.Lictor{Edit: func(m *lab.Member, config map[string]any) {
			config["postgresql"].(map[string]any)["callbacks"] = map[string]any{"on_start": "/bin/true", "on_role_change": "/bin/false"}
			config["watchdog"] = map[string]any{"mode": "automatic", "device": filepath.Join(m.Dir, "no-watchdog")}
		}},
		Dynamic: map[string]any{"postgresql": map[string]any{"parameters": map[string]any{"archive_mode": "on", "archive_command": "true"}}},
	})
	ctx := testkit.Within(t, 2*patience)
	must(t, l.Start(ctx))
	s := l.Shard(0)
	first := got(s.AwaitHealthy(ctx))(t)
	must(t, s.AwaitSync(ctx))
	must(t, s.Prepare(ctx))
	must(t, l.AwaitServing(ctx))
	must(t, l.AwaitPoolers(ctx))
	p := startPrometheus(ctx, t, strings.TrimSpace(string(programs)), l)

	w := s.StartWorkload(ctx, lab.WorkloadOptions{})
	t.Cleanup(w.Stop)
	labtest.AwaitWrites(ctx, t, w)
	second := got(s.Replicas(ctx))(t)[0]
	must(t, s.Switchover(ctx, first, second))
	_ = got(s.AwaitHealthy(ctx))(t)
	must(t, s.AwaitSync(ctx))
	must(t, second.Kill(ctx)) // and a failover
	_ = got(s.AwaitLeader(ctx, second))(t)
	must(t, second.Start(ctx))
	_ = got(s.AwaitHealthy(ctx))(t)
	labtest.AwaitWrites(ctx, t, w)

	wanted := map[string]string{}
	for _, name := range dashboards(t) {
		for where, expr := range readDashboard(t, name).queries() {
			wanted[name+": "+where] = expr
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	must(t, yaml.Unmarshal(got(os.ReadFile("../docs/monitoring/alerts.yml"))(t), &rules))
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			wanted["alerts.yml: "+r.Alert] = r.Expr
		}
	}
	named := regexp.MustCompile(`\b(?:lictor|patroni|pgbouncer|pg|consul)_[a-zA-Z0-9_]+`)
	missing := map[string]string{}
	for where, expr := range wanted {
		metrics := named.FindAllString(expr, -1)
		if strings.Contains(expr, "_bucket") && !strings.Contains(expr, "le") {
			t.Errorf("%s asks for buckets without le: %s", where, expr)
		}
		if slices.ContainsFunc(metrics, func(m string) bool { return isElsewhere(m) }) {
			continue
		}
		for _, m := range metrics {
			missing[where+": "+m] = fmt.Sprintf("%s{job=%q}", m, exporter(m))
		}
		for i, part := range lift(expr) {
			missing[fmt.Sprintf("%s, part %d: %s", where, i+1, expr)] = part
		}
	}
	t.Logf("%d expressions, %d questions", len(wanted), len(missing))
	await(testkit.Within(t, patience/2), t, "data for all of them", func() error {
		for where, expr := range missing {
			n, err := p.count(ctx, expr)
			if err != nil {
				return err
			}
			if n > 0 {
				delete(missing, where)
			}
		}
		var lacking []error
		for _, where := range slices.Sorted(maps.Keys(missing)) {
			lacking = append(lacking, fmt.Errorf("%s: there is none for %s", where, missing[where]))
		}
		return errors.Join(lacking...)
	})
}

func isElsewhere(metric string) bool {
	for prefix := range elsewhere() {
		if strings.HasPrefix(metric, prefix) {
			return true
		}
	}
	return false
}

// lift takes the thresholds out of an expression, and what there may be besides: what has data then
// has series to show, or to raise an alarm by. What follows unless is a part of its own.
func lift(expr string) (parts []string) {
	threshold := regexp.MustCompile(`\s*(==|!=|>=|<=|>|<)\s*[0-9.]+(e[0-9]+)?`)
	for _, part := range regexp.MustCompile(`\bunless\b(\s+on\s*\([^)]*\))?`).Split(expr, -1) {
		parts = append(parts, strings.ReplaceAll(threshold.ReplaceAllString(part, ""), "or vector(0)", ""))
	}
	return parts
}

func TestLift(t *testing.T) {
	for expr, want := range map[string][]string{
		"count(sum by (a) (x) == 1) or vector(0)":      {"count(sum by (a) (x)) "},
		`x{a!="1"} > 2.5e9 unless on (a) y == 1`:       {`x{a!="1"} `, " y"},
		`histogram_quantile(0.99, x{a=~"b.*"}) > 0.50`: {`histogram_quantile(0.99, x{a=~"b.*"})`},
		"x / (y > 0)": {"x / (y)"},
	} {
		if got := lift(expr); !slices.Equal(got, want) {
			t.Errorf("%s: %q", expr, got)
		}
	}
}

// prometheus is one that asks all of a lab.
type prometheus struct{ address string }

func startPrometheus(ctx context.Context, t *testing.T, programs string, l *lab.Lab) prometheus {
	t.Helper()
	ports := got(testkit.FreePorts(1 + len(l.Members())))(t)
	p := prometheus{address: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	run := func(program string, env []string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(programs, program), args...) // its own cleanup ends it
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
		log := got(os.Create(filepath.Join(t.TempDir(), "log")))(t)
		cmd.Stdout, cmd.Stderr = log, log
		must(t, cmd.Start())
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
			_ = cmd.Wait()
			if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
				t.Logf("%s: %s", program, text[max(0, len(text)-4000):])
			}
			log.Close()
		})
	}
	type target map[string]any
	var agents, exporters []target
	for i, m := range l.Members() {
		address := fmt.Sprintf("127.0.0.1:%d", ports[i+1])
		dsn := url.URL{Scheme: "postgresql", User: url.UserPassword(lab.SuperuserRole, l.Secrets.Superuser), Host: m.Postgres, Path: "/postgres", RawQuery: "sslmode=disable"}
		run("prometheus-postgres-exporter", []string{"DATA_SOURCE_NAME=" + dsn.String()}, "--web.listen-address="+address)
		agents = append(agents, target{"targets": []string{m.REST}, "labels": map[string]string{"scope": m.Shard.Name}})
		exporters = append(exporters, target{"targets": []string{address}, "labels": map[string]string{"scope": m.Shard.Name}})
	}
	var bouncers []string
	for _, b := range l.BouncerHosts() {
		bouncers = append(bouncers, b.API)
	}
	dir := t.TempDir()
	write := func(name string, value any) string {
		t.Helper()
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, got(yaml.Marshal(value))(t), 0o600))
		return path
	}
	// One alarm that fires, for what shows alarms.
	write("firing.yml", map[string]any{"groups": []any{map[string]any{"name": "test", "rules": []any{map[string]any{"alert": "LictorTest", "expr": "vector(1)"}}}}})
	config := write("prometheus.yml", map[string]any{
		"global":     map[string]any{"scrape_interval": "1s", "evaluation_interval": "1s"},
		"rule_files": []string{"firing.yml"},
		"scrape_configs": []any{
			map[string]any{"job_name": "lictor-agent", "static_configs": agents},
			map[string]any{"job_name": "lictor-bouncer", "static_configs": []target{{"targets": bouncers}}},
			map[string]any{"job_name": "pgbouncer", "metrics_path": "/metrics/pgbouncer", "static_configs": []target{{"targets": bouncers}}},
			map[string]any{
				"job_name": "consul", "metrics_path": "/v1/agent/metrics", "params": map[string]any{"format": []string{"prometheus"}},
				"static_configs": []target{{"targets": l.ConsulHosts()}},
			},
			map[string]any{"job_name": "postgresql", "static_configs": exporters},
		},
	})
	run("prometheus", nil, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+p.address)
	await(ctx, t, "all targets of Prometheus", func() error {
		down, err := p.count(ctx, "up == 0")
		if err != nil {
			return err
		}
		if up, err := p.count(ctx, "up == 1"); err != nil || down > 0 || up < 7 {
			return fmt.Errorf("%d targets answer, %d do not: %w", up, down, err)
		}
		return nil
	})
	return p
}

// count is how many series an expression has.
func (p prometheus) count(ctx context.Context, expr string) (int, error) {
	address := url.URL{Scheme: "http", Host: p.address, Path: "/api/v1/query", RawQuery: url.Values{"query": {expr}}.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return 0, fmt.Errorf("%s: %w: %.200s", expr, err, text)
	}
	if answer.Status != "success" {
		return 0, fmt.Errorf("%s: %w", expr, errors.New(answer.Error))
	}
	return len(answer.Data.Result), nil
}
