package postgres

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Sessions that take every connection slot, those reserved for superusers too, keep
// the agent from nothing.
func TestNoFreeConnectionSlot(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	for _, p := range []*Instance{a, b} {
		p.hangUp()
		exhaust(ctx, t, p)
	}

	if s, err := b.Observe(ctx); err != nil || !s.Accepting || !s.InRecovery || s.ReplicationState != Streaming || s.LSN() == 0 {
		t.Fatalf("the replica: %+v %v", s, err)
	}
	s, err := a.Observe(ctx)
	if err != nil || !s.Accepting || s.InRecovery || s.WriteLSN == 0 {
		t.Fatalf("the primary: %+v %v", s, err)
	}
	for _, standby := range s.Standbys {
		if standby.ApplicationName != b.name {
			t.Errorf("the agent's own connection counts as a standby: %+v", standby)
		}
	}
	if _, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{b.name}}); err != nil {
		t.Error(err)
	}
	keepSlots(ctx, t, a, b.name, "c")
	must(t, a.Checkpoint(ctx))
	if err := a.Answers(ctx, upstream(a), true, ""); err != nil {
		t.Error("the primary cannot be reached", err)
	}
	if _, err := a.ConfigProblems(ctx); err != nil {
		t.Error(err)
	}
	must(t, a.Stop(ctx, Fast))

	must(t, b.Promote(ctx, 0))
	if s, err := b.Observe(ctx); err != nil || s.InRecovery || s.Timeline != 2 {
		t.Errorf("after the promotion: %+v %v", s, err)
	}
	must(t, b.Stop(ctx, Fast))
}

// A library that no session can load keeps everybody out but the agent.
func TestNoLibraryToLoad(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, p, "ALTER SYSTEM SET session_preload_libraries = 'nosuch'")
	sql(ctx, t, p, "ALTER SYSTEM SET local_preload_libraries = 'nosuch'")
	must(t, p.Stop(ctx, Fast))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, p, "answers", func(s State) bool { return s.Accepting })
	if _, err := p.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}}); err != nil {
		t.Error(err)
	}
}

// A promotion needs no connection: neither a slot of its own nor a WAL sender's.
func TestPromotionWithoutAnySlot(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	must(t, a.Stop(ctx, Fast))
	b.hangUp()
	exhaust(ctx, t, b)
	exhaustSenders(ctx, t, b)
	if _, err := b.dedicated(ctx); !noSlot(err) {
		t.Fatalf("there is a slot: %v", err)
	}
	if s, err := b.Observe(ctx); err == nil || s.Accepting {
		t.Errorf("what cannot be known is told: %+v %v", s, err)
	}
	refused := errors.New("not now")
	if err := b.PromoteAfter(ctx, 0, func(context.Context) error { return refused }); !errors.Is(err, refused) || has(t, b, "promote") {
		t.Errorf("promoted in spite of %v", err)
	}
	must(t, b.Promote(ctx, 4)) // timelines up to 4 may be in use
	c, err := b.control(ctx)
	if err != nil || c.State != "in production" || b.getRuns().role != Primary || has(t, b, "promote") {
		t.Errorf("%+v %v", c, err)
	}
	if history, err := os.ReadFile(b.historyFile(5)); err != nil || len(history) == 0 {
		t.Errorf("it has not passed over the timelines that may be in use: %v", err)
	}
}

// exhaustSenders takes every slot of a WAL sender.
func exhaustSenders(ctx context.Context, t *testing.T, p *Instance) {
	t.Helper()
	u := upstream(p)
	for range 50 {
		conn, err := p.replicationConn(ctx, u)
		if noSlot(err) {
			return
		}
		must(t, err)
		t.Cleanup(func() { hangUpOn(conn) })
	}
	t.Fatal("there is no end of WAL senders")
}

// exhaust opens idle sessions of the superuser until no slot is left.
func exhaust(ctx context.Context, t *testing.T, p *Instance) {
	t.Helper()
	c, err := pgx.ParseConfig("")
	must(t, err)
	c.Host, c.Port, c.Database = p.address(), uint16(p.port), "postgres"
	c.User, c.Password = "postgres", secret+"super"
	c.TLSConfig, c.Fallbacks = nil, nil
	for range 200 {
		conn, err := pgx.ConnectConfig(ctx, c)
		if refused := new(pgconn.PgError); errors.As(err, &refused) && refused.Code == "53300" {
			return
		}
		must(t, err)
		t.Cleanup(func() { hangUpOn(conn) })
	}
	t.Fatal("there is no end of connections")
}
