package pgbouncer

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// File is a parsed pgbouncer.ini.
type File struct {
	// Databases is the section [databases], in the order of the file.
	Databases []Entry
	// Settings is the section [pgbouncer].
	Settings map[string]string
	// Other names the further sections ([users], [peers]) and their keys.
	Other map[string]map[string]string
	// byName are the places of Databases; a name stands there once.
	byName map[string]int
}

// Entry is one database and its connection string.
type Entry struct {
	Name string
	Line int

	// params is the connection string as it stands: maps of thousands would take more room than
	// all else that is known of them.
	params, host, user string
	port               int
}

func newEntry(name, connString string, params map[string]string) Entry {
	e := Entry{Name: name, params: connString, host: params["host"], user: params["user"], port: 5432}
	if port, err := strconv.Atoi(params["port"]); err == nil {
		e.port = port
	}
	return e
}

// Params are all parameters of the connection string, in a map of the caller's own.
func (e Entry) Params() map[string]string {
	params, _ := parseConnString(e.params) // it was read once
	return params
}

// User is the user parameter, empty: there is none.
func (e Entry) User() string { return e.user }

// Host is the host parameter.
func (e Entry) Host() string { return e.host }

// Port is the port parameter; PgBouncer's default is 5432.
func (e Entry) Port() int { return e.port }

// Database returns the entry of that name.
func (f File) Database(name string) (Entry, bool) {
	if i, found := f.byName[name]; found {
		return f.Databases[i], true
	}
	return Entry{}, false
}

// Find is the place of the database of that name in Databases. After says where it is looked for first:
// whoever looks for thousands mostly does so in the order of the file. -1: there is none.
func (f File) Find(name string, after int) int {
	if next := after + 1; next < len(f.Databases) && f.Databases[next].Name == name {
		return next
	}
	if i, found := f.byName[name]; found {
		return i
	}
	return -1
}

// SyntaxError says where a file cannot be understood.
type SyntaxError struct {
	Line int
	Rule string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Rule) }

// ParseFile reads a pgbouncer.ini, more strictly than PgBouncer does: what it
// accepts means the same to every version of PgBouncer. %include is refused,
// because what an included file holds could not be checked before RELOAD.
func ParseFile(text []byte) (File, error) {
	file, _, err := new(Parser).Parse(text)
	return file, err
}

// Parser reads one pgbouncer.ini after the other. Of a thousand databases few have changed:
// what it has made of a line is kept as long as the next file has the line, too.
type Parser struct {
	// Check, when set, looks at each database and its parameters, once as long as its line stands.
	Check func(e Entry, params map[string]string) error

	lines map[string]*databaseLine
	runs  int
	// last is what was made of text. Its databases stand from begin to end of it; end is 0 where
	// they stand at several places, or Check has found something.
	last       File
	text       []byte
	begin, end int
}

// databaseLine is what was made of one line, and in which run it was there last.
type databaseLine struct {
	entry   Entry
	problem error
	run     int
}

