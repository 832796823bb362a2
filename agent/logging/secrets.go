package logging

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
)

const (
	hidden = "(hidden)"
	// longestWord is the length up to which a secret may be an ordinary word.
	longestWord = 15
	// shortestSecret is the length from which on a secret that is no word is looked
	// for everywhere.
	shortestSecret = 4
	// lookBehind is how much of a line before a value can say that it is a secret.
	lookBehind = 256
)

// secret is one form in which a secret may be written.
type secret struct {
	text []byte
	// word says that it is an ordinary word, as "postgres" is: it is a secret only
	// in a place where secrets stand.
	word bool
}

// secrets are what must not get into a line.
type secrets struct {
	forms []secret // the longest first: one may be part of another
	// plain are the values as they are.
	plain []string
	// place ends where a secret begins: after the name of one, in the user part of
	// a URL, as the last field of a line of a passfile.
	place *regexp.Regexp
	basic *regexp.Regexp
}

func newSecrets(values []string) *secrets {
	s := &secrets{
		place: regexp.MustCompile(`(?i)(?:(?:pass(?:word|wd|phrase)?|secret|token|bearer|authorization)(?:\x1b\[[0-9;]*m|[\\"'\s=:]| is | to )+` +
			`|://[^/\s:@]*:|[^\s:"]+:(?:\d+|\*):[^\s:]+:[^\s:]+:)$`),
		basic: regexp.MustCompile(`(?i)basic\s+([a-z0-9+/]+={0,2})`),
	}
	for _, v := range values {
		if v == "" || slices.Contains(s.plain, v) {
			continue
		}
		s.plain = append(s.plain, v)
		for _, text := range written(v) {
			if !slices.ContainsFunc(s.forms, func(f secret) bool { return string(f.text) == text }) {
				s.forms = append(s.forms, secret{[]byte(text), isWord(v)})
			}
		}
	}
	slices.SortStableFunc(s.forms, func(a, b secret) int { return len(b.text) - len(a.text) })
	return s
}

// written are the forms of a value: as it is, in a conninfo or passfile, in SQL, in
// a URL, in JSON; and each of them in a line of JSON.
func written(v string) []string {
	forms := []string{
		v, url.QueryEscape(v), url.PathEscape(v), strings.ReplaceAll(v, `'`, `''`),
		strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v), strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(v),
	}
	quote := func(text string) string {
		quoted, err := json.Marshal(text)
		if err != nil {
			return text
		}
		return string(quoted[1 : len(quoted)-1])
	}
	forms = append(forms, quote(v), strings.Trim(fmt.Sprintf("%q", v), `"`))
	for _, f := range slices.Clone(forms) {
		forms = append(forms, quote(f))
	}
	return forms
}

// isWord reports whether a secret may stand in a line by chance: words and numbers,
// a few of them.
func isWord(v string) bool {
	if len(v) > longestWord {
		return false
	}
	if len(v) < shortestSecret {
		return true
	}
	for part := range strings.FieldsFuncSeq(v, func(r rune) bool { return strings.ContainsRune("-_. ", r) }) {
		word := strings.Trim(part, "0123456789")
		if strings.ContainsFunc(word, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }) {
			return false
		}
	}
	return true
}

// hide takes the secrets out of a line.
func (s *secrets) hide(line []byte) []byte {
	for _, f := range s.forms {
		line = s.hideForm(line, f)
	}
	if !bytes.Contains(bytes.ToLower(line), []byte("basic")) {
		return line
	}
	return s.basic.ReplaceAllFunc(line, func(found []byte) []byte {
		word := s.basic.FindSubmatch(found)[1]
		login, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(string(word), "="))
		_, password, _ := strings.Cut(string(login), ":")
		if err != nil || !slices.Contains(s.plain, password) {
			return found
		}
		return append(bytes.TrimSuffix(slices.Clone(found), word), hidden...)
	})
}

func (s *secrets) hideForm(line []byte, f secret) []byte {
	var out []byte
	for from := 0; ; {
		at := bytes.Index(line[from:], f.text)
		if at < 0 {
			if out == nil {
				return line
			}
			return append(out, line[from:]...)
		}
		at += from
		end := at + len(f.text)
		if f.word && (!s.place.Match(line[max(0, at-lookBehind):at]) || !ends(line[end:])) {
			out = append(out, line[from:end]...)
		} else {
			out = append(append(out, line[from:at]...), hidden...)
		}
		from = end
	}
}

// ends reports whether a value ends before this rest of a line.
func ends(rest []byte) bool {
	if len(rest) == 0 {
		return true
	}
	goesOn := rest[0] == '_' || rest[0] >= '0' && rest[0] <= '9' || rest[0]|0x20 >= 'a' && rest[0]|0x20 <= 'z' || rest[0] >= 0x80
	return !goesOn
}

// Hide replaces these secrets, from now on, wherever a line has one. It is a net
// beneath the code that never logs them: texts that come from elsewhere (an error
// of PostgreSQL, the output of a script) may quote what they were given.
func (l *Log) Hide(values []string) { l.secrets.Store(newSecrets(values)) }

// veil takes secrets out of lines.
type veil struct {
	out     io.Writer
	secrets *atomic.Pointer[secrets]
}

// Write implements io.Writer.
func (v *veil) Write(line []byte) (int, error) {
	n := len(line)
	if s := v.secrets.Load(); s != nil {
		line = s.hide(line)
	}
	if _, err := v.out.Write(line); err != nil {
		return 0, fmt.Errorf("writing the log: %w", err)
	}
	return n, nil
}
