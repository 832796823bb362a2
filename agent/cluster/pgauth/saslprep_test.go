package pgauth

import (
	"slices"
	"testing"
)

// agent/postgres asks PostgreSQL and psql about such passwords (TestPasswordsAreLibpqs).
func TestPrepare(t *testing.T) {
	for password, want := range map[string]string{
		"":                "",
		"secret":          "secret",
		"tab\there":       "tab\there",
		"Straße½ﬁ²":       "Straße1⁄2fi2",
		"e\u0301":         "é",
		"a\u00a0b\u00adc": "a bc",
		"a\u200bb":        "a b",
		"a\u1806b":        "ab",
		"\u00ad":          "\u00ad",
		"\u2168":          "IX",
		// Not allowed: unassigned in Unicode 3.2, private use, no UTF-8.
		"\u2168\u0221":     "\u2168\u0221",
		"\u2168\U0001d7ca": "\u2168\U0001d7ca",
		"\u2168\ue000":     "\u2168\ue000",
		"\u2168\xff":       "\u2168\xff",
		// Directions: of the letters as they were typed.
		"\u05d0\u2168":        "\u05d0\u2168",
		"\u05d0½\u05d0":       "\u05d01⁄2\u05d0",
		"\u05d0½":             "\u05d0½",
		"\u05d0½a\u05d0":      "\u05d0½a\u05d0",
		"a\u2135":             "a\u05d0",
		"\u05d0½\u2135\u05d0": "\u05d0½\u2135\u05d0",
	} {
		if got := Prepare(password); got != want {
			t.Errorf("Prepare(%+q) = %+q, want %+q", password, got, want)
		}
	}
}

func TestRangesAreInOrder(t *testing.T) {
	for _, table := range []ranges{spaces, nothing, prohibited, rightToLeft, leftToRight} {
		if len(table)%2 != 0 || !slices.IsSorted(table) {
			t.Errorf("%x", table[:2])
		}
	}
	if has := spaces.has(0x2005) && spaces.has(0x2000) && spaces.has(0x200b) && !spaces.has(0x200c) && !spaces.has(' '); !has {
		t.Error("ranges.has")
	}
}
