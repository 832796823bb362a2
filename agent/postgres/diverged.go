package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// ErrSameTimeline: both have written on a timeline of the same number. pg_rewind
// sees no difference there.
var ErrSameTimeline = fmt.Errorf("%w on a timeline of the same number, which pg_rewind cannot mend", ErrDiverged)

// diverged compares the data directory with the upstream's history through the
// replication protocol (PostgreSQL's documentation, 55.4 Streaming Replication
// Protocol: IDENTIFY_SYSTEM, TIMELINE_HISTORY).
func (p *upstreams) diverged(ctx context.Context, u Upstream, control Control) (bool, error) {
	conn, err := p.replicationConn(ctx, u)
	if err != nil {
		return false, err
	}
	defer hangUpOn(conn)
	id, upstream, position, err := identifySystem(ctx, conn)
	if err != nil {
		return false, fmt.Errorf("asking %s who it is: %w", u.Name, err)
	}
	if id != control.SystemIdentifier {
		return false, fmt.Errorf("%s has the system identifier %s, this data directory %s: they are not of one cluster", u.Name, id, control.SystemIdentifier)
	}
	local := max(control.Timeline, control.MinRecoveryTimeline)
	if upstream < local {
		return true, nil
	}
	var history cluster.History
	var text string
	if upstream > 1 {
		row, err := queryRow(ctx, conn, "TIMELINE_HISTORY "+strconv.Itoa(upstream))
		if err != nil || len(row) < 2 {
			return false, fmt.Errorf("asking %s for the history of timeline %d: %w", u.Name, upstream, err)
		}
		text = string(row[1])
		if history, err = pg.ParseHistory(text); err != nil {
			return false, err
		}
	}
	if upstream == local {
		return false, p.sameTimeline(ctx, conn, u, control, local, history, position)
	}
	if divergedFrom(history, control, local) {
		return true, nil
	}
	needed := false
	if control.State != "shut down" {
		needed, err = p.walDiverged(ctx, history, local, upstream)
	}
	if err == nil && !needed {
		err = p.keepHistory(upstream, text)
	}
	return needed, err
}

// keepHistory puts the history of the upstream's timeline beside the WAL before a standby is
// started, which follows the newest one that it finds (PostgreSQL's
// src/backend/access/transam/timeline.c, findNewestTimeLine). A promotion that was killed
// half-way may have left that of a timeline on which nobody is, and a standby that finds
// nothing newer does not start.
func (p *walDir) keepHistory(timeline int, text string) error {
	path := p.inData(filepath.Join("pg_wal", fmt.Sprintf("%08X.history", timeline)))
	if _, err := p.disk.ReadFile(path); !errors.Is(err, os.ErrNotExist) {
		return err //nolint:wrapcheck // it names the file
	}
	return p.writeFile(path, text)
}

// sameTimeline finds two members that were both promoted to a timeline of the
// same number: they left the one before at different places, or the data
// directory is further than a primary of that timeline.
func (p *upstreams) sameTimeline(ctx context.Context, conn *pgconn.PgConn, u Upstream, control Control, timeline int, history cluster.History, position int64) error {
	own, err := p.TimelineHistory(timeline)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // archived and removed: nothing to compare
		return err
	}
	same := func(a, b cluster.TimelineSwitch) bool { return a.Timeline == b.Timeline && a.LSN == b.LSN }
	if len(own) > 0 && !slices.EqualFunc(own, history, same) {
		return fmt.Errorf("%w: reinitialize this member", ErrSameTimeline)
	}
	at := max(control.CheckpointLSN, control.MinRecovery)
	if at <= position {
		return nil
	}
	primary, err := p.isPrimary(ctx, conn, u, p.local.Load().Authentication.Superuser)
	if err != nil {
		return fmt.Errorf("asking %s whether it is a primary: %w", u.Name, err)
	}
	if primary {
		return fmt.Errorf("%w: it is at %s, the primary %s at %s; reinitialize this member", ErrSameTimeline, pg.FormatLSN(at), u.Name, pg.FormatLSN(position))
	}
	return nil
}

// divergedFrom compares where a data directory is known to stand with where the
// upstream's history left its timeline, the fork.
//
//	state               diverged when
//	timeline unknown    always
//	shut down           its shutdown checkpoint lies at or beyond the fork
//	otherwise           its checkpoint does, or it has replayed beyond the fork
//
// Not diverged is the last word for a primary that was shut down. Others may
// have more WAL than the control file knows of: see walDiverged.
func divergedFrom(history cluster.History, control Control, timeline int) bool {
	i := slices.IndexFunc(history, func(h cluster.TimelineSwitch) bool { return h.Timeline == timeline })
	if i < 0 {
		return true
	}
	fork := history[i].LSN
	return control.CheckpointLSN >= fork || control.State != "shut down" && control.MinRecovery > fork
}

// walDiverged tells whether there is local WAL that is no part of the upstream's
// history: on a timeline that it does not have, or beyond the fork of one that it
// has. PostgreSQL would replay that before it ever asks the upstream. timeline is
// the oldest that is looked at; the control file of a standby may lag behind by
// more than one.
func (p *walDir) walDiverged(ctx context.Context, history cluster.History, timeline, upstream int) (bool, error) {
	known := map[int]bool{upstream: true}
	for _, h := range history {
		known[h.Timeline] = true
	}
	files, err := p.disk.Glob(p.inData("pg_wal/????????.history"))
	if err != nil {
		return false, fmt.Errorf("looking for timelines: %w", err)
	}
	for _, file := range files {
		tli, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(file), ".history"), 16, 32)
		if err != nil || int(tli) <= timeline || known[int(tli)] {
			continue
		}
		if marked, err := p.isSkipped(file); err != nil || !marked {
			return true, err
		}
	}
	for _, h := range history {
		if h.Timeline < timeline {
			continue
		}
		if on, err := p.walGoesOn(ctx, h.Timeline, h.LSN); err != nil || on {
			return on, err
		}
	}
	return false, nil
}

// walGoesOn tells whether the local WAL of a timeline has a record at the fork:
// what a crashed primary wrote there, or what a standby received and has not
// replayed yet, but would before it ever asks an upstream.
func (p *walDir) walGoesOn(ctx context.Context, timeline int, fork int64) (bool, error) {
	_, err := p.run(ctx, "pg_waldump", "--path="+p.inData("pg_wal"), "--timeline="+strconv.Itoa(timeline), "--start="+pg.FormatLSN(fork), "--limit=1")
	if err == nil {
		return true, nil
	}
	// Whatever else it ends with is no word of its own: it was killed, or the loader lacks a library.
	if exit := new(exec.ExitError); ctx.Err() != nil || !errors.As(err, &exit) || exit.ExitCode() != 1 {
		return false, err
	}
	for _, nothing := range []string{"could not find a valid record", "could not find file", "could not locate WAL file"} {
		if strings.Contains(err.Error(), nothing) {
			return false, nil
		}
	}
	return true, nil // pg_rewind may look
}
