package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/agent/environ"
)

// DiskTrouble is a kind of trouble with the data directory's disk.
type DiskTrouble string

// The kinds of trouble.
const (
	DiskFull     DiskTrouble = "full"      // no space or no quota left
	DiskReadOnly DiskTrouble = "read-only" // remounted read-only, often after an error
	DiskIOError  DiskTrouble = "input/output error"
	DiskHung     DiskTrouble = "hung"
	DiskUnusable DiskTrouble = "unusable" // gone, or not writable for PostgreSQL's user
)

// errProbeStarved says that a probe lacks the CPU, not the disk.
var errProbeStarved = errors.New("the probe of the disk has not had the CPU to finish")

// DiskVerdict is what a probe has found.
type DiskVerdict struct {
	OK      bool
	Trouble DiskTrouble // empty: none
	Problem string      // in words
	// Hung: the probe does not come back. It goes on; Took says since how long.
	Hung bool
	// Took is how long the probe took, or has taken so far, with the start of its
	// process.
	Took time.Duration
}

// DiskProbe finds out whether PostgreSQL could write: a child process writes a
// small file next to PostgreSQL's own, syncs and removes it. A process that
// writes to a disk that hangs cannot even be killed, so it is one of its own, which
// nobody waits for beyond a limit, and of which there is never more than one.
type DiskProbe struct {
	command    []string
	dataDir    string
	credential *syscall.Credential

	mu      sync.Mutex
	current *probeRun
	reapers sync.WaitGroup
}

// probeRun is one child.
type probeRun struct {
	began time.Time
	ended chan struct{} // closed when it was reaped

	mu      sync.Mutex
	process *os.Process // nil until it was started
	writing bool        // it has said that it begins
	closed  bool        // nobody wants to know any more

	// Set before ended is closed.
	verdict DiskVerdict
	err     error
}

// NewDiskProbe makes a probe of a data directory. The command, with --dir and the
// directory after it, must call RunDiskProbe; it runs with the credential, nil
// being this process's own.
func NewDiskProbe(command []string, dataDir string, credential *syscall.Credential) *DiskProbe {
	return &DiskProbe{command: command, dataDir: dataDir, credential: credential}
}

// DiskProbe makes a probe of this instance's data directory, by the user whom
// PostgreSQL runs as: root may write to a full disk for longer.
func (p *Instance) DiskProbe(command []string) *DiskProbe {
	return NewDiskProbe(command, p.dataDir, p.credential)
}

// Run probes the disk, and returns after limit at the latest. While an earlier
// probe still hangs, it is that one that is waited for. An error says that
// nothing was found out about the disk: the probe could not be started, or had no
// CPU.
func (d *DiskProbe) Run(ctx context.Context, limit time.Duration) (DiskVerdict, error) {
	run, asked := d.begin(), time.Now()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-run.ended:
	case <-ctx.Done():
		return DiskVerdict{}, fmt.Errorf("probing the disk: %w", ctx.Err())
	case <-timer.C:
		select {
		case <-run.ended:
		default:
			return run.overdue(time.Since(asked) > 2*limit)
		}
	}
	d.mu.Lock()
	if d.current == run {
		d.current = nil
	}
	d.mu.Unlock()
	return run.verdict, run.err
}

// Close kills a probe that is under way and waits for it, as long as ctx allows:
// one that hangs in the kernel ends when its disk answers.
func (d *DiskProbe) Close(ctx context.Context) {
	d.mu.Lock()
	run := d.current
	d.mu.Unlock()
	if run == nil {
		return
	}
	run.close()
	select {
	case <-run.ended:
		d.reapers.Wait()
	case <-ctx.Done():
	}
}

func (d *DiskProbe) begin() *probeRun {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil {
		run := &probeRun{began: time.Now(), ended: make(chan struct{})}
		d.current = run
		// Even the start may hang, when the program lies on the disk that does.
		d.reapers.Go(func() {
			defer close(run.ended)
			run.verdict, run.err = d.child(run)
		})
	}
	return d.current
}

// child runs the child to its end.
func (d *DiskProbe) child(run *probeRun) (DiskVerdict, error) {
	args := append(d.command[1:len(d.command):len(d.command)], "--dir", d.dataDir)
	cmd := exec.Command(d.command[0], args...) //nolint:noctx // it may hang for longer than anybody waits
	cmd.Dir = "/"
	cmd.Env = environ.For(nil)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: d.credential}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return DiskVerdict{}, fmt.Errorf("starting the probe of the disk (%s; PostgreSQL's user must be able to run it): %w", d.command[0], err)
	}
	run.started(cmd.Process)
	report, readErr := run.listen(out)
	waitErr := cmd.Wait()
	if err := errors.Join(readErr, waitErr); err != nil {
		return DiskVerdict{}, fmt.Errorf("the probe of the disk failed: %w: %s", err, tail(complaint.String(), 500))
	}
	return DiskVerdict{OK: report.Trouble == "", Trouble: report.Trouble, Problem: report.Problem, Took: time.Since(run.began)}, nil
}

func (r *probeRun) started(p *os.Process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.process = p
	if r.closed {
		_ = p.Kill() // it may have ended
	}
}

func (r *probeRun) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.process != nil {
		_ = r.process.Kill()
	}
}

// probeReport is what the child says: first that it begins, then what it found.
type probeReport struct {
	Begins  bool        `json:"begins,omitempty"`
	Trouble DiskTrouble `json:"trouble,omitempty"`
	Problem string      `json:"problem,omitempty"`
}

func (r *probeRun) listen(out io.Reader) (probeReport, error) {
	answers := json.NewDecoder(out)
	for {
		var report probeReport
		if err := answers.Decode(&report); err != nil {
			return probeReport{}, fmt.Errorf("it did not report: %w", err)
		}
		if !report.Begins {
			return report, nil
		}
		r.mu.Lock()
		r.writing = true
		r.mu.Unlock()
	}
}

// overdue judges a probe that has not come back: it hangs, unless it or this
// process merely lacks the CPU, of which nothing follows for the disk.
func (r *probeRun) overdue(late bool) (DiskVerdict, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	took := time.Since(r.began)
	if late || r.process == nil || !r.writing || wantsCPU(r.process.Pid) {
		return DiskVerdict{}, fmt.Errorf("%w after %s", errProbeStarved, took.Round(time.Millisecond))
	}
	return DiskVerdict{
		Trouble: DiskHung, Hung: true, Took: took,
		Problem: fmt.Sprintf("a write to the data directory has not come back for %s", took.Round(100*time.Millisecond)),
	}, nil
}

// wantsCPU tells whether the process was runnable, stopped or gone at each of a
// few looks: one look may find a thread that is awake for a moment.
func wantsCPU(pid int) bool {
	for range 3 {
		if !runnable(pid) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

// runnable tells by the states of its threads (proc_pid_stat(5)) whether a process
// would go on if it were given the CPU.
func runnable(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		return true
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // this thread has ended
		}
		// pid (name) state ...; the name may hold anything.
		if i := strings.LastIndex(string(stat), ") "); i >= 0 && len(stat) > i+2 && strings.ContainsRune("RTtZX", rune(stat[i+2])) {
			return true
		}
	}
	return false
}
