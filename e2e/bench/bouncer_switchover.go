package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	switchoverRuns = 20
	accounts       = 1000
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
	f := &switchoverFigures{Clients: crowdSize}
	bank := startCrowd(ctx, s, transfer)
	defer bank.stop()
	if err := bank.awaitAll(ctx, time.Minute); err != nil {
		return err
	}
	from, begun := bank.total(), time.Now()
	if err := sleep(ctx, 5*time.Second); err != nil {
		return err
	}
	f.TPS = float64(bank.total()-from) / time.Since(begun).Seconds()
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
	f.Median, f.Worst = median(f.Waits), slices.Max(f.Waits)
	if f.Lost, err = lostTransfers(ctx, bank); err != nil {
		return err
	}
	r.Switchover = f
	return nil
}

func oneSwitchover(ctx context.Context, s *lab.Shard, bank *crowd) (longest time.Duration, errs []string, err error) {
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
	longest, errs = waits(bank)
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

// transfer moves money as pgbench does: a transaction of several statements, each a
// round trip.
func transfer(ctx context.Context, conn *pgx.Conn, client int, done int64) error {
	account, delta := 1+rand.N(accounts), rand.N(1000)-500
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO ledger (client, number, account, delta) VALUES ($1, $2, $3, $4)", client, done+1, account, delta); err != nil {
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

// waits are the longest wait since the last reset, that of transactions under way
// too, and the errors.
func waits(bank *crowd) (longest time.Duration, errs []string) {
	_, ended, underWay := bank.turns()
	for _, t := range append(ended, underWay...) {
		longest = max(longest, t.took)
		if t.err != nil {
			errs = append(errs, t.err.Error())
		}
	}
	return longest, errs
}

// lostTransfers compares what was acknowledged with what the primary has; money that
// was moved half is lost as well.
func lostTransfers(ctx context.Context, bank *crowd) (int64, error) {
	leader, err := bank.shard.AwaitLeader(ctx)
	if err != nil {
		return 0, err
	}
	conn, err := leader.Connect(ctx, bank.shard.Name)
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
	return max(bank.total()-rows, 0), nil
}
