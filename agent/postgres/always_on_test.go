package postgres

import (
	"context"
	"syscall"
	"testing"
	"time"
)

// update_process_title = off: the titles of WAL senders, by which stuck ones are told, say nothing of positions.
func TestStopWithoutTitles(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	sql(ctx, t, a, "ALTER SYSTEM SET wal_sender_timeout = 0")
	sql(ctx, t, a, "ALTER SYSTEM SET update_process_title = off")
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, b, "streams", func(s State) bool { return s.ReplicationState == Streaming })
	told := true
	receiver, err := b.walReceiver(ctx, &told)
	must(t, err)
	must(t, syscall.Kill(receiver, syscall.SIGSTOP))
	defer func() { _ = syscall.Kill(receiver, syscall.SIGCONT) }()
	sql(ctx, t, a, "CREATE TABLE public.much AS SELECT repeat(md5(g::text), 20) FROM generate_series(1, 60000) g")
	time.Sleep(2 * time.Second)
	limit, cancel := context.WithTimeout(ctx, senderPatience+busy)
	defer cancel()
	if err := a.StopWhen(limit, Fast, func(context.Context, int64) error { return nil }); err != nil {
		t.Errorf("a standby that reads nothing holds up the stop: %v", err)
	}
}

// track_activities = off: transactions have no beginning in pg_stat_activity, and a switchover that is to be refused
// while they run is not.
func TestLongTransactionsUntracked(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a := serving(ctx, t)
	sql(ctx, t, a, "ALTER SYSTEM SET track_activities = off")
	sql(ctx, t, a, "SELECT pg_reload_conf()")
	time.Sleep(2 * time.Second)
	conn, err := a.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	tx, err := conn.Begin(ctx)
	must(t, err)
	_, err = tx.Exec(ctx, "SELECT txid_current()")
	must(t, err)
	time.Sleep(2 * time.Second)
	if n, err := a.LongTransactions(ctx, time.Second); err != nil || n == 0 {
		t.Errorf("%d transactions are said to run (%v), one does", n, err)
	}
}
