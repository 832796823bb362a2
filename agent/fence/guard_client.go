package fence

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// GuardClient is the agent's end of the guard. It starts a guard when none
// answers. Its methods may be called from several goroutines.
type GuardClient struct {
	// Postmaster is the one that runs, zero: none. The guard is armed only if it can
	// hold it. Nil: the guard is not told.
	Postmaster func() int

	// Files has the rights with which its log is opened.
	Files osuser.User
	// Pass are the variables that a guard gets of this process's environment besides
	// those that it needs.
	Pass []string

	command []string
	options GuardOptions
	logFile string

	watched atomic.Pointer[Watched]

	mu    sync.Mutex
	conn  net.Conn
	lines *bufio.Reader
	child chan struct{} // closed when the guard that was started last has ended; nil: none was
	// coming is the end of a guard that was started and has not answered yet: no other is
	// started meanwhile, however little time who asked for it had.
	coming chan error
}

// GuardStatus is what the guard says of itself.
type GuardStatus struct {
	// Until is its deadline, zero when it is disarmed.
	Until cluster.Instant
	// Fired says that it has killed PostgreSQL since it was armed last.
	Fired bool
	// PersistedState is what the agent told it to remember, nil when nothing.
	PersistedState json.RawMessage
	// Postmaster is the one that it holds, zero: none.
	Postmaster int
	Watched    Watched
}

// Watched is what the guard says of its watcher.
type Watched struct {
	By   int    // its process; zero: there is none, or the guard is an earlier version's
	Lost int    // watchers that have ended since the guard was started
	Why  string // there is none; empty: there is one
}

// NewGuardClient makes a client of the guard for a data directory. command is
// the program, and its first arguments, that runs a guard.
func NewGuardClient(command []string, o GuardOptions, logFile string) *GuardClient {
	return &GuardClient{command: command, options: o, logFile: logFile}
}

// answerWithin bounds one request to the guard, which does nothing slow but a start.
const answerWithin = 2 * time.Second

// startWithin bounds the start of a guard and its watcher, and that of a PostgreSQL: programs
// that a host under load has to find the time for.
const startWithin = 10 * time.Second

// Start makes the guard start a postmaster and returns its pid.
func (c *GuardClient) Start(ctx context.Context, s GuardStart) (int, error) {
	answer, err := c.ask(ctx, guardRequest{Op: "start", Start: &s})
	return answer.PID, err
}

// Arm sets or moves the deadline of the present lease, and has the guard remember
// persisted, unless that is nil. The guard refuses when its deadline has passed.
func (c *GuardClient) Arm(ctx context.Context, until cluster.Instant, persisted json.RawMessage) error {
	_, err := c.ask(ctx, guardRequest{Op: "arm", Until: until, PersistedState: persisted, Postmaster: c.postmaster()})
	return err
}

// Grant sets the deadline of a new lease.
func (c *GuardClient) Grant(ctx context.Context, until cluster.Instant, persisted json.RawMessage) error {
	_, err := c.ask(ctx, guardRequest{Op: "grant", Until: until, PersistedState: persisted, Postmaster: c.postmaster()})
	return err
}

func (c *GuardClient) postmaster() int {
	if c.Postmaster == nil {
		return 0
	}
	return c.Postmaster()
}

// Remember has the guard remember persisted and leaves its deadline as it is.
func (c *GuardClient) Remember(ctx context.Context, persisted json.RawMessage) error {
	_, err := c.ask(ctx, guardRequest{Op: "remember", PersistedState: persisted})
	return err
}

// CancelStarts makes sure that no start which was asked for before comes up any more, and
// returns the postmaster that the guard holds by now, zero: none.
func (c *GuardClient) CancelStarts(ctx context.Context) (postmaster int, err error) {
	answer, err := c.ask(ctx, guardRequest{Op: "remember"})
	return answer.Postmaster, err
}

// Disarm takes the deadline away, and what the guard remembers with it:
// PostgreSQL is stopped, or a replica.
func (c *GuardClient) Disarm(ctx context.Context) error {
	_, err := c.ask(ctx, guardRequest{Op: "disarm"})
	return err
}

// StandDown takes the deadline away and has the guard remember persisted: PostgreSQL runs
// on without one.
func (c *GuardClient) StandDown(ctx context.Context, persisted json.RawMessage) error {
	answer, err := c.ask(ctx, guardRequest{Op: "disarm", PersistedState: persisted})
	if err == nil && len(answer.PersistedState) == 0 { // an earlier version forgets
		return c.Remember(ctx, persisted)
	}
	return err
}

