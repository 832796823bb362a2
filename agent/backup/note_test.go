package backup

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/config"
)

// What a verification notes on a member's host gets into the repository with the next backup,
// once.
func TestNotedVerification(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2026, 12, 1, 2, 3, 4, 0, time.UTC)
	newest := "20261129-222932F_20261129-222943I"
	note := filepath.Join(dir, "note")
	if err := (Verified{Backup: Backup{Label: newest}, At: at}).Note(note); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	noted, err := ReadNote(content)
	if err != nil || noted.Label != newest || !noted.At.Equal(at) {
		t.Fatalf("%+v %v", noted, err)
	}
	if _, err := ReadNote([]byte("half")); err == nil {
		t.Error("half a note is read")
	}

	member := func(verified string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"state":"running","role":"replica","lictor":{%s}}`, verified)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	client, err := api.NewClient(config.Ctl{}, config.RestAPI{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	got := NotedVerification(t.Context(), client, []string{
		"http://127.0.0.1:1", member(""), member(`"verified":{"label":"older","at":"2026-11-01T00:00:00Z"}`), member(`"verified":` + string(content)),
	})
	if got != noted {
		t.Errorf("%+v, want %+v", got, noted)
	}

	info := filepath.Join(dir, "info.json")
	program := filepath.Join(dir, "pgbackrest")
	script := "#!/bin/sh\ncase \"$*\" in *info*) cat " + info + ";; *) echo \"$@\" >> " + dir + "/calls;; esac\n"
	for file, text := range map[string]string{info: said, program: script} {
		if err := os.WriteFile(file, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	run := Run{PgBackRest: []string{program}, Stanza: "orders"}
	calls := func() string { text, _ := os.ReadFile(dir + "/calls"); return string(text) }
	if err := run.Annotate(t.Context(), api.Verification{}); err != nil || calls() != "" {
		t.Errorf("without a note: %v %s", err, calls())
	}
	if err := run.Annotate(t.Context(), api.Verification{Label: "20200101-000000F", At: at}); err == nil || calls() != "" {
		t.Errorf("of a backup that has expired: %v %s", err, calls())
	}
	if err := run.Annotate(t.Context(), noted); err != nil {
		t.Error(err)
	}
	want := "--stanza=orders --set=" + newest + " --annotation=lictor-verified=2026-12-01T02:03:04Z annotate\n"
	if calls() != want {
		t.Errorf("%q, want %q", calls(), want)
	}
	// There it is already, and newer.
	if err := run.Annotate(t.Context(), api.Verification{Label: "20261129-222932F", At: time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)}); err != nil || calls() != want {
		t.Errorf("noted again: %v %q", err, calls())
	}
}
