package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A page is one Markdown file.
type page struct {
	path    string // relative to the tree's root
	anchors map[string]bool
	links   []mark
	spans   []mark // `code` in the text
	fences  []fence
	// indented are lines of blocks of code that are made by indenting.
	indented []mark
	text     string
}

// A mark is a piece of a page and the line that it is on.
type mark struct {
	line int
	text string
}

// A fence is a block of code; its info is what stands after the ```.
type fence struct {
	line  int
	info  string
	lines []string
}

var (
	headingForm = regexp.MustCompile(`^(#{1,6})\s+(.*?)\s*#*$`)
	linkForm    = regexp.MustCompile(`!?\[[^\]]*\]\(([^)\s]+)\)`)
	spanForm    = regexp.MustCompile("`([^`]+)`")
)

// readPages reads README.md and every page under docs.
func readPages(root string) ([]*page, error) {
	names := []string{"README.md", "CHANGELOG.md"}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
			short, relErr := filepath.Rel(root, path)
			names, err = append(names, short), relErr
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pages: %w", err)
	}
	var pages []*page
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return nil, fmt.Errorf("page: %w", err)
		}
		pages = append(pages, parse(name, string(content)))
	}
	return pages, nil
}

// parse takes apart what the tests look at.
func parse(name, content string) *page {
	p := &page{path: name, anchors: map[string]bool{}, text: content}
	var open *fence
	for i, line := range strings.Split(content, "\n") {
		number, trimmed := i+1, strings.TrimSpace(line)
		if mark, found := strings.CutPrefix(trimmed, "```"); found {
			if open == nil {
				open = &fence{line: number, info: strings.TrimSpace(mark)}
			} else {
				p.fences = append(p.fences, *open)
				open = nil
			}
			continue
		}
		if open != nil {
			open.lines = append(open.lines, trimmed)
			continue
		}
		if strings.HasPrefix(line, "    ") && !strings.HasPrefix(trimmed, "-") && !isListItem(trimmed) {
			p.indented = append(p.indented, mark{number, trimmed})
			continue // an indented block of code, or the rest of a list item
		}
		if heading := headingForm.FindStringSubmatch(line); heading != nil {
			p.addAnchor(heading[2])
		}
		for _, span := range spanForm.FindAllStringSubmatch(line, -1) {
			p.spans = append(p.spans, mark{number, span[1]})
		}
		for _, link := range linkForm.FindAllStringSubmatch(spanForm.ReplaceAllString(line, "x"), -1) {
			p.links = append(p.links, mark{number, link[1]})
		}
	}
	return p
}

func isListItem(line string) bool {
	digits := strings.TrimLeft(line, "0123456789")
	return len(digits) < len(line) && strings.HasPrefix(digits, ". ")
}

// addAnchor adds a heading's anchor as GitHub makes it: lower case, blanks to
// dashes, other punctuation dropped; the second of a name gets -1.
func (p *page) addAnchor(heading string) {
	heading = linkForm.ReplaceAllStringFunc(heading, func(link string) string { return link[strings.Index(link, "[")+1 : strings.Index(link, "]")] })
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			b.WriteRune(r)
		case r == ' ':
			b.WriteByte('-')
		}
	}
	anchor := b.String()
	for n := 1; p.anchors[anchor]; n++ {
		anchor = b.String() + "-" + strconv.Itoa(n)
	}
	p.anchors[anchor] = true
}

// code calls f with every piece of code of the page that a reader could type:
// spans, indented lines, and the lines of fences for a shell.
func (p *page) code(f func(line int, text string)) {
	for _, m := range slices.Concat(p.spans, p.indented) {
		f(m.line, m.text)
	}
	for _, fence := range p.fences {
		if language, _, _ := strings.Cut(fence.info, " "); !slices.Contains([]string{"sh", "bash", "shell"}, language) {
			continue
		}
		for i, line := range fence.lines {
			f(fence.line+1+i, line)
		}
	}
}
