package cluster

import (
	"net/url"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/printable"
)

// FuzzNames: a name that passes means nothing but itself in a key, a path, a URL, a file
// of lines and a command line; a host or URL that passes is one.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"", "a", "..", "--x", "a/b", "a\x1b", "::1", "fe80::1%eth0", "http://a:1/patroni", "http://[::1]:8008", "müller", "a b", "\xff", "1.2.3.4", "x:y+w", "x@y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for what, check := range map[string]func(string) error{"name": CheckName, "namespace": CheckNamespace, "host": CheckHost, "api_url": CheckAPIURL} {
			err := check(text)
			if err != nil {
				if !printable.Printable(err.Error()) || len(err.Error()) > 200 {
					t.Errorf("%s %q: %q", what, text, err)
				}
				continue
			}
			if !printable.Printable(text) || strings.ContainsAny(text, " '\"\\`$;|&<>(){}*?!#\n") || strings.HasPrefix(text, "-") || strings.Contains("/"+text+"/", "/../") {
				t.Errorf("%s %q passes", what, text)
			}
		}
		if CheckName(text) == nil && (strings.Contains(text, "/") || text == "." || text == "..") {
			t.Errorf("name %q passes", text)
		}
		if CheckAPIURL(text) == nil {
			if u, err := url.Parse(text); err != nil || CheckHost(u.Hostname()) != nil || u.User != nil {
				t.Errorf("%q passes: %v", text, err)
			}
		}
	})
}

// FuzzHandover: what is accepted of a handover, a bouncer or an unit keeps the rules.
func FuzzParseHandover(f *testing.F) {
	for _, seed := range []string{
		`{"id":"1","leader":"a","successor":"b","deadline_ms":1000,"state":"announced"}`, `{"name":"b1","url":"http://10.0.0.1:8009","all":true,"applied":{}}`,
		`null`, `[`, `{"id":"\u001b","leader":"..","deadline_ms":9223372036854775807,"state":"x"}`, `{"name":"--x","url":"ftp://a"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		if h, err := ParseHandover(value); err == nil && (CheckName(h.ID) != nil || CheckName(h.Leader) != nil || h.Deadline() <= 0 || h.Deadline() > MaxHandoverDeadline) {
			t.Errorf("%s: %+v", value, h)
		}
		if b, err := ParseBouncer("b1", value); err == nil && (b.Name != "b1" || CheckAPIURL(b.URL) != nil) {
			t.Errorf("%s: %+v", value, b)
		}
	})
}

// FuzzUnits: what a text with a unit means is in bounds.
func FuzzUnits(f *testing.F) {
	for _, seed := range []string{"", "1", "-1", "10s", "1.5min", "9999999999999999999d", "8388608TB", "0x10", "1e400", "on", "TRUE", " 5 ", "5 kB", "NaN", "inf"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for what, parse := range map[string]func(any) error{
			"seconds": func(v any) error { _, err := ParseSeconds(v); return err },
			"bytes":   func(v any) error { _, err := ParseBytes(v); return err },
			"integer": func(v any) error { _, err := ParseInteger(v); return err },
			"boolean": func(v any) error { _, err := ParseBoolean(v); return err },
		} {
			if err := parse(text); err != nil && len(err.Error()) > 1000 {
				t.Errorf("%s: an error of %d bytes for %.50q", what, len(err.Error()), text)
			}
		}
	})
}

// FuzzHBA: checking a line of pg_hba ends, and tells in short.
func FuzzHBA(f *testing.F) {
	for _, seed := range []string{
		"host all all 10.0.0.0/8 scram-sha-256", `local "a b",c all peer map=x`, `host all all 10.0.0.1 255.0.0.0 md5`, "hostssl all all ::1/128 cert clientcert=verify-full",
		"include x", `"`, "a\\", "# x", "host all all all ldap ldapurl=x", "\x00", ",,,,",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		for _, err := range CheckHBA("pg_hba", []string{line, "local all all peer"}) {
			if text := err.Error(); len(text) > printable.MaxText+1000 {
				t.Errorf("an error of %d bytes for %.50q", len(text), line)
			}
		}
	})
}
