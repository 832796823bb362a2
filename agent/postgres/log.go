package postgres

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// This file reads what PostgreSQL has written to stderr.

func (p *installation) fileSize(path string) int64 {
	info, err := p.disk.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

func (p *installation) logTail(path string, offset int64) string {
	f, err := p.disk.Open(path)
	if err != nil {
		return "its log cannot be read: " + err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		if offset > info.Size() { // it was shortened since
			offset = 0
		}
		offset = max(offset, info.Size()-lookedAtOfLog) // the reason is at its end
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return "its log cannot be read: " + err.Error()
	}
	content, err := io.ReadAll(io.LimitReader(f, lookedAtOfLog))
	if err != nil || len(content) == 0 {
		return "it wrote nothing to its log " + path
	}
	return whyEnded(string(content))
}

// PostgreSQL's log is shortened when it is longer than logMost; its last logKept bytes are kept in one other file.
const (
	logMost = 64 << 20
	logKept = 16 << 20
)

// BoundLog shortens what PostgreSQL has written to stderr, which is all of its log where it has no collector, and lies
// beside the data. PostgreSQL goes on writing at its end, wherever that is. What it writes between the copy and the cut is
// lost, and so is what there is no room to keep: the room is worth more.
func (p *installation) BoundLog() error {
	path := p.stateFile("postgres.log")
	if p.fileSize(path) <= logMost {
		return nil
	}
	f, err := p.disk.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("shortening PostgreSQL's log: %w", err)
	}
	defer f.Close()
	kept, err := lastOfFile(f, logKept)
	if err == nil {
		err = p.disk.Replace(path+".old", kept, 0o640)
	}
	if err = errors.Join(err, f.Truncate(0)); err != nil {
		return fmt.Errorf("shortening PostgreSQL's log: %w", err)
	}
	return nil
}

// lastOfFile reads at most so many bytes from a file's end.
func lastOfFile(f *os.File, most int64) ([]byte, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("reading its end: %w", err)
	}
	last, err := io.ReadAll(io.NewSectionReader(f, max(0, end-most), most))
	if err != nil {
		return nil, fmt.Errorf("reading its end: %w", err)
	}
	return last, nil
}

// lookedAtOfLog is how many bytes of a log's end are looked at.
const lookedAtOfLog = 1 << 20

// whyEnded is the end of a log without what PostgreSQL has told clients that came while it
// started, and begins with what it has died of: whoever shows the first words of an error
// shows that. (A log in another language stays as it is.)
func whyEnded(log string) string {
	var lines []string
	reason, refused := "", false
	for line := range strings.Lines(log) {
		line = strings.TrimRight(line, "\n")
		if refused && strings.Contains(line, "DETAIL:  ") {
			continue
		}
		if refused = strings.Contains(line, "FATAL:  the database system is "); refused {
			continue
		}
		lines = append(lines, line)
		for _, level := range []string{"FATAL:  ", "PANIC:  "} {
			if _, said, found := strings.Cut(line, level); found {
				reason = said
			}
		}
	}
	text := tail(strings.Join(lines, "\n"), 1500)
	if reason == "" || strings.HasSuffix(text, reason) {
		return text
	}
	return reason + "; its log: " + text
}
