package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	lossRuns    = 5
	lossClients = 200
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
	t := startTellers(ctx, s)
	defer t.stop()
	r.Losses = map[string]*lossFigures{}
	for _, kind := range []struct {
		name   string
		strike func(context.Context, *lab.Member) error
		mend   func(context.Context, *lab.Member) error
	}{
		// Its agent sees it, and starts it again or gives up the lease.
		{"postgres_killed", killPostgres, func(context.Context, *lab.Member) error { return nil }},
		// The host says nothing more, and refuses nothing.
		{"host_silent", func(ctx context.Context, m *lab.Member) error { return m.PowerOff(ctx) }, func(ctx context.Context, m *lab.Member) error { return m.Start(ctx) }},
		// All of its processes end at once; the host refuses connections.
		{"host_killed", func(ctx context.Context, m *lab.Member) error { return m.Kill(ctx) }, func(ctx context.Context, m *lab.Member) error { return m.Start(ctx) }},
	} {
		f := &lossFigures{Texts: map[string]int{}}
		for range lossRuns {
			if err := f.run(ctx, s, t, kind.strike, kind.mend); err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
		}
		r.Losses[kind.name] = f
		progress("   %s: %+v", kind.name, *f)
	}
	return nil
}

// killPostgres kills the postmaster; the agent does away with the rest.
func killPostgres(_ context.Context, m *lab.Member) error {
	postmaster, err := m.Postmaster()
	if err != nil {
		return err
	}
	return postmaster.Signal(unix.SIGKILL)
}

func (f *lossFigures) run(ctx context.Context, s *lab.Shard, t *tellers, strike, mend func(context.Context, *lab.Member) error) error {
	if err := whole(ctx, s); err != nil {
		return err
	}
	leader, err := s.Leader(ctx)
	if err != nil {
		return err
	}
	if err := t.awaitAll(ctx); err != nil {
		return err
	}
	t.reset()
	if err := strike(ctx, leader); err != nil {
		return err
	}
	if err := t.awaitAll(ctx); err != nil {
		return err
	}
	if err := sleep(ctx, afterLoss); err != nil {
		return err
	}
	f.take(t)
	return mend(ctx, leader)
}

func (f *lossFigures) take(t *tellers) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.Runs++
	f.Statements += t.begun
	f.Waits = append(f.Waits, milliseconds(t.most))
	unsent := 0
	for text, n := range t.errs {
		f.Texts[text] += n
		if strings.Contains(text, "server login has been failing") || strings.Contains(text, "query_wait_timeout") || strings.Contains(text, "connecting") {
			unsent += n
		} else {
			f.Sent += n
		}
	}
	f.Unsent += unsent
	f.UnsentByRun = append(f.UnsentByRun, unsent)
}

// tellers are clients of one statement at a time.
type tellers struct {
	shard  *lab.Shard
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	begun   int
	most    time.Duration
	errs    map[string]int
	waiting map[int]bool // those that have not had an answer since they were last awaited
}

func startTellers(ctx context.Context, s *lab.Shard) *tellers {
	ctx, cancel := context.WithCancel(ctx)
	t := &tellers{shard: s, cancel: cancel, errs: map[string]int{}, waiting: map[int]bool{}}
	for i := range lossClients {
		t.done.Go(func() { t.client(ctx, i) })
	}
	return t
}

func (t *tellers) stop() {
	t.cancel()
	t.done.Wait()
}

func (t *tellers) client(ctx context.Context, me int) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for sleep(ctx, rand.N(2*thinkTime)) == nil {
		begun := time.Now()
		t.mu.Lock()
		t.begun++
		t.mu.Unlock()
		var err error
		if conn == nil {
			conn, err = t.shard.ConnectClient(ctx)
		}
		if err == nil {
			_, err = conn.Exec(ctx, "INSERT INTO ledger (client, number, account, delta) VALUES ($1, 0, 1, 0)", me)
		}
		if ctx.Err() != nil {
			return
		}
		t.note(me, time.Since(begun), err)
		if err != nil && conn != nil {
			_ = conn.Close(ctx)
			conn = nil
		}
	}
}

func (t *tellers) note(me int, took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.errs[err.Error()]++
		return
	}
	t.most = max(t.most, took)
	delete(t.waiting, me)
}

// awaitAll waits until every client has had an answer from now on.
func (t *tellers) awaitAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	t.mu.Lock()
	for i := range lossClients {
		t.waiting[i] = true
	}
	t.mu.Unlock()
	for {
		t.mu.Lock()
		left, kinds := len(t.waiting), len(t.errs)
		t.mu.Unlock()
		if left == 0 {
			return nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%d clients get no answer, %d kinds of errors: %w", left, kinds, err)
		}
	}
}

func (t *tellers) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun, t.most, t.errs = 0, 0, map[string]int{}
}
