package api

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// FormatList writes a shard's members as a table, in the form that patronictl
// list has: operators' eyes and scripts know it.
func FormatList(w io.Writer, scope string, s cluster.Snapshot) error {
	view := NewClusterView(scope, s)
	t := table{
		title:   fmt.Sprintf(" Cluster: %s (%s) ", scope, systemName(s)),
		columns: []column{{name: "Member"}, {name: "Host"}, {name: "Role"}, {name: "State"}, {name: "TL", right: true}, {name: "Lag in MB", right: true}},
	}
	some := func(has func(MemberView) bool) bool { return slices.ContainsFunc(view.Members, has) }
	pending := some(func(m MemberView) bool { return m.Host != "" && m.PendingRestart })
	scheduled := some(func(m MemberView) bool { return m.Host != "" && len(m.ScheduledRestart) > 0 })
	tags := some(func(m MemberView) bool { return m.Host != "" && len(m.Tags) > 0 })
	for _, extra := range []struct {
		shown bool
		name  string
	}{{pending, "Pending restart"}, {scheduled, "Scheduled restart"}, {tags, "Tags"}} {
		if extra.shown {
			t.columns = append(t.columns, column{name: extra.name})
		}
	}
	withPort := portsMatter(view.Members)
	for _, m := range view.Members {
		row := []string{m.Name, m.Host, roleTitle(m.Role), m.State, "", ""}
		if withPort && m.Host != "" && m.Port != 0 {
			row[1] = fmt.Sprintf("%s:%d", m.Host, m.Port)
		}
		if m.Timeline != 0 {
			row[4] = fmt.Sprint(m.Timeline)
		}
		if m.Lags != nil {
			row[5] = megabytes(m.Lag)
		}
		if pending {
			row = append(row, map[bool]string{true: "*"}[m.PendingRestart])
		}
		if scheduled {
			row = append(row, scheduleText(m.ScheduledRestart))
		}
		if tags {
			text, err := tagsText(m.Tags)
			if err != nil {
				return fmt.Errorf("tags of member %s: %w", m.Name, err)
			}
			row = append(row, text)
		}
		t.rows = append(t.rows, row)
	}
	out := t.String()
	if view.Pause {
		out += " Maintenance mode: on\n"
	}
	if next := view.ScheduledSwitchover; next != nil {
		out += " Switchover scheduled at: " + next.At + "\n"
		for _, line := range [][2]string{{"from", next.From}, {"to", next.To}} {
			if line[1] != "" {
				out += fmt.Sprintf("%24s: %s\n", line[0], line[1])
			}
		}
	}
	_, err := io.WriteString(w, out)
	return err
}

// systemName is the shard's system identifier, or a word when it has none yet.
func systemName(s cluster.Snapshot) string {
	switch {
	case !s.Initialize.Exists():
		return "uninitialized"
	case s.Initialize.Value == "":
		return "initializing"
	}
	return s.Initialize.Value
}

// portsMatter tells whether hosts alone do not say where members are: one has
// another port than PostgreSQL's own, or two share a host.
func portsMatter(members []MemberView) bool {
	seen := map[string]bool{}
	for _, m := range members {
		if m.Host == "" {
			continue
		}
		if m.Port != 0 && m.Port != 5432 || seen[m.Host] {
			return true
		}
		seen[m.Host] = true
	}
	return false
}

// roleTitle turns sync_standby into Sync Standby.
func roleTitle(role string) string {
	words := strings.Split(role, "_")
	for i, w := range words {
		if w != "" {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, " ")
}

func megabytes(lag any) string {
	if n, ok := lag.(int64); ok {
		return fmt.Sprint(int64(math.RoundToEven(float64(n) / (1 << 20))))
	}
	return fmt.Sprint(lag)
}

func scheduleText(restart map[string]any) string {
	if len(restart) == 0 {
		return ""
	}
	text := fmt.Sprint(restart["schedule"])
	if version, set := restart["postgres_version"]; set {
		text += fmt.Sprintf(" if version < %v", version)
	}
	return text
}

// tagsText writes tags as YAML, one to a line, quoted as patronictl quotes.
func tagsText(tags map[string]any) (string, error) {
	if len(tags) == 0 {
		return "", nil
	}
	var node yaml.Node
	if err := node.Encode(tags); err != nil {
		return "", err
	}
	singleQuotes(&node)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&node); err != nil {
		return "", err
	}
	return strings.TrimSpace(b.String()), nil
}

func singleQuotes(n *yaml.Node) {
	if n.Style == yaml.DoubleQuotedStyle && !strings.ContainsAny(n.Value, "\n\t") {
		n.Style = yaml.SingleQuotedStyle
	}
	for _, below := range n.Content {
		singleQuotes(below)
	}
}

// table is text in a frame of +, - and |, with a title in its upper edge.
type table struct {
	title   string
	columns []column
	rows    [][]string
}

type column struct {
	name  string
	right bool
	width int
}

// String draws the table. Rows are separated by lines only when a cell has more
// than one line.
func (t table) String() string {
	columns := slices.Clone(t.columns)
	tall := false
	for i := range columns {
		columns[i].width = utf8.RuneCountInString(columns[i].name)
		for _, row := range t.rows {
			for _, line := range strings.Split(row[i], "\n") {
				columns[i].width = max(columns[i].width, utf8.RuneCountInString(line))
			}
			tall = tall || strings.Contains(row[i], "\n")
		}
	}
	var edge strings.Builder
	names := make([]string, len(columns))
	for i, c := range columns {
		edge.WriteString("+" + strings.Repeat("-", c.width+2))
		names[i] = c.name
	}
	edge.WriteString("+")
	title := []rune(t.title)
	title = title[:min(len(title), edge.Len()-2)]

	var out strings.Builder
	fmt.Fprintf(&out, "+%s%s\n", string(title), edge.String()[1+len(title):])
	drawRow(&out, columns, names)
	out.WriteString(edge.String() + "\n")
	for i, row := range t.rows {
		if tall && i > 0 {
			out.WriteString(edge.String() + "\n")
		}
		drawRow(&out, columns, row)
	}
	out.WriteString(edge.String() + "\n")
	return out.String()
}

func drawRow(out *strings.Builder, columns []column, row []string) {
	cells := make([][]string, len(columns))
	height := 1
	for i := range columns {
		cells[i] = strings.Split(row[i], "\n")
		height = max(height, len(cells[i]))
	}
	for line := range height {
		for i, c := range columns {
			text := ""
			if line < len(cells[i]) {
				text = cells[i][line]
			}
			fill := strings.Repeat(" ", c.width-utf8.RuneCountInString(text))
			if c.right {
				text = fill + text
			} else {
				text += fill
			}
			out.WriteString("| " + text + " ")
		}
		out.WriteString("|\n")
	}
}
