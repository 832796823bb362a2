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
	now, err := identity(p.dataDir)
	must(t, err)
	inode, _, _ := strings.Cut(now, "@")
	inode = inode[strings.LastIndexByte(inode, ':')+1:]
	earlier := "4094:4093:" + inode
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
