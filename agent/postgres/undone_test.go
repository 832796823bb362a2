package postgres

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// A restore that is undone after it has come to its end leaves the old data what they lead to, their
// tablespaces and their WAL on other disks, also where pgBackRest is told to restore links and over
// what is there. Of what the undone ones have made no more is left than one.
func TestUndoneRestoreHasWhatItLeadsTo(t *testing.T) {
	if _, err := exec.LookPath("pgbackrest"); err != nil {
		t.Skip("pgbackrest is not installed")
	}
	ctx, dir := testkit.Within(t, 3*patience), newDir(t)
	space, wal := filepath.Join(dir, "space"), filepath.Join(dir, "wal")
	p, _, options := backedUp(ctx, t, dir, func(p *Instance) {
		must(t, os.Mkdir(space, 0o700))
		give(t, p, space)
		sql(ctx, t, p, "CREATE TABLESPACE elsewhere LOCATION '"+space+"'")
		sql(ctx, t, p, "CREATE TABLE public.kept TABLESPACE elsewhere AS SELECT generate_series(1, 1000) AS n")
	})
	must(t, p.Stop(ctx, Fast)) // not before there is a stanza: an archive that fails is tried again a minute later
	must(t, os.Rename(p.inData("pg_wal"), wal))
	must(t, os.Symlink(wal, p.inData("pg_wal")))
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	sql(ctx, t, p, "SELECT pg_sleep(1.1)") // pgBackRest counts in seconds
	sql(ctx, t, p, "CREATE TABLE public.early TABLESPACE elsewhere AS SELECT 1 AS n")
	target := time.Now()
	sql(ctx, t, p, "INSERT INTO public.kept SELECT generate_series(1001, 2000)")
	archived(ctx, t, p)
	r := pg.Restore{Target: target, Label: labelIn(ctx, t, p, options), Timeline: 1, Discarded: 3}
	command := strings.ReplaceAll("pgbackrest "+options, "--stanza=main ", "")
	for _, c := range []struct {
		name, more string
	}{
		{name: "as it is"},
		{name: "once more"},
		{name: "over what is there", more: " --link-all --delta"},
	} {
		must(t, p.Stop(ctx, Fast))
		must(t, p.BeginRestore(t.Context(), r))
		must(t, p.SetAside())
		if err := p.Restore(ctx, config.Backup{Stanza: "main", Command: command + c.more}, r); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		must(t, p.PutBack(ctx))
		must(t, p.EndRestore())
		must(t, p.Start(ctx, StartAs{Role: Primary}))
		if got := value(ctx, t, p, "SELECT count(*)::text FROM public.kept"); got != "2000" {
			t.Errorf("%s: the table has %s rows", c.name, got)
		}
		if to, err := os.Readlink(p.inData("pg_wal")); err != nil || to != wal {
			t.Errorf("%s: the WAL is in %s, %v", c.name, to, err)
		}
		failed, made, walMade := matches(t, dir, "source.failed.*"), matches(t, dir, "source"+restoredTablespaces+"*"), matches(t, dir, "wal"+restoredWAL+"*")
		if len(failed) != 1 || len(made) > 1 || len(walMade) != 1 {
			t.Errorf("%s: there are %v, %v and %v", c.name, failed, made, walMade)
		}
	}
}
