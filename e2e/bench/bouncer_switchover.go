package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	switchoverRuns    = 20
	switchoverClients = 200
	// thinkTime is between a client's transactions, on average.
	thinkTime = 500 * time.Millisecond
	accounts  = 1000
	// afterSwitchover is for how long clients are watched once the new leader serves.
	afterSwitchover = 2 * time.Second
)

// switchoverFigures are of planned switchovers under 200 clients, which go through
// the load balancer and two PgBouncers. A wait is the time from a transaction's
// begin to its commit.
type switchoverFigures struct {
	Runs    int     `json:"runs"`
	Errors  int     `json:"client_errors"`
	Median  float64 `json:"median_ms"`
	Worst   float64 `json:"worst_ms"`
	Clients int     `json:"clients"`
	// Waits are the longest ones of each run.
	Waits []float64 `json:"longest_waits_ms"`
	// TPS is how many transactions a second the clients made when nothing happened.
	TPS  float64 `json:"transactions_per_second"`
	Lost int64   `json:"lost_acked"`
	// Samples are some of the errors, if there were any.
	Samples []string `json:"errors,omitempty"`
}

func switchovers(ctx context.Context, r *bouncerReport) error {
	l, err := newLab(ctx, lab.Options{})
	defer func() { closeLab(l) }()
	if err != nil {
		return err
	}
	s := l.Shard(0)
	if err := prepareBank(ctx, s); err != nil {
		return err
	}
	f := &switchoverFigures{Clients: switchoverClients}
	bank := startBank(ctx, s)
	defer bank.stop()
	if err := bank.awaitAll(ctx); err != nil {
		return err
	}
	from, begun := bank.acked(), time.Now()
	if err := sleep(ctx, 5*time.Second); err != nil {
		return err
	}
	f.TPS = float64(bank.acked()-from) / time.Since(begun).Seconds()
	for range switchoverRuns {
		wait, errs, err := oneSwitchover(ctx, s, bank)
		if err != nil {
			return err
		}
		f.Runs++
		f.Errors += len(errs)
		f.Samples = append(f.Samples, errs[:min(len(errs), 3)]...)
		f.Waits = append(f.Waits, milliseconds(wait))
		progress("   switchover %d: longest wait %.0f ms, %d errors", f.Runs, milliseconds(wait), len(errs))
	}
	bank.stop()
	sorted := slices.Sorted(slices.Values(f.Waits))
	f.Median, f.Worst = (sorted[(len(sorted)-1)/2]+sorted[len(sorted)/2])/2, sorted[len(sorted)-1]
	if f.Lost, err = bank.lost(ctx); err != nil {
		return err
	}
	r.Switchover = f
	return nil
}

func oneSwitchover(ctx context.Context, s *lab.Shard, bank *bank) (longest time.Duration, errs []string, err error) {
	if err := whole(ctx, s); err != nil {
		return 0, nil, err
	}
	old, err := s.Leader(ctx)
	if err != nil {
		return 0, nil, err
	}
	snapshot, err := s.Snapshot(ctx)
	if err != nil {
		return 0, nil, err
	}
	if err := sleep(ctx, afterSwitchover); err != nil {
		return 0, nil, err
	}
	bank.reset()
	if err := s.Switchover(ctx, old, s.Member(snapshot.Sync.Value.Standbys()[0])); err != nil {
		return 0, nil, err
	}
	if _, err := s.AwaitLeader(ctx, old); err != nil {
		return 0, nil, err
	}
	if err := sleep(ctx, afterSwitchover); err != nil {
		return 0, nil, err
	}
	longest, errs = bank.longest()
	return longest, errs, nil
}

// prepareBank makes the tables of pgbench's kind.
func prepareBank(ctx context.Context, s *lab.Shard) error {
	leader, err := s.Leader(ctx)
	if err != nil {
		return err
	}
	conn, err := leader.Connect(ctx, s.Name)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, fmt.Sprintf(`CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
		INSERT INTO accounts SELECT i, 0 FROM generate_series(1, %d) i;
		CREATE TABLE ledger (client int, number bigint, account int, delta int, at timestamptz DEFAULT clock_timestamp());
		GRANT ALL ON accounts, ledger TO %s`, accounts, lab.AppRole))
	return err
}

