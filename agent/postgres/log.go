package postgres

import (
	"io"
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
