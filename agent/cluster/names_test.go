package cluster

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestNamesAndHosts(t *testing.T) {
	for what, c := range map[string]struct {
		rule      func(string) error
		good, bad []string
	}{
		"name": {
			CheckName,
			[]string{"db1", "_x", "1", "db-1.example.com", "batman:prod", "a+b", "müller", strings.Repeat("x", maxPart)},
			[]string{
				"", ".", "..", "-x", "--x", ".hidden", "a/b", "../x", "a b", "a\tb", "a\nb", "a\x00", "a\x1b[2J", "a\u202eb", "a\u200bb", "a\ufeff", "\x9b2J",
				"*", "a,b", `a"b`, "a'b", `a\b`, "a$b", "a;b", "a|b", "a=b", "a%b", "a@b", "a#b", "a?b", "a\ufffdb", strings.Repeat("x", maxPart+1),
			},
		},
		"namespace": {
			CheckNamespace,
			[]string{"service", "/service/", "a/b/c"},
			[]string{"", "/", "..", "../..", "a/..", "a//b", "a/--b", "a/b c", "a/\x1b"},
		},
		"host": {
			CheckHost,
			[]string{"db1", "db1.example.com", "db1.example.com.", "10.0.0.1", "::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1", "my_db_1", "1"},
			[]string{
				"", ".", "..", "-x", "a..b", "a b", "a\nb", "a,b", "a;b", "a=b", "[::1]", "10.0.0.1:5432", "::1%", "::1%a b", "fe80::1%eth0", "fe80::1%1", "::g", "/tmp", "é",
				"a\u202eb", "$(id)", strings.Repeat("x", 64), strings.Repeat("a.", 127) + "a",
			},
		},
		"api_url": {
			CheckAPIURL,
			[]string{"http://db1:8008/patroni", "https://[::1]:8008", "http://10.0.0.1", "http://10.0.0.1/"},
			[]string{
				"", "db1:8008", "ftp://db1:8008", "http://", "http://:8008", "http://db1:0", "http://db1:99999", "http://db1:", "http://u:p@db1:8008", "http://db1:8008/?a=b",
				"http://db1:8008/#x", "http://db1:8008/#", "http://db1:8008/?", "http://db1:8008/a%2Fb", "http://db1:8008/../x", "http://db1:8008\nprogram", "http://db1 x:8008", "http://db1:8008/a b", "http:db1",
			},
		},
	} {
		for _, good := range c.good {
			if err := c.rule(good); err != nil {
				t.Errorf("%s %q: %v", what, good, err)
			}
		}
		for _, bad := range c.bad {
			if err := c.rule(bad); err == nil || len(err.Error()) > 200 {
				t.Errorf("%s %.100q: %v", what, bad, err)
			}
		}
	}
}

// A member whose key has a name or an address that is none is told, and is nobody's
// business.
func TestMembersOfNoName(t *testing.T) {
	keys := NewKeys("", "s1", "")
	good, err := json.Marshal(Member{ConnURL: "postgres://10.0.0.1:5432/postgres", APIURL: "http://10.0.0.1:8008/patroni"})
	if err != nil {
		t.Fatal(err)
	}
	huge := strings.Repeat("x", 500_000)
	for name, value := range map[string]string{
		"a": string(good), "b": `{}`, // what it does not say yet is no fault
		"..": string(good), "--x": string(good), "a\x1b[2J": string(good), "a\u202eb": string(good), huge: string(good),
		"c": `{"conn_url":"postgres://10.0.0.1 x:5432/"}`, "d": `{"conn_url":"` + huge + `"}`, "e": `{"api_url":"http://h:1\nprogram"}`,
		"f": `{"conn_url":"postgres://10.0.0.1:99999/"}`, "g": `{"api_url":"` + huge + `"}`,
	} {
		s := ParseSnapshot(keys, []KV{{Key: keys.Member(name), Value: []byte(value), ModifyIndex: 1}}, 1)
		if len(s.Members) != 1 || s.Members[0].OK() != (name == "a" || name == "b") || s.Members[0].Value.Name != name {
			t.Errorf("%.50q: %+v", name, len(s.Members))
		}
		for _, err := range s.Problems() {
			if len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\x1b\n\u202e") {
				t.Errorf("%.50q is told in %d bytes: %.200q", name, len(err.Error()), err)
			}
		}
	}
}
