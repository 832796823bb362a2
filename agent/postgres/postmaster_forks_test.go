package postgres

import (
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

// A host that lets PostgreSQL start no more processes (a unit's TasksMax, memory that is not to be
// overcommitted): the postmaster answers each new client with an error of its own ('E'), and nobody is
// let in. The leader's kept connection goes on, and it must not count as one that serves.
func TestPostmasterThatCannotFork(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a := serving(ctx, t)
	pid, err := a.namedPostmaster()
	must(t, err)
	limit := exec.CommandContext(ctx, "prlimit", "--pid", strconv.Itoa(pid), "--nproc=1:")
	limit.SysProcAttr = &syscall.SysProcAttr{Credential: a.credential}
	if out, err := limit.CombinedOutput(); err != nil {
		t.Skipf("no limit: %v %s", err, out)
	}
	a.answered.Store(0) // five seconds later
	if s, err := a.Observe(ctx); err == nil && s.Accepting {
		t.Error("nobody can log in, and it is said to serve")
	}
}
