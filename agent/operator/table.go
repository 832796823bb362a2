package operator

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/printable"
)

// Format is how a result is written.
type Format string

// The formats. Pretty is for people; the others have every column under its
// key, and never colours.
const (
	Pretty Format = "pretty"
	JSON   Format = "json"
	YAML   Format = "yaml"
	TSV    Format = "tsv"
)

// Formats are all formats.
func Formats() []string { return []string{string(Pretty), string(JSON), string(YAML), string(TSV)} }

// ParseFormat reads the name of a format.
func ParseFormat(name string) (Format, error) {
	if name == "" || name == "yml" {
		name = map[string]string{"": string(Pretty), "yml": string(YAML)}[name]
	}
	if !slices.Contains(Formats(), name) {
		return "", usagef("--output %s: must be one of %s", name, strings.Join(Formats(), ", "))
	}
	return Format(name), nil
}

// Style is how much a cell wants to be seen.
type Style int

// The styles.
const (
	Plain  Style = iota
	Strong       // the one to look for
	Good
	Faint
	Warning
	Bad
)

// escape is the style's SGR sequence (ECMA-48, 8.3.117).
func (s Style) escape() string {
	return map[Style]string{Strong: "\x1b[1m", Good: "\x1b[32m", Faint: "\x1b[2m", Warning: "\x1b[33m", Bad: "\x1b[1;31m"}[s]
}

// paint puts text into a style, if there are colours.
func paint(text string, s Style, colour bool) string {
	if !colour || s.escape() == "" || text == "" {
		return text
	}
	return s.escape() + text + "\x1b[0m"
}

// Cell is one value: as text, and as programs get it.
type Cell struct {
	Text  string
	Value any // nil: Text
	Style Style
}

// text makes a plain cell of one line.
func text(s string) Cell { return styled(s, Plain) }

// Text makes a plain cell of one line.
func Text(s string) Cell { return text(s) }

// styled makes a cell of one line. People get it cut and without what a terminal acts on,
// programs as it is.
func styled(s string, style Style) Cell {
	c := Cell{Text: printable.Short(s, maxCell), Style: style}
	if c.Text != s {
		c.Value = s
	}
	return c
}

// maxCell is how many bytes of a value stand in a line of a table.
const maxCell = 1000

// lines makes a cell that may have several lines.
func lines(s string) Cell { return Cell{Text: printable.Lines(s)} }

// number makes a cell whose value is a number.
func number[T int | int64](n T) Cell { return Cell{Text: fmt.Sprint(n), Value: n} }

func (c Cell) value() any {
	if c.Value != nil {
		return c.Value
	}
	return c.Text
}

func (c Cell) empty() bool { return c.Text == "" && c.Value == nil }

// Column is one column of a table.
type Column struct {
	Name  string
	Key   string // for programs; empty: Name
	Right bool
	// Programs says that people do not need the column: its value stands in the
	// title.
	Programs bool
	// Prose says that lines may be broken between words.
	Prose bool
}

func (c Column) key() string {
	if c.Key != "" {
		return c.Key
	}
	return c.Name
}

// Table is the result of a command. All formats are made from it.
type Table struct {
	Title   string
	Columns []Column
	Rows    [][]Cell
	// Notes follow the table, for people only.
	Notes []string
	// Framed draws lines around the table, as patronictl does.
	Framed bool
	// Width is how many columns the terminal has, 0 when there is none. What has no
	// frame is folded to it.
	Width int
	// Delimiter stands between the cells of TSV; empty: a tab.
	Delimiter string
}

// Write writes a table in a format.
func (t Table) Write(w io.Writer, f Format, colour bool) error {
	var out []byte
	var err error
	switch f {
	case JSON:
		out, err = t.json()
	case YAML:
		out, err = t.yaml()
	case TSV:
		out, err = t.tsv()
	default:
		out = []byte(t.safe().pretty(colour))
	}
	if err != nil {
		return fmt.Errorf("writing the result as %s: %w", f, err)
	}
	_, err = w.Write(out)
	return err
}

// safe is the table without anything that a terminal acts on.
func (t Table) safe() Table {
	t.Title, t.Columns, t.Rows, t.Notes = printable.Line(t.Title), slices.Clone(t.Columns), slices.Clone(t.Rows), slices.Clone(t.Notes)
	for i := range t.Columns {
		t.Columns[i].Name = printable.Line(t.Columns[i].Name)
	}
	for i, row := range t.Rows {
		row = slices.Clone(row)
		for j := range row {
			row[j].Text = printable.Lines(row[j].Text)
		}
		t.Rows[i] = row
	}
	for i, note := range t.Notes {
		t.Notes[i] = printable.Lines(note)
	}
	return t
}

// json is a list of objects in the order of the columns, without what is empty.
func (t Table) json() ([]byte, error) {
	var out bytes.Buffer
	out.WriteString("[")
	for i, row := range t.Rows {
		if i > 0 {
			out.WriteString(",")
		}
		out.WriteString("\n  {")
		first := true
		for j, c := range t.Columns {
			if row[j].empty() {
				continue
			}
			key, err := jsonText(c.key())
			if err != nil {
				return nil, err
			}
			value, err := jsonText(row[j].value())
			if err != nil {
				return nil, err
			}
			if !first {
				out.WriteString(", ")
			}
			first = false
			fmt.Fprintf(&out, "%s: %s", key, value)
		}
		out.WriteString("}")
	}
	if len(t.Rows) > 0 {
		out.WriteString("\n")
	}
	out.WriteString("]\n")
	return out.Bytes(), nil
}

