package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	lossRuns = 5
	// lossPatience bounds how long the shard may take to serve everybody again.
	lossPatience = 2 * time.Minute
	// afterLoss is for how long clients are watched once the shard serves again.
	afterLoss = 2 * time.Second
)

// lossFigures are of primaries that are lost without notice, under clients that
// make one statement at a time and think between two of them. A statement that
// PgBouncer has sent to the primary that is lost fails, whatever anybody does;
// one that it has not sent should wait.
type lossFigures struct {
	Runs int `json:"runs"`
	// Statements is how many were begun from the loss until the shard served again.
	Statements int `json:"statements"`
	// Sent is how many failed that were on their way to the primary.
	Sent int `json:"errors_sent"`
	// Unsent is how many failed though they only waited, in all and by run.
	Unsent      int   `json:"errors_while_waiting"`
	UnsentByRun []int `json:"errors_while_waiting_by_run"`
	// Waits are the longest statements of each run that succeeded.
	Waits []float64 `json:"longest_waits_ms"`
	// Texts counts the errors by what the clients were told.
	Texts map[string]int `json:"errors,omitempty"`
}

// losses measures both ways to lose a primary.
func losses(ctx context.Context, r *bouncerReport) error {
	l, err := newLab(ctx, lab.Options{})
	defer func() { closeLab(l) }()
	if err != nil {
		return err
	}
	s := l.Shard(0)
	if err := prepareBank(ctx, s); err != nil {
		return err
	}
	tellers := startCrowd(ctx, s, tell)
	defer tellers.stop()
	r.Losses = map[string]*lossFigures{}
	for _, kind := range []struct {
		name   string
		strike func(*lab.Member, context.Context) error
		host   bool // is lost, and has to be started again
	}{
		// Its agent sees it, and starts it again or gives up the lease.
		{"postgres_killed", killPostgres, false},
		// The host says nothing more, and refuses nothing.
		{"host_silent", (*lab.Member).PowerOff, true},
		// All of its processes end at once; the host refuses connections.
		{"host_killed", (*lab.Member).Kill, true},
	} {
		f := &lossFigures{Texts: map[string]int{}}
		for range lossRuns {
			lost, err := f.run(ctx, tellers, kind.strike)
			if err == nil && kind.host {
				err = lost.Start(ctx)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
		}
		r.Losses[kind.name] = f
		progress("   %s: %+v", kind.name, *f)
	}
	return nil
}

// killPostgres kills the postmaster; the agent does away with the rest.
func killPostgres(m *lab.Member, _ context.Context) error {
	postmaster, err := m.Postmaster()
	if err != nil {
		return err
	}
	return postmaster.Signal(unix.SIGKILL)
}

// run loses the primary of a whole shard and returns it.
func (f *lossFigures) run(ctx context.Context, tellers *crowd, strike func(*lab.Member, context.Context) error) (*lab.Member, error) {
	if err := whole(ctx, tellers.shard); err != nil {
		return nil, err
	}
	leader, err := tellers.shard.Leader(ctx)
	if err != nil {
		return nil, err
	}
	if err := tellers.awaitAll(ctx, lossPatience); err != nil {
		return nil, err
	}
	tellers.reset()
	if err := strike(leader, ctx); err != nil {
		return nil, err
	}
	if err := tellers.awaitAll(ctx, lossPatience); err != nil {
		return nil, err
	}
	if err := sleep(ctx, afterLoss); err != nil {
		return nil, err
	}
	f.take(tellers)
	return leader, nil
}

func (f *lossFigures) take(tellers *crowd) {
	since, ended, underWay := tellers.turns()
	f.Runs++
	var longest time.Duration
	unsent := 0
	for _, t := range append(ended, underWay...) {
		if t.begun.After(since) {
			f.Statements++
		}
	}
	for _, t := range ended {
		if t.err == nil {
			longest = max(longest, t.took)
			continue
		}
		text := t.err.Error()
		f.Texts[text]++
		if strings.Contains(text, "server login has been failing") || strings.Contains(text, "query_wait_timeout") || strings.Contains(text, "connecting") {
			unsent++
		} else {
			f.Sent++
		}
	}
	f.Waits = append(f.Waits, milliseconds(longest))
	f.Unsent += unsent
	f.UnsentByRun = append(f.UnsentByRun, unsent)
}

// tell makes one statement.
func tell(ctx context.Context, conn *pgx.Conn, client int, _ int64) error {
	_, err := conn.Exec(ctx, "INSERT INTO ledger (client, number, account, delta) VALUES ($1, 0, 1, 0)", client)
	return err
}
