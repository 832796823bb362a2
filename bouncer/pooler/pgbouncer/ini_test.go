package pgbouncer

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

func TestParseFile(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want string // databases and settings, or the error
	}{
		"empty":              {"", "[] map[]"},
		"usual":              {"[databases]\na = host=h port=1 dbname=x\n[pgbouncer]\npool_mode = session ; no comment\n", "[a map[dbname:x host:h port:1]] map[pool_mode:session ; no comment]"},
		"comments, blanks":   {"; c\n# d\n\n  [databases]  \r\n\ta=host=h\r\n", "[a map[host:h]] map[]"},
		"quoted name":        {"[databases]\n'a \"b' = host=h", `[a "b map[host:h]] map[]`},
		"quoted value":       {"[databases]\na = password='it''s a = b' host=h", "[a map[host:h password:it's a = b]] map[]"},
		"fallback":           {"[databases]\n* = host=h", "[* map[host:h]] map[]"},
		"empty connection":   {"[databases]\na =", "[a map[]] map[]"},
		"empty setting":      {"[pgbouncer]\nunix_socket_dir =", "[] map[unix_socket_dir:]"},
		"other sections":     {"[users]\nu = pool_mode=session\n[peers]\n1 = host=h", "[] map[]"},
		"no section":         {"a = b", "line 1: a setting before the first [section]"},
		"broken section":     {"[databases", "line 1: a section is [name] on a line of its own"},
		"no equals":          {"[pgbouncer]\npool_mode session", `line 2: "pool_mode" must be followed by = and a value`},
		"unfinished name":    {"[databases]\n'a = host=h", "line 2: the quoted name does not end"},
		"unfinished value":   {"[databases]\na = host='h", `line 2: database "a": "host": the quoted value does not end`},
		"junk after quote":   {"[databases]\na = host='h'x", `line 2: database "a": "host": nothing may follow the closing quote directly`},
		"not key=value":      {"[databases]\na = host", `line 2: database "a": "host" must be followed by = and a value`},
		"password not shown": {"[databases]\na = password=x \"secret\"", `line 2: database "a": the connection string must be key=value pairs`},
		"key twice":          {"[databases]\na = host=h host=i", `line 2: database "a": "host" is set twice`},
		"database twice":     {"[databases]\na = host=h\na = host=i", `line 3: "a" is set twice, first on line 2`},
		"setting twice":      {"[pgbouncer]\na = 1\n[users]\n[pgbouncer]\na = 2", `line 5: "a" is set twice, first on line 2`},
		"control character":  {"[databases]\na = host=h\x00", `line 2: control character '\x00'`},
		"not UTF-8":          {"[databases]\n\xff", "line 1: the file is not UTF-8"},
		"include":            {"%include x", "line 1: %include is not allowed: what it brings in cannot be checked before RELOAD"},
		"odd name":           {"[databases]\nä = host=h", "line 2: a name must consist of letters, digits, _ - and . or, for a database, stand in single quotes (PgBouncer 1.25)"},
		"double quotes":      {"[databases]\n\"a\" = host=h", "line 2: a name must consist of letters, digits, _ - and . or, for a database, stand in single quotes (PgBouncer 1.25)"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := ParseFile([]byte(c.text))
			var got string
			if err != nil {
				var syntax *SyntaxError
				if !errors.As(err, &syntax) {
					t.Fatalf("%T", err)
				}
				got = err.Error()
			} else {
				var entries []string
				for _, e := range f.Databases {
					entries = append(entries, fmt.Sprint(e.Name, " ", e.Params()))
				}
				got = fmt.Sprint(entries, " ", f.Settings)
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:6432":               "127.0.0.1:6432",
		"[::1]:7000":                   "[::1]:7000",
		"::1":                          "[::1]:6432",
		"pooler":                       "pooler:6432",
		"/run/postgresql:7000":         "/run/postgresql:7000",
		"/run/postgresql":              "/run/postgresql:6432",
		"/run/pgbouncer/.s.PGSQL.7001": "/run/pgbouncer:7001",
		"":                             "error",
		":6432":                        "error",
		"host:0":                       "error",
		"host:x":                       "error",
		"/dir:70000":                   "error",
	} {
		a, err := ParseAddress(text)
		got := a.String()
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q gives %s (%v), want %s", text, got, err, want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	v, err := ParseVersion("PgBouncer 1.24.1")
	if err != nil || v != (Version{1, 24, 1}) || !v.AtLeast(1, 24) || !v.AtLeast(1, 18) || v.AtLeast(1, 25) || v.AtLeast(2, 0) {
		t.Fatalf("%v %v", v, err)
	}
	if _, err := ParseVersion("nothing"); err == nil {
		t.Fatal("no error")
	}
}

// FuzzParseFile: no text makes the parser fail otherwise than by a SyntaxError,
// and what it understood is understood again when it is written anew.
func FuzzParseFile(f *testing.F) {
	f.Add("[databases]\na = host=h port=1 dbname='x y'\n'b \"c' = host=h\n[pgbouncer]\npool_mode = session\n")
	f.Add("[users]\nu = x=1\n%include y\n")
	f.Add("[databases]\na = host='''\n")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := ParseFile([]byte(text))
		if err != nil {
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || syntax.Line < 1 {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		var again strings.Builder
		again.WriteString("[databases]\n")
		for _, e := range file.Databases {
			name := "*"
			if e.Name != "*" {
				if name, err = QuoteName(e.Name, Version{1, 25}); err != nil {
					t.Fatalf("%q: %v", e.Name, err)
				}
			}
			again.WriteString(name + " =")
			for key, value := range e.Params() {
				again.WriteString(" " + key + "=" + QuoteValue(value))
			}
			again.WriteString("\n")
		}
		second, err := ParseFile([]byte(again.String()))
		if err != nil {
			t.Fatalf("%v\n%s", err, again.String())
		}
		for i, e := range second.Databases {
			if e.Name != file.Databases[i].Name || !maps.Equal(e.Params(), file.Databases[i].Params()) {
				t.Fatalf("%+v became %+v", file.Databases[i], e)
			}
		}
	})
}

// FuzzUserlist: names and passwords survive being written and read.
func FuzzUserlist(f *testing.F) {
	f.Add(`a"b`, `"`)
	f.Fuzz(func(t *testing.T, user, secret string) {
		if CheckUser(user, secret) != nil {
			return
		}
		u, errU := QuoteUserlist(user)
		s, errS := QuoteUserlist(secret)
		if errU != nil || errS != nil {
			t.Fatal(errU, errS)
		}
		if got, err := ParseUserlist([]byte(u + " " + s)); err != nil || len(got) != 1 || got[user] != secret {
			t.Fatalf("%q %q became %v, %v", user, secret, got, err)
		}
	})
}

// A parser of one file after the other says what one says that knows nothing yet, and looks at
// a database once.
func TestParserKeepsLines(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 13))
	looks := map[string]int{}
	p := Parser{Check: func(e Entry, params map[string]string) error {
		looks[params["host"]]++
		if params["bad"] != "" {
			return fmt.Errorf("%q: bad", e.Name)
		}
		return nil
	}}
	read := func(text string) {
		t.Helper()
		file, wrong, err := p.Parse([]byte(text))
		want, wantErr := ParseFile([]byte(text))
		if fmt.Sprint(err) != fmt.Sprint(wantErr) || !reflect.DeepEqual(file, want) {
			t.Fatalf("%v %+v, want %v %+v, of\n%s", err, file, wantErr, want, text)
		}
		if n := strings.Count(text, "bad="); err == nil && len(wrong) != n {
			t.Fatalf("%v, want %d, of\n%s", wrong, n, text)
		}
	}
	read("[databases]\na = host=h1 bad=1\nb = host=h2\n")
	read("; one line more\n[databases]\na = host=h1 bad=1\nb = host=h2\n")
	read("[databases]\na = host=h1 bad=1\nb = host=h3\n")
	read("[databases]\nb = host=h3\n[pgbouncer]\na = host=h1\n")
	if want := map[string]int{"h1": 1, "h2": 1, "h3": 1}; !maps.Equal(looks, want) {
		t.Errorf("looked at %v", looks)
	}
	pieces := []string{
		"[databases]", "[pgbouncer]", "[users]", "a = host=h", "a = host=h port=5", "'a' = host=h bad=2", "b = host=h", " b = host=h", "b = host='x", "; c", "", "%include x", "x = 1", "x = 1\r", "* = host=h",
	}
	for range 5000 {
		lines := []string{"[databases]"}
		for range random.IntN(6) {
			lines = append(lines, pieces[random.IntN(len(pieces))])
		}
		end := []string{"", "\n"}[random.IntN(2)]
		read(strings.Join(lines, "\n") + end)
		for range random.IntN(4) { // a line changes
			lines[random.IntN(len(lines))] = pieces[random.IntN(len(pieces))]
			read(strings.Join(lines, "\n") + end)
		}
	}
}

