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
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// GuardOptions are the command line of a guard.
type GuardOptions struct {
	Socket  string
	DataDir string
	// Watch makes it the process that starts a guard and watches it.
	Watch bool
}

// guardVersion is the version of the protocol between agent and guard: a newer
// agent may meet an older guard.
const guardVersion = 1

// guardRequest is one line from the agent, guardAnswer the line that answers it.
type guardRequest struct {
	Op    string          `json:"op"` // start, arm, grant, disarm, remember, status, quit
	Until cluster.Instant `json:"until,omitempty"`
	Start *GuardStart     `json:"start,omitempty"`
	// PersistedState is what the agent wants to find again after a restart. A request
	// without one leaves the last as it is; a disarm without one forgets it.
	PersistedState json.RawMessage `json:"memo,omitempty"`
	// Asked is when the agent asked, by CLOCK_BOOTTIME. What was asked on a
	// connection that was given up may be read after what was asked later: it is refused.
	Asked cluster.Instant `json:"asked,omitempty"` // zero: by an agent that does not say
	// Postmaster is the one that runs: a guard that cannot hold it is not armed.
	Postmaster int `json:"postmaster,omitempty"` // zero: none, or by an agent that does not say
}

type guardAnswer struct {
	Version        int             `json:"version"`
	Error          string          `json:"error,omitempty"`
	PID            int             `json:"pid,omitempty"`
	Until          cluster.Instant `json:"until"` // zero: disarmed
	Fired          bool            `json:"fired"`
	PersistedState json.RawMessage `json:"memo,omitempty"`
	// Postmaster is the one that the guard holds, zero: none.
	Postmaster int `json:"postmaster,omitempty"`
	// Watcher is the process that watches it, zero: none does, or it is an earlier version's;
	// Unwatched is why none does, and WatchersLost counts those that have ended.
	Watcher      int    `json:"watcher,omitempty"`
	Unwatched    string `json:"unwatched,omitempty"`
	WatchersLost int    `json:"watchers_lost,omitempty"`
}

// GuardStart is how the guard is to start the postmaster.
type GuardStart struct {
	Path       string              `json:"path"`
	Args       []string            `json:"args"`
	Env        []string            `json:"env"`
	Dir        string              `json:"dir"`
	Credential *syscall.Credential `json:"credential,omitempty"`
	LogFile    string              `json:"log_file"`
	// Primary: it will accept writes under a lease, and is not started when the
	// deadline has passed.
	Primary bool `json:"primary,omitempty"`
}

// acceptAgainAfter is when a connection is taken again after that has failed.
const acceptAgainAfter = 100 * time.Millisecond

// idleFor is how long a guard without PostgreSQL and without an agent stays.
const idleFor = time.Minute

// guard is the process that owns PostgreSQL's kill switch.
type guard struct {
	dataDir string
	target  *Target
	shared  *sharedDeadline // with the watcher; nil: nobody watches
	watch   watch
	log     *speaker

	mu        sync.Mutex
	deadline  Deadline
	persisted json.RawMessage
	asked     cluster.Instant // when the last change was
	moved     chan struct{}   // the deadline has changed
	killing   chan struct{}   // closed when the kill at the last deadline has succeeded; nil: there was none
	agents    int
	quit      context.CancelFunc

	starts chan guardLaunch
}

type guardLaunch struct {
	start  GuardStart
	asked  cluster.Instant
	answer chan guardLaunched
}

type guardLaunched struct {
	pid int
	err error
}

// RunGuard is the guard process (design 5.4). It is the
// parent of the postmaster, and kills all of PostgreSQL when the deadline that
// the agent set has passed, whether the agent still lives or not. A deadline that
// has passed is not moved any more: only a new lease (grant) arms it again.
//
// It knows PostgreSQL by its processes and not by a path: the postmaster is held by
// its pidfd, and the guard is the parent of orphans, too. So what becomes of the data
// directory's name or of its disk does not matter.
//
// It ignores SIGTERM and SIGINT: whoever wants it gone stops PostgreSQL first.
// If it is killed all the same, the kernel signals the postmaster (SIGQUIT, the
// parent-death signal), and the watcher, its parent, kills all of PostgreSQL.
func RunGuard(ctx context.Context, o GuardOptions) (err error) {
	if o.Watch {
		return runWatcher(ctx, o)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := newSpeaker(os.Stderr)
	defer log.close()
	ignoreSignals()
	privilege(log)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("guard: becoming the parent of orphans: %w", err)
	}
	listener, err := listenUnix(ctx, o.Socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	target := NewTarget(o.DataDir)
	target.Parent = os.Getpid
	deadline, err := inherited(0)
	if err != nil {
		return err
	}
	watcher, err := inherited(1)
	if err != nil {
		return err
	}
	var shared *sharedDeadline
	if deadline != nil {
		shared = &sharedDeadline{file: deadline}
		defer func() {
			if err == nil {
				shared.setOver()
			}
		}()
	}
	g := &guard{dataDir: o.DataDir, target: target, shared: shared, log: log, moved: make(chan struct{}, 1), quit: cancel, starts: make(chan guardLaunch)}
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() { g.launcher(ctx) })
	work.Go(func() { reap(ctx) })
	work.Go(func() { g.switchOff(ctx) })
	work.Go(func() { g.idle(ctx) })
	if watcher != nil {
		g.watch.pid, g.watch.log = os.Getppid(), log
		work.Go(func() { g.keepWatched(ctx, watcher) })
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			// Too many open files, here or on the host: it has a deadline to keep, and its
			// end would be PostgreSQL's.
			log.sayf("guard: %v", err)
			pause(ctx, acceptAgainAfter)
			continue
		}
		work.Go(func() { g.serve(ctx, conn) })
	}
}

