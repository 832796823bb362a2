package ansible

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// connectionLife is how long a client keeps a connection, as pools in
	// applications do: a drained pooler loses its clients by it.
	connectionLife = 5 * time.Second
	// statementLimit ends a statement that nobody answers: an error. It is longer
	// than any wait that clients of a planned change may see.
	statementLimit = 20 * time.Second
	pause          = 20 * time.Millisecond
)

// load is clients of some databases through the load balancer. Each inserts rows
// in transactions of two statements, and connects anew now and then. No statement
// is ever repeated, so every error is one that an application sees.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	commits map[string]int // by database
	errors  []string
	worst   time.Duration
	// worstIs says when and where the longest transaction was.
	worstIs string
}

// startLoad runs two clients for each database until stop is called.
func (s *site) startLoad(ctx context.Context, address, password string, databases ...string) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel, commits: map[string]int{}}
	for _, database := range databases {
		for i := range 2 {
			l.done.Go(func() { l.client(ctx, s, address, password, database, i) })
		}
	}
	return l
}

// stop ends the clients after the transaction under way.
func (l *load) stop() (commits int, errors []string, longest string) {
	l.cancel()
	l.done.Wait()
	for _, n := range l.commits {
		commits += n
	}
	return commits, l.errors, l.worstIs
}

// served is an error as long as one of the databases has committed nothing.
func (l *load) served(databases ...string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, database := range databases {
		if l.commits[database] == 0 {
			return fmt.Errorf("%s has committed no transaction; errors: %q", database, l.errors)
		}
	}
	return nil
}

func (l *load) client(ctx context.Context, s *site, address, password, database string, number int) {
	for ctx.Err() == nil {
		// Not ctx: a client that is told to stop finishes what it has begun.
		life := context.WithoutCancel(ctx)
		conn, err := connect(life, s, address, password, database)
		if err != nil {
			l.failed(fmt.Errorf("client %d of %s: connecting: %w", number, database, err))
			sleep(ctx, pause)
			continue
		}
		for begin := time.Now(); ctx.Err() == nil && time.Since(begin) < connectionLife; sleep(ctx, pause) {
			start := time.Now()
			if err = transaction(life, conn); err != nil {
				l.failed(fmt.Errorf("client %d of %s: %w", number, database, err))
				break
			}
			l.committed(database, start)
		}
		closing, cancel := context.WithTimeout(life, time.Second)
		_ = conn.Close(closing)
		cancel()
	}
}

func connect(ctx context.Context, s *site, address, password, database string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, statementLimit)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s user=app password=%s dbname=%s sslmode=prefer", host, port, password, database))
	if err != nil {
		return nil, err
	}
	// Transaction pooling: a prepared statement would be another connection's.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.DialFunc = s.dial
	return pgx.ConnectConfig(ctx, config)
}

func transaction(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, statementLimit)
	defer cancel()
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO load (at) VALUES (clock_timestamp())"); err != nil {
			return err
		}
		var n int
		return tx.QueryRow(ctx, "SELECT count(*) FROM (SELECT FROM load LIMIT 5) rows").Scan(&n)
	})
}

func (l *load) committed(database string, start time.Time) {
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commits[database]++
	if took > l.worst {
		l.worst = took
		l.worstIs = fmt.Sprintf("%s (%s, from %s)", took.Round(time.Millisecond), database, start.Format("15:04:05.000"))
	}
}

func (l *load) failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors = append(l.errors, time.Now().Format("15:04:05.000 ")+err.Error())
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
