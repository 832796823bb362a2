package agent

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// archiveEvery is how often PostgreSQL's archiver is looked at. It tries a file that it
// cannot archive again every minute. Where there is none, a look learns no more than how much WAL the
// settings explain, and each is a login.
const (
	archiveEvery   = 10 * time.Second
	noArchiveEvery = time.Minute
)

// archiveWatch finds out whether WAL gets into the archive, and how much room it has, and keeps PostgreSQL's log short.
// Nothing that the member decides rests on it.
type archiveWatch struct {
	*board
	m   *loopState
	pg  *postgres.Instance
	log zerolog.Logger
}

// run looks again and again, one look at a time: one that a disk holds up is waited for.
func (w *archiveWatch) run(ctx context.Context) {
	var (
		trend  pg.WALTrend
		seen   pg.Archiver
		of     life      // that it was seen in
		seenAt time.Time // zero: it was not
	)
	began := time.Now()
	for ctx.Err() == nil {
		at := lifeOf(w.State())
		if at != of || seenAt.IsZero() || seen.On || time.Since(seenAt) >= noArchiveEvery {
			seen, of, seenAt = pg.Archiver{}, at, time.Time{}
			if at.accepting {
				var err error
				if seen, err = w.pg.Archiver(ctx); err != nil {
					w.log.Debug().Err(err).Msg("the archiver could not be looked at")
				} else {
					seenAt = time.Now()
				}
			}
		}
		var room pg.WALRoom
		if bytes, free, err := w.pg.WALRoom(); err == nil {
			room = trend.Saw(time.Since(began), bytes, free)
		} else if !errors.Is(err, fs.ErrNotExist) {
			w.log.Debug().Err(err).Msg("the room for WAL could not be looked at")
		}
		if err := w.pg.BoundLog(); err != nil {
			w.log.Warn().Err(err).Msg("PostgreSQL's log was not kept when it was shortened")
		}
		w.post(func() { w.saw(seen, room) })
		until, cancel := context.WithTimeout(ctx, archiveEvery)
		_ = w.await(until, func(s api.State) bool { return lifeOf(s) != at }) // it is time for a look either way
		cancel()
	}
}

// life is what an archiver's figures are of: another start or another role has others.
type life struct {
	accepting, inRecovery bool
	started               time.Time
}

func lifeOf(s api.State) life {
	return life{s.Postgres.Accepting, s.Postgres.InRecovery, s.Postgres.StartTime}
}

// saw takes in, on the loop, what a look has found.
func (w *archiveWatch) saw(a pg.Archiver, room pg.WALRoom) {
	w.m.archiver, w.m.walRoom = a, room
	if why := room.Trouble(a); why != "" || a.Keeps > 0 { // else nothing is known
		w.m.Problem("wal", "WAL fills the disk", why)
	}
	w.m.Problem("archive", "WAL cannot be archived", a.Trouble())
}