// Parse reads a file as ParseFile does. wrong is what Check says of its databases.
func (p *Parser) Parse(text []byte) (f File, wrong []error, err error) {
	if f, done := p.parseChanged(text); done {
		return f, nil, nil
	}
	if !utf8.Valid(text) {
		return File{}, nil, &SyntaxError{1, "the file is not UTF-8"}
	}
	f = File{Settings: map[string]string{}, Other: map[string]map[string]string{}, Databases: make([]Entry, 0, len(p.last.Databases))}
	if p.lines == nil {
		p.lines = map[string]*databaseLine{}
	}
	p.runs++
	section, n, first := "", 0, map[[2]string]int{}
	begin, end, at, next := -1, len(text), 0, 0 // begin and end of the databases, of the line
	for part := range bytes.SplitSeq(text, []byte("\n")) {
		n++
		at, next = next, next+len(part)+1
		if d := p.lines[string(part)]; d != nil && section == "databases" {
			d.run, wrong = p.runs, f.add(d, n, wrong)
			continue
		}
		trimmed, err := trimLine(part)
		switch {
		case err != nil:
			return File{}, nil, &SyntaxError{n, err.Error()}
		case len(trimmed) == 0 || trimmed[0] == ';' || trimmed[0] == '#':
			continue
		case trimmed[0] == '[':
			if section, err = f.begin(string(trimmed)); err != nil {
				return File{}, nil, &SyntaxError{n, err.Error()}
			}
			switch {
			case section != "databases":
				end = min(end, max(at, begin))
			case begin >= 0:
				end = 0
			default:
				begin, end = next, len(text)
			}
			continue
		case section == "":
			return File{}, nil, &SyntaxError{n, "a setting before the first [section]"}
		}
		line := string(part)
		key, value, err := splitSetting(within(line, trimmed), section == "databases")
		if err != nil {
			return File{}, nil, &SyntaxError{n, err.Error()}
		}
		if section == "databases" {
			d, err := p.read(key, value)
			if err != nil {
				return File{}, nil, &SyntaxError{n, err.Error()}
			}
			p.lines[line], wrong = d, f.add(d, n, wrong)
			continue
		}
		place := [2]string{section, key}
		if first[place] > 0 {
			return File{}, nil, setTwice(key, first[place], n)
		}
		first[place] = n
		if section == "pgbouncer" {
			f.Settings[key] = value
		} else {
			f.Other[section][key] = value
		}
	}
	if err := f.index(p.last); err != nil {
		return File{}, nil, err
	}
	if begin < 0 || len(wrong) > 0 {
		end = 0
	}
	p.last, p.text, p.begin, p.end = f, text, begin, end
	maps.DeleteFunc(p.lines, func(_ string, d *databaseLine) bool { return d.run != p.runs })
	return f, wrong, nil
}

// parseChanged reads a file that has the same databases as the last one at the same lines, some of which lead
// elsewhere, and is the same otherwise: it looks at the lines from the first to the last of these. It
// reports false, and has changed nothing, where that does not do.
func (p *Parser) parseChanged(text []byte) (f File, done bool) {
	if p.end == 0 || bytes.Equal(text, p.text) {
		return p.last, p.end > 0
	}
	from := samePrefix(p.text, text)
	from = bytes.LastIndexByte(text[:from], '\n') + 1
	same := sameSuffix(p.text[from:], text[from:])
	if i := bytes.IndexByte(text[len(text)-same:], '\n'); i >= 0 {
		same -= i + 1
	} else {
		same = 0
	}
	before, now := p.text[from:len(p.text)-same], text[from:len(text)-same]
	if from < p.begin || len(p.text)-same > p.end || !utf8.Valid(now) {
		return File{}, false
	}
	f = p.last
	f.Databases = slices.Clone(f.Databases)
	n := bytes.Count(text[:from], []byte("\n"))
	i := sort.Search(len(f.Databases), func(i int) bool { return f.Databases[i].Line > n })
	type changed struct {
		before, now string
		line        *databaseLine
	}
	var all []changed
	for len(before) > 0 || len(now) > 0 {
		if len(before) == 0 || len(now) == 0 {
			return File{}, false
		}
		var old, line []byte
		old, before, _ = bytes.Cut(before, []byte("\n"))
		line, now, _ = bytes.Cut(now, []byte("\n"))
		n++
		was := i < len(f.Databases) && f.Databases[i].Line == n
		name := ""
		if was {
			name = f.Databases[i].Name
		}
		if !bytes.Equal(old, line) {
			c := changed{before: string(old), now: string(line)}
			if c.line, done = p.replace(c.now, was, name); !done {
				return File{}, false
			}
			if was {
				f.Databases[i] = c.line.entry
				f.Databases[i].Line = n
				all = append(all, c)
			}
		}
		if was {
			i++
		}
	}
	for _, c := range all {
		delete(p.lines, c.before) // a database stands there once
		p.lines[c.now] = c.line
	}
	p.end += len(text) - len(p.text)
	p.last, p.text = f, text
	return f, true
}

// replace makes a database of a line that takes the place of another one, where that was one of this name (was)
// or neither is any. It reports false where that does not do.
func (p *Parser) replace(line string, was bool, name string) (d *databaseLine, done bool) {
	trimmed, err := trimLine([]byte(line))
	switch {
	case err != nil:
		return nil, false
	case len(trimmed) == 0 || trimmed[0] == ';' || trimmed[0] == '#':
		return nil, !was
	case trimmed[0] == '[' || !was:
		return nil, false
	}
	key, value, err := splitSetting(within(line, trimmed), true)
	if err != nil || key != name {
		return nil, false
	}
	d, err = p.read(key, value)
	return d, err == nil && d.problem == nil
}

