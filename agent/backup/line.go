package backup

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Line is a timeline with those that it came from. What was committed on one of them after it was
// left is not of the line.
type Line struct {
	Timeline int
	// History says where the timelines before were left, and why.
	History cluster.History
	// Left is the timeline that an earlier restore began when it left this one; zero: it is
	// the present one.
	Left int

	archives []Archive
}

// Line is what a recovery to target follows, of a shard whose present timeline is given. An
// earlier restore discarded what the shard was at that moment, perhaps: then it is the timeline
// which that restore has left. (On the present one a recovery would end where the two part, well
// before the target, and PostgreSQL would call the target reached.)
func (r Repository) Line(ctx context.Context, info Info, present int, target time.Time) (Line, error) {
	known, err := r.timelines(ctx, info)
	if err != nil {
		return Line{}, err
	}
	line := Line{Timeline: present, archives: info.Archives}
	for {
		if line.History, err = r.history(ctx, known, line.Timeline); err != nil {
			return line, err
		}
		left, err := known.discards(line, target)
		if err != nil || left == 0 {
			return line, err
		}
		line.Timeline, line.Left = known.before(left), left
	}
}

// timelines are those of which the archive has a history: all but a cluster's first.
type timelines map[int]archivedHistory

// archivedHistory is where a timeline's history is, and since when: about since the timeline was
// begun, or later where the archive was behind.
type archivedHistory struct {
	at   time.Time
	name string
	in   Archive
}

func (r Repository) timelines(ctx context.Context, info Info) (timelines, error) {
	historyFile := regexp.MustCompile(`^([0-9A-F]{8})\.history$`)
	known := timelines{}
	for _, a := range info.Archives {
		found, err := r.list(ctx, a)
		if err != nil {
			return nil, err
		}
		for name, file := range found {
			parts := historyFile.FindStringSubmatch(name)
			if parts == nil {
				continue
			}
			n, err := strconv.ParseInt(parts[1], 16, 32)
			if err != nil {
				continue // none that PostgreSQL has made
			}
			at := time.Unix(file.Time, 0)
			if have, there := known[int(n)]; !there || at.Before(have.at) {
				known[int(n)] = archivedHistory{at: at, name: name, in: a}
			}
		}
	}
	return known, nil
}

// history says how the timelines before one ended.
func (r Repository) history(ctx context.Context, known timelines, timeline int) (cluster.History, error) {
	file, there := known[timeline]
	switch {
	case timeline == 1:
		return nil, nil
	case !there:
		return nil, fmt.Errorf("the archive of stanza %s has no history of timeline %d: see that archiving works, and try again", r.Stanza, timeline)
	}
	content, err := r.get(ctx, file.in, file.name)
	if err != nil {
		return nil, err
	}
	history, err := pg.ParseHistory(string(content))
	if err == nil && len(history) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("%s in the archive: %w", file.name, err)
	}
	return history, nil
}

// discards is the timeline with which the first restore on a line began that has discarded what
// the shard was at a moment; zero: none has.
func (t timelines) discards(line Line, target time.Time) (int, error) {
	for i, was := range line.History {
		from, discards := pg.Discards(was.Reason)
		if !discards || target.Before(from) {
			continue
		}
		next := line.History.After(i, line.Timeline)
		began, there := t[next]
		if !there {
			return 0, fmt.Errorf("the archive has no history of timeline %d, with which an earlier restore began: it cannot be told whether %s was before that", next, TargetText(target))
		}
		if target.Before(began.at) {
			return next, nil
		}
	}
	return 0, nil
}

// before is the last timeline before one: the shard's, when a restore began that one.
func (t timelines) before(timeline int) int {
	last := 1
	for n := range t {
		if n < timeline {
			last = max(last, n)
		}
	}
	return last
}

// lastDirectory is where the archive keeps the last WAL of a line; empty: it has none.
func (l Line) lastDirectory(top files) string {
	// A directory of the archive has the segments of one timeline whose names begin so.
	walDirectory := regexp.MustCompile(`^[0-9A-F]{16}$`)
	numbers := []int{l.Timeline}
	for _, was := range slices.Backward(l.History) {
		numbers = append(numbers, was.Timeline)
	}
	for _, n := range numbers {
		last := ""
		for name := range top {
			if walDirectory.MatchString(name) && strings.HasPrefix(name, fmt.Sprintf("%08X", n)) && name > last {
				last = name
			}
		}
		if last != "" {
			return last
		}
	}
	return ""
}

// has reports whether a backup was taken on a line, as far as pgBackRest says it.
func (l Line) has(b Backup) bool {
	if b.Timeline == 0 || l.Timeline == 0 || b.Timeline == l.Timeline {
		return true
	}
	return slices.ContainsFunc(l.History, func(was cluster.TimelineSwitch) bool { return was.Timeline == b.Timeline && b.End <= was.LSN })
}
