package fence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// Few devices tell after a reset that it was theirs (softdog and the i6300ESB do
// not), so a small file says that the watchdog is armed: if the host has booted
// anew since, it went down as a leader.

// resetMark is the file's content.
type resetMark struct {
	BootID string    `json:"boot_id"`
	Device string    `json:"device"`
	Since  time.Time `json:"since"`
}

// bootID names this boot of the host (random(4)).
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// lastReset puts into words why the host went down last, as far as the file and
// the device tell. It is empty when neither says anything.
func lastReset(files osuser.User, file, boot string, causes []string) string {
	device := strings.Join(causes, ", ")
	var m resetMark
	if b, err := files.ReadFile(file); err != nil || json.Unmarshal(b, &m) != nil || m.BootID == boot {
		return device
	}
	if device == "" {
		device = "the device does not tell why"
	}
	return fmt.Sprintf("the host went down while the watchdog was armed (since %s on %s): %s", m.Since.Format(time.RFC3339), m.Device, device)
}

// writeMark writes the file so that it outlives a reset.
func writeMark(files osuser.User, file string, m resetMark) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := files.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return files.Sync(filepath.Dir(file))
}

// keepMark writes and removes the file as the watchdog is armed and disarmed. It
// is a goroutine of its own: a disk that hangs must not hold up keepalives, nor
// the disarming of a watchdog.
func (w *Watchdog) keepMark(ctx context.Context) {
	for {
		select {
		case armed := <-w.marks:
			w.writeMark(armed)
		case <-ctx.Done():
			select {
			case armed := <-w.marks: // left just before the end
				w.writeMark(armed)
			default:
			}
			return
		}
	}
}

func (w *Watchdog) writeMark(armed bool) {
	var err error
	if armed {
		err = writeMark(w.o.Files, w.o.MarkFile, resetMark{BootID: bootID(), Device: w.o.Device, Since: time.Now()})
	} else if err = w.o.Files.Remove(w.o.MarkFile); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		w.note(func(s *WatchdogState) { s.LastError = "remembering whether the watchdog is armed: " + err.Error() })
	}
}

// mark leaves word for keepMark; the latest replaces an earlier one.
func (w *Watchdog) mark(armed bool) {
	if w.o.MarkFile == "" {
		return
	}
	select {
	case <-w.marks:
	default:
	}
	w.marks <- armed // only the watchdog's goroutine sends, and there is room for one
}
