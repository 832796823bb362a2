package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// walDir is pg_wal, with its segments and the histories of its timelines.
type walDir struct{ *installation }

// maxSkipped bounds how many numbers are passed over at once: more is a mistake.
const maxSkipped = 1000

// skipTimelines makes the next promotion take a number above one. PostgreSQL takes
// the first for which it finds no history file (findNewestTimeLine in
// src/backend/access/transam/timeline.c), so those in between get one. It says that
// its timeline left ours long before now, so that a standby which comes upon it in
// the meantime does not follow it (rescanLatestTimeLine in xlogrecovery.c).
// own is our timeline, or an earlier one: files that exist already stay as they are, but
// for marks that are torn.
func (p *walDir) skipTimelines(own, above int) error {
	if above-own > maxSkipped {
		return fmt.Errorf("the shard's status says that timeline %d may be in use, this member is on %d: too far apart to be true", above, own)
	}
	for n := own + 1; n <= above; n++ {
		err := p.writeNew(p.historyFile(n), skipped(own))
		if errors.Is(err, os.ErrExist) {
			err = p.mendMark(p.historyFile(n), own)
		}
		if err != nil {
			return fmt.Errorf("passing over timeline %d: %w", n, err)
		}
	}
	return nil
}

// skipped is the history of a timeline that was passed over by a member on own.
func skipped(own int) string { return fmt.Sprintf("%d\t0/1\t%s\n", own, pg.Skipped) }

// mendMark writes a mark anew that is torn.
func (p *walDir) mendMark(file string, own int) error {
	content, err := p.disk.ReadFile(file)
	if err != nil || !torn(content) {
		return err
	}
	if err := p.writeFile(file, skipped(own)); err != nil {
		return err
	}
	return p.disk.Sync(filepath.Dir(file))
}

// torn reports whether a history file holds the beginning of a mark: an earlier agent's, that had no room for
// the rest, or that was lost with its host. PostgreSQL's own are whole whenever they have their name.
func torn(content []byte) bool {
	begun := strings.TrimLeft(string(bytes.TrimRight(content, "\x00")), "0123456789")
	_, whole, _ := strings.Cut(skipped(0), "0")
	return begun != whole && strings.HasPrefix(whole, begun)
}

// archiveSkipped has PostgreSQL archive these files of a primary: a standby that gets its WAL from the archive
// alone asks for one history after the other, and knows of none beyond the first that is not there.
func (p *walDir) archiveSkipped() error {
	files, err := p.disk.Glob(p.inData("pg_wal/????????.history"))
	if err != nil {
		return fmt.Errorf("looking for timelines: %w", err)
	}
	for _, file := range files {
		if marked, err := p.isSkipped(file); err != nil || !marked {
			if err != nil {
				return err
			}
			continue
		}
		status := p.inData(filepath.Join("pg_wal", "archive_status", filepath.Base(file)))
		if _, err := p.disk.Stat(status + ".done"); err == nil {
			continue
		}
		if err := p.writeNew(status+".ready", ""); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("archiving the history of a timeline that was passed over: %w", err)
		}
	}
	return nil
}

// beingWritten is the name of a file before it has its own: one of those that PostgreSQL removes when it
// finds them (RemoveTempXlogFiles in src/backend/access/transam/xlog.c).
const beingWritten = "xlogtemp.lictor"

// writeNew writes a file of PostgreSQL's that must not exist yet. It is there as a whole, or not at all. (Up to 15
// PostgreSQL itself makes its WAL files by a hard link.)
func (p *walDir) writeNew(file, content string) error {
	dir := filepath.Dir(file)
	written := filepath.Join(dir, beingWritten)
	if err := p.writeFile(written, content); err != nil {
		return err
	}
	err := p.disk.Link(written, file)
	return errors.Join(err, p.disk.Remove(written), p.disk.Sync(dir))
}

// unskipTimelines removes the marks that no promotion has followed, of an earlier
// run that was cut short: a standby that finds such a file when it starts takes it
// for the timeline to follow. The others stay, made whole if need be, because a walreceiver asks the
// primary for the history of each timeline up to the primary's
// (WalRcvFetchTimeLineHistoryFiles in walreceiver.c).
func (p *walDir) unskipTimelines() error {
	files, err := p.disk.Glob(p.inData("pg_wal/????????.history"))
	if err != nil {
		return fmt.Errorf("looking for timelines: %w", err)
	}
	slices.Sort(files) // hexadecimal numbers of eight digits
	last := true
	for _, file := range slices.Backward(files) {
		marked, err := p.isSkipped(file)
		if err != nil {
			return err
		}
		last = last && marked
		if !marked {
			continue
		}
		if !last { // its own timeline is not known any more; it left the first one just as long ago
			if err := p.mendMark(file, 1); err != nil {
				return fmt.Errorf("the mark of a timeline that was passed over: %w", err)
			}
			continue
		}
		if err := p.disk.Remove(file); err != nil {
			return fmt.Errorf("the mark of a timeline that was passed over: %w", err)
		}
	}
	return nil
}

// isSkipped tells whether a history file stands for a timeline that was passed over.
func (p *walDir) isSkipped(file string) (bool, error) {
	content, err := p.disk.ReadFile(file)
	if err != nil {
		return false, fmt.Errorf("reading the history of a timeline: %w", err)
	}
	return bytes.Contains(content, []byte("\t"+pg.Skipped+"\n")) || torn(content), nil
}

func (p *walDir) historyFile(timeline int) string {
	return p.inData(fmt.Sprintf("pg_wal/%08X.history", timeline))
}

// TimelineHistory reads how the timelines before this one ended
// (pg_wal/*.history).
func (p *walDir) TimelineHistory(timeline int) (cluster.History, error) {
	if timeline <= 1 {
		return nil, nil
	}
	content, err := p.disk.ReadFile(filepath.Join(p.dataDir, "pg_wal", fmt.Sprintf("%08X.history", timeline)))
	if err != nil {
		return nil, fmt.Errorf("history of timeline %d: %w", timeline, err)
	}
	return pg.ParseHistory(string(content))
}

// timelineAt is the timeline that a replica is on which has WAL up to lsn. The control
// file knows of a timeline only from the next restartpoint on, and the WAL receiver
// that received it may have been of an earlier life. WAL beyond the point at which a
// timeline was left is of the next one if that has it.
func (p *walDir) timelineAt(timeline int, lsn int64) (int, error) {
	files, err := p.disk.Glob(p.inData("pg_wal/????????.history"))
	if err != nil {
		return 0, fmt.Errorf("looking for timelines: %w", err)
	}
	slices.Sort(files)
	for _, file := range slices.Backward(files) {
		tli, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(file), ".history"), 16, 32)
		if err != nil || int(tli) <= timeline {
			continue
		}
		history, err := p.TimelineHistory(int(tli))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		own := slices.IndexFunc(history, func(h cluster.TimelineSwitch) bool { return h.Timeline == timeline })
		if own < 0 || history[len(history)-1].LSN >= lsn {
			continue
		}
		if segment, err := p.segmentAt(int(tli), lsn-1); err != nil || segment != "" {
			return int(tli), err
		}
	}
	return timeline, nil
}