// within is a part of a line, in the same memory.
func within(line string, part []byte) string {
	return line[strings.Index(line, string(part)):][:len(part)]
}

// comparedAtOnce is how much of two texts is compared at once.
const comparedAtOnce = 512

// samePrefix is how many bytes two texts have in common at their beginnings, sameSuffix at their ends.
func samePrefix(a, b []byte) (n int) {
	most := min(len(a), len(b))
	for n+comparedAtOnce <= most && bytes.Equal(a[n:n+comparedAtOnce], b[n:n+comparedAtOnce]) {
		n += comparedAtOnce
	}
	for n < most && a[n] == b[n] {
		n++
	}
	return n
}

func sameSuffix(a, b []byte) (n int) {
	most := min(len(a), len(b))
	for n+comparedAtOnce <= most && bytes.Equal(a[len(a)-n-comparedAtOnce:len(a)-n], b[len(b)-n-comparedAtOnce:len(b)-n]) {
		n += comparedAtOnce
	}
	for n < most && a[len(a)-n-1] == b[len(b)-n-1] {
		n++
	}
	return n
}

// read makes a database of its connection string.
func (p *Parser) read(name, connString string) (*databaseLine, error) {
	params, err := parseConnString(connString)
	if err != nil {
		return nil, fmt.Errorf("database %q: %w", name, err)
	}
	d := &databaseLine{entry: newEntry(name, connString, params), run: p.runs}
	if p.Check != nil {
		d.problem = p.Check(d.entry, params)
	}
	return d, nil
}

// trimLine is a line without what surrounds its setting.
func trimLine(line []byte) ([]byte, error) {
	line = bytes.TrimSuffix(line, []byte("\r"))
	if at := bytes.IndexFunc(line, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }); at >= 0 {
		return nil, fmt.Errorf("control character %q", line[at])
	}
	line = bytes.Trim(line, " \t")
	if bytes.HasPrefix(line, []byte("%")) {
		return nil, errors.New("%include is not allowed: what it brings in cannot be checked before RELOAD")
	}
	return line, nil
}

// begin begins a section.
func (f *File) begin(line string) (section string, err error) {
	name, rest, found := strings.Cut(line[1:], "]")
	if !found || strings.TrimSpace(rest) != "" || name == "" {
		return "", errors.New("a section is [name] on a line of its own")
	}
	if name != "databases" && name != "pgbouncer" && f.Other[name] == nil {
		f.Other[name] = map[string]string{}
	}
	return name, nil
}

// add takes a database in that stands on a line.
func (f *File) add(d *databaseLine, line int, wrong []error) []error {
	entry := d.entry
	entry.Line = line
	f.Databases = append(f.Databases, entry)
	if d.problem != nil {
		wrong = append(wrong, fmt.Errorf("line %d: database %w", line, d.problem))
	}
	return wrong
}

// index finds the databases by their names, as in the file before if it has the same ones.
func (f *File) index(before File) error {
	if f.byName = before.byName; f.byName != nil && slices.EqualFunc(f.Databases, before.Databases, func(a, b Entry) bool { return a.Name == b.Name }) {
		return nil
	}
	f.byName = make(map[string]int, len(f.Databases))
	for i, e := range f.Databases {
		if first, twice := f.byName[e.Name]; twice {
			return setTwice(e.Name, f.Databases[first].Line, e.Line)
		}
		f.byName[e.Name] = i
	}
	return nil
}

func setTwice(key string, first, line int) error {
	return &SyntaxError{line, fmt.Sprintf("%q is set twice, first on line %d", key, first)}
}

