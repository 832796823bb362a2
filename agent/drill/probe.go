package drill

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster/pgauth"
	"github.com/lictor-ha/lictor/agent/printable"
)

// Table is where probes write. It is made in the first schema of the search path where it is not
// there yet; a role that may not make tables can be given one with these columns.
const (
	Table    = "lictor_drill"
	tableDDL = "CREATE TABLE " + Table + " (run text NOT NULL, id bigint NOT NULL, at timestamptz NOT NULL, PRIMARY KEY (run, id))"
)

// Every is how often a probe asks: a wait is measured as exactly as that.
const Every = 50 * time.Millisecond

// endLimit bounds what is done with the probe's rows in the end.
const endLimit = 30 * time.Second

// Options say where a probe goes.
type Options struct {
	// Connection is a connection string or URI of libpq's. The shard's name stands for %s in it, and
	// is the database where it names none.
	Connection string
	// Limit bounds one attempt, connecting included.
	Limit time.Duration
}

// Check returns what is wrong with the options for a drill of several shards, or one.
func (o Options) Check(several bool) error {
	one, err := o.config("shard1")
	if err != nil {
		return err
	}
	other, err := o.config("shard2")
	if err != nil {
		return err
	}
	if several && one.Database == other.Database && one.Host == other.Host && one.Port == other.Port {
		return fmt.Errorf("it leads to the database %s for every shard: leave the database out, or write %%s for the shard's name", printable.Quote(one.Database))
	}
	return nil
}

// config is how to connect for a shard.
func (o Options) config(shard string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(strings.ReplaceAll(o.Connection, "%s", shard))
	if err != nil {
		// The text may have a password in it; what was wrong with it has none.
		if inner := errors.Unwrap(err); inner != nil {
			return nil, inner
		}
		return nil, errors.New("it is not a connection string of libpq's: KEY=VALUE with blanks between them, or postgresql://USER@HOST:PORT/DATABASE")
	}
	if c.Database == "" {
		c.Database = shard
	}
	c.RuntimeParams["application_name"] = "lictor drill"
	c.BuildFrontend = pgauth.Frontend
	// Nothing is kept at the server between statements: the next one may meet another server.
	c.DefaultQueryExecMode = pgx.QueryExecModeExec
	c.StatementCacheCapacity, c.DescriptionCacheCapacity = 0, 0
	return c, nil
}

// Probe is a client of one shard that asks again and again: it inserts a row, or reads where it may
// not write. After an error it connects anew. An insert whose outcome is unknown is not repeated.
type Probe struct {
	config *pgx.ConnConfig
	limit  time.Duration
	run    string
	mode   Mode
	system string
	record *record

	cancel context.CancelFunc
	done   sync.WaitGroup
	conn   *pgx.Conn // the loop's alone until it has ended
}

// Start connects to a shard, finds out whether the probe may write, and has it ask until Stop.
func Start(ctx context.Context, o Options, shard string) (*Probe, error) {
	config, err := o.config(shard)
	if err != nil {
		return nil, err
	}
	p := &Probe{config: config, limit: o.Limit, run: rand.Text(), mode: Writes}
	why := ""
	limit, done := context.WithTimeout(ctx, o.Limit)
	defer done()
	if p.conn, err = p.connect(limit); err == nil {
		why, err = p.prepare(limit)
	}
	if err != nil {
		hangUp(p.conn)
		return nil, fmt.Errorf("the probe at %s: %w", net.JoinHostPort(config.Host, fmt.Sprint(config.Port)), describe(err))
	}
	p.record = newRecord(p.mode, time.Now())
	p.record.result.Why = why
	if p.mode == Writes {
		p.record.result.Run = p.run
	}
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.done.Go(func() { p.ask(ctx) })
	return p, nil
}

// System is the system identifier of the cluster that the probe was led to; empty: it may not be
// asked for.
func (p *Probe) System() string { return p.system }

// Mode is what the probe does.
func (p *Probe) Mode() Mode { return p.mode }

// Answers waits for so many more answers.
func (p *Probe) Answers(ctx context.Context, n int64) error {
	from, _, _ := p.record.state()
	for {
		now, _, news := p.record.state()
		if now.Acked >= from.Acked+n {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("the probe got %d of %d answers, and %d errors: %w", now.Acked-from.Acked, n, now.Errors-from.Errors, ctx.Err())
		}
	}
}

// Stop ends the probe, compares the acknowledged rows with those that are there, and takes its
// rows away unless some are missing.
func (p *Probe) Stop(ctx context.Context) Result {
	p.cancel()
	p.done.Wait()
	p.record.end(time.Now())
	result, acked, _ := p.record.state()
	if p.mode != Writes {
		hangUp(p.conn)
		return result
	}
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer done()
	there, err := p.rows(ctx)
	switch {
	case err != nil:
		result.Unchecked = describe(err).Error()
		result.Left = "whether rows are missing is not known"
	default:
		if result.Lost, result.LostIDs = missing(acked, there); result.Lost > 0 {
			result.Left = "rows are missing"
			break
		}
		if _, err := p.conn.Exec(ctx, "DELETE FROM "+Table+" WHERE run = $1", p.run); err != nil {
			result.Left = "they could not be deleted: " + describe(err).Error()
		}
	}
	hangUp(p.conn)
	return result
}

