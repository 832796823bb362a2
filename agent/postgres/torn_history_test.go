package postgres

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"
)

// filesOnly is an instance on whose files tests work, without a PostgreSQL.
func filesOnly(t *testing.T) *Instance {
	t.Helper()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	must(t, os.MkdirAll(filepath.Join(data, "pg_wal", "archive_status"), 0o700))
	return assemble(&installation{scope: "shard", name: "a", dataDir: data, configDir: data, stateDir: dir, major: 15, log: zerolog.Nop()}, nil)
}

func histories(t *testing.T, p *Instance) map[string]string {
	t.Helper()
	files, err := filepath.Glob(p.inData("pg_wal/*"))
	must(t, err)
	found := map[string]string{}
	for _, file := range files {
		if filepath.Base(file) == "archive_status" {
			continue
		}
		content, err := os.ReadFile(file)
		must(t, err)
		found[filepath.Base(file)] = string(content)
	}
	return found
}

func equalHistories(t *testing.T, p *Instance, want map[string]string) {
	t.Helper()
	got := histories(t, p)
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s is %q, want %q", name, got[name], content)
		}
	}
	if len(got) != len(want) {
		t.Errorf("there are %q, want %q", got, want)
	}
}

// A mark that a full disk or a lost host has left unfinished is a mark: PostgreSQL would
// read in it that the timeline descends from nothing.
func TestTornMarkOfATimeline(t *testing.T) {
	const genuine = "1\t0/3000000\tno recovery target specified\n"
	const mark = "1\t0/1\tskipped by lictor\n"
	for name, torn := range map[string]string{
		"empty": "", "zeros": "\x00\x00\x00\x00", "begun": "1\t0/1\tskip", "begun, then zeros": "1\t0/\x00\x00", "no end": "12\t0/1\tskipped by lictor",
	} {
		t.Run(name, func(t *testing.T) {
			p := filesOnly(t)
			must(t, os.WriteFile(p.historyFile(2), []byte(torn), 0o600))
			must(t, p.unskipTimelines())
			equalHistories(t, p, map[string]string{})

			must(t, os.WriteFile(p.historyFile(2), []byte(torn), 0o600))
			must(t, p.skipTimelines(1, 3))
			equalHistories(t, p, map[string]string{"00000002.history": mark, "00000003.history": mark})

			// Below one that a promotion has taken it is made whole: standbys ask for it.
			must(t, os.WriteFile(p.historyFile(2), []byte(torn), 0o600))
			must(t, os.WriteFile(p.historyFile(3), []byte(genuine), 0o600))
			must(t, p.unskipTimelines())
			equalHistories(t, p, map[string]string{"00000002.history": mark, "00000003.history": genuine})
			must(t, p.archiveSkipped())
			if _, err := os.Stat(p.inData("pg_wal/archive_status/00000002.history.ready")); err != nil {
				t.Error(err)
			}
		})
	}
	p := filesOnly(t)
	must(t, os.WriteFile(p.historyFile(2), []byte(genuine), 0o600))
	must(t, os.WriteFile(p.historyFile(3), []byte("1\t0/1000000"), 0o600)) // no mark of ours
	must(t, p.skipTimelines(1, 3))
	must(t, p.unskipTimelines())
	equalHistories(t, p, map[string]string{"00000002.history": genuine, "00000003.history": "1\t0/1000000"})
}

// A file of PostgreSQL's is there as a whole, or not at all, and never in the place of another.
func TestNewFileIsWhole(t *testing.T) {
	p := filesOnly(t)
	file := p.historyFile(2)
	must(t, p.writeNew(file, "one\n"))
	if err := p.writeNew(file, "two\n"); !errors.Is(err, os.ErrExist) {
		t.Errorf("another one: %v", err)
	}
	equalHistories(t, p, map[string]string{"00000002.history": "one\n"})
	// One of an agent that was killed half-way is in nobody's way.
	must(t, os.WriteFile(p.inData("pg_wal/"+beingWritten), []byte("hal"), 0o600))
	must(t, p.writeNew(p.historyFile(3), "three\n"))
	equalHistories(t, p, map[string]string{"00000002.history": "one\n", "00000003.history": "three\n"})
}
