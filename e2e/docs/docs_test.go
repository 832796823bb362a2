package docs

import (
	"go/ast"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/e2e/faults"
)

const root = "../.."

func pages(t *testing.T) []*page {
	t.Helper()
	all, err := readPages(root)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func sections(t *testing.T) []Section {
	t.Helper()
	all, err := Sections(root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// lictor is the program: LICTOR_BIN, or built for this test.
func lictor(t *testing.T) string {
	t.Helper()
	if binary := os.Getenv("LICTOR_BIN"); binary != "" {
		return binary
	}
	binary := filepath.Join(t.TempDir(), "lictor")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", binary, "./cmd/lictor")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

func TestSettingsPageIsCurrent(t *testing.T) {
	have, err := os.ReadFile(filepath.Join(root, "docs", "settings.md"))
	if err != nil {
		t.Fatal(err)
	}
	if Page(sections(t)) != string(have) {
		t.Error("docs/settings.md is not what the code says: go run ./e2e/docs/cmd/settings")
	}
}

func TestEverySettingIsExplained(t *testing.T) {
	for _, section := range sections(t) {
		for _, s := range section.Settings {
			if len(s.Meaning) < 10 {
				t.Errorf("%s: %s: its field %s needs a comment that says what it means and why (%q)", section.Title, s.Path, s.Field, s.Meaning)
			}
			if unit, _, _ := strings.Cut(s.Type, ","); unit == "number" && !strings.Contains(s.Meaning, "a number") {
				t.Errorf("%s: %s: the comment of %s does not say the unit", section.Title, s.Path, s.Field)
			}
		}
	}
}

// The dynamic configuration is read key by key: what is read must be documented.
func TestEveryDynamicSettingIsListed(t *testing.T) {
	listed := map[string]bool{"master_start_timeout": true, "master_stop_timeout": true, "permanent_slots": true} // aliases
	for _, section := range sections(t) {
		for _, s := range section.Settings {
			name, _, _ := strings.Cut(s.Path, ".")
			listed[name] = true
		}
	}
	files, err := parseDir(filepath.Join(root, "agent", "cluster"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Name.Name == "DynamicKeys" {
				ast.Inspect(f, func(n ast.Node) bool {
					if literal, ok := n.(*ast.BasicLit); ok {
						found++
						if key := strings.Trim(literal.Value, `"`); !listed[key] {
							t.Errorf("%s is read and not documented", key)
						}
					}
					return true
				})
			}
		}
	}
	if found == 0 {
		t.Error("cluster.DynamicKeys was not found")
	}
}

// A setting that no code outside the configuration's own packages looks at must
// say that it has no effect, and one that says so must not be looked at.
func TestSettingsWithoutEffectSaySo(t *testing.T) {
	used := map[string]bool{}
	err := goFiles(root, []string{"agent", "bouncer", "cmd"}, func(path string, file *ast.File) error {
		// Validation looks at everything; the operator's commands show it.
		for _, own := range []string{"agent/config/", "agent/cluster/dynamic", "agent/cluster/settings/consul.go", "bouncer/config/config.go", "bouncer/config/validate.go"} {
			if strings.HasPrefix(path, own) {
				return nil
			}
		}
		if !strings.HasSuffix(path, "_test.go") {
			ast.Inspect(file, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					used[s.Sel.Name] = true
				}
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Read through methods of their own packages.
	own := []string{"Hosts", "ScriptTimeout", "HoldTimeout", "PasswordFile", "MaxRestore"}
	for _, section := range sections(t) {
		for _, s := range section.Settings {
			says := strings.Contains(s.Meaning, "Without effect") || strings.Contains(s.Meaning, "refused") || strings.Contains(s.Meaning, "not supported")
			if !used[s.Field] && !slices.Contains(own, s.Field) && !says {
				t.Errorf("%s: no code looks at it: let the comment of %s say \"Without effect\", or use it", s.Path, s.Field)
			}
		}
	}
}

func TestLinks(t *testing.T) {
	all := pages(t)
	byPath := map[string]*page{}
	for _, p := range all {
		byPath[p.path] = p
	}
	for _, p := range all {
		for _, link := range p.links {
			if strings.Contains(link.text, "://") || strings.HasPrefix(link.text, "mailto:") {
				continue
			}
			target, anchor, _ := strings.Cut(link.text, "#")
			path := p.path
			if target != "" {
				path = filepath.Join(filepath.Dir(p.path), target)
			}
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s:%d: %s leads nowhere", p.path, link.line, link.text)
				continue
			}
			if anchor != "" && byPath[path] != nil && !byPath[path].anchors[anchor] {
				t.Errorf("%s:%d: %s has no heading #%s", p.path, link.line, path, anchor)
			}
		}
	}
}

var (
	pathForm     = regexp.MustCompile(`^(?:\./)?((?:agent|bouncer|cmd|docs|e2e|ansible|packages|templates)/[A-Za-z0-9_./@-]*)$`)
	makeForm     = regexp.MustCompile(`(?:^|[ (])make ([a-z][a-z0-9-]*)`)
	goTestForm   = regexp.MustCompile(`go (?:test|run) ([^|#]*)`)
	runForm      = regexp.MustCompile(`-run[ =]('[^']*'|\S+)`)
	testForm     = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z][A-Za-z0-9]*\b`)
	faultsForm   = regexp.MustCompile(`FAULTS=([a-z0-9,-]+)`)
	scenarioForm = regexp.MustCompile(`--scenario ([a-z-]+)`)
	lictorForm   = regexp.MustCompile(`(?:^|[^\w/.-])(lictor(?: .*)?)$`)
	alertForm    = regexp.MustCompile(`^Lictor[A-Z][A-Za-z]+$`)
	settingForm  = regexp.MustCompile(`^[a-z_]+(?:\.[a-z_]+)+$`)
)

func TestNamedFilesExist(t *testing.T) {
	for _, p := range pages(t) {
		for _, span := range p.spans {
			m := pathForm.FindStringSubmatch(span.text)
			if m == nil || strings.Contains(m[1], "...") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s:%d: there is no %s", p.path, span.line, m[1])
			}
		}
	}
}

func TestNamedTargetsExist(t *testing.T) {
	targets, err := readTargets(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		p.code(func(line int, text string) {
			for _, m := range makeForm.FindAllStringSubmatch(text, -1) {
				if !targets[m[1]] {
					t.Errorf("%s:%d: there is no target %s", p.path, line, m[1])
				}
			}
		})
	}
}

func TestNamedTestsExist(t *testing.T) {
	all, err := readTests(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		for i, line := range strings.Split(p.text, "\n") {
			for _, command := range goTestForm.FindAllStringSubmatch(line, -1) {
				run := runForm.FindStringSubmatch(command[1])
				for _, word := range strings.Fields(command[1]) {
					folder, isFolder := strings.CutPrefix(strings.Trim(word, "`'\".,;:)"), "./")
					if !isFolder {
						continue
					}
					if _, err := os.Stat(filepath.Join(root, strings.TrimSuffix(folder, "..."))); err != nil {
						t.Errorf("%s:%d: there is no package ./%s", p.path, i+1, folder)
						continue
					}
					if run == nil {
						continue
					}
					for part := range strings.SplitSeq(strings.Trim(run[1], "'`\".,;:)"), "|") {
						if ok, err := all.matches(folder, part); err != nil || !ok {
							t.Errorf("%s:%d: -run %s finds no test in ./%s (%v)", p.path, i+1, part, folder, err)
						}
					}
				}
			}
			if strings.Contains(line, "-run") {
				continue // a pattern, looked at above
			}
			for _, name := range testForm.FindAllString(line, -1) {
				if !all.has(name) {
					t.Errorf("%s:%d: there is no test %s", p.path, i+1, name)
				}
			}
		}
	}
}

// What docs/security.md says of who may do what has a test, which is where the page says.
func TestSecurityClaimsHaveTests(t *testing.T) {
	all, err := readTests(root)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows, tested := 0, false // whether the lines belong to a table with a column of tests
	for i, line := range strings.Split(string(content), "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		last := strings.TrimSpace(cells[len(cells)-1])
		switch {
		case !strings.HasPrefix(line, "|"):
			tested = false
			continue
		case last == "Test":
			tested = true
			continue
		case !tested || strings.HasPrefix(last, "---"):
			continue
		}
		rows++
		if last == "the same" { // as in the row before
			continue
		}
		named := claims(last)
		if len(named) == 0 {
			t.Errorf("docs/security.md:%d: names no test: %s", i+1, last)
		}
		for _, c := range named {
			if c.folder == "" {
				t.Errorf("docs/security.md:%d: does not say where %s is", i+1, c.test)
			} else if !slices.Contains(all[c.folder], c.test) {
				t.Errorf("docs/security.md:%d: there is no %s in %s", i+1, c.test, c.folder)
			}
		}
	}
	if rows < 30 {
		t.Errorf("only %d rows", rows)
	}
}

func TestNamedFaultsExist(t *testing.T) {
	for _, p := range pages(t) {
		p.code(func(line int, text string) {
			for _, m := range faultsForm.FindAllStringSubmatch(text, -1) {
				if m[1] == "name" {
					continue // stands for any
				}
				if _, err := faults.Choose(m[1]); err != nil {
					t.Errorf("%s:%d: %v", p.path, line, err)
				}
			}
		})
	}
}

func TestCommands(t *testing.T) {
	t.Run("named", namedCommandsExist)
	t.Run("run", func(t *testing.T) { commandsOfPagesRun(t, lictor(t)) })
}

func namedCommandsExist(t *testing.T) {
	known := readCommands()
	if known["bouncer drain"] == nil || !known["list"]["config"] {
		t.Fatalf("the commands were not understood: %v", known)
	}
	scenarios, err := os.ReadFile(filepath.Join(root, "e2e", "demo", "scenario.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		p.code(func(line int, text string) {
			for _, m := range scenarioForm.FindAllStringSubmatch(text, -1) {
				if !strings.Contains(string(scenarios), `"`+m[1]+`"`) {
					t.Errorf("%s:%d: there is no scenario %s", p.path, line, m[1])
				}
			}
			if m := lictorForm.FindStringSubmatch(text); m != nil && strings.HasPrefix(m[1], "lictor ") {
				if problem := known.problem(m[1]); problem != "" {
					t.Errorf("%s:%d: %s", p.path, line, problem)
				}
			}
		})
	}
}