// bank is 200 clients that move money as pgbench does: a transaction of several
// statements, each a round trip.
type bank struct {
	shard  *lab.Shard
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex
	begun  map[int]time.Time // transactions under way
	most   time.Duration
	errs   []string
	counts [switchoverClients]int64
}

func startBank(ctx context.Context, s *lab.Shard) *bank {
	ctx, cancel := context.WithCancel(ctx)
	b := &bank{shard: s, cancel: cancel, begun: map[int]time.Time{}}
	for i := range switchoverClients {
		b.done.Go(func() { b.client(ctx, i) })
	}
	return b
}

func (b *bank) stop() {
	b.cancel()
	b.done.Wait()
}

func (b *bank) client(ctx context.Context, me int) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for ctx.Err() == nil {
		if sleep(ctx, rand.N(2*thinkTime)) != nil {
			return
		}
		b.enter(me)
		var err error
		if conn == nil {
			conn, err = b.shard.ConnectClient(ctx)
		}
		if err == nil {
			err = b.transaction(ctx, conn, me)
		}
		if ctx.Err() != nil {
			return
		}
		b.leave(me, err)
		if err != nil && conn != nil {
			_ = conn.Close(ctx)
			conn = nil
		}
	}
}

func (b *bank) transaction(ctx context.Context, conn *pgx.Conn, me int) error {
	account, delta := 1+rand.N(accounts), rand.N(1000)-500
	number := b.count(me) + 1
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO ledger (client, number, account, delta) VALUES ($1, $2, $3, $4)", me, number, account, delta); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE accounts SET balance = balance + $1 WHERE id = $2", delta, account); err != nil {
		return err
	}
	var balance int64
	if err := tx.QueryRow(ctx, "SELECT balance FROM accounts WHERE id = $1", account).Scan(&balance); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

func (b *bank) enter(me int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.begun[me] = time.Now()
}

func (b *bank) leave(me int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.most = max(b.most, time.Since(b.begun[me]))
	delete(b.begun, me)
	if err != nil {
		b.errs = append(b.errs, err.Error())
		return
	}
	b.counts[me]++
}

func (b *bank) count(me int) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[me]
}

func (b *bank) acked() (sum int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.counts {
		sum += n
	}
	return sum
}

// awaitAll waits until every client has made a transaction.
func (b *bank) awaitAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		b.mu.Lock()
		idle, errs := slices.Contains(b.counts[:], 0), slices.Clone(b.errs)
		b.mu.Unlock()
		if !idle {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return errors.Join(fmt.Errorf("not all clients can work: %w", err), fmt.Errorf("%v", errs[:min(3, len(errs))]))
		}
	}
}

func (b *bank) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.most, b.errs = 0, nil
}

// longest is the longest wait since reset, that of transactions under way too.
func (b *bank) longest() (time.Duration, []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	longest := b.most
	for _, begun := range b.begun {
		longest = max(longest, time.Since(begun))
	}
	return longest, slices.Clone(b.errs)
}

// lost compares what was acknowledged with what the primary has; money that was
// moved half is lost as well.
func (b *bank) lost(ctx context.Context) (int64, error) {
	leader, err := b.shard.AwaitLeader(ctx)
	if err != nil {
		return 0, err
	}
	conn, err := leader.Connect(ctx, b.shard.Name)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var rows, difference int64
	err = conn.QueryRow(ctx, `SELECT (SELECT count(DISTINCT (client, number)) FROM ledger),
		(SELECT coalesce(sum(delta), 0) FROM ledger) - (SELECT sum(balance) FROM accounts)`).Scan(&rows, &difference)
	if err != nil {
		return 0, err
	}
	if difference != 0 {
		return 0, fmt.Errorf("accounts and ledger differ by %d", difference)
	}
	return max(b.acked()-rows, 0), nil
}
