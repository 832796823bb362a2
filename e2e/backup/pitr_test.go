package backup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// A new shard is made of another one's backup, as it was between two known rows: beside the
// other one, which has the same system identifier. A target that is not in the archive makes
// no shard, and everybody hears why.
func TestNewShardAtAPointInTime(t *testing.T) {
	all(t)
	program := needs(t)
	restore := func(m *lab.Member) string { return filepath.Join(m.Dir, "restore.sh") }
	l := labtest.New(t, lab.Options{
		Substrate: lab.Netns, Shards: 2, Members: 2, Bouncers: 1, ConsulServers: 1, Async: true,
		Database: member(program, func(m *lab.Member, config map[string]any) {
			if m.Shard.Name == "shard1" {
				return
			}
			bootstrap := config["bootstrap"].(map[string]any)
			bootstrap["method"] = "pgbackrest"
			bootstrap["pgbackrest"] = map[string]any{"command": restore(m), "no_params": true, "keep_existing_recovery_conf": true}
		}),
	})
	ctx := testkit.Within(t, 2*patience)
	s := got(newSite(ctx, l, program))(t)
	old, restored := s.Shard(0), s.Shard(1)
	must(t, l.StartConsul(ctx))
	must(t, s.repo.Start(ctx))
	for _, m := range old.Members() {
		must(t, m.Start(ctx))
	}
	leader := got(old.AwaitHealthy(ctx))(t)
	must(t, old.Prepare(ctx))
	must(t, s.pgbackrest(ctx, old, "stanza-create"))
	must(t, s.backup(ctx, old))

	sql(ctx, t, leader, "CREATE TABLE public.known (what text)", "INSERT INTO public.known VALUES ('before')")
	between := moment(ctx, t, leader, "0")
	sql(ctx, t, leader, "INSERT INTO public.known VALUES ('after')", "SELECT pg_switch_wal()")
	must(t, s.pgbackrest(ctx, old, "check"))

	target := func(to string) {
		t.Helper()
		for _, m := range restored.Members() {
			script := fmt.Sprintf("#!/bin/sh\nexec %s --config=%s --stanza=%s --pg1-path=%s --type=time '--target=%s' restore\n",
				program, filepath.Join(m.Dir, configFile), old.Name, m.DataDir, to)
			must(t, l.WriteFile(restore(m), []byte(script), 0o700))
		}
	}
	target(moment(ctx, t, leader, "1 hour"))
	first := restored.Members()[0]
	must(t, first.Start(ctx))
	testkit.Await(ctx, t, "the bootstrap fails", func() error {
		_, body, err := first.Get(ctx, "/patroni")
		if err == nil && !strings.Contains(string(body), "recovery ended before configured recovery target was reached") {
			err = fmt.Errorf("its API does not tell: %s", body)
		}
		return err
	})
	if _, err := restored.Leader(ctx); err == nil {
		t.Error("there is a shard")
	}
	target(between)
	if made := got(restored.AwaitLeader(ctx))(t); made != first {
		t.Fatalf("%s leads", made.Name)
	}
	must(t, restored.Members()[1].Start(ctx))
	got(restored.AwaitHealthy(ctx))(t)
	rows := func(m *lab.Member) (rows string) {
		t.Helper()
		conn := got(m.Connect(ctx, old.Name))(t)
		defer conn.Close(context.WithoutCancel(ctx))
		must(t, conn.QueryRow(ctx, "SELECT string_agg(what, ' ' ORDER BY what) FROM public.known").Scan(&rows))
		return rows
	}
	for _, m := range restored.Members() {
		if have := rows(m); have != "before" {
			t.Errorf("%s has the rows %q", m.Name, have)
		}
	}
	if have := rows(leader); have != "after before" {
		t.Errorf("the old shard has the rows %q", have)
	}
	a, b := got(leader.Status(ctx))(t), got(first.Status(ctx))(t)
	if a.SystemIdentifier != b.SystemIdentifier || a.SystemIdentifier == "" {
		t.Errorf("system identifiers %q and %q", a.SystemIdentifier, b.SystemIdentifier)
	}

	// Two shards of one system identifier are wanted here: nobody takes one for the other.
	for _, host := range l.Hosts() {
		must(t, host.Start(ctx))
	}
	conn := got(first.Connect(ctx, "postgres"))(t) // its role for clients is the old shard's
	_, err := conn.Exec(ctx, "CREATE DATABASE "+restored.Name)
	must(t, err)
	must(t, conn.Close(ctx))
	must(t, l.AwaitServing(ctx))
	for _, shard := range l.Shards() {
		if out := s.lictor(ctx, shard, "doctor"); strings.Contains(out, "system identifier") || strings.Contains(out, "another cluster") {
			t.Errorf("lictor doctor of %s: %s", shard.Name, out)
		}
	}
	if out := s.lictor(ctx, restored, "routes"); strings.Contains(out, "refused") {
		t.Errorf("lictor routes: %s", out)
	}
	for _, b := range l.BouncerHosts() {
		log := string(got(os.ReadFile(b.Process("bouncer").LogPath()))(t))
		if strings.Contains(log, "system identifier") {
			t.Errorf("%s refuses a route", b.Name)
		}
	}

	// It has a stanza of its own.
	must(t, s.pgbackrest(ctx, restored, "stanza-create"))
	must(t, s.backup(ctx, restored))
	s.reinit(ctx, t, restored.Members()[1])
	if how := made(ctx, t, restored.Members()[1]); !strings.Contains(how, " by pgbackrest in ") {
		t.Errorf("the restored shard's replica was made %q", how)
	}
}

// moment is a time after all that was written, and, without later, before all that will be. It
// is another second than that in which a backup has ended: pgBackRest counts in seconds.
func moment(ctx context.Context, t *testing.T, m *lab.Member, later string) (at string) {
	t.Helper()
	conn := got(m.Connect(ctx, m.Shard.Name))(t)
	defer conn.Close(context.WithoutCancel(ctx))
	must(t, conn.QueryRow(ctx, "SELECT (clock_timestamp() + $1::interval)::text FROM pg_sleep(1.1)", later).Scan(&at))
	_, err := conn.Exec(ctx, "SELECT pg_sleep(0.1)")
	must(t, err)
	return at
}