// Of a file in which databases lead elsewhere the others are not looked at, and the next file is compared with
// this one.
func TestParserLooksAtChangedLines(t *testing.T) {
	looks := 0
	p := Parser{Check: func(Entry, map[string]string) error { looks++; return nil }}
	const databases = 500
	file := func(port func(i int) int, after string) []byte {
		text := []byte("; first\n[pgbouncer]\nlisten_port = 6432\n[databases]\n")
		for i := range databases {
			text = fmt.Appendf(text, "; shard %d: %d\ns%d = host=10.0.0.%d port=%d\n", i, port(i), i, i%250, port(i))
		}
		return append(text, after...)
	}
	read := func(what string, text []byte, changed bool, want int) {
		t.Helper()
		looks = 0
		runs := p.runs
		f, wrong, err := p.Parse(text)
		if whole := p.runs > runs; whole == changed {
			t.Errorf("%s: the whole file was read: %v", what, whole)
		}
		whole, wantErr := ParseFile(text)
		if err != nil || wantErr != nil || len(wrong) > 0 || !reflect.DeepEqual(f, whole) {
			t.Fatalf("%s: %v %v %v", what, err, wantErr, wrong)
		}
		if looks != want {
			t.Errorf("%s: %d databases were looked at, want %d", what, looks, want)
		}
	}
	same := func(int) int { return 5432 }
	read("the first", file(same, "[users]\n"), false, databases)
	read("the same", file(same, "[users]\n"), true, 0)
	for i, name := range map[int]string{0: "the first moves", 250: "one moves", databases - 1: "the last moves"} {
		moved := func(n int) int {
			if n == i {
				return 5433
			}
			return 5432
		}
		read(name, file(moved, "[users]\n"), true, 1)
		read(name+" back", file(same, "[users]\n"), true, 1)
	}
	read("to a longer port", file(func(i int) int { return 5432 + i%2*10000 }, "[users]\n"), true, databases/2)
	read("all", file(func(i int) int { return 6000 + i }, "[users]\n"), true, databases)
	read("a line more", file(func(i int) int { return 6000 + i }, "; more\n[users]\n"), false, 0)
	read("one after that", file(func(i int) int { return 6000 + i + i/(databases-1) }, "; more\n[users]\n"), true, 1)
	for _, bad := range []string{"s3 = host=a", "[x]", "s1 = host", "%include x", "\x00", "\xff"} {
		text := bytes.Replace(file(same, ""), []byte("; shard 7: 5432"), []byte(bad), 1)
		_, _, err := p.Parse(text)
		if _, wantErr := ParseFile(text); fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Errorf("%q: %v, want %v", bad, err, wantErr)
		}
	}
}
