package pgauth

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Prepare returns the password that SCRAM counts with, as libpq and the server prepare it
// (pg_saslprep in PostgreSQL's src/common/saslprep.c): by SASLprep (RFC 4013), but what is
// prohibited, and the directions of letters, are looked at before normalization, and U+200B
// is a space. One that is not allowed so (unassigned characters, say) counts as it is.
func Prepare(password string) string {
	mapped := strings.Map(func(r rune) rune {
		switch {
		case spaces.has(r):
			return ' '
		case nothing.has(r):
			return -1
		}
		return r
	}, password)
	if mapped == "" || !allowed(mapped) {
		return password
	}
	return norm.NFKC.String(mapped)
}

// allowed reports whether a password has no prohibited character, and letters of one
// direction: from the right to the left, at both ends, or not at all.
func allowed(password string) bool {
	if strings.ContainsFunc(password, prohibited.has) {
		return false
	}
	if !strings.ContainsFunc(password, rightToLeft.has) {
		return true
	}
	first, _ := utf8.DecodeRuneInString(password)
	last, _ := utf8.DecodeLastRuneInString(password)
	return rightToLeft.has(first) && rightToLeft.has(last) && !strings.ContainsFunc(password, leftToRight.has)
}
