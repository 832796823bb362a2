package postgres

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// A change with which PostgreSQL would end at its next start, for what its data have, is refused; of keys that are removed as well. So
// it is when PostgreSQL is down, and PostgreSQL itself ends with it.
func TestStartLimits(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := newInstance(t, settings(t, newDir(t), "a"))
	bootstrapped(ctx, t, p)
	given := func(more ...any) cluster.Dynamic {
		all := map[string]any{"wal_level": "logical", "max_replication_slots": 6, "max_prepared_transactions": 5, "max_connections": 40}
		for i := 0; i < len(more); i += 2 {
			if all[more[i].(string)] = more[i+1]; more[i+1] == nil {
				delete(all, more[i].(string))
			}
		}
		return cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: all}}
	}
	p.Apply(given())
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, p, "answers", func(s State) bool { return s.Accepting })
	changes := []struct {
		name  string
		after cluster.Dynamic
		want  string
		fatal bool // PostgreSQL says so, too
	}{
		{"nothing", given(), "", false},
		{"wal_level is lowered", given("wal_level", "replica"), "the logical slot reader", true},
		{"wal_level is removed", given("wal_level", nil), "the logical slot reader", true},
		{"fewer slots than there are", given("max_replication_slots", 4), "there are 5 slots", true},
		{"as many slots as there are", given("max_replication_slots", 5), "", false},
		{"no prepared transactions", given("max_prepared_transactions", 0), "there are 1 prepared transactions", true},
		{"none, by removal", given("max_prepared_transactions", nil), "there are 1 prepared transactions", true},
		{"as many as there are", given("max_prepared_transactions", 1), "", false},
		{"fewer connections than are reserved", given("superuser_reserved_connections", 30, "max_connections", 25), "max_connections: 25", true},
		{"more of both", given("superuser_reserved_connections", 50, "max_connections", 60), "", false},
		{"less WAL than two segments", given("min_wal_size", "2MB", "max_wal_size", "2MB"), "wal_size", true},
		{"huge pages that the host does not have", given("huge_pages", "on"), "huge pages", true},
	}
	if text, err := os.ReadFile("/proc/meminfo"); err != nil || !strings.Contains(string(text), "HugePages_Total:       0") {
		changes = changes[:len(changes)-1]
	}
	for _, statement := range []string{
		"SELECT pg_create_logical_replication_slot('reader', 'pgoutput')", "CREATE TABLE public.t (n int)",
		"SELECT pg_create_physical_replication_slot('s' || n, true) FROM generate_series(1, 4) n",
	} {
		sql(ctx, t, p, statement)
	}
	sql(ctx, t, p, "BEGIN; INSERT INTO public.t VALUES (1); PREPARE TRANSACTION 'two'")
	check := func(t *testing.T) {
		for _, c := range changes {
			err := p.CheckChange(ctx, given(), c.after)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", c.name, err, c.want)
			}
			why, err := p.TryStart(ctx, Changed{Shared: c.after.Postgres.Parameters, Parameters: texts(c.after)})
			if err != nil || (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
				t.Errorf("%s: a trial: %q, %v, want %q", c.name, why, err, c.want)
			}
		}
	}
	t.Run("it runs", check)
	must(t, p.Stop(ctx, Fast))
	t.Run("it is down", check)
	t.Run("PostgreSQL itself", func(t *testing.T) {
		for _, c := range changes {
			if c.fatal {
				fails(ctx, t, p, c.name, c.after)
			}
		}
		p.Apply(given("max_replication_slots", 5, "max_prepared_transactions", 1))
		must(t, p.Start(ctx, StartAs{Role: Primary}))
	})
}

// texts are the parameters as a file has them.
func texts(d cluster.Dynamic) map[string]string {
	all := map[string]string{}
	for name, value := range d.Postgres.Parameters {
		all[name] = cluster.ParameterText(value)
	}
	return all
}

// fails starts PostgreSQL, which must end.
func fails(ctx context.Context, t *testing.T, p *Instance, name string, d cluster.Dynamic) {
	t.Helper()
	p.Apply(d)
	if err := p.Start(ctx, StartAs{Role: Primary}); err == nil {
		t.Errorf("%s: PostgreSQL has started with it", name)
		must(t, p.Stop(ctx, Fast))
	}
}

// Origins of logical replication count as slots do, up to PostgreSQL 17.
func TestStartLimitsOfOrigins(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := serving(ctx, t)
	for _, n := range []string{"1", "2", "3", "4", "5"} {
		sql(ctx, t, p, "SELECT pg_replication_origin_create('o"+n+"')")
		sql(ctx, t, p, "SELECT pg_replication_origin_advance('o"+n+"', '0/1000000')")
	}
	try := func() string {
		t.Helper()
		why, err := p.TryStart(ctx, Changed{Shared: map[string]any{"max_replication_slots": 4}, Parameters: map[string]string{"max_active_replication_origins": "4"}})
		must(t, err)
		return why
	}
	if why := try(); !strings.Contains(why, "5 replication origins") {
		t.Errorf("%q", why)
	}
	must(t, p.Stop(ctx, Fast))
	if why := try(); !strings.Contains(why, "5 replication origins") {
		t.Errorf("it is down: %q", why)
	}
}
