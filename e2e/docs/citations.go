package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A citation names a section of docs/design.md: "design 5", "design 5.3".
var (
	citationForm = regexp.MustCompile(`\b[Dd]esign\s+(\d+(?:\.\d+)*)\b`)
	numberedForm = regexp.MustCompile(`(?m)^#{2,3} (\d+(?:\.\d+)*)\.? `)
	// invariantForm is how the design states an invariant, invariantsForm how others cite one.
	invariantForm  = regexp.MustCompile(`(?m)^- (I\d) `)
	invariantsForm = regexp.MustCompile(`\bI\d\b`)
	// uncitedForm are other ways to cite, which nothing would check.
	uncitedForm = regexp.MustCompile(`(?i)\b(?:rulings?|decisions?|rules?) \d|design(?:\.md)?\)?,\s+(?:sections?|rulings?|decisions?|rules?|I)\s*\d|design\.md#`)
	// brokenForm is the end of a line of a comment or list, and how the next one begins.
	brokenForm = regexp.MustCompile(`\n[ \t]*(?://|#+|\*|;)?[ \t]*`)
)

// numbers are what may be cited: the sections of the design and its invariants.
func numbers(design string) (sections, invariants []string) {
	for _, m := range numberedForm.FindAllStringSubmatch(design, -1) {
		sections = append(sections, m[1])
	}
	for _, m := range invariantForm.FindAllStringSubmatch(design, -1) {
		invariants = append(invariants, m[1])
	}
	return sections, invariants
}

// deadCitations are the citations in a text that lead nowhere, and those in another form.
// In pages a link to a heading of the design is no other form: TestLinks looks at it.
func deadCitations(path, text string, sections, invariants []string) (dead []string) {
	whole := brokenForm.ReplaceAllStringFunc(text, func(s string) string { return strings.Repeat(" ", len(s)) })
	say := func(at int, problem, what string) {
		line := 1 + strings.Count(text[:at], "\n")
		dead = append(dead, fmt.Sprintf("%s:%d: %s %q", path, line, problem, strings.Join(strings.Fields(what), " ")))
	}
	for _, m := range citationForm.FindAllStringSubmatchIndex(whole, -1) {
		if !slices.Contains(sections, whole[m[2]:m[3]]) {
			say(m[0], "docs/design.md has no section", whole[m[2]:m[3]])
		}
	}
	for _, m := range invariantsForm.FindAllStringIndex(whole, -1) {
		if !slices.Contains(invariants, whole[m[0]:m[1]]) {
			say(m[0], "docs/design.md has no invariant", whole[m[0]:m[1]])
		}
	}
	for _, m := range uncitedForm.FindAllStringIndex(whole, -1) {
		if !strings.HasSuffix(path, ".md") || whole[m[0]:m[1]] != "design.md#" {
			say(m[0], `cite as "design 5.3", and not as`, whole[m[0]:m[1]])
		}
	}
	return dead
}

// texts calls f with every file of the tree that somebody wrote, but what git does not keep.
func texts(root string, f func(path, text string) error) error {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "bin", "dist"}, d.Name()):
			return filepath.SkipDir
		case !d.Type().IsRegular() || slices.Contains([]string{".sum", ".json", ".svg"}, filepath.Ext(path)):
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil || !utf8.Valid(content) {
			return err
		}
		short, err := filepath.Rel(root, path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return f(short, string(content))
	})
	if err != nil {
		return fmt.Errorf("reading the tree: %w", err)
	}
	return nil
}
