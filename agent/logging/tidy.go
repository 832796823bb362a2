package logging

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/printable"
)

const (
	// longLine is from where on a line is cut: what it quotes came from elsewhere.
	longLine = 16 << 10
	// longList is how many elements of a list a cut line has.
	longList = 1000
)

// tidy makes lines of JSON fit to be shown: nothing in them is acted on by a terminal,
// and values that are too long are cut.
type tidy struct{ out io.Writer }

// Write implements io.Writer; it gets one line at a time.
func (t tidy) Write(line []byte) (int, error) {
	n := len(line)
	if n > longLine {
		line = shorten(line)
	}
	if _, err := t.out.Write(printable.JSON(line)); err != nil {
		return 0, err
	}
	return n, nil
}

// shorten cuts the values of a line. One that cannot be read is only cut.
func shorten(line []byte) []byte {
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		fields = map[string]any{zerolog.MessageFieldName: string(line)}
	}
	short, err := json.Marshal(shortened(fields))
	if err != nil { // what was read can be written
		return nil
	}
	return append(short, '\n')
}

func shortened(value any) any {
	switch v := value.(type) {
	case string:
		return printable.Cut(v, printable.MaxText)
	case []any:
		more := len(v) - longList
		v = v[:min(len(v), longList)]
		for i := range v {
			v[i] = shortened(v[i])
		}
		if more > 0 {
			v = append(v, fmt.Sprintf("... (%d more)", more))
		}
		return v
	case map[string]any:
		for key := range v {
			v[key] = shortened(v[key])
		}
	}
	return value
}

// shown turns a formatter of zerolog's console into one whose values are printable.
func shown(format zerolog.Formatter) zerolog.Formatter {
	return func(value any) string { return printable.Line(format(value)) }
}

// text is a part of a line as it stands: texts, numbers, and JSON of lists and maps.
func text(value any) string {
	if value == nil {
		return ""
	}
	return fmt.Sprintf("%s", value)
}
