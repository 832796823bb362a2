package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// The moments at which a restore is held up, so that it can be cut short there: by before_stop, by
// what runs pgBackRest, by its restore_command, and by the recovery_end_command.
const (
	momentNoted      = "noted"      // nothing is stopped yet
	momentAside      = "aside"      // the data are moved aside, nothing is in their place
	momentRestored   = "restored"   // the backup is in their place
	momentRecovering = "recovering" // PostgreSQL recovers
	momentPromoted   = "promoted"   // it has a new timeline
)

// holds has the shard's members run what hold installs.
func holds(program string) func(m *lab.Member, config map[string]any) {
	return func(m *lab.Member, config map[string]any) {
		restores(program)(m, config)
		config["lictor"].(map[string]any)["backup"].(map[string]any)["command"] = filepath.Join(momentsDir(m), "pgbackrest") + " --config=" + filepath.Join(m.Dir, configFile)
		config["postgresql"].(map[string]any)["before_stop"] = filepath.Join(momentsDir(m), "hold") + " " + momentNoted
	}
}

// hold makes a member stop at a moment of a restore as long as the file moment names it.
func (s *site) hold(t *testing.T, m *lab.Member) {
	t.Helper()
	dir := momentsDir(m)
	hold, wrapper := filepath.Join(dir, "hold"), filepath.Join(dir, "pgbackrest")
	must(t, s.MakeDir(dir))
	for path, script := range map[string]string{
		hold: fmt.Sprintf("[ \"$(cat %[1]s/moment 2>/dev/null)\" = \"$1\" ] || exit 0\n: >%[1]s/held\nwhile [ -e %[1]s/moment ]; do sleep 0.05; done\n", dir),
		wrapper: fmt.Sprintf(`case "$*" in
*" restore")
	%[1]s %[3]s
	%[2]s --cmd=%[4]s "$@" || exit
	echo "recovery_end_command = '%[1]s %[6]s'" >>%[7]s/postgresql.auto.conf
	exec %[1]s %[5]s ;;
*" archive-get "*) %[1]s %[8]s ;;
esac
exec %[2]s "$@"
`, hold, s.program, momentAside, wrapper, momentRestored, momentPromoted, m.DataDir, momentRecovering),
	} {
		must(t, s.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755))
	}
}

func momentsDir(m *lab.Member) string { return filepath.Join(m.Dir, "moments") }

// cut is a restore whose agent is killed.
type cut struct {
	*site
	leader *lab.Member
	before string // where it is put back to
	ended  chan string
}