// splitSetting takes "key = value" apart. Names of databases may stand in single
// quotes, with none within (QuotedNames).
func splitSetting(line string, quotable bool) (key, value string, err error) {
	var rest string
	if quotable && line[0] == '\'' {
		var ends bool
		if key, rest, ends = strings.Cut(line[1:], "'"); !ends {
			return "", "", fmt.Errorf("the quoted name does not end")
		}
		if key == "*" {
			return "", "", fmt.Errorf("a database of the name * cannot be told from the fallback")
		}
	} else {
		end := strings.IndexFunc(line, func(r rune) bool { return !isPlainRune(r) && r != '*' })
		if end < 0 {
			end = len(line)
		}
		key, rest = line[:end], line[end:]
	}
	if key == "" {
		return "", "", fmt.Errorf("a name must consist of letters, digits, _ - and . or, for a database, stand in single quotes (PgBouncer 1.25)")
	}
	rest = strings.TrimLeft(rest, " \t")
	value, found := strings.CutPrefix(rest, "=")
	if !found {
		return "", "", fmt.Errorf("%q must be followed by = and a value", key)
	}
	return key, strings.Trim(value, " \t"), nil
}

func isPlainRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' || r == '.'
}

// parseConnString reads "key=value key='quoted value'", quotes doubled within.
func parseConnString(s string) (map[string]string, error) {
	params := map[string]string{}
	for s = strings.TrimLeft(s, " \t"); s != ""; s = strings.TrimLeft(s, " \t") {
		end := strings.IndexFunc(s, func(r rune) bool { return !isPlainRune(r) })
		if end < 0 {
			end = len(s)
		}
		if end == 0 {
			// The text itself may be a password.
			return nil, fmt.Errorf("the connection string must be key=value pairs")
		}
		key := s[:end]
		s = strings.TrimLeft(s[end:], " \t")
		if s == "" || s[0] != '=' {
			return nil, fmt.Errorf("%q must be followed by = and a value", key)
		}
		s = strings.TrimLeft(s[1:], " \t")
		var value string
		if strings.HasPrefix(s, "'") {
			var err error
			if value, s, err = cutQuoted(s); err != nil {
				return nil, fmt.Errorf("%q: %w", key, err)
			}
			if s != "" && s[0] != ' ' && s[0] != '\t' {
				return nil, fmt.Errorf("%q: nothing may follow the closing quote directly", key)
			}
		} else if end := strings.IndexAny(s, " \t"); end >= 0 {
			value, s = s[:end], s[end:]
		} else {
			value, s = s, ""
		}
		if _, twice := params[key]; twice {
			return nil, fmt.Errorf("%q is set twice", key)
		}
		params[key] = value
	}
	return params, nil
}

// cutQuoted reads a value in single quotes and returns what follows it.
func cutQuoted(s string) (value, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] == '\'' {
			if i+1 < len(s) && s[i+1] == '\'' {
				i++
			} else {
				return b.String(), s[i+1:], nil
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", fmt.Errorf("the quoted value does not end")
}

// QuotedNames reports whether PgBouncer of version v reads names of databases in single
// quotes. Earlier ones refuse the whole file for any name in quotes.
func QuotedNames(v Version) bool { return v.AtLeast(1, 25) }

// IsPlainName reports whether every version of PgBouncer reads the name of a database
// or user as it stands.
func IsPlainName(name string) bool {
	return name != "" && strings.IndexFunc(name, func(r rune) bool { return !isPlainRune(r) }) < 0
}

// CheckName tells why the name of a database or user cannot be written to a
// pgbouncer.ini for PgBouncer of version v (zero: unknown, the oldest).
func CheckName(name string, v Version) error {
	switch {
	case IsPlainName(name):
		return nil
	case name == "" || strings.ContainsRune(name, '\'') || strings.IndexFunc(name, unicode.IsControl) >= 0:
		return fmt.Errorf("%q cannot be written to pgbouncer.ini; use letters, digits, _ . and -", name)
	case !QuotedNames(v):
		return fmt.Errorf("%q cannot be written to pgbouncer.ini before PgBouncer 1.25; use letters, digits, _ . and -", name)
	}
	return nil
}

// QuoteName writes the name of a database or user for pgbouncer.ini of a PgBouncer of
// version v.
func QuoteName(name string, v Version) (string, error) {
	if err := CheckName(name, v); err != nil {
		return "", err
	}
	if IsPlainName(name) {
		return name, nil
	}
	return "'" + name + "'", nil
}

// QuoteValue writes a value of a connection string.
func QuoteValue(value string) string {
	if value != "" && !strings.ContainsAny(value, " \t'") {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", "''") + "'"
}
