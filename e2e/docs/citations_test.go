package docs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The design is cited from code, tests, pages and files of every kind, by the numbers of
// its sections: those must exist.
func TestCitationsOfTheDesign(t *testing.T) {
	design, err := os.ReadFile(filepath.Join(root, "docs", "design.md"))
	if err != nil {
		t.Fatal(err)
	}
	sections, invariants := numbers(string(design))
	if len(sections) < 40 || len(invariants) != 8 {
		t.Fatalf("the design has the sections %v and the invariants %v?", sections, invariants)
	}
	if unique := slices.Compact(slices.Sorted(slices.Values(sections))); len(unique) != len(sections) {
		t.Errorf("a number is there twice: %v", sections)
	}
	cited := 0
	err = texts(root, func(path, text string) error {
		if strings.HasPrefix(path, "e2e/docs/citations") {
			return nil
		}
		cited += len(citationForm.FindAllString(text, -1))
		for _, dead := range deadCitations(path, text, sections, invariants) {
			t.Error(dead)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if cited < 40 {
		t.Errorf("only %d citations were found", cited)
	}
}

func TestDeadCitationsAreFound(t *testing.T) {
	sections, invariants := numbers("## 5. The lease\n### 5.3 Taking the lock\n- I1 at no time\n")
	for text, want := range map[string]string{
		"// (design 5.3)":                   "",
		"// (design\n// 5.3, I1)":           "",
		"# as design 5 says":                "",
		"// (design 5.4)":                   `a.go:1: docs/design.md has no section "5.4"`,
		"// x\n\t// (design\n\t// 10)":      `a.go:2: docs/design.md has no section "10"`,
		"// I2":                             `a.go:1: docs/design.md has no invariant "I2"`,
		"// (docs/design.md, ruling 7)":     `a.go:1: cite as "design 5.3", and not as "design.md, ruling 7"`,
		"// (docs/design.md, section 5)":    `a.go:1: cite as "design 5.3", and not as "design.md, section 5"`,
		"// PostgreSQL, section 19.4.4, x.": "",
		"// docs/design.md#53-x":            `a.go:1: cite as "design 5.3", and not as "design.md#"`,
	} {
		if got := strings.Join(deadCitations("a.go", text, sections, invariants), "; "); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
