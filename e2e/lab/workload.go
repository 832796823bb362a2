package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// WorkloadOptions say what the clients of a shard do. Zero values mean the
// defaults, with which all figures are measured.
type WorkloadOptions struct {
	WriteEvery       time.Duration // 10 ms
	ReadEvery        time.Duration // 50 ms; negative: no reader
	StatementTimeout time.Duration // 5 s
	// Keep bounds how far back acknowledgements are remembered one by one;
	// zero: all of them.
	Keep time.Duration
	// Address is where the clients connect; empty: the load balancer.
	Address string
}

func (o WorkloadOptions) withDefaults(l *Lab) WorkloadOptions {
	set := func(field *time.Duration, value time.Duration) {
		if *field == 0 {
			*field = value
		}
	}
	set(&o.WriteEvery, 10*time.Millisecond)
	set(&o.ReadEvery, 50*time.Millisecond)
	set(&o.StatementTimeout, 5*time.Second)
	if o.Address == "" && l.balancer != nil {
		o.Address = l.balancer.Listen
	}
	return o
}

// Workload is an application of one shard: a client that inserts a row every 10
// ms and one that reads, both through the load balancer. Each waits 2 s for a
// connection and 5 s for a statement, and connects again at once after an
// error. An insert whose outcome is unknown is not repeated.
type Workload struct {
	Writes *History
	Reads  *History

	shard *Shard
	opts  WorkloadOptions
	// client is this workload's part of the table.
	client string
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// StartWorkload starts the clients of a shard that Prepare has prepared. The
// caller stops them.
func (s *Shard) StartWorkload(ctx context.Context, opts WorkloadOptions) *Workload {
	opts = opts.withDefaults(s.lab)
	ctx, cancel := context.WithCancel(ctx)
	w := &Workload{
		Writes: newHistory(opts.Keep), Reads: newHistory(opts.Keep),
		shard: s, opts: opts, client: rand.Text(), cancel: cancel,
	}
	w.done.Go(func() { w.run(ctx, w.Writes, opts.WriteEvery, w.insert) })
	if opts.ReadEvery > 0 {
		w.done.Go(func() { w.run(ctx, w.Reads, opts.ReadEvery, w.read) })
	}
	return w
}

// Stop ends the clients and waits for them. The statement under way is given
// up, its outcome unknown.
func (w *Workload) Stop() {
	w.cancel()
	w.done.Wait()
}

// statement is one operation of a client.
type statement func(ctx context.Context, conn *pgx.Conn, id int64) error

// run is the life of one client: one statement after another, each due one
// interval after the last began; late ones are not made up for.
func (w *Workload) run(ctx context.Context, history *History, every time.Duration, do statement) {
	var conn *pgx.Conn
	defer func() { hangUp(ctx, conn) }()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for id := int64(1); ; id++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		var err error
		if conn == nil {
			conn, err = w.connect(ctx)
		}
		if err == nil {
			err = w.once(ctx, conn, id, do)
		}
		now := time.Now()
		switch {
		case err == nil:
			history.ack(Ack{ID: id, At: now, Took: now.Sub(begun)})
			continue
		case ctx.Err() != nil:
			return
		}
		history.fail(ClientError{At: now, Took: now.Sub(begun), Err: err.Error()})
		hangUp(ctx, conn)
		conn = nil
	}
}

func (w *Workload) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return w.shard.lab.connect(ctx, w.opts.Address, AppRole, w.shard.lab.Secrets.App, w.shard.Name)
}

func (w *Workload) once(ctx context.Context, conn *pgx.Conn, id int64, do statement) error {
	ctx, cancel := context.WithTimeout(ctx, w.opts.StatementTimeout)
	defer cancel()
	return do(ctx, conn, id)
}

func (w *Workload) insert(ctx context.Context, conn *pgx.Conn, id int64) error {
	tag, err := conn.Exec(ctx, "INSERT INTO writes (client, id, at) VALUES ($1, $2, clock_timestamp())", w.client, id)
	if err == nil && tag.RowsAffected() != 1 {
		return fmt.Errorf("insert answered %q", tag)
	}
	return err
}

func (w *Workload) read(ctx context.Context, conn *pgx.Conn, _ int64) error {
	var last int64
	return conn.QueryRow(ctx, "SELECT coalesce(max(id), 0) FROM writes WHERE client = $1", w.client).Scan(&last)
}

// hangUp closes a connection without waiting for the other side, which may be
// lost.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 50*time.Millisecond)
	defer cancel()
	_ = conn.Close(ctx)
}

// Loss is the outcome of comparing what was acknowledged with what is there.
type Loss struct {
	Acked int64 // rows that were acknowledged
	Lost  int64 // those of them that the primary does not have
	IDs   []int64
}

// LostAcked compares the acknowledged rows with the table on the shard's
// present primary, past all poolers. Clients may go on meanwhile: rows that
// they add later are not looked at.
func (w *Workload) LostAcked(ctx context.Context) (Loss, error) {
	acked := w.Writes.ackedRanges()
	leader, err := w.shard.AwaitLeader(ctx)
	if err != nil {
		return Loss{}, err
	}
	loss, err := w.compare(ctx, leader, acked)
	if err != nil {
		return Loss{}, fmt.Errorf("comparing acknowledged rows with those on %s: %w", leader.Name, err)
	}
	return loss, nil
}

func (w *Workload) compare(ctx context.Context, m *Member, acked ranges) (Loss, error) {
	conn, err := m.Connect(ctx, w.shard.Name)
	if err != nil {
		return Loss{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, "SELECT id FROM writes WHERE client = $1 ORDER BY id", w.client)
	if err != nil {
		return Loss{}, err
	}
	defer rows.Close()
	var scanErr error
	next := func() (id int64, more bool) {
		if scanErr != nil || !rows.Next() {
			return 0, false
		}
		scanErr = rows.Scan(&id)
		return id, scanErr == nil
	}
	ids, lost := acked.missing(next, 20)
	rows.Close()
	// A list that broke off would look like a loss.
	if err := errors.Join(scanErr, rows.Err()); err != nil {
		return Loss{}, err
	}
	return Loss{Acked: acked.count(), Lost: lost, IDs: ids}, nil
}

// Save writes both histories into a directory.
func (w *Workload) Save(dir string) error {
	for name, history := range map[string]*History{"writes": w.Writes, "reads": w.Reads} {
		file, err := os.Create(filepath.Join(dir, w.shard.Name+"-"+name+".log"))
		if err != nil {
			return fmt.Errorf("saving the clients' history: %w", err)
		}
		_, err = history.WriteTo(file)
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("saving the clients' history: %w", err)
		}
	}
	return nil
}
