package postgres

import (
	"os"
	"path/filepath"
	"testing"
)

// Configuration files that are links, as operators make them, keep nobody from being
// cloned or rewound.
func TestLinkedConfigurationFiles(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a := newInstance(t, settings(t, dir, "a"))
	bootstrapped(ctx, t, a)
	link := func(p *Instance, name string) (target string) {
		target = filepath.Join(dir, p.name+"-"+name)
		must(t, os.Rename(p.inData(name), target))
		must(t, os.Symlink(target, p.inData(name)))
		return target
	}
	// As it was before Lictor.
	must(t, os.Rename(a.inData("postgresql.base.conf"), a.inData("postgresql.conf")))
	base := link(a, "postgresql.conf")
	f, err := os.OpenFile(base, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("\nwork_mem = '7MB' # gen\xfcgt\n")
	must(t, err)
	must(t, f.Close())
	link(a, "pg_hba.conf")
	must(t, a.Start(ctx, StartAs{Role: Primary}))

	b := newInstance(t, settings(t, dir, "b"))
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	u := upstream(a)
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &u}))
	observe(ctx, t, b, "streams", func(s State) bool { return s.ReplicationState == Streaming })
	conn, err := b.dedicated(ctx)
	must(t, err)
	var workMem string
	must(t, conn.QueryRow(ctx, "SHOW work_mem").Scan(&workMem))
	hangUpOn(conn)
	if workMem != "7MB" {
		t.Errorf("the clone has work_mem %s: it lacks the file that the link led to", workMem)
	}

	// A copy that has only the file that the agent wrote.
	must(t, b.Stop(ctx, Fast))
	must(t, os.Remove(b.inData("postgresql.base.conf")))
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &u}))
	must(t, b.Stop(ctx, Fast))

	c := newInstance(t, settings(t, dir, "c"))
	must(t, c.BaseBackup(ctx, upstream(a), nil))
	hba := link(c, "pg_hba.conf")
	// Both go their ways, on timelines of their own: what two members write on the same
	// one has no common point that pg_rewind could find.
	must(t, c.Start(ctx, StartAs{Role: Replica, Upstream: &u}))
	observe(ctx, t, c, "streams", func(s State) bool { return s.ReplicationState == Streaming })
	must(t, c.Promote(ctx, 0))
	sql(ctx, t, c, "CREATE TABLE public.other ()")
	must(t, c.Stop(ctx, Fast))
	must(t, a.Stop(ctx, Fast))
	must(t, a.Start(ctx, StartAs{Role: Replica}))
	observe(ctx, t, a, "a replica", func(s State) bool { return s.InRecovery && s.Accepting })
	must(t, a.Promote(ctx, 2))
	must(t, a.Checkpoint(ctx))
	if how, err := c.Rewind(ctx, upstream(a), true); err != nil || how != Rewound {
		t.Fatalf("%s %v", how, err)
	}
	if _, err := os.Stat(hba); err != nil {
		t.Errorf("what the link led to: %v", err)
	}
	must(t, c.Start(ctx, StartAs{Role: Replica, Upstream: &u}))
	observe(ctx, t, c, "streams again", func(s State) bool { return s.ReplicationState == Streaming })
}
