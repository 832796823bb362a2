package backup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// Replicas come out of the repository; without it from the leader, and everybody is told why.
func TestReplicas(t *testing.T) {
	s := serving(t, lab.Options{Members: 2}, nil)
	shard := s.Shard(0)
	ctx := within(t)
	leader := got(shard.Leader(ctx))(t)
	replica := got(shard.Replicas(ctx))(t)[0]

	t.Run("reinit takes what differs from the repository", func(t *testing.T) {
		ctx := within(t)
		sql(ctx, t, leader, "CREATE TABLE public.later AS SELECT 1 AS one")
		s.reinit(ctx, t, replica)
		if how := made(ctx, t, replica); !strings.Contains(how, " by pgbackrest in ") || strings.Contains(how, "failed") {
			t.Errorf("it was made %q", how)
		}
		log := string(got(os.ReadFile(filepath.Join(replica.Dir, "log", shard.Name+"-restore.log")))(t))
		if !strings.Contains(log, "--delta") || !strings.Contains(log, "exists and matches backup") {
			t.Errorf("pgBackRest's log does not tell of files that were kept:\n%.3000s", log)
		}
		if n := count(ctx, t, replica, "SELECT count(*) FROM public.later"); n != 1 {
			t.Errorf("%d rows of what was written after the backup", n)
		}
		s.says(ctx, t, shard, "events", "member made "+replica.Name)
	})

	t.Run("without the repository it comes from the leader", func(t *testing.T) {
		ctx := within(t)
		must(t, s.repo.Process(serverName).Kill(ctx))
		s.reinit(ctx, t, replica)
		if how := made(ctx, t, replica); !strings.Contains(how, "by basebackup in") || !strings.Contains(how, "method pgbackrest: ") {
			t.Errorf("it was made %q", how)
		}
		s.says(ctx, t, shard, "events", "by basebackup in")
		if log := agentLog(t, replica); !strings.Contains(log, "a method of create_replica_methods has failed") {
			t.Error("the log does not say why")
		}
		must(t, s.repo.Start(ctx))
	})

	t.Run("the wrong stanza is refused", func(t *testing.T) {
		all(t)
		ctx := within(t)
		must(t, s.configure(replica, "nobody"))
		s.reinit(ctx, t, replica)
		if how := made(ctx, t, replica); !strings.Contains(how, "by basebackup in") || !strings.Contains(how, "method pgbackrest: ") {
			t.Errorf("it was made %q", how)
		}
		must(t, s.configure(replica, shard.Name))
	})

	t.Run("the certificate has expired", func(t *testing.T) {
		all(t)
		ctx := within(t)
		must(t, s.certify(replica.Host, time.Now().Add(-time.Hour)))
		s.reinit(ctx, t, replica)
		if how := made(ctx, t, replica); !strings.Contains(how, "by basebackup in") || !strings.Contains(how, "method pgbackrest: ") {
			t.Errorf("it was made %q", how)
		}
		must(t, s.certify(replica.Host, time.Now().Add(time.Hour)))
		s.reinit(ctx, t, replica)
		if how := made(ctx, t, replica); !strings.Contains(how, " by pgbackrest in ") {
			t.Errorf("with a new certificate it was made %q", how)
		}
	})
}

// A replica is made, out of the repository, while nobody leads; and when nobody but it lives
// it follows what is in the archive.
func TestReplicaWithoutALeader(t *testing.T) {
	all(t)
	s := serving(t, lab.Options{Members: 2, Async: true}, nil)
	shard := s.Shard(0)
	ctx := within(t)
	leader := got(shard.Leader(ctx))(t)
	replica := got(shard.Replicas(ctx))(t)[0]
	sql(ctx, t, leader, "CREATE TABLE public.archived AS SELECT 1 AS one", "SELECT pg_switch_wal()")
	testkit.Await(ctx, t, "the WAL is in the archive", func() error {
		return s.pgbackrest(ctx, shard, "check")
	})
	must(t, replica.Kill(ctx))
	must(t, os.RemoveAll(replica.DataDir))
	must(t, leader.PowerOff(ctx))
	must(t, replica.Start(ctx))
	after := got(shard.AwaitLeader(ctx, leader))(t)
	if after != replica {
		t.Fatalf("%s leads", after.Name)
	}
	if n := count(ctx, t, replica, "SELECT count(*) FROM public.archived"); n != 1 {
		t.Errorf("%d rows of what was archived", n)
	}
	if how := made(ctx, t, replica); !strings.Contains(how, " by pgbackrest in ") {
		t.Errorf("it was made %q", how)
	}
	must(t, leader.Start(ctx))
	got(shard.AwaitHealthy(ctx))(t)
}
