package faults

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// Witness writes straight to the PostgreSQL of every member of a shard, past all
// poolers and over the host's own unix socket, which no fault of the network
// reaches. Its commits do not wait for a standby (synchronous_commit=local): a
// primary that the others left behind still shows that it accepts them.
type Witness struct {
	shard *lab.Shard
	epoch time.Time
	every time.Duration

	mu   sync.Mutex
	book book

	ctx    context.Context //nolint:containedctx // the life of its goroutines
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// book is what a witness has seen.
type book struct {
	reigns map[reignKey]Reign
}

type reignKey struct {
	member   string
	timeline int
}

func (b *book) add(c Commit) {
	if b.reigns == nil {
		b.reigns = map[reignKey]Reign{}
	}
	key := reignKey{c.Member, c.Timeline}
	b.reigns[key] = b.reigns[key].add(c)
}

func (b *book) list() []Reign {
	var all []Reign
	for _, r := range b.reigns {
		all = append(all, r)
	}
	return all
}

// witnessTables are what a witness writes to. Rows are updated, not added: it
// writes for as long as the lab lives.
const witnessTables = `
CREATE TABLE IF NOT EXISTS witness (host text PRIMARY KEY, id bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS witness_long (id bigint)`

// startWitness begins to watch a shard whose leader has the tables. The caller
// stops it.
func startWitness(ctx context.Context, shard *lab.Shard, every time.Duration) *Witness {
	w := &Witness{shard: shard, epoch: time.Now(), every: every}
	w.ctx, w.cancel = context.WithCancel(ctx)
	for _, m := range shard.Members() {
		w.done.Go(func() { w.watch(m) })
	}
	return w
}

// Stop ends the watching and waits for it.
func (w *Witness) Stop() {
	w.cancel()
	w.done.Wait()
}

// Reset forgets what was seen.
func (w *Witness) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.book = book{}
}

// Reigns is what was seen since the last Reset.
func (w *Witness) Reigns() []Reign {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.book.list()
}

func (w *Witness) record(c Commit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.book.add(c)
}

// statementLimit bounds a statement of a witness. One that hangs longer, on a
// frozen host say, is given up; its connection is closed, not cancelled.
const statementLimit = 30 * time.Second

// watch is the life of the client on one host.
func (w *Witness) watch(m *lab.Member) {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	var conn *pgx.Conn
	defer func() { hangUp(conn) }()
	for id := int64(1); ; id++ {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			return
		}
		err := func() (err error) {
			ctx, cancel := context.WithTimeout(w.ctx, statementLimit)
			defer cancel()
			if conn == nil {
				if conn, err = m.ConnectLocal(ctx, w.shard.Name, map[string]string{"synchronous_commit": "local"}); err != nil {
					return err
				}
			}
			return w.once(ctx, m, conn, id)
		}()
		if err != nil {
			hangUp(conn)
			conn = nil
		}
	}
}

// once commits on a primary, and looks whether it is one elsewhere: a replica's
// log would fill with refusals otherwise.
func (w *Witness) once(ctx context.Context, m *lab.Member, conn *pgx.Conn, id int64) error {
	var recovering bool
	if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering); err != nil || recovering {
		return err
	}
	var timeline int
	var ran time.Time
	sent := time.Since(w.epoch)
	// pg_walfile_name begins with the timeline that is being written; that of
	// pg_control_checkpoint follows only with the next checkpoint.
	err := conn.QueryRow(ctx, `INSERT INTO witness VALUES ($1, $2) ON CONFLICT (host) DO UPDATE SET id = excluded.id
		RETURNING ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int, clock_timestamp()`, m.Name, id).Scan(&timeline, &ran)
	now := time.Now()
	acked := now.Sub(w.epoch)
	if err != nil {
		return err
	}
	// The statement ran at `ran` and committed after it. PostgreSQL tells the
	// time of day, so it counts only where that fits.
	earliest := sent
	if at := acked - now.Round(0).Sub(ran); at > sent && at < acked {
		earliest = at
	}
	w.record(Commit{Member: m.Name, Timeline: timeline, Earliest: earliest, Acked: acked})
	return nil
}

// LongStatement starts a statement on a member that takes at least as long as d
// and then commits, and returns once it runs. While it runs, its backend looks
// neither for its client nor for its postmaster: it reads from a program. If it
// is ever acknowledged, that is a commit of the end of its time.
func (w *Witness) LongStatement(ctx context.Context, m *lab.Member, d time.Duration) error {
	conn, err := m.ConnectLocal(ctx, w.shard.Name, map[string]string{"synchronous_commit": "local"})
	if err != nil {
		return err
	}
	var timeline int
	if err := conn.QueryRow(ctx, "SELECT ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int").Scan(&timeline); err != nil {
		hangUp(conn)
		return fmt.Errorf("timeline of %s: %w", m.Name, err)
	}
	pid := conn.PgConn().PID()
	w.done.Go(func() {
		defer hangUp(conn)
		ctx, cancel := context.WithTimeout(w.ctx, d+statementLimit)
		defer cancel()
		sent := time.Since(w.epoch)
		_, err := conn.Exec(ctx, fmt.Sprintf("COPY witness_long FROM PROGRAM 'sleep %.1f; echo 1'", d.Seconds()))
		if acked := time.Since(w.epoch); err == nil {
			w.record(Commit{Member: m.Name, Timeline: timeline, Earliest: sent + d, Acked: acked})
		}
	})
	observer, err := m.ConnectLocal(ctx, w.shard.Name, nil)
	if err != nil {
		return err
	}
	defer hangUp(observer)
	return await(ctx, "the long statement does not begin", func(ctx context.Context) error {
		var running bool
		err := observer.QueryRow(ctx, "SELECT state = 'active' AND query LIKE 'COPY%' FROM pg_stat_activity WHERE pid = $1", pid).Scan(&running)
		if err == nil && !running {
			err = errors.New("its backend is idle")
		}
		return err
	})
}

// hangUp closes a connection without waiting for the other side, which may be
// lost.
func hangUp(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_ = conn.Close(ctx)
}
