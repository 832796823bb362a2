package postgres

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// shownNames is whom commits wait for, as PostgreSQL shows it.
func shownNames(ctx context.Context, t *testing.T, p *Instance) string {
	t.Helper()
	return observe(ctx, t, p, "answers", func(s State) bool { return s.Accepting }).SyncNames
}

// A primary's commits wait for whom they waited before, also when a start as a replica
// has broken off in between; and for whom the start says, whatever the file does.
func TestPrimaryStartsWithItsStandbys(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	mine := settings(t, dir, "a")
	p := newInstance(t, mine)
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	_, err := p.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}})
	must(t, err)
	must(t, p.Stop(ctx, Fast))

	signal := p.inData("standby.signal")
	must(t, os.Mkdir(signal, 0o700)) // it cannot be written
	if err := p.Start(ctx, StartAs{Role: Replica}); err == nil {
		t.Fatal("started as a replica")
	}
	must(t, os.Remove(signal))
	if again := newInstance(t, mine); again.syncNames != `"b"` {
		t.Errorf("an agent that begins anew finds %q", again.syncNames)
	}
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	if names := shownNames(ctx, t, p); names != `"b"` {
		t.Errorf("commits wait for %q", names)
	}
	must(t, p.Stop(ctx, Fast))

	must(t, p.Start(ctx, StartAs{Role: Primary, Sync: &SyncSetting{Names: []string{"b", "c"}, Any: 1}}))
	if names := shownNames(ctx, t, p); names != `ANY 1 ("b","c")` {
		t.Errorf("commits wait for %q", names)
	}
	must(t, p.Stop(ctx, Fast))
	must(t, p.Start(ctx, StartAs{Role: Primary, Sync: &SyncSetting{}}))
	if names := shownNames(ctx, t, p); names != "" {
		t.Errorf("commits wait for %q", names)
	}
}

// ALTER SYSTEM, whose file wins over the agent's, frees no commit of those that it waits
// for: not from the next start on, and not while PostgreSQL runs.
func TestAlterSystemFreesNoCommit(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	_, err := p.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}})
	must(t, err)
	sql(ctx, t, p, "ALTER SYSTEM SET synchronous_standby_names = ''")
	crash(t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary, Sync: &SyncSetting{Names: []string{"b"}}}))
	if names := shownNames(ctx, t, p); names != `"b"` {
		t.Errorf("after the start commits wait for %q", names)
	}
	sql(ctx, t, p, "ALTER SYSTEM SET synchronous_standby_names = ''")
	sql(ctx, t, p, "SELECT pg_reload_conf()")
	_, err = p.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}})
	must(t, err)
	if names := shownNames(ctx, t, p); names != `"b"` {
		t.Errorf("set anew, commits wait for %q", names)
	}
}

// What must come before a promotion comes before it, and its failure ends it.
func TestPromoteAfter(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	_, b := pair(ctx, t)
	bad := errors.New("the key could not be written")
	called := false
	err := b.PromoteAfter(ctx, 0, func(ctx context.Context) error {
		called = true
		if s, err := b.Observe(ctx); err != nil || !s.InRecovery {
			t.Errorf("it is promoted already: %+v %v", s, err)
		}
		return bad
	})
	if !called || !errors.Is(err, bad) {
		t.Errorf("called: %v; %v", called, err)
	}
	if s, err := b.Observe(ctx); err != nil || !s.InRecovery {
		t.Errorf("promoted all the same: %+v %v", s, err)
	}
	// standby.signal is what tells afterwards whether a promotion has happened.
	if d, err := b.DataDir(ctx); err != nil || !d.Standby {
		t.Errorf("%+v %v", d, err)
	}
	must(t, b.Promote(ctx, 0))
	must(t, b.Kill(ctx))
	if d, err := b.DataDir(ctx); err != nil || d.Standby {
		t.Errorf("after the promotion: %+v %v", d, err)
	}
}

// Clients are those of others: neither the agent's own connections nor PostgreSQL's
// processes.
func TestClients(t *testing.T) {
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	_, err := p.Observe(ctx)
	must(t, err)
	if n, err := p.Clients(ctx); err != nil || n != 0 {
		t.Errorf("without a client: %d %v", n, err)
	}
	conn, err := p.connect(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, "postgres", "somebody")
	must(t, err)
	defer hangUpOn(conn)
	if n, err := p.Clients(ctx); err != nil || n != 1 {
		t.Errorf("with one: %d %v", n, err)
	}
}

// The first words of an error are what PostgreSQL has died of, not what it told the clients
// that came meanwhile.
func TestWhyPostgreSQLEnded(t *testing.T) {
	refusal := "2026-11-29 22:55:58.717 UTC [27234] postgres@postgres FATAL:  the database system is not accepting connections\n" +
		"2026-11-29 22:55:58.717 UTC [27234] postgres@postgres DETAIL:  Hot standby mode is disabled.\n"
	log := "[1] LOG:  starting archive recovery\n" + strings.Repeat(refusal, 30) + "[2] LOG:  redo done at 0/70000C8\n" + refusal +
		"[2] FATAL:  recovery ended before configured recovery target was reached\n[1] LOG:  database system is shut down\n"
	want := "recovery ended before configured recovery target was reached; its log: [1] LOG:  starting archive recovery\n[2] LOG:  redo done at 0/70000C8\n" +
		"[2] FATAL:  recovery ended before configured recovery target was reached\n[1] LOG:  database system is shut down"
	if got := whyEnded(log); got != want {
		t.Errorf("%q", got)
	}
	for _, same := range []string{"", "[1] LOG:  aborting", "[1] FATAL:  could not open file"} {
		if got := whyEnded(same + "\n"); got != same {
			t.Errorf("%q, want %q", got, same)
		}
	}
}
