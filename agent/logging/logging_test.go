package logging

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestFormats(t *testing.T) {
	for name, test := range map[string]struct {
		format   string
		terminal bool
		want     string // a regular expression
	}{
		"json elsewhere":           {"auto", false, `^\{"level":"warn","member":"db2","time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[Z+-][\d:]*","message":"does not answer"\}\n$`},
		"not set":                  {"", false, `^\{"level":"warn"`},
		"for people on a terminal": {"auto", true, `^\x1b\[90m\d\d:\d\d:\d\d\.\d{3}|^\d\d:\d\d:\d\d\.\d{3} `},
		"asked for":                {"console", false, `WRN`},
		"json on a terminal":       {"json", true, `^\{"level":"warn"`},
		"patroni":                  {"patroni", true, `^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING: does not answer member=db2\n$`},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			l, err := New("info", test.format, &out, test.terminal)
			if err != nil {
				t.Fatal(err)
			}
			logger := l.Logger()
			logger.Warn().Str("member", "db2").Msg("does not answer")
			if !regexp.MustCompile(test.want).Match(out.Bytes()) {
				t.Errorf("%q does not match %s", out.String(), test.want)
			}
		})
	}
}

// Patroni's users cut the level out at the character 24.
func TestPatroniLevelPosition(t *testing.T) {
	var out bytes.Buffer
	l, err := New("debug", "patroni", &out, false)
	if err != nil {
		t.Fatal(err)
	}
	logger := l.Logger()
	before := time.Now().Truncate(time.Millisecond)
	logger.Debug().Msg("a")
	logger.Info().Msg("b")
	logger.Error().Msg("c\nd")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines, want 3:\n%s", len(lines), out.String())
	}
	for i, level := range []string{"DEBUG", "INFO", "ERROR"} {
		if !strings.HasPrefix(lines[i][24:], level+":") {
			t.Errorf("%q: at 24 stands %q, want %s", lines[i], lines[i][24:], level)
		}
		at, err := time.ParseInLocation("2006-01-02 15:04:05,000", lines[i][:23], time.Local)
		if err != nil || at.Before(before) || at.After(time.Now()) {
			t.Errorf("%q: its time is not the present one (%v)", lines[i], err)
		}
	}
}

func TestLevelAtRunTime(t *testing.T) {
	var out bytes.Buffer
	l, err := New("warning", "json", &out, false)
	if err != nil {
		t.Fatal(err)
	}
	// Loggers that were handed out before follow, also ones with fields.
	logger := l.Logger().With().Str("part", "loop").Logger()
	says := func() bool {
		out.Reset()
		logger.Debug().Msg("detail")
		return out.Len() > 0
	}
	if says() || l.Level() != "warning" {
		t.Error("debug is told at the level warning")
	}
	if got := l.ToggleDebug(); got != "debug" || !says() {
		t.Errorf("switched to %s, debug is told: %v", got, says())
	}
	if got := l.ToggleDebug(); got != "warning" || says() {
		t.Errorf("switched back to %s", got)
	}
	if err := l.Set("debug"); err != nil || !says() {
		t.Error("debug was set and is not told")
	}
	if err := l.Set("loud"); err == nil || !strings.Contains(err.Error(), `log.level: "loud"`) || !says() {
		t.Errorf("a level that does not exist: %v; it must change nothing", err)
	}
	if _, err := New("info", "xml", &out, false); err == nil || !strings.Contains(err.Error(), "log.format") {
		t.Errorf("a format that does not exist: %v", err)
	}
}

func TestSecretsAreHidden(t *testing.T) {
	var out bytes.Buffer
	l, err := New("info", "json", &out, false)
	if err != nil {
		t.Fatal(err)
	}
	logger := l.Logger()
	l.Hide([]string{"s3cret", `with"quote\`, "", "on", "s3cret-and-more"})
	logger.Info().Str("detail", `password=s3cret-and-more with"quote\ on`).Msg("s3cret")
	if strings.Contains(out.String(), "s3cret") || strings.Contains(out.String(), "quote") || strings.Contains(out.String(), "-and-more") {
		t.Errorf("a secret was logged: %s", out.String())
	}
	var line map[string]string
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%s: %v", out.String(), err)
	}
	if line["detail"] != "password=(hidden) (hidden) on" {
		t.Errorf("detail: %q", line["detail"])
	}
}

// A password that is an ordinary word is hidden where a secret stands, and the word
// itself stays.
func TestWordsThatAreSecrets(t *testing.T) {
	var out bytes.Buffer
	l, err := New("info", "json", &out, false)
	if err != nil {
		t.Fatal(err)
	}
	logger := l.Logger()
	l.Hide([]string{"password", "postgres", "rep-pass", "on", "x'y:z"})
	for _, c := range []struct{ text, want string }{
		{"authentication.replication.password: is the password of Patroni's published examples", ""},
		{`password authentication failed for user "postgres"`, ""},
		{"/usr/lib/postgresql/15/bin/postgres -D /srv/postgres on", ""},
		{"postgresql.parameters: postgres_fdw.application_name", ""},
		{"connecting to PostgreSQL at db1:5432 as postgres: refused", ""},
		{"host=db1 user=postgres password=postgres dbname=postgres", "host=db1 user=postgres password=(hidden) dbname=postgres"},
		{"password='rep-pass' host=db1", "password='(hidden)' host=db1"},
		{`{"password": "postgres", "user": "postgres"}`, `{"password": "(hidden)", "user": "postgres"}`},
		{"ALTER ROLE postgres PASSWORD 'postgres'", "ALTER ROLE postgres PASSWORD '(hidden)'"},
		{"postgres://postgres:postgres@db1/postgres", "postgres://postgres:(hidden)@db1/postgres"},
		{"db1:5432:*:postgres:postgres", "db1:5432:*:postgres:(hidden)"},
		{"env PGPASSWORD=password run --password on", "env PGPASSWORD=(hidden) run --password (hidden)"},
		{"X-Consul-Token: postgres", "X-Consul-Token: (hidden)"},
		{"GET /v1/kv/x?token=rep-pass&dc=a", "GET /v1/kv/x?token=(hidden)&dc=a"},
		{"Authorization: Basic cG9zdGdyZXM6cGFzc3dvcmQ=", "Authorization: Basic (hidden)"}, // postgres:password
		{`password='x\'y:z'`, "password='(hidden)'"},
		{"it said x'y:z", "it said (hidden)"},
		{`a:1:*:b:x'y\:z`, "a:1:*:b:(hidden)"},
		{"PASSWORD 'x''y:z'", "PASSWORD '(hidden)'"},
	} {
		out.Reset()
		logger.Info().Str("detail", c.text).Msg("m")
		var line map[string]string
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v", out.String(), err)
		}
		want := c.want
		if want == "" {
			want = c.text
		}
		if line["detail"] != want {
			t.Errorf("%q became %q, want %q", c.text, line["detail"], want)
		}
	}
}
