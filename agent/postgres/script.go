package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/google/shlex"
)

// PrePromote runs the command postgresql.pre_promote; a failure forbids the
// promotion.
func (p *Instance) PrePromote(ctx context.Context) error {
	return p.script(ctx, "pre_promote", p.local.Load().PrePromote)
}

// BeforeStop runs the command postgresql.before_stop.
func (p *Instance) BeforeStop(ctx context.Context) error {
	return p.script(ctx, "before_stop", p.local.Load().BeforeStop)
}

// Callback runs one of the commands of postgresql.callbacks with Patroni's
// arguments: what happened, the role, and the shard's name.
func (p *Instance) Callback(ctx context.Context, command, action, role string) error {
	return p.script(ctx, "callbacks."+action, command, action, role, p.scope)
}

// scriptGrace is how long a script that took too long may take to end, from
// SIGTERM to SIGKILL, and how long the output of one that has ended is waited for
// when it has left something in the background that holds it.
const scriptGrace = time.Second

// script runs a command of the configuration, split as a shell would, without
// one. It runs as PostgreSQL's user, in the agent's directory, in a process group
// of its own: when its time is over the whole group gets SIGTERM and a moment to
// end, when it is called off SIGKILL at once.
func (p *Instance) script(ctx context.Context, what, command string, extra ...string) error {
	if command == "" {
		return nil
	}
	words, err := shlex.Split(command)
	if err != nil || len(words) == 0 {
		return fmt.Errorf("postgresql.%s: %q cannot be split into words", what, command)
	}
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], extra...)...)
	cmd.Env = environ("PGPASSFILE="+p.pgpassPath(), "PGOPTIONS=-c synchronous_commit=local")
	if dir := p.local.Load().BinDir; dir != "" { // an empty part would stand for the working directory
		cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential, Setpgid: true}
	cmd.Cancel = func() error {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return signalGroup(cmd.Process.Pid, syscall.SIGTERM)
		}
		return signalGroup(cmd.Process.Pid, syscall.SIGKILL)
	}
	cmd.WaitDelay = scriptGrace
	out := &lastWords{}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		_ = signalGroup(cmd.Process.Pid, syscall.SIGKILL) // what has not ended by itself
	}
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil:
		return nil // what it left in the background is its own business
	case ctx.Err() != nil:
		return fmt.Errorf("%s: it was ended with all that it had started: %w: %s", what, context.Cause(ctx), out)
	}
	return fmt.Errorf("%s: %w: %s", what, err, out)
}

// lastWords keeps the end of what a script prints.
type lastWords struct{ text []byte }

const lastWordsKept = 1000

// Write implements io.Writer.
func (w *lastWords) Write(text []byte) (int, error) {
	w.text = append(w.text, text...)
	if len(w.text) > 4*lastWordsKept {
		w.text = append(w.text[:0], w.text[len(w.text)-2*lastWordsKept:]...)
	}
	return len(text), nil
}

func (w *lastWords) String() string { return tail(string(w.text), lastWordsKept) }
