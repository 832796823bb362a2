package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/pg"
)

// removePartialSegment removes segments that hide WAL of an older timeline and hold nothing that
// it does not. A WAL receiver that follows its upstream to a new timeline receives the
// segment of the fork from its beginning. If the standby is stopped before it has got
// as far as the fork again, recovery takes the newer timeline's segment of that number
// (XLogFileReadAnyTLI in src/backend/access/transam/xlogrecovery.c), comes to its end
// before the fork, and gives up: "WAL location ... belongs to timeline ..., but
// previous recovered WAL file came from timeline ...". It does so at every start.
func (p *walDir) removePartialSegment(ctx context.Context, control Control) error {
	files, err := p.disk.Glob(p.inData("pg_wal/????????.history"))
	if err != nil {
		return fmt.Errorf("looking for timelines: %w", err)
	}
	slices.Sort(files)
	for _, file := range files {
		tli, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(file), ".history"), 16, 32)
		if err != nil || int(tli) <= control.Timeline {
			continue
		}
		if marked, err := p.isSkipped(file); err != nil {
			return err
		} else if marked {
			continue
		}
		if err := p.uncoverTimeline(ctx, int(tli)); err != nil {
			return fmt.Errorf("timeline %d: %w", tli, err)
		}
	}
	return nil
}

func (p *walDir) uncoverTimeline(ctx context.Context, timeline int) error {
	history, err := p.TimelineHistory(timeline)
	if err != nil || len(history) == 0 {
		return err
	}
	fork := history[len(history)-1].LSN
	segment, err := p.segmentAt(timeline, fork)
	if err != nil || segment == "" {
		return err
	}
	older := false
	for _, h := range history {
		name, err := p.segmentAt(h.Timeline, fork)
		if err != nil {
			return err
		}
		older = older || name != ""
	}
	if !older {
		return nil // it hides nothing
	}
	if on, err := p.walGoesOn(ctx, timeline, fork); err != nil || on {
		return err
	}
	if err := p.disk.Remove(segment); err != nil {
		return fmt.Errorf("a segment that was received in part: %w", err)
	}
	p.log.Info().Str("segment", filepath.Base(segment)).Str("fork", pg.FormatLSN(fork)).
		Msg("removed incomplete segment of new timeline that shadowed older WAL")
	return nil
}

// segmentAt is the file with a timeline's WAL at a position, empty when there is none.
func (p *walDir) segmentAt(timeline int, lsn int64) (string, error) {
	files, err := p.disk.Glob(p.inData(fmt.Sprintf("pg_wal/%08X????????????????", timeline)))
	if err != nil || len(files) == 0 {
		return "", err
	}
	number, err := p.segmentNumber(files[0], lsn)
	if err != nil || number == "" {
		return "", err
	}
	name := p.inData(fmt.Sprintf("pg_wal/%08X%s", timeline, number))
	if !slices.Contains(files, name) {
		return "", nil
	}
	return name, nil
}

// segmentNumber is what the names of all timelines' segments with a position end with, empty when
// the file, one of the segments, is not there any more.
func (p *walDir) segmentNumber(file string, lsn int64) (string, error) {
	info, err := p.disk.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("a WAL segment: %w", err)
	}
	size := info.Size() // segments have their full size from the beginning
	if size <= 0 {
		return "", nil
	}
	const perLog = int64(1) << 32
	return fmt.Sprintf("%08X%08X", lsn/perLog, lsn%perLog/size), nil
}

// keepsWAL reports whether no WAL from a position on was removed.
func (p *walDir) keepsWAL(lsn int64) (bool, error) {
	files, err := p.disk.Glob(p.inData("pg_wal/" + strings.Repeat("[0-9A-F]", segmentNameLength)))
	if err != nil || len(files) == 0 {
		return false, err
	}
	number := func(file string) string { return file[len(file)-len("0000000100000001"):] }
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(number(a), number(b)) })
	from, err := p.segmentNumber(files[len(files)-1], lsn)
	return from != "" && number(files[0]) <= from, err
}

// segmentNameLength is how long the names of segments are.
const segmentNameLength = 24
