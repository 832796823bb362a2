package bouncer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// A process that the next configuration does not have is released whatever its clients wait
// for: nobody would ever do it. Those that stay go on waiting.
func TestProcessTakenOutIsReleased(t *testing.T) {
	for name, one := range map[string]struct {
		wait   func(*sharedPort)
		change func(*sharedPort, []config.Process) []config.Process
	}{
		"held-and-taken-out": {
			func(s *sharedPort) { s.put(s.keys.Route(), s.route(0, cluster.RouteDown)) },
			func(_ *sharedPort, list []config.Process) []config.Process { return list[:1] },
		},
		"paused-and-another-admin": {
			func(s *sharedPort) { s.pausing(Pause, "s1") },
			func(s *sharedPort, list []config.Process) []config.Process {
				_, port, _ := strings.Cut(list[1].Admin, ":")
				elsewhere := filepath.Join(s.dir, "elsewhere")
				if err := errors.Join(os.Mkdir(elsewhere, 0o755), bouncertest.GiveAway(elsewhere)); err != nil {
					s.t.Fatal(err)
				}
				list[1].Admin = elsewhere + ":" + port
				return list
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := onePort(t, 2, nil)
			one.wait(s)
			s.awaitPaused(0, true)
			s.awaitPaused(1, true)
			next := s.config
			next.PgBouncer.Processes = one.change(s, slices.Clone(next.PgBouncer.Processes))
			s.changes <- next
			s.awaitPaused(1, false)
			if text := s.log.String(); !strings.Contains(text, "no longer looked after") || !strings.Contains(text, s.config.PgBouncer.Processes[1].Admin) {
				t.Error("the log does not say that the process is no longer looked after")
			}
			s.await("the next configuration", func() error {
				status, err := s.status()
				if err == nil && (len(status.PgBouncer.Processes) != len(next.PgBouncer.Processes) || !status.Shards["service/s1"].AnyPaused) {
					err = fmt.Errorf("%+v", status)
				}
				return err
			})
			if d, err := s.database(0); err != nil || !d.Paused {
				t.Errorf("the process that stays has %+v %v", d, err)
			}
		})
	}
}

// Clients are released when they are in every process: resume and release say no sooner that
// it is done.
func TestReleaseIsDoneInEveryProcess(t *testing.T) {
	s := onePort(t, 2, nil)
	t.Cleanup(func() { _ = s.cmds[1].Process.Signal(syscall.SIGCONT) })
	for what, wait := range map[Pausing]func(){
		Resume:  func() { s.pausing(Pause, "s1") },
		Release: func() { s.put(s.keys.Route(), s.route(0, cluster.RouteDown)) },
	} {
		wait()
		s.awaitPaused(0, true)
		s.awaitPaused(1, true)
		s.awaitShard("the pause", func(s ShardStatus) bool { return s.Paused && s.AnyPaused })
		s.signal(1, syscall.SIGSTOP)
		if answer, err := what.Do(s.ctx, s.config, "s1", "x"); err == nil {
			t.Errorf("%s is done while a process hangs that holds clients: %+v", what, answer)
		}
		s.awaitPaused(0, false)
		s.awaitShard("one that is paused", func(s ShardStatus) bool { return !s.Paused && s.AnyPaused })
		s.signal(1, syscall.SIGCONT)
		s.awaitPaused(1, false)
		s.put(s.keys.Route(), s.route(0, cluster.RouteOpen))
		s.awaitShard("none that is paused", func(s ShardStatus) bool { return !s.Paused && !s.AnyPaused && !s.Held })
		s.awaitHealthy()
	}
}

// A process whose socket's file somebody has removed still gets clients at the port: it is
// no less there for /health, nor for a leader.
func TestProcessWithoutItsSocketFile(t *testing.T) {
	s := onePort(t, 2, nil)
	name := s.config.PgBouncer.Processes[1].Admin
	dir, port, _ := strings.Cut(name, ":")
	if err := os.Remove(filepath.Join(dir, ".s.PGSQL."+port)); err != nil {
		t.Fatal(err)
	}
	s.awaitReason(name)
	s.changes <- s.config // its console is asked for anew
	s.awaitReason(name + ": PgBouncer cannot be reached")
	s.handoverWithout(1)
	s.ends[1]() // now it is absent
	s.awaitHealthy()
	s.start(1)
	s.awaitProcess(1)
	s.awaitHealthy()
}