// Each alert leads to the page that the runbooks' index names for it, or to the table of those that
// need no page.
func TestAlertsLeadToRunbooks(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "monitoring", "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Annotations struct {
					Runbook string `yaml:"runbook_url"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(root, "docs", "runbooks", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	withPages, others, found := strings.Cut(string(index), "\n## Other alerts\n")
	if !found {
		t.Fatal("docs/runbooks/README.md has no section Other alerts")
	}
	seen := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			seen++
			name, isOurs := strings.CutPrefix(rule.Annotations.Runbook, "https://github.com/lictor-ha/lictor/blob/main/docs/runbooks/")
			alert := "`" + rule.Alert + "`"
			row := func(line string) bool { return strings.Contains(line, "]("+name+")") && strings.Contains(line, alert) }
			switch _, err := os.Stat(filepath.Join(root, "docs", "runbooks", name)); {
			case !isOurs:
				t.Errorf("%s leads to %q, which is no runbook", rule.Alert, rule.Annotations.Runbook)
			case name == "README.md#other-alerts":
				if !strings.Contains(others, "\n| "+alert) {
					t.Errorf("docs/runbooks/README.md has no row for %s among the other alerts", rule.Alert)
				}
			case err != nil:
				t.Errorf("%s: %v", rule.Alert, err)
			case !slices.ContainsFunc(strings.Split(withPages, "\n"), row):
				t.Errorf("docs/runbooks/README.md does not name %s for %s", name, rule.Alert)
			}
		}
	}
	if seen < 30 {
		t.Errorf("%d alerts", seen)
	}
}

func TestNamedAlertsExist(t *testing.T) {
	rules, err := os.ReadFile(filepath.Join(root, "docs", "monitoring", "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(root, "docs", "runbooks", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		if !strings.Contains(string(index), "`"+m[1]+"`") {
			t.Errorf("docs/runbooks/README.md does not say what to do on %s", m[1])
		}
	}
	for _, p := range pages(t) {
		for _, span := range p.spans {
			if alertForm.MatchString(span.text) && !strings.Contains(string(rules), "alert: "+span.text+"\n") {
				t.Errorf("%s:%d: there is no alert %s", p.path, span.line, span.text)
			}
		}
	}
}

func TestNamedSettingsExist(t *testing.T) {
	known := map[string]bool{}
	heads := map[string]bool{}
	for _, section := range sections(t) {
		for _, s := range section.Settings {
			path := strings.ReplaceAll(s.Path, "[]", "")
			for path != "" {
				known[path] = true
				path = path[:max(0, strings.LastIndexByte(path, '.'))]
			}
			if head, _, found := strings.Cut(strings.ReplaceAll(s.Path, "[]", ""), "."); found {
				heads[head] = true
			}
		}
	}
	for _, p := range pages(t) {
		if strings.HasPrefix(p.path, "docs/patroni-compat") || strings.HasPrefix(p.path, "docs/facts") {
			continue // about others' settings
		}
		for _, span := range p.spans {
			path := span.text
			if !settingForm.MatchString(path) || !heads[path[:strings.IndexByte(path, '.')]] {
				continue
			}
			if ext := filepath.Ext(path); slices.Contains([]string{".yml", ".ini", ".conf", ".md", ".go", ".service", ".txt", ".json", ".sh", ".reason"}, ext) {
				continue
			}
			// What stands below a map of free names.
			for _, free := range []string{"postgresql.parameters.", "postgresql.recovery_conf.", "pgbouncer.settings.", "bootstrap.dcs.", "tags."} {
				if strings.HasPrefix(path, free) {
					path = strings.TrimSuffix(free, ".")
				}
			}
			if !known[path] {
				t.Errorf("%s:%d: there is no setting %s", p.path, span.line, span.text)
			}
		}
	}
}

// Somebody who was woken needs the same parts in the same order.
func TestRunbooksHaveTheirParts(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(root, "docs", "runbooks", "*.md"))
	if err != nil || len(names) < 10 {
		t.Fatal(names, err)
	}
	index, err := os.ReadFile(filepath.Join(root, "docs", "runbooks", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		base := filepath.Base(name)
		if base == "README.md" {
			continue
		}
		if !strings.Contains(string(index), "("+base+")") {
			t.Errorf("the index has no %s", base)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for _, part := range []string{"**Symptom.**", "## What it means", "## Look at", "## Do", "## When to stop"} {
			i := strings.Index(string(text)[at:], part)
			if i < 0 {
				t.Errorf("%s: %q is missing, or not in its place", base, part)
				break
			}
			at += i
		}
	}
}

var placeholderForm = regexp.MustCompile(`\b[ABNX]\b|\.\.\.|\d+|;|: `)

// In tables of what "the member says" or "the agent says" the first column quotes
// the program: X, N and ... stand for what varies.
func TestRunbooksQuoteTheProgram(t *testing.T) {
	said, err := literals(root, "agent")
	if err != nil {
		t.Fatal(err)
	}
	quotes := 0
	for _, p := range pages(t) {
		if !strings.HasPrefix(p.path, "docs/runbooks/") {
			continue
		}
		inTable := false
		for i, line := range strings.Split(p.text, "\n") {
			cells := strings.Split(line, "|")
			switch {
			case len(cells) < 3:
				inTable = false
				continue
			case strings.Contains(cells[1], "the member says") || strings.Contains(cells[1], "the agent says"):
				inTable = true
				continue
			case !inTable || strings.Contains(cells[1], "---"):
				continue
			}
			for _, part := range placeholderForm.Split(strings.TrimSpace(cells[1]), -1) {
				if part = strings.Trim(part, " ,.`"); len(part) < 8 {
					continue
				}
				quotes++
				if !slices.ContainsFunc(said, func(text string) bool { return strings.Contains(text, part) }) {
					t.Errorf("%s:%d: the agent nowhere says %q", p.path, i+1, part)
				}
			}
		}
	}
	if quotes < 20 {
		t.Errorf("only %d quotations were found", quotes)
	}
}

