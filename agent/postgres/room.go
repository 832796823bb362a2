package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
)

// This file is about the room that a rewind needs: one that finds none half-way has
// destroyed the data directory (see Rewind).

// roomAfter is what has to be left when a rewind has ended: PostgreSQL starts then, and
// its first WAL goes there.
const roomAfter = 64 << 20

// rewindPlan is what pg_rewind, asked with --dry-run, is going to write.
type rewindPlan struct {
	fetched   int64    // bytes that it copies, of whatever kind
	overwrite int64    // blocks among them that are overwritten in place
	wal       []string // WAL segments that it copies, below the data directory; some are here already
}

var (
	rewindFetches = regexp.MustCompile(`need to copy (\d+) MB`)
	rewindBlock   = regexp.MustCompile(`(?m)^(?:pg_rewind: )?(?:debug: )?\s*block \d+$`)
	rewindWAL     = regexp.MustCompile(`(?m)^(?:pg_rewind: )?(?:debug: )?(pg_wal/[0-9A-F]{24}) \(COPY\)$`)
)

// parseRewindPlan reads what pg_rewind --dry-run --debug --progress says
// (src/bin/pg_rewind/filemap.c, print_filemap and calculate_totals). One that copies
// nothing gives no number.
func parseRewindPlan(said string, blockSize int64) rewindPlan {
	var plan rewindPlan
	if m := rewindFetches.FindStringSubmatch(said); m != nil {
		megabytes, _ := strconv.ParseInt(m[1], 10, 32)
		plan.fetched = (megabytes + 1) << 20 // it rounds down
	}
	plan.overwrite = int64(len(rewindBlock.FindAllStringIndex(said, -1))) * blockSize
	for _, m := range rewindWAL.FindAllStringSubmatch(said, -1) {
		plan.wal = append(plan.wal, m[1])
	}
	return plan
}

// checkRoom fails where a rewind could break off for lack of room. pg_rewind removes files
// last, so what it adds needs room before it gives any back; what it tells is for all file
// systems together.
func (p *dataDirectory) checkRoom(plan rewindPlan) error {
	need := plan.fetched - plan.overwrite
	for _, segment := range plan.wal {
		info, err := p.disk.Stat(p.inData(segment))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("room for a rewind: %w", err)
		}
		need -= info.Size()
	}
	dirs, err := p.tablespaceLinks()
	if err != nil {
		return err
	}
	free, seen := int64(0), map[uint64]bool{}
	for _, dir := range append([]string{p.dataDir, p.inData("pg_wal")}, dirs...) {
		info, err := p.disk.Stat(dir)
		if err != nil {
			return fmt.Errorf("room for a rewind: %w", err)
		}
		if of, ok := info.Sys().(*syscall.Stat_t); !ok || seen[of.Dev] {
			continue
		} else {
			seen[of.Dev] = true
		}
		room, err := p.disk.Room(dir)
		if err != nil {
			return fmt.Errorf("room for a rewind: %w", err)
		}
		if room < roomAfter {
			return noRoom(filepath.Clean(dir), room, roomAfter)
		}
		free += room - roomAfter
	}
	if free < need {
		return noRoom(p.dataDir, free+roomAfter, need+roomAfter)
	}
	return nil
}

func noRoom(dir string, free, need int64) error {
	return fmt.Errorf("not rewound, as it could break off half-way: %s has %s free of the %s that are needed; make room, or reinitialize this member", dir, megabytes(free), megabytes(need))
}

func megabytes(n int64) string { return strconv.FormatInt(n>>20, 10) + " MB" }
