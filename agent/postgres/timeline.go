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
// own is our timeline, or an earlier one: files that exist already stay as they are.
func (p *walDir) skipTimelines(own, above int) error {
	if above-own > maxSkipped {
		return fmt.Errorf("the shard's status says that timeline %d may be in use, this member is on %d: too far apart to be true", above, own)
	}
	for n := own + 1; n <= above; n++ {
		err := p.writeNew(p.historyFile(n), fmt.Sprintf("%d\t0/1\t%s\n", own, pg.Skipped))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("passing over timeline %d: %w", n, err)
		}
	}
	return nil
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

// writeNew writes a file of PostgreSQL's that must not exist yet.
func (p *walDir) writeNew(file, content string) error {
	f, err := p.disk.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Chmod(p.fileMode()), p.disk.Give(file), f.Close())
}

// unskipTimelines removes the marks that no promotion has followed, of an earlier
// run that was cut short: a standby that finds such a file when it starts takes it
// for the timeline to follow. The others stay, because a walreceiver asks the
// primary for the history of each timeline up to the primary's
// (WalRcvFetchTimeLineHistoryFiles in walreceiver.c).
func (p *walDir) unskipTimelines() error {
	files, err := p.disk.Glob(p.inData("pg_wal/????????.history"))
	if err != nil {
		return fmt.Errorf("looking for timelines: %w", err)
	}
	slices.Sort(files) // hexadecimal numbers of eight digits
	for _, file := range slices.Backward(files) {
		if marked, err := p.isSkipped(file); err != nil || !marked {
			return err
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
	return bytes.Contains(content, []byte("\t"+pg.Skipped+"\n")), nil
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