// Status asks the guard how it stands.
func (c *GuardClient) Status(ctx context.Context) (GuardStatus, error) {
	answer, err := c.ask(ctx, guardRequest{Op: "status"})
	return GuardStatus{Until: answer.Until, Fired: answer.Fired, PersistedState: answer.PersistedState, Postmaster: answer.Postmaster, Watched: answer.watched()}, err
}

// knockWithin bounds how long the guard's socket may take to connect, which the
// kernel does, also for a guard that is stopped.
const knockWithin = 200 * time.Millisecond

// PID is that of the guard that runs, zero: none does. It starts none.
func (c *GuardClient) PID() int {
	ctx, cancel := context.WithTimeout(context.Background(), knockWithin)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.options.Socket)
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		// Of whoever has called listen (unix(7), SO_PEERCRED).
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// EndHung ends the guard that runs if it does not answer, by SIGKILL, and waits for its
// end; it reports whether there was one. Its PostgreSQL is killed with it: this is for when
// none runs.
func (c *GuardClient) EndHung(ctx context.Context) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pid := c.PID()
	if pid == 0 {
		return false, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("guard: process %d, which does not answer: %w", pid, err)
	}
	defer unix.Close(fd)
	if c.answers(ctx) || c.PID() != pid {
		return false, nil // it does, or is another one by now
	}
	c.hangUp()
	if err := signalFD(fd, unix.SIGKILL); err != nil {
		return false, fmt.Errorf("guard: ending process %d, which does not answer: %w", pid, err)
	}
	for !ended(fd, pollMS) {
		if ctx.Err() != nil {
			return false, fmt.Errorf("guard: process %d, which does not answer, does not end: %w", pid, ctx.Err())
		}
	}
	return true, nil
}

// answers reports whether the guard that runs answers at once. It starts none. The lock is held.
func (c *GuardClient) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, hungAfter)
	defer cancel()
	c.hangUp()
	if err := c.dial(ctx); err != nil {
		return false
	}
	_, err := c.exchange(ctx, guardRequest{Op: "status"})
	if err != nil {
		c.hangUp()
	}
	return err == nil
}

// hungAfter is how long a guard may take to answer before it is taken to hang.
const hungAfter = time.Second

// ErrNoGuard: no guard runs for the data directory.
var ErrNoGuard = errors.New("none runs")

// Recall asks the guard that runs already how it stands. It starts none
// (ErrNoGuard).
func (c *GuardClient) Recall(ctx context.Context) (GuardStatus, error) {
	c.mu.Lock()
	if c.conn == nil {
		if err := c.dial(ctx); err != nil {
			c.mu.Unlock()
			if isAbsent(err) {
				err = fmt.Errorf("%w: %w", ErrNoGuard, err)
			}
			return GuardStatus{}, fmt.Errorf("guard: %w", err)
		}
	}
	c.mu.Unlock()
	return c.Status(ctx)
}

// Quit ends the guard if PostgreSQL does not run, and waits for it if it is our
// child. It starts none.
func (c *GuardClient) Quit(ctx context.Context) error {
	c.mu.Lock()
	err := c.sayQuit(ctx)
	child := c.child
	c.mu.Unlock()
	if err != nil || child == nil {
		return err
	}
	select {
	case <-child:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("guard: waiting for its end: %w", ctx.Err())
	}
}

// sayQuit asks the guard that runs to end, until it says so or none runs. The lock is held.
func (c *GuardClient) sayQuit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	for {
		var err error
		if c.conn == nil {
			if err = c.dial(ctx); isAbsent(err) {
				return nil
			}
		}
		if err == nil {
			var answer guardAnswer
			if answer, err = c.exchange(ctx, guardRequest{Op: "quit"}); err == nil {
				return answer.err()
			}
			c.hangUp() // it may have ended before its answer was read
		}
		select {
		case <-time.After(repeatAfter):
		case <-ctx.Done():
			return fmt.Errorf("guard: asking it to end: %w", errors.Join(err, ctx.Err()))
		}
	}
}

// isAbsent reports whether nobody listens at the guard's socket.
func isAbsent(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// Close leaves the guard running.
func (c *GuardClient) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hangUp()
}

func (c *GuardClient) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// ask sends one request, to a guard that is started first if none runs. A lost
// connection is made anew until ctx ends: every request may be repeated, except a
// start, which therefore begins with a question that may.
func (c *GuardClient) ask(ctx context.Context, r guardRequest) (guardAnswer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil && ctx.Err() == nil {
		start, cancel := context.WithTimeout(ctx, startWithin)
		err := c.connect(start)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return guardAnswer{}, fmt.Errorf("guard: %w", err)
		}
	}
	limit := answerWithin
	if r.Op == "start" { // it forks, and opens PostgreSQL's log
		limit = startWithin
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if r.Op == "start" {
		if _, err := c.persist(ctx, guardRequest{Op: "status"}); err != nil {
			return guardAnswer{}, err
		}
		if err := ctx.Err(); err != nil {
			return guardAnswer{}, fmt.Errorf("guard: %w", err)
		}
		answer, err := c.exchange(ctx, r)
		if err != nil {
			c.hangUp()
			return guardAnswer{}, fmt.Errorf("guard: %w", err)
		}
		return answer, answer.err()
	}
	return c.persist(ctx, r)
}