// privilege makes the guard hard to starve and to kill, as far as it may. The
// guard leads a process group of its own, of which setpriority(2) reaches every
// thread; PostgreSQL gets another group, and the usual priority (launch).
func privilege(log *speaker) {
	if err := lockMemory(); err != nil {
		log.sayf("%v", err)
	}
	if unix.Getpgrp() == os.Getpid() {
		_ = unix.Setpriority(unix.PRIO_PGRP, 0, guardNice)
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0o600)
	// Of a program that was started as /proc/self/exe, ps would say "exe".
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0o600)
}

const (
	guardNice = -20
	usualNice = 0
)

// oomEnvironment lets the postmaster keep the guard's protection from the
// out-of-memory killer, and its backends not (PostgreSQL, section 19.4.4, Linux
// Memory Overcommit), unless the environment says otherwise.
func oomEnvironment(env []string) []string {
	const file = "PG_OOM_ADJUST_FILE="
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, file) }) {
		return env
	}
	return append(env[:len(env):len(env)], file+"/proc/self/oom_score_adj", "PG_OOM_ADJUST_VALUE=0")
}

// listenUnix listens on a socket that only this user and root may use. A socket
// that nobody answers on is a leftover; one that is answered is another guard's.
func listenUnix(ctx context.Context, path string) (*net.UnixListener, error) {
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("guard: another guard answers on %s", path)
	}
	keeper := osuser.Keeper(path)
	if err := keeper.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("guard: leftover socket: %w", err)
	}
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	var l *net.UnixListener
	err := keeper.For(func() (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		return err
	}, path)
	if err != nil {
		return nil, fmt.Errorf("guard: listening on %s (a long path? set lictor.state_dir): %w", path, err)
	}
	return l, nil
}

// launcher starts postmasters from one thread that lives as long as the guard:
// the parent-death signal is sent when the thread that forked ends (prctl(2),
// PR_SET_PDEATHSIG).
func (g *guard) launcher(ctx context.Context) {
	runtime.LockOSThread()
	defer g.target.awaitEnd()
	for {
		select {
		case l := <-g.starts:
			if err := g.refuses(l); err != nil {
				l.answer <- guardLaunched{err: err}
				continue
			}
			if !g.killed(goneWithin) {
				// What is started now would be killed with it.
				l.answer <- guardLaunched{err: errNotGone}
				continue
			}
			g.shared.awaitKill(goneWithin) // it would be hit, too
			pid, err := g.launch(l)
			if late := g.refuses(l); err == nil && late != nil {
				// The kill may have missed a process that was just being made.
				pid, err = 0, errors.Join(late, g.target.Signal(unix.SIGKILL))
			}
			l.answer <- guardLaunched{pid: pid, err: err}
		case <-ctx.Done():
			return
		}
	}
}

// goneWithin is how long a request waits for the end of processes that were killed.
const goneWithin = time.Second

var errNotGone = errors.New("the PostgreSQL that was killed at the deadline has not ended yet")

// killed waits until the kill at the last deadline, if there was one, has succeeded.
func (g *guard) killed(within time.Duration) bool {
	g.mu.Lock()
	done := g.killing
	g.mu.Unlock()
	if done == nil {
		return true
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// reap takes the exit status of postmasters, which is in their log, and of orphans.
func reap(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return
		}
	}
}

// errSuperseded: the agent has given the request up, and asked for something else since.
var errSuperseded = errors.New("a later request has overtaken this one")

