package operator

import (
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// leastProse is how narrow a column of prose may become.
	leastProse = 24
	// foldIndent stands before what is folded below a row.
	foldIndent = "    "
	// columnGap is between two columns without a frame.
	columnGap = 2
)

// width is how wide a column is: its name, or its widest line.
func (t Table) width(column int) int {
	width := utf8.RuneCountInString(t.Columns[column].Name)
	for _, row := range t.Rows {
		for line := range strings.SplitSeq(row[column].Text, "\n") {
			width = max(width, utf8.RuneCountInString(line))
		}
	}
	return width
}

// fit makes a table without a frame as narrow as the terminal: prose in its last
// column is broken between words; where that is not enough, the columns that have no
// room are folded, their values stand below their row, each with its name.
func (t Table) fit() (fitting Table, folded []int) {
	if t.Framed || t.Width <= 0 {
		return t, nil
	}
	var shown []int
	total := -columnGap
	for i, c := range t.Columns {
		if !c.Programs {
			shown = append(shown, i)
			total += t.width(i) + columnGap
		}
	}
	if total <= t.Width || len(shown) == 0 {
		return t, nil
	}
	last := shown[len(shown)-1]
	if room := t.Width - (total - t.width(last)); t.Columns[last].Prose && room >= leastProse {
		t.Rows = slices.Clone(t.Rows)
		for i, row := range t.Rows {
			row = slices.Clone(row)
			row[last].Text = wrapped(row[last].Text, room)
			t.Rows[i] = row
		}
		return t, nil
	}
	room := t.Width
	for n, i := range shown {
		if room -= t.width(i); n > 0 && (room < 0 || t.Columns[i].Prose) {
			return t, shown[n:]
		}
		room -= columnGap
	}
	return t, nil
}

// below writes what was folded of a row.
func (d *drawing) below(t Table, row []Cell, folded []int) {
	room := t.Width - len(foldIndent)
	var values []string
	prose := func(lines string) {
		for line := range strings.SplitSeq(lines, "\n") {
			d.out.WriteString(foldIndent + line + "\n")
		}
	}
	for _, i := range folded {
		switch c := t.Columns[i]; {
		case row[i].Text == "":
		case c.Prose:
			if len(values) > 0 {
				prose(wrapped(strings.Join(values, ", "), room))
				values = nil
			}
			prose(wrapped(c.Name+": "+row[i].Text, room))
		default:
			values = append(values, c.Name+" "+row[i].Text)
		}
	}
	if len(values) > 0 {
		prose(wrapped(strings.Join(values, ", "), room))
	}
}

// wrapped breaks lines between words where they are longer than width; 0: nowhere.
// Blanks at a line's beginning stay, also before what is broken off.
func wrapped(text string, width int) string {
	if width <= 0 {
		return text
	}
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		for utf8.RuneCountInString(line) > width {
			runes := []rune(line)
			cut := -1
			for i := width; i > utf8.RuneCountInString(indent); i-- {
				if runes[i] == ' ' {
					cut = i
					break
				}
			}
			if cut < 0 { // a word longer than the line
				next := strings.IndexByte(string(runes[width:]), ' ')
				if next < 0 {
					break
				}
				cut = width + utf8.RuneCountInString(string(runes[width:])[:next])
			}
			out = append(out, strings.TrimRight(string(runes[:cut]), " "))
			line = indent + strings.TrimLeft(string(runes[cut:]), " ")
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}