// repeatAfter gives a guard that is just being killed time to be gone.
const repeatAfter = 10 * time.Millisecond

func (c *GuardClient) persist(ctx context.Context, r guardRequest) (guardAnswer, error) {
	for {
		err := ctx.Err() // who was interrupted asks for nothing any more
		if err == nil && c.conn == nil {
			err = c.connect(ctx)
		}
		if err == nil {
			var answer guardAnswer
			if answer, err = c.exchange(ctx, r); err == nil {
				return answer, answer.err()
			}
			c.hangUp()
		}
		select {
		case <-time.After(repeatAfter):
		case <-ctx.Done():
			return guardAnswer{}, fmt.Errorf("guard: %w", errors.Join(err, ctx.Err()))
		}
	}
}

func (a guardAnswer) err() error {
	if a.Error != "" {
		return errors.New("guard: " + a.Error)
	}
	return nil
}

func (c *GuardClient) exchange(ctx context.Context, r guardRequest) (guardAnswer, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.conn.SetDeadline(deadline); err != nil {
			return guardAnswer{}, err
		}
	}
	r.Asked = Now()
	b, err := json.Marshal(r)
	if err != nil {
		return guardAnswer{}, err
	}
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		return guardAnswer{}, err
	}
	line, err := c.lines.ReadBytes('\n')
	if err != nil {
		return guardAnswer{}, err
	}
	var answer guardAnswer
	if err := json.Unmarshal(line, &answer); err != nil {
		return guardAnswer{}, err
	}
	c.watched.Store(new(answer.watched()))
	return answer, nil
}

func (a guardAnswer) watched() Watched {
	return Watched{By: a.Watcher, Lost: a.WatchersLost, Why: a.Unwatched}
}

// Watched is what the guard has said of its watcher with its last answer.
func (c *GuardClient) Watched() Watched {
	if w := c.watched.Load(); w != nil {
		return *w
	}
	return Watched{}
}

func (c *GuardClient) dial(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.options.Socket)
	if err != nil {
		return err
	}
	c.conn, c.lines = conn, bufio.NewReader(conn)
	return nil
}

// connect connects to the guard that runs, or starts one, with its watcher: in a session of
// its own, so that it outlives this agent.
func (c *GuardClient) connect(ctx context.Context) error {
	if err := c.dial(ctx); err == nil {
		return nil
	}
	if c.coming != nil {
		return c.awaitGuard(ctx)
	}
	if len(c.command) == 0 {
		return errors.New("no program to run it with")
	}
	out, err := c.Files.AppendTo(c.logFile, 0o640)
	if err != nil {
		return fmt.Errorf("its log: %w", err)
	}
	defer out.Close()
	args := append(c.command[1:len(c.command):len(c.command)], "--watch", "--socket", c.options.Socket, "--data-dir", c.options.DataDir)
	cmd := exec.Command(c.command[0], args...) //nolint:noctx // it outlives this request
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = out, out, "/", c.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting it: %w", err)
	}
	ended, child := make(chan error, 1), make(chan struct{})
	c.child = child
	go func() { // ends with the guard
		defer close(child)
		ended <- cmd.Wait()
	}()
	c.coming = ended
	return c.awaitGuard(ctx)
}

// environment is that of guard and watcher: the agent's tokens and passwords are not in
// it. These two outlive the agent, and whoever has their user may read it.
func (c *GuardClient) environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		needed := []string{"PATH", "HOME", "USER", "LOGNAME", "TZ", "TMPDIR"}
		if slices.Contains(needed, name) || strings.HasPrefix(name, "LD_") || strings.HasPrefix(name, "GO") || slices.Contains(c.Pass, name) {
			env = append(env, kv)
		}
	}
	return env
}

// awaitGuard waits until the guard that was started answers, or has ended.
func (c *GuardClient) awaitGuard(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := c.dial(ctx); err == nil {
			c.coming = nil
			return nil
		}
		select {
		case err := <-c.coming:
			c.coming = nil
			return fmt.Errorf("it ended at once, see %s: %w", c.logFile, err)
		case <-ctx.Done():
			return fmt.Errorf("it does not answer on %s: %w", c.options.Socket, ctx.Err())
		case <-tick.C:
		}
	}
}