// rows are the ids of the probe's rows, in order.
func (p *Probe) rows(ctx context.Context) ([]int64, error) {
	hangUp(p.conn) // it may be one that was given up
	var err error
	if p.conn, err = p.connect(ctx); err != nil {
		return nil, err
	}
	rows, err := p.conn.Query(ctx, "SELECT id FROM "+Table+" WHERE run = $1 ORDER BY id", p.run)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64]) // one that broke off is an error, and no loss
}

// errNoCancel: PostgreSQL would acknowledge a commit that waits for a standby if it were cancelled,
// and show it to others.
var errNoCancel = errors.New("the probe does not cancel statements")

// connect makes a connection that dials no more once it is made: pgx sends a cancel request over
// another one for each statement that is given up.
func (p *Probe) connect(ctx context.Context) (*pgx.Conn, error) {
	config := p.config.Copy()
	var made atomic.Bool
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if made.Load() {
			return nil, errNoCancel
		}
		return dial(ctx, network, address)
	}
	conn, err := pgauth.Connect(&config.Config, func() (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, config) })
	made.Store(err == nil)
	return conn, err
}

// prepare finds out where the probe has come to and what it may do there. It returns why it only
// reads.
func (p *Probe) prepare(ctx context.Context) (why string, err error) {
	var standby bool
	if err := p.conn.QueryRow(ctx, "SELECT pg_catalog.pg_is_in_recovery()").Scan(&standby); err != nil {
		return "", err
	}
	if standby {
		return "", errStandby
	}
	err = p.conn.QueryRow(ctx, "SELECT system_identifier::text FROM pg_catalog.pg_control_system()").Scan(&p.system)
	if err != nil && !isCode(err, insufficientPrivilege, undefinedFunction) {
		return "", err
	}
	for range 2 {
		err := p.insert(ctx, 0)
		if isCode(err, undefinedTable) {
			_, err = p.conn.Exec(ctx, tableDDL)
			if err == nil || isCode(err, duplicateTable, uniqueViolation) { // another drill was faster
				continue
			}
		}
		switch {
		case err == nil:
			return "", nil
		case isCode(err, insufficientPrivilege, noSchema, readOnly):
			p.mode = Reads
			return fmt.Sprintf("it may not write into %s: %v", Table, describe(err)), nil
		}
		return "", err
	}
	return "", fmt.Errorf("the table %s vanishes", Table)
}

var errStandby = errors.New("it is led to a standby, not to the primary")

// Codes of PostgreSQL's errors.
const (
	insufficientPrivilege = "42501"
	undefinedFunction     = "42883"
	undefinedTable        = "42P01"
	duplicateTable        = "42P07"
	uniqueViolation       = "23505"
	noSchema              = "3F000"
	readOnly              = "25006"
)

func isCode(err error, codes ...string) bool {
	var own *pgconn.PgError
	if !errors.As(err, &own) {
		return false
	}
	for _, code := range codes {
		if own.Code == code {
			return true
		}
	}
	return false
}

// ask is the life of the client: one attempt after another, each due one interval after the last
// began; late ones are not made up for.
func (p *Probe) ask(ctx context.Context) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for id := int64(1); ; id++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		err := p.attempt(ctx, id)
		now := time.Now()
		switch {
		case err == nil:
			p.record.ack(id, now, now.Sub(began))
			continue
		case ctx.Err() != nil:
			return // given up by Stop: nobody knows how it would have ended
		}
		p.record.fail(now, now.Sub(began), describe(err).Error())
		hangUp(p.conn)
		p.conn = nil
	}
}

func (p *Probe) attempt(ctx context.Context, id int64) (err error) {
	ctx, done := context.WithTimeout(ctx, p.limit)
	defer done()
	if p.conn == nil {
		if p.conn, err = p.connect(ctx); err != nil {
			return err
		}
	}
	if p.mode == Writes {
		return p.insert(ctx, id)
	}
	var standby bool
	err = p.conn.QueryRow(ctx, "SELECT pg_catalog.pg_is_in_recovery()").Scan(&standby)
	if err == nil && standby {
		err = errStandby
	}
	return err
}

func (p *Probe) insert(ctx context.Context, id int64) error {
	tag, err := p.conn.Exec(ctx, "INSERT INTO "+Table+" (run, id, at) VALUES ($1, $2, clock_timestamp())", p.run, id)
	if err == nil && tag.RowsAffected() != 1 {
		err = fmt.Errorf("an insert was answered %q", tag)
	}
	return err
}

// describe is what of an error says most, safe to be shown.
func describe(err error) error {
	var own *pgconn.PgError
	var op *net.OpError
	switch {
	case errors.As(err, &own):
		err = own
	case errors.Is(err, context.DeadlineExceeded):
		err = errLate
	case errors.As(err, &op):
		err = op
	}
	return printable.Error(err)
}

var errLate = errors.New("no answer in time")

// hangUp closes a connection without waiting for the other side, which may be lost.
func hangUp(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, done := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer done()
	_ = conn.Close(ctx) // nothing is left to be done about it
}