func commandsOfPagesRun(t *testing.T, binary string) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	absolute, err := filepath.Abs(binary)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(absolute, filepath.Join(bin, "lictor")); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, p := range pages(t) {
		for _, fence := range p.fences {
			if fence.info != "sh run" {
				continue
			}
			ran++
			cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", strings.Join(fence.lines, "\n"))
			cmd.Dir, cmd.Env = root, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s:%d: %v\n%s", p.path, fence.line, err, out)
			}
		}
	}
	if ran == 0 {
		t.Error("no page has a fence marked \"sh run\"")
	}
}

// A stranger finds every page by following links from README.md, and each begins with
// words on what it is for, before any table or code.
func TestPagesAreFoundAndBeginWithWords(t *testing.T) {
	byPath := map[string]*page{}
	for _, p := range pages(t) {
		byPath[p.path] = p
	}
	found := map[string]bool{"README.md": true}
	for queue := []string{"README.md"}; len(queue) > 0; queue = queue[1:] {
		p := byPath[queue[0]]
		for _, link := range p.links {
			target, _, _ := strings.Cut(link.text, "#")
			if path := filepath.Join(filepath.Dir(p.path), target); byPath[path] != nil && !found[path] {
				found[path] = true
				queue = append(queue, path)
			}
		}
	}
	for path, p := range byPath {
		if !found[path] {
			t.Errorf("no link leads to %s", path)
		}
		if path == "docs/README.md" { // a table of the others
			continue
		}
		lines := slices.DeleteFunc(strings.FieldsFunc(p.text, func(r rune) bool { return r == '\n' }), func(line string) bool {
			return strings.HasPrefix(line, "<!--")
		})
		if len(lines) < 2 || !strings.HasPrefix(strings.TrimLeft(lines[0], "#"), " ") || !beginsWithWords.MatchString(lines[1]) {
			t.Errorf("%s does not begin with a title and words on what it is for", path)
		}
	}
}

// beginsWithWords: bold or not, a picture may come before.
var beginsWithWords = regexp.MustCompile("^(?:\\*\\*|!\\[|`)?[A-Za-z]")
