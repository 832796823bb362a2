package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each version of the change log says what to do when one upgrades to it; the first one is what is
// not released yet, or the newest.
func TestChangeLog(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`^(Unreleased|\d+\.\d+\.\d+, \d{4}-\d{2}-\d{2})$`)
	sections := strings.Split(string(content), "\n## ")[1:]
	if len(sections) == 0 {
		t.Fatal("no version")
	}
	for i, section := range sections {
		name, rest, _ := strings.Cut(section, "\n")
		if !version.MatchString(name) || name == "Unreleased" && i > 0 {
			t.Errorf("%q is no version, like Unreleased, which comes first, or 1.2.3, 2026-11-30", name)
		}
		_, upgrade, found := strings.Cut(rest, "\n### Upgrade\n")
		if !found || !strings.Contains(upgrade, "\n- ") {
			t.Errorf("%s does not say what to do when one upgrades", name)
		}
	}
}