// begin begins a restore that is held up at a moment; empty: at none.
func (c *cut) begin(ctx context.Context, t *testing.T, moment string) {
	t.Helper()
	dir := momentsDir(c.leader)
	for _, name := range []string{"held", "moment"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if moment != "" {
		must(t, c.WriteFile(filepath.Join(dir, "moment"), []byte(moment), 0o644))
	}
	c.ended = make(chan string, 1)
	go func() {
		out, _ := c.restore(ctx, c.leader, "--to", c.before)
		c.ended <- out
	}()
}

// await waits for a moment of a restore that goes on.
func (c *cut) await(ctx context.Context, t *testing.T, moment string, come func() error) {
	t.Helper()
	testkit.Await(ctx, t, moment, func() error {
		select {
		case out := <-c.ended:
			t.Fatalf("%s: it has ended before: %s", moment, out)
		default:
		}
		return come()
	})
}

func (c *cut) held() error {
	_, err := os.Stat(filepath.Join(momentsDir(c.leader), "held"))
	return err
}

func (c *cut) release(t *testing.T) {
	t.Helper()
	must(t, os.Remove(filepath.Join(momentsDir(c.leader), "moment")))
}

// kill kills the agent, and waits until the command has noticed.
func (c *cut) kill(ctx context.Context, t *testing.T) {
	t.Helper()
	must(t, c.leader.Process("agent").Kill(ctx))
	<-c.ended
}

// A restore whose agent is killed, at each of its steps (design 5.25), is undone by the next one, and
// no other member leads meanwhile; from the step on that drops the note it stands.
func TestRestoreThatIsCutShort(t *testing.T) {
	all(t)
	s := serving(t, lab.Options{Members: 2, Async: true}, holds(needs(t)))
	ctx := testkit.Within(t, 6*patience)
	shard := s.Shard(0)
	leader := got(shard.Leader(ctx))(t)
	s.hold(t, leader)
	sql(ctx, t, leader, "CREATE TABLE public.known (what text)", "INSERT INTO public.known VALUES ('before')")
	c := &cut{site: s, leader: leader, before: moment(ctx, t, leader, "0")}
	// A repository tells of whole seconds when WAL came there.
	sql(ctx, t, leader, "INSERT INTO public.known VALUES ('after')", "SELECT pg_sleep(1.1)")
	note := filepath.Join(filepath.Dir(leader.DataDir), "."+filepath.Base(leader.DataDir)+".lictor-restore")
	there := func(want bool, paths ...string) func() error {
		return func() error {
			for _, path := range paths {
				if found, err := filepath.Glob(path); err != nil || len(found) > 0 != want {
					return fmt.Errorf("%s: %v, %w", path, found, err)
				}
			}
			return nil
		}
	}
	discards := func() error {
		snapshot, err := shard.Snapshot(ctx)
		if err == nil && (snapshot.Status.Value.Lictor == nil || snapshot.Status.Value.Lictor.Discarded == 0) {
			err = errors.New("Consul does not know of it")
		}
		return err
	}
	for _, step := range []struct {
		name, hold string
		// come waits for the moment, from the one on at which it was held.
		come func(t *testing.T)
		// alone: nobody leads while the agent is away, until its lock is gone, and after that.
		alone, restored bool
	}{
		{name: "1, it is noted", hold: momentNoted},
		{name: "2, PostgreSQL is stopped, and Consul does not hear of it", hold: momentNoted, come: func(t *testing.T) {
			t.Helper()
			must(t, leader.CutTo(ctx, s.ConsulServers()[0].Host))
			c.release(t)
			c.await(ctx, t, "PostgreSQL is stopped", there(false, filepath.Join(leader.DataDir, "postmaster.pid")))
		}},
		{name: "3, Consul knows what is discarded", hold: momentNoted, come: func(t *testing.T) {
			t.Helper()
			c.release(t)
			c.await(ctx, t, "Consul knows", discards)
		}},
		{name: "4, the data are moved aside", hold: momentAside, alone: true},
		{name: "5, the backup is restored", hold: momentRestored},
		{name: "5, PostgreSQL recovers", hold: momentRecovering},
		{name: "5, it has a new timeline", hold: momentPromoted},
		{name: "6, the note is dropped", hold: momentPromoted, restored: true, come: func(t *testing.T) {
			t.Helper()
			c.release(t)
			testkit.Await(ctx, t, "the note is dropped", there(false, note)) // the command may have heard first that it is done
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			was := got(leader.Status(ctx))(t)
			c.begin(ctx, t, step.hold)
			c.await(ctx, t, step.hold, c.held)
			if step.come != nil {
				step.come(t)
			} else {
				must(t, there(true, note)())
			}
			c.kill(ctx, t)
			if step.come == nil {
				c.release(t)
			}
			if step.alone {
				testkit.Await(ctx, t, "its lock is gone, and with it what keeps another one from leading", func() error {
					if out := s.lictor(ctx, shard, "list"); strings.Contains(out, "Leader") {
						return errors.New(out)
					}
					return nil
				})
			}
			must(t, leader.Heal(ctx))
			must(t, leader.Start(ctx))
			if again := got(shard.AwaitHealthy(ctx))(t); again != leader {
				t.Errorf("%s leads", again.Name)
			}
			rows, beside := 2, 0
			if step.restored {
				rows, beside = 1, 1
			}
			for _, m := range shard.Members() {
				if n := count(ctx, t, m, "SELECT count(*) FROM public.known"); n != rows {
					t.Errorf("%s has %d known rows, want %d", m.Name, n, rows)
				}
				if now := got(m.Status(ctx))(t); now.Timeline > was.Timeline != step.restored {
					t.Errorf("%s is on timeline %d, was on %d", m.Name, now.Timeline, was.Timeline)
				}
			}
			if left := asides(t, leader); len(left) != beside {
				t.Errorf("beside the data: %v", left)
			}
			must(t, there(false, note)())
			testkit.Await(ctx, t, "Consul knows what is discarded now", func() error {
				if err := discards(); (err == nil) != step.restored {
					return fmt.Errorf("restored %v: %w", step.restored, err)
				}
				return nil
			})
		})
		if t.Failed() {
			t.Fatal(agentLog(t, leader))
		}
	}
}