// refuses says why a postmaster must not be started: the deadline has passed and no new
// lease was granted since, or the agent has given other orders since it asked.
func (g *guard) refuses(l guardLaunch) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !l.asked.IsZero() && l.asked.Before(g.asked):
		return errSuperseded
	case l.start.Primary && g.deadline.Over(Now()):
		return ErrDeadlinePassed
	}
	return nil
}

// launch starts a postmaster and holds it by the pidfd that the kernel gives with it.
func (g *guard) launch(l guardLaunch) (int, error) {
	s := l.start
	out, err := osuser.As(s.Credential).AppendTo(s.LogFile, 0o640)
	if err != nil {
		return 0, fmt.Errorf("PostgreSQL's log: %w", err)
	}
	defer out.Close()
	if err := g.refuses(l); err != nil { // the log's disk may have kept it waiting
		return 0, err
	}
	pidfd := -1
	cmd := exec.Command(s.Path, s.Args...) //nolint:noctx // the postmaster outlives this request
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = oomEnvironment(s.Env), s.Dir, out, out
	// Go sets the signal after it has changed the user, which would clear it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: s.Credential, Pdeathsig: syscall.SIGQUIT, PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("starting %s: %w", s.Path, err)
	}
	pid := cmd.Process.Pid
	g.target.hold(pid, pidfd)
	g.watch.set(func(w *watch) { w.pass(pid, pidfd) })
	_ = unix.Setpriority(unix.PRIO_PROCESS, pid, usualNice) // its backends inherit it
	return pid, cmd.Process.Release()                       // it is reaped with all others
}

// switchOff waits for the deadline and kills PostgreSQL when it comes. The timer
// is of CLOCK_BOOTTIME, so that a host which was suspended fires it at once.
func (g *guard) switchOff(ctx context.Context) {
	for {
		g.mu.Lock()
		until := g.deadline.Until
		g.mu.Unlock()
		if until.IsZero() {
			select {
			case <-g.moved:
				continue
			case <-ctx.Done():
				return
			}
		}
		if !g.waitUntil(ctx, until) {
			if ctx.Err() != nil {
				return
			}
			continue // the deadline has moved
		}
		g.mu.Lock()
		due := g.deadline.Due(Now())
		if due {
			g.deadline.Fire()
			g.persisted, g.killing = nil, make(chan struct{})
		}
		g.mu.Unlock()
		if due {
			g.log.sayf("the lease was not renewed in time: killing PostgreSQL in %s", g.dataDir)
			killAll(ctx, g.target, g.log)
			g.mu.Lock()
			g.tellWatcher() // it need not, any more
			g.mu.Unlock()
			close(g.killing)
		}
	}
}

// killAll does not give up: a process on a hung disk dies when the disk lets go.
func killAll(ctx context.Context, target *Target, log *speaker) {
	told := ""
	for ctx.Err() == nil {
		limit, cancel := context.WithTimeout(ctx, time.Second)
		err := target.Kill(limit)
		cancel()
		if err == nil {
			return
		}
		if err.Error() != told {
			told = err.Error()
			log.sayf("%s", told)
		}
		select { // one that failed at once
		case <-time.After(killAgainAfter):
		case <-ctx.Done():
		}
	}
}

// killAgainAfter spaces kills out that do not succeed.
const killAgainAfter = 100 * time.Millisecond

// clockEvery is how often the clock is looked at where there is no timer.
const clockEvery = 20 * time.Millisecond

// waitUntil waits for an instant, and reports false when the deadline moved first.
func (g *guard) waitUntil(ctx context.Context, until cluster.Instant) bool {
	if !Now().Before(until) {
		return true
	}
	timer, err := newBootTimer(until)
	if err != nil {
		// There is none (too many open files): the clock is looked at instead.
		select {
		case <-time.After(min(until.Sub(Now()), clockEvery)):
			return true // who waits looks whether it has come
		case <-g.moved:
			return false
		case <-ctx.Done():
			return false
		}
	}
	fired := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		var b [8]byte
		if n, _ := timer.Read(b[:]); n == len(b) {
			close(fired)
		}
	})
	defer waiting.Wait()
	defer timer.Close()
	select {
	case <-fired:
		return true
	case <-g.moved:
		return false
	case <-ctx.Done():
		return false
	}
}

// newBootTimer is a timer file that becomes readable at an instant
// (timerfd_create(2)).
func newBootTimer(at cluster.Instant) (*os.File, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("guard: timer: %w", err)
	}
	// The kernel refuses a negative time, and zero would disarm the timer: an
	// instant before the boot has passed like any other.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(at), 1))}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("guard: timer: %w", err)
	}
	return os.NewFile(uintptr(fd), "timerfd"), nil
}

