package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/google/shlex"

	"github.com/lictor-ha/lictor/agent/environ"
)

// scripts are the operator's own commands.
type scripts struct{ *installation }

// PrePromote runs the command postgresql.pre_promote, at most for limit; a failure
// forbids the promotion.
func (p *scripts) PrePromote(ctx context.Context, limit time.Duration) error {
	return p.script(ctx, script{what: "pre_promote", command: p.local.Load().PrePromote, limit: limit})
}

// BeforeStop runs the command postgresql.before_stop, at most for limit.
func (p *scripts) BeforeStop(ctx context.Context, limit time.Duration) error {
	return p.script(ctx, script{what: "before_stop", command: p.local.Load().BeforeStop, limit: limit})
}

// Callback runs one of the commands of postgresql.callbacks, at most for limit, with
// Patroni's arguments: what happened, the role, and the shard's name.
func (p *scripts) Callback(ctx context.Context, limit time.Duration, command, action, role string) error {
	return p.script(ctx, script{what: "callbacks." + action, command: command, args: []string{action, role, p.scope}, limit: limit})
}

// Output runs the command of a setting outside postgresql, at most for limit, and returns
// what it prints.
func (p *scripts) Output(ctx context.Context, limit time.Duration, setting, command string, args ...string) ([]byte, error) {
	var out bytes.Buffer
	err := p.script(ctx, script{what: setting, command: command, args: args, limit: limit, stdout: &out})
	return out.Bytes(), err
}

// script is one run of a command of the configuration.
type script struct {
	what    string // the setting below postgresql
	command string // split as a shell would, without one; empty: nothing is run
	args    []string
	env     []string
	limit   time.Duration // zero: none
	percent func(float64) // is told each percentage that it prints; nil: nobody
	stdout  io.Writer     // nil: it belongs to the error, as what it complains of
}

// scriptGrace is how long a script that took too long may take to end, from
// SIGTERM to SIGKILL (but no more than a quarter of its limit), and how long the
// output of one that has ended is waited for when it has left something in the
// background that holds it.
const scriptGrace = time.Second

// script runs as PostgreSQL's user, in the agent's directory, in a process group of
// its own: when its limit is over the whole group gets SIGTERM and a moment to end;
// when ctx ends, SIGKILL at once, also within that moment: fencing waits for
// nothing.
func (p *scripts) script(ctx context.Context, s script) error {
	if s.command == "" {
		return nil
	}
	words, err := shlex.Split(s.command)
	if err != nil || len(words) == 0 {
		return fmt.Errorf("postgresql.%s: %q cannot be split into words", s.what, s.command)
	}
	cmd := exec.Command(words[0], append(words[1:], s.args...)...) //nolint:noctx // its group is ended below
	cmd.Env = environ.For(p.pass, append(s.env, "PGPASSFILE="+p.pgpassPath(), "PGOPTIONS=-c synchronous_commit=local")...)
	if dir := p.local.Load().BinDir; dir != "" { // an empty part would stand for the working directory
		cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential, Setpgid: true}
	cmd.WaitDelay = scriptGrace
	out := &lastWords{percent: s.percent}
	cmd.Stdout, cmd.Stderr = out, out
	if s.stdout != nil {
		cmd.Stdout = s.stdout
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", s.what, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", s.what, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	cut, err := s.await(ctx, cmd.Process.Pid, ended)
	switch {
	case cut != nil:
		return fmt.Errorf("%s: it was ended with all that it had started: %w: %s", s.what, cut, out)
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil // what it left in the background is its own business
	}
	return fmt.Errorf("%s: %w: %s", s.what, err, out)
}

// await waits for the end of a script's process group, and brings it about when its
// time is over; cut says why.
func (s script) await(ctx context.Context, group int, ended <-chan error) (cut, err error) {
	var over, kill <-chan time.Time
	if s.limit > 0 {
		timer := time.NewTimer(s.limit)
		defer timer.Stop()
		over = timer.C
	}
	done := ctx.Done()
	for {
		select {
		case err := <-ended:
			if cut != nil {
				_ = signalGroup(group, syscall.SIGKILL) // what has not ended with it
			}
			return cut, err
		case <-over:
			cut = fmt.Errorf("it took more than %s", s.limit)
			_ = signalGroup(group, syscall.SIGTERM)
			grace := time.NewTimer(min(scriptGrace, s.limit/4))
			defer grace.Stop()
			kill = grace.C
		case <-kill:
			_ = signalGroup(group, syscall.SIGKILL)
		case <-done:
			done = nil
			cut = errors.Join(cut, context.Cause(ctx))
			_ = signalGroup(group, syscall.SIGKILL)
		}
	}
}

// lastWords keeps the end of what a script prints.
type lastWords struct {
	text    []byte
	percent func(float64)
}

const lastWordsKept = 1000

// Write implements io.Writer.
func (w *lastWords) Write(text []byte) (int, error) {
	w.text = append(w.text, text...)
	w.tellPercent(len(text))
	if len(w.text) > 4*lastWordsKept {
		w.text = append(w.text[:0], w.text[len(w.text)-2*lastWordsKept:]...)
	}
	return len(text), nil
}

// percentage is how programs tell how far they are: 45%, 45.67 %.
var percentage = regexp.MustCompile(`\b(\d{1,3}(?:\.\d+)?) ?%`)

// longestPercentage may be cut in two by a write.
const longestPercentage = 16

// tellPercent looks for the last percentage in what was printed just now.
func (w *lastWords) tellPercent(printed int) {
	if w.percent == nil {
		return
	}
	all := percentage.FindAllSubmatch(w.text[max(0, len(w.text)-printed-longestPercentage):], -1)
	if len(all) == 0 {
		return
	}
	if value, err := strconv.ParseFloat(string(all[len(all)-1][1]), 64); err == nil && value <= 100 {
		w.percent(value)
	}
}

func (w *lastWords) String() string { return tail(string(w.text), lastWordsKept) }
