package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// confSetting is one line `name = value` of a configuration file.
type confSetting struct {
	Name  string // in lower case
	Value string // without quotes
	File  string
	Line  int
}

func (s confSetting) where() string { return fmt.Sprintf("%s line %d", s.File, s.Line) }

// confDepth is how deep PostgreSQL follows includes.
const confDepth = 10

// readConf reads a configuration file and all that it includes, in PostgreSQL's own
// grammar (its documentation, section 20.1.2, and src/backend/utils/misc/guc-file.l).
// A line that PostgreSQL would not take is passed over: it says so itself. A file
// that is not there has no lines.
func (p *installation) readConf(file string) ([]confSetting, error) { return p.readConfAt(file, 0) }

func (p *installation) readConfAt(file string, depth int) ([]confSetting, error) {
	if depth > confDepth {
		return nil, fmt.Errorf("%s: includes are nested too deeply", file)
	}
	content, err := p.disk.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	var all []confSetting
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		name, value, ok := confLine(line)
		if !ok {
			continue
		}
		files := []string{value}
		switch name {
		case "include", "include_if_exists", "include_dir":
			if !filepath.IsAbs(value) {
				files[0] = filepath.Join(filepath.Dir(file), value)
			}
			if name == "include_dir" {
				if files, err = p.confDir(files[0]); err != nil {
					return nil, err
				}
			}
			for _, included := range files {
				more, err := p.readConfAt(included, depth+1)
				if err != nil {
					return nil, err
				}
				all = append(all, more...)
			}
		default:
			all = append(all, confSetting{Name: name, Value: value, File: file, Line: number})
		}
	}
	return all, nil
}

// confDir lists the files that PostgreSQL reads of a directory, in its order.
func (p *installation) confDir(dir string) ([]string, error) {
	entries, err := p.disk.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration directory: %w", err)
	}
	var files []string
	for _, e := range entries {
		if name := e.Name(); !e.IsDir() && !strings.HasPrefix(name, ".") && strings.HasSuffix(name, ".conf") {
			files = append(files, filepath.Join(dir, name))
		}
	}
	return files, nil
}

// confLine takes one line apart: a name, blanks or an equals sign or both, and a
// value, which is quoted or has no blanks. Nothing but a comment may follow.
func confLine(line string) (name, value string, ok bool) {
	line = strings.TrimSuffix(line, "\n")
	rest := strings.TrimLeft(line, confBlanks)
	n := 0
	for n < len(rest) && (confLetter(rest[n]) || n > 0 && (confDigit(rest[n]) || rest[n] == '.')) {
		n++
	}
	name, rest = strings.ToLower(rest[:n]), strings.TrimLeft(rest[n:], confBlanks)
	if name == "" {
		return "", "", false
	}
	if after, found := strings.CutPrefix(rest, "="); found {
		rest = strings.TrimLeft(after, confBlanks)
	}
	if strings.HasPrefix(rest, "'") {
		value, rest, ok = confQuoted(rest)
	} else {
		end := strings.IndexAny(rest, confBlanks+"#'=")
		if end < 0 {
			end = len(rest)
		}
		value, rest, ok = rest[:end], rest[end:], end > 0
	}
	rest = strings.TrimLeft(rest, confBlanks)
	return name, value, ok && (rest == "" || rest[0] == '#')
}

const confBlanks = " \t\r"

func confLetter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}

func confDigit(c byte) bool { return c >= '0' && c <= '9' || c == '$' }

// confQuoted reads a value in single quotes: two of them stand for one, and
// backslashes are those of C.
func confQuoted(text string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\'' && strings.HasPrefix(text[i+1:], "'"):
			b.WriteByte('\'')
			i++
		case c == '\'':
			return b.String(), text[i+1:], true
		case c == '\\' && i+1 < len(text):
			i++
			if n := strings.IndexByte("bfnrt", text[i]); n >= 0 {
				b.WriteByte("\b\f\n\r\t"[n])
				continue
			}
			octal, digits := 0, 0
			for digits < 3 && i+digits < len(text) && text[i+digits] >= '0' && text[i+digits] <= '7' {
				octal = octal<<3 + int(text[i+digits]-'0')
				digits++
			}
			if digits > 0 {
				b.WriteByte(byte(octal))
				i += digits - 1
				continue
			}
			b.WriteByte(text[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// lastOf is the line that counts for a parameter: the last one.
func lastOf(settings []confSetting, name string) (confSetting, bool) {
	for _, s := range slices.Backward(settings) {
		if s.Name == name {
			return s, true
		}
	}
	return confSetting{}, false
}
