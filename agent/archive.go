package agent

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// archiveEvery is how often PostgreSQL's archiver is looked at. It tries a file that it
// cannot archive again every minute.
const archiveEvery = 10 * time.Second

// archiveWatch finds out whether WAL gets into the archive. Nothing that the member decides
// rests on it.
type archiveWatch struct {
	*board
	m   *loopState
	pg  *postgres.Instance
	log zerolog.Logger
}

// run looks again and again, one look at a time: one that a disk holds up is waited for.
func (w *archiveWatch) run(ctx context.Context) {
	for ctx.Err() == nil {
		var seen pg.Archiver
		var err error
		if w.State().Postgres.Accepting {
			seen, err = w.pg.Archiver(ctx)
		}
		if err != nil {
			w.log.Debug().Err(err).Msg("the archiver could not be looked at")
		}
		w.post(func() { w.saw(seen) })
		pause(ctx, archiveEvery)
	}
}

// saw takes in, on the loop, what a look has found.
func (w *archiveWatch) saw(a pg.Archiver) {
	w.m.archiver = a
	if why := a.Trouble(); why != "" {
		w.m.Once("archive", "WAL cannot be archived", why)
		return
	}
	w.m.ClearOnce("archive")
}
