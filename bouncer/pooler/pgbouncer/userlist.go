package pgbouncer

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The longest names of PostgreSQL's users, and the longest names and passwords that PgBouncer reads, each as
// it stands in the file, with its quotes doubled: it reads nothing of its file after one that is longer
// (load_auth_file in its loader.c).
const (
	maxUserName   = 63
	maxQuotedName = 127
	maxQuoted     = 2047
)

// CheckUser reports why a user cannot stand in PgBouncer's file of users (auth_file), nothing
// of the password told.
func CheckUser(name, password string) error {
	switch {
	case name == "" || len(name) > maxUserName:
		return fmt.Errorf("the name must have from 1 to %d bytes", maxUserName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return errors.New("the name must be UTF-8 without control characters")
	case len(password)+strings.Count(password, `"`) > maxQuoted:
		return fmt.Errorf("the password must not have more than %d bytes, each \" counted twice", maxQuoted)
	case !utf8.ValidString(password) || strings.ContainsFunc(password, unicode.IsControl):
		return errors.New("the password must be UTF-8 without control characters")
	}
	return nil
}

// QuoteUserlist writes a name or a password for the file of users (auth_file).
func QuoteUserlist(s string) (string, error) {
	if strings.IndexFunc(s, unicode.IsControl) >= 0 {
		return "", fmt.Errorf("a name or password with a control character cannot be written to auth_file")
	}
	return quoteName(s), nil
}

// ParseUserlist reads an auth_file: user names and their passwords or hashes. PgBouncer reads nothing
// after what it does not understand, and those who stand there have an empty password then: so that is
// an error, with the users before it. Stricter than PgBouncer is that a user stands on one line: to that
// one the name of the next line is the password of this one.
func ParseUserlist(text []byte) (map[string]string, error) {
	users := map[string]string{}
	n := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		n++
		if line = strings.Trim(line, blanks); line == "" || line[0] == ';' {
			continue
		}
		user, secret, err := parseUser(line)
		if err != nil {
			return users, &SyntaxError{n, err.Error() + "; PgBouncer reads nothing after that"}
		}
		users[user] = secret
	}
	return users, nil
}

// blanks are what C's isspace takes for such.
const blanks = " \t\r\v\f"

// parseUser reads one line, of which nothing is told: it may be a password.
func parseUser(line string) (user, secret string, err error) {
	if strings.Contains(line, "\x00") {
		return "", "", errors.New("a zero byte")
	}
	user, rest, found := cutDoubleQuoted(line)
	if !found {
		return "", "", errors.New(`a line must be "user" "password", both in double quotes, or begin with ;`)
	}
	quoted := len(line) - len(rest) - 2
	if quoted > maxQuotedName {
		return "", "", fmt.Errorf("the name has more than %d bytes", maxQuotedName)
	}
	line = strings.Trim(rest, blanks)
	secret, rest, found = cutDoubleQuoted(line)
	if !found {
		return "", "", errors.New("the name is not followed by a password in double quotes on the same line")
	}
	if len(line)-len(rest)-2 > maxQuoted {
		return "", "", fmt.Errorf("the password has more than %d bytes as it stands there", maxQuoted)
	}
	return user, secret, nil
}

func cutDoubleQuoted(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		return "", "", false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] == '"' {
			if i+1 < len(s) && s[i+1] == '"' {
				i++
			} else {
				return b.String(), s[i+1:], true
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// lockedMark is the line after which those stand who have left the file. Ansible writes the same.
const lockedMark = ";; No longer users: nobody has their passwords. PgBouncer lets in without a password whom it knows and does not find here; so stop it before these lines are taken out."

// LockLeft is a file of users, text, with those of the installed one who are no longer in it: with secrets that
// belong to no password. PgBouncer knows for as long as it runs whom it has read once, and those whom
// the file has no more have an empty password then, which SCRAM takes before 1.26.1 (disable_users in its
// loader.c): a user who is taken out would open the account to everybody.
func LockLeft(text, installed []byte) []byte {
	users, _ := ParseUserlist(text) // the caller has looked
	has := func(name string) bool { _, found := users[name]; return found }
	var locked []string
	before, after, _ := bytes.Cut(installed, []byte(lockedMark))
	seen := map[string]bool{}
	for _, line := range strings.Split(string(after), "\n") {
		if name, _, err := parseUser(line); err == nil && !has(name) && !seen[name] {
			locked, seen[name] = append(locked, line), true
		}
	}
	for _, name := range everyName(before, after) {
		if quoted := quoteName(name); !has(name) && !seen[name] && len(quoted)-2 <= maxQuotedName {
			locked, seen[name] = append(locked, quoted+` "`+lockedSecret()+`"`), true
		}
	}
	if len(locked) == 0 {
		return text
	}
	lines := append([]string{strings.TrimRight(string(text), "\n"), lockedMark}, locked...)
	return []byte(strings.Join(lines, "\n") + "\n")
}

// everyName is whoever may have been read of a file: also those after what PgBouncer does not
// understand, as it may know them from an earlier one.
func everyName(texts ...[]byte) (names []string) {
	for _, text := range texts {
		rest := string(text)
		for more := true; more; {
			name, _, found := cutDoubleQuoted(strings.TrimLeft(rest, blanks))
			if found && !strings.Contains(name, "\x00") {
				names = append(names, name)
			}
			_, rest, more = strings.Cut(rest, "\n")
		}
	}
	return names
}

// lockedSecret is a SCRAM secret whose keys belong to no password.
func lockedSecret() string {
	random := make([]byte, 16+32+32)
	_, _ = rand.Read(random) // it never fails
	text := base64.StdEncoding.EncodeToString
	return "SCRAM-SHA-256$4096:" + text(random[:16]) + "$" + text(random[16:48]) + ":" + text(random[48:])
}
