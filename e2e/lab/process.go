package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Spec says how a process of a host is started.
type Spec struct {
	Name string // within its host
	Path string
	Args []string
	Env  []string // added to the lab's own
	// Unprivileged: when the lab is root's, run it as the user of PostgreSQL.
	Unprivileged bool
	// Ready, when set, returns once the process does its work. Host.Start
	// waits for it before it starts the next one.
	Ready func(context.Context) error
}

// Process is a program that the lab runs on a host. It can be started again
// after it ended.
type Process struct {
	Spec
	host *Host

	mu      sync.Mutex
	current *incarnation // nil before the first start
}

// incarnation is one run of a process, from start to end.
type incarnation struct {
	cmd     *exec.Cmd
	pid     int
	started uint64
	done    chan struct{}
	err     error // valid once done is closed
}

// LogPath is the file that has the output of all its runs.
func (p *Process) LogPath() string {
	return filepath.Join(p.host.lab.Dir, logDir, p.host.Name+"-"+p.Name+".log")
}

// Start runs the process; it is an error if it runs already. It does not wait
// for the process to be ready.
func (p *Process) Start() error {
	lab := p.host.lab
	lab.gate.RLock()
	defer lab.gate.RUnlock()
	if lab.shut {
		return fmt.Errorf("starting %s on %s: the lab was stopped", p.Name, p.host.Name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil && !p.current.ended() {
		return fmt.Errorf("%s on %s runs already, as process %d", p.Name, p.host.Name, p.current.pid)
	}
	log, err := os.OpenFile(p.LogPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("log of %s on %s: %w", p.Name, p.host.Name, err)
	}
	defer log.Close()

	cmd := exec.Command(p.Path, p.Args...) //nolint:noctx // it outlives every request; Close ends it
	cmd.Dir = p.host.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(hostEnvironment(os.Environ(), p.host.Dir), p.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if p.Unprivileged {
		cmd.SysProcAttr.Credential = lab.owner.credential()
	}
	if err := lab.spawner.start(p.host.ns, cmd); err != nil {
		return fmt.Errorf("starting %s on %s: %w", p.Name, p.host.Name, err)
	}
	run := &incarnation{cmd: cmd, pid: cmd.Process.Pid, done: make(chan struct{})}
	if seen, err := readProc(run.pid); err == nil {
		run.started = seen.start
	}
	p.current = run
	lab.waiters.Go(func() {
		run.err = cmd.Wait()
		close(run.done)
	})
	return lab.record.add(entry{PID: run.pid, Start: run.started, Name: p.host.Name + "/" + p.Name})
}

// hostEnvironment is what the processes of a host see: nothing of the user's own
// that would lead them to another Consul or PostgreSQL, or change their
// configuration.
func hostEnvironment(own []string, dir string) []string {
	env := []string{hostMarker + "=" + dir, "HOME=" + dir}
	for _, variable := range own {
		name, _, _ := strings.Cut(variable, "=")
		foreign := name == "HOME" || name == "NOTIFY_SOCKET" || name == hostMarker
		for _, prefix := range []string{"PG", "CONSUL_", "LICTOR_", "PATRONI_", "VAULT_"} {
			foreign = foreign || strings.HasPrefix(name, prefix)
		}
		if !foreign {
			env = append(env, variable)
		}
	}
	return env
}

func (r *incarnation) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

func (p *Process) incarnation() *incarnation {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// PID is the process id of the last run, zero when there was none.
func (p *Process) PID() int {
	if run := p.incarnation(); run != nil {
		return run.pid
	}
	return 0
}

// Running tells whether the process runs.
func (p *Process) Running() bool {
	run := p.incarnation()
	return run != nil && !run.ended()
}

// Done is closed when the present run has ended.
func (p *Process) Done() <-chan struct{} {
	if run := p.incarnation(); run != nil {
		return run.done
	}
	ended := make(chan struct{})
	close(ended)
	return ended
}

// ExitError says how the last run ended: nil for exit code 0 and while it runs.
func (p *Process) ExitError() error {
	if run := p.incarnation(); run != nil && run.ended() {
		return run.err
	}
	return nil
}

// Signal sends a signal to the process itself, not to its children. One that
// has ended is an error.
func (p *Process) Signal(sig syscall.Signal) error {
	run := p.incarnation()
	if run == nil {
		return fmt.Errorf("sending %v to %s on %s: it was never started", sig, p.Name, p.host.Name)
	}
	if err := run.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("sending %v to %s on %s: %w", sig, p.Name, p.host.Name, err)
	}
	return nil
}

// Kill sends SIGKILL to the process itself and waits for its end.
func (p *Process) Kill(ctx context.Context) error { return p.end(ctx, syscall.SIGKILL) }

// Stop sends SIGTERM and waits for the end.
func (p *Process) Stop(ctx context.Context) error { return p.end(ctx, syscall.SIGTERM) }

func (p *Process) end(ctx context.Context, sig syscall.Signal) error {
	run := p.incarnation()
	if run == nil || run.ended() {
		return nil
	}
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-run.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s on %s to end after %v: %w", p.Name, p.host.Name, sig, context.Cause(ctx))
	}
}

var errExitZero = errors.New("exit code 0")

// Await calls probe until it succeeds, as soon as it may have become true: at
// once and then every 50 ms, because what is probed cannot notify. It gives up
// when ctx ends or the process does, and says what the last probe said.
func (p *Process) Await(ctx context.Context, probe func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		select {
		case <-p.Done():
			cancel(fmt.Errorf("it ended (%w); its log is %s", cmp.Or(p.ExitError(), errExitZero), p.LogPath()))
		case <-ctx.Done():
		}
	})
	if err := poll(ctx, 50*time.Millisecond, probe); err != nil {
		return fmt.Errorf("%s on %s is not ready: %w", p.Name, p.host.Name, err)
	}
	return nil
}

// poll calls probe at once and then every interval until it succeeds or ctx
// ends; the error then says both.
func poll(ctx context.Context, interval time.Duration, probe func(context.Context) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w; last seen: %w", context.Cause(ctx), err)
		}
	}
}
