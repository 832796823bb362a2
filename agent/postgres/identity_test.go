package postgres

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestIdentities(t *testing.T) {
	for _, tt := range []struct {
		noted, now string
		same       bool
		unsure     bool
	}{
		{"12@5.000000001", "12@5.000000001", true, false},
		{"12@5.000000001", "12@6.000000001", false, false},
		{"12@5.000000001", "13@5.000000001", false, false},
		{"8:1:12", "8:1:12", true, false},
		{"8:1:12", "8:1:13", false, false},
		{"8:1:12", "8:17:12", false, true}, // the disk may be called otherwise since a boot
		{"8:1:12", "9:1:12", false, true},
		{"8:1:12", "8:17:13", false, false},
		{"8:1:12", "12@5.000000001", false, true}, // a newer kernel tells the time
		{"12@5.000000001", "8:1:12", false, true},
		{"12@5.000000001", "8:1:13", false, false},
		{"", "8:1:12", false, false},
		{"what is this", "8:1:12", false, false},
	} {
		same, err := sameIdentity(tt.noted, tt.now)
		if same != tt.same || errors.Is(err, errUnsureIdentity) != tt.unsure || err != nil && !tt.unsure {
			t.Errorf("%s, now %s: %v %v", tt.noted, tt.now, same, err)
		}
	}
}

// A file system that does not tell when a directory was made, and a disk with another number since the last boot: the
// notes about the directory are not passed over.
func TestNotesSurviveAnotherDeviceNumber(t *testing.T) {
	p := filesOnly(t)
	earlier := elsewhere(t, p.dataDir)
	for _, note := range []string{"rewinding", "unfinished", "restore"} {
		t.Run(note, func(t *testing.T) {
			content := earlier + "\n"
			switch note {
			case "unfinished":
				text, err := json.Marshal(marker{Kind: markClone, DataDir: p.dataDir, ID: earlier, Made: time.Now(), SystemIdentifier: "77"})
				must(t, err)
				content = string(text)
			case "restore":
				text, err := json.Marshal(RestoreNote{Discarded: 1, Aside: filepath.Join(filepath.Dir(p.dataDir), "data"+beforeRestore+"x"), ID: earlier})
				must(t, err)
				content = string(text)
			}
			must(t, os.WriteFile(p.stateFile(note), []byte(content), 0o600))
			defer os.Remove(p.stateFile(note))
			var err error
			switch note {
			case "rewinding":
				_, err = p.rewindCutShort()
			case "unfinished":
				_, err = p.marked()
			case "restore":
				note, noteErr := p.RestoreNote()
				must(t, noteErr)
				_, err = p.setAside(note)
			}
			if !errors.Is(err, errUnsureIdentity) || !strings.Contains(err.Error(), p.stateFile(note)) {
				t.Errorf("%v, want a refusal that names %s", err, p.stateFile(note))
			}
		})
	}
}

// elsewhere is the identity of a directory on a file system that does not tell when it was made, before a boot that gave its disk
// another number.
func elsewhere(t *testing.T, dir string) string {
	t.Helper()
	now, err := identity(dir)
	must(t, err)
	inode, _, _ := strings.Cut(now, "@")
	return "4094:4093:" + inode[strings.LastIndexByte(inode, ':')+1:]
}

// What was moved aside is neither removed nor forgotten, and neither put back nor called something else, and what the callbacks were
// told is not told again.
func TestAsidesSurviveAnotherDeviceNumber(t *testing.T) {
	p := newInstance(t, settings(t, newDir(t), "data"))
	top := filepath.Dir(p.dataDir)
	made := func(name string) string {
		t.Helper()
		dir := filepath.Join(top, name)
		must(t, os.MkdirAll(filepath.Join(dir, "base"), 0o700))
		give(t, p, dir)
		give(t, p, filepath.Join(dir, "base"))
		return dir
	}
	stays := func(dirs ...string) {
		t.Helper()
		for _, dir := range dirs {
			if _, err := os.Stat(filepath.Join(dir, "base")); err != nil {
				t.Error(err)
			}
		}
	}
	t.Run("failed", func(t *testing.T) {
		dir, spaces := made("data"+asideInfix+"1"), made("data"+restoredTablespaces+"1")
		id, err := identity(dir)
		must(t, err)
		list := []aside{{Path: dir, ID: elsewhere(t, dir)}, {Path: dir, ID: id, Tablespaces: spaces, TablespacesID: elsewhere(t, spaces)}}
		must(t, p.noteAsides(list))
		must(t, p.removeAsides(t.Context(), ""))
		stays(dir, spaces)
		if kept, err := p.asides(); err != nil || len(kept) != len(list) {
			t.Errorf("noted: %+v, %v", kept, err)
		}
		if err := p.removeAside(list[0]); !errors.Is(err, errUnsureIdentity) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v", err)
		}
	})
	t.Run("restore", func(t *testing.T) {
		old := made("data" + beforeRestore + "1")
		must(t, p.writeRestoreNote(RestoreNote{Discarded: 1, Aside: old, ID: elsewhere(t, old)}))
		if err := p.PutBack(t.Context()); !errors.Is(err, errUnsureIdentity) || strings.Contains(err.Error(), "is not the data directory") {
			t.Errorf("%v", err)
		}
		id, err := identity(old)
		must(t, err)
		restored := made("data")
		must(t, p.writeRestoreNote(RestoreNote{Discarded: 1, Aside: old, ID: id, Made: elsewhere(t, restored)}))
		if err := p.PutBack(t.Context()); !errors.Is(err, errUnsureIdentity) || strings.Contains(err.Error(), "has not made") {
			t.Errorf("%v", err)
		}
		stays(old, restored)
	})
	t.Run("told", func(t *testing.T) {
		must(t, p.KeepCallbackState(CallbackState{Role: "primary"}))
		content, err := os.ReadFile(p.stateFile("told"))
		must(t, err)
		id, err := identity(p.dataDir)
		must(t, err)
		must(t, os.WriteFile(p.stateFile("told"), []byte(strings.Replace(string(content), id, elsewhere(t, p.dataDir), 1)), 0o600))
		if told, err := p.RecallCallbackState(); err != nil || told.Role != "primary" {
			t.Errorf("%+v, %v", told, err)
		}
	})
}