// idle ends a guard that nobody needs.
func (g *guard) idle(ctx context.Context) {
	tick := time.NewTicker(idleFor)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.mu.Lock()
			alone := g.agents == 0
			g.mu.Unlock()
			if pids, err := g.target.Processes(); alone && err == nil && len(pids) == 0 {
				g.quit()
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (g *guard) serve(ctx context.Context, conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if !trusted(conn) {
		return
	}
	g.count(1)
	defer g.count(-1)
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return // the agent has gone; the deadline stays
		}
		var request guardRequest
		answer := guardAnswer{}
		if err := json.Unmarshal(line, &request); err != nil {
			answer.Error = "not understood: " + err.Error()
		} else {
			answer = g.answer(ctx, request)
		}
		answer.Version = guardVersion
		b, err := json.Marshal(answer)
		if err != nil {
			return
		}
		if _, err := conn.Write(append(b, '\n')); err != nil {
			return
		}
		if request.Op == "quit" && answer.Error == "" {
			g.quit() // which ends this connection: the answer comes first
			return
		}
	}
}

// trusted lets only the guard's own user and root command it.
func trusted(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok = err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
	})
	return ok
}

func (g *guard) count(by int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.agents += by
}

func (g *guard) answer(ctx context.Context, r guardRequest) guardAnswer {
	answer := guardAnswer{}
	switch r.Op {
	case "start":
		if r.Start == nil {
			answer.Error = "start: what to start is missing"
			break
		}
		l := guardLaunch{start: *r.Start, asked: r.Asked, answer: make(chan guardLaunched, 1)}
		select {
		case g.starts <- l:
			done := <-l.answer
			answer.PID = done.pid
			if done.err != nil {
				answer.Error = done.err.Error()
			}
		case <-ctx.Done():
			answer.Error = "the guard is ending"
		}
	case "arm", "grant":
		if r.Postmaster != 0 {
			if err := g.target.Hold(r.Postmaster); err != nil {
				answer.Error = "not armed, as the guard cannot hold PostgreSQL: " + err.Error()
				break
			}
		}
		answer.Error = g.change(r, r.PersistedState, func(d *Deadline) error { return d.Arm(Now(), r.Until, r.Op == "grant") })
	case "disarm":
		persisted := r.PersistedState
		if persisted == nil {
			persisted = json.RawMessage{}
		}
		answer.Error = g.change(r, persisted, func(d *Deadline) error { d.Disarm(); return nil })
	case "remember":
		answer.Error = g.change(r, r.PersistedState, func(*Deadline) error { return nil })
	case "quit":
		g.killed(goneWithin) // a postmaster that is dying is not there to be stopped
		switch pids, err := g.left(goneWithin); {
		case err != nil:
			answer.Error = err.Error()
		case len(pids) > 0:
			answer.Error = fmt.Sprintf("PostgreSQL runs: stop it first (processes %v)", pids)
		}
	case "status":
	default:
		answer.Error = "unknown request " + r.Op
	}
	g.watch.set(func(w *watch) {
		answer.Watcher, answer.WatchersLost = w.pid, w.lost
		if w.problem != nil {
			answer.Unwatched = w.problem.Error()
		}
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	answer.Until, answer.Fired, answer.PersistedState, answer.Postmaster = g.deadline.Until, g.deadline.Fired, g.persisted, g.target.Postmaster()
	return answer
}

// left lists PostgreSQL's processes, those that are just ending if they have not after
// a while.
func (g *guard) left(within time.Duration) ([]int, error) {
	for until := Now().Add(within); ; {
		pids, err := g.target.Processes()
		if err != nil || len(pids) == 0 || g.target.Postmaster() != 0 || !Now().Before(until) {
			return pids, err
		}
		time.Sleep(pollMS * time.Millisecond)
	}
}

// change changes the deadline and what the agent wants remembered.
func (g *guard) change(r guardRequest, persisted json.RawMessage, move func(*Deadline) error) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !r.Asked.IsZero() && r.Asked.Before(g.asked) {
		return errSuperseded.Error()
	}
	g.asked = r.Asked
	if err := move(&g.deadline); err != nil {
		return err.Error()
	}
	g.tellWatcher()
	if persisted != nil {
		g.persisted = persisted
	}
	select {
	case g.moved <- struct{}{}:
	default:
	}
	return ""
}

// tellWatcher shares the deadline with the watcher. The lock is held.
func (g *guard) tellWatcher() {
	if err := g.shared.set(g.deadline.Until); err != nil {
		// It keeps the last one, and kills too early rather than not at all.
		g.log.sayf("%v", err)
	}
}

// ignoreSignals: a guard ends when nothing is left to guard.
func ignoreSignals() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
}