// jsonText is json.Marshal without escapes for HTML.
func jsonText(value any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	err := e.Encode(value)
	return printable.JSON(bytes.TrimSpace(out.Bytes())), err
}

func (t Table) yaml() ([]byte, error) {
	list := yaml.Node{Kind: yaml.SequenceNode}
	for _, row := range t.Rows {
		record := yaml.Node{Kind: yaml.MappingNode}
		for j, c := range t.Columns {
			if row[j].empty() {
				continue
			}
			var key, value yaml.Node
			key.SetString(c.key())
			if err := value.Encode(row[j].value()); err != nil {
				return nil, err
			}
			record.Content = append(record.Content, &key, &value)
		}
		list.Content = append(list.Content, &record)
	}
	return yamlText(&list)
}

// yamlText writes YAML in which everything is printable.
func yamlText(value any) ([]byte, error) {
	node, isNode := value.(*yaml.Node)
	if !isNode {
		node = &yaml.Node{}
		if err := node.Encode(value); err != nil {
			return nil, err
		}
	}
	quoteUnprintable(node)
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(node); err != nil {
		return nil, err
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	return printable.YAML(out.Bytes()), nil
}

// quoteUnprintable puts what is not printable into double quotes, where it can be escaped.
func quoteUnprintable(node *yaml.Node) {
	if node.Kind == yaml.ScalarNode && !printable.Printable(node.Value) && node.Tag != "!!binary" {
		node.Style = yaml.DoubleQuotedStyle
	}
	for _, child := range node.Content {
		quoteUnprintable(child)
	}
}

// tsv is one line per row, below the names of the columns. Delimiters and line ends in
// values become blanks; what is more than one value is written as JSON.
func (t Table) tsv() ([]byte, error) {
	var out bytes.Buffer
	delimiter := cmp.Or(t.Delimiter, "\t")
	clean := strings.NewReplacer(delimiter, " ", "\t", " ", "\n", " ", "\r", " ")
	keys := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		keys[i] = c.key()
	}
	for i := range keys {
		keys[i] = printable.Line(clean.Replace(keys[i]))
	}
	out.WriteString(strings.Join(keys, delimiter) + "\n")
	for _, row := range t.Rows {
		cells := make([]string, len(row))
		for i, c := range row {
			text, isText := c.value().(string)
			if !isText {
				encoded, err := jsonText(c.Value)
				if err != nil {
					return nil, err
				}
				text = string(encoded)
			}
			cells[i] = printable.Line(clean.Replace(text))
		}
		out.WriteString(strings.Join(cells, delimiter) + "\n")
	}
	return out.Bytes(), nil
}

// pretty draws the table for people.
func (t Table) pretty(colour bool) string {
	d := drawing{colour: colour, framed: t.Framed}
	t, folded := t.fit()
	for i, c := range t.Columns {
		if c.Programs || slices.Contains(folded, i) {
			continue
		}
		for _, row := range t.Rows {
			d.tall = d.tall || strings.Contains(row[i].Text, "\n")
		}
		d.shown, d.widths, d.right = append(d.shown, i), append(d.widths, t.width(i)), append(d.right, c.Right)
	}
	head := make([]Cell, len(t.Columns))
	for i, c := range t.Columns {
		head[i] = styled(c.Name, Strong)
	}
	d.title(t.Title)
	d.row(head)
	d.edge()
	for i, row := range t.Rows {
		if d.tall && i > 0 {
			d.edge()
		}
		d.row(row)
		d.below(t, row, folded)
	}
	d.edge()
	for _, note := range t.Notes {
		d.out.WriteString(wrapped(note, t.Width) + "\n")
	}
	return d.out.String()
}

// drawing is a table being drawn.
type drawing struct {
	out    strings.Builder
	colour bool
	framed bool
	tall   bool // some cell has several lines
	shown  []int
	widths []int
	right  []bool
}

func (d *drawing) line() string {
	var edge strings.Builder
	for _, w := range d.widths {
		edge.WriteString("+" + strings.Repeat("-", w+2))
	}
	return edge.String() + "+"
}

func (d *drawing) edge() {
	if d.framed {
		d.out.WriteString(d.line() + "\n")
	}
}

func (d *drawing) title(title string) {
	switch {
	case !d.framed && title != "":
		d.out.WriteString(paint(title, Strong, d.colour) + "\n")
	case d.framed && title == "":
		d.edge()
	case d.framed:
		edge := d.line()
		words := []rune(" " + title + " ")
		words = words[:min(len(words), max(len(edge)-2, 0))]
		d.out.WriteString("+" + paint(string(words), Strong, d.colour) + edge[1+len(words):] + "\n")
	}
}

func (d *drawing) row(row []Cell) {
	height := 1
	lines := make([][]string, len(d.shown))
	for i, column := range d.shown {
		lines[i] = strings.Split(row[column].Text, "\n")
		height = max(height, len(lines[i]))
	}
	for n := range height {
		var line strings.Builder
		for i, column := range d.shown {
			content := ""
			if n < len(lines[i]) {
				content = lines[i][n]
			}
			fill := strings.Repeat(" ", d.widths[i]-utf8.RuneCountInString(content))
			content = paint(content, row[column].Style, d.colour)
			if d.right[i] {
				content = fill + content
			} else {
				content += fill
			}
			switch {
			case d.framed:
				line.WriteString("| " + content + " ")
			case i > 0:
				line.WriteString("  " + content)
			default:
				line.WriteString(content)
			}
		}
		if d.framed {
			line.WriteString("|")
		}
		d.out.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}
