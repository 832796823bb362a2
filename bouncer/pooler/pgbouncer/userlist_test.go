package pgbouncer

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// What PgBouncer stops at is an error that says where, and tells no password. (TestUserlistAsPgBouncerReadsIt
// has the same by PgBouncer itself.)
func TestParseUserlist(t *testing.T) {
	for _, test := range []struct {
		text string
		want string
		err  string
	}{
		{"", "", ""},
		{"\"a\" \"1\"\n ; \"c\" \"3\"\n\n\t\"b\"\t\"2\" rest\r\n", "a b", ""},
		{`"a""b" "1"`, `a"b`, ""},
		{"\"a\" \"1\"\nsecret\n\"b\" \"2\"", "a", "line 2: "},
		{"\"a\" \"1\"\n# secret\n\"b\" \"2\"", "a", "line 2: "},
		{"\"app\"\n\"b\" \"secret\"", "", "line 1: the name is not followed"},
		{"\"a\" \"1\"\n\"b\" \"secret\n\"c\" \"3\"", "a", "line 2: the name is not followed"},
		{"\"a\" \"1\"\n\"b\x00\" \"secret\"", "a", "line 2: a zero byte"},
		{`"a" "` + strings.Repeat("s", maxQuoted) + `"`, "a", ""},
		{`"a" "` + strings.Repeat("s", maxQuoted+1) + `"`, "", "line 1: the password has more than"},
		{`"a" "` + strings.Repeat(`""`, maxQuoted/2) + `"`, "a", ""},
		{`"a" "` + strings.Repeat(`""`, maxQuoted/2+1) + `"`, "", "line 1: the password has more than"},
		{`"` + strings.Repeat("n", maxQuotedName+1) + `" "1"`, "", "line 1: the name has more than"},
	} {
		users, err := ParseUserlist([]byte(test.text))
		said := ""
		if err != nil {
			said = err.Error()
		}
		if names := strings.Join(slices.Sorted(maps.Keys(users)), " "); names != test.want || (test.err == "") != (err == nil) || !strings.HasPrefix(said, test.err) {
			t.Errorf("%q: %s, %v", test.text, names, err)
		}
		if strings.Contains(said, "secret") {
			t.Errorf("a password is told: %s", said)
		}
	}
}

// Whoever leaves the file stays in it, with a secret of which there is no password, for as long as it is
// written, and once.
func TestLockLeft(t *testing.T) {
	first := []byte("\"a\" \"1\"\n\"b\"\"\" \"2\"\nbroken\n\"c\" \"3\"\n")
	if text := LockLeft(first, nil); string(text) != string(first) {
		t.Errorf("%s", text)
	}
	wanted := []byte("\"a\" \"1\"\n\n")
	text := LockLeft(wanted, first)
	users, err := ParseUserlist(text)
	if err != nil || len(users) != 3 || users["a"] != "1" || !strings.HasPrefix(users[`b"`], "SCRAM-SHA-256$4096:") || users["c"] == users[`b"`] {
		t.Fatalf("%s %v", text, err)
	}
	if again := LockLeft(wanted, text); string(again) != string(text) {
		t.Errorf("it is another file each time: %s", again)
	}
	back := []byte("\"c\" \"3\"\n")
	text = LockLeft(back, text)
	if users, err = ParseUserlist(text); err != nil || len(users) != 3 || users["c"] != "3" || !strings.HasPrefix(users["a"], "SCRAM-") {
		t.Errorf("%s %v", text, err)
	}
	if strings.Count(string(text), lockedMark) != 1 || strings.Count(string(text), "\n") != 4 {
		t.Errorf("%s", text)
	}
}
