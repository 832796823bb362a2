package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// Stage is what one fault acts upon.
type Stage struct {
	*Site
	// Primary leads as the fault begins.
	Primary *lab.Member
	// Standby is a replica, a synchronous one where there is one; Third is the
	// remaining one.
	Standby, Third *lab.Member
	Rand           *rand.Rand

	say  func(string)
	undo []func(context.Context) error
	// postmaster is the process id that newPostmaster waits to see replaced.
	postmaster int
	targets    []string
}

// Undo registers how what is done next is taken back. Healing runs all of them,
// the last one first, also when some fail.
func (s *Stage) Undo(f func(context.Context) error) { s.undo = append(s.undo, f) }

func (s *Stage) heal(ctx context.Context) error {
	var errs []error
	for _, f := range slices.Backward(s.undo) {
		errs = append(errs, f(ctx))
	}
	s.undo = nil
	return errors.Join(errs...)
}

// Target notes whom the fault hits, and says what is done to them.
func (s *Stage) Target(what string, names ...string) {
	s.targets = append(s.targets, names...)
	s.say(fmt.Sprintf("%s %v", what, names))
}

// pastLease returns a duration that outlasts any lease: the longest that the
// others wait is 2.5 % more than one, and then they need to look and promote.
func (s *Stage) pastLease() time.Duration {
	least := s.Timing.TTL + s.Timing.TTL/2 + 2*s.Timing.LoopWait
	return least + time.Duration(s.Rand.Int64N(int64(s.Timing.TTL)))
}

// Holds.

// failover holds a fault until somebody else leads, and then for a moment more,
// in which a deposed leader that still accepted commits would be seen.
func failover(ctx context.Context, s *Stage) error {
	limit := Expect{Writes: Failover}.limit(s.Timing, 0) + 10*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("gave up after %v", limit))
	defer cancel()
	leader, err := s.Shard.AwaitLeader(ctx, s.Primary)
	if err != nil {
		return err
	}
	s.say(leader.Name + " leads")
	return pause(ctx, 2*time.Second)
}

// pastLease holds a fault for longer than a lease.
func pastLease(ctx context.Context, s *Stage) error { return pause(ctx, s.pastLease()) }

// outage holds a fault for Site.Options.Outage.
func outage(ctx context.Context, s *Stage) error { return pause(ctx, s.Options.Outage) }

// briefly holds a fault for between one and four seconds.
func briefly(ctx context.Context, s *Stage) error {
	return pause(ctx, time.Second+time.Duration(s.Rand.Int64N(int64(3*time.Second))))
}

// pause lets a fault last: its length is what is tested, there is no event to
// await.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// await asks until probe gives no error.
func await(ctx context.Context, what string, probe func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; last seen: %w", what, context.Cause(ctx), err)
		}
	}
}

// Processes.

// agent is the member's agent.
func agent(m *lab.Member) *lab.Process { return m.Process("agent") }

// guardOf finds the guard of a member's PostgreSQL.
func guardOf(m *lab.Member) (lab.ProcessInfo, error) { return guardThat(m, false) }

// watcherOf finds the process that watches the guard.
func watcherOf(m *lab.Member) (lab.ProcessInfo, error) { return guardThat(m, true) }

func guardThat(m *lab.Member, watches bool) (lab.ProcessInfo, error) {
	found, err := m.Find(func(i lab.ProcessInfo) bool {
		return len(i.Args) > 1 && i.Args[1] == "guard" && slices.Contains(i.Args, "--watch") == watches
	})
	if err != nil {
		return lab.ProcessInfo{}, err
	}
	if len(found) != 1 {
		return lab.ProcessInfo{}, fmt.Errorf("%s has %d guards, not one", m.Name, len(found))
	}
	return found[0], nil
}

// strike stops several processes and then kills them, so that none can act upon
// the death of another.
func strike(victims ...lab.ProcessInfo) error {
	var errs []error
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, v := range victims {
			errs = append(errs, v.Signal(sig))
		}
	}
	return errors.Join(errs...)
}

// processOf is a process of the lab as strike wants it.
func processOf(m *lab.Member, p *lab.Process) (lab.ProcessInfo, error) {
	pid := p.PID()
	found, err := m.Find(func(i lab.ProcessInfo) bool { return i.PID == pid })
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s on %s does not run", p.Name, m.Name)
	}
	if err != nil {
		return lab.ProcessInfo{}, err
	}
	return found[0], nil
}

// freeze stops a process until the fault is healed.
func (s *Stage) freeze(p interface{ Signal(syscall.Signal) error }) error {
	s.Undo(func(context.Context) error { return p.Signal(syscall.SIGCONT) })
	return p.Signal(syscall.SIGSTOP)
}

// startHost brings everything on a host up again once the fault is healed.
func (s *Stage) startHost(h *lab.Host) {
	s.Undo(h.Start)
}
