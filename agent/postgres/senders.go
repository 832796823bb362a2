package postgres

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/pg"
)

// This file is about WAL senders during a stop.

// PostgreSQL makes its shutdown checkpoint only when every WAL sender has noticed that it
// is stopping, and one whose standby reads nothing, so that the connection is full, does
// not notice before wal_sender_timeout (WalSndWaitStopping and WalSndLoop in
// src/backend/replication/walsender.c): a frozen standby holds a switchover up.
const (
	// senderPatience is how long WAL senders have for that.
	senderPatience = 2 * time.Second
	// senderStill is how long one that has not sent all may send nothing.
	senderStill = time.Second
)

// sender is a WAL sender as its title shows it.
type sender struct {
	pid int
	// sent is up to where it has sent WAL; zero: it streams none, or does not say.
	sent int64
}

// senders are the WAL senders that run.
func (p *processes) senders() ([]sender, error) {
	pids, err := p.target.Processes()
	if err != nil {
		return nil, err
	}
	var all []sender
	for _, pid := range pids {
		if title := title(pid); isWalsender(title) {
			all = append(all, sender{pid: pid, sent: sentBy(title)})
		}
	}
	return all, nil
}

func title(pid int) string {
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(title), "\x00 ")
}

// isWalsender reports whether a process has the title of a WAL sender
// (init_ps_display in src/backend/utils/misc/ps_status.c; cluster_name comes before).
func isWalsender(title string) bool {
	return strings.HasPrefix(title, "postgres:") && strings.Contains(title, "walsender ")
}

// sentBy is the position that the title of a WAL sender ends with (XLogSendPhysical in
// src/backend/replication/walsender.c).
func sentBy(title string) int64 {
	const streaming = " streaming "
	at := strings.LastIndex(title, streaming)
	if at < 0 {
		return 0
	}
	lsn, err := pg.ParseLSN(title[at+len(streaming):])
	if err != nil {
		return 0
	}
	return lsn
}

// awaitSenders waits until no WAL sender is left: each ends when its standby has all
// WAL (WalSndDone).
func (p *processes) awaitSenders(ctx context.Context) error {
	for {
		all, err := p.senders()
		if err != nil || len(all) == 0 {
			return err
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// writtenBeforeStop is how far the WAL goes, zero if PostgreSQL does not say so at once.
func (p *server) writtenBeforeStop(ctx context.Context) (lsn int64) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	conn, err := p.take(ctx)
	if err != nil {
		return 0
	}
	err = conn.QueryRow(ctx, "SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, '0/0')::bigint").Scan(&lsn)
	if err != nil {
		hangUpOn(conn)
		lsn = 0
	}
	p.give(conn)
	return lsn
}

// endStuckSenders ends, until ctx does, WAL senders that have not sent what there was
// before the stop and do not get on: their standbys read nothing, and get the rest when
// they do.
func (p *processes) endStuckSenders(ctx context.Context, written int64) {
	if written == 0 || !sleep(ctx, senderPatience) {
		return
	}
	before, told := map[int]int64{}, map[int]bool{}
	for {
		all, err := p.senders()
		now := map[int]int64{}
		for _, s := range all {
			if err == nil && s.sent > 0 && s.sent < written {
				now[s.pid] = s.sent
			}
		}
		for _, pid := range slices.Sorted(maps.Keys(now)) {
			if was, seen := before[pid]; seen && was == now[pid] && ctx.Err() == nil && p.endSender(pid) && !told[pid] {
				told[pid] = true
				p.log.Warn().Str("sender", title(pid)).Msg("PostgreSQL cannot stop, as a standby does not read the WAL that it is sent; its WAL sender is ended")
			}
		}
		before = now
		if !sleep(ctx, senderStill) {
			return
		}
	}
}

// endSender tells a WAL sender to end.
func (p *processes) endSender(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if !isWalsender(title(pid)) { // the pid was used again meanwhile
		return false
	}
	return unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0) == nil
}

// sleep waits, and reports whether ctx lasts on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
