package bouncer

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// refuse asks for a switchover that must break no transaction off.
func refuse(ctx context.Context, t *testing.T, leader *lab.Member) (status int, answer string) {
	t.Helper()
	status, answer, err := leader.Post(ctx, "/switchover", map[string]string{"leader": leader.Name, "on_busy": cluster.OnBusyRefuse})
	must(t, err)
	return status, answer
}

// holds counts how often bouncers have said that they hold clients.
func holds(t *testing.T, l *lab.Lab) (n int) {
	t.Helper()
	for _, b := range l.BouncerHosts() {
		text, err := os.ReadFile(b.Process("bouncer").LogPath())
		must(t, err)
		n += strings.Count(string(text), "holding clients")
	}
	return n
}

// A switchover with on_busy: refuse succeeds under ordinary load, of which nobody notices
// anything. With a long transaction it is refused before anybody waits; with one that turns out
// to be long, after half a second. Both go on.
func onBusyRefuse(t *testing.T, l *lab.Lab, s *lab.Shard) {
	ctx := within(t)
	old := healthy(ctx, t, s)
	v := visit(ctx, s)
	t.Cleanup(func() { _ = v.stop() })
	for _, b := range l.BouncerHosts() {
		busy(ctx, t, l, b)
	}
	if status, answer := refuse(ctx, t, old); status != http.StatusOK {
		t.Fatalf("under ordinary load: %d %s", status, answer)
	}
	leader := healthy(ctx, t, s)
	if leader == old {
		t.Fatalf("%s still leads", old.Name)
	}
	before := holds(t, l)
	if before < len(l.BouncerHosts()) {
		t.Errorf("clients were held %d times", before)
	}

	conn, err := s.ConnectClient(ctx)
	must(t, err)
	defer conn.Close(context.WithoutCancel(ctx))
	begin := func() pgx.Tx {
		tx, err := conn.Begin(ctx)
		must(t, err)
		_, err = tx.Exec(ctx, "SELECT 1")
		must(t, err)
		return tx
	}
	refused := func(tx pgx.Tx, why string) {
		t.Helper()
		status, answer := refuse(ctx, t, leader)
		if status == http.StatusOK {
			t.Fatalf("with a transaction under way: %d %s", status, answer)
		}
		if text, err := os.ReadFile(leader.Process("agent").LogPath()); err != nil || !strings.Contains(string(text), why) {
			t.Errorf("the leader's log does not have %q (%v); it answers %s", why, err, answer)
		}
		must(t, tx.Commit(ctx)) // it was not broken off
		atRest(ctx, t, l, s, nil)
		if now := healthy(ctx, t, s); now != leader {
			t.Errorf("%s leads, not %s", now.Name, leader.Name)
		}
	}
	long := begin()
	await(ctx, t, "the transaction is not old enough", func() error {
		var old bool
		if err := long.QueryRow(ctx, "SELECT clock_timestamp() - now() > interval '600 ms'").Scan(&old); err != nil || !old {
			return errors.Join(errors.New("not yet"), err)
		}
		return nil
	})
	refused(long, "transactions have run for more than 500ms")
	if after := holds(t, l); after != before {
		t.Errorf("clients were held %d times for a switchover that was refused at once", after-before)
	}
	began := time.Now()
	young := begin()
	refused(young, "transactions (in session pooling: sessions) of clients still run")
	t.Logf("the second refusal took %s", time.Since(began))
	if err := v.stop(); err != nil {
		t.Errorf("clients saw errors: %v", err)
	}
	t.Logf("%d statements", v.acked.Load())
}
